"""Feature pyramid network: C3..C5 of a backbone to P3..P7, all of one width (CondInst Fig. 3)."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum by nearest upsampling, 3x3 output convolutions, strided extra levels.

    in_channels: {level: channels} of the backbone; levels: the pyramid's levels, ascending and without gaps, e.g.
    (3, 4, 5, 6, 7). Levels above the backbone's last are 3x3 convolutions with stride 2, the first of them on the last
    P (not C), the others behind a ReLU, as in the official code.
    forward: {level: (B, C_level, H, W)} -> [(B, channels, H_level, W_level)] for `levels`.
    """

    def __init__(self, in_channels: Mapping[int, int], channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        levels = list(levels)
        if levels != list(range(levels[0], levels[-1] + 1)) or levels[0] not in in_channels:
            raise ValueError(f"FPN levels must rise by one from a level of the backbone {list(in_channels)}: {levels}")
        self.inner_levels = [level for level in levels if level in in_channels]
        self.lateral = nn.ModuleList(nn.Conv2d(in_channels[level], channels, 1) for level in self.inner_levels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in self.inner_levels)
        extra = len(levels) - len(self.inner_levels)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(extra))
        for conv in [*self.lateral, *self.output, *self.extra]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        merged = [lateral(features[level]) for lateral, level in zip(self.lateral, self.inner_levels, strict=True)]
        for i in range(len(merged) - 2, -1, -1):  # top down: the coarse map is added to the finer one
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:])
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        for i, conv in enumerate(self.extra):
            pyramid.append(conv(F.relu(pyramid[-1]) if i else pyramid[-1]))
        return pyramid
