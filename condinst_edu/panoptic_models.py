"""The routes to a panoptic result: this library's instance models in `PanopticModel`, as their papers have them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from condinst_edu.blendmask import BlendMask
from condinst_edu.condinst import CondInst
from condinst_edu.dr1mask import DR1Mask
from condinst_edu.panoptic import PanopticModel, SemanticBranch, UnifiedPanopticModel


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
