"""Numbers of the official SOLO and of mmdetection's: where they are, and the weights that they were made with."""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import official_model
import pytest
import torch
from helpers import GOLDEN, ROOT
from torch import Tensor

from condinst_edu.official import load_official

DATA = Path(__file__).resolve().parent / "data"
assert ROOT in DATA.parents

SOLO, DECOUPLED, LIGHT = (
    "solo_r50_fpn_1x_coco",
    "decoupled-solo_r50_fpn_1x_coco",
    "decoupled-solo-light_r50_fpn_3x_coco",
)


def golden_file(folder: str, name: str, part: bool = False) -> Path:
    """A file of golden/solo or golden/mmdet_solo, or what of it is in tests/data; the test is skipped without both."""
    for path in (
        GOLDEN.parent / folder / name,
        DATA / folder / name,
        *([DATA / folder / f"part_{name}"] if part else []),
    ):
        if path.is_file():
            return path
    pytest.skip(f"{name} is neither in {GOLDEN.parent / folder} (set CONDINST_GOLDEN) nor in {DATA / folder}")


def golden(folder: str, name: str, part: bool = False) -> dict[str, np.ndarray]:
    with np.load(golden_file(folder, name, part)) as file:
        return dict(file)


def golden_json(folder: str, name: str, part: bool = False) -> Any:
    return json.loads(golden_file(folder, name, part).read_text())


def unpack(packed: np.ndarray, shape: np.ndarray) -> Tensor:
    """Masks (N, H, W) bool from their bits."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed, count=count).reshape(tuple(shape))).bool()


# mmdetection's weights: these patterns come before those of `official_model`.
GAINS = [
    (r"neck\.(lateral|fpn)_convs\.\d\.conv\.weight$", 0.6),
    (r"conv_mask_list\.\d\.weight$", 5.0),
    (r"conv_mask_list_[xy]\.\d\.weight$", 5.0),
]
BIASES = [
    (r"conv_cls\.bias$", -7.42, 0.8),
    (r"conv_mask_list\.\d\.bias$", -0.7, 3.0),
    (r"conv_mask_list_[xy]\.\d\.bias$", 0.8, 2.5),
]


def mmdet_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that belongs to a name of mmdetection's."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("weight") and len(shape) == 4:
        gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), None)
        if gain is not None:
            z = (z - z.mean(axis=(1, 2, 3), keepdims=True)) * (gain / np.sqrt(np.prod(shape[1:])))
            return torch.from_numpy(z.astype(np.float32))
    for pattern, mean, std in BIASES:
        if re.search(pattern, name):
            return torch.from_numpy((mean + std * z).astype(np.float32))
    return official_model.weight(name, shape)


def mmdet_state(name: str) -> dict[str, Tensor]:
    """All tensors of a model, as its manifest lists them."""
    manifest = golden_json("mmdet_solo", f"manifest_{name}.json")
    return {key: mmdet_weight(key, tuple(shape)) for key, shape, _ in manifest}


def mmdet_model(name: str, folder: Path) -> Any:
    """Our model with the synthetic weights, by way of a file such as mmdetection's are."""
    path = folder / f"{name}.pth"
    torch.save({"meta": {"CLASSES": ("person", "bicycle"), "epoch": 12}, "state_dict": mmdet_state(name)}, path)
    model = load_official(name, path)
    path.unlink()
    return model


def plain_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that belongs to a name in golden/solo."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) <= 1:
        z = 0.1 * generator.standard_normal(shape) + (1 if name.endswith("weight") else 0)
    else:
        z = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def plain_input(name: str, shape: tuple[int, ...]) -> Tensor:
    """The input map of that name in golden/solo."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(z.astype(np.float32))
