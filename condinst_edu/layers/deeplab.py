"""DeepLabV3+ as AdaptIS has it for photographs: a dilated ResNet, its context at several rates, and finer features.

Source: adaptis:table-2 (figure 8 of the paper; sizes as in the official code).
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP


def separable_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution in each channel, a 1x1 convolution over channels, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DeepLab(nn.Module):
    """(B, 3, H, W) -> (B, out_channels, H / 4, W / 4), H and W divisible by 8.

    name: a torchvision ResNet or ResNeXt with bottleneck blocks, whose last two stages stay at stride 8; weights: one
    of torchvision's names or None; rates: dilations of the context module; skip_channels: of the features at stride 4.
    `stride` is 4; `pretrained` names the parts that weights are for.
    """

    stride = 4
    pretrained = ("stem", "fine", "coarse")

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | None = None,
        rates: tuple[int, ...] = (12, 24, 36),
        out_channels: int = 256,
        skip_channels: int = 32,
    ) -> None:
        super().__init__()
        body = torchvision.models.get_model(name, weights=weights, replace_stride_with_dilation=[False, True, True])
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        self.fine = body.layer1  # stride 4
        self.coarse = nn.Sequential(body.layer2, body.layer3, body.layer4)  # stride 8
        self.context = ASPP(body.fc.in_features, list(rates), out_channels)
        self.skip = nn.Sequential(
            nn.Conv2d(body.fc.in_features // 8, skip_channels, 1, bias=False),
            nn.BatchNorm2d(skip_channels),
            nn.ReLU(inplace=True),
        )
        self.out_channels = out_channels
        self.decoder = nn.Sequential(
            separable_block(out_channels + skip_channels, out_channels), separable_block(out_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))  # (B, C2, H / 4, W / 4)
        context = self.context(self.coarse(fine))
        context = F.interpolate(context, fine.shape[-2:], mode="bilinear", align_corners=True)
        return self.decoder(torch.cat([context, self.skip(fine)], dim=1))
