"""All that changes while a run goes on: built from a recipe, written to `last.pt`, read back from it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.checkpoint import BrokenCheckpoint, broken, data_of, load_run, load_state, save_run
from condinst_edu.engine.distributed import gather, random_state, rank, seed_of_rank, set_random_state, world
from condinst_edu.engine.recipe import Recipe, build_model
from condinst_edu.engine.schedule import average, build_optimizer
from condinst_edu.errors import UserError
from condinst_edu.fcos import FCOSHead
from condinst_edu.layers.backbones import Backbone
from condinst_edu.layers.bifpn import BiFPN
from condinst_edu.layers.fpn import FPN
from condinst_edu.mask_head import can_compile
from condinst_edu.official import begin_with


@dataclass
class TrainState:
    """A run between two iterations. iteration: how many are done; best: highest AP of its evaluations, or -1."""

    recipe: Recipe
    dataset: CocoDataset
    device: str
    model: nn.Module
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    iteration: int = 0
    best: float = -1.0

    @property
    def result(self) -> nn.Module:
        """The model to use: the running mean where there is one."""
        return self.averaged.module if self.averaged is not None else self.model

    def save(self, out: Path) -> None:
        """Write last.pt; all processes call it, process 0 writes. Errors: UserError for weights that are no numbers."""
        randoms = gather(random_state(self.device))
        if rank():
            return
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise UserError(f"the weights are no longer numbers at iteration {self.iteration}: a lower --lr may help")
        state = {"iteration": self.iteration, "best": self.best, "random": randoms}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"averaged": self.averaged.state_dict() if self.averaged is not None else None}
        state |= {"scaler": self.scaler.state_dict()}
        save_run(out / "last.pt", self.recipe, data_of(self.dataset), state)

    def resume(self, out: Path) -> None:
        """Go on from last.pt, or, where that is broken, from the one before it. Errors: UserError as of `load_run`."""
        last = used = out / "last.pt"
        paths = [path for path in (last, out / "previous.pt") if path.exists()]
        for path in paths:
            try:
                self._fill(path)
                used = path
                break
            except BrokenCheckpoint as error:
                if path == paths[-1]:
                    raise
                print(f"{error}; going on from {paths[-1].name}", file=sys.stderr)
        if len(set(gather(self.iteration))) > 1:
            raise UserError(
                f"not all processes see the checkpoint in {out}: a folder that all machines share is needed"
            )
        if used != last and rank() == 0:  # all have read it; nothing broken is kept as the one before
            used.replace(last)

    def _fill(self, path: Path) -> None:
        state = load_run(path, self.recipe, data_of(self.dataset))
        load_state(self.model, state["model"], path)
        if self.averaged is not None:
            load_state(self.averaged, state["averaged"], path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            iteration, self.best = int(state["iteration"]), float(state["best"])
            if len(state["random"]) == world():
                set_random_state(state["random"][rank()], self.device)
            else:  # another number of processes than before
                seed_of_rank(self.recipe.seed, iteration)
            self.iteration = iteration
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise broken(path, error) from None


def start_state(recipe: Recipe, dataset: CocoDataset, out: Path, device: str) -> TrainState:
    """The state that a run starts from, or goes on from where `out` holds a checkpoint."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(dataset.category_ids), recipe.model_args)
    if recipe.start is not None and not any((out / name).exists() for name in ("last.pt", "previous.pt")):
        begin_with(model, recipe.start, dataset.class_names)
    if recipe.sync_bn and world() > 1:
        if not device.startswith("cuda"):
            raise UserError("sync_bn needs GPUs: batch norms cannot be synchronised on the CPU")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    if recipe.compile:
        compile_parts(model)
    seed_of_rank(recipe.seed)
    averaged = average(model, recipe.ema) if recipe.ema else None
    scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=recipe.amp == "fp16")
    state = TrainState(recipe, dataset, device, model, averaged, build_optimizer(model, recipe), scaler)
    state.resume(out)
    return state


def compile_parts(model: nn.Module) -> None:
    """torch.compile, in place, of the parts with the convolutions; what comes after them changes shape every time."""
    if not can_compile():
        raise UserError("compile needs a C++ compiler, and there is none here: --compile False does without")
    for module in model.modules():
        if isinstance(module, Backbone | FPN | BiFPN | FCOSHead):
            module.compile(dynamic=True)
