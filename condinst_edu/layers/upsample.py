"""Upsampling as the official code aligns it, and the way from mask logits to binary masks at any size.

Cell i of a map with stride s sits on pixel s*i + s//2 (`condinst_edu.coordinates`). Upsampling by f gives a map of
stride s/f whose cell k reads the input at (k - f//2) / f, as the official code has it. That is exact where
the result's cells are pixels (f = s). Where they are coarser, and f is even, everything lands floor(s / (2 f)) pixels
too far right and down, 2 for 8 to 4; training happens on the same grid and absorbs it (lesson 3 measures it).
CondInst 2.1 and 3.4 (`condinst:upsampling`); DR1Mask's own, `upsample_to`, follows strided convolutions (3.3).

Legend: N masks, H, W map, f factor.
"""

import torch
from torch import Tensor


def aligned_upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear upsampling in which output k reads input position (k - factor//2) / factor, clamped to the map.

    x (..., H, W) float; factor >= 1. Returns (..., H * factor, W * factor).
    Source: condinst:upsampling.
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


def upsample_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map twice as fine, of which output k reads input k / 2, cut on the right and at the bottom to `size`.

    x (..., H, W) -> (..., *size), size (height, width) at most (2 H, 2 W); bilinear, clamped to the map. A 3x3
    convolution with stride 2 and padding 1 centres its output j on input 2 j, whether the input has 2 n or 2 n - 1
    cells: this puts j back on 2 j. (`aligned_upsample` puts it on 2 j + 1, which is right where the fine cells are
    pixels; from P7 to P3 that would add up to 15 cells.) Source: dr1mask:aligned-upsampling.
    """
    if size[0] > 2 * x.shape[-2] or size[1] > 2 * x.shape[-1]:
        raise ValueError(f"a map of {tuple(x.shape[-2:])} is at most doubled, not {tuple(size)}")
    fine = aligned_upsample(x, 2)[..., 1:, 1:]  # k / 2 for k = 0 .. 2 n - 2
    fine = torch.cat([fine, fine[..., -1:]], dim=-1)
    return torch.cat([fine, fine[..., -1:, :]], dim=-2)[..., : size[0], : size[1]]


TILE = 32  # output pixels; smaller tiles follow borders closer, larger ones are fewer


def resize_masks(
    logits: Tensor, stride: int, input_size: tuple[int, int], output_size: tuple[int, int], factor: int = 1
) -> Tensor:
    """Binary masks at any size from mask logits, computed only along their borders.

    logits (N, H, W) at `stride` pixels; input_size: (height, width) of the network's input without its padding;
    output_size: (height, width) wanted; factor: upsampling of the logits before the sigmoid, as in training.
    Returns (N, *output_size) bool: sigmoid(upsampled logits), upsampled to the input's pixels, cropped, resized
    bilinearly (half-pixel centres), > 0.5. All of it is linear but the sigmoid, and interpolation weights are convex:
    a tile of the output that reads only cells with logits <= 0 is empty, one that reads only logits > 0 is full. The
    others are worked out, as small products with interpolation matrices.
    Source: condinst:upsampling, condinst:inference.
    """
    rows, columns = (
        _Axis(cells, factor, stride // factor, size_in, size_out, logits)
        for cells, size_in, size_out in zip(logits.shape[1:], input_size, output_size, strict=True)
    )
    # Zeros cost nothing until they are written: the empty part of a mask is never touched.
    masks = torch.zeros(
        len(logits), len(rows.cells), TILE, len(columns.cells), TILE, dtype=torch.bool, device=logits.device
    )
    with torch.autocast(logits.device.type, enabled=False):
        positive = rows.reads @ (logits > 0).float() @ columns.reads.mT  # (N, R, S), cells of each tile
        full = positive == rows.reads.sum(dim=1)[:, None] * columns.reads.sum(dim=1)
        n, i, j = full.nonzero(as_tuple=True)
        masks[n, i, :, j] = True
        border = ((positive > 0) & ~full).nonzero()
        for n, i, j in (chunk.unbind(1) for chunk in border.split(512)):  # a few at a time stay in the cache
            cells = logits[n[:, None, None], rows.cells[i][:, :, None], columns.cells[j][:, None]]
            scores = (rows.upsample[i] @ cells @ columns.upsample[j].mT).sigmoid_()
            masks[n, i, :, j] = rows.resize[i] @ scores @ columns.resize[j].mT > 0.5
    height, width = output_size
    return masks.flatten(3).flatten(1, 2)[:, :height, :width]


class _Axis:
    """One axis of the output in T tiles.

    cells (T, c): which cells a tile reads; upsample (T, f, c): from those to its fine cells (factor times as many);
    resize (T, TILE, f): from these to its pixels; reads (T, H or W): 1 where a tile gives a cell any weight, else 0.
    """

    def __init__(self, cells: int, factor: int, stride: int, size_in: int, size_out: int, like: Tensor) -> None:
        fine = torch.arange(cells * factor, device=like.device, dtype=torch.float32)
        upsample = linear_weights((fine - factor // 2) / factor, cells).to(like)
        resize = _resize_weights(cells * factor, stride, size_in, size_out, like.device).to(like)
        beyond = resize[-1:].expand(-size_out % TILE, -1)  # the last tile may reach over the edge
        used, self.resize = _narrow(torch.cat([resize, beyond]).unflatten(0, (-1, TILE)))
        self.cells, self.upsample = _narrow(upsample[used])
        weighted = ((self.resize @ self.upsample) != 0).any(dim=1).float()  # (T, c)
        self.reads = weighted.new_zeros(len(weighted), cells).scatter_(1, self.cells, weighted)


def _narrow(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Band matrices (T, p, q), cut to the c columns that carry weight: their indices (T, c), and the cut (T, p, c)."""
    used = (weights != 0).any(dim=1).int()  # (T, q)
    first, last = used.argmax(dim=1), used.shape[1] - 1 - used.flip(1).argmax(dim=1)
    width = int((last - first).max()) + 1
    first = first.clamp(max=used.shape[1] - width)
    columns = first[:, None] + torch.arange(width, device=weights.device)
    return columns, weights.gather(2, columns[:, None].expand(-1, weights.shape[1], -1))


def linear_weights(position: Tensor, cells: int) -> Tensor:
    """Matrix (P, cells) that reads a line of cells by linear interpolation at P positions, clamped to the line."""
    position = position.clamp(0, cells - 1)
    low = position.floor().long()
    fraction = (position - low)[:, None]
    weights = torch.zeros(len(position), cells, dtype=position.dtype, device=position.device)
    weights.scatter_add_(1, low[:, None], 1 - fraction)
    return weights.scatter_add_(1, (low + 1).clamp(max=cells - 1)[:, None], fraction)


def _resize_weights(
    cells: int, stride: int, size_in: int, size_out: int, device: torch.device, aligned: bool = True
) -> Tensor:
    """Matrix (size_out, cells): upsampling by `stride`, cut to size_in, half-pixel resize to size_out.

    Cell 0 sits on pixel stride // 2 where the upsampling is aligned, else, with half-pixel centres, half a pixel or
    none to the left of it.
    """
    pixels = torch.arange(size_in, device=device, dtype=torch.float32)
    origin = stride // 2 if aligned else (stride - 1) / 2
    upsample = linear_weights((pixels - origin) / stride, cells)  # (size_in, cells)
    position = (torch.arange(size_out, device=device) + 0.5) * (size_in / size_out) - 0.5
    position = position.clamp(0, size_in - 1)
    low = position.floor().long()
    return torch.lerp(upsample[low], upsample[(low + 1).clamp(max=size_in - 1)], (position - low)[:, None])


def resize_logits(
    logits: Tensor, stride: int, input_size: tuple[int, int], output_size: tuple[int, int], aligned: bool = True
) -> Tensor:
    """Logits at any size: upsampled to the input's pixels, cropped, resized bilinearly with half-pixel centres.

    logits (..., H, W) at `stride` pixels; sizes: (height, width) of the network's input without its padding, and of the
    result; aligned: upsampling as of `resize_masks`, else with half-pixel centres too. Returns (..., *output_size) as
    two matrix products; the input's pixels are never made.
    """
    rows, columns = (
        _resize_weights(cells, stride, size_in, size_out, logits.device, aligned).to(logits)
        for cells, size_in, size_out in zip(logits.shape[-2:], input_size, output_size, strict=True)
    )
    return rows @ logits @ columns.mT
