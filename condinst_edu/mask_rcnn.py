"""Mask R-CNN to compare with: torchvision's own parts on our backbones and FPN, in the interface of our models.

Order of the data: images -> one padded batch -> backbone -> FPN -> proposals (RPN) -> each proposal's features, cut out
of the pyramid by RoIAlign, give a class and a better box -> each box's features, cut out again, give a mask of 28 x 28
-> (inference) the masks, resized to their boxes, are pasted into images. Two things differ from torchvision's
`GeneralizedRCNN.forward`: images keep their size, and results come in any size that is asked for.

Legend: B images, N detections, H, W image or map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from condinst_edu.layers.backbones import build_backbone
from condinst_edu.layers.fpn import FPN
from condinst_edu.layers.images import Size, Target, check_targets, make_batch


class Pyramid(nn.Module):
    """Backbone and FPN as torchvision's detectors expect them: (B, 3, H, W) -> {"2": map, "3": map, ...}."""

    def __init__(self, backbone: str, options: Mapping[str, Any], levels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.body = build_backbone(backbone, **options)
        self.fpn = FPN(self.body.channels, channels, levels)
        self.names = [str(level) for level in levels]
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.fpn(self.body(x)), strict=True))


class MaskRCNN(detection.MaskRCNN):
    """torchvision's Mask R-CNN, small, at the images' own size.

    num_classes: K, without the background; backbone, backbone_options, levels, channels: as of FCOS; anchor_sizes: in
    strides of a level, each as a square and as boxes of 1:2 and 2:1; proposals: per image after the RPN's NMS; samples:
    how many of them train the box head, at most a quarter with an object, and these the mask head; box_units: of the
    box head's two layers; mask_channels, mask_convs: of the mask head; score_threshold, nms_threshold, detections: of
    the results.

    forward(images, targets) in training -> {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness",
    "loss_rpn_box_reg"}; forward(images, output_sizes=None) in evaluation -> [{"boxes", "labels", "scores", "masks"
    (N, H, W) bool}] in the output sizes' pixels. images: list of (3, H, W) float in [0, 1]; target masks are full-size.
    Errors: ValueError where images or targets are not of that form.
    """

    def __init__(
        self,
        num_classes: int = 80,
        backbone: str = "tiny",
        backbone_options: Mapping[str, Any] | None = None,
        levels: Sequence[int] = (2, 3, 4, 5),
        channels: int = 48,
        anchor_sizes: Sequence[float] = (4, 5.7),
        proposals: int = 100,
        samples: int = 32,
        box_units: int = 128,
        mask_channels: int = 48,
        mask_convs: int = 2,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        pyramid = Pyramid(backbone, backbone_options or {}, levels, channels)
        anchors = tuple(tuple(size * 2**level for size in anchor_sizes) for level in levels)
        super().__init__(
            pyramid,
            rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
            rpn_pre_nms_top_n_train=4 * proposals,
            rpn_pre_nms_top_n_test=4 * proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_roi_pool=MultiScaleRoIAlign(pyramid.names, output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(channels * 7**2, box_units),
            box_predictor=FastRCNNPredictor(box_units, num_classes + 1),  # class 0 is the background
            box_score_thresh=score_threshold,
            box_nms_thresh=nms_threshold,
            box_detections_per_img=detections,
            box_batch_size_per_image=samples,
            mask_roi_pool=MultiScaleRoIAlign(pyramid.names, output_size=14, sampling_ratio=2),
            mask_head=MaskRCNNHeads(channels, (mask_channels,) * mask_convs, 1),
            mask_predictor=MaskRCNNPredictor(mask_channels, mask_channels, num_classes + 1),
            image_mean=list(mean),
            image_std=list(std),
        )
        self.divisor = max(32, 2 ** max(pyramid.body.channels))
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.mean, self.std, self.divisor)
        if self.training:  # without `centers`, by which other models know sampled masks, the masks must be full-size
            targets = [{k: v for k, v in target.items() if k != "centers"} for target in targets or ()]
            check_targets(images, targets, "masks")
        else:
            targets = None
        features = self.backbone(batch.images)
        proposals, losses = self.rpn(ImageList(batch.images, batch.sizes), features, targets)
        results, head_losses = self.roi_heads(features, proposals, batch.sizes, targets)
        if self.training:
            return {**head_losses, **losses}
        sizes = [output_size for _, output_size in batch.with_output(output_sizes)]
        results = self.transform.postprocess(results, batch.sizes, sizes)  # boxes scaled, masks (N, 1, H, W) pasted
        return [{**result, "masks": result["masks"][:, 0] > 0.5} for result in results]
