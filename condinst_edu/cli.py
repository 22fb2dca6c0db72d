"""The `condinst-edu` command. Its commands import what they need when they run, so that help is quick."""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tyro.conf import Positional, Suppress, UseAppendAction

from condinst_edu.errors import UserError
from condinst_edu.options import parse

USAGE = """usage: condinst-edu COMMAND [options]     (condinst-edu COMMAND --help tells a command's options)

  demo       write shapes, train a tiny CondInst on this machine, score it, draw what it sees
  train      train a recipe:       condinst-edu train shapes-condinst --data DIR --out DIR
  evaluate   box and mask AP of trained weights on held-out images, or panoptic quality
  predict    segment photographs:  condinst-edu predict PHOTO... --weights FILE --out DIR
  convert    the authors' checkpoint into ours:  condinst-edu convert FILE.pth --config NAME --out FILE.safetensors
  data       write shapes, download COCO, check a folder:  condinst-edu data shapes --out DIR
  weights    the tiny trained models that the lessons use, and the authors' models that load here; train a tiny one
             again:  condinst-edu weights condinst
  bench      measure speed, as ratios within one run:  condinst-edu bench mask-head
  reproduce  a paper's table at small scale:  condinst-edu reproduce condinst:table-3
  trace      where the papers' equations and tables are in the code:  condinst-edu trace [condinst:eq-2]
  doctor     what keeps the lessons from running on this machine, and the commands that mend it
"""


def main() -> None:
    """Entry point: 0 on success, 2 on bad input (one sentence on stderr), 130 when interrupted.

    A training that SIGTERM ends, after a checkpoint, exits with 143.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        if command not in COMMANDS:
            raise UserError(f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}")
        COMMANDS[command](rest)
    except UserError as error:
        print(f"condinst-edu: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that may not be read, a name that is too long, ...
        print(f"condinst-edu: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("condinst-edu: interrupted", file=sys.stderr)
        return 130
    return 0


# ----------------------------------------------------------------------------------------------------------- commands


def demo(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Demo:
        """Write shapes, train a tiny CondInst on this machine, score it on held-out images, draw what it sees."""

        minutes: float = 4
        """Time to take in all; less time means fewer iterations and a lower AP."""
        out: Path = Path("runs/demo")
        """Where everything is written."""
        seed: int = 0
        """Of the data and the training."""
        iterations: int | None = None
        """Train for so many iterations, whatever time they take."""

    options = parse(Demo, "demo", arguments)
    from condinst_edu.engine.demo import run_demo

    run_demo(options.out, options.minutes, options.seed, options.iterations)


def train(arguments: list[str]) -> None:
    from condinst_edu.engine.recipe import Recipe, adopt_model, override_model
    from condinst_edu.recipes import get_recipe

    if not arguments or arguments[0] in ("-h", "--help", "--list"):
        train_list(arguments[1:])
        return

    @dataclass(frozen=True)
    class Train(Recipe):
        """Train a recipe; where --out holds an interrupted run of it, go on with that."""

        model_args: Suppress[dict[str, Any]] = field(default_factory=dict)
        """See --set."""
        set: UseAppendAction[tuple[str, ...]] = ()
        """Replace an argument of the model, KEY=VALUE, e.g. factor=4 or mask_head.coordinates=none; may be repeated."""
        out: Path = Path("runs/train")
        """Folder for checkpoints, weights and log."""
        device: str = "cpu"
        """Where to train: cpu, cuda, cuda:1, ..."""

    recipe = get_recipe(arguments[0])
    default = Train(**values_of(recipe), out=Path("runs") / arguments[0].replace(":", "-"))
    options = parse(Train, f"train {arguments[0]}", arguments[1:], default)
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe)})
    if recipe.start is not None:
        from condinst_edu.official import model_of

        recipe = adopt_model(recipe, **model_of(recipe.start))
    recipe = override_model(recipe, options.set)
    from condinst_edu.engine import evaluate
    from condinst_edu.engine.distributed import join_processes, rank
    from condinst_edu.engine.train import open_split
    from condinst_edu.engine.train import train as run_training

    # Before training, so that a mistake shows now; labels mean what they mean in the training set.
    held_out = open_split(recipe, "val", open_split(recipe, "train").category_ids)
    with join_processes(options.device) as device:
        model = run_training(recipe, options.out, check_device(device))
        scores = evaluate.evaluate(
            model,
            held_out,
            short_side=recipe.test_short_side,
            max_size=recipe.test_max_size or recipe.max_size,
            device=device,
            workers=recipe.workers,
        )
        if rank() == 0:
            evaluate.report(scores, options.out / "result.json")


def train_list(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class List:
        """All recipes: condinst-edu train RECIPE --out DIR [options] trains one, and its --help tells its options."""

        images_per_second: float | None = None
        """Of training, of all GPUs together: tells the hours that each recipe takes at this speed."""
        memory: bool = False
        """Count the memory that each recipe's network takes on one of eight GPUs."""

    options = parse(List, "train --list", arguments)
    from condinst_edu.recipes.listing import show_recipes

    if options.images_per_second is not None and not options.images_per_second > 0:
        raise UserError(f"--images-per-second is positive, not {options.images_per_second}")
    print("usage: condinst-edu train RECIPE --out DIR [options]     (train RECIPE --help tells the options)\n")
    show_recipes(options.images_per_second, options.memory)


def evaluate(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Evaluate:
        """Box and mask AP of trained weights, or panoptic quality."""

        weights: Positional[Path]
        """A model.safetensors, or official:NAME for one of the authors' models (condinst-edu weights lists them)."""
        data: Path | None = None
        """Folder of the data; that of the weights' recipe by default."""
        images: str | None = None
        """Folder of the images, relative to the data; the recipe's held-out ones by default."""
        annotations: str | None = None
        """COCO annotations, relative to the data; the recipe's held-out ones by default."""
        panoptic: bool = False
        """PQ, SQ and RQ of things and stuff; --annotations is then a panoptic file."""
        segments: str | None = None
        """Folder of its PNGs, relative to the data; the recipe's, or the annotations' name without .json."""
        short_side: int | None = None
        """Short side in pixels; the recipe's by default."""
        device: str = "cpu"
        """Where to run: cpu, cuda, cuda:1, ..."""
        out: Path | None = None
        """File for the scores as JSON."""

    options = parse(Evaluate, "evaluate", arguments)
    from condinst_edu.datasets.coco import CocoDataset
    from condinst_edu.datasets.coco_panoptic import PanopticDataset
    from condinst_edu.engine import evaluate
    from condinst_edu.engine.panoptic import require_panoptic
    from condinst_edu.engine.recipe import LIMITS
    from condinst_edu.official import open_weights

    device = check_device(options.device)
    low, high = LIMITS["test_short_side"]
    if options.short_side is not None and not low <= options.short_side <= high:
        raise UserError(f"--short-side is between {low:g} and {high:g} pixels, not {options.short_side}")
    if options.out is not None and (options.out.is_dir() or not options.out.name):
        raise UserError(f"--out names a file, and {options.out} is a folder")
    if options.segments is not None and not options.panoptic:
        raise UserError("--segments are those of panoptic annotations: it needs --panoptic")
    trained = open_weights(options.weights)
    recipe = trained.recipe
    data = options.data or Path(recipe["data"])
    images, annotations = data / (options.images or recipe["val_images"]), options.annotations or recipe["val_json"]
    dataset: CocoDataset
    if options.panoptic:
        require_panoptic(trained.model)
        segments = options.segments or (None if options.annotations else recipe["val_panoptic"])
        folder = data / segments if segments else None
        dataset = PanopticDataset(images, data / annotations, folder, category_ids=trained.category_ids)
    elif recipe["val_panoptic"] and not options.annotations:
        raise UserError(f"{annotations} is a panoptic file: --panoptic scores it, or --annotations names instances")
    else:
        dataset = CocoDataset(images, data / annotations, category_ids=trained.category_ids)
    scores = evaluate.evaluate(
        trained.model,
        dataset,
        short_side=recipe["test_short_side"] if options.short_side is None else options.short_side,
        max_size=recipe["test_max_size"] or recipe["max_size"],
        device=device,
    )
    evaluate.report(scores, options.out)


def predict(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Predict:
        """Segment photographs: a picture of each, and results.json with all detections."""

        images: Positional[tuple[Path, ...]]
        """The photographs."""
        weights: Path = Path("runs/demo/run/model.safetensors")
        """A model.safetensors, or official:NAME for one of the authors' models (condinst-edu weights lists them)."""
        out: Path = Path("runs/predict")
        """Folder for the pictures and results.json."""
        min_score: float = 0.3
        """Draw what scores at least this."""
        panoptic: bool = False
        """Things and stuff of every pixel: pictures, panoptic.json and panoptic/*.png as COCO has them."""
        device: str = "cpu"
        """Where to run: cpu, cuda, cuda:1, ..."""

    options = parse(Predict, "predict", arguments)
    from condinst_edu.engine.predict import predict as run_prediction
    from condinst_edu.official import open_weights

    device = check_device(options.device)
    if not options.images:
        raise UserError("predict needs at least one image")
    if not 0 <= options.min_score <= 1:
        raise UserError(f"--min-score is between 0 and 1, not {options.min_score}")
    trained = open_weights(options.weights)
    written = run_prediction(trained, options.images, options.out, options.min_score, device, options.panoptic)
    print(f"Pictures and {written.name} are in {options.out}")


def convert(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Convert:
        """Write an official checkpoint as one of ours, which evaluate and predict take."""

        checkpoint: Positional[Path]
        """The authors' .pth."""
        config: str
        """Which model it is, by name (CondInst_MS_R_50_1x) or config path (CondInst/MS_R_50_1x.yaml)."""
        out: Path = Path("model.safetensors")
        """The file to write."""

    options = parse(Convert, "convert", arguments)
    from condinst_edu.engine.checkpoint import save_model
    from condinst_edu.official import find_official, official_recipe, open_official

    if options.out.suffix != ".safetensors" or options.out.is_dir():
        raise UserError(f"--out ends in .safetensors, not {options.out}")
    recipe = official_recipe(find_official(options.config))
    trained = open_official(options.config, options.checkpoint)
    save_model(options.out, trained.model, recipe, trained.category_ids, trained.class_names)
    print(f"{options.out} holds {find_official(options.config).name}")


def data(arguments: list[str]) -> None:
    from condinst_edu.cli_data import run_data

    run_data(arguments)


def weights(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Weights:
        """The tiny trained models that the lessons use: what there is, or, with names, train these again."""

        names: Positional[tuple[str, ...]] = ()
        """Those to train; none lists them."""
        data: Path = Path("data/shapes-full")
        """Folder of the shapes; written if it is not there."""
        work: Path = Path("runs/weights")
        """Folder for the runs; an interrupted one goes on."""

    options = parse(Weights, "weights", arguments)
    from condinst_edu.teach.tiny import TINY, make_tiny, show_tiny

    for name in options.names:
        if name not in TINY:
            raise UserError(f"there is no tiny model {name!r}: choose from {', '.join(TINY)}")
    for name in options.names:
        make_tiny(name, options.data, options.work)
    show_tiny(options.names or tuple(TINY))
    if not options.names:
        from condinst_edu.official import show_official

        show_official()


def bench(arguments: list[str]) -> None:
    from condinst_edu.bench import Bench, run_bench

    options = parse(Bench, "bench", arguments)
    check_device(options.device)
    run_bench(options)


def reproduce(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Reproduce:
        """Train the rows of a paper's table at small scale; print them under the paper's, and what its claims become.

        An interrupted call goes on; rows that several tables share are trained once.
        """

        table: Positional[tuple[str, ...]]
        """PAPER:TABLE, for example condinst:table-3."""
        seeds: int = 3
        """Trainings of each row, from seed 0 on; fewer than 3 decide no claim."""
        iterations: int | None = None
        """Of each training; those of the stored result by default."""
        budget: str | None = None
        """Time for all of it, as 20m or 600s, from which the iterations follow."""
        data: Path = Path("data/shapes-full")
        """Folder of the shapes; written if it is not there."""
        out: Path = Path("runs/reproduce")
        """Folder for the trained models and the result as JSON."""
        device: str = "cpu"
        """Where to run: cpu, cuda, cuda:1, ..."""
        set: UseAppendAction[tuple[str, ...]] = ()
        """Replace an argument of every row's model, KEY=VALUE, as in train; may be repeated."""
        scratch: bool = False
        """Start from random weights; else models of shapes start from the shipped tiny FCOS, which finds boxes."""
        publish: bool = False
        """Store the result in condinst_edu/papers/results too, where the page of them all takes it from."""

    options = parse(Reproduce, "reproduce", arguments)
    from condinst_edu.papers.reproduce import Settings
    from condinst_edu.papers.reproduce import reproduce as run_reproduction

    values = {name: value for name, value in values_of(options).items() if name not in ("table", "set", "budget")}
    values["device"] = check_device(options.device)
    budget = None if options.budget is None else seconds_of(options.budget)
    run_reproduction(" ".join(options.table), Settings(**values, extra=options.set, budget=budget))


def seconds_of(text: str) -> float:
    """Seconds of a time such as 90s, 10m or 1.5h. Errors: UserError for anything else, and for no time at all."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise UserError(f"a time is written as 90s, 10m or 1.5h, not {text!r}") from None
    if not 0 < seconds < math.inf:
        raise UserError(f"a time is more than nothing and has an end: {text!r}")
    return seconds


def trace(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Trace:
        """Where the equations, rules and tables of the papers are in the code."""

        id: Positional[tuple[str, ...]] = ()
        """One of them in full, for example condinst:eq-2, an erratum, or a paper (condinst); without it, all papers."""

    options = parse(Trace, "trace", arguments)
    from condinst_edu.papers.trace import show

    show(" ".join(options.id))


def doctor(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Doctor:
        """Check this machine for the lessons; the exit status is 1 where something is broken."""

        json: bool = False
        """Print the checks as JSON."""

    options = parse(Doctor, "doctor", arguments)
    from condinst_edu.doctor import examine

    if status := examine(options.json):
        sys.exit(status)


def check_device(name: str) -> str:
    """The device's name, if torch can use it here."""
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def values_of(instance: Any) -> dict[str, Any]:
    return {f.name: getattr(instance, f.name) for f in fields(instance)}


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "convert": convert,
    "data": data,
    "weights": weights,
    "bench": bench,
    "reproduce": reproduce,
    "trace": trace,
    "doctor": doctor,
}


if __name__ == "__main__":  # for torchrun -m condinst_edu.cli
    main()
