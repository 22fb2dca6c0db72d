"""AdaptIS against its official code: losses, layers, the toy network and the greedy sampling, number by number.

Two official versions exist, [pt] on PyTorch and [mx] on MXNet; where ours follows the paper instead, the test says so.
The numbers are read where they are (see `official_file`); without them these tests are skipped.
"""

import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, same, same_to_scale
from PIL import Image
from torch import Tensor, nn

import condinst_edu.adaptis
from condinst_edu.adaptis import (
    AdaIN,
    AdaptIS,
    InstanceHead,
    dense_head,
    find_local_maxima,
    point_features,
)
from condinst_edu.adaptis_crops import Crop, crop_offsets, join_crops
from condinst_edu.adaptis_greedy import aggregate_official, blur, compete, cut_around
from condinst_edu.adaptis_targets import AdaptiveThreshold, Queries, soft_proposal_labels
from condinst_edu.coordinates import relative_coordconv
from condinst_edu.layers.losses import normalized_focal_loss, normalized_focal_softmax_loss
from condinst_edu.layers.unet import UpBlock, conv_relu_bn

FOLDERS = (
    Path(os.environ.get("CONDINST_GOLDEN", ROOT.parent / "shared" / "golden")) / "adaptis",
    Path(__file__).parent / "data" / "adaptis",
)


def official_file(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is neither in {FOLDERS[0]} (set CONDINST_GOLDEN) nor in {FOLDERS[1]}")


def numbers(name: str) -> dict[str, Tensor]:
    with np.load(official_file(name)) as file:
        return {key: torch.from_numpy(file[key].astype(np.float32)) for key in file.files}


def facts(name: str) -> Any:
    return json.loads(official_file(name).read_text())


def fill(name: str, shape: Sequence[int]) -> Tensor:
    """The official models' synthetic weights: they depend on name and shape alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if name.endswith("running_mean"):
        x = 0.1 * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        x = 0.5 + rng.random(shape)
    elif len(shape) <= 1:
        x = name.endswith(("weight", "gamma")) + 0.1 * rng.standard_normal(shape)
    else:
        x = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(x, np.float32))


# ------------------------------------------------------------------------------------------------------------- losses


def loss_cases(kind: str) -> list[tuple[dict[str, Any], dict[str, Tensor], str]]:
    found = []
    for file in ("pytorch", "mxnet"):
        data, inputs = numbers(f"losses_{file}.npz"), numbers("losses_pytorch.npz")
        for case in facts(f"losses_{file}.json"):
            name = case["case"]
            if case.get("cls", "") == kind and f"{name}/loss" in data:
                pred = {**inputs, **data}
                parts = {
                    k: pred[f"{name}/{k}"] for k in ("pred", "label", "loss", "grad_of_mean") if f"{name}/{k}" in pred
                }
                found.append((case, parts, f"{file}-{name}"))
    return found


def test_normalized_focal_loss() -> None:
    """Equal but for a factor: official weights are also times pixels over pixels not ignored.

    With gamma 0 theirs count the ignored pixels in P, as 0 ** 0 is 1, which takes the factor off again.
    """
    seen = 0
    for case, parts, name in loss_cases("NormalizedFocalLossSigmoid"):
        params = case.get("params") or {}
        if "no_size_average" in name or "saturated" in name or not params.get("detach_delimeter", True):
            continue
        logits = parts["pred"].requires_grad_()
        loss = normalized_focal_loss(logits, parts["label"], params["gamma"], params["alpha"])
        valid = (parts["label"] >= 0).flatten(1).sum(dim=1)
        if params["gamma"]:
            loss = loss * parts["label"][0].numel() / valid.clamp(min=1)
        same(loss.detach(), parts["loss"], 2e-5)
        (grad,) = torch.autograd.grad(loss.mean(), logits)
        same(grad, parts["grad_of_mean"], 2e-5)
        seen += 1
    assert seen >= 4


def test_normalized_focal_loss_of_the_most_wrong_logits() -> None:
    """Official confidences are clipped at 1e-12 in float32, where the loss has no gradient; ours go on."""
    cases = [c for c in loss_cases("NormalizedFocalLossSigmoid") if "saturated" in c[2]]
    for case, parts, _ in cases:
        loss = normalized_focal_loss(
            parts["pred"].double(), parts["label"], case["params"]["gamma"], case["params"]["alpha"]
        )
        assert (loss >= parts["loss"] * 0.95).all()
        assert loss.isfinite().all()
    assert cases


def test_normalized_focal_softmax_loss() -> None:
    """Equal; with gamma 0 theirs count ignored pixels in P, as 0 ** 0 is 1."""
    seen = 0
    for case, parts, _ in loss_cases("NormalizedFocalLossSoftmax"):
        params = case.get("params") or {}
        if not params.get("detach_delimeter", True):
            continue
        logits = parts["pred"].requires_grad_()
        labels = parts["label"].squeeze(1) if parts["label"].dim() == 4 else parts["label"]
        loss = normalized_focal_softmax_loss(logits, labels, params.get("gamma", 1))
        if params.get("gamma", 1) == 0:
            loss = loss * (labels >= 0).flatten(1).float().mean(dim=1)
        same(loss.detach(), parts["loss"], 2e-5)
        (grad,) = torch.autograd.grad(loss.mean(), logits)
        same(grad, parts["grad_of_mean"], 2e-5)
        seen += 1
    assert seen >= 2


# ------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("version", ["pytorch", "mxnet"])
@pytest.mark.parametrize("case", ["adain_small", "adain_1"])
def test_adain(case: str, version: str) -> None:
    """[mx] is ours without eps; [pt] adds 1 to the shift, by mistake, and has an eps of 1e-5 too."""
    data, golden = numbers("blocks_pytorch.npz"), numbers(f"blocks_{version}.npz")
    if f"{case}/x" not in data:
        pytest.skip(f"{case} is not among the numbers in {FOLDERS[1]}")
    x, w = data[f"{case}/x"].double().requires_grad_(), data[f"{case}/w"].double().requires_grad_()
    adain = AdaIN(x.shape[1], w.shape[1], eps=1e-5 if version == "pytorch" else 0.0).double()
    adain.load_state_dict(
        {
            f"{ours}.{part}": fill(f"{case}.{theirs}.{part}", p.shape).double()
            for ours, theirs in (("scale", "affine_scale"), ("shift", "affine_bias"))
            for part, p in getattr(adain, ours).named_parameters()
        }
    )
    y = adain(x, w) + (1 if version == "pytorch" else 0)
    same(y.detach(), golden[f"{case}/y"], 1e-5)
    gx, gw = torch.autograd.grad(y, (x, w), data[f"{case}/gy"].double())
    same(gx, golden[f"{case}/gx"], 1e-5)
    same(gw, golden[f"{case}/gw"], 1e-5)


def test_adain_of_a_constant_map() -> None:
    """[mx] gives NaN; with the paper's form and an eps, the shift."""
    x = numbers("blocks_pytorch.npz")["adain_const/x"]
    assert numbers("blocks_mxnet.npz")["adain_const/y"].isnan().any()
    assert AdaIN(x.shape[1], 4)(x, torch.zeros(len(x), 4)).isfinite().all()


def test_relative_coordconv() -> None:
    """Ours are x, y, distance; official y, x, distance. Without the distance the paper's two maps are left."""
    data = numbers("blocks_pytorch.npz")
    cases = facts("blocks_pytorch.json")["coord"]
    for case in cases:
        stride = round(1 / case["spatial_scale"])
        points = torch.tensor(case["points"]).flip(1).double()
        for distance in (True, False):
            maps = relative_coordconv(tuple(case["size"]), stride, points, case["norm_radius"], distance)
            expected = data[f"{case['case']}_dist{int(distance)}/y"][:, : 3 if distance else 2]
            same(maps[:, [1, 0, 2][: maps.shape[1]]], expected, 1e-6)
    assert len(cases) >= 3


@pytest.mark.parametrize(("case", "stride"), [("eqf_0", 1), ("eqf_1", 4)])
def test_point_features(case: str, stride: int) -> None:
    """Equal on the map and up to a cell beyond its edge; further out, RoIAlign gives 0 and ours the edge."""
    data = numbers("blocks_pytorch.npz")
    features, points = data[f"{case}/f"], data[f"{case}/points"]
    image = torch.arange(len(points)).repeat_interleave(points.shape[1])
    found = point_features(features, image, points.flatten(0, 1).flip(1), stride)
    row, column = (points.flatten(0, 1) / stride).T
    near = (row > -1) & (row <= features.shape[2]) & (column > -1) & (column <= features.shape[3])
    same(found[near], data[f"{case}/ROIAlign"][near], 1e-5)
    assert near.sum() >= 8


@pytest.mark.parametrize(("case", "channels"), [("up_2_4_4", 4), ("up_2_4_2", 2)])
def test_upsampling_begins_as_the_official_one(case: str, channels: int) -> None:
    """Each map by itself, or two by two."""
    data = numbers("blocks_pytorch.npz")
    if f"{case}/x" not in data:
        pytest.skip(f"{case} is not among the numbers in {FOLDERS[1]}")
    block = UpBlock(4, channels, channels)
    same(block.upsample.weight.detach(), data[f"{case}/w"], 1e-7)
    same(block.upsample(data[f"{case}/x"]).detach(), data[f"{case}/y"], 1e-5)


def test_box_filter() -> None:
    data = numbers("sampling/misc.npz")
    for width in (2, 3, 5):
        same(blur(data["blur_in"], width), data[f"blur{width}"], 1e-6)


def test_adaptive_threshold() -> None:
    """The official sequence of thresholds, over batches of masks; one has no object, one pixels that are ignored."""
    data, steps = numbers("proposals_metrics_pytorch.npz"), facts("proposals_metrics_pytorch.json")["adaptive_iou"]
    adaptive = AdaptiveThreshold(start=0.4)
    for k, step in enumerate(steps):
        threshold = adaptive(data[f"aiou_{k:02}/logits"][:, 0].sigmoid(), data[f"aiou_{k:02}/gt"][:, 0])
        assert threshold.item() == pytest.approx(step["iou_thresh"], rel=0, abs=1e-9)
    assert len(steps) == 12


class GivenMasks(AdaptIS):
    """An AdaptIS whose masks are given, and whose proposal logits are the features at the points."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__(backbone_options={"width": 4, "depth": 1}, points=8, stage="proposals", soft_labels=True)
        self.given, self.proposals = masks, nn.Sequential()

    def logits(self, features: Tensor, image: Tensor, points: Tensor) -> Tensor:
        return self.given


@pytest.mark.parametrize("name", [f"proposals_loss_0{k}" for k in range(5)])
def test_soft_labels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds, labels, losses and gradients of the proposal branch with the official labels, from the same masks.

    Where a part of an object's surroundings is ignored, their mean probability inside subtracts it: an error of theirs
    that ours leave out (sample 0 of the last case).
    """
    data = numbers("proposals_metrics_pytorch.npz")
    (case,) = (c for c in facts("proposals_metrics_pytorch.json")["proposals"] if c["case"] == name)
    count = case["points"]
    model = GivenMasks(data[f"{name}/inst_logits"][:, 0])
    labels = []

    def keep(*arguments: Tensor) -> Tensor:
        labels.append(soft_proposal_labels(*arguments))
        return labels[0]

    monkeypatch.setattr(condinst_edu.adaptis, "soft_proposal_labels", keep)
    features = data[f"{name}/proposals"].reshape(-1, 1, 1, count).requires_grad_()  # (B, 1, 1, P)
    points = torch.stack([torch.arange(count), torch.zeros(count)], dim=1).repeat(case["batch"], 1)
    image = torch.arange(case["batch"]).repeat_interleave(count)
    loss = model.proposal_loss(features, Queries(points, image, data[f"{name}/gt"][:, 0]))
    assert model.label_threshold is not None
    assert model.label_threshold.value.item() == pytest.approx(case["iou_thresh_after"], rel=0, abs=1e-9)
    checked = slice(1 if "partially ignored" in case["note"] else 0, None)
    same(labels[0][checked], data[f"{name}/labels"][checked], 1e-5)
    (grad,) = torch.autograd.grad(loss, features)
    same(grad.flatten(1)[checked], data[f"{name}/grad"].view(-1, count)[checked], 1e-5)
    if not checked.start:
        same(loss.detach(), data[f"{name}/loss"].mean(), 1e-5)


# -------------------------------------------------------------------------------------------------------- toy network


RENAMES = [  # [pt] -> ours
    (r"^backbone\.image_bn", "backbone.norm"),
    (r"^backbone\.encoder\.(\d)\.1\.down_block\.(\d)\.conv_block", r"backbone.down.\1.\2"),
    (r"^backbone\.decoder\.(\d)\.upsampler\.0", r"backbone.up.\1.upsample"),
    (r"^backbone\.decoder\.(\d)\.conv3_(\d)\.conv_block", r"backbone.up.\1.blocks.\2"),
    (r"^backbone\.final_block\.down_block\.(\d)\.conv_block", r"backbone.final.\1"),
    (r"^adaptis_head\.controller\.controller", "head.controller"),
    (r"^adaptis_head\.block0\.0\.", "head.first."),
    (r"^adaptis_head\.block0\.2\.", "head.before.1."),
    (r"^adaptis_head\.adain\.affine_scale", "head.adain.scale"),
    (r"^adaptis_head\.adain\.affine_bias", "head.adain.shift"),
    (r"^adaptis_head\.block1\.3\.", "head.after.1."),
    (r"^adaptis_head\.block1\.", "head.after.0."),
]


def our_name(name: str) -> str:
    for pattern, ours in RENAMES:
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    branch, number, rest = re.fullmatch(r"(?:adaptis_head\.block0|(\w+)_head\.convhead)\.(\d+)\.(.*)", name).groups()  # type: ignore[union-attr]
    block, part = divmod(int(number), 3)
    if branch is None:
        return f"head.before.{block + 1}.{part}.{rest}"
    branch = "semantic" if branch == "segmentation" else branch
    last = 3 if branch == "semantic" else 2
    return f"{branch}.{block}.{rest}" if block == last else f"{branch}.{block}.{part}.{rest}"


class HeadOfMaps(InstanceHead):
    """[pt] runs the controller on the whole map and reads its output at the points."""

    def vectors(self, features: Tensor, image: Tensor, points: Tensor) -> Tensor:
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)
        maps = self.controller(flat).unflatten(0, (len(features), *features.shape[2:])).permute(0, 3, 1, 2)
        return point_features(maps, image, points, self.stride)


def toy_model(name: str) -> tuple[AdaptIS, dict[str, str]]:
    """Our model with the official synthetic weights, and the official name of each of our parameters.

    Ours has the paper's form. To be equal, it gets [pt]'s controller on the whole map, which only matters for points
    between pixels and for batch statistics, one block less in the proposal branch, and the 1 of AdaIN in its shift.
    """
    spec = facts("toy_model_pytorch.json")[name]
    width = spec["channel_width"]
    options = {"width": width, "max_width": spec["max_width"]}
    model = AdaptIS(backbone_options=options, branch_width=width, head={"distance": True})
    model.proposals = nn.Sequential(*(conv_relu_bn(width, width) for _ in range(2)), nn.Conv2d(width, 1, 1))
    model.head = HeadOfMaps(width, distance=True)
    names = {our_name(official): official for official, _ in spec["state_dict"]}
    own = model.state_dict()
    state = {}
    for official, shape in spec["state_dict"]:
        ours = our_name(official)
        x = fill(official, shape)
        if ours == "head.first.weight":
            x = x[:, [1, 0, *range(2, x.shape[1])]]
        if ours == "head.adain.shift.bias":
            x = x + 1
        state[ours] = x.reshape(own[ours].shape)
    model.load_state_dict(state)
    return model, names


@pytest.mark.parametrize("name", ["w8m64", "w8m512", "w32m512"])
def test_toy_network(name: str) -> None:
    """The whole network of [pt] in evaluation."""
    model, _ = toy_model(name)
    model.eval()
    data = numbers(f"toy_model_pytorch_{name}.npz")
    points = data["points"].flatten(0, 1).flip(1)
    image = torch.arange(len(data["points"])).repeat_interleave(data["points"].shape[1])
    with torch.no_grad():
        features = model.backbone(data["image"])
        same(features, data["eval_features"], 1e-4)
        same(model.head(features, image, points), data["eval_instances"][:, 0], 1e-4)
        same(model.semantic(features), data["eval_semantic"], 1e-4)
        proposals = model.proposals(features)
        same(proposals, data["eval_proposals_map"], 1e-4)
        same(point_features(proposals, image, points), data["eval_proposals"], 1e-4)


@pytest.mark.parametrize("name", ["w8m64", "w8m512"])
def test_toy_network_in_training(name: str) -> None:
    """Outputs, losses and gradients of [pt]."""
    model, names = toy_model(name)
    model.train()
    data, spec = numbers(f"toy_model_pytorch_{name}.npz"), facts("toy_model_pytorch.json")[name]["train_step"]
    logits, semantic = check_training_step(model, names, data, spec)
    same(logits, data["train_instances"][:, 0], 1e-4)
    same(semantic, data["train_semantic"], 1e-4)


def check_training_step(
    model: AdaptIS, names: dict[str, str], data: dict[str, Tensor], spec: dict[str, Any], rtol: float = 2e-3
) -> tuple[Tensor, Tensor]:
    """Losses, and the norm of each parameter's gradient, are the official ones; returns both outputs."""
    points = data["points"].flatten(0, 1).flip(1)
    image = torch.arange(len(data["points"])).repeat_interleave(data["points"].shape[1])
    features = model.backbone(data["image"])
    logits, semantic = model.head(features, image, points), model.semantic(features)
    masks = data["target_instances"][:, 0]
    share = (masks >= 0).flatten(1).float().mean(dim=1)
    mask_loss = (normalized_focal_loss(logits, masks, alpha=0.5) / share.clamp(min=1e-6)).mean()
    semantic_loss = normalized_focal_softmax_loss(semantic, data["target_semantic"]).mean()
    same(mask_loss.detach(), spec["instance_loss"], 1e-4)
    same(semantic_loss.detach(), spec["segmentation_loss"], 1e-4)
    (mask_loss + 0.75 * semantic_loss).backward()
    checked = 0
    for ours, parameter in model.named_parameters():
        expected = spec["grad_l2"].get(names[ours])
        if parameter.grad is not None and expected is not None:
            torch.testing.assert_close(float(parameter.grad.norm()), expected, rtol=rtol, atol=1e-5, msg=ours)
            checked += 1
    assert checked > 60
    return logits.detach(), semantic.detach()


MXNET_RENAMES = [  # [mx] -> ours
    (r"^feature_extractor\.image_bn", "backbone.norm"),
    (r"^feature_extractor\.d0\.(\d)", r"backbone.down.0.\1"),
    (r"^feature_extractor\.d([1-9])\.1\.(\d)", r"backbone.down.\1.\2"),
    (r"^feature_extractor\.u(\d)\.upsampler", r"backbone.up.\1.upsample"),
    (r"^feature_extractor\.u(\d)\.conv1", r"backbone.up.\1.mix.0"),
    (r"^feature_extractor\.u(\d)\.conv3_(\d)", r"backbone.up.\1.blocks.\2"),
    (r"^feature_extractor\.fe", "backbone.final"),
    (r"^adaptis_head\.controller_net\.layers", "head.controller"),
    (r"^adaptis_head\.block0", "head.before"),
    (r"^adaptis_head\.adain\.affine_scale", "head.adain.scale"),
    (r"^adaptis_head\.adain\.affine_bias", "head.adain.shift"),
    (r"^adaptis_head\.block1", "head.after"),
    (r"^segmentation_head\.layers", "semantic"),
    (r"^proposals_head\.layers", "proposals"),
]


def our_name_of_mxnet(name: str) -> str:
    """[mx] holds a ReLU in the convolution before it, so that pairs of layers are numbered, where ours are threes."""
    (ours,) = (re.sub(pattern, new, name) for pattern, new in MXNET_RENAMES if re.search(pattern, name))
    ours = ours.replace("gamma", "weight").replace("beta", "bias")
    if found := re.fullmatch(r"(backbone\.final|head\.\w+|semantic|proposals)\.(\d)\.(\w+)", ours):
        prefix, number, rest = found.groups()
        block, norm = divmod(int(number), 2)
        if prefix == "head.controller":
            return f"{prefix}.{3 * block + 2 * norm}.{rest}"
        if prefix == "head.before" and not block:
            return f"head.before.1.{rest}" if norm else f"head.first.{rest}"
        last = {"head.after": 1, "semantic": 3, "proposals": 2}.get(prefix)
        block += prefix == "head.before"
        return f"{prefix}.{block}.{rest}" if block == last else f"{prefix}.{block}.{2 * norm}.{rest}"
    if found := re.fullmatch(r"(backbone\.up\.)(\d)(\..*)", ours):
        return f"{found[1]}{3 - int(found[2])}{found[3]}"  # ours are numbered from below
    return ours


def mxnet_model(name: str) -> tuple[AdaptIS, dict[str, str]]:
    """Our model as the paper's own code has it, with its synthetic weights, and its name of each of our parameters.

    Upsampling is frozen, branches have 32 channels, the proposal branch two blocks, AdaIN no eps. To be equal, the
    controller runs on the whole map, and where ours puts what was upsampled before the features of the way down and x
    before y, the weights change places.
    """
    spec = facts("toy_model_mxnet.json")[name]
    width = spec["channel_width"]
    options = {"width": width, "max_width": spec["max_width"], "frozen_upsampling": True}
    model = AdaptIS(backbone_options=options, branch_width=32)
    model.proposals = nn.Sequential(conv_relu_bn(width, 32), conv_relu_bn(32, 32), nn.Conv2d(32, 1, 1))
    model.head = HeadOfMaps(width, distance=True)
    model.head.adain.eps = 0
    names = {our_name_of_mxnet(official): official for official, _ in spec["params"]}
    assert len(names) == len(spec["params"])
    own = model.state_dict()
    state = {}
    for official, shape in spec["params"]:
        ours = our_name_of_mxnet(official)
        x = fill(official, shape)
        if ours == "head.first.weight":
            x = x[:, [1, 0, *range(2, x.shape[1])]]
        if "conv3_0.0" in official:
            x = x.roll(x.shape[1] // 2, 1)
        state[ours] = x.reshape(own[ours].shape)
    missing = model.load_state_dict(state, strict=False)
    assert all("num_batches" in key for key in missing.missing_keys)
    assert not missing.unexpected_keys
    return model, names


@pytest.mark.parametrize("name", ["w8m64", "w8m512", "w32m512"])
def test_toy_network_of_mxnet(name: str) -> None:
    """The whole network of [mx] in evaluation."""
    model, _ = mxnet_model(name)
    model.eval()
    data, shared = numbers(f"toy_model_mxnet_{name}.npz"), numbers(f"toy_model_pytorch_{name}.npz")
    points = shared["points"].flatten(0, 1).flip(1)
    image = torch.arange(len(shared["points"])).repeat_interleave(shared["points"].shape[1])
    with torch.no_grad():
        features = model.backbone(shared["image"])
        same(features, data["eval_features"], 1e-4)
        same(model.head(features, image, points), data["eval_instances"][:, 0], 1e-4)
        same(model.semantic(features), data["eval_semantic"], 1e-4)
        same(point_features(model.proposals(features), image, points), data["eval_proposals"], 1e-4)


@pytest.mark.parametrize("name", ["w8m64", "w8m512"])
def test_toy_network_of_mxnet_in_training(name: str) -> None:
    """Losses and gradients of [mx]; what it freezes has none.

    Gradients are ill-conditioned here, with batch statistics of as few as 16 cells: an image that is changed by 1e-5
    moves single ones by a tenth in our own float64. [pt] has the kernels that we have, another library its own errors.
    """
    model, names = mxnet_model(name)
    model.train()
    data, spec = numbers(f"toy_model_pytorch_{name}.npz"), facts("toy_model_mxnet.json")[name]
    check_training_step(model, names, data, spec["train_step"], rtol=0.12)
    frozen = {names[ours] for ours, p in model.named_parameters() if ours.startswith("backbone") and p.grad is None}
    assert frozen == set(spec["frozen"])


# --------------------------------------------------------------------------------------------------- photographs' heads


def test_heads_for_photographs() -> None:
    """The Cityscapes heads of [mx] on a random map: both, and the enlarged instance logits, corners on corners."""
    spec, data = facts("cityscapes_head_mxnet.json"), numbers("cityscapes_head_mxnet.npz")
    x = torch.from_numpy(
        np.random.default_rng(zlib.crc32(b"city.x")).standard_normal((2, 256, 12, 16)).astype(np.float32)
    )
    head = InstanceHead(256, 4, 280.0, width=128, separable=True, distance=True).eval()
    head.adain.eps = 0
    semantic = dense_head(256, 19, 192, separable=True).eval()
    for module, prefix, renames in (
        (head, "city.", CITY_NAMES),
        (semantic, "citysem.", [(r"^layers\.2\.", "2."), (r"^layers\.(\d)\.body\.", r"\1.")]),
    ):
        own = module.state_dict()
        state: dict[str, Tensor] = {}
        for name, shape in spec["params_head" if module is head else "params_sem"]:
            ours = name
            for pattern, new in renames:
                ours = re.sub(pattern, new, ours)
            ours = ours.replace("gamma", "weight").replace("beta", "bias")
            state[ours] = fill(prefix + name, shape).reshape(own[ours].shape)
        if module is head:
            state["first.weight"] = state["first.weight"][:, [1, 0, *range(2, 259)]]
        missing = module.load_state_dict(state, strict=False)
        assert all("num_batches" in key for key in missing.missing_keys)
    points = data["points"].flatten(0, 1).flip(1)
    image = torch.arange(len(data["points"])).repeat_interleave(data["points"].shape[1])
    with torch.no_grad():
        logits = head(x, image, points)
        same_to_scale(logits, data["instances"][:, 0], 1e-3)
        same_to_scale(semantic(x), data["semantic"], 1e-3)
        enlarged = F.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=True)
        same_to_scale(enlarged, data["instances_up4"], 1e-3)


CITY_NAMES = [
    (r"^controller_net\.fc_net\.", "controller."),
    (r"^block0\.0\.", "first."),
    (r"^block0\.1\.", "before.1."),
    (r"^block0\.2\.body\.", "before.2."),
    (r"^block0\.3\.", "before.3."),
    (r"^adain\.affine_scale", "adain.scale"),
    (r"^adain\.affine_bias", "adain.shift"),
    (r"^block1\.(\d)\.body\.", r"after.\1."),
    (r"^block1\.3\.", "after.3."),
]


# ------------------------------------------------------------------------------------------------------------- greedy


def test_find_local_maxima() -> None:
    data = numbers("sampling/find_local_maxima.npz")
    names = {"prob_thresh": "threshold", "eps": "eps", "step_size": "step"}
    cases = facts("sampling/misc.json")["find_local_maxima"]
    for case in cases:
        name = case["case"]
        params = case["params"] or {"prob_thresh": 0.05, "eps": 0.001, "step_size": 0.025}  # the routine's own defaults
        points, basins = find_local_maxima(data[f"{name}/map"], **{names[k]: v for k, v in params.items()})
        same(points.flip(1), data[f"{name}/points"], 0)
        same(basins - 1, data[f"{name}/basins"], 0)
    assert len(cases) >= 4


class Predictor:
    """What the golden runs queried in place of a network: masks from the true ids, blurred by a box of 3 x 3."""

    def __init__(self, ids: Tensor, cut_radius: int | None, flip: bool, count: int | None = None) -> None:
        self.ids, self.cut, self.flip, self.count = ids, cut_radius, flip, count

    def __call__(self, points: Tensor) -> Tensor:
        return torch.stack([self.mask(*point.tolist()) for point in points])

    def mask(self, column: float, row: float) -> Tensor:
        found = predict(self.ids, row, column, self.count)
        if self.flip:  # the mirrored point is one pixel off
            mirrored = predict(self.ids.flip(1), row, self.ids.shape[1] - column).flip(1)
            found = (found + mirrored) * 0.5
        return found if self.cut is None else cut_around(found[None], torch.tensor([[column, row]]), self.cut)[0]


def predict(ids: Tensor, row: float, column: float, count: int | None = None) -> Tensor:
    height, width = ids.shape
    row, column = min(max(int(row), 0), height - 1), min(max(int(column), 0), width - 1)
    k, n = int(ids[row, column]), count or int(ids.max())
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = (y - row) ** 2 + (x - column) ** 2

    def box3(mask: Tensor) -> Tensor:
        return F.conv2d(mask[None, None].float(), torch.ones(1, 1, 3, 3), padding=1)[0, 0] / 9

    if k == 0:
        return 0.05 + 0.9 * box3(distance <= 9)
    rival = torch.where(distance <= 1600, 0.05 + 0.5 * box3(ids == 1 + (k * 37) % n), 0.05)
    return torch.maximum(0.05 + 0.9 * box3(ids == k), rival)


PARAMETERS = {
    "thresh1": "threshold",
    "thresh2": "overlap",
    "ithresh": "thing_threshold",
    "fl_prob": "maximum_threshold",
    "fl_eps": "eps",
    "fl_step": "step",
    "fl_blur": "width",
    "max_iters": "limit",
    "stuff_prob_mult": "background_weight",
    "min_things_prob": "least_probability",
}
PLAIN: tuple[str, ...] = ("v1_250_eval", "v1_250_eval_flip", "v1_250_dense_flip", "v2_250_dense2")
PLAIN += ("v2_100_default", "v2_100_default_flip", "crop_noblur", "crop_blur5", "crop_2things")


@pytest.mark.parametrize("name", PLAIN)
def test_greedy_sampling(name: str) -> None:
    """The plain cases (no crops, no masks of what to sample): the same points, in the same order, and the same map."""
    official_file(f"sampling/{name}.npz")
    (case,) = (c for c in facts("sampling/sampling.json") if c["case"] == name)
    golden, maps = numbers(f"sampling/{name}.npz"), numbers(f"sampling/{case['maps']}")
    ids = torch.from_numpy(np.array(Image.open(official_file(f"sampling/{case['gt']}"))).astype(np.int64))
    flip = case["call"]["use_flip"]
    scores = maps["proposals"]
    if flip:
        scores = (scores + (scores.flip(1) * 0.9 + 0.01).flip(1)) * 0.5
    params = {PARAMETERS[k]: v for k, v in (case["call"] | case["sampling_params"]).items() if k in PARAMETERS}
    draw = Predictor(ids, case["sampling_params"].get("cut_radius"), flip)
    found = aggregate_official(draw, scores, maps["things"], **params)
    same(torch.cat([step.points for step in found.steps]).flip(1), golden["queried_points"], 0)
    same(found.points.flip(1), golden["accepted_points"], 0)
    assert torch.equal(found.instances, golden["instances_mask"].long())


def test_cut_around() -> None:
    data = numbers("sampling/misc.npz")
    for radius, row, column in ((5, 3, 4), (6, 18, 28)):
        cut = cut_around(data["cut_in"][None], torch.tensor([[float(column), float(row)]]), radius)[0]
        same(cut, data[f"cut_{radius}_at_{row}_{column}"], 0)


# -------------------------------------------------------------------------------------------------------------- crops


def test_crop_offsets() -> None:
    cases = facts("sampling/misc.json")["get_offsets"]
    for case in cases:
        offsets, shared = crop_offsets(case["length"], case["crop"], case["min_overlap"])
        assert offsets == case["offsets"]
        assert len(offsets) == 1 or shared == int(case["overlap_ratio"] * case["crop"])
    assert len(cases) == 11


@pytest.mark.parametrize("name", ["v2_100_crops160", "v2_100_crops100x140"])
def test_crops(name: str) -> None:
    """The official crop mode: the same instances with the same mean probabilities; the first objects go astray."""
    official_file(f"sampling/{name}.npz")
    (case,) = (c for c in facts("sampling/sampling.json") if c["case"] == name)
    golden, maps = numbers(f"sampling/{name}.npz"), numbers(f"sampling/{case['maps']}")
    ids = torch.from_numpy(np.array(Image.open(official_file(f"sampling/{case['gt']}"))).astype(np.int64))
    call, params = case["call"], case["sampling_params"]
    crop = call["crop_size"] if isinstance(call["crop_size"], list) else [call["crop_size"]] * 2
    (rows, top), (columns, left) = (crop_offsets(256, side, call["min_overlap"]) for side in crop)
    options = {PARAMETERS[k]: v for k, v in (call | params).items() if k in PARAMETERS}
    crops = []
    for y in rows:
        for x in columns:
            part = (slice(y, y + crop[0]), slice(x, x + crop[1]))
            draw = Predictor(ids[part], None, False, int(ids.max()))
            found = aggregate_official(draw, maps["proposals"][part], maps["things"][(slice(None), *part)], **options)
            crops.append(Crop(x, y, found))
    assert sum(len(crop.found.steps) for crop in crops) == case["num_queries"]
    confidence, points = join_crops(crops, (256, 256), (top, left), first_is_one=True)
    same(confidence.mean(dim=(1, 2)), case["mask_means"][1:], 1e-6)
    assert torch.equal(compete(confidence, maps["things"]), golden["instances_mask"].long())
    confidence, points = join_crops(crops, (256, 256), (top, left))
    instances = compete(confidence, maps["things"])
    assert len(points) == len(confidence)
    whole = [k for k in ids.unique().tolist() if k and object_iou(instances, ids == k) > 0.5]
    official = [k for k in ids.unique().tolist() if k and object_iou(golden["instances_mask"].long(), ids == k) > 0.5]
    assert len(whole) >= len(official)
    assert all(object_iou(ids, instances == k) > 0.5 for k in range(1, len(points) + 1) if (instances == k).sum() > 60)


def object_iou(labels: Tensor, mask: Tensor) -> float:
    """The highest IoU that a label from 1 on has with a mask."""
    inside = labels[mask]
    if not len(inside) or not (label := int(inside.bincount()[1:].argmax()) + 1 if inside.any() else 0):
        return 0
    return float((labels == label)[mask].sum() / ((labels == label) | mask).sum())
