"""U-Net as AdaptIS has it for its toy problem: an image in, features of the same size out, or of half of it.

Every block is convolution, ReLU, batch norm, in this order (as in the official code). A step down is a max pooling and
two blocks; a step up doubles the map, puts the features of the same size beside it, and takes two blocks more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_relu_bn(in_channels: int, out_channels: int, kernel: int = 3, bias: bool = True) -> nn.Sequential:
    """Convolution that keeps the size, ReLU, batch norm: AdaptIS's block, with the norm after the ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.BatchNorm2d(out_channels))


def double_block(in_channels: int, middle: int, out_channels: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(conv_relu_bn(in_channels, middle, bias=bias), conv_relu_bn(middle, out_channels, bias=bias))


class UNet(nn.Module):
    """(B, 3, H, W) -> (B, out_channels, H / stride, W / stride), rounded up, for any height and width.

    width: channels at full size, doubled at every step down as far as max_width; depth: steps; finest: steps up that
    are left out, each of which doubles `stride`, 1 at first; frozen_upsampling: the form of the paper's own code on
    MXNet, with `UpBlock`s so and biases in the last two convolutions; without it, the form of the official PyTorch
    branch. `out_channels` is width as long as at most one step is left out.
    Source: adaptis:table-1 (its U-Net; sizes as in the official code).
    """

    def __init__(
        self,
        width: int = 32,
        max_width: int = 512,
        depth: int = 4,
        finest: int = 0,
        frozen_upsampling: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= finest < depth:
            raise ValueError(f"finest is between 0 and depth - 1, not {finest} of {depth}")
        widths = [min(width * 2**i, max_width) for i in range(depth + 1)]
        self.stride = 2**finest
        self.out_channels = out = widths[max(finest - 1, 0)]
        self.norm = nn.BatchNorm2d(3)  # the official network normalises what is normalised already
        inputs = [3, *widths]
        self.down = nn.ModuleList(double_block(i, o, o) for i, o in zip(inputs[:-1], widths, strict=True))
        # A step up ends with the channels of the next level, which then are not summed there but in the first step.
        self.up = nn.ModuleList(
            UpBlock(widths[depth] if i == depth - 1 else widths[i], widths[i], widths[max(i - 1, 0)], frozen_upsampling)
            for i in reversed(range(finest, depth))
        )
        self.final = double_block(out, out, out, bias=frozen_upsampling)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if i else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(x, skips.pop())
        return self.final(x)


class UpBlock(nn.Module):
    """A step up: (B, in_channels, h, w) and features (B, channels, H, W) of the way down -> (B, out_channels, H, W).

    Upsampling by 2 begins as bilinear and is trained; in_channels may be twice the channels, then it sums two by two.
    frozen: it stays bilinear, and a block of 1x1 convolutions follows.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, frozen: bool = False) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, channels, 4, 2, 1, groups=channels, bias=False)
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.upsample.weight.data.copy_((line[:, None] * line).expand_as(self.upsample.weight))
        self.upsample.requires_grad_(not frozen)
        self.mix = nn.Sequential(conv_relu_bn(channels, channels, 1, bias=False), nn.ReLU()) if frozen else nn.ReLU()
        self.blocks = double_block(2 * channels, channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.mix(self.upsample(x))
        return self.blocks(torch.cat([center_crop(x, skip), skip], dim=1))


def center_crop(x: Tensor, like: Tensor) -> Tensor:
    """The middle of x that is as large as `like`: pooling rounds odd sizes up."""
    top, left = ((a - b) // 2 for a, b in zip(x.shape[-2:], like.shape[-2:], strict=True))
    return x[..., top : top + like.shape[-2], left : left + like.shape[-1]]
