"""The convolution block of which towers, branches and the tiny backbone are made."""

from math import gcd
from typing import Literal

from torch import nn

Norm = Literal["bn", "gn", "none"]


def conv_block(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, norm: Norm = "bn", relu: bool = True
) -> nn.Sequential:
    """Convolution that keeps the size (but for its stride), normalisation, ReLU.

    norm: "bn" batch norm, "gn" group norm with 32 groups (the largest divisor of 32 that fits), "none".
    The convolution has a bias unless batch norm follows it, as in the official towers and branches.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=norm != "bn")
    layers: list[nn.Module] = [conv]
    if norm == "bn":
        layers.append(nn.BatchNorm2d(out_channels))
    elif norm == "gn":
        layers.append(nn.GroupNorm(gcd(32, out_channels), out_channels))
    elif norm != "none":
        raise ValueError(f"norm must be 'bn', 'gn' or 'none', not {norm!r}")
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
