"""mmdetection's published SOLO models: which there are, what their tensors are called, where the files come from.

    model = load_official("solo_r50_fpn_3x_coco")                 # fetches the file
    model = load_official("solo_r50_fpn_1x_coco", "solo_r50_fpn_1x_coco_20210821_035055-2290a6b8.pth")

`condinst_edu.official` lists, loads and converts them beside the authors' other models. The networks there read red,
green, blue as ours do, so nothing is turned round. `official_solo_models.tsv` has mmdetection's figures.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condinst_edu.datasets.download import fetch as download
from condinst_edu.engine.recipe import Recipe
from condinst_edu.errors import UserError
from condinst_edu.files import writable_folder
from condinst_edu.progress import bytes_bar
from condinst_edu.solo import SOLO

TABLE = Path(__file__).with_name("official_solo_models.tsv")

# In the order red, green, blue, for pixels in [0, 1]; float32 as in mmdetection.
MEAN = tuple(float(np.float32(value)) / 255 for value in (123.675, 116.28, 103.53))
STD = tuple(float(np.float32(value)) / 255 for value in (58.395, 57.12, 57.375))
LIGHT_RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))

TOWERS = {
    "class": "mask_head.cls_convs",
    "mask": "mask_head.mask_convs",
    "column": "mask_head.mask_convs_x",
    "row": "mask_head.mask_convs_y",
}
# From our names to mmdetection's; all patterns that match are applied, in this order.
RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^backbone\.stem\.0\.", "backbone.conv1."),
    (r"^backbone\.stem\.1\.", "backbone.bn1."),
    (r"^backbone\.stages\.(\d)\.", lambda m: f"backbone.layer{int(m[1]) + 1}."),
    (r"^fpn\.lateral\.(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"^fpn\.output\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"^head\.(\w+)_tower\.(\d+)\.", lambda m: f"{TOWERS[m[1]]}.{int(m[2]) // 3}.{('conv', 'gn')[int(m[2]) % 3]}."),
    (r"^head\.cell_maps\.", "mask_head.conv_mask_list."),
    (r"^head\.column_maps\.", "mask_head.conv_mask_list_x."),
    (r"^head\.row_maps\.", "mask_head.conv_mask_list_y."),
    (r"^head\.class_logits\.", "mask_head.conv_cls."),
]


def solo_recipe(name: str) -> Recipe:
    """The arguments with which our constructors make mmdetection's network, and the size it is evaluated at."""
    options = {"norm": "fixed_bn"}  # statistics fixed, scales trained
    args: dict[str, Any] = {"backbone": "resnet50", "backbone_options": options, "mean": MEAN, "std": STD}
    if name.startswith("solo"):
        return Recipe("solo", args)
    if "light" not in name:
        return Recipe("decoupled-solo", args)
    args |= {"ranges": LIGHT_RANGES, "head": {"light": True, "convs": 4}}
    return Recipe("decoupled-solo", args, test_short_side=512, max_size=852)


def solo_shapes(model: SOLO) -> dict[str, tuple[str, tuple[int, ...]]]:
    """All weights of a model: {mmdetection's name: (our name, shape)}."""
    shapes = {}
    for ours, tensor in model.state_dict().items():
        if ours.endswith("num_batches_tracked"):
            continue
        name = ours
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        shapes[name] = (ours, tuple(tensor.shape))
    return shapes


def fetch_url(url: str) -> Path:
    """The file behind a URL, kept in torch's own folder of downloads (TORCH_HOME names another).

    A name that ends in -0123abcd.pth tells the first digits of the file's SHA-256 sum, which is checked.
    Errors: UserError where it cannot be had, or is another file.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    writable_folder(path.parent)
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    with bytes_bar(True) as progress:
        try:
            download(url, path, digits[1] if digits else "", progress, tries=2, algorithm="sha256")
        except UserError as error:
            raise UserError(f"{error}; a file that you have is taken by its path") from None
    return path
