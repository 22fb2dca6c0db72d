"""The official models' synthetic weights, and our models' numbers under the names that the official ones have."""

import functools
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import official_json
from torch import Tensor

from condinst_edu.blendmask import BlendMask, crop_bases, merge_bases, paste_masks
from condinst_edu.condinst import CondInst
from condinst_edu.coordinates import relative_coordinates
from condinst_edu.fcos import FCOS, Outputs, Points, to_output_size
from condinst_edu.layers.images import Batch, Size, make_batch
from condinst_edu.layers.upsample import aligned_upsample
from condinst_edu.official import load_official

# Which filters are how strong, and where biases lie: the first pattern that is found in a name counts.
GAINS = [
    (r"(stem\.conv1|base_layer\.0)\.weight$", 1.7 / 64),
    (r"\.conv3\.weight$", 0.7),
    (r"(fpn_lateral\d|fpn_output\d)\.weight$", 0.6),
    (r"top_block\.p\d\.weight$", 1.0),
    (r"controller\.weight$", 0.9),
    (r"(top_layer|basis_module\.tower\.5)\.weight$", 3.0),
    (r"\.outputs_f\d_[\d_]+\.weight$", 1.95),
    ("", 1.7),
]
BIASES = [
    (r"cls_logits\.bias$", -6.4, 0.3),
    (r"bbox_pred\.bias$", 2.5, 0.3),
    (r"mask_branch\.logits\.bias$", -4.0, 0.3),
    ("", 0.0, 0.1),
]


@functools.cache
def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that belongs to a name in all golden numbers; it depends on nothing but the name and the shape."""
    kind = name.rsplit(".", 1)[-1]
    if kind in ("num_batches_tracked", "_iter"):
        return torch.zeros(shape, dtype=torch.int64 if kind[0] == "n" else torch.float32)
    if kind == "sizes_of_interest":
        return torch.tensor([64, 128, 256, 512, 1024])
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if kind == "weight" and len(shape) == 4:
        gain = next(gain for pattern, gain in GAINS if re.search(pattern, name))
        z = (z - z.mean(axis=(1, 2, 3), keepdims=True)) * (gain / np.sqrt(np.prod(shape[1:])))
    elif kind == "bias":
        mean, std = next((mean, std) for pattern, mean, std in BIASES if re.search(pattern, name))
        z = mean + std * z
    elif kind == "running_mean":
        z = 0.1 * z
    elif kind == "running_var":
        z = np.exp(0.2 * z)
    else:
        z = 1 + z * (0.3 if kind.startswith("weights_f") else 0.15 if kind == "scale" else 0.1)
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def official_state(name: str) -> dict[str, Tensor]:
    """All tensors of an official model, as its manifest lists them."""
    return {key: weight(key, tuple(shape)) for key, shape, _ in official_json(f"manifest_{name}.json")}


def official_model(name: str, folder: Path, manifest: str = "") -> Any:
    """Our model with the synthetic weights, by way of a file such as the authors' are."""
    path = folder / f"{name}.pth"
    leftovers = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}, "iteration": 89999}
    torch.save({"model": official_state(manifest or name), **leftovers}, path)
    model = load_official(name, path)
    path.unlink()
    return model


def as_image(rgb: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1).to(dtype) / 255


def flip_coordinates(model: CondInst, theta: Tensor) -> Tensor:
    """Official coordinates are location - pixel: the first layer's weights on x and y change sign."""
    inputs, width = model.mask_head.channels[:2]
    theta = theta.clone()
    theta[..., : inputs * width].unflatten(-1, (width, inputs))[..., :2] *= -1
    return theta


def official_numbers(model: Any, images: Sequence[Tensor], output_sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What the golden files hold, from our model: tensors in their order, and `found`, the results of each image."""
    fcos: FCOS = model if isinstance(model, FCOS) else model.fcos
    batch: Batch = make_batch(images, fcos.mean, fcos.std, fcos.divisor)
    pyramid, points, outputs = fcos.run(batch)
    numbers: dict[str, Any] = {"input": batch.images.flip(1)}  # blue, green, red
    numbers |= {f"fpn_p{level}": x for level, x in zip(fcos.levels, pyramid, strict=True)}
    fields = {"cls_logits": outputs.logits, "bbox_reg": outputs.distances, "ctrness": outputs.centerness[..., None]}
    if fcos.head.top is not None:
        every = torch.arange(len(points.level))
        top = torch.stack([fcos.head.top_at(outputs, points, i, every) for i in range(len(images))])
        fields["top_feats"] = flip_coordinates(model, top) if isinstance(model, CondInst) else top
    for level in range(len(fcos.strides)):
        map_ = pyramid[-len(fcos.strides) :][level]
        size = (map_.shape[-2], map_.shape[-1])
        for name, field in fields.items():
            numbers[f"{name}_{level}"] = field[:, points.level == level].mT.unflatten(2, size)
    if isinstance(model, CondInst):
        features = model.bottom(pyramid)
        found = [model.detect(points, outputs, features, i) for i in range(len(images))]
        parts = {
            "params": [top[i][f.location] for i, f in enumerate(found)],
            "logits": [model.mask_logits(points, outputs, features, i, f.location) for i, f in enumerate(found)],
            "locations": [points.xy[f.location] for f in found],
            "levels": [points.level[f.location] for f in found],
            "scores": [f.scores for f in found],
            "classes": [f.labels - 1 for f in found],
        }
        merged = {name: torch.cat(part) for name, part in parts.items()}
        numbers |= {f"mask_inst_{name}": merged[name] for name in ("locations", "levels", "scores", "classes")}
        numbers |= {"mask_feats": features, "mask_logits_s8": merged["logits"]}
        numbers["mask_head_params"] = flip_coordinates(model, merged["params"])
        numbers["mask_logits_s4"] = aligned_upsample(merged["logits"], model.factor)
        numbers["mask_scores_s4"] = numbers["mask_logits_s4"].sigmoid()
        scales = model.scales[merged["levels"]]
        size = (features.shape[-2], features.shape[-1])
        relative = relative_coordinates(size, model.stride, merged["locations"], scales)
        numbers["rel_coords_corners"] = -relative[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    numbers["found"] = model(images, output_sizes=output_sizes)
    if isinstance(model, BlendMask):
        blended(model, pyramid, points, outputs, batch, output_sizes, numbers)
    return numbers


def blended(
    model: BlendMask,
    pyramid: list[Tensor],
    points: Points,
    outputs: Outputs,
    batch: Batch,
    output_sizes: Sequence[Size],
    numbers: dict[str, Any],
) -> None:
    """BlendMask's own numbers; beside each image's results, how many pixels of a mask are within 0.001 of 0.5."""
    numbers["bases"] = model.bases(pyramid)
    found = [model.fcos.detect(points, outputs, i) for i in range(len(output_sizes))]
    attention = torch.cat([model.attention_at(points, outputs, i, f.location) for i, f in enumerate(found)])
    boxes = [f.boxes.float() for f in found]  # as the official code has them in float64 too
    crops = crop_bases(numbers["bases"], boxes, model.stride, model.size)
    logits = merge_bases(crops, attention)
    numbers |= {"attn": attention.flatten(1), "roi_bases": crops, "blend_logits": logits.flatten(1)}
    parts = logits.sigmoid().split([len(box) for box in boxes])
    for scores, box, result, (size, output_size) in zip(
        parts, boxes, numbers["found"], batch.with_output(output_sizes), strict=True
    ):
        clipped, keep = to_output_size(box, size, output_size)
        low, high = (paste_masks(scores[keep].float() + e, clipped[keep], output_size) for e in (-1e-3, 1e-3))
        result["near_half"] = (low ^ high).sum(dim=(1, 2))
