"""Bidirectional feature pyramid network: maps are fused top down, then bottom up, several times over.

The papers name it only (CondInst, Table 6); the fusion, the place of the norms and the extra levels are as in the
official code. Legend: B images, C channels of the pyramid.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condinst_edu.layers.blocks import conv_block


class BiFPN(nn.Module):
    """A pyramid made by `repeats` passes, each once down and once up its levels, with learned weights of the inputs.

    in_channels: {level: channels} of the backbone; levels: the pyramid's levels, ascending and without gaps, two or
    more. The first level above the backbone's last is a 1x1 convolution of C5 (not of P5) with batch norm, halved by
    max-pooling; the others are halved once more. The laterals have a bias and a batch norm.
    forward: {level: (B, C_level, H, W)} -> [(B, channels, H_level, W_level)] for `levels`. Source: condinst:table-6.
    """

    def __init__(self, in_channels: Mapping[int, int], channels: int, levels: Sequence[int], repeats: int = 6) -> None:
        super().__init__()
        levels = list(levels)
        if len(levels) < 2 or levels != list(range(levels[0], levels[-1] + 1)) or levels[0] not in in_channels:
            raise ValueError(
                f"BiFPN needs two levels or more that rise by one from a level of the backbone {list(in_channels)}: "
                f"{levels}"
            )
        self.inner_levels = [level for level in levels if level in in_channels]
        self.extra_levels = len(levels) - len(self.inner_levels)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels[level], channels, 1), nn.BatchNorm2d(channels))
            for level in self.inner_levels
        )
        last = in_channels[self.inner_levels[-1]]
        self.extra = conv_block(last, channels, kernel=1, relu=False) if self.extra_levels else None
        self.passes = nn.ModuleList(BiFPNPass(channels, len(levels)) for _ in range(repeats))

    def forward(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        pyramid = [lateral(features[level]) for lateral, level in zip(self.lateral, self.inner_levels, strict=True)]
        if self.extra is not None:
            top = self.extra(features[self.inner_levels[-1]])
            for _ in range(self.extra_levels):
                top = halve(top)
                pyramid.append(top)
        for fuse in self.passes:
            pyramid = fuse(pyramid)
        return pyramid


class BiFPNPass(nn.Module):
    """One pass over a pyramid of `levels` maps, finest first: each is fused with the coarser one, then with the finer.

    forward: [(B, channels, H_level, W_level)] -> the same shapes.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        # The coarsest map has no coarser one, the finest no finer one.
        self.down = nn.ModuleList(Fusion(channels, 2) for _ in range(levels - 1))
        self.up = nn.ModuleList(Fusion(channels, 3 if i < levels - 1 else 2) for i in range(1, levels))

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        down = list(pyramid)
        for i in range(len(pyramid) - 2, -1, -1):
            down[i] = self.down[i]([pyramid[i], F.interpolate(down[i + 1], size=pyramid[i].shape[-2:])])
        result = [down[0]]
        for i in range(1, len(pyramid)):
            inputs = [pyramid[i], down[i]] if i < len(pyramid) - 1 else [pyramid[i]]  # the coarsest was not changed
            result.append(self.up[i - 1]([*inputs, halve(result[-1])]))
        return result


class Fusion(nn.Module):
    """Weighted mean of maps of one size, x * sigmoid(x), 3x3 convolution, batch norm.

    The weights are relu(w) / (sum of relu(w) + 1e-4), one w for each input. forward: [(B, C, H, W)] -> (B, C, H, W).
    """

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.conv = conv_block(channels, channels, relu=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        total = torch.zeros_like(maps[0])
        for weight, x in zip(weights, maps, strict=True):
            total = total + weight * x
        return self.conv(F.silu(total))


def halve(x: Tensor) -> Tensor:
    """3x3 max-pooling with stride 2: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
