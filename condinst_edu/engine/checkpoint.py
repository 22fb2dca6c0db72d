"""Two kinds of files: `last.pt`, all that a run needs to go on, and `model.safetensors`, all that it takes to use it.

Both are written under a temporary name and renamed. Neither runs code when it is read: the first is loaded with
weights_only=True, the second holds tensors and a JSON text.
"""

import dataclasses
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from condinst_edu.engine.recipe import Recipe, build_model
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file


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
    facts = json.loads(text)
    ids, names, recipe = facts["category_ids"], facts["class_names"], facts["recipe"]
    args = dict(recipe["model_args"])
    if "backbone_options" in args:  # the weights come from this file, not from where training started
        args["backbone_options"] = {k: v for k, v in args["backbone_options"].items() if k != "weights"}
    model = build_model(recipe["model"], len(ids), args)
    load_state(model, tensors, path)
    return Trained(model.eval(), ids, names, recipe)


def save_run(path: Path, recipe: Recipe, category_ids: list[int], state: Mapping[str, Any]) -> None:
    """State of a run between two iterations, with what must not differ when it goes on."""
    with whole_file(path) as temporary:
        try:
            torch.save({"recipe": plain(recipe), "category_ids": category_ids, **state}, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error).splitlines()[0]) from None


def load_run(path: Path, recipe: Recipe, category_ids: list[int]) -> dict[str, Any]:
    """State of an interrupted run. Errors: UserError where it is broken or belongs to another recipe or data set."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is no whole checkpoint ({type(error).__name__} while reading it)") from None
    if not isinstance(state, dict) or not {"recipe", "category_ids", "iteration", "model"} <= state.keys():
        raise UserError(f"{path} is no checkpoint of `condinst-edu train`")
    if state["category_ids"] != category_ids:
        raise UserError(f"{path} was trained on other classes than this data has: {state['category_ids']}")
    free = {"workers", "log_every", "save_every", "cache"}  # may change without changing the result
    then, now = state["recipe"], plain(recipe)
    changed = [name for name in now if name not in free and then.get(name) != now[name]]
    if changed:
        first = changed[0]
        raise UserError(
            f"{path} belongs to another run: {first} was {then.get(first)!r} and is now {now[first]!r} "
            "(another --out starts a new run)"
        )
    return state


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
