"""`condinst-edu bench inference`: CondInst and FCOS with ResNet-50 beside torchvision's Mask R-CNN and FCOS.

All four get one photograph-sized image, enlarge it to 800 pixels on its short side and give 100 detections in its own
pixels, with masks where they draw any. What can be measured without trained weights is time, so the weights are random
but for two things that time depends on: a score threshold lets equally many candidates into the NMS of each model, and
the controller's bias draws diamonds around its instances, since masks cost time along their borders.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torchvision.models import detection

from condinst_edu.bench import Bench, Group, race
from condinst_edu.condinst import CondInst
from condinst_edu.datasets.transforms import resized_size
from condinst_edu.engine.recipe import build_model
from condinst_edu.errors import UserError
from condinst_edu.fcos import FCOS
from condinst_edu.layers.images import Size, make_batch
from condinst_edu.official import find_official, official_recipe

CANDIDATES = 2000  # (location, class) or (proposal, class) pairs that enter NMS
RUNS = 10


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_inference(runs, progress, size=options.size)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    facts = groups[0].variants[3].facts
    return (
        f"CondInst takes {facts['ratio_to_mask_rcnn']:.2f} of the time of torchvision's Mask R-CNN and "
        f"{facts['ratio_to_torchvision_fcos']:.2f} of that of its FCOS."
    )


def bench_inference(
    runs: int, progress: Progress, size: Size = (480, 640), short_side: int = 800, count: int = 100
) -> list[Group]:
    """Times of the whole way from an image to its results. size: of the image; count: of detections.

    Errors: UserError for sizes that are not positive, or where a model finds fewer than `count`.
    """
    if min(*size, short_side, count) < 1:
        raise UserError(f"--size is positive, not {size}")
    torch.manual_seed(0)
    image = torch.rand(3, *size)
    condinst, fcos = our_model("CondInst_MS_R_50_1x"), our_model("FCOS_R_50_1x")
    mask_rcnn = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=short_side)
    their_fcos = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=short_side)
    with torch.inference_mode():
        enlarged = enlarge(image, short_side)
        for ours in (condinst, fcos):
            calibrate(ours, enlarged)
        calibrate_mask_rcnn(mask_rcnn.eval(), image)
        calibrate_fcos(their_fcos.eval(), image)
        functions: dict[str, Callable[[], None]] = {
            "torchvision Mask R-CNN": partial(run_theirs, mask_rcnn, image, count),
            "torchvision FCOS": partial(run_theirs, their_fcos, image, count),
            "FCOS": partial(run_ours, fcos, image, short_side, count),
            f"CondInst, {count} instances": partial(run_ours, condinst, image, short_side, count),
            "CondInst, 1 instance": partial(run_ours, condinst, image, short_side, 1),
        }
        variants = race("inference", functions, runs, progress)
    medians = {variant.name: variant.median_ms or 0 for variant in variants}
    for variant in variants:
        variant.speedup = None  # other models, other results
        variant.facts = {
            "ratio_to_mask_rcnn": medians[variant.name] / medians["torchvision Mask R-CNN"],
            "ratio_to_torchvision_fcos": medians[variant.name] / medians["torchvision FCOS"],
            "ratio_to_1_instance": medians[variant.name] / medians["CondInst, 1 instance"],
        }
    variants[3].goal = {"ratio_to_mask_rcnn": 0.75, "ratio_to_torchvision_fcos": 1.15, "ratio_to_1_instance": 1.1}
    height, width = enlarged.shape[1:]
    what = f"an image of {size[0]}x{size[1]} seen at {height}x{width}, results at its own size"
    return [Group("ResNet-50", what, variants)]


def our_model(name: str) -> FCOS | CondInst:
    """An official model with random weights; boxes and masks have sizes as they are in photographs."""
    recipe = official_recipe(find_official(name))
    model = build_model(recipe.model, 80, recipe.model_args).eval()
    assert isinstance(model, FCOS | CondInst)
    head = model.fcos.head if isinstance(model, CondInst) else model.head
    nn.init.constant_(head.box_distances.bias, 4)  # type: ignore[arg-type]  # strides
    if isinstance(model, CondInst):
        assert head.top is not None
        assert head.top.bias is not None
        with torch.no_grad():
            head.top.weight.mul_(0.1)
            head.top.bias.copy_(diamond())
    return model


def diamond() -> Tensor:
    """The 169 parameters of a mask head whose logit is 0.6 - |x| - |y|, in units of the instance's scale."""
    first = torch.zeros(8, 10)
    first[:4, :2] = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    last = torch.tensor([-1.0] * 4 + [0.0] * 4)
    return torch.cat([first.flatten(), torch.eye(8).flatten(), last, torch.zeros(16), torch.tensor([0.6])])


def enlarge(image: Tensor, short_side: int) -> Tensor:
    size = resized_size((image.shape[1], image.shape[2]), short_side, 1333)
    return F.interpolate(image[None], size=size, mode="bilinear")[0]


def run_ours(model: FCOS | CondInst, image: Tensor, short_side: int, count: int) -> None:
    (model.fcos if isinstance(model, CondInst) else model).detections = count
    found = model([enlarge(image, short_side)], output_sizes=[(image.shape[1], image.shape[2])])[0]
    check_count(type(model).__name__, len(found["boxes"]), count)


def run_theirs(model: Any, image: Tensor, count: int) -> None:
    limited = model.roi_heads if hasattr(model, "roi_heads") else model
    limited.detections_per_img = count
    found = model([image])[0]
    if "masks" in found:
        found["masks"] = found["masks"][:, 0] > 0.5
    check_count(f"torchvision's {type(model).__name__}", len(found["boxes"]), count)


def check_count(who: str, found: int, count: int) -> None:
    if found != count:
        raise UserError(f"{who} finds {found} instances, not {count}: try a larger --size")


def threshold_for(scores: Tensor) -> float:
    """The score above which there are CANDIDATES."""
    flat = scores.flatten()
    return flat.topk(min(CANDIDATES, len(flat) - 1) + 1).values[-1].item()


def calibrate(model: FCOS | CondInst, image: Tensor) -> None:
    fcos = model.fcos if isinstance(model, CondInst) else model
    outputs = fcos.run(make_batch([image], fcos.mean, fcos.std, fcos.divisor))[2]
    scores = outputs.logits.sigmoid()
    if fcos.threshold_product:
        scores = scores * outputs.centerness.sigmoid()[..., None]
    fcos.score_threshold = threshold_for(scores)


def calibrate_mask_rcnn(model: detection.MaskRCNN, image: Tensor) -> None:
    images, _ = model.transform([image])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    pooled = model.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, _ = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    model.roi_heads.score_thresh = threshold_for(logits.softmax(dim=1)[:, 1:])


def calibrate_fcos(model: detection.FCOS, image: Tensor) -> None:
    nn.init.constant_(model.head.regression_head.bbox_reg.bias, 4)
    images, _ = model.transform([image])
    outputs = model.head(list(model.backbone(images.tensors).values()))
    model.score_thresh = threshold_for((outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt())
