"""Two kinds of files: `last.pt`, all that a run needs to go on, and `model.safetensors`, all that it takes to use it.

Both are written under a temporary name and renamed; the `last.pt` before stays as `previous.pt`. Neither runs
code when it is read: the first is loaded with weights_only=True, the second holds tensors and a JSON text.
"""

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.recipe import LIMITS, Recipe, build_model
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file


class BrokenCheckpoint(UserError):
    """A checkpoint that was cut off or damaged; an older one may be whole."""


class Trained(NamedTuple):
    """A model that was trained, and what its labels mean: label k is category_ids[k - 1], class_names[k - 1].

    recipe: the fields of the recipe it was trained with, as plain data.
    """

    model: nn.Module
    category_ids: list[int]
    class_names: list[str]
    recipe: dict[str, Any]


def save_model(path: Path, model: nn.Module, recipe: Recipe, category_ids: list[int], class_names: list[str]) -> None:
    """Weights, with the recipe and the classes as JSON in the file's metadata."""
    facts = {"recipe": plain(recipe), "category_ids": category_ids, "class_names": class_names}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, {"condinst_edu": json.dumps(facts)})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from None


def load_model(path: Path) -> Trained:
    """The model in a `model.safetensors`, in eval mode. Errors: UserError names what is wrong with the file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("condinst_edu")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no whole safetensors file: {error}") from None
    if text is None:
        raise UserError(f"{path} has no condinst_edu metadata: it was not written by `condinst-edu train`")
    try:
        facts = json.loads(text)
        ids, names = [int(i) for i in facts["category_ids"]], [str(name) for name in facts["class_names"]]
        recipe = {**plain(Recipe()), **facts["recipe"]}
        args = dict(recipe["model_args"])
        # The weights come from this file, not from where training started.
        options = dict(args.get("backbone_options") or {})
        args["backbone_options"] = {k: v for k, v in options.items() if k not in ("weights", "pretrained")}
        check_stored(recipe)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} has broken condinst_edu metadata ({type(error).__name__})") from None
    if not len(ids) == len(names) > 0:
        raise UserError(f"{path} has broken condinst_edu metadata: {len(ids)} categories, {len(names)} names")
    model = build_model(recipe["model"], len(ids), args)
    load_state(model, tensors, path)
    # The sums are quick, and keep what is no number; in half precision they would end at 65504. A norm's variance may
    # be infinite: its channel is then constant.
    sums = {name: t.sum(dtype=torch.float32) for name, t in tensors.items() if "running_" not in name}
    wrong = [name for name, total in sums.items() if not math.isfinite(total)]
    if wrong:
        raise UserError(f"{path} holds weights that are no numbers: {wrong[0]} ({len(wrong)} such tensors)")
    return Trained(model.eval(), ids, names, recipe)


def check_stored(recipe: Mapping[str, Any]) -> None:
    """TypeError or ValueError unless the fields that evaluate and predict read are what `save_model` writes."""
    if not all(isinstance(recipe[name], str) for name in ("model", "data", "val_images", "val_json")):
        raise TypeError
    if not isinstance(recipe["val_panoptic"], str | None):
        raise TypeError
    for name in ("test_short_side", "max_size", "test_max_size"):
        low, high = LIMITS[name]
        if not ((recipe[name] is None and name != "max_size") or low <= recipe[name] <= high):
            raise ValueError


def save_run(path: Path, recipe: Recipe, data: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """State of a run between two iterations, with what must not differ when it goes on: recipe and `data_of`."""
    with whole_file(path) as temporary:
        try:
            torch.save({"recipe": plain(recipe), "data": dict(data), **state}, temporary)
            if path.exists():
                os.replace(path, path.with_name("previous.pt"))
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error).splitlines()[0]) from None


def data_of(dataset: CocoDataset) -> dict[str, Any]:
    """What a run depends on of its data: the categories and which images there are, in their order."""
    images = json.dumps([dataset.image_ids, dataset.file_names]).encode()
    return {"category_ids": dataset.category_ids, "images": len(dataset), "crc": zlib.crc32(images)}


def load_run(path: Path, recipe: Recipe, data: Mapping[str, Any]) -> dict[str, Any]:
    """State of an interrupted run. Errors: UserError where it is broken or belongs to another recipe or data set."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything; none of its code is run
        raise broken(path, error) from None
    keys = {"recipe", "data", "iteration", "model", "averaged", "optimizer", "scaler", "random", "best"}
    if not (isinstance(state, dict) and keys <= state.keys() and isinstance(state["recipe"], dict)):
        raise UserError(f"{path} is no checkpoint of `condinst-edu train`")
    if state["data"] != dict(data):
        raise UserError(
            f"{path} was trained on other images or classes than this data has (another --out starts a new run)"
        )
    # May change without changing the result.
    free = {"data", "workers", "cache", "log_every", "save_every", "eval_every", "tensorboard"}
    then, now = {**plain(Recipe()), **state["recipe"]}, plain(recipe)
    changed = [name for name in now if name not in free and then.get(name) != now[name]]
    if changed:
        first, before, after = changed[0], then.get(changed[0]), now[changed[0]]
        if isinstance(before, dict) and isinstance(after, dict):
            inner = next(k for k in {**before, **after} if before.get(k) != after.get(k))
            first, before, after = f"{first}.{inner}", before.get(inner), after.get(inner)
        raise UserError(
            f"{path} belongs to another run: {first} was {before!r} and is now {after!r} "
            "(another --out starts a new run)"
        )
    return state


def broken(path: Path, error: Exception) -> BrokenCheckpoint:
    return BrokenCheckpoint(f"{path} is no whole checkpoint ({type(error).__name__} while reading it)")


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a model; UserError names the first missing, unexpected or wrongly shaped tensor."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    problems += [f"{name} is unexpected" for name in tensors.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        raise UserError(f"{path} belongs to another model: {min(problems)} ({len(problems)} such tensors)")
    model.load_state_dict(dict(tensors))


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as data that JSON can hold: lists for tuples, text for paths."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
