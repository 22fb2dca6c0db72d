"""The routes to a panoptic result, behind one interface: this library's models on things and stuff.

CondInst and BlendMask find instances, a semantic branch finds stuff, and both are fused (`PanopticModel`); DR1Mask's
panoptic layer lets stuff and instances compete for each pixel. (AdaptIS, which fills the picture point by point, is
panoptic by itself, with `num_things`.) All learn from targets that hold every segment, and give "panoptic" and
"segments_info" beside their instances.

Legend: K classes of things, S of stuff, N instances, H, W image, h, w map. Labels count things first, then stuff.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from condinst_edu.blendmask import BlendMask
from condinst_edu.condinst import CondInst
from condinst_edu.dr1mask import DR1Mask
from condinst_edu.layers.images import Size, Target
from condinst_edu.layers.upsample import resize_logits
from condinst_edu.panoptic import Panoptic, PanopticModel, SemanticBranch, fuse, split_target, stuff_segments


class UnifiedPanopticModel(nn.Module):
    """An instance model whose own layer gives logits of stuff and of every instance, which compete for each pixel.

    instances: in training it takes a map `stuff` (H, W) in every target, a class from 1 or 0 for none, beside full-size
    masks; in evaluation its results have "panoptic_logits" (S + N, h, w) at `stride` pixels, things in the order of the
    results. num_things: K; the others: see `fuse`. Instances below min_score do not compete; a pixel goes to the
    largest logit, so none is lost to another and `max_lost` is not asked. forward: as PanopticModel's, with all losses
    of the instance model's own. Source: dr1mask:panoptic-layer (how it is read out; the paper leaves that open).
    """

    mask_stride = None  # masks are full-size

    def __init__(
        self, instances: nn.Module, num_things: int, stride: int = 4, min_score: float = 0.45, min_stuff: int = 64 * 64
    ) -> None:
        super().__init__()
        self.instances, self.num_things, self.stride = instances, num_things, stride
        self.min_score, self.min_stuff = min_score, min_stuff

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        if self.training and targets is not None:
            pairs = [split_target(target, self.num_things) for target in targets]
            return self.instances(images, [{**things, "stuff": stuff.clamp(min=0)} for things, stuff in pairs])
        results = self.instances(images, output_sizes=output_sizes)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        for result, size, output in zip(results, sizes, output_sizes or sizes, strict=True):
            result |= self.read_out(result, size, output)
            del result["panoptic_logits"]
        return results

    def read_out(self, result: Target, size: Size, output_size: Size) -> Panoptic:
        """One image's map of segments from its logits and its instances' labels and scores."""
        logits, sure = result["panoptic_logits"], result["scores"] >= self.min_score
        num_stuff = len(logits) - len(sure)
        logits = torch.cat([logits[:num_stuff], logits[num_stuff:][sure]])
        winner = resize_logits(logits, self.stride, size, output_size).argmax(dim=0)
        thing = torch.arange(num_stuff, len(logits), device=winner.device)
        things = {"masks": winner == thing[:, None, None], "labels": result["labels"][sure]}
        stuff = stuff_segments((winner + 1).masked_fill(winner >= num_stuff, 0), self.num_things)
        return fuse({**things, "scores": result["scores"][sure]}, stuff, self.min_score, 1.0, self.min_stuff)


PANOPTIC_MODELS = PanopticModel | UnifiedPanopticModel  # AdaptIS gives segments by itself (`num_things`)

# ------------------------------------------------------------------------------------------------------- constructors


def panoptic_condinst(
    num_classes: int = 133,
    num_things: int = 80,
    branch: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    channels: int = 256,
    levels: Sequence[int] = (2, 3, 4, 5, 6, 7),
    head_from: int | None = 3,
    bottom: Mapping[str, Any] | None = None,
    **condinst: Any,
) -> PanopticModel:
    """CondInst with a semantic branch on P2..P5; instances from P3 on, as without it.

    num_classes: K + S, of which num_things are things; branch: arguments of SemanticBranch; fusion: of PanopticModel
    (weight, min_score, max_lost, min_stuff); bottom: of BottomBranch, which passes P2 over unless `first` says
    otherwise; all else goes to CondInst and FCOS. Source: condinst:panoptic-branch, condinst:table-9.
    """
    instances = CondInst(
        num_things,
        bottom={"first": 1, **(bottom or {})},
        channels=channels,
        levels=levels,
        head_from=head_from,
        **condinst,
    )
    semantic = SemanticBranch(channels, num_classes - num_things, **(branch or {}))
    return PanopticModel(instances, semantic, num_things, stride=2 ** levels[0], **(fusion or {}))


def panoptic_blendmask(
    num_classes: int = 133,
    num_things: int = 80,
    branch: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    channels: int = 256,
    levels: Sequence[int] = (2, 3, 4, 5, 6, 7),
    head_from: int | None = 3,
    bases: Mapping[str, Any] | None = None,
    **blendmask: Any,
) -> PanopticModel:
    """BlendMask with Panoptic-FPN's semantic branch on P2..P5, as the official code has it; instances from P3 on.

    Arguments as of `panoptic_condinst`; bases: of BlendMask's basis module, which passes P2 over unless `first` says
    otherwise. Stuff is learned at the image's pixels.
    """
    instances = BlendMask(
        num_things,
        bases={"first": 1, **(bases or {})},
        channels=channels,
        levels=levels,
        head_from=head_from,
        **blendmask,
    )
    semantic = SemanticBranch(channels, num_classes - num_things, **{"form": "sum", **(branch or {})})
    options = {"stride": 2 ** levels[0], "loss_stride": 1, **(fusion or {})}
    return PanopticModel(instances, semantic, num_things, **options)


def panoptic_dr1mask(
    num_classes: int = 133,
    num_things: int = 80,
    fusion: Mapping[str, Any] | None = None,
    attention: Literal["vector", "full", "factored"] = "vector",
    **dr1mask: Any,
) -> UnifiedPanopticModel:
    """DR1Mask with its unified panoptic layer: no semantic branch, one matrix product for stuff and things.

    num_classes, num_things: as of `panoptic_condinst`; fusion: min_score and min_stuff; attention: as of DR1Mask, by
    default a vector for each instance, as the paper has it here; all else goes to DR1Mask and FCOS.
    Source: dr1mask:panoptic-layer, dr1mask:table-9.
    """
    instances = DR1Mask(num_things, num_stuff=num_classes - num_things, attention=attention, **dr1mask)
    return UnifiedPanopticModel(instances, num_things, stride=instances.stride, **(fusion or {}))
