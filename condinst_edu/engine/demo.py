"""The demo: shapes are written, a tiny CondInst learns them in the minutes it is given, is scored and shown.

The schedule goes by iterations: how many fit is worked out from the speed of a few steps at the start.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.engine.checkpoint import plain
from condinst_edu.engine.evaluate import evaluate, mask_ceiling
from condinst_edu.engine.predict import COLORS, detect
from condinst_edu.engine.recipe import Recipe
from condinst_edu.engine.threads import choose_threads
from condinst_edu.engine.train import open_split, train
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.recipes.shapes import shapes_condinst

TRAIN_IMAGES, VAL_IMAGES = 4000, 200
CURVE_POINTS, CURVE_IMAGES = 4, 40
MIN_SCORE = 0.45  # what the picture shows; the paper's panoptic results keep instances from there on
FINISH_SECONDS = 25  # for what is not training: the curve, scoring, the ceiling, the picture


def run_demo(out: Path, minutes: float, seed: int = 0, iterations: int | None = None) -> dict[str, Any]:
    """Run the demo within about `minutes`; returns and writes to `out`/result.json what it measured.

    iterations: as many, whatever time they take.
    """
    if not 0.5 <= minutes <= 10_000:
        raise UserError(f"the demo needs at least half a minute and at most 10000, not {minutes:g}")
    if seed < 0 or (iterations is not None and iterations < 1):
        raise UserError(f"the seed is at least 0 and there is an iteration or more, not {seed} and {iterations}")
    begin = time.monotonic()
    console = Console()
    writable_folder(out)
    data = out / f"shapes-{seed}"
    console.print(f"[bold]1. Data[/]: {TRAIN_IMAGES} images to learn from, {VAL_IMAGES} held out ({data})")
    write_shapes(data, train=TRAIN_IMAGES, val=VAL_IMAGES, seed=seed, jobs=2)
    recipe = dataclasses.replace(shapes_condinst(), data=data, seed=seed)
    rate = choose_threads(recipe)
    seconds = 60 * minutes - (time.monotonic() - begin) - FINISH_SECONDS
    recipe = dataclasses.replace(recipe, iterations=iterations or max(60, int(seconds * rate / 10) * 10))

    threads = torch.get_num_threads()
    console.print(
        f"[bold]2. Training[/]: {recipe.iterations} iterations of {recipe.batch_size} images, {threads} threads"
    )
    train_begin = time.monotonic()
    model, curve = train_with_curve(recipe, fresh_run(out), console)
    train_seconds = time.monotonic() - train_begin

    console.print(f"[bold]3. Scoring[/] on {VAL_IMAGES} held-out images, by pycocotools")
    result = score(model, open_split(recipe, "val"))
    draw_demo(model, open_split(recipe, "val"), recipe, out / "demo.png")
    result |= {"iterations": recipe.iterations, "threads": threads, "seed": seed, "curve": curve}
    result |= {"train_seconds": round(train_seconds, 1), "total_seconds": round(time.monotonic() - begin, 1)}
    with whole_file(out / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2))
    tell(console, result, out)
    return result


def train_with_curve(recipe: Recipe, run: Path, console: Console) -> tuple[nn.Module, list[tuple[int, float]]]:
    """Train, and tell now and then how well it segments a few held-out images: the model, [(iteration, mask AP)]."""
    few = open_split(recipe, "val").first(CURVE_IMAGES)
    points = {recipe.iterations * k // CURVE_POINTS for k in range(1, CURVE_POINTS)}
    curve: list[tuple[int, float]] = []

    def on_step(iteration: int, model: nn.Module) -> None:
        if iteration in points:
            curve.append((iteration, evaluate(model, few, progress=False)["mask"]["AP"]))
            console.print(f"   iteration {iteration}: mask AP {curve[-1][1]:.3f} on {CURVE_IMAGES} held-out images")

    return train(recipe, run, on_step=on_step), curve


def score(model: nn.Module, held_out: CocoDataset) -> dict[str, Any]:
    """AP of the model, and the AP that perfect masks at its mask stride would have."""
    scores = evaluate(model, held_out)
    stride = int(model.mask_stride)  # type: ignore[arg-type]
    return {
        "mask_ap": scores["mask"]["AP"],
        "box_ap": scores["box"]["AP"],
        "mask_ap50": scores["mask"]["AP50"],
        "mask_ceiling": mask_ceiling(held_out, stride)["mask"]["AP"],
        "mask_stride": stride,
    }


def fresh_run(out: Path) -> Path:
    """The folder for the training run, without what an earlier demo wrote there."""
    run = out / "run"
    for name in ("last.pt", "previous.pt", "log.jsonl", "recipe.json", "model.safetensors"):
        (run / name).unlink(missing_ok=True)
    return run


def tell(console: Console, result: dict[str, Any], out: Path) -> None:
    """What was reached, against what could be, and what to do next."""
    table = Table(title="AP on images it has not seen")
    for column in ("", "mask AP", "box AP"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("this model", f"{result['mask_ap']:.3f}", f"{result['box_ap']:.3f}")
    table.add_row(f"perfect masks at stride {result['mask_stride']}", f"{result['mask_ceiling']:.3f}", "")
    console.print(table)
    console.print(f"Learned in {result['iterations']} iterations, {result['train_seconds']:.0f} s of training.")
    console.print(f"[bold]Look at {out / 'demo.png'}[/]: input, ground truth, prediction.\n")
    console.print("Next:", style="bold")
    weights = out / "run" / "model.safetensors"
    console.print(f"  condinst-edu predict PHOTO... --weights {weights} --out runs/predict", soft_wrap=True)
    console.print(f"  condinst-edu evaluate {weights}      AP in full, class by class", soft_wrap=True)
    console.print("  condinst-edu demo --minutes 10      more time, higher AP")
    console.print("  condinst-edu train --list           what else can be trained")


def draw_demo(model: nn.Module, dataset: CocoDataset, recipe: Recipe, path: Path, count: int = 6) -> None:
    """A picture with a column per held-out image: input, ground truth, prediction."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, count, figsize=(2 * count, 6.3), facecolor="white", layout="constrained")
    for column in range(count):
        image, target = dataset[column]
        found = detect(model, image, plain(recipe))
        found = {key: value[found["scores"] >= MIN_SCORE] for key, value in found.items()}
        show_instances(axes[0, column], image, {"masks": []}, [])
        show_instances(axes[1, column], image, target, dataset.class_names)
        show_instances(axes[2, column], image, found, dataset.class_names)
    for axis, title in zip(axes[:, 0], ("input", "ground truth", "prediction"), strict=True):
        axis.set_ylabel(title, fontsize=12)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def show_instances(axis: Any, image: Tensor, instances: dict[str, Any], class_names: list[str]) -> None:
    """One image with its instances: a colour and a name each, and scores where there are any."""
    picture = image.permute(1, 2, 0).float() / 255
    for i, mask in enumerate(instances["masks"]):
        color = torch.tensor(matplotlib.colors.to_rgb(COLORS[i % len(COLORS)]))
        picture[mask.bool()] = 0.35 * picture[mask.bool()] + 0.65 * color
    axis.imshow(picture.numpy(), interpolation="nearest")
    for i, mask in enumerate(instances["masks"]):
        axis.contour(mask.float().numpy(), levels=[0.5], colors="black", linewidths=0.8)
        x, y = instances["boxes"][i][:2].tolist()
        score = f" {instances['scores'][i]:.2f}" if "scores" in instances else ""
        name = class_names[int(instances["labels"][i]) - 1]
        axis.text(x, y, name + score, fontsize=6, bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "lw": 0})
    axis.set_xticks([])
    axis.set_yticks([])
