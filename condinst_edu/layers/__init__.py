"""What several ideas share: backbones, FPN and BiFPN, convolution blocks, aligned upsampling, losses."""

from condinst_edu.layers.backbones import build_backbone
from condinst_edu.layers.bifpn import BiFPN
from condinst_edu.layers.blocks import conv_block
from condinst_edu.layers.fpn import FPN
from condinst_edu.layers.losses import dice_loss, giou_loss, normalized_focal_loss
from condinst_edu.layers.upsample import aligned_upsample, resize_masks

__all__ = [
    "FPN",
    "BiFPN",
    "aligned_upsample",
    "build_backbone",
    "conv_block",
    "dice_loss",
    "giou_loss",
    "normalized_focal_loss",
    "resize_masks",
]
