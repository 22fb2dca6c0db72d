"""AdaptIS's toy problem, trained and scored in the time there is: Table 1, and Table 7's rows in miniature.

    condinst-edu reproduce adaptis:table-1 --budget 10m
    condinst-edu reproduce adaptis:table-7 --budget 30m

Images are drawn while it trains. The iterations follow from the time and from the speed of a few steps. Our images are
made to the paper's description, since its own were never published: its figures stand beside ours as an indication.
Table 7 is from Cityscapes in the paper; here its rows are models of the toy problem.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Screen
from torch import nn

from condinst_edu import papers
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.evaluate import Result, detect_all, mask_ap_at
from condinst_edu.engine.recipe import Recipe, override_model
from condinst_edu.engine.threads import choose_threads
from condinst_edu.engine.train import open_split, train
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.papers.forms import cell_text
from condinst_edu.recipes import get_recipe

RECIPE = "bacteria-adaptis"
THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
TEST_IMAGES = 200
SCORING_SECONDS = 60  # set aside for each model, beside its training

# The rows that are run, by their place in the paper's table, as arguments of the model. The last two of Table 7 are not
# in the paper, which has four: the other two losses without coordinates.
TOY_TABLES: dict[str, tuple[tuple[int | None, tuple[str, ...]], ...]] = {
    "adaptis:table-1": ((1, ()),),
    "adaptis:table-7": (
        (0, ()),
        (1, ("head.coordinates=False",)),
        (2, ("loss=focal",)),
        (3, ("loss=bce",)),
        (None, ("loss=focal", "head.coordinates=False")),
        (None, ("loss=bce", "head.coordinates=False")),
    ),
}


def score_toy(model: nn.Module, dataset: CocoDataset, device: str = "cpu", progress: bool = False) -> dict[str, float]:
    """Mask AP in percent at Table 1's IoU thresholds: {"AP@0.5": ..., "AP@0.7": ..., "AP@0.8": ..., "AP@0.9": ...}.

    Source: adaptis:table-1.
    """
    return toy_ap(dataset, detect_all(model, dataset, device=device, progress=progress))


def toy_ap(dataset: CocoDataset, results: Sequence[Result]) -> dict[str, float]:
    """`score_toy` of results that are there already."""
    found = mask_ap_at(dataset, results, THRESHOLDS)
    return {f"AP@{threshold}": round(100 * value, 2) for threshold, value in found.items()}


def reproduce_toy(
    name: str,
    out: Path,
    iterations: int,
    budget: float | None = None,
    device: str = "cpu",
    extra: Sequence[str] = (),
    images: int = TEST_IMAGES,
) -> dict[str, Any]:
    """Train and score the rows of a table; prints them under the paper's, writes `out`/PAPER-TABLE.json, returns it.

    budget: seconds for all of it, which then decide the iterations; images: of the test set. A run that was interrupted
    goes on where it stopped. Errors: UserError for a budget that nothing fits into, and as in training.
    """
    table = papers.table(name)
    rows = TOY_TABLES[table.id]
    begin = time.monotonic()
    writable_folder(out)
    recipe = override_model(get_recipe(RECIPE), tuple(extra))
    if budget is not None:
        recipe = dataclasses.replace(recipe, iterations=iterations_within(recipe, budget, len(rows)))
    else:
        recipe = dataclasses.replace(recipe, iterations=iterations)
    measured = [run_row(recipe, settings, out, device, images) for _, settings in rows]
    result = {
        "table": table.id,
        "recipe": RECIPE,
        "iterations": recipe.iterations,
        "seed": recipe.seed,
        "images": images,
        "budget": budget,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - begin, 1),
        "rows": [
            {"paper": None if i is None else table.row(i), "set": settings, "ours": ours}
            for (i, settings), ours in zip(rows, measured, strict=True)
        ],
    }
    path = out / f"{table.id.replace(':', '-')}.json"
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2))
    show(result, path)
    return result


def iterations_within(recipe: Recipe, budget: float, rows: int) -> int:
    """How many iterations each of the rows may take. Errors: UserError where there is no time for any."""
    begin = time.monotonic()
    rate = choose_threads(recipe)
    seconds = (budget - (time.monotonic() - begin)) / rows - SCORING_SECONDS
    if seconds < 30:
        raise UserError(f"{budget:g} seconds are too few for {rows} models: each needs a minute and a half at least")
    return max(10, int(seconds * rate / 10) * 10)


def run_row(recipe: Recipe, settings: tuple[str, ...], out: Path, device: str, images: int) -> dict[str, float]:
    """Train the model of one row, unless that is done, and score it."""
    words = "-".join(setting.replace("=", "-") for setting in settings) or "default"
    model = train(override_model(recipe, settings), out / f"adaptis-{words}-{recipe.iterations}", device)
    return score_toy(model, open_split(recipe, "val").first(images), device, progress=True)


def show(result: dict[str, Any], path: Path) -> None:
    """Print the rows, the paper's figures where ours have the same unit."""
    table = papers.table(result["table"])
    screen = Screen(title=table.caption)
    names = [f"AP@{threshold}" for threshold in THRESHOLDS]
    for column in ("", "", *names):
        screen.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    if table.id == "adaptis:table-1":
        for row in map(table.row, range(len(table.rows))):
            screen.add_row(str(row["method"]), "paper", *(f"{row[name]:.1f}" for name in names))
    for row in result["rows"]:
        figures = [f"{row['ours'][name]:.1f}" for name in names]
        screen.add_row(label(table.id, row), "ours", *figures, style="bold", end_section=True)
    console = Console()
    console.print(screen)
    if table.id == "adaptis:table-7":
        console.print("The paper's figures are PQ on Cityscapes; ours are AP in percent on toy images.")
    console.print(
        f"Ours: one seed, {result['iterations']} iterations, {result['images']} test images, "
        f"{result['seconds'] / 60:.1f} minutes, {result['threads']} threads."
    )
    console.print(f"Written to {path}", soft_wrap=True)


def label(table: str, row: dict[str, Any]) -> str:
    """What a row is, with the paper's figure where it has another unit."""
    if table == "adaptis:table-1":
        return str(row["paper"]["method"])
    if row["paper"] is None:
        return " ".join(row["set"])
    words = f"{row['paper']['loss']}, {'with' if row['paper']['relative CoordConv'] else 'without'} coordinates"
    return f"{words} (paper: PQ {cell_text(row['paper']['PQ'])})"
