"""From a list of images to what a network takes: normalised, padded to one size; and what it is to learn from them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]  # (height, width)
Target = Mapping[str, Any]  # of one image: boxes (M, 4), labels (M,), and what else a model asks for


class Batch(NamedTuple):
    """Normalised images of one size (B, 3, H, W), and the (height, width) of each before padding."""

    images: Tensor
    sizes: list[Size]

    def with_output(self, output_sizes: Sequence[Size] | None) -> list[tuple[Size, Size]]:
        """Each image's size and the size that its results are wanted in, its own by default."""
        if output_sizes is not None and len(output_sizes) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} images need as many output sizes, not {len(output_sizes)}")
        return list(zip(self.sizes, output_sizes or self.sizes, strict=True))


def make_batch(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], divisor: int) -> Batch:
    """Normalise, then pad at the right and bottom with zeros to one size divisible by `divisor`.

    images: (3, H, W) float in [0, 1], of any sizes; mean, std: of red, green, blue.
    Errors: ValueError where an image is not of that form.
    """
    if not images:
        raise ValueError("the model needs at least one image")
    for image in images:
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"images must be float tensors (3, H, W) in [0, 1], not {tuple(image.shape)} {image.dtype}"
            )
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    scale, shift = _scale_and_shift(tuple(map(float, mean)), tuple(map(float, std)), batch.dtype, batch.device)
    for padded, image, (h, w) in zip(batch, images, sizes, strict=True):
        padded[:, :h, :w] = image * scale - shift
    return Batch(batch.contiguous(memory_format=torch.channels_last), sizes)


@functools.cache
@torch.inference_mode(False)  # they serve in training too
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What an image is multiplied by and what is taken off, (3, 1, 1) each; kept, so that a GPU is sent them once.

    They are rounded once: with std 1/255, the pixels 0..255 of an image come out as they were.
    """
    exact_mean, exact_std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (mean, std))
    return (1 / exact_std).to(device, dtype), (exact_mean / exact_std).to(device, dtype)


def check_targets(images: Sequence[Tensor], targets: Sequence[Target] | None, *keys: str) -> None:
    """ValueError with a sentence unless there is one target per image, with boxes (M, 4), labels (M,) and `keys`."""
    if targets is None or len(targets) != len(images):
        raise ValueError(f"training needs one target per image: {len(images)} images, {len(targets or ())} targets")
    for i, target in enumerate(targets):
        if missing := [key for key in ("boxes", "labels", *keys) if key not in target]:
            raise ValueError(f"target {i} has no {' and no '.join(missing)}")
        count = len(target["labels"])
        if target["boxes"].shape != (count, 4) or any(len(target[key]) != count for key in keys):
            raise ValueError(f"target {i}: boxes must be (M, 4), and {', '.join(keys) or 'labels'} as many as labels")
        if "masks" in keys and "centers" not in target and target["masks"].shape[1:] != images[i].shape[1:]:
            raise ValueError(f"target {i}: full-size masks must have the image's size {tuple(images[i].shape[1:])}")
