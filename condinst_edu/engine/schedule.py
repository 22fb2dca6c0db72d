"""What moves the weights: the optimiser, its learning rate at every iteration, and the running mean of the weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from condinst_edu.engine.recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW; the weights and biases of normalisation layers are not decayed, as in the official code.

    With `backbone_lr`, the backbone has a rate of its own, or those of its parts that it names as `pretrained`.
    """
    slow: set[int] = set()
    for name, backbone in model.named_modules():
        if recipe.backbone_lr != 1 and name.split(".")[-1] == "backbone":
            parts = [getattr(backbone, part) for part in getattr(backbone, "pretrained", ())] or [backbone]
            slow |= {id(p) for part in parts for p in part.parameters()}
    kinds: dict[tuple[bool, bool], list[Tensor]] = {(s, n): [] for s in (False, True) for n in (False, True)}
    for module in model.modules():
        norm = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
        for p in module.parameters(recurse=False):
            if p.requires_grad:
                kinds[id(p) in slow, norm].append(p)
    groups = [
        {"params": kinds[s, n], "weight_decay": (1 - n) * recipe.weight_decay, "share": recipe.backbone_lr if s else 1}
        for s, n in kinds
        if slow or not s
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, recipe.beta2))


def rate_factor(recipe: Recipe, iteration: int) -> float:
    """The learning rate at an iteration, as a share of the recipe's: linear warm-up, then steps, cosine or power."""
    warmup = recipe.warmup * recipe.iterations
    share = iteration / recipe.iterations
    if recipe.schedule == "step":
        factor = 0.1 ** sum(share >= milestone for milestone in recipe.milestones)
    elif recipe.schedule == "cosine":
        factor = (1 + math.cos(math.pi * max(0, iteration - warmup) / max(1, recipe.iterations - warmup))) / 2
    else:
        factor = (1 - share) ** recipe.power
    if iteration < warmup:
        factor *= recipe.warmup_factor + (1 - recipe.warmup_factor) * iteration / warmup
    return factor


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, iteration: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * rate_factor(recipe, iteration) * group.get("share", 1)  # of older runs without


def average(model: nn.Module, decay: float) -> AveragedModel:
    """Running mean of weights and statistics, started from the model itself."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()
