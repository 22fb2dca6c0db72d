"""A recipe: everything that decides a training run, as a flat dataclass whose fields the command line can override."""

import ast
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from condinst_edu.adaptis import AdaptIS
from condinst_edu.blendmask import BlendMask
from condinst_edu.condinst import CondInst
from condinst_edu.dr1mask import DR1Mask
from condinst_edu.errors import UserError
from condinst_edu.fcos import FCOS
from condinst_edu.mask_rcnn import MaskRCNN
from condinst_edu.panoptic_models import panoptic_blendmask, panoptic_condinst, panoptic_dr1mask
from condinst_edu.solo import SOLO, DecoupledSOLO

MODELS: dict[str, Callable[..., nn.Module]] = {
    "fcos": FCOS,
    "condinst": CondInst,
    "blendmask": BlendMask,
    "dr1mask": DR1Mask,
    "solo": SOLO,
    "decoupled-solo": DecoupledSOLO,
    "adaptis": AdaptIS,
    "mask-rcnn": MaskRCNN,
    "panoptic-condinst": panoptic_condinst,
    "panoptic-blendmask": panoptic_blendmask,
    "panoptic-dr1mask": panoptic_dr1mask,
}
# Those that hand arguments which they do not know on to other constructors.
PASSES_ON: dict[str, tuple[Callable[..., nn.Module], ...]] = {
    "condinst": (FCOS,),
    "blendmask": (FCOS,),
    "dr1mask": (FCOS,),
    "panoptic-condinst": (FCOS, CondInst),
    "panoptic-blendmask": (FCOS, BlendMask),
    "panoptic-dr1mask": (FCOS, DR1Mask),
}


@dataclass(frozen=True)
class Recipe:
    """Model, data, augmentation, optimisation; a named recipe is a function that returns one."""

    model: Literal[
        "fcos",
        "condinst",
        "blendmask",
        "dr1mask",
        "solo",
        "decoupled-solo",
        "adaptis",
        "mask-rcnn",
        "panoptic-condinst",
        "panoptic-blendmask",
        "panoptic-dr1mask",
    ] = "condinst"
    """Which model."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of its constructor, but for num_classes, which the data decides."""
    start: str | None = None
    """Trained weights to begin with: a model.safetensors or official:NAME; the network is then theirs."""

    data: Path = Path("data/coco")
    """Folder that the next six are relative to."""
    train_images: str = "train2017"
    """Folder of the training images."""
    train_json: str = "annotations/instances_train2017.json"
    """COCO annotations of the training images."""
    val_images: str = "val2017"
    """Folder of the held-out images."""
    val_json: str = "annotations/instances_val2017.json"
    """COCO annotations of the held-out images."""
    train_panoptic: str | None = None
    """Folder of the training images' panoptic PNGs, where train_json is a panoptic file."""
    val_panoptic: str | None = None
    """The same of the held-out images."""
    drawn: Literal["none", "bacteria", "bacteria-v2"] = "none"
    """Images that are drawn when they are asked for, in place of the folder and its annotations."""
    cache: bool = False
    """Keep decoded images in memory (for sets that fit)."""
    skip_missing: bool = False
    """Leave out images whose file is missing, instead of refusing the data."""
    workers: int = 2
    """Processes that load data; 0 loads in the training process."""

    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Short sides in pixels, one of which is drawn per training image; none keeps each image as it is."""
    test_short_side: int | None = 800
    """Short side in pixels in evaluation; None keeps each image as it is."""
    max_size: int = 1333
    """Longest long side in pixels."""
    test_max_size: int | None = None
    """The same in evaluation, where it is another one."""
    crop: tuple[int, int] | None = None
    """Height and width of a random part of a training image, for models that learn from full-size masks."""
    flip: float = 0.5
    """Probability of mirroring a training image left to right."""
    vertical_flip: float = 0.0
    """Probability of turning it upside down."""

    iterations: int = 90_000
    """Steps of the optimiser."""
    batch_size: int = 16
    """Images per step, of all processes together."""
    accumulate: int = 1
    """Parts that a process takes its share of a batch in, one after the other, where it does not fit at once."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision: convolutions in bfloat16, or in float16 with scaled losses."""
    sync_bn: bool = False
    """Batch norms take their statistics from the images of all processes (needs GPUs)."""
    compile: bool = False
    """torch.compile for backbone, pyramid and head."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum or AdamW."""
    lr: float = 0.01
    """Peak learning rate."""
    backbone_lr: float = 1.0
    """That of the pre-trained backbone, as a share of it."""
    momentum: float = 0.9
    """Of SGD; AdamW takes it as its first beta."""
    beta2: float = 0.99
    """Second beta of AdamW; without weight decay it is Adam."""
    weight_decay: float = 1e-4
    """On all parameters but those of normalisation layers."""
    clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    schedule: Literal["step", "cosine", "poly"] = "step"
    """After the warm-up: a tenth at each milestone; half a cosine down to 0; or (share of iterations left) ^ power."""
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Of "step", as shares of the iterations."""
    power: float = 0.9
    """Of "poly"."""
    warmup: float = 1 / 90
    """Share of the iterations over which the rate rises linearly."""
    warmup_factor: float = 0.001
    """Of the peak rate, at the first iteration."""
    ema: float = 0.0
    """Decay of a running mean of the weights, which is what is evaluated and saved; 0 keeps none."""

    seed: int = 0
    """Of the weights, the order of the data and the augmentation."""
    log_every: int = 50
    """Iterations between two lines of the log."""
    save_every: int = 1000
    """Iterations between two checkpoints."""
    eval_every: int = 0
    """Iterations between two evaluations on the held-out images, of which the best model is kept; 0 for none."""
    tensorboard: bool = False
    """Write the log for TensorBoard too."""


def build_model(model: str, num_classes: int, model_args: dict[str, Any]) -> nn.Module:
    """The model of a recipe or a checkpoint; UserError names an argument that its constructor does not take."""
    if model not in MODELS:
        raise UserError(f"unknown model {model!r}: expected one of {', '.join(MODELS)}")
    check_model_args(model, model_args)
    try:
        built: nn.Module = MODELS[model](num_classes=num_classes, **model_args)
    except (URLError, LocalEntryNotFoundError) as error:  # torchvision's weights, timm's
        reason, option = "the Hugging Face hub cannot be reached", "pretrained=False"
        if isinstance(error, URLError):
            reason, option = str(error.reason), "weights=None"
        raise UserError(
            f"the backbone's pre-trained weights cannot be fetched ({reason}); "
            f"--set backbone_options.{option} starts from random ones"
        ) from None
    except Exception as error:  # arguments go as far as torch and timm, which raise all kinds
        raise UserError(f"the model {model} cannot be built with these arguments: {error}") from None
    if empty := [name for name, p in built.named_parameters() if not p.numel()]:  # torch builds layers of 0 channels
        raise UserError(f"the model {model} cannot be built with these arguments: {empty[0]} would have no numbers")
    return built


def check_model_args(model: str, model_args: dict[str, Any]) -> None:
    """UserError where an argument is no parameter of the model, or no number where the model has one."""
    constructors = (*PASSES_ON.get(model, ()), MODELS[model])
    parameters = [p for c in constructors for p in inspect.signature(c).parameters.values()]
    known = {p.name: p for p in parameters if p.name != "num_classes" and p.kind != p.VAR_KEYWORD}
    for name, value in model_args.items():
        if name not in known:
            raise UserError(f"{model} has no argument {name!r}; it has {', '.join(sorted(known))}")
        default = known[name].default
        if isinstance(default, bool) != isinstance(value, bool) and isinstance(default, bool | int | float):
            raise UserError(
                f"the model's argument {name} is {type(default).__name__}, for example {default}: not {value!r}"
            )
        if isinstance(default, int | float) and not isinstance(value, int | float):
            raise UserError(f"the model's argument {name} is a number, for example {default}: not {value!r}")


LIMITS: dict[str, tuple[float, float]] = {
    "workers": (0, 1024),
    "test_short_side": (1, 1e5),
    "max_size": (1, 1e5),
    "test_max_size": (1, 1e5),
    "flip": (0, 1),
    "vertical_flip": (0, 1),
    "iterations": (1, 1e9),
    "batch_size": (1, 1e5),
    "accumulate": (1, 1e5),
    "lr": (0, 1e9),
    "backbone_lr": (0, 1e9),
    "momentum": (0, 0.9999),
    "beta2": (0, 0.999999),
    "weight_decay": (0, 1e3),
    "clip": (0, 1e9),
    "warmup": (0, 1),
    "warmup_factor": (0, 1),
    "power": (0, 100),
    "ema": (0, 0.999999),
    "seed": (0, 2**32 - 1),
    "log_every": (1, 1e9),
    "save_every": (1, 1e9),
    "eval_every": (0, 1e9),
}


def check_recipe(recipe: Recipe) -> None:
    """UserError for the first number that makes no sense."""
    for name, (low, high) in LIMITS.items():
        value = getattr(recipe, name)
        if value is not None and not low <= value <= high:  # nan is in no interval
            raise UserError(f"{name} is between {low:g} and {high:g}, not {value}")
    low, high = LIMITS["test_short_side"]  # more is a slip: the long side is cut down to max_size in any case
    if not all(low <= side <= high for side in recipe.short_sides):
        raise UserError(f"short_sides are pixels, between {low:g} and {high:g} each, not {recipe.short_sides}")
    if recipe.crop is not None and min(recipe.crop) < 1:
        raise UserError(f"crop is a height and a width in pixels, at least 1 each, not {recipe.crop}")
    if not all(0 <= milestone <= 1 for milestone in recipe.milestones):
        raise UserError(f"milestones are shares of the iterations, between 0 and 1, not {recipe.milestones}")


# Model arguments that no weight depends on: how finely masks are drawn, and which locations are trained.
AROUND_WEIGHTS = ("factor", "sampling", "mask_limit")


def adopt_model(recipe: Recipe, model: str, model_args: dict[str, Any]) -> Recipe:
    """The recipe with the model of trained weights, but for what it says itself of `AROUND_WEIGHTS`."""
    own = {name: recipe.model_args[name] for name in AROUND_WEIGHTS if name in recipe.model_args}
    changes: dict[str, Any] = {"model": model, "model_args": {**model_args, **own}}
    return dataclasses.replace(recipe, **changes)


def override_model(recipe: Recipe, settings: tuple[str, ...]) -> Recipe:
    """The recipe with model arguments replaced: each setting is KEY=VALUE, a dot reaches into a nested argument.

    A value is read as a Python literal where it is one ("4", "(3, 4, 5)", "None"), else as text.
    """
    args = {k: dict(v) if isinstance(v, dict) else v for k, v in recipe.model_args.items()}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals):
            raise UserError(f"a model setting is written KEY=VALUE, for example factor=4, not {setting!r}")
        try:
            value: Any = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        outer, _, inner = key.partition(".")
        if inner:
            nested = args.setdefault(outer, {})
            if not isinstance(nested, dict):
                raise UserError(f"the model argument {outer!r} has no parts: {setting!r}")
            nested[inner] = value
        else:
            args[outer] = value
    check_model_args(recipe.model, args)
    return dataclasses.replace(recipe, model_args=args)
