"""Pieces that only the official models need (BiFPN, DLA-34, ...): naive forms, and the official models' own numbers."""

import re
import zlib
from collections.abc import Sequence
from math import exp, floor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    check_gradients,
    official,
    official_json,
    random_targets,
    same,
    seeded,
    tiny_condinst,
    tiny_fcos,
)
from torch import Tensor, nn

from condinst_edu.condinst import CondInst
from condinst_edu.fcos import FCOS, FCOSHead
from condinst_edu.layers import BiFPN, build_backbone
from condinst_edu.layers.backbones import DeformableConv
from condinst_edu.layers.images import make_batch

# ------------------------------------------------------------------- the official models' weights and names of tensors

GAINS = [  # standard deviation of a convolution's weights times sqrt(fan-in): the first name that is found
    (r"(stem\.conv1|base_layer\.0)\.weight$", 1.7 / 64),
    (r"\.conv3\.weight$", 0.7),
    (r"(fpn_lateral\d|fpn_output\d)\.weight$", 0.6),
    (r"controller\.weight$", 0.9),
    (r"top_block\.p\d\.weight$", 1.0),
    (r"\.outputs_f\d_[\d_]+\.weight$", 1.95),
    (r"", 1.7),
]
BIASES = [  # mean and standard deviation
    (r"cls_logits\.bias$", -6.4, 0.3),
    (r"bbox_pred\.bias$", 2.5, 0.3),
    (r"mask_branch\.logits\.bias$", -4.0, 0.3),
    (r"", 0.0, 0.1),
]


def fill(name: str, shape: Sequence[int]) -> Tensor:
    """The tensor with which the official numbers were made: it depends on its official name and its shape alone."""
    leaf = name.rsplit(".", 1)[-1]
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if leaf == "bias":
        mean, std = next(numbers for pattern, *numbers in BIASES if re.search(pattern, name))
        z = mean + std * z
    elif leaf == "weight" and len(shape) == 4:
        gain = next(gain for pattern, gain in GAINS if re.search(pattern, name))
        z = (z - z.mean(axis=(1, 2, 3), keepdims=True)) * (gain / np.sqrt(np.prod(shape[1:])))
    elif leaf in ("weight", "scale") or leaf.startswith("weights_f"):
        z = 1 + {"weight": 0.1, "scale": 0.15}.get(leaf, 0.3) * z
    else:
        z = {"running_mean": 0.1 * z, "running_var": np.exp(0.2 * z)}[leaf]
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


RESNET = [  # official name -> ours
    (r"stem\.conv1\.norm", "stem.1"),
    (r"stem\.conv1", "stem.0"),
    (r"res(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 2}.{m[2]}."),
    (r"shortcut\.norm", "downsample.1"),
    (r"shortcut", "downsample.0"),
    (r"conv(\d)\.norm", r"bn\1"),
    (r"conv2_offset", "conv2.offset"),
]
BIFPN = [
    (r"^backbone\.bottom_up\.res6\.reduction\.norm", "fpn.extra.1"),
    (r"^backbone\.bottom_up\.res6\.reduction", "fpn.extra.0"),
    (r"^backbone\.bottom_up\.backbone", "backbone"),
    (r"^backbone\.repeated_bifpn\.0\.lateral_(\d)_f\d\.norm", r"fpn.lateral.\1.1"),
    (r"^backbone\.repeated_bifpn\.0\.lateral_(\d)_f\d", r"fpn.lateral.\1.0"),
    (r"^backbone\.repeated_bifpn\.(\d)\.(weights|outputs)_f(\d)_([\d_]+)", lambda m: bifpn_node(*m.groups())),
    (r"conv\.0\.norm", "conv.1"),
]
FPN = [
    (r"^backbone\.fpn_(lateral|output)(\d)", lambda m: f"fpn.{m[1]}.{int(m[2]) - 3}"),
    (r"^backbone\.top_block\.p(\d)", lambda m: f"fpn.extra.{int(m[1]) - 6}"),
    (r"^backbone\.bottom_up", "backbone"),
]
# Counters, a buffer of the loss, and projections of the official DLA's outer trees, of which it makes no use.
UNUSED = r"num_batches_tracked$|^mask_head\.|bottom_up\.level[34]\.project\."
DLA = [(r"^backbone\.bottom_up", "backbone.body")]  # timm's names are the official ones
HEAD = [
    (r"^proposal_generator\.fcos_head\.", "head."),
    (r"(cls|bbox|share)_tower\.(\d+)", lambda m: f"{m[1]}_tower.{int(m[2]) // 3}.{int(m[2]) % 3}"),
    (r"cls_tower", "class_tower"),
    (r"(bbox|share)_tower", "box_tower"),
    (r"cls_logits", "class_logits"),
    (r"bbox_pred", "box_distances"),
    (r"ctrness", "centerness"),
    (r"scales\.\d\.scale", "scales"),
]
CONDINST = [
    (r"^controller", "head.top"),
    (r"^(backbone|fpn|head)\.", r"fcos.\1."),
    (r"^mask_branch\.seg_head\.", "semantic."),
    (r"^mask_branch\.logits", "semantic.2"),
    (r"^mask_branch", "bottom"),
]


def bifpn_node(number: str, kind: str, level: str, inputs: str) -> str:
    """The official nodes are named by their level, and by which maps they read (0 to 4 are those of the pass)."""
    downwards = len(inputs.split("_")) == 2 and level != "4"
    place = f"down.{level}" if downwards else f"up.{int(level) - 1}"
    return f"fpn.passes.{number}.{place}.{'weights' if kind == 'weights' else 'conv.0'}"


def our_name(name: str, rules: Sequence[tuple[str, Any]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def official_tensors(model: nn.Module, config: str, rules: Sequence[tuple[str, Any]]) -> dict[str, list[str]]:
    """Our tensors' names, each with the official ones that make it up; both sides must be complete, shapes equal."""
    names: dict[str, list[str]] = {}
    shapes: dict[str, list[int]] = {}
    for name, shape, _ in official_json(f"manifest_{config}.json"):
        if re.search(UNUSED, name):
            continue
        ours = our_name(name, rules)
        names.setdefault(ours, []).append(name)
        shapes[ours] = [len(names[ours])] if name.endswith(".scale") else shape
        assert len(names[ours]) == 1 or name.endswith(".scale"), f"{name} is a second {ours}"
    state = model.state_dict()
    assert {n: list(x.shape) for n, x in state.items() if not n.endswith("num_batches_tracked")} == shapes
    return names


def fill_model(model: nn.Module, config: str, rules: Sequence[tuple[str, Any]]) -> None:
    """Official weights for the whole model."""
    sizes = {name: shape for name, shape, _ in official_json(f"manifest_{config}.json")}
    tensors = {
        ours: torch.cat([fill(name, sizes[name]) for name in names])
        for ours, names in official_tensors(model, config, rules).items()
    }
    model.load_state_dict(tensors, strict=False)


# What the official backbones take: the means in float32, as the official code has them in its float64 runs too.
BGR: dict[str, Any] = {"mean": tuple(float(np.float32(x)) for x in (103.53, 116.28, 123.675)), "std": (1, 1, 1)}

CAFFE: dict[str, Any] = {"stride_in_1x1": True}
R_50: dict[str, Any] = {"backbone": "resnet50", "backbone_options": CAFFE}
R_101: dict[str, Any] = {"backbone": "resnet101", "backbone_options": CAFFE}
BIFPN_160: dict[str, Any] = {"neck": "bifpn", "channels": 160}
REAL_TIME: dict[str, Any] = {"levels": (3, 4, 5), "ranges": (64, 128)}
DLA_34: dict[str, Any] = {**REAL_TIME, "backbone": "timm:dla34"}
RT_50: dict[str, Any] = {**REAL_TIME, "backbone": "resnet50", "backbone_options": {**CAFFE, "norm": "bn"}}
MODELS: dict[str, tuple[type[FCOS | CondInst], dict[str, Any]]] = {
    "FCOS_R_50_1x": (FCOS, R_50),
    "FCOS_MS_R_101_2x": (FCOS, R_101),
    "FCOS_RT_MS_DLA_34_4x_syncbn": (FCOS, DLA_34),
    "FCOS_RT_MS_DLA_34_4x_syncbn_bn_head": (FCOS, {**DLA_34, "head": {"norm": "bn_per_level"}}),
    "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers": (FCOS, {**DLA_34, "head": {"shared_towers": True}}),
    "FCOS_RT_MS_R_50_4x_syncbn": (FCOS, RT_50),
    "FCOS_RT_MS_R_50_4x_syncbn_bn_head": (FCOS, {**RT_50, "head": {"norm": "bn_per_level"}}),
    "CondInst_MS_R_50_1x": (CondInst, R_50),
    "CondInst_MS_R_50_3x_sem": (CondInst, {**R_50, "semantic": True}),
    "CondInst_MS_R_101_3x": (CondInst, R_101),
    "CondInst_MS_R_50_BiFPN_1x": (CondInst, {**R_50, **BIFPN_160}),
    "CondInst_MS_R_50_BiFPN_3x_sem": (CondInst, {**R_50, **BIFPN_160, "semantic": True}),
}
BLENDMASK_DETECTORS: dict[str, dict[str, Any]] = {
    "BlendMask_DLA_34_syncbn_4x": {**DLA_34, "head": {"learned_scales": False}},
    "BlendMask_RT_R_50_4x_syncbn_shtw": {
        **RT_50,
        "backbone_options": {**RT_50["backbone_options"], "frozen_stages": 0},
        "head": {"shared_towers": True, "tower_convs": 3, "learned_scales": False},
    },
    "BlendMask_R_101_dcni3_5x": {
        **R_101,
        "backbone_options": {**CAFFE, "deformable": (3, 4, 5), "deformable_interval": 3},
        "head": {"learned_scales": False},
    },
}


def rules_of(config: str) -> list[tuple[str, Any]]:
    """How the official names of a model become ours."""
    neck: list[tuple[str, Any]] = DLA if "DLA" in config else BIFPN if "BiFPN" in config else []
    return [*neck, *FPN, *RESNET, *HEAD, *(CONDINST if "CondInst" in config else [])]


def official_model(config: str) -> FCOS | CondInst:
    """The model in evaluation mode, with the official weights."""
    kind, options = MODELS[config]
    model = kind(**options, **BGR).eval()
    fill_model(model, config, rules_of(config))
    return model


def official_image(name: str) -> Tensor:
    return torch.from_numpy(official("inputs_small.npz")[f"{name}_rgb"][..., ::-1].copy()).permute(2, 0, 1).float()


TOLERANCES = {"fpn": 5e-4, "cls_logits": 1e-3, "bbox_reg": 1e-3, "ctrness": 1e-3, "top_feats": 5e-4, "mask_feats": 2e-3}


def network_outputs(model: FCOS, image: Tensor) -> dict[str, Tensor]:
    """The pyramid's maps and the head's outputs by their official names, each (1, C, H, W)."""
    with torch.no_grad():
        pyramid, points, outputs = model.run(make_batch([image], model.mean, model.std, model.divisor))
        fields = {"cls_logits": outputs.logits, "bbox_reg": outputs.distances, "ctrness": outputs.centerness[..., None]}
        if model.head.top is not None:
            fields["top_feats"] = model.head.top_at(outputs, points, 0, torch.arange(len(points.xy)))[None]
    maps = {f"fpn_p{level}": x for level, x in zip(model.levels, pyramid, strict=True)}
    for name, field in fields.items():
        for level, x in enumerate(pyramid):
            maps[f"{name}_{level}"] = field[:, points.level == level].mT.unflatten(2, x.shape[-2:])
    return maps


def check_maps(maps: dict[str, Tensor], numbers: dict[str, np.ndarray], tolerance: float | None = None) -> None:
    """All maps against the stored parts of the official ones, within the tolerances of the official README or this."""
    for name, x in maps.items():
        key = name if name in numbers else f"{name}_ch"
        if key != name:
            x = x[:, numbers.get(f"{key}_index", numbers["fpn_channel_subset"])]
        if f"{name}_stride" in numbers:
            x = x[..., :: numbers[f"{name}_stride"], :: numbers[f"{name}_stride"]]
        for dim, step in enumerate(reversed(numbers.get(f"{key}_subsampling", ())), start=1):
            x = x.movedim(-dim, 0)[:: int(step)].movedim(0, -dim)
        kind = re.sub(r"_p?\d$", "", name)
        close(x, numbers[key], TOLERANCES[kind] if tolerance is None else tolerance, tolerance)


def close(found: Tensor, expected: np.ndarray, atol: float, rtol: float | None = None) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-4 if rtol is None else rtol, atol=atol)


@pytest.mark.parametrize("config", MODELS)
def test_models_have_the_official_tensors(config: str) -> None:
    """Every tensor of the official model has its place in ours, with its shape, and ours has no more."""
    kind, options = MODELS[config]
    with torch.device("meta"):
        model = kind(**options)
    official_tensors(model, config, rules_of(config))


@pytest.mark.parametrize(("config", "options"), BLENDMASK_DETECTORS.items())
def test_detectors_of_blendmask_have_the_official_tensors(config: str, options: dict[str, Any]) -> None:
    """Backbone, pyramid and head of the real-time and deformable BlendMask; its own parts are not looked at."""
    with torch.device("meta"):
        model = FCOS(**options)
    state = {name: list(x.shape) for name, x in model.state_dict().items() if "num_batches" not in name}
    tensors = {
        our_name(name, rules_of(config)): shape
        for name, shape, _ in official_json(f"manifest_{config}.json")
        if not re.search(UNUSED + "|^basis_module|^top_layer", name)
    }
    assert state == tensors


# -------------------------------------------------------------------------------------------------------------- BiFPN


def naive_up(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest: cell (i, j) of the result reads the cell that its upper left corner lies in."""
    rows = [i * x.shape[-2] // size[0] for i in range(size[0])]
    columns = [j * x.shape[-1] // size[1] for j in range(size[1])]
    return x[..., rows, :][..., columns]


def naive_halve(x: Tensor) -> Tensor:
    """Cell (i, j) is the largest of the 3x3 cells around (2 i, 2 j) that there are."""
    height, width = x.shape[-2:]
    rows = [x[..., max(i - 1, 0) : i + 2, :].amax(dim=-2) for i in range(0, height, 2)]
    x = torch.stack(rows, dim=-2)
    return torch.stack([x[..., max(j - 1, 0) : j + 2].amax(dim=-1) for j in range(0, width, 2)], dim=-1)


def naive_fusion(node: Any, maps: list[Tensor]) -> Tensor:
    w = [max(value, 0) for value in node.weights.tolist()]
    x = sum(w[i] / (sum(w) + 1e-4) * maps[i] for i in range(len(w)))
    assert isinstance(x, Tensor)
    return node.conv[1](F.conv2d(x * torch.sigmoid(x), node.conv[0].weight, padding=1))


def naive_bifpn(neck: Any, features: dict[int, Tensor]) -> list[Tensor]:
    """Levels 3 to 7 of a backbone that ends with C5, node by node."""
    p3, p4, p5 = (lateral(features[level]) for lateral, level in zip(neck.lateral, (3, 4, 5), strict=True))
    p6 = naive_halve(neck.extra[1](F.conv2d(features[5], neck.extra[0].weight)))
    p7 = naive_halve(p6)
    for one in neck.passes:
        down, up = one.down, one.up
        d6 = naive_fusion(down[3], [p6, naive_up(p7, p6.shape[-2:])])
        d5 = naive_fusion(down[2], [p5, naive_up(d6, p5.shape[-2:])])
        d4 = naive_fusion(down[1], [p4, naive_up(d5, p4.shape[-2:])])
        p3 = naive_fusion(down[0], [p3, naive_up(d4, p3.shape[-2:])])
        p4 = naive_fusion(up[0], [p4, d4, naive_halve(p3)])
        p5 = naive_fusion(up[1], [p5, d5, naive_halve(p4)])
        p6 = naive_fusion(up[2], [p6, d6, naive_halve(p5)])
        p7 = naive_fusion(up[3], [p7, naive_halve(p6)])
    return [p3, p4, p5, p6, p7]


@pytest.mark.parametrize("size", [(12, 20), (4, 36), (20, 4)])
@pytest.mark.parametrize("training", [False, True])
def test_bifpn_by_nodes(size: tuple[int, int], training: bool) -> None:
    """Odd sizes at the top, a map of one row, weights below 0, and statistics of its own at every norm."""
    torch.manual_seed(0)
    height, width = size
    sizes = {2: (2 * height, 2 * width), 3: size, 4: (height // 2, width // 2), 5: (height // 4, width // 4)}
    features = {level: torch.randn(2, 3 + level, *s).double() for level, s in sizes.items()}
    neck = BiFPN({2: 5, 3: 6, 4: 7, 5: 8}, 4, (3, 4, 5, 6, 7), repeats=3).double().train(training)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.add_(0.6 * torch.randn(parameter.shape))
    assert any((x < 0).any() for name, x in neck.named_parameters() if name.endswith("weights"))
    result = neck(features)
    for ours, expected in zip(result, naive_bifpn(neck, features), strict=True):
        same(ours.detach(), expected.detach(), 1e-11)


def test_bifpn_of_other_levels() -> None:
    features = {3: torch.randn(1, 8, 10, 14), 4: torch.randn(1, 12, 5, 7), 5: torch.randn(1, 16, 3, 4)}
    channels = {level: x.shape[1] for level, x in features.items()}
    for levels in ([3, 4], [4, 5, 6], [3, 4, 5], [5, 6]):
        neck = BiFPN(channels, 4, levels, repeats=2)
        shapes = [x.shape for x in neck(features)]
        assert shapes[0] == (1, 4, *features[levels[0]].shape[-2:])
        assert len(shapes) == len(levels)
        assert (neck.extra is None) == (levels[-1] < 6)
    for wrong in ([3], [3, 5], [6, 7], []):
        with pytest.raises(ValueError, match="two levels or more that rise by one"):
            BiFPN(channels, 4, wrong)


def test_models_take_a_neck() -> None:
    """Whole models with BiFPN train: every parameter has a gradient."""
    torch.manual_seed(0)
    model = tiny_condinst(neck="bifpn", neck_options={"repeats": 2}, levels=(3, 4, 5, 6), ranges=(32, 64, 96))
    assert isinstance(model.fcos.fpn, BiFPN)
    assert len(model.fcos.fpn.passes) == 2
    images = [torch.rand(3, 96, 160, generator=seeded(0)), torch.rand(3, 128, 130, generator=seeded(1))]
    targets = [random_targets(6, (x.shape[1], x.shape[2]), seeded(i)) for i, x in enumerate(images)]
    check_gradients(lambda: sum(model(images, targets).values()), model, all_nonzero=False)
    assert [len(result["masks"]) for result in model.eval()(images)] == [0, 0]  # untrained
    with pytest.raises(ValueError, match="neck must be 'fpn' or 'bifpn', not 'pan'"):
        tiny_fcos(neck="pan")


def condinst_outputs(model: FCOS | CondInst, image: Tensor) -> dict[str, Tensor]:
    assert isinstance(model, CondInst)
    maps = network_outputs(model.fcos, image)
    with torch.no_grad():
        maps["mask_feats"] = model.bottom([maps[f"fpn_p{level}"] for level in model.fcos.levels])
    return maps


@pytest.mark.parametrize("name", ["synthA", pytest.param("photo2_small", marks=pytest.mark.slow)])
def test_bifpn_against_the_official_code(name: str) -> None:
    """CondInst up to the mask head, whose parameters the official controller gives in another order than ours."""
    numbers = official(f"infer_CondInst_MS_R_50_BiFPN_3x_sem_{name}.npz")
    model, image = official_model("CondInst_MS_R_50_BiFPN_3x_sem"), official_image(name)
    check_maps(condinst_outputs(model, image), numbers)
    output_size = tuple(official("inputs_small.npz")[f"{name}_out_hw"].tolist())
    with torch.no_grad():
        (result,) = model([image], output_sizes=[output_size])
    check_detections(result, numbers)


def check_detections(result: dict[str, Tensor], numbers: dict[str, np.ndarray]) -> None:
    assert (result["labels"] - 1).tolist() == numbers["im0_classes"].tolist()
    close(result["boxes"].float(), numbers["im0_boxes"], 0.02)
    close(result["scores"].float(), numbers["im0_scores"], 1e-4)


@pytest.mark.slow
def test_bifpn_in_float64_against_the_official_code() -> None:
    model = official_model("CondInst_MS_R_50_BiFPN_3x_sem").double()
    numbers = official("infer64_CondInst_MS_R_50_BiFPN_3x_sem_synthA.npz")
    check_maps(condinst_outputs(model, official_image("synthA").double()), numbers, 1e-9)


@pytest.mark.slow
def test_bifpn_losses_against_the_official_code() -> None:
    """A training forward with batch statistics; the mask loss needs the official order of the controller's outputs."""
    inputs = {name: torch.from_numpy(x) for name, x in official("train_inputs.npz").items()}
    config = "train_CondInst_MS_R_50_BiFPN_3x_sem_A"
    expected, numbers = official_json(f"{config}.json")["losses"], official(f"{config}.npz")
    model = official_model("CondInst_MS_R_50_BiFPN_3x_sem").train()
    images = [inputs[f"A{i}_rgb"].flip(-1).permute(2, 0, 1).float() for i in range(2)]
    targets = [
        {"boxes": inputs[f"A{i}_boxes"], "labels": inputs[f"A{i}_classes"] + 1, "masks": inputs[f"A{i}_masks"]}
        for i in range(2)
    ]
    losses = model(images, targets)
    for ours, theirs in (("class", "fcos_cls"), ("box", "fcos_loc"), ("centerness", "fcos_ctr"), ("semantic", "sem")):
        close(losses[f"loss_{ours}"].detach(), np.array(expected[f"loss_{theirs}"], np.float32), 1e-5, 0)
    variance = model.state_dict()["fcos.fpn.passes.0.down.0.conv.1.running_var"]
    close(variance, numbers["after:backbone.repeated_bifpn.0.outputs_f0_0_7.norm.running_var"], 1e-5)


# -------------------------------------------------------------------------------------------------------------- towers


def naive_tower(tower: Any, x: Tensor, level: int) -> Tensor:
    for conv, norms, _ in tower:
        norm = norms[level]
        x = F.conv2d(x, conv.weight, conv.bias, padding=1)
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    return x


@pytest.mark.parametrize("shared_towers", [False, True])
def test_towers_with_batch_norm_per_level(shared_towers: bool) -> None:
    """The levels share convolutions, which have a bias, and each has norms of its own."""
    torch.manual_seed(0)
    head = FCOSHead(6, 3, (8, 16, 32), 2, "bn_per_level", shared_towers, 5, learned_scales=False).double()
    pyramid = [torch.randn(2, 6, h, w, dtype=torch.float64) for h, w in ((4, 7), (2, 3), (2, 1))]
    before = {name: x.clone() for name, x in head.state_dict().items() if "running_mean" in name}
    head([pyramid[0], pyramid[1], 3 + pyramid[2]])
    assert all((x != before[name]).any() for name, x in head.state_dict().items() if name in before)  # all learn
    assert len(before) == 2 * 3 * (1 if shared_towers else 2)
    head.eval()
    outputs = head(pyramid)
    boxes = [naive_tower(head.box_tower, x, level) for level, x in enumerate(pyramid)]
    classes = boxes if shared_towers else [naive_tower(head.class_tower, x, i) for i, x in enumerate(pyramid)]
    for found, maps in (
        (outputs.tower, boxes),
        (outputs.logits, [head.class_logits(x) for x in classes]),
        (outputs.distances, [head.box_distances(x).clamp(min=0) for x in boxes]),  # without a scale
        (outputs.centerness[..., None], [head.centerness(x) for x in boxes]),
    ):
        same(found.detach(), torch.cat([m.flatten(2).mT for m in maps], dim=1).detach(), 1e-12)
    assert not any("scales" in name for name in head.state_dict())


# ----------------------------------------------------------------------------------------------- real-time FCOS, DLA-34


@pytest.mark.parametrize("name", ["synthA", pytest.param("photo2_small", marks=pytest.mark.slow)])
def test_real_time_dla_against_the_official_code(name: str) -> None:
    numbers = official(f"infer_FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers_{name}.npz")
    model, image = official_model("FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers"), official_image(name)
    assert isinstance(model, FCOS)
    check_maps(network_outputs(model, image), numbers)
    output_size = tuple(official("inputs_small.npz")[f"{name}_out_hw"].tolist())
    with torch.no_grad():  # float64: two of the scores are so near that float32's rounding may swap them
        (result,) = model.double()([image.double()], output_sizes=[output_size])
    check_detections(result, numbers)
    # Our float64 is as far from the official float32 as the official float64 is: no difference is left but rounding.
    official_difference = official_json("stability_float64.json")[f"FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers/{name}"]
    for key, figure in (("boxes", "max_box_diff_px"), ("scores", "max_score_diff")):
        difference = (result[key] - torch.from_numpy(numbers[f"im0_{key}"])).abs().max().item()
        assert difference == pytest.approx(official_difference[figure], rel=1e-2)


# --------------------------------------------------------------------------------------------- deformable convolutions


def read_between(x: Tensor, row: float, column: float) -> Tensor:
    """The map (C, H, W) between its cells, bilinearly; 0 off the map."""
    total = x.new_zeros(x.shape[0])
    for i in (floor(row), floor(row) + 1):
        for j in (floor(column), floor(column) + 1):
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                total = total + x[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def naive_deformable(conv: DeformableConv, x: Tensor) -> Tensor:
    """(C, H, W) -> (D, h, w), cell by cell and input by input."""
    stride = conv.stride[0]
    predicted = F.conv2d(x[None], conv.offset.weight, conv.offset.bias, stride, padding=1)[0]  # (27, h, w)
    result = x.new_zeros(conv.out_channels, *predicted.shape[1:])
    for i in range(result.shape[1]):
        for j in range(result.shape[2]):
            for point in range(9):
                down, right = predicted[2 * point : 2 * point + 2, i, j].tolist()
                weight = 1 / (1 + exp(-predicted[18 + point, i, j].item()))
                row, column = divmod(point, 3)
                values = read_between(x, stride * i - 1 + row + down, stride * j - 1 + column + right)
                result[:, i, j] += conv.weight[:, :, row, column] @ values * weight
    return result


@pytest.mark.parametrize(("stride", "size"), [(1, (5, 8)), (2, (6, 5)), (2, (1, 7))])
def test_deformable_convolution_by_loop(stride: int, size: tuple[int, int]) -> None:
    """Offsets of several cells, off the map too; every parameter learns."""
    torch.manual_seed(1)
    conv = DeformableConv.like(nn.Conv2d(4, 3, 3, stride, padding=1, bias=False)).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    same(conv(x).detach(), F.conv2d(x, conv.weight, stride=stride, padding=1).detach() / 2, 1e-13)  # at first
    nn.init.normal_(conv.offset.weight, std=0.5)
    assert conv.offset.bias is not None
    nn.init.normal_(conv.offset.bias)
    result = conv(x)
    assert conv.offset(x)[:, :18].abs().max() > 2
    with torch.no_grad():
        same(result, torch.stack([naive_deformable(conv, one) for one in x]), 1e-12)
    check_gradients(lambda: conv(x).square().sum(), conv)


def test_deformable_convolution_keeps_an_ordinary_one() -> None:
    """Form and weights are taken over."""
    plain = nn.Conv2d(4, 6, 3, 2, padding=2, dilation=2, groups=2)
    conv = DeformableConv.like(plain)
    assert torch.equal(conv.weight, plain.weight)
    x = torch.randn(1, 4, 9, 12)
    assert plain.bias is not None
    same(conv(x).detach(), (plain(x) + plain.bias[:, None, None]).detach() / 2, 1e-6)


def test_deformable_backbone_has_the_official_tensors() -> None:
    """Every third block of C3 to C5 from the first; names and shapes of all tensors of the backbone."""
    with torch.device("meta"):
        backbone: Any = build_backbone("resnet101", stride_in_1x1=True, deformable=(3, 4, 5), deformable_interval=3)
    ours = {f"backbone.{name}": tuple(x.shape) for name, x in backbone.state_dict().items()}
    official_tensors = official_json("manifest_BlendMask_R_101_dcni3_5x.json")
    bottom_up = [(name, shape) for name, shape, _ in official_tensors if name.startswith("backbone.bottom_up")]
    assert ours == {our_name(name, [*FPN, *RESNET]): tuple(shape) for name, shape in bottom_up}
    deformable = [isinstance(block.conv2, DeformableConv) for stage in backbone.stages for block in stage]
    assert [i for i, found in enumerate(deformable) if found] == [3, 6, 7, 10, 13, 16, 19, 22, 25, 28, 30]


@pytest.mark.parametrize("interval", [1, 2])
def test_deformable_backbone_starts_as_the_ordinary_one(interval: int) -> None:
    """The weights of its convolutions are those it would have without; it runs, and its offsets learn."""
    torch.manual_seed(0)
    plain = build_backbone("resnet50")
    torch.manual_seed(0)
    backbone = build_backbone("resnet50", deformable=(4, 5), deformable_interval=interval)
    state = backbone.state_dict()
    assert all(torch.equal(state[name], x) for name, x in plain.state_dict().items())
    added = state.keys() - plain.state_dict().keys()
    assert len(added) == 2 * (6 + 3 if interval == 1 else 3 + 2)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert {level: tuple(x.shape[1:]) for level, x in maps.items()} == {
        2: (256, 16, 24),
        3: (512, 8, 12),
        4: (1024, 4, 6),
        5: (2048, 2, 3),
    }
    maps[5].square().mean().backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if name in added}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients.values())


def test_deformable_backbone_errors() -> None:
    with pytest.raises(ValueError, match="bottleneck blocks, not 'resnet18'"):
        build_backbone("resnet18", deformable=(4,))
    with pytest.raises(ValueError, match="levels of a ResNet are 2 to 5, not 6"):
        build_backbone("resnet50", deformable=(5, 6))
    with pytest.raises(ValueError, match="deformable_interval must be at least 1, not 0"):
        build_backbone("resnet50", deformable=(5,), deformable_interval=0)


# ---------------------------------------------------------------------------------------------- synchronised batch norm


@pytest.mark.parametrize(
    "options",
    [
        {"neck": "bifpn", "neck_options": {"repeats": 1}, "semantic": True},
        {"backbone": "timm:dla34", "backbone_options": {}, "head": {"norm": "bn_per_level"}},
        {"backbone": "resnet18", "backbone_options": {"norm": "bn"}},
        {"backbone": "resnet18", "backbone_options": {}},
    ],
    ids=["bifpn", "dla34", "resnet18", "frozen"],
)
def test_models_convert_to_synchronised_batch_norm(options: dict[str, Any]) -> None:
    """torch's own conversion leaves no ordinary batch norm, keeps all names and values, and the step stays the same.

    In one process a synchronised norm is an ordinary one; frozen norms and the statistics of frozen stages stay.
    """
    torch.manual_seed(0)
    model = tiny_condinst(**options).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    ordinary = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    images = [torch.rand(3, 64, 96, generator=seeded(i)) for i in range(2)]
    targets = [random_targets(4, (64, 96), seeded(i)) for i in range(2)]
    losses = model(images, targets)
    after = {name: x.clone() for name, x in model.state_dict().items()}
    model.load_state_dict(before)

    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules()) == ordinary > 0
    state = model.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[name], x) for name, x in before.items())
    for name, loss in model(images, targets).items():
        same(loss.detach(), losses[name].detach(), 1e-6)
    for name, x in model.state_dict().items():
        same(x, after[name], 1e-6)
    if "resnet18" in options.values():
        frozen = [name for name in before if name.startswith(("fcos.backbone.stem", "fcos.backbone.stages.0"))]
        assert frozen
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in frozen)
    assert len(model.eval()(images)) == 2
