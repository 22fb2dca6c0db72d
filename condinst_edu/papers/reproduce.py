"""Tables of a paper in miniature: each row is a tiny model, trained and scored alike, with several seeds.

    condinst-edu reproduce condinst:table-3                    3 seeds, as the stored result
    condinst-edu reproduce condinst:table-3 --budget 20m       as many iterations as fit into the time

Each training is kept under its recipe, seed and iterations, so that rows which several tables share are trained once,
and a run that was killed goes on. What the rows are and what is claimed of them is in `papers.miniatures`, the stored
results and the page of them all in `papers.reproduced`.
"""

import dataclasses
import datetime
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Screen
from torch import nn

from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.engine.checkpoint import load_model, load_state, plain, save_model
from condinst_edu.engine.evaluate import STATS, evaluate
from condinst_edu.engine.recipe import Recipe, build_model, override_model
from condinst_edu.engine.threads import choose_threads, probe_rate
from condinst_edu.engine.train import open_split, train
from condinst_edu.errors import UserError
from condinst_edu.fcos import FCOS
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.layers.fpn import FPN
from condinst_edu.papers.claims import judge, spread_text
from condinst_edu.papers.forms import cell_text
from condinst_edu.papers.miniatures import DEFAULT, MINIATURES, Miniature, Row, find_miniature, label, printed
from condinst_edu.papers.tables import TABLES
from condinst_edu.papers.toy_score import TEST_IMAGES, score_toy
from condinst_edu.progress import progress_bar
from condinst_edu.recipes import get_recipe

__all__ = ["DEFAULT", "MINIATURES", "Row", "Settings", "reproduce"]

RESULTS = Path(__file__).parent / "results"
SCORING_SECONDS = {"none": 15, "bacteria": 60}  # set aside for each model in a budget, by what draws the images
LEAST = 20  # iterations that a budget has to leave

Values = dict[str, float]
"""Scores of a model in percent, by the names of the tables' columns; without those that the images have nothing for."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a table is run; `out` is the folder of the trained models, which tables with the same rows share."""

    seeds: int = 3
    iterations: int | None = None
    """Those of the stored result where None."""
    data: Path = Path("data/shapes-full")
    out: Path = Path("runs/reproduce")
    device: str = "cpu"
    extra: tuple[str, ...] = ()
    """Further arguments of the model, the same for all rows."""
    budget: float | None = None
    """Seconds for all of it, in place of a number of iterations."""
    scratch: bool = False
    """Start from random weights, where else boxes are those of the shipped tiny FCOS."""
    publish: bool = False
    """Store the result in the repository too."""


def reproduce(name: str, settings: Settings) -> dict[str, Any]:
    """Run all rows of a table; prints the paper's figures over ours and what becomes of its claims.

    Writes `out`/PAPER-TABLE.json after each seed and returns it. A run that was interrupted goes on where it stopped,
    one that is there is not run again. Errors: UserError for a table without a miniature or a budget that nothing fits
    into, and as in training.
    """
    name, miniature = find_miniature(name)
    check_settings(settings)
    writable_folder(settings.out)
    recipe = base_recipe(miniature, settings)
    if recipe.drawn == "none" and not (recipe.data / recipe.train_json).exists():
        write_shapes(recipe.data, jobs=2)
    if settings.budget is not None:
        recipe = dataclasses.replace(recipe, iterations=planned(name, miniature.rows, recipe, settings))
    result = run_rows(name, miniature.rows, recipe, settings)
    show(result, settings.out / file_name(name))
    return result


def check_settings(settings: Settings) -> None:
    """UserError for numbers that make no sense."""
    if settings.seeds < 1 or (settings.iterations is not None and settings.iterations < 1):
        raise UserError(f"seeds and iterations start at 1, not {settings.seeds} and {settings.iterations}")
    if settings.budget is not None and settings.iterations is not None:
        raise UserError("--budget or --iterations: the one follows from the other")


def base_recipe(miniature: Miniature, settings: Settings) -> Recipe:
    """The recipe that all rows of a table start from."""
    recipe = override_model(get_recipe(miniature.recipe), settings.extra)
    changes: dict[str, Any] = {"data": settings.data, "save_every": 50, "batch_size": 4}
    if has_start(recipe, settings):
        changes["lr"] = 3e-3  # less than from random weights
    changes |= miniature.changes
    return dataclasses.replace(recipe, iterations=settings.iterations or miniature.iterations, **changes)


def run_rows(name: str, rows: Sequence[Row], recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Train and score all that is missing, seed by seed, under one bar; the result as data for JSON."""
    runs = [[Run(row, recipe, seed, settings) for row in rows] for seed in range(settings.seeds)]
    waiting = {run.folder for seed in runs for run in seed if not run.is_trained()}
    if waiting and settings.device == "cpu":
        choose_threads(recipe)
    measured: list[list[Values]] = [[] for _ in rows]
    result: dict[str, Any] = {}
    with progress_bar() as progress:
        every = len({run.folder for seed in runs for run in seed})
        done = recipe.iterations * (every - len(waiting))
        progress.add_task(name, total=recipe.iterations * every, completed=done, note="")
        for seed, row_runs in enumerate(runs):
            for i, run in enumerate(row_runs):
                where = f"{label(name, i)}, seed {seed + 1} of {settings.seeds}"
                measured[i].append(run.scores(progress, where))
                if not progress.console.is_terminal:  # a log has lines in place of the bar
                    key, value = next(iter(measured[i][-1].items()))
                    progress.console.print(f"{name}: {where}: {key} {value:.1f}", highlight=False, soft_wrap=True)
            result = card(name, runs[: seed + 1], measured, recipe, settings)
            for folder in (settings.out, RESULTS) if settings.publish else (settings.out,):
                with whole_file(folder / file_name(name)) as temporary:
                    temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


class Run:
    """One training: a row with a seed. Its folder is named after all that decides the weights, and shared by tables."""

    def __init__(self, row: Row, recipe: Recipe, seed: int, settings: Settings) -> None:
        self.row, self.settings = row, settings
        self.recipe = dataclasses.replace(override_model(recipe, row.train), seed=seed)
        words = [recipe.model, *(setting.replace("=", "-") for setting in row.train), str(recipe.iterations)]
        name = "-".join(word.replace(" ", "") for word in words)
        self.folder = settings.out / f"{name}-seed{seed}-{self.fingerprint()}"

    def fingerprint(self) -> str:
        """Of the recipe, the device and the start; not of where the data lies or how many processes load it."""
        free = {"data", "workers", "cache", "log_every", "save_every", "eval_every", "tensorboard"}
        facts = {key: value for key, value in plain(self.recipe).items() if key not in free}
        facts |= {"device": self.settings.device.partition(":")[0], "scratch": self.settings.scratch}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]

    def is_trained(self) -> bool:
        return bool(self.facts())

    def facts(self) -> dict[str, Any]:
        """What was measured: {"seconds", "threads", "torch", "scores": {test arguments: values}}; {} if untrained."""
        path = self.folder / "run.json"
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except (OSError, ValueError, TypeError):  # not ours: whole_file leaves no halves
            raise UserError(f"{path} cannot be read: delete {self.folder} to train it again") from None

    def scores(self, progress: Progress, where: str) -> Values:
        """Train the model, unless that is done, and score it, unless that is done; where: the text for the bar."""
        facts, key = self.facts(), " ".join(self.row.test)
        if not facts:
            facts = self.train(progress, where)
        if key not in facts["scores"]:
            progress.update(progress.tasks[0].id, note=f"{where}: scoring")
            begin = time.monotonic()
            facts["scores"][key] = score(self.model(), self.recipe, self.settings.device)
            facts["seconds"] = round(facts["seconds"] + time.monotonic() - begin, 1)
            self.write(facts)
        return dict(facts["scores"][key])

    def train(self, progress: Progress, where: str) -> dict[str, Any]:
        """Train the model, or go on; returns `facts` without scores."""
        task, begin = progress.tasks[0], time.monotonic()
        before, steps = task.completed, 0

        def note(done: int, model: nn.Module) -> None:
            nonlocal steps
            steps += 1
            progress.update(task.id, completed=before + done, note=where)

        recipe = self.recipe
        if has_start(recipe, self.settings):
            recipe = dataclasses.replace(recipe, start=str(self.folder / "start.safetensors"))
            write_start(recipe, self.folder / "start.safetensors")
        train(recipe, self.folder, self.settings.device, note, show_progress=False)
        seconds = (time.monotonic() - begin) * recipe.iterations / max(1, steps)  # of those of an earlier call too
        facts: dict[str, Any] = {"seconds": round(seconds, 1), "threads": torch.get_num_threads()}
        facts |= {"torch": torch.__version__, "scores": {}}
        self.write(facts)
        for name in ("last.pt", "previous.pt", "start.safetensors"):  # only needed to go on
            (self.folder / name).unlink(missing_ok=True)
        return facts

    def model(self) -> nn.Module:
        """The trained model, built with the arguments of the test."""
        trained = load_model(self.folder / "model.safetensors")
        if not self.row.test:
            return trained.model
        args = override_model(self.recipe, self.row.test).model_args
        other = build_model(self.recipe.model, len(trained.category_ids), args)
        load_state(other, trained.model.state_dict(), self.folder)
        return other.eval()

    def write(self, facts: dict[str, Any]) -> None:
        with whole_file(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=1))


def has_start(recipe: Recipe, settings: Settings) -> bool:
    """Whether a model begins with what the tiny FCOS has learned."""
    return recipe.drawn == "none" and not settings.scratch


def write_start(recipe: Recipe, path: Path) -> None:
    """Weights to begin with: the recipe's random ones, but for those that it shares with the shipped tiny FCOS.

    So boxes are found from the beginning, and what is compared is masks. SOLO, which has no head of FCOS's, takes
    backbone and pyramid. Errors: UserError where the recipe's own are of another size.
    """
    from condinst_edu.teach.tiny import load_tiny  # here: it has figures of this package

    dataset = open_split(recipe, "train")
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(dataset.category_ids), recipe.model_args)
    detector = next((module for module in model.modules() if isinstance(module, FCOS)), None)
    state = (detector or model).state_dict()
    pyramid = next(module for module in model.modules() if isinstance(module, FPN))
    trained = load_tiny("fcos").model
    shift = len(pyramid.lateral) - len(get_recipe("shapes-fcos").model_args["levels"])  # levels below FCOS's
    for name, tensor in trained.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "head" and detector is None:
            continue
        if part == "fpn":
            kind, level, last = rest.split(".")
            name = f"fpn.{kind}.{int(level) + shift}.{last}"
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"{name} of the tiny FCOS does not fit this model: --scratch starts without it")
        state[name].copy_(tensor)
    save_model(path, model, recipe, dataset.category_ids, dataset.class_names)


def score(model: nn.Module, recipe: Recipe, device: str) -> Values:
    """Mask AP and AR, panoptic quality, or the toy problem's AP on the held-out images, in percent."""
    held_out = open_split(recipe, "val")
    if recipe.drawn != "none":
        return score_toy(model, held_out.first(TEST_IMAGES), device)
    size = (recipe.test_short_side, recipe.max_size)
    scores = evaluate(model, held_out, short_side=size[0], max_size=size[1], device=device, progress=False)
    if "All" in scores:
        groups = {"PQ": "All", "PQ thing": "Things", "PQ stuff": "Stuff"}
        return {name: round(100 * scores[group]["pq"], 2) for name, group in groups.items()}
    values = {name: round(100 * scores["mask"][name], 2) for name in STATS if scores["mask"][name] >= 0}
    return values | {"box AP": round(100 * scores["box"]["AP"], 2)}


# ------------------------------------------------------------------------------------------------------------- budget


def planned(name: str, rows: Sequence[Row], recipe: Recipe, settings: Settings) -> int:
    """The iterations that fit into the budget; those of an earlier call with the same settings, which goes on."""
    path = settings.out / f"{file_name(name).removesuffix('.json')}-budget.json"
    facts: dict[str, Any] = {key: getattr(settings, key) for key in ("budget", "seeds", "device", "scratch")}
    facts["set"] = list(settings.extra)
    if path.exists():
        then = json.loads(path.read_text())
        iterations = then.pop("iterations")
        if then == facts:
            return int(iterations)
    iterations = measured_iterations(rows, recipe, settings)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({**facts, "iterations": iterations}))
    return iterations


def measured_iterations(rows: Sequence[Row], recipe: Recipe, settings: Settings) -> int:
    """Iterations for each training, from the speed of a few steps of every row's model."""
    begin = time.monotonic()
    if settings.device == "cpu":
        choose_threads(recipe)
    models = list(dict.fromkeys(row.train for row in rows))
    rates = [probe_rate(override_model(recipe, train), device=settings.device) for train in models]
    left = (settings.budget or 0) - (time.monotonic() - begin)
    return iterations_within(left, rates, settings.seeds, len(rows), SCORING_SECONDS[recipe.drawn])


def iterations_within(seconds: float, rates: Sequence[float], seeds: int, rows: int, scoring: float) -> int:
    """How many iterations every training may take, rounded down to tens.

    rates: iterations per second of each model; rows: how many are scored, for `scoring` seconds each, with each seed.
    Errors: UserError where there is no time for 20.
    """
    left = seconds - seeds * rows * scoring
    each = left / (seeds * sum(1 / rate for rate in rates))
    if each < LEAST:
        least = seeds * (rows * scoring + sum(LEAST / rate for rate in rates))
        raise UserError(
            f"{len(rates)} models with {seeds} seeds do not fit into the budget: {least / 60:.0f} minutes and more do"
        )
    return int(each / 10) * 10


# --------------------------------------------------------------------------------------------------------------- card


def card(
    name: str, runs: Sequence[Sequence[Run]], measured: Sequence[Sequence[Values]], recipe: Recipe, settings: Settings
) -> dict[str, Any]:
    """What was run and measured, as data for JSON."""
    every = {run.folder: run.facts() for seed in runs for run in seed}
    rows = MINIATURES[name].rows
    return {
        "table": name,
        "command": command(name, settings, len(runs)),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "recipe": MINIATURES[name].recipe,
        "start": "data/checkpoints/fcos" if has_start(recipe, settings) else "random weights",
        "data": "condinst-edu data shapes" if recipe.drawn == "none" else f"drawn {recipe.drawn}",
        "seeds": len(runs),
        "iterations": recipe.iterations,
        "batch": recipe.batch_size,
        "models": len(every),
        "seconds": round(sum(facts["seconds"] for facts in every.values()), 1),
        "device": device_name(settings.device),
        "threads": sorted({facts["threads"] for facts in every.values()}),
        "torch": sorted({facts["torch"] for facts in every.values()}),
        "rows": [
            {
                "name": label(name, i),
                "train": list(row.train),
                "test": list(row.test),
                "scores": {key: [values[key] for values in measured[i]] for key in measured[i][0]},
            }
            for i, row in enumerate(rows)
        ],
    }


def command(name: str, settings: Settings, seeds: int) -> str:
    """The command that gives the result again; folders aside."""
    words = ["condinst-edu", "reproduce", name, "--seeds", str(seeds)]
    for key in ("iterations", "budget"):
        if getattr(settings, key) is not None:
            words += [f"--{key}", f"{settings.budget:g}s" if key == "budget" else str(settings.iterations)]
    if settings.device != "cpu":
        words += ["--device", settings.device]
    for setting in settings.extra:
        words += ["--set", setting]
    return shlex.join(words + ["--scratch"] * settings.scratch)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def file_name(name: str) -> str:
    return f"{name.replace(':', '-')}.json"


# ------------------------------------------------------------------------------------------------------------- screen


def columns(name: str, result: dict[str, Any]) -> list[str]:
    """Scores to show: those that the paper prints too, without AR; where there are none in common, of both."""
    ours = list(result["rows"][0]["scores"])
    theirs = [c.name for c in TABLES[name].columns if c.unit == "%"] if name in TABLES else []
    common = [column for column in theirs if column in ours and not column.startswith("AR")]
    return common or [*theirs, *(column for column in ours if not column.startswith(("AR", "box")))]


def show(result: dict[str, Any], path: Path) -> None:
    """Print every row of the paper with ours under it, then the claims."""
    name = result["table"]
    miniature, names = MINIATURES[name], columns(name, result)
    screen = Screen(title=TABLES[name].caption if name in TABLES else None)
    for column in ("", "", *names):
        screen.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for i in range(-miniature.skip, 0):  # not run, for comparison
        paper = printed(name, i)
        screen.add_row(label(name, i), "paper", *(cell_text(paper.get(key)) for key in names), end_section=True)
    for i, row in enumerate(result["rows"]):
        if paper := printed(name, i):
            screen.add_row(row["name"], "paper", *(cell_text(paper.get(key)) for key in names))
        ours = (spread_text(row["scores"][key]) if key in row["scores"] else "" for key in names)
        screen.add_row("" if paper else row["name"], "ours", *ours, style="bold", end_section=True)
    console = Console()
    console.print(screen)
    for claim in miniature.claims:
        first, second = (result["rows"][i]["scores"].get(claim.score, []) for i in (claim.first, claim.second))
        console.print(f"{claim.says} [bold]{judge(claim, first, second)}[/]", highlight=False)
    seeds = "one seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"
    models = "one model" if result["models"] == 1 else f"{result['models']} models"
    console.print(
        f"Ours: {seeds}, {result['iterations']} iterations, {models} in {result['seconds'] / 60:.1f} "
        "minutes. Compare which way figures go from row to row, not the figures."
    )
    if miniature.note:
        console.print(miniature.note)
    console.print(f"Written to {path}", soft_wrap=True)
