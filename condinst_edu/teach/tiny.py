"""Tiny trained models that the lessons show results with at once: under 3 MB each, in data/checkpoints, with a card.

    condinst-edu weights              what there is, and how well each segments
    condinst-edu weights condinst     train one again: the command that its card names

A card (NAME.json) tells the command, the seed, the seconds, the data and the metrics of the file as it is stored: large
tensors are kept in half precision, and it is that file which was scored.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import condinst_edu
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.coco_panoptic import PanopticDataset
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.engine.checkpoint import Trained, load_model, save_model
from condinst_edu.engine.evaluate import coco_ap, detect_all, evaluate
from condinst_edu.engine.panoptic import is_panoptic
from condinst_edu.engine.recipe import Recipe, override_model
from condinst_edu.engine.train import open_split, train
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.papers.toy_score import toy_ap
from condinst_edu.recipes import get_recipe

ROOT = Path(condinst_edu.__file__).parents[1]  # the checkout: the package is installed in place
LIMIT = 3_000_000  # bytes of a stored file
DATA = {
    "none": "condinst-edu data shapes (4000 images to learn from, 200 held out, seed 0)",
    "bacteria": "drawn bacteria (10 000 images to learn from, the first 200 of 2 000 held out, seed 0)",
}


class Tiny(NamedTuple):
    """How a tiny model is trained: a recipe, arguments of the model that differ (KEY=VALUE), and for how long.

    proposals: iterations of AdaptIS's proposal branch, after all else.
    """

    about: str
    recipe: str
    settings: tuple[str, ...] = ()
    iterations: int = 3000
    proposals: int = 0


TINY = {
    "condinst": Tiny("CondInst", "shapes-condinst"),
    "fcos": Tiny("FCOS: boxes alone", "shapes-fcos"),
    "condinst-absolute": Tiny("absolute coordinates", "shapes-condinst", ("mask_head.coordinates=absolute",)),
    "condinst-none": Tiny("no coordinates", "shapes-condinst", ("mask_head.coordinates=none",)),
    "condinst-coordinates": Tiny("coordinates alone", "shapes-condinst", ("mask_head.use_features=False",)),
    "condinst-factor1": Tiny("masks not upsampled", "shapes-condinst", ("factor=1",)),
    "condinst-factor4": Tiny("masks upsampled by 4", "shapes-condinst", ("factor=4",)),
    "blendmask": Tiny("BlendMask", "shapes-blendmask"),
    "panoptic-condinst": Tiny("CondInst with stuff", "shapes-panoptic-condinst", iterations=2000),
    "panoptic-dr1mask": Tiny("DR1Mask with stuff", "shapes-panoptic-dr1mask", iterations=2000),
    "panoptic-adaptis": Tiny("AdaptIS with stuff", "shapes-panoptic-adaptis", iterations=4000, proposals=150),
    "dr1mask": Tiny("DR1Mask", "shapes-dr1mask"),
    "dr1mask-none": Tiny("DR1Mask without A and B", "shapes-dr1mask", ("factors=none",)),
    "mask-rcnn": Tiny("Mask R-CNN", "shapes-mask-rcnn", iterations=1500),
    "solo": Tiny("SOLO", "shapes-solo"),
    "solo-no-coordconv": Tiny("SOLO without CoordConv", "shapes-solo", ("head.coordinates=False",)),
    "decoupled-solo": Tiny("Decoupled SOLO", "shapes-decoupled-solo"),
    "adaptis": Tiny("AdaptIS on its toy problem", "bacteria-adaptis", iterations=5000, proposals=100),
}


def tiny_folder() -> Path:
    """Where the checkpoints and their cards are."""
    return ROOT / "data" / "checkpoints"


def load_tiny(name: str) -> Trained:
    """A shipped model in eval mode, with its classes. Errors: UserError where it is missing or damaged."""
    if problem := broken(name):
        raise UserError(f"{problem}: `condinst-edu weights {name}` trains it again")
    return load_model(tiny_folder() / f"{name}.safetensors")


def read_card(name: str) -> dict[str, Any]:
    """A checkpoint's card as data. Errors: UserError where there is none or it cannot be read."""
    path = tiny_folder() / f"{name}.json"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no card: {error}") from None


def broken(name: str) -> str | None:
    """What is wrong with a checkpoint, in one sentence; None where the weights are those that the card tells of."""
    if name not in TINY:
        return f"there is no tiny model {name!r}: choose from {', '.join(TINY)}"
    try:
        card = read_card(name)
        stored = (tiny_folder() / f"{name}.safetensors").read_bytes()
    except FileNotFoundError:
        return f"no such file: {tiny_folder() / name}.safetensors"
    except (OSError, UserError) as error:
        return str(error)
    if hashlib.sha256(stored).hexdigest() != card.get("sha256"):
        return f"{tiny_folder() / name}.safetensors is damaged: it is not the file that its card tells of"
    return None


def held_out_folder(count: int = 50) -> Path:
    """Folder of the first `count` held-out shapes images, of those that the cards' metrics are from; drawn once."""
    folder = ROOT / "runs" / "lessons" / f"held-out-{count}"
    write_shapes(folder, train=1, val=count, show_progress=False)
    return folder


def held_out(count: int = 50) -> CocoDataset:
    """The images of `held_out_folder` with their instances."""
    folder = held_out_folder(count)
    return CocoDataset(folder / "val", folder / "annotations" / "instances_val.json")


def held_out_panoptic(count: int = 50) -> PanopticDataset:
    """The images of `held_out_folder` with their things and stuff."""
    folder = held_out_folder(count)
    return PanopticDataset(folder / "val", folder / "annotations" / "panoptic_val.json", folder / "panoptic_val")


def score_tiny(name: str, count: int = 50) -> dict[str, Any]:
    """Box and mask AP of a shipped model on `count` held-out images, now, and what else its problem is scored by."""
    if recipe_of(name, Path()).drawn == "none":
        return score(load_tiny(name).model, held_out_folder(count))
    return score_drawn(load_tiny(name).model, held_out_of(name, count))


def score(model: nn.Module, folder: Path, progress: bool = False) -> dict[str, Any]:
    """{"box", "mask"} as of `evaluate` on the held-out images of a folder of shapes, and "panoptic": PQ, SQ, RQ of all,
    PQ of things and of stuff.
    """
    instances = CocoDataset(folder / "val", folder / "annotations" / "instances_val.json")
    scores = evaluate(model, instances, progress=progress)
    if is_panoptic(model):
        annotations = folder / "annotations" / "panoptic_val.json"
        dataset = PanopticDataset(folder / "val", annotations, folder / "panoptic_val")
        quality = evaluate(model, dataset, progress=progress)
        scores["panoptic"] = {key.upper(): quality["All"][key] for key in ("pq", "sq", "rq")}
        scores["panoptic"] |= {"PQ_th": quality["Things"]["pq"], "PQ_st": quality["Stuff"]["pq"]}
    return scores


def held_out_of(name: str, count: int = 50) -> CocoDataset:
    """The first `count` held-out images of what a shipped model was trained on."""
    recipe = recipe_of(name, Path())
    return held_out(count) if recipe.drawn == "none" else open_split(recipe, "val").first(count)


def score_drawn(model: nn.Module, images: CocoDataset) -> dict[str, Any]:
    """Box and mask AP, and "toy": AP at the thresholds of AdaptIS's toy problem, in percent."""
    results = detect_all(model, images, progress=False)
    return coco_ap(images.truth(), results, image_ids=images.image_ids) | {"toy": toy_ap(images, results)}


# ------------------------------------------------------------------------------------------------------------ training


def make_tiny(name: str, data: Path, work: Path) -> dict[str, Any]:
    """Train one, store it with its card in `tiny_folder`, and return the card.

    data: folder of the shapes (written if it is not there); work: folder for the run, which an interrupted one goes on
    from. With one thread, so that the same machine gives the same weights again.
    Errors: UserError for an unknown name, and as in training.
    """
    if name not in TINY:
        raise UserError(f"there is no tiny model {name!r}: choose from {', '.join(TINY)}")
    recipe = recipe_of(name, data)
    writable_folder(work / name)  # before the images, which take minutes
    if recipe.drawn == "none":
        write_shapes(data, jobs=2)
    torch.set_num_threads(1)
    begin = time.monotonic()
    train(recipe, work / name)
    source = work / name / "model.safetensors"
    if TINY[name].proposals:
        source = train_proposals(recipe, source, TINY[name].proposals, work / f"{name}-proposals")
    seconds = time.monotonic() - begin
    path = tiny_folder() / f"{name}.safetensors"
    store(source, path)
    trained = load_model(path)
    if recipe.drawn == "none":
        scores = score(trained.model, data, progress=True)
    else:
        scores = score_drawn(trained.model, open_split(recipe, "val").first(200))
    card = {
        "name": name,
        "about": TINY[name].about,
        "command": f"condinst-edu weights {name}",
        "seed": recipe.seed,
        "iterations": recipe.iterations,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "data": DATA[recipe.drawn],
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "metrics": {kind: {k: round(v, 4) for k, v in s.items() if k != "per_class"} for kind, s in scores.items()},
    }
    with whole_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n")
    return card


def train_proposals(recipe: Recipe, weights: Path, iterations: int, out: Path) -> Path:
    """Train AdaptIS's proposal branch on what is trained already; returns the file of both."""
    args = {**recipe.model_args, "stage": "proposals", "points": 16}
    second = dataclasses.replace(recipe, start=str(weights), model_args=args, iterations=iterations)
    model = train(second, out)
    trained = load_model(weights)
    save_model(out / "both.safetensors", model, recipe, trained.category_ids, trained.class_names)
    return out / "both.safetensors"


def recipe_of(name: str, data: Path) -> Recipe:
    """The recipe that a tiny model is trained with."""
    tiny = TINY[name]
    recipe = override_model(get_recipe(tiny.recipe), tiny.settings)
    return dataclasses.replace(recipe, data=data, iterations=tiny.iterations)


def store(source: Path, path: Path) -> None:
    """Write trained weights again, filters and matrices in half precision; UserError where that is over the limit."""
    with safetensors.safe_open(source, framework="pt") as file:
        facts = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    small = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in state.items()}
    stored = safetensors.torch.save(small, facts)
    if len(stored) >= LIMIT:
        raise UserError(f"{path.name} would have {len(stored)} bytes, and a tiny model has fewer than {LIMIT}")
    with whole_file(path) as temporary:
        temporary.write_bytes(stored)


def show_tiny(names: Sequence[str]) -> None:
    """Print the cards as a table, and what is wrong with a checkpoint in a line of its own."""
    screen = Table()
    screen.add_column("name", no_wrap=True)
    screen.add_column("what it is")
    for column in ("MB", "minutes", "box AP", "mask AP", "PQ"):
        screen.add_column(column, justify="right")
    problems = {name: problem for name in names if (problem := broken(name))}
    for name in (name for name in names if name not in problems):
        card = read_card(name)
        box, mask = (card["metrics"].get(kind, {}).get("AP", -1) for kind in ("box", "mask"))
        numbers = [f"{card['bytes'] / 1e6:.1f}", f"{card['seconds'] / 60:.1f}"]
        quality = card["metrics"].get("panoptic", {}).get("PQ", -1)
        screen.add_row(name, card["about"], *numbers, *(f"{x:.3f}" if x > 0 else "" for x in (box, mask, quality)))
    console = Console()
    console.print(screen)
    for name, problem in problems.items():
        console.print(f"{problem}: `condinst-edu weights {name}` trains it again", soft_wrap=True, markup=False)
