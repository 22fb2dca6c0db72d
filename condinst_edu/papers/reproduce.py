"""Tables of a paper in miniature: each row is a tiny model on the generated shapes, trained and scored alike.

    condinst-edu reproduce condinst:table-3 --seeds 3 --iterations 1000

What such a run can show is which way a figure goes from row to row, never the figure itself.
"""

import dataclasses
import json
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Screen
from torch import nn

from condinst_edu import papers
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.engine.checkpoint import load_state
from condinst_edu.engine.evaluate import STATS, evaluate
from condinst_edu.engine.recipe import Recipe, build_model, override_model
from condinst_edu.engine.threads import choose_threads
from condinst_edu.engine.train import open_split, train
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.papers.forms import Table, cell_text
from condinst_edu.papers.reproduce_toy import TOY_TABLES, reproduce_toy
from condinst_edu.recipes import get_recipe

RECIPES = {"condinst": "shapes-condinst", "dr1mask": "shapes-dr1mask"}  # that the tables of a paper start from


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table as arguments of the model, KEY=VALUE as in `condinst-edu train --set`; none: the recipe's own.

    train: arguments that another model is trained for; test: arguments that only matter once it is trained.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


DEFAULT = Row()
MINIATURES: dict[str, tuple[Row, ...]] = {  # in the order of the tables' rows
    "condinst:table-1a": (
        Row(("mask_head.depth=1",)),
        Row(("mask_head.depth=2",)),
        DEFAULT,  # depth 3, width 8
        Row(("mask_head.depth=4",)),
    ),
    "condinst:table-1b": (
        Row(("mask_head.width=2",)),
        Row(("mask_head.width=4",)),
        DEFAULT,
        Row(("mask_head.width=16",)),
    ),
    "condinst:table-2": (
        Row(("bottom.out_channels=1",)),
        Row(("bottom.out_channels=2",)),
        Row(("bottom.out_channels=4",)),
        DEFAULT,  # 8
        Row(("bottom.out_channels=16",)),
    ),
    "condinst:table-3": (
        Row(("mask_head.coordinates=none",)),
        Row(("mask_head.use_features=False",)),
        Row(("mask_head.coordinates=absolute",)),
        DEFAULT,  # relative coordinates and features
    ),
    "condinst:table-4": (Row(("factor=1",)), DEFAULT, Row(("factor=4",))),
    "condinst:table-5": (DEFAULT, Row(test=("nms=mask",))),
    "dr1mask:table-1": (
        Row(("attention=vector", "factors=none")),
        Row(("attention=vector", "factors=a")),
        Row(("attention=vector", "factors=b")),
        Row(("attention=vector",)),
    ),
    "dr1mask:table-3": (
        Row(("attention=vector", "factors=none")),
        Row(("attention=vector", "context=fpn")),
        Row(("attention=vector", "context=class")),
        Row(("attention=vector",)),
    ),
    "dr1mask:table-4": (
        Row(("attention=vector",)),
        Row(("attention=full",)),
        DEFAULT,  # factored
    ),
}

NOTES = {  # where a miniature is not the paper's set-up at another size
    "condinst:table-1a": "The time of the mask head is not measured here: see condinst-edu bench mask-head.",
    "condinst:table-1b": "The time of the mask head is not measured here: see condinst-edu bench mask-head.",
    "condinst:table-4": "The tiny bottom branch is on P2: our masks have 1/4, 1/2 and 1/1 of the input's resolution.",
    "dr1mask:table-4": "The time is not measured here. Attention of 7x7 for masks of 28x28.",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a table is run; `out` is the folder of the trained models, which tables with the same rows share."""

    seeds: int
    iterations: int
    data: Path
    out: Path
    device: str = "cpu"
    extra: tuple[str, ...] = ()
    """Further arguments of the model, the same for all rows."""
    budget: float | None = None
    """Seconds for all of it, in place of a number of iterations; for the toy problem of AdaptIS."""


Values = dict[str, float]
"""Mask AP and AR in percent, by the names of the tables' columns; without those that the images have nothing for."""


def reproduce(name: str, settings: Settings) -> dict[str, Any]:
    """Run all rows of a table; prints the paper's figures over ours, writes `out`/PAPER-TABLE.json and returns it.

    A run that was interrupted goes on where it stopped, one that is there is not run again. Errors: UserError for a
    table without a miniature, and as in training.
    """
    if papers.item(name).id in TOY_TABLES:
        return reproduce_toy(name, settings.out, settings.iterations, settings.budget, settings.device, settings.extra)
    table, rows = find_miniature(name)
    if settings.budget is not None:
        raise UserError(f"--budget is for {' and '.join(TOY_TABLES)}; {table.id} takes --iterations")
    if min(settings.seeds, settings.iterations) < 1:
        raise UserError(f"seeds and iterations start at 1, not {settings.seeds} and {settings.iterations}")
    recipe = base_recipe(settings, table)
    begin = time.monotonic()
    writable_folder(settings.out)
    if not (recipe.data / recipe.train_json).exists():
        write_shapes(recipe.data, jobs=2)
    folders = {folder_of(row, seed, settings) for row in rows for seed in range(settings.seeds)}
    before = sum((folder / "last.pt").exists() for folder in folders)
    if settings.device == "cpu" and before < len(folders):
        choose_threads(recipe)
    measured: list[list[Values]] = [[] for _ in rows]
    for seed in range(settings.seeds):
        for row, values in zip(rows, measured, strict=True):
            values.append(run_row(row, dataclasses.replace(recipe, seed=seed), settings))
    result = card(table, rows, measured, settings)
    result |= {"trained_before": before, "seconds": round(time.monotonic() - begin, 1)}
    path = settings.out / f"{table.id.replace(':', '-')}.json"
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2))
    show(table, measured, settings, path)
    return result


def find_miniature(name: str) -> tuple[Table, tuple[Row, ...]]:
    """The paper's table and the rows to run; UserError where the id is unknown or has no miniature."""
    entry = papers.item(name)
    if entry.id not in MINIATURES:
        what = "its miniature is not built yet" if entry.miniature else "it has no miniature"
        raise UserError(f"{entry.id} cannot be run here, {what}: choose from {', '.join([*MINIATURES, *TOY_TABLES])}")
    return papers.table(entry.id), MINIATURES[entry.id]


def base_recipe(settings: Settings, table: Table) -> Recipe:
    """The recipe that all rows of a table start from."""
    recipe = override_model(get_recipe(recipe_name(table)), settings.extra)
    return dataclasses.replace(recipe, data=settings.data, iterations=settings.iterations)


def recipe_name(table: Table) -> str:
    return RECIPES[table.id.split(":")[0]]


def folder_of(row: Row, seed: int, settings: Settings) -> Path:
    """Where a row's model is trained: named after its arguments, so that rows that share a model share the folder."""
    return settings.out / "-".join([*(setting.replace("=", "-") for setting in row.train), f"seed{seed}"])


def run_row(row: Row, recipe: Recipe, settings: Settings) -> Values:
    """Train the row's model, unless that is done already, and score it on the held-out images."""
    folder = folder_of(row, recipe.seed, settings)
    model = train(override_model(recipe, row.train), folder, settings.device)
    held_out = open_split(recipe, "val")
    if row.test:
        model = rebuilt(model, override_model(recipe, row.train + row.test), len(held_out.category_ids), folder)
    scores = evaluate(model, held_out, device=settings.device, progress=False)["mask"]
    return {name: 100 * scores[name] for name in STATS if scores[name] >= 0}


def rebuilt(model: nn.Module, recipe: Recipe, num_classes: int, folder: Path) -> nn.Module:
    """The same weights in a model built with other arguments."""
    other = build_model(recipe.model, num_classes, recipe.model_args)
    load_state(other, model.state_dict(), folder)
    return other.eval()


def card(table: Table, rows: Sequence[Row], measured: Sequence[Sequence[Values]], settings: Settings) -> dict[str, Any]:
    """What was run and measured, as data for JSON."""
    words = ["condinst-edu", "reproduce", table.id]
    for name in ("seeds", "iterations", "data", "out", "device"):
        words += [f"--{name}", str(getattr(settings, name))]
    for setting in settings.extra:
        words += ["--set", setting]
    return {
        "table": table.id,
        "command": shlex.join(words),
        "recipe": recipe_name(table),
        "seeds": settings.seeds,
        "iterations": settings.iterations,
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "note": NOTES.get(table.id, ""),
        "rows": [
            {
                "paper": table.row(i),
                "train": row.train,
                "test": row.test,
                "ours": {name: summary([seed[name] for seed in values]) for name in values[0]},
            }
            for i, (row, values) in enumerate(zip(rows, measured, strict=True))
        ],
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (0 for one seed) and the value of every seed."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 2), "std": round(spread, 2), "each": [round(v, 2) for v in values]}


# ------------------------------------------------------------------------------------------------------------- screen


def show(table: Table, measured: Sequence[Sequence[Values]], settings: Settings, path: Path) -> None:
    """Print every row of the paper with ours under it."""
    names = [name for name in table.names if name in measured[0][0] and not name.startswith("AR")]
    screen = Screen(title=table.caption)
    screen.add_column()
    screen.add_column()
    for name in names:
        screen.add_column(name, justify="right", no_wrap=True)
    for i, values in enumerate(measured):
        paper = table.row(i)
        screen.add_row(label(table, i), "paper", *(f"{paper[name]:.1f}" for name in names))
        ours = (spread_text([seed[name] for seed in values]) for name in names)
        screen.add_row("", "ours", *ours, style="bold", end_section=True)
    console = Console()
    console.print(screen)
    seeds = "one seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    console.print(
        f"Ours: {seeds}, {settings.iterations} iterations, drawn shapes. "
        "Compare which way figures go from row to row, not the figures."
    )
    if table.id in NOTES:
        console.print(NOTES[table.id])
    console.print(f"Written to {path}", soft_wrap=True)


def label(table: Table, index: int) -> str:
    """What a row is: "depth 3", or the names of the columns that have a tick."""
    words = []
    for name, cell in table.row(index).items():
        if isinstance(cell, bool):
            words += [name] if cell else []
        elif name not in STATS and name != "time":
            words.append(f"{name} {cell_text(cell)}")
    return ", ".join(words)


def spread_text(values: Sequence[float]) -> str:
    """The mean in one decimal, with the standard deviation where there are several."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean}±{statistics.stdev(values):.1f}" if len(values) > 1 else mean
