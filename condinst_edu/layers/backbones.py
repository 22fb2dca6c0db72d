"""Backbones: an image in, feature maps C2..C5 of stride 4..32 out, as {level: map}.

`build_backbone` knows three kinds: "tiny" (ours, for lessons), torchvision's ResNets, and any timm model.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import timm
import torchvision
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

from condinst_edu.layers.blocks import conv_block


class Backbone(nn.Module):
    """What the models ask of a backbone: `channels` {level: channels} beside forward(x) -> {level: map}."""

    channels: dict[int, int]


def build_backbone(name: str, **options: Any) -> Backbone:
    """A backbone by name: (B, 3, H, W) -> {level: (B, channels[level], H / 2^level, W / 2^level)}.

    name: "tiny" (options: widths), a torchvision ResNet such as "resnet50" (options: see `ResNetBackbone`), or "timm:"
    and a timm model's name (options go to timm.create_model, e.g. pretrained=True); "timm:dla34" is the official one.
    """
    if name == "tiny":
        return TinyBackbone(**options)
    model = name.removeprefix("timm:")
    if model != name and (":" in model or timm.is_model(model)):  # "hf-hub:..." names a model outside timm's list
        return TimmBackbone(model, **options)
    if name in torchvision.models.list_models() and name.startswith(("resnet", "resnext", "wide_resnet")):
        return ResNetBackbone(name, **options)
    raise ValueError(f"unknown backbone {name!r}: expected 'tiny', a torchvision ResNet, or 'timm:' and a timm model")


class TinyBackbone(Backbone):
    """Five stages of 3x3 convolutions, each halving the map; the last four are C2..C5.

    widths: channels of the stages at stride 2, 4, 8, 16, 32 (fewer stages give fewer levels).
    """

    def __init__(self, widths: Sequence[int] = (16, 24, 48, 64, 96)) -> None:
        super().__init__()
        self.channels = {level: width for level, width in enumerate(widths, start=1) if level > 1}
        self.stem = conv_block(3, widths[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_block(before, after, stride=2), Residual(after))
            for before, after in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.stem(x)
        features = {}
        for level, stage in enumerate(self.stages, start=2):
            features[level] = x = stage(x)
        return features


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels, relu=False))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.body(x))


class ResNetBackbone(Backbone):
    """torchvision's ResNet without its classifier.

    weights: one of torchvision's own names ("DEFAULT", "IMAGENET1K_V2", ...) or None for random ones;
    norm: "frozen_bn" (statistics and scales fixed, the papers' choice), "bn", or "fixed_bn" (statistics fixed, scales
    trained, as in mmdetection); frozen_stages: how many of stem,
    layer1..layer4 are not trained (the papers: 2); stride_in_1x1: halve in a block's first 1x1 convolution, as the
    original Caffe weights do, instead of its 3x3; deformable: levels (of 2 to 5) in whose blocks the 3x3 convolution is
    deformable, beginning with the first block, in every deformable_interval-th.
    """

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | None = None,
        norm: str = "frozen_bn",
        frozen_stages: int = 2,
        stride_in_1x1: bool = False,
        deformable: Sequence[int] = (),
        deformable_interval: int = 1,
    ) -> None:
        super().__init__()
        norms = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d, "fixed_bn": FixedBatchNorm2d}
        if norm not in norms:
            raise ValueError(f"norm must be one of {sorted(norms)}, not {norm!r}")
        body: Any = torchvision.models.get_model(name, weights=weights, norm_layer=norms[norm])
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        stages: list[Any] = [body.layer1, body.layer2, body.layer3, body.layer4]
        bottleneck = hasattr(body.layer1[0], "conv3")
        if stride_in_1x1 and bottleneck:
            for stage in stages[1:]:
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        if deformable and not bottleneck:
            raise ValueError(f"deformable convolutions need a ResNet with bottleneck blocks, not {name!r}")
        if deformable_interval < 1:
            raise ValueError(f"deformable_interval must be at least 1, not {deformable_interval}")
        for level in deformable:
            if not 2 <= level <= 5:
                raise ValueError(f"deformable: the levels of a ResNet are 2 to 5, not {level}")
            for block in stages[level - 2][::deformable_interval]:
                block.conv2 = DeformableConv.like(block.conv2)
        last = "conv3" if bottleneck else "conv2"
        self.channels = {level: getattr(stage[-1], last).out_channels for level, stage in enumerate(stages, start=2)}
        self.stages = nn.ModuleList(stages)
        self.frozen = [self.stem, *stages][:frozen_stages]
        for stage in self.frozen:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> "ResNetBackbone":
        """As of any module, but the statistics of frozen stages stay what they are."""
        super().train(mode)
        for stage in self.frozen:
            stage.eval()
        return self

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.stem(x)
        features = {}
        for level, stage in enumerate(self.stages, start=2):
            features[level] = x = stage(x)
        return features


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics stay what they are, in training too; its scale and shift are trained."""

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        super().train(False)
        return self


class DeformableConv(DeformConv2d):
    """3x3 convolution that reads each cell's nine inputs at learned offsets, each times a learned weight in (0, 1).

    `offset` is a convolution of the same form that predicts 27 numbers for each output cell: the offsets (dy, dx) of
    the nine inputs in cells, then the logits of their weights. At first the offsets are 0 and the weights 0.5.
    This is DCNv2's modulated deformable convolution, as in the official backbones.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        points = self.kernel_size[0] * self.kernel_size[1]
        self.offset = nn.Conv2d(
            self.in_channels, 3 * points, self.kernel_size, self.stride, self.padding, self.dilation
        )
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "DeformableConv":
        """With the form and the weights of an ordinary convolution."""
        form = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        result = cls(*form, groups=conv.groups, bias=conv.bias is not None)
        result.load_state_dict(conv.state_dict(), strict=False)
        return result

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.offset(x)  # (B, 27, H, W)
        split = predicted.shape[1] * 2 // 3
        return super().forward(x, predicted[:, :split], predicted[:, split:].sigmoid())


class TimmBackbone(Backbone):
    """Any timm model that gives feature maps; the levels are those strides of it that are 4 or more."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **options)
        info: Any = self.body.feature_info
        self.levels = [stride.bit_length() - 1 for stride in info.reduction()]
        self.channels = {level: c for level, c in zip(self.levels, info.channels(), strict=True) if level > 1}

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.levels, self.body(x), strict=True))
