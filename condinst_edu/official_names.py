"""What the official code calls the tensors of our models; see `condinst_edu.official`.

In the patterns, BODY, HEAD and PASS stand for prefixes that come last.
"""

import re
from collections.abc import Callable
from typing import Any

from condinst_edu.blendmask import BlendMask
from condinst_edu.condinst import CondInst
from condinst_edu.fcos import FCOS
from condinst_edu.layers.bifpn import BiFPN
from condinst_edu.panoptic import PanopticModel

OfficialDetector = FCOS | CondInst | BlendMask | PanopticModel
Renames = list[tuple[str, str | Callable[[re.Match[str]], str]]]

# What BlendMask has beside its detector; applied before the others.
BLENDMASK_RENAMES: Renames = [
    (r"^bases\.", "basis_module."),
    (r"^semantic\.([01])\.(\d)\.", lambda m: f"basis_module.seg_head.{3 * int(m[1]) + int(m[2])}."),
    (r"^semantic\.2\.", "basis_module.seg_head.6."),
    (r"^fcos\.head\.top\.", "top_layer."),
]
# From our names to the official ones; all patterns that match are applied, in this order.
RENAMES: Renames = [
    (r"^fcos\.", ""),
    (r"^backbone\.stem\.0\.", "BODY.stem.conv1."),
    (r"^backbone\.stem\.1\.", "BODY.stem.conv1.norm."),
    (r"^backbone\.body\.", "BODY."),  # timm's names in DLA-34 are the official ones
    (r"^backbone\.stages\.(\d)\.", lambda m: f"BODY.res{int(m[1]) + 2}."),
    (r"(\.res\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.conv2\.offset\.", ".conv2_offset."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^head\.(class|box)_tower\.(\d)\.(\d)\.", lambda m: f"HEAD.{m[1]}_tower.{3 * int(m[2]) + int(m[3])}."),
    (r"HEAD\.class_tower", "HEAD.cls_tower"),
    (r"HEAD\.box_tower", "HEAD.bbox_tower"),
    (r"^head\.class_logits\.", "HEAD.cls_logits."),
    (r"^head\.box_distances\.", "HEAD.bbox_pred."),
    (r"^head\.centerness\.", "HEAD.ctrness."),
    (r"^head\.scales$", "HEAD.scales"),
    (r"^head\.top\.", "controller."),
    (r"^bottom\.", "mask_branch."),
    (r"^semantic\.([01])\.", r"mask_branch.seg_head.\1."),
    (r"^semantic\.2\.", "mask_branch.logits."),
    (r"^HEAD\.", "proposal_generator.fcos_head."),
]
# What a panoptic model has beside its instance model; applied first.
PANOPTIC_RENAMES: Renames = [
    (r"^instances\.", ""),
    (r"^branch\.logits\.", "panoptic_module.predictor."),
    (r"^branch\.scales\.(\d)\.(\d)\.0\.", lambda m: f"panoptic_module.p{int(m[1]) + 2}.{m[2]}."),
    (r"^branch\.scales\.(\d)\.(\d)\.1\.", lambda m: f"panoptic_module.p{int(m[1]) + 2}.{m[2]}.norm."),
]
FPN_RENAMES: Renames = [
    (r"^fpn\.extra\.(\d)\.", lambda m: f"backbone.top_block.p{int(m[1]) + 6}."),
    (r"^BODY\.", "backbone.bottom_up."),
]
BIFPN_RENAMES: Renames = [
    (r"^fpn\.passes\.(\d)\.(down|up)\.(\d)\.weights$", lambda m: f"PASS.{m[1]}.weights_{fusion(m)}"),
    (r"^fpn\.passes\.(\d)\.(down|up)\.(\d)\.conv\.0\.", lambda m: f"PASS.{m[1]}.outputs_{fusion(m)}."),
    (r"^fpn\.passes\.(\d)\.(down|up)\.(\d)\.conv\.1\.", lambda m: f"PASS.{m[1]}.outputs_{fusion(m)}.norm."),
    (r"^fpn\.lateral\.(\d)\.0\.", r"PASS.0.lateral_\1_f\1."),
    (r"^fpn\.lateral\.(\d)\.1\.", r"PASS.0.lateral_\1_f\1.norm."),
    (r"^fpn\.extra\.0\.", "backbone.bottom_up.res6.reduction."),
    (r"^fpn\.extra\.1\.", "backbone.bottom_up.res6.reduction.norm."),
    (r"^PASS\.", "backbone.repeated_bifpn."),
    (r"^BODY\.", "backbone.bottom_up.backbone."),
]


def fusion(match: re.Match[str]) -> str:
    """The official name of a fusion: its level, then its inputs, where maps 5 to 11 are what earlier fusions gave."""
    down, i = match[2] == "down", int(match[3])
    if down:
        return f"f{i}_{i}_{7 - i}"
    level = i + 1
    return f"f{level}_{level}_{7 + level}" if level == 4 else f"f{level}_{level}_{8 - level}_{7 + level}"


def official_shapes(model: OfficialDetector) -> dict[str, tuple[str, tuple[int, ...]]]:
    """All weights of a model: {official name: (our name, shape)}; each level's scale is a tensor there."""
    instances: Any = model.instances if isinstance(model, PanopticModel) else model
    fcos: FCOS = instances if isinstance(instances, FCOS) else instances.fcos
    renames = PANOPTIC_RENAMES if isinstance(model, PanopticModel) else []
    renames = [*renames, *(BLENDMASK_RENAMES if isinstance(instances, BlendMask) else []), *RENAMES]
    if isinstance(fcos.fpn, BiFPN):
        renames += BIFPN_RENAMES
    else:
        finest = fcos.levels[0]
        level = (r"^fpn\.(lateral|output)\.(\d)\.", lambda m: f"backbone.fpn_{m[1]}{int(m[2]) + finest}.")
        renames += [level, *FPN_RENAMES]
    if fcos.head.shared_towers:
        renames.append((r"\.bbox_tower\.", ".share_tower."))
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for ours, tensor in model.state_dict().items():
        if ours.endswith("num_batches_tracked"):
            continue
        name = ours
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if ours.endswith("head.scales"):
            shapes |= {f"{name}.{level}.scale": (ours, (1,)) for level in range(len(tensor))}
        else:
            shapes[name] = (ours, tuple(tensor.shape))
    return shapes
