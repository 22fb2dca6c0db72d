"""Training on one device: one flat loop over iterations.

    condinst-edu train shapes-condinst --data data/shapes-full --out runs/shapes
    condinst-edu train shapes-condinst --data data/shapes-full --out runs/shapes     # again: goes on where it stopped

The order of the data and all augmentation depend on (seed, iteration) alone, so a checkpoint needs no loader state, and
a run that was interrupted ends with the very weights of one that was not (on the same machine and number of threads).
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from condinst_edu.datasets.batching import TrainLoader, build_train_loader
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.transforms import TrainTransform
from condinst_edu.engine.checkpoint import data_of, load_run, load_state, plain, save_model, save_run
from condinst_edu.engine.recipe import Recipe, build_model, check_recipe
from condinst_edu.errors import UserError
from condinst_edu.files import cannot_write, whole_file, writable_folder
from condinst_edu.official import begin_with
from condinst_edu.progress import progress_bar

OnStep = Callable[[int, nn.Module], None]


def train(
    recipe: Recipe, out: Path, device: str = "cpu", on_step: OnStep | None = None, show_progress: bool = True
) -> nn.Module:
    """Train as the recipe says; returns the model to use, in eval mode.

    Writes to `out`: recipe.json, log.jsonl, last.pt (to go on from), model.safetensors (the result). Where last.pt
    exists already, the run goes on from it. on_step(iterations done, model to use) is called after every step.
    Errors: UserError where data, arguments or `out` are not right, or the loss is no longer a number.
    """
    check_recipe(recipe)
    writable_folder(out)
    dataset = open_split(recipe, "train")
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(dataset.category_ids), recipe.model_args)
    if recipe.start is not None and not (out / "last.pt").exists():
        begin_with(model, recipe.start, dataset.class_names)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    averaged = average(model, recipe.ema) if recipe.ema else None
    result = averaged.module if averaged is not None else model
    optimizer = build_optimizer(model, recipe)
    start = 0
    if (out / "last.pt").exists():
        start = resume(out / "last.pt", recipe, dataset, model, averaged, optimizer)
    with whole_file(out / "recipe.json") as temporary:
        temporary.write_text(json.dumps(plain(recipe), indent=2))

    def save(iteration: int) -> None:
        state = {"iteration": iteration, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"averaged": averaged.state_dict() if averaged is not None else None}
        state["random"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise UserError(f"the weights are no longer numbers at iteration {iteration}: a lower --lr may help")
        save_run(out / "last.pt", recipe, data_of(dataset), state)

    log = Log(out / "log.jsonl", start)
    batches = train_batches(recipe, dataset, model, start, recipe.iterations)
    with progress_bar(show_progress) as progress:
        task = progress.add_task("training", total=recipe.iterations, completed=start, note="")
        for iteration, (images, targets) in enumerate(batches, start=start):
            set_rate(optimizer, recipe, iteration)
            losses = step(model, optimizer, recipe.clip, to_device(images, device), to_device(targets, device))
            if averaged is not None:
                averaged.update_parameters(model)
            done = iteration + 1
            save_now = done % recipe.save_every == 0 or done == recipe.iterations
            if done % recipe.log_every == 0 or save_now:
                values = read_losses(losses, done, targets)
                log.write({"iteration": done, "lr": optimizer.param_groups[0]["lr"], **values})
                progress.update(task, note=" ".join(f"{name} {value:.2f}" for name, value in values.items()))
            progress.update(task, completed=done)
            if save_now:
                save(done)
            if on_step is not None:
                on_step(done, result)
    save_model(out / "model.safetensors", result, recipe, dataset.category_ids, dataset.class_names)
    return result.eval()


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: float, images: list[Tensor], targets: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """One step of the optimiser on one batch; the losses, detached."""
    losses = model(images, targets)
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return {name.removeprefix("loss_"): loss.detach() for name, loss in losses.items()}


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW; the weights and biases of normalisation layers are not decayed, as in the official code."""
    norms: list[Tensor] = []
    others: list[Tensor] = []
    for module in model.modules():
        kept = norms if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) else others
        kept += [p for p in module.parameters(recurse=False) if p.requires_grad]
    groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.99))


def rate_factor(recipe: Recipe, iteration: int) -> float:
    """The learning rate at an iteration, as a share of the recipe's: linear warm-up, then steps or a cosine."""
    warmup = recipe.warmup * recipe.iterations
    share = iteration / recipe.iterations
    if recipe.schedule == "step":
        factor = 0.1 ** sum(share >= milestone for milestone in recipe.milestones)
    else:
        factor = (1 + math.cos(math.pi * max(0, iteration - warmup) / max(1, recipe.iterations - warmup))) / 2
    if iteration < warmup:
        factor *= recipe.warmup_factor + (1 - recipe.warmup_factor) * iteration / warmup
    return factor


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, iteration: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * rate_factor(recipe, iteration)


def average(model: nn.Module, decay: float) -> AveragedModel:
    """Running mean of weights and statistics, started from the model itself."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()


def resume(
    path: Path,
    recipe: Recipe,
    dataset: CocoDataset,
    model: nn.Module,
    averaged: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Fill everything from a checkpoint; returns the number of iterations done."""
    state = load_run(path, recipe, data_of(dataset))
    load_state(model, state["model"], path)
    if averaged is not None:
        load_state(averaged, state["averaged"], path)
    try:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"][0])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random"][1:])
        return int(state["iteration"])
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} is no whole checkpoint ({type(error).__name__} while reading it)") from None


def open_split(recipe: Recipe, split: str, category_ids: list[int] | None = None) -> CocoDataset:
    """The training set (images that hold an object) or the held-out set ("val") of a recipe."""
    training = split == "train"
    images, annotations = (recipe.train_images, recipe.train_json) if training else (recipe.val_images, recipe.val_json)
    return CocoDataset(
        recipe.data / images,
        recipe.data / annotations,
        cache=recipe.cache and training,
        keep_empty=not training,
        skip_missing=recipe.skip_missing,
        category_ids=category_ids,
    )


def train_batches(recipe: Recipe, dataset: CocoDataset, model: nn.Module, start: int, iterations: int) -> TrainLoader:
    """Augmented batches of iterations `start` to `iterations` - 1.

    Where the model draws masks and needs no full-size ones, they are sampled at its mask stride.
    """
    stride = getattr(model, "mask_stride", None) if getattr(model, "semantic", None) is None else None
    transform = TrainTransform(recipe.short_sides, recipe.max_size, recipe.flip, recipe.vertical_flip, stride)
    return build_train_loader(dataset, transform, recipe.batch_size, start, iterations, recipe.seed, recipe.workers)


def to_device(batch: list[Any], device: str) -> list[Any]:
    def move(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: move(value) for key, value in item.items()}
        return item.to(device) if isinstance(item, Tensor) else item

    return [move(item) for item in batch]


def read_losses(losses: dict[str, Tensor], iteration: int, targets: list[dict[str, Any]]) -> dict[str, float]:
    """Losses as numbers; UserError names the images where one of them is no number any more."""
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(math.isfinite(value) for value in values.values()):
        ids = [target["image_id"] for target in targets]
        raise UserError(f"the loss is no longer a number at iteration {iteration} (images {ids}): {values}")
    return values


class Log:
    """JSON lines of a run; when it goes on from an iteration, lines after that one are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        lines = path.read_text(errors="replace").splitlines() if path.is_file() and start else []
        kept = [line for line in lines if 0 <= self.iteration(line) <= start]
        with whole_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))

    @staticmethod
    def iteration(line: str) -> int:
        """The iteration that a line is of; -1 for one that is cut off."""
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, TypeError, KeyError):
            return -1

    def write(self, values: dict[str, float]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None


def probe_rate(recipe: Recipe, steps: int = 6) -> float:
    """Iterations per second on this machine with torch's present number of threads, from a few throw-away steps."""
    dataset = open_split(recipe, "train")
    model = build_model(recipe.model, len(dataset.category_ids), recipe.model_args)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, recipe)
    begin = 0.0
    for iteration, (images, targets) in enumerate(train_batches(recipe, dataset, model, 0, steps + 2)):
        if iteration == 2:  # the first steps warm up
            begin = time.monotonic()
        step(model, optimizer, recipe.clip, images, targets)
    return steps / (time.monotonic() - begin)


def choose_threads(recipe: Recipe) -> float:
    """Set torch's number of threads to one, two or all, whichever is fastest just now; returns iterations per second.

    On a busy machine several threads that wait for each other are many times slower than one.
    """
    rates = {}
    most = torch.get_num_threads()
    for threads in sorted({1, min(2, most), most}):
        torch.set_num_threads(threads)
        rates[threads] = probe_rate(recipe)
    torch.set_num_threads(max(rates, key=rates.__getitem__))
    return max(rates.values())
