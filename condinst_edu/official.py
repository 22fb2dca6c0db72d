"""The authors' published models: their checkpoints become ours, so that the same image gives the same numbers.

    model = load_official("CondInst_MS_R_50_1x", "CondInst_MS_R_50_1x.pth")
    model([image], output_sizes=[(height, width)])        # image: (3, H, W) in [0, 1], RGB

Without a path the file is fetched from the Hugging Face hub. What the official code does otherwise goes into the
weights: the first convolution takes red, green, blue instead of blue, green, red, and the mask heads' weights on the
relative coordinates change sign, since ours are pixel - location. Pixels of 0..255 are the model's `mean` and `std`.
`official_models.tsv` lists the models; docs/details.md, what the official code does and the papers do not say.
"""

import csv
import difflib
import functools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from condinst_edu.condinst import CondInst
from condinst_edu.engine.checkpoint import Trained, load_model, load_state, plain
from condinst_edu.engine.recipe import Recipe, build_model
from condinst_edu.errors import UserError
from condinst_edu.official_names import OfficialDetector, official_shapes
from condinst_edu.official_solo import TABLE as SOLO_TABLE
from condinst_edu.official_solo import fetch_url, solo_recipe, solo_shapes
from condinst_edu.solo import SOLO

State = dict[str, Tensor]
OfficialModel = OfficialDetector | SOLO

TABLE = Path(__file__).with_name("official_models.tsv")

# COCO's 80 classes: the id in its annotation files, the name.
COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip

# Its 53 classes of stuff, which panoptic models know too.
COCO_STUFF = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain", 112: "door-stuff",
    118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff",
    138: "net", 141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river", 149: "road",
    151: "roof", 154: "sand", 155: "sea", 156: "shelf", 159: "snow", 161: "stairs", 166: "tent", 168: "towel",
    171: "wall-brick", 175: "wall-stone", 176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind",
    181: "window-other", 184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged",
    188: "cabinet-merged", 189: "table-merged", 190: "floor-other-merged", 191: "pavement-merged",
    192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged", 195: "paper-merged", 196: "food-other-merged",
    197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged", 200: "rug-merged",
}  # fmt: skip


class Official(NamedTuple):
    """A row of the table: fps, box_ap and mask_ap as published (one image at a time on a GTX 1080 Ti; COCO val2017).

    parameters: in millions.
    """

    name: str
    config: str
    alias: str
    repository: str
    file: str
    fps: str
    box_ap: str
    mask_ap: str
    licence: str
    parameters: str

    @property
    def short(self) -> str:
        """The shorter of name and alias that still tells which family it is of."""
        return self.alias if self.alias.startswith(self.name.split("_")[0]) else self.name


@functools.cache
def official_models() -> tuple[Official, ...]:
    """All rows of the table: FCOS, CondInst, BlendMask."""
    with TABLE.open(newline="") as file:
        return tuple(Official(**row) for row in csv.DictReader(file, delimiter="\t"))


# A configuration of the authors', whose trained model is not in the table.
PANOPTIC = Official("BlendMask_Panoptic_R_50_1x", "BlendMask/Panoptic/R_50_1x.yaml", *[""] * 8)


@functools.cache
def solo_models() -> tuple[Official, ...]:
    """mmdetection's SOLO models; their `repository` is a host and `file` a path there, their fps those of a V100."""
    with SOLO_TABLE.open(newline="") as file:
        return tuple(Official(**row) for row in csv.DictReader(file, delimiter="\t"))


def find_official(name: str) -> Official:
    """The model of that name, alias or config path ("CondInst/MS_R_50_1x.yaml").

    Errors: UserError for an unknown name, with those that come near.
    """
    wanted = name.removeprefix("configs/").removesuffix(".yaml").removesuffix(".py")
    known: dict[str, Official] = {}
    for model in (*official_models(), *solo_models(), PANOPTIC):
        for key in (model.name, model.config.removesuffix(".yaml").removesuffix(".py"), model.alias or model.name):
            known[key] = model
    if wanted not in known:
        small = {key.lower(): model.name for key, model in known.items()}  # capitals are easily got wrong
        keys = difflib.get_close_matches(wanted.lower(), small, n=9, cutoff=0.5)
        near = list(dict.fromkeys(small[key] for key in keys))[:3]  # a model has several keys
        raise UserError(
            f"there is no official model {name!r}"
            + (f": near are {', '.join(near)}" if near else "")
            + " (condinst-edu weights lists them all)"
        )
    return known[wanted]


# --------------------------------------------------------------------------------------------------------- the network

# Means in the order red, green, blue; float32 as in the official code, so that float64 runs agree to the last digits.
MEAN = tuple(float(np.float32(value)) / 255 for value in (123.675, 116.28, 103.53))
REAL_TIME = {"levels": (3, 4, 5), "ranges": (64, 128)}


def official_recipe(model: Official) -> Recipe:
    """The arguments with which our constructors make the official network, and the size it is evaluated at."""
    if model in solo_models():
        return solo_recipe(model.name)
    config = model.config.removesuffix(".yaml")
    args: dict[str, Any] = {"mean": MEAN, "std": (1 / 255,) * 3}
    if "DLA_34" in config:
        args |= {"backbone": "timm:dla34"}
    else:
        args |= {"backbone": "resnet101" if "R_101" in config else "resnet50"}
        args["backbone_options"] = {"stride_in_1x1": True, "norm": "bn" if "syncbn" in config else "frozen_bn"}
    if "BiFPN" in config:
        args |= {"neck": "bifpn", "channels": 160}
    if config.startswith("CondInst"):
        # All positive locations are trained, up to 500 (there: of a GPU, here: of an image).
        args |= {"sampling": "random", "mask_limit": 500, "semantic": config.endswith("_sem")}
        return Recipe("condinst", args)
    if config.startswith("BlendMask"):
        return blendmask_recipe(config, args)
    if "_RT/" not in config:
        return Recipe("fcos", args)
    head: dict[str, Any] = {"shared_towers": "shared_towers" in config}
    if "bn_head" in config:
        head["norm"] = "bn_per_level"
    return Recipe("fcos", {**args, **REAL_TIME, "head": head}, test_short_side=512, max_size=736)


def blendmask_recipe(config: str, args: dict[str, Any]) -> Recipe:
    """BlendMask of a config path, on what `official_recipe` says of all models; the quick ones share a short tower."""
    size: dict[str, Any] = {}
    options = args.get("backbone_options", {})
    if "dcni3" in config:
        options |= {"deformable": (3, 4, 5), "deformable_interval": 3}
    if "550" in config:
        args |= {"levels": (3, 4, 5, 6), "ranges": (64, 128, 256)}
        size = {"test_short_side": 550, "max_size": 916}
    elif "syncbn" in config:
        options |= {"frozen_stages": 0}
        args |= REAL_TIME
        size = {"test_short_side": 512, "max_size": 736}
    if "550" in config or "RT_" in config:
        head: dict[str, Any] = {"shared_towers": True, "tower_convs": 3}
        args |= {"bases": {"convs": 2}, "head": head}
        if "bn-head" in config:
            head["norm"] = "bn_per_level"
    if "Panoptic" in config:
        return Recipe("panoptic-blendmask", {"num_things": len(COCO), **args})
    return Recipe("blendmask", args, **size)


# What official files hold beside weights: constants, counters of steps, and a layer of DLA-34 that is never applied.
NO_WEIGHTS = re.compile(
    r"(^|\.)(pixel_mean|pixel_std|_iter|sizes_of_interest|num_batches_tracked)$|bottom_up\.level[34]\.project\."
)
# Our names: of the detector, the semantic task, AdaptIS's and the panoptic models' stuff, and tiny Mask R-CNN.
CLASSIFIERS = re.compile(
    r"(^|\.)((head\.class_logits|semantic\.[23]|branch\.logits|box_predictor\.\w+|mask_fcn_logits)\.(weight|bias)"
    r"|panoptic\.stuff)$"
)
COUNTS = re.compile(r"^label_threshold\.")  # what every run counts from its own beginning
FIRST_LAYERS = ("backbone.stem.0.weight", "backbone.body.base_layer.0.weight")


def convert_state(state: Mapping[str, Any], model: OfficialModel, source: str, name: str) -> State:
    """Our state dict from an official one; `model` tells what is needed, and gives what official files may lack.

    Errors: UserError names every tensor that is missing, unexpected or of another shape.
    """
    state = {re.sub(r"fcos_head\.centerness\.", "fcos_head.ctrness.", key): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not NO_WEIGHTS.search(key)}
    shapes = solo_shapes(model) if isinstance(model, SOLO) else official_shapes(model)
    problems = [f"{key} is missing" for key in shapes if key not in state]
    problems += [f"{key} is unexpected" for key in state if key not in shapes]
    for key, (_, shape) in shapes.items():
        value = state.get(key)
        if value is not None and not isinstance(value, Tensor):
            problems.append(f"{key} is no tensor")
        elif value is not None and tuple(value.shape) != shape:
            problems.append(f"{key} has shape {tuple(value.shape)} instead of {shape}")
    if problems:
        raise UserError(f"{source} is no checkpoint of {name}: {', '.join(problems)}")
    parts: dict[str, list[Tensor]] = {}
    for key, (ours, _) in shapes.items():
        parts.setdefault(ours, []).append(state[key].float())
    tensors = {ours: part[0] if len(part) == 1 else torch.cat(part) for ours, part in parts.items()}
    if not isinstance(model, SOLO):
        first = next(key for key in tensors if key.endswith(FIRST_LAYERS))
        tensors[first] = tensors[first].flip(1)
    if isinstance(model, CondInst):
        inputs, width = model.mask_head.channels[:2]
        rows = torch.arange(width * inputs).view(width, inputs)[:, :2].flatten()  # layer 1's weights on x and y
        for key in ("fcos.head.top.weight", "fcos.head.top.bias"):
            tensors[key] = tensors[key].clone()
            tensors[key][rows] *= -1
    return {**model.state_dict(), **tensors}  # the counters of batch norm stay at 0


# ------------------------------------------------------------------------------------------------------------- loading


def load_official(name: str, checkpoint: str | Path | None = None, num_classes: int | None = None) -> OfficialModel:
    """The official model of that name, in eval mode; see `open_official`."""
    model = open_official(name, checkpoint, num_classes).model
    assert isinstance(model, OfficialModel)
    return model


def open_official(name: str, checkpoint: str | Path | None = None, num_classes: int | None = None) -> Trained:
    """The official model of that name with its classes, COCO's.

    name: see `find_official`; checkpoint: the authors' .pth, or our .safetensors made from it by `condinst-edu
    convert`; None fetches the published file; num_classes: start a model for another class list, of labels 1 to K: the
    classifier (and that of the semantic task) is new, all other weights are kept, and stderr says so.
    Errors: UserError for an unknown name, and for a file that is missing, damaged or of another model.
    """
    official = find_official(name)
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes is at least 1, not {num_classes}")
    recipe = official_recipe(official)
    classes = {**COCO, **COCO_STUFF} if "num_things" in recipe.model_args else COCO
    if num_classes is not None and classes is not COCO:
        raise UserError(f"{official.name} has things and stuff: num_classes cannot be changed")
    path = fetch(official) if checkpoint is None else Path(checkpoint)
    ids, names = list(classes), list(classes.values())
    if path.suffix == ".safetensors":
        trained = load_model(path)
        if plain(recipe)["model_args"] != trained.recipe["model_args"]:
            raise UserError(f"{path} is no {official.name}: its model has other arguments")
        model, ids, names = trained.model, trained.category_ids, trained.class_names
    else:
        model = build_model(recipe.model, len(ids), recipe.model_args)
        assert isinstance(model, OfficialModel)
        model.load_state_dict(convert_state(read_pth(path), model, str(path), official.name))
    if num_classes is None:
        return Trained(model.eval(), ids, names, plain(recipe))
    fresh = build_model(recipe.model, num_classes, recipe.model_args)
    keep_all_but_classifier(fresh, model.state_dict(), official.name)
    labels = list(range(1, num_classes + 1))
    return Trained(fresh.eval(), labels, [f"class {label}" for label in labels], plain(recipe))


def open_weights(weights: str | Path) -> Trained:
    """The trained model in our file, or behind official:NAME."""
    name = Path(weights).as_posix()
    if name.startswith("official:"):
        return open_official(name.removeprefix("official:"))
    return load_model(Path(weights))


def model_of(weights: str) -> dict[str, Any]:
    """`model` and `model_args` of trained weights; an official file is not fetched for that."""
    if weights.startswith("official:"):
        recipe = plain(official_recipe(find_official(weights.removeprefix("official:"))))
    else:
        recipe = load_model(Path(weights)).recipe
    args = dict(recipe["model_args"])
    if args.get("backbone_options"):  # what these weights started from need not be fetched again
        args["backbone_options"] = {**args["backbone_options"]}
        for name in ("weights", "pretrained"):
            args["backbone_options"].pop(name, None)
    return {"model": recipe["model"], "model_args": args}


def begin_with(model: nn.Module, weights: str, class_names: Sequence[str]) -> None:
    """Fill a model with trained weights (see `open_weights`), all but the classifier where the classes differ.

    Errors: UserError where another tensor does not fit.
    """
    trained = open_weights(weights)
    state = {key: tensor for key, tensor in trained.model.state_dict().items() if not COUNTS.search(key)}
    state |= {key: tensor for key, tensor in model.state_dict().items() if COUNTS.search(key)}
    if trained.class_names == list(class_names):
        load_state(model, state, Path(weights))
    else:
        keep_all_but_classifier(model, state, weights)


def keep_all_but_classifier(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a model with weights of other classes; stderr says what stays as it is in the model."""
    new = {key: tensor for key, tensor in model.state_dict().items() if CLASSIFIERS.search(key)}
    load_state(
        model, {**{key: tensor for key, tensor in state.items() if not CLASSIFIERS.search(key)}, **new}, Path(source)
    )
    print(
        f"{source}: all weights are kept but {', '.join(sorted(new))}, which are new for the classes", file=sys.stderr
    )


# Single numbers of numpy, which an optimiser may have left in a file; reading them runs no code but their making.
SCALAR: Any = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    (SCALAR, "numpy.core.multiarray.scalar"),
    (SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
]


def read_pth(path: Path) -> dict[str, Any]:
    """The tensors of an official file, which has them under `model` or `state_dict`; no code in it is run.

    Errors: UserError for a file that is missing, damaged or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} cannot be read as tensors and plain data ({type(error).__name__})") from None
    state = data.get("model", data.get("state_dict", data)) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} holds no weights: expected a dictionary of tensors under 'model'")
    return state


def fetch(model: Official) -> Path:
    """The published file, from the Hugging Face hub or its cache on this machine; mmdetection's from its own host.

    The environment variable HF_ENDPOINT names another hub. Errors: UserError where it can be had from neither.
    """
    if model in solo_models():
        return fetch_url(model.repository + model.file)
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not model.repository:
        raise UserError(f"{model.name} is not among the published models: give the path of its file")
    repository, file, endpoint = model.repository, model.file, os.environ.get("HF_ENDPOINT")
    try:
        try:  # ask once; the download itself would try for half a minute
            get_hf_file_metadata(hf_hub_url(repository, file, endpoint=endpoint), timeout=10)
            offline = False
        except HfHubHTTPError:
            raise
        except Exception:  # no connection, no name server, offline mode: each client version has its own
            offline = True
        return Path(hf_hub_download(repository, file, endpoint=endpoint, local_files_only=offline))
    except LocalEntryNotFoundError:
        reason = "the Hugging Face hub cannot be reached, and it is not in the cache"
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
        f"cannot fetch {repository}/{file}: {reason.rstrip('.')}; a file that you have is taken by its path"
    )


def show_official() -> None:
    """Print the models, with the published figures."""
    screen = Table(title="The authors' models: --weights official:NAME", title_justify="left")
    screen.add_column("name", no_wrap=True)
    for column in ("M parameters", "frames/s", "box AP", "mask AP"):
        screen.add_column(column, justify="right")
    for model in official_models():
        screen.add_row(model.short, model.parameters, model.fps, model.box_ap, model.mask_ap)
    console = Console()
    console.print(screen)
    licences = ", ".join(sorted({model.licence for model in official_models()}))
    console.print(
        "Figures as published: COCO val2017; frames/s with one image at a time on a GTX 1080 Ti. Fetched from the "
        f"Hugging Face hub. Licence of these weights: the authors' ({licences}; BSD 2-clause for academic use).",
        soft_wrap=True,
    )
    show_solo(console)


def show_solo(console: Console) -> None:
    """Print mmdetection's SOLO models, with the published figures."""
    screen = Table(title="SOLO models of mmdetection: --weights official:NAME", title_justify="left")
    screen.add_column("name", no_wrap=True)
    for column in ("M parameters", "frames/s", "mask AP"):
        screen.add_column(column, justify="right")
    for model in solo_models():
        screen.add_row(model.name, model.parameters, model.fps, model.mask_ap)
    console.print(screen)
    console.print(
        "Figures as published: COCO val2017; frames/s with one image at a time on a V100. Fetched from "
        f"{solo_models()[0].repository}. Licence of mmdetection: {solo_models()[0].licence}.",
        soft_wrap=True,
    )
