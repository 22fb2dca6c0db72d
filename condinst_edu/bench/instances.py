"""`condinst-edu bench instances`: how the time of CondInst and of Mask R-CNN grows with the number of instances.

Two pairs with random weights: CondInst with ResNet-50 and torchvision's `maskrcnn_resnet50_fpn`, and the two tiny
models of the shapes recipes. Each pair sees one image and is timed twice: the whole forward pass, from the image to
binary masks of its size, and all that is done for masks alone, from the pyramid and the boxes on. That is

    CondInst     bottom branch (once per image); controller, mask head and drawing for each instance
    Mask R-CNN   RoIAlign, mask head and pasting for each instance

A score threshold of 0 and a limit on the detections give the number of instances that is wanted. The threshold leaves
NMS more boxes than a trained model does, at every count the same; masks of random weights are large and of any shape.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image

from condinst_edu.bench import Bench, Group, race
from condinst_edu.condinst import CondInst
from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size, make_batch
from condinst_edu.layers.upsample import resize_masks
from condinst_edu.mask_rcnn import MaskRCNN
from condinst_edu.recipes.shapes import shapes_condinst, shapes_mask_rcnn

RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_instances(runs, progress, counts=options.counts, size=options.size)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    condinst, mask_rcnn = groups[0].variants[-2:]
    fewest, most = (variant.facts["instances"] for variant in (groups[0].variants[0], condinst))
    return (
        f"With {most:g} instances instead of {fewest:g}, CondInst takes {condinst.facts['ratio_to_fewest']:.2f} "
        f"times as long, Mask R-CNN {mask_rcnn.facts['ratio_to_fewest']:.2f} times."
    )


class CondInstCase:
    """CondInst on one image (3, H, W): `whole(n)` and `masks(n)` give the masks (n, H, W) of its n best detections."""

    name = "CondInst"

    def __init__(self, model: CondInst, image: Tensor) -> None:
        self.model, self.image, self.size = model.eval(), image, (image.shape[1], image.shape[2])
        model.fcos.score_threshold = 0
        nn.init.constant_(model.fcos.head.box_distances.bias, 4)  # type: ignore[arg-type]  # strides: else boxes are empty
        batch = make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
        self.pyramid, self.points, self.outputs = model.fcos.run(batch)

    def whole(self, n: int) -> Tensor:
        self.model.fcos.detections = n
        return self.model([self.image])[0]["masks"]

    def masks(self, n: int) -> Callable[[], Tensor]:
        self.model.fcos.detections = n
        location = self.model.fcos.detect(self.points, self.outputs, 0).location
        return partial(self.draw, location)

    def draw(self, location: Tensor) -> Tensor:
        features = self.model.bottom(self.pyramid)
        logits = self.model.mask_logits(self.points, self.outputs, features, 0, location)
        return resize_masks(logits, self.model.stride, self.size, self.size, self.model.factor)


class MaskRCNNCase:
    """The same of torchvision's Mask R-CNN, or ours, which is one."""

    name = "Mask R-CNN"

    def __init__(self, model: detection.MaskRCNN, image: Tensor) -> None:
        self.model, self.image, self.size = model.eval(), image, (image.shape[1], image.shape[2])
        model.roi_heads.score_thresh = 0
        model.transform.min_size, model.transform.max_size = (min(self.size),), max(self.size)  # resizes nothing
        self.images, _ = model.transform([image])
        self.features = model.backbone(self.images.tensors)

    def whole(self, n: int) -> Tensor:
        self.model.roi_heads.detections_per_img = n
        masks = self.model([self.image])[0]["masks"]
        return masks if masks.dtype == torch.bool else masks[:, 0] > 0.5

    def masks(self, n: int) -> Callable[[], Tensor]:
        self.model.roi_heads.detections_per_img = n
        proposals, _ = self.model.rpn(self.images, self.features)
        found = self.model.roi_heads(self.features, proposals, self.images.image_sizes)[0][0]
        return partial(self.draw, found["boxes"], found["labels"])

    def draw(self, boxes: Tensor, labels: Tensor) -> Tensor:
        heads = self.model.roi_heads
        features = heads.mask_head(heads.mask_roi_pool(self.features, [boxes], [self.size]))  # (n, C, 14, 14)
        probability = maskrcnn_inference(heads.mask_predictor(features), [labels])[0]  # (n, 1, 28, 28)
        return paste_masks_in_image(probability, boxes, self.size)[:, 0] > 0.5


Case = CondInstCase | MaskRCNNCase


def full_size_models() -> tuple[CondInst, detection.MaskRCNN]:
    """CondInst as it is by default, with ResNet-50, and torchvision's own model."""
    return CondInst(), detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)


def tiny_models() -> tuple[CondInst, detection.MaskRCNN]:
    """Those of the shapes recipes."""
    return CondInst(5, **shapes_condinst().model_args), MaskRCNN(5, **shapes_mask_rcnn().model_args)


def bench_instances(
    runs: int, progress: Progress, counts: Sequence[int] = (1, 10, 50, 100), size: Size = (480, 640)
) -> list[Group]:
    """Both pairs at all counts. size: (height, width) in pixels of the image that the full-size models see.

    Errors: UserError for counts or a size that are not positive, or more instances than a model finds.
    """
    if not counts or min(*counts, *size) < 1:
        raise UserError(f"--counts and --size are positive, not {tuple(counts)} and {tuple(size)}")
    groups = []
    with torch.inference_mode():
        for name, models, shape in (("full size", full_size_models, size), ("tiny", tiny_models, (128, 128))):
            torch.manual_seed(0)
            condinst, mask_rcnn = models()
            image = torch.rand(3, *shape)
            cases: list[Case] = [CondInstCase(condinst, image), MaskRCNNCase(mask_rcnn, image)]
            groups += compare(name, cases, sorted(set(counts)), runs, progress)
    return groups


def compare(name: str, cases: Sequence[Case], counts: Sequence[int], runs: int, progress: Progress) -> list[Group]:
    """Whole forward passes, and masks alone; the first case is the one that others are compared with."""
    on = f"one image of {cases[0].size[0]}x{cases[0].size[1]}"
    pairs = [(case, n) for n in counts for case in cases]
    whole: list[Callable[[], Tensor]] = [partial(case.whole, n) for case, n in pairs]
    masks = [case.masks(n) for case, n in pairs]
    groups = []
    for title, what, functions in (
        (name, f"whole forward pass, {on}", whole),
        (f"{name}, masks alone", f"from pyramid and boxes to masks, {on}", masks),
    ):
        named = {
            f"{case.name}, {n}": partial(run_and_count, f"the {name} {case.name}", n, function)
            for (case, n), function in zip(pairs, functions, strict=True)
        }
        variants = race(title, named, runs, progress)
        medians = {key: variant.median_ms or 0 for key, variant in zip(pairs, variants, strict=True)}
        for (case, n), variant in zip(pairs, variants, strict=True):
            variant.speedup = None  # other numbers of instances are other results
            variant.facts = {
                "instances": n,
                "ratio_to_fewest": medians[case, n] / medians[case, counts[0]],
                "ratio_to_condinst": medians[case, n] / medians[cases[0], n],
            }
        groups.append(Group(title, what, variants))
    return groups


def run_and_count(who: str, n: int, function: Callable[[], Tensor]) -> None:
    """Run it; UserError unless n masks come out."""
    if (found := len(function())) != n:
        raise UserError(f"{who} finds {found} instances, not {n}: try other --counts or a larger --size")
