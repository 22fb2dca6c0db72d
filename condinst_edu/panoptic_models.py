"""The routes to a panoptic result: this library's instance models in `PanopticModel`, as their papers have them."""

from collections.abc import Mapping, Sequence
from typing import Any

from condinst_edu.condinst import CondInst
from condinst_edu.panoptic import PanopticModel, SemanticBranch


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
