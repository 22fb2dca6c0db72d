"""DR1Mask's equations as loops, number by number, written straight from the paper: what the library is compared with.

Slow, and meant to be read beside the formula. Legend: C channels, H, W map, D bases, K projected bases, r factors.
"""

import torch
from torch import Tensor


def eq_1(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W'[i, j] = W[i, j] b[i] a[j]: weight (m, d), a (d,), b (m,) -> (m, d). Source: dr1mask:eq-1."""
    rows = [torch.stack([weight[i, j] * b[i] * a[j] for j in range(len(a))]) for i in range(len(b))]
    return torch.stack(rows)


def eq_2(weight: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y_hw = W'_hw x_hw, with a matrix W'_hw of its own for every position. Source: dr1mask:eq-2.

    weight (C, C); x, a, b (C, H, W). The paper has W'_hw in R^C, which takes C numbers to none: it is C x C.
    """
    _, height, width = x.shape
    y = [[eq_1(weight, a[:, h, w], b[:, h, w]) @ x[:, h, w] for w in range(width)] for h in range(height)]
    return torch.stack([torch.stack(row, dim=1) for row in y], dim=1)


def eq_3(weight: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Eq. 3 as printed: sum over (j, k) of (W[j, k] (X o A)[h - j, w - k]) o B[h - j, w - k]. Source: dr1mask:eq-3.

    weight (C, C, J, K), odd J, K, with j, k counted from the kernel's middle; x, a, b (C, H, W), 0 beyond the map.
    """
    return _sum_over_kernel(weight, x, a, b, b_inside=True)


def eq_4(weight: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Eq. 4: the same sum, with B[h, w] of the output's own position. Source: dr1mask:eq-4."""
    return _sum_over_kernel(weight, x, a, b, b_inside=False)


def _sum_over_kernel(weight: Tensor, x: Tensor, a: Tensor, b: Tensor, b_inside: bool) -> Tensor:
    channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    y = []
    for h in range(height):
        for w in range(width):
            total = x.new_zeros(channels)
            for j in range(-(rows // 2), rows // 2 + 1):
                for k in range(-(columns // 2), columns // 2 + 1):
                    p, q = h - j, w - k
                    if 0 <= p < height and 0 <= q < width:
                        # A convolution as networks have it reads the kernel backwards: W[j, k] is at (middle - j).
                        kernel = weight[:, :, rows // 2 - j, columns // 2 - k]
                        term = kernel @ (x[:, p, q] * a[:, p, q])
                        total = total + (term * b[:, p, q] if b_inside else term)
            y.append(total if b_inside else total * b[:, h, w])
    return torch.stack(y, dim=1).unflatten(1, (height, width))


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Twice as fine, cell by cell: output k lies at k / 2, between two cells or on one; beyond the last is the last.

    x (C, H, W) -> (C, *size). Source: dr1mask:aligned-upsampling.
    """
    _, height, width = x.shape

    def read(p: float, q: float) -> Tensor:
        p0, q0 = int(p), int(q)
        p1, q1 = min(p0 + 1, height - 1), min(q0 + 1, width - 1)
        top = x[:, p0, q0] * (1 - (q - q0)) + x[:, p0, q1] * (q - q0)
        bottom = x[:, p1, q0] * (1 - (q - q0)) + x[:, p1, q1] * (q - q0)
        return top * (1 - (p - p0)) + bottom * (p - p0)

    rows = [torch.stack([read(h / 2, w / 2) for w in range(size[1])], dim=1) for h in range(size[0])]
    return torch.stack(rows, dim=1)


def eq_6(
    reduce: list[Tensor], kernels: list[Tensor], pyramid: list[Tensor], factors: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """F_3 from P_3 .. P_7, with F_8 = 0. Source: dr1mask:eq-6.

    reduce: 3x3 kernels (D, C, 3, 3) of the levels; kernels (D, D, 3, 3): of their DR1Convs; pyramid: P_l (C, H_l, W_l);
    factors: (A_l, B_l), (D, H_l, W_l) each; all finest first.
    """
    below = None
    for level in range(len(pyramid) - 1, -1, -1):
        x = torch.nn.functional.conv2d(pyramid[level][None], reduce[level], padding=1)[0]
        if below is not None:
            x = x + upsample(below, (x.shape[1], x.shape[2]))
        below = eq_4(kernels[level], x, *factors[level])
    assert below is not None
    return below


def eq_7(kernel: Tensor, crop: Tensor) -> Tensor:
    """R'[k] = sum over d of t[k, d] R[d]: kernel t (K, D), crop (D, H, W) -> (K, H, W). Source: dr1mask:eq-7."""
    rows = []
    for k in range(len(kernel)):
        total = torch.zeros_like(crop[0])
        for d in range(len(crop)):
            total = total + kernel[k, d] * crop[d]
        rows.append(total)
    return torch.stack(rows)


def eq_8(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    """Q_k[i, j] = sum over d of U_k[d, i] s_k[d] V_k[d, j]: u, v (K, r, R), factors s (K, r) -> (K, R, R).

    Source: dr1mask:eq-8.
    """
    maps = []
    for k in range(len(u)):
        total = torch.zeros(u.shape[2], v.shape[2], dtype=u.dtype)
        for d in range(u.shape[1]):
            total = total + factors[k, d] * u[k, d][:, None] * v[k, d][None, :]
        maps.append(total)
    return torch.stack(maps)


def eq_9(embeddings: Tensor, instance: list[int], count: int) -> Tensor:
    """W_thing (D, count): column c is the mean of the embeddings (n, D) that are instance c's, 0 without any.

    Source: dr1mask:eq-9.
    """
    columns = []
    for c in range(count):
        mine = [e for e, i in zip(embeddings, instance, strict=True) if i == c]
        columns.append(sum(mine[1:], mine[0]) / len(mine) if mine else torch.zeros_like(embeddings[0]))
    return torch.stack(columns, dim=1)


def panoptic_logits(stuff: Tensor, things: Tensor, features: Tensor) -> Tensor:
    """Y[c, h, w] = sum over d of W[d, c] F[d, h, w], W = [stuff, things]. Source: dr1mask:panoptic-layer.

    stuff (D, C_stuff), things (D, C_thing), features (D, H, W) -> (C_stuff + C_thing, H, W).
    """
    channels = [*stuff.unbind(1), *things.unbind(1)]
    return torch.stack(
        [sum((w * f for w, f in zip(column, features, strict=True)), features[0] * 0) for column in channels]
    )
