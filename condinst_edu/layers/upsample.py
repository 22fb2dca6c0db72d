"""Upsampling that keeps cells on their pixels, and the way from mask logits to binary masks at any size.

Cell i of a map with stride s sits on pixel s*i + s//2 (`condinst_edu.coordinates`). Upsampling by f gives a map of
stride s/f whose cell k reads the input at (k - f//2) / f, as the official code and DR1Mask have it.
CondInst 2.1 and 3.4 (`condinst:upsampling`), DR1Mask 3.2.1 (`dr1mask:aligned-upsampling`).

Legend: N masks, H, W map, f factor.
"""

import torch
from torch import Tensor


def aligned_upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear upsampling in which output k reads input position (k - factor//2) / factor, clamped to the map.

    x (..., H, W) float; factor >= 1. Returns (..., H * factor, W * factor).
    Source: condinst:upsampling, dr1mask:aligned-upsampling.
    """
    if factor < 1:
        raise ValueError(f"the upsampling factor must be at least 1, not {factor}")
    return x if factor == 1 else _upsample_last(_upsample_last(x.mT, factor).mT, factor)


def _upsample_last(x: Tensor, f: int) -> Tensor:
    before = torch.cat([x[..., :1], x[..., :-1]], dim=-1)
    after = torch.cat([x[..., 1:], x[..., -1:]], dim=-1)
    # Output f*j + p lies (p - f//2) / f cells to the right of cell j.
    shifts = [(p - f // 2) / f for p in range(f)]
    phases = [torch.lerp(x, before if t < 0 else after, abs(t)) if t else x for t in shifts]
    return torch.stack(phases, dim=-1).flatten(-2)


def resize_masks(
    logits: Tensor, stride: int, input_size: tuple[int, int], output_size: tuple[int, int], factor: int = 1
) -> Tensor:
    """Binary masks at any size from mask logits, computed only where a mask can be.

    logits (N, H, W) at `stride` pixels; input_size: (height, width) of the network's input without its padding;
    output_size: (height, width) wanted; factor: upsampling of the logits before the sigmoid, as in training.
    Returns (N, *output_size) bool: sigmoid(upsampled logits), upsampled to the input's pixels, cropped, resized
    bilinearly (half-pixel centres), > 0.5. All of it is linear but the sigmoid, and interpolation weights are convex:
    no output that reads only cells with logits <= 0 can pass the threshold, so each mask is worked out in the window
    of its positive cells, as small products with interpolation matrices.
    Source: condinst:upsampling, condinst:inference.
    """
    stride_up = stride // factor
    rows, columns = (
        _Axis(cells, factor, stride_up, size_in, size_out, logits)
        for cells, size_in, size_out in zip(logits.shape[1:], input_size, output_size, strict=True)
    )
    masks = torch.zeros((len(logits), *output_size), dtype=torch.bool, device=logits.device)
    positive = logits > 0
    windows = zip(rows.windows(positive.any(dim=2)), columns.windows(positive.any(dim=1)), strict=True)
    for mask, map_, (row, column) in zip(masks, logits, windows, strict=True):
        if row and column:
            scores = row.upsample @ map_[row.cells, column.cells] @ column.upsample.mT
            scores = row.resize @ scores.sigmoid_() @ column.resize.mT
            mask[row.outputs, column.outputs] = scores > 0.5
    return masks


class _Window:
    """The part of an axis that one mask needs: cells in, outputs out, and the two interpolations between them."""

    def __init__(self, axis: "_Axis", cells: slice, fine: slice, outputs: slice) -> None:
        self.cells, self.outputs = cells, outputs
        self.upsample = axis.upsample[fine, cells]
        self.resize = axis.resize[outputs, fine]


class _Axis:
    """One axis of the way from cells over fine cells (factor times as many) to output pixels."""

    def __init__(self, cells: int, factor: int, stride: int, size_in: int, size_out: int, like: Tensor) -> None:
        fine = torch.arange(cells * factor, device=like.device, dtype=torch.float32)
        self.upsample = linear_weights((fine - factor // 2) / factor, cells).to(like)
        self.resize = _resize_weights(cells * factor, stride, size_in, size_out, like.device).to(like)
        self.spans = [_spans(self.upsample), _spans(self.resize)]

    def windows(self, positive: Tensor) -> list[_Window | None]:
        """What each mask needs, from its positive cells on this axis (N, cells); None where no output is reached."""
        flags = positive.int()
        low = flags.argmax(dim=1)
        high = torch.where(positive.any(dim=1), positive.shape[1] - flags.flip(1).argmax(dim=1), low)
        for first, past in self.spans:  # what the positive cells reach: cells -> fine cells -> outputs
            low, high = torch.searchsorted(past, low, right=True), torch.searchsorted(first, high)
        outputs = low, high
        ranges = [outputs]
        for first, past in reversed(self.spans):  # and back: all that those outputs read
            low, high = first[low.clamp(max=len(first) - 1)], past[(high - 1).clamp(min=0)]
            ranges.insert(0, (low, high))
        numbers = torch.stack([edge for pair in ranges for edge in pair], dim=1).tolist()
        return [
            _Window(self, slice(n[0], n[1]), slice(n[2], n[3]), slice(n[4], n[5])) if n[5] > n[4] else None
            for n in numbers
        ]


def linear_weights(position: Tensor, cells: int) -> Tensor:
    """Matrix (P, cells) that reads a line of cells by linear interpolation at P positions, clamped to the line."""
    position = position.clamp(0, cells - 1)
    low = position.floor().long()
    fraction = (position - low)[:, None]
    weights = torch.zeros(len(position), cells, dtype=position.dtype, device=position.device)
    weights.scatter_add_(1, low[:, None], 1 - fraction)
    return weights.scatter_add_(1, (low + 1).clamp(max=cells - 1)[:, None], fraction)


def _resize_weights(cells: int, stride: int, size_in: int, size_out: int, device: torch.device) -> Tensor:
    """Matrix (size_out, cells): aligned upsampling by `stride`, cut to size_in, half-pixel resize to size_out."""
    pixels = torch.arange(size_in, device=device, dtype=torch.float32)
    upsample = linear_weights((pixels - stride // 2) / stride, cells)  # (size_in, cells)
    position = (torch.arange(size_out, device=device) + 0.5) * (size_in / size_out) - 0.5
    position = position.clamp(0, size_in - 1)
    low = position.floor().long()
    return torch.lerp(upsample[low], upsample[(low + 1).clamp(max=size_in - 1)], (position - low)[:, None])


def _spans(weights: Tensor) -> tuple[Tensor, Tensor]:
    """First and one-past-last column with weight in every row; both rise from row to row (a band matrix)."""
    used = (weights != 0).int()
    first = used.argmax(dim=1)
    return first, weights.shape[1] - used.flip(1).argmax(dim=1)
