"""Training: one flat loop over iterations, in one process or in many.

    condinst-edu train shapes-condinst --data data/shapes-full --out runs/shapes
    condinst-edu train shapes-condinst --data data/shapes-full --out runs/shapes     # again: goes on where it stopped

On the eight GPUs of a machine; on those of two machines that share --out (on each, with the first one's name); where
machines come and go (any two to four; the run goes on from its last checkpoint when their number changes):

    torchrun --nproc-per-node 8 -m condinst_edu.cli train RECIPE --device cuda
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m condinst_edu.cli train ...
    torchrun --nnodes 2:4 --max-restarts 5 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m ...

A recipe's batch is that of all processes together: each takes an equal share, and losses are divided by the positives
of all, so that the number of processes changes the speed and nothing else, but for rounding. (Each process pads its
images to its own largest one; what a group norm sees of the padding is the only difference.)

The order of the data and all augmentation depend on (seed, iteration) alone, so a checkpoint needs no loader state, and
a run that was interrupted ends with the very weights of one that was not (on the same machine and number of threads and
processes). SIGTERM ends a run after the present step, with a checkpoint and exit status 143.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condinst_edu.datasets.bacteria import open_bacteria
from condinst_edu.datasets.batching import TrainLoader, build_train_loader
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.coco_panoptic import PanopticDataset
from condinst_edu.datasets.transforms import TrainTransform
from condinst_edu.engine.checkpoint import plain, save_model
from condinst_edu.engine.distributed import (
    Termination,
    bind_worker,
    keep_gradients,
    rank,
    same_everywhere,
    share_gradients,
    world,
)
from condinst_edu.engine.evaluate import evaluate, headline
from condinst_edu.engine.log import Log, LossRecord
from condinst_edu.engine.recipe import Recipe, check_recipe
from condinst_edu.engine.schedule import set_rate
from condinst_edu.engine.state import TrainState, start_state
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.progress import progress_bar

OnStep = Callable[[int, nn.Module], None]
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    recipe: Recipe, out: Path, device: str = "cpu", on_step: OnStep | None = None, show_progress: bool = True
) -> nn.Module:
    """Train as the recipe says; returns the model to use, in eval mode.

    Writes to `out`: recipe.json, log.jsonl, last.pt (to go on from) and previous.pt (the one before it),
    best.safetensors (where the recipe evaluates), model.safetensors (the result). Where last.pt exists already, the run
    goes on from it. on_step(iterations done, model to use) is called after every step.
    Among several processes (`join_processes`), all call it, and process 0 writes.
    Errors: UserError where data, arguments or `out` are not right, or the loss is no longer a number; SystemExit with
    status 143 after SIGTERM.
    """
    check_recipe(recipe)
    check_shares(recipe)
    first = rank() == 0
    if first:
        writable_folder(out)
    dataset = open_split(recipe, "train")
    held_out = open_split(recipe, "val", dataset.category_ids) if recipe.eval_every else None
    state = start_state(recipe, dataset, out, device)
    runner = share_gradients(state.model, device)
    batches = train_batches(recipe, dataset, state.model, state.iteration, recipe.iterations, device)
    record = LossRecord()
    with progress_bar(show_progress and first) as progress, Termination() as termination:
        log = None
        if first:
            write_recipe(recipe, out)
            log = Log(out, state.iteration, recipe, progress.console if show_progress else None)
        task = progress.add_task("training", total=recipe.iterations, completed=state.iteration, note="")
        for images, targets in batches:
            termination.ask()
            set_rate(state.optimizer, recipe, state.iteration)
            how = (recipe.accumulate, AMP[recipe.amp], state.scaler)
            losses = step(runner, state.optimizer, recipe.clip, images, targets, *how)
            if state.averaged is not None:
                state.averaged.update_parameters(state.model)
            state.iteration = done = state.iteration + 1
            record.add(done, losses, targets)
            stop = termination.answer()
            evaluate_now = held_out is not None and (done % recipe.eval_every == 0 or done == recipe.iterations)
            save_now = done % recipe.save_every == 0 or done == recipe.iterations or evaluate_now or stop
            if done % recipe.log_every == 0 or save_now:
                values = record.read()
                if log is not None:
                    log.write({"iteration": done, "lr": state.optimizer.param_groups[0]["lr"], **values})
                progress.update(task, note=" ".join(f"{name} {value:.2f}" for name, value in values.items()))
            progress.update(task, completed=done)
            if evaluate_now and held_out is not None and not stop:
                scores = score(state, held_out, out)
                if log is not None:
                    log.write({"iteration": done, **scores})
            if save_now:
                state.save(out)
            if on_step is not None:
                on_step(done, state.result)
            if stop and done < recipe.iterations:
                if first:
                    print(f"stopped by SIGTERM after iteration {done}, which {out / 'last.pt'} holds", file=sys.stderr)
                sys.exit(143)
    same_everywhere(state.result)
    if first:
        save_model(out / "model.safetensors", state.result, recipe, dataset.category_ids, dataset.class_names)
    return state.result.eval()


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    images: list[Tensor],
    targets: list[dict[str, Any]],
    accumulate: int = 1,
    amp: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """One step of the optimiser on one batch; the losses, detached.

    accumulate: parts in which the batch is taken, each the images i, i + accumulate, ..., so that it holds the same
    images however many processes share the batch; amp: type of the convolutions; scaler: of the losses, for float16.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    optimizer.zero_grad(set_to_none=True)
    total: dict[str, Any] = {}
    for i in range(accumulate):
        with keep_gradients(model, here=i < accumulate - 1):  # the last part's are shared with the other processes
            with torch.autocast(images[0].device.type, amp, enabled=amp is not None):
                losses = model(images[i::accumulate], targets[i::accumulate])
            scaler.scale(sum(losses.values()) / accumulate).backward()
        for name, loss in losses.items():
            total[name.removeprefix("loss_")] = total.get(name.removeprefix("loss_"), 0) + loss.detach() / accumulate
    if clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    return total


def score(state: TrainState, held_out: CocoDataset, out: Path) -> dict[str, float]:
    """AP of the model to use on the held-out images, shared by all processes; the best model is kept."""
    recipe = state.recipe
    same_everywhere(state.result)
    scores = evaluate(
        state.result,
        held_out,
        short_side=recipe.test_short_side,
        max_size=recipe.test_max_size or recipe.max_size,
        device=state.device,
        progress=False,
        workers=recipe.workers,
    )
    value = headline(scores)
    if value > state.best:
        state.best = value
        if rank() == 0:
            dataset = state.dataset
            save_model(out / "best.safetensors", state.result, recipe, dataset.category_ids, dataset.class_names)
    if "All" in scores:
        return {"PQ": value}
    return {f"{kind}_AP": values["AP"] for kind, values in scores.items()}


def check_shares(recipe: Recipe) -> None:
    """UserError unless every process gets as many images of a batch, and as many in each part."""
    if recipe.batch_size % (world() * recipe.accumulate):
        raise UserError(
            f"a batch of {recipe.batch_size} images cannot be shared equally by {world()} processes "
            f"that take it in {recipe.accumulate} parts"
        )


def write_recipe(recipe: Recipe, out: Path) -> None:
    with whole_file(out / "recipe.json") as temporary:
        temporary.write_text(json.dumps(plain(recipe), indent=2))


def open_split(recipe: Recipe, split: str, category_ids: list[int] | None = None) -> CocoDataset:
    """The training set (images that hold an object) or the held-out set ("val") of a recipe."""
    training = split == "train"
    if recipe.drawn != "none":
        return open_bacteria(recipe.drawn, training)
    images, annotations = (recipe.train_images, recipe.train_json) if training else (recipe.val_images, recipe.val_json)
    segments = recipe.train_panoptic if training else recipe.val_panoptic
    options: dict[str, Any] = {
        "cache": recipe.cache and training,
        "keep_empty": not training,
        "skip_missing": recipe.skip_missing,
        "category_ids": category_ids,
    }
    where = (recipe.data / images, recipe.data / annotations)
    if segments is not None:
        return PanopticDataset(*where, recipe.data / segments, **options)
    return CocoDataset(*where, **options, outlines=training)


def train_batches(
    recipe: Recipe, dataset: CocoDataset, model: nn.Module, start: int, iterations: int, device: str = "cpu"
) -> TrainLoader:
    """Augmented batches of iterations `start` to `iterations` - 1: this process's share of each, on the device.

    Where the model draws masks, they are sampled at its mask stride; labels for a semantic task at the stride of that.
    """
    strides = (getattr(model, "mask_stride", None), getattr(model, "semantic_stride", None))
    flips = (recipe.flip, recipe.vertical_flip)
    transform = TrainTransform(recipe.short_sides, recipe.max_size, *flips, *strides, recipe.crop)
    order = (recipe.batch_size, start, iterations, recipe.seed)
    batches = build_train_loader(dataset, transform, *order, recipe.workers, rank(), world(), device=device)
    batches.loader.worker_init_fn = bind_worker
    return batches
