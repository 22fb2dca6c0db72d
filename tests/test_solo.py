"""SOLO's steps against loops written from their rules, the whole models, and numbers of the official code."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Record, check_gradients, empty_target, gradients, random_targets, same, seeded
from helpers import mask_boxes as boxes_of
from solo_golden import golden, golden_json, plain_input, plain_weight, unpack
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.coordinates import coordconv
from condinst_edu.engine.checkpoint import load_model
from condinst_edu.engine.evaluate import evaluate
from condinst_edu.engine.recipe import build_model, check_recipe
from condinst_edu.engine.train import open_split, train
from condinst_edu.layers.losses import dice_loss
from condinst_edu.papers import naive_slides as naive
from condinst_edu.recipes import RECIPES, get_recipe
from condinst_edu.solo import (
    SOLO,
    DecoupledHead,
    DecoupledSOLO,
    Outputs,
    SOLOHead,
    assign_cells,
    claimed_cells,
    exact_centers,
    grid_cells,
    mask_boxes,
    mask_targets,
    matrix_nms,
    points_nms,
    resize,
)

TINY: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_options": {"widths": (4, 8, 12, 16, 16)},
    "channels": 16,
    "levels": (2, 3, 5),
    "strides": (8, 8, 16),
    "grids": (9, 6, 4),
    "ranges": ((1, 40), (24, 90), (60, 400)),
    "head": {"channels": 16, "convs": 2},
}
SIZE = (117, 203)
SAMPLE = Path(__file__).parent.parent / "data" / "shapes"


def tiny_solo(model: type[SOLO] = SOLO, **options: Any) -> SOLO:
    torch.manual_seed(0)
    head = {**TINY["head"], **options.pop("head", {})}
    return model(3, **{**TINY, **options, "head": head})


def lively(model: SOLO) -> SOLO:
    """With weights that let an untrained model find dozens of objects."""
    generator = seeded(4)
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, 2.0 / math.sqrt(module.weight[0].numel()), generator=generator)
                if module.bias is not None:
                    module.bias.normal_(-0.5, 1, generator=generator)
    return model


MODELS = [(SOLO, {}), (DecoupledSOLO, {}), (DecoupledSOLO, {"head": {"light": True}})]


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("grid", [1, 5, 12, 36, 40])
@pytest.mark.parametrize("sigma", [0.2, 0.9])
def test_claimed_cells_by_loop(grid: int, sigma: float) -> None:
    size = (96, 160)
    target = random_targets(40, (90, 151), seeded(grid))
    centers = exact_centers(target["masks"])
    claimed = claimed_cells(centers, target["boxes"], size, grid, sigma)
    assert claimed.shape == (40, grid, grid)
    for center, box, mine in zip(centers.numpy(), target["boxes"].numpy(), claimed, strict=True):
        assert [tuple(c) for c in mine.nonzero().tolist()] == naive.solo_cells(center, box, size, grid, sigma)
        assert 1 <= mine.sum() <= 9


def test_borders_of_cells() -> None:
    """A centre exactly on a border: float32 decides, as in mmdetection; some come to lie in the cell before."""
    before = {40: {13, 21, 26, 31}, 36: {25}, 24: {5, 7, 10, 14, 17, 20, 23}, 12: {5, 7, 10}, 16: set()}
    for grid, expected in before.items():
        size = (grid * 32, grid * 64)
        for k in range(grid):
            j, i = grid_cells(torch.tensor([64.0 * k, 32.0 * k]), size, grid).tolist()
            assert i == j == (k - 1 if k in expected else k), (grid, k)


def test_exact_centers_by_loop() -> None:
    masks = torch.rand(5, 17, 23, generator=seeded(0)) < 0.3
    masks[3] = False
    masks[4] = False
    masks[4, 16, 22] = True
    centers = exact_centers(masks)
    for mask, center in zip(masks, centers, strict=True):
        pixels = mask.nonzero().double()
        if len(pixels):
            same(center, pixels.mean(dim=0).flip(0), 1e-6)
        else:
            assert center.isnan().all()
    assert exact_centers(masks[:0]).shape == (0, 2)
    big = torch.ones(1, 900, 1300, dtype=torch.bool)  # its sums are beyond what float32 can count
    assert exact_centers(big).tolist() == [[649.5, 449.5]]


def test_assign_cells_by_loop() -> None:
    """Ranges with both ends, later objects over earlier ones, empty masks left out."""
    size, grid, scales = (128, 224), 9, (16.0, 48.0)
    for seed in range(6):
        target = random_targets(25, (120, 220), seeded(seed))
        target["masks"][seed] = False
        target["boxes"][7] = torch.tensor([20.0, 30, 68, 78])  # at an end of the range
        centers = exact_centers(target["masks"])
        labels, matched = assign_cells(centers, target, size, grid, scales)
        middles = [c if mask.any() else None for c, mask in zip(centers.tolist(), target["masks"], strict=True)]
        owners = naive.solo_owners(middles, target["boxes"].tolist(), size, grid, scales)
        expected = {naive.solo_channel(i, j, grid): number for (i, j), number in owners.items()}
        assert labels.nonzero().flatten().tolist() == sorted(expected)
        assert len(expected) > 5
        for k, number in expected.items():
            assert (labels[k], matched[k]) == (target["labels"][number], number)


def test_no_object_no_cell() -> None:
    labels, matched = assign_cells(torch.zeros(0, 2), empty_target((40, 50)), (64, 64), 5, (1, 99))
    assert labels.tolist() == matched.tolist() == [0] * 25


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_mask_targets_by_loop(stride: int) -> None:
    """A cell is set where the mean of the four pixels in its middle is at least a half; the padding is empty."""
    masks = torch.rand(3, 37, 51, generator=seeded(stride)) < 0.5
    size = (64 // stride, 64 // stride)
    result = mask_targets(masks, stride, size)
    expected = torch.zeros(3, *size, dtype=torch.bool)
    for n in range(3):
        for i in range(size[0]):
            for j in range(size[1]):
                total = 0
                for y in (stride * i + stride // 2 - 1, stride * i + stride // 2):
                    for x in (stride * j + stride // 2 - 1, stride * j + stride // 2):
                        total += int(masks[n, y, x]) if y < 37 and x < 51 else 0
                expected[n, i, j] = total >= 2
    assert torch.equal(result, expected)
    assert mask_targets(masks[:0], stride, size).shape == (0, *size)


# The boxes of the four cases that are read from one scene are in other ranges.
SCENES = ["s0", "s1", "f0", "f0_light", "boundary_torch14", "coco142238", "coco439180"]


@pytest.mark.parametrize("scene", SCENES)
def test_official_targets(scene: str) -> None:
    """Classes, positive cells and their masks on every level; centres on borders as torch 1.4 divided."""
    numbers = golden("solo", "targets.npz", part=True)
    if f"{scene}/boxes" not in numbers:
        pytest.skip(f"{scene} is not in tests/data")
    case = next(case for case in golden_json("solo", "targets.json") if case["scene"] == scene)
    size, config = tuple(case["image"]), case["cfg"]
    target = {key: torch.from_numpy(numbers[f"{scene}/{key}"]) for key in ("boxes", "labels")}
    masks = unpack(numbers[f"{scene}/masks"], numbers[f"{scene}/masks_shape"])
    centers = exact_centers(masks)
    for level, (grid, scales, stride) in enumerate(
        zip(config["num_grids"], config["scale_ranges"], config["strides"], strict=True)
    ):
        if scene.startswith("boundary") and level == 4:
            continue  # the sums of large masks are rounded there, and the centre is off by one bit
        labels, matched = assign_cells(centers, target, size, grid, scales, config["sigma"])
        assert labels.view(grid, grid).tolist() == numbers[f"{scene}/L{level}/cate"].tolist()
        cells = labels.nonzero().flatten()
        assert sorted(numbers[f"{scene}/L{level}/pos_index"].tolist()) == cells.tolist()
        small = mask_targets(masks, stride // 2, tuple(case["featmap_sizes"][level]))[matched[cells]]
        order = np.argsort(numbers[f"{scene}/L{level}/pos_index"])
        expected = unpack(numbers[f"{scene}/L{level}/pos_masks"], numbers[f"{scene}/L{level}/pos_masks_shape"])
        assert torch.equal(small, expected[order])
        yx = torch.stack([cells // grid, cells % grid], dim=1)
        assert yx.tolist() == numbers[f"{scene}/L{level}/decoupled_yx"].tolist()


# ---------------------------------------------------------------------------------------------------------- primitives


def primitives() -> dict[str, np.ndarray]:
    return golden("solo", "primitives.npz")


def test_official_primitives() -> None:
    numbers = primitives()
    for i in range(2):
        centers = exact_centers(torch.from_numpy(numbers[f"com{i}/masks"]).bool())
        full = torch.from_numpy(numbers[f"com{i}/masks"].any(axis=(1, 2)))  # of an empty mask the official code takes 0
        same(centers[full], np.stack([numbers[f"com{i}/cx"], numbers[f"com{i}/cy"]], axis=1)[full.numpy()], 1e-5)
        same(points_nms(torch.from_numpy(numbers[f"points_nms{i}/in"])), numbers[f"points_nms{i}/out"], 0)
    for i in range(3):
        x = torch.from_numpy(numbers[f"dice{i}/x"]).requires_grad_()
        loss = dice_loss(x, torch.from_numpy(numbers[f"dice{i}/t"]), eps=0.002)
        same(loss.detach(), numbers[f"dice{i}/loss"], 1e-5)
        same(gradients(loss.sum(), [x])[0], numbers[f"dice{i}/grad"], 1e-5)
    for i in range(2):
        x = torch.from_numpy(numbers[f"focal{i}/pred"]).requires_grad_()
        target = F.one_hot(torch.from_numpy(numbers[f"focal{i}/target"]), x.shape[1] + 1)[:, 1:].float()
        loss = sigmoid_focal_loss(x, target, alpha=0.25, gamma=2, reduction="sum") / 7
        same(loss.detach(), numbers[f"focal{i}/loss_avg7"], 1e-5)
        same(gradients(loss, [x])[0], numbers[f"focal{i}/grad"], 1e-5)
    for i, stride in ((0, 4), (3, 16)):  # those whose sizes are multiples, as in padded images
        mask, small = (torch.from_numpy(numbers[f"imrescale{i}/{key}"]).bool() for key in ("in", "out"))
        assert torch.equal(mask_targets(mask[None], stride, (small.shape[0], small.shape[1]))[0], small)


@pytest.mark.parametrize("count", [1, 5, 12, 30])
def test_official_matrix_nms(count: int) -> None:
    """Exact copies, which are NaN under the official linear kernel, have score 0 here."""
    numbers = {key.split("/")[1]: value for key, value in primitives().items() if key.startswith(f"mnms{count}/")}
    masks, scores = unpack(numbers["masks"], numbers["shape"]), torch.from_numpy(numbers["scores"])
    labels = torch.from_numpy(numbers["labels"])
    for key in ("gaussian_2.0", "gaussian_0.5", "linear_2.0"):
        kernel, sigma = key.split("_")
        result = matrix_nms(masks, scores, labels, kernel, float(sigma))  # type: ignore[arg-type]
        expected = torch.from_numpy(numbers[key])
        copies = expected.isnan()
        same(result[~copies], expected[~copies], 1e-5)
        assert (result[copies] == 0).all()
        assert count != 30 or kernel != "linear" or copies.any()


# ------------------------------------------------------------------------------------------------------------- the NMS


def loop_matrix_nms(masks: Tensor, scores: Tensor, labels: Tensor, kernel: str, sigma: float) -> list[float]:
    """Matrix NMS one pair after the other, in Python's numbers."""

    def iou(a: int, b: int) -> float:
        return int((masks[a] & masks[b]).sum()) / int((masks[a] | masks[b]).sum())

    def f(x: float) -> float:
        return math.exp(-sigma * x * x) if kernel == "gaussian" else 1 - x

    result = []
    for j in range(len(masks)):
        decay = 1.0
        for i in range(j):
            if labels[i] != labels[j]:
                continue
            worst = max([iou(h, i) for h in range(i) if labels[h] == labels[i]], default=0.0)
            if f(worst) > 0:
                decay = min(decay, f(iou(i, j)) / f(worst))
        result.append(float(scores[j]) * decay)
    return result


def nms_case(seed: int, count: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    target = random_targets(count, (40, 56), seeded(seed), num_classes=2)
    masks = target["masks"]
    masks[4], masks[9] = masks[1], masks[1]  # copies
    scores = torch.rand(count, generator=seeded(seed), dtype=torch.float64).sort(descending=True).values
    return masks, scores, target["labels"]


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("seed", range(4))
def test_matrix_nms_by_loop(kernel: Any, seed: int) -> None:
    masks, scores, labels = nms_case(seed)
    labels[[1, 4, 9]] = 1
    result = matrix_nms(masks, scores, labels, kernel, 1.5)
    same(result, loop_matrix_nms(masks, scores, labels, kernel, 1.5), 1e-12)
    assert torch.isfinite(result).all()
    assert (result <= scores).all()
    if kernel == "linear":
        assert result[4] == result[9] == 0
    assert matrix_nms(masks[:0], scores[:0], labels[:0], kernel).shape == (0,)


def test_points_nms_by_loop() -> None:
    scores = (torch.rand(2, 3, 7, 5, generator=seeded(0)) * 4).round() / 4  # with ties
    result = points_nms(scores)
    for index in np.ndindex(2, 3, 7, 5):
        b, k, i, j = index
        patch = scores[b, k, max(0, i - 1) : i + 1, max(0, j - 1) : j + 1]
        assert result[index] == (scores[index] if scores[index] == patch.max() else 0)


def test_mask_boxes_by_loop() -> None:
    masks = random_targets(6, (31, 45), seeded(1))["masks"]
    same(mask_boxes(masks), boxes_of(masks), 0)
    assert mask_boxes(torch.zeros(2, 5, 7, dtype=torch.bool)).tolist() == [[0.0] * 4] * 2
    assert mask_boxes(masks[:0]).shape == (0, 4)
    assert mask_boxes(torch.ones(1, 5, 7, dtype=torch.bool)).tolist() == [[0, 0, 7, 5]]


# ------------------------------------------------------------------------------------------------------------ the heads


def test_coordconv_by_loop() -> None:
    same(coordconv((4, 6)), naive.coordconv((4, 6)), 1e-6)


OURS = {
    "ins_convs": "mask_tower",
    "ins_convs_x": "column_tower",
    "ins_convs_y": "row_tower",
    "cate_convs": "class_tower",
}
MAPS = {"solo_ins_list": "cell_maps", "dsolo_ins_list_x": "column_maps", "dsolo_ins_list_y": "row_maps"}


def our_key(name: str) -> str:
    """Our name of a tensor of the official heads."""
    if match := re.match(r"(ins_convs|ins_convs_x|ins_convs_y|cate_convs)\.(\d)\.(conv|gn)\.(\w+)$", name):
        return f"{OURS[match[1]]}.{3 * int(match[2]) + (match[3] == 'gn')}.{match[4]}"
    first, _, rest = name.partition(".")
    return f"{MAPS.get(first, 'class_logits')}.{rest}"


HEADS = {"solo": (SOLO, {}), "decoupled": (DecoupledSOLO, {}), "decoupled_light": (DecoupledSOLO, {"light": True})}


@pytest.mark.parametrize("name", HEADS)
def test_official_heads(name: str) -> None:
    """Forward in training and evaluation, both losses and all gradients, from the same weights and pyramid."""
    facts, numbers = golden_json("solo", "heads.json")[name], golden("solo", f"head_{name}.npz", part=True)
    kind, options = HEADS[name]
    small = golden_json("solo", "targets.json")[0]["cfg"]
    head = {"channels": 32, "convs": 2, **options}
    form = {"strides": small["strides"], "grids": small["num_grids"], "ranges": small["scale_ranges"], "head": head}
    model = kind(4, "tiny", {"widths": (4, 8, 8, 8, 8)}, channels=16, **form)
    state = {our_key(key): plain_weight(key, tuple(shape)) for key, shape in facts["state_dict"]}
    model.head.load_state_dict(state)
    strides = (4, 8, 16, 32, 64)
    features = [plain_input(f"feat{i}", (2, 16, 256 // s, 320 // s)).requires_grad_() for i, s in enumerate(strides)]
    pyramid = dict(enumerate(features, start=2))
    outputs = model.head(model.split(pyramid, (256, 320)))
    keys = ["ins"] if name == "solo" else ["ins_x", "ins_y"]
    steps = (3, 4, 4) if name == "solo" else (2, 3, 3)
    compared = 0
    for level in range(5):
        expected = {key: numbers.get(f"{key}/L{level}") for key in ("train/cate", "eval/cate")}
        if expected["train/cate"] is not None:
            same(outputs.logits[level].detach(), expected["train/cate"], 1e-4)
        same(points_nms(outputs.logits[level].detach().sigmoid()).permute(0, 2, 3, 1), expected["eval/cate"], 1e-4)
        for key, maps in zip(keys, outputs.maps[level], strict=True):
            drawn = {"train": maps.detach(), "eval": resize(maps.detach().sigmoid(), (64, 80))}
            for mode, x in drawn.items():
                if f"{mode}/{key}/L{level}_sub" in numbers:
                    part = x[:, :: steps[0], :: steps[1], :: steps[2]]
                    same(part, numbers[f"{mode}/{key}/L{level}_sub"], 1e-4)
                    compared += 1
    assert compared in (0, 10 * len(keys))

    scenes = golden("solo", "targets.npz", part=True)
    targets = [
        {
            "boxes": torch.from_numpy(scenes[f"{scene}/boxes"]),
            "labels": torch.from_numpy(scenes[f"{scene}/labels"]).clamp(max=4),
            "masks": unpack(scenes[f"{scene}/masks"], scenes[f"{scene}/masks_shape"]),
        }
        for scene in ("s0", "s1")
    ]
    losses = model.losses(outputs, targets, (256, 320))
    assert losses["loss_mask"].item() == pytest.approx(facts["loss"]["loss_ins"], abs=1e-4)
    assert losses["loss_class"].item() == pytest.approx(facts["loss"]["loss_cate"], abs=1e-4)
    parameters = dict(model.head.named_parameters())
    names = [key for key, _ in facts["state_dict"]]
    found = gradients(sum(losses.values()), [*(parameters[our_key(key)] for key in names), *features])  # type: ignore[arg-type]
    for key, gradient in zip(names, found, strict=False):
        assert gradient.norm().item() == pytest.approx(facts["grad_l2"][key], rel=1e-3, abs=1e-6), key
    for gradient, norm in zip(found[len(names) :], facts["feat_grad_l2"], strict=True):
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("name", [f"{kind}{i}" for kind in ("solo", "decoupled") for i in range(4)])
def test_official_inference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From sigmoid maps, behind the NMS among neighbours, to masks at the photograph's size, under four settings."""
    monkeypatch.setattr("condinst_edu.solo.points_nms", lambda scores: scores)
    case = next(case for case in golden_json("solo", "inference.json") if case["case"] == name)
    numbers, config = golden("solo", "inference.npz"), case["cfg"]
    model = (SOLO if name[0] == "s" else DecoupledSOLO)(
        4,
        "tiny",
        channels=8,
        grids=case["num_grids"],
        strides=case["strides"],
        head={"channels": 8, "convs": 1},
        score_threshold=config["score_thr"],
        candidates=config["nms_pre"],
        kernel=config["kernel"],
        nms_sigma=config["sigma"],
        min_score=config["update_thr"],
        detections=config["max_per_img"],
    )
    outputs = Outputs([], [])
    for level in range(5):
        cate = torch.from_numpy(numbers[f"{name}/cate/L{level}"]).double().permute(0, 3, 1, 2)
        outputs.logits.append(cate.logit())
        maps = [f"{name}/{key}/L{level}" for key in ("seg", "segx", "segy") if f"{name}/{key}/L{level}" in numbers]
        outputs.maps.append(tuple(torch.from_numpy(numbers[key]).double().logit() for key in maps))
    found, soft = model.detect(outputs, 0)
    size = tuple(case["img_shape"][:2])
    masks = model.to_output_size(soft, (128, 160), size, tuple(case["ori_shape"][:2]))
    if case["result"] == "None":
        assert masks.shape == (0, 123, 151)
        assert len(found.scores) == 0
        return
    assert found.labels.tolist() == (numbers[f"{name}/out_labels"] + 1).tolist()
    same(found.scores, numbers[f"{name}/out_scores"], 1e-5)
    expected = unpack(numbers[f"{name}/out_masks"], numbers[f"{name}/out_masks_shape"])
    assert masks.shape == expected.shape
    assert ((masks ^ expected).sum(dim=(1, 2)) <= 2).all()


def test_a_cell_has_its_channel() -> None:
    """k = i S + j; decoupled: the product of row i's and column j's probabilities."""
    grid, shape = 5, (2, 7, 11)
    maps = torch.randn(2, grid * grid, *shape[1:], generator=seeded(0), dtype=torch.float64)
    columns, rows = (torch.randn(2, grid, *shape[1:], generator=seeded(s), dtype=torch.float64) for s in (1, 2))
    head, decoupled = (kind(4, 3, [grid], channels=4, convs=1) for kind in (SOLOHead, DecoupledHead))
    image, index = torch.tensor([0, 1, 1]), torch.tensor([7, 0, 23])
    ours, products = (
        head.cell_masks((maps,), image, index),
        decoupled.cell_masks((columns, rows), image, index),
    )
    for n in range(3):
        b, (i, j) = int(image[n]), divmod(int(index[n]), grid)
        same(ours[n], maps[b, naive.solo_channel(i, j, grid)].sigmoid(), 1e-12)
        expected = naive.decoupled(columns[b].sigmoid(), rows[b].sigmoid(), int(index[n]), grid)
        same(products[n], expected, 1e-12)


@pytest.mark.parametrize("coordinates", [True, False])
def test_only_coordconv_knows_where(coordinates: bool) -> None:
    """Features that repeat from cell to cell give maps that do too, unless the coordinates are there."""
    torch.manual_seed(0)
    head = SOLOHead(4, 3, [3], channels=8, convs=1, coordinates=coordinates).double()
    with torch.no_grad():
        next(head.mask_tower.parameters()).normal_()
    (maps,) = head.draw(torch.ones(1, 4, 12, 16, dtype=torch.float64), 0)
    inner = maps[:, :, 8:-8, 8:-8]
    assert bool((inner - inner.mean(dim=(2, 3), keepdim=True)).abs().max() < 1e-12) != coordinates


# ------------------------------------------------------------------------------------------------------------- training


def loop_losses(model: SOLO, outputs: Outputs, targets: list[dict[str, Tensor]], size: tuple[int, int]) -> list[Tensor]:
    """Both losses, cell by cell."""
    cells: list[tuple[Tensor, int, Tensor | None, Tensor | None]] = []
    for level, (grid, scales) in enumerate(zip(model.head.grids, model.ranges, strict=True)):
        maps = [each.sigmoid() for each in outputs.maps[level]]
        for b, target in enumerate(targets):
            centers = [mask.nonzero().double().mean(dim=0).flip(0).float().tolist() for mask in target["masks"]]
            owners = naive.solo_owners(centers, target["boxes"].tolist(), size, grid, scales, model.sigma)
            for i, j in np.ndindex(grid, grid):
                k, classes = naive.solo_channel(i, j, grid), outputs.logits[level][b, :, i, j].sigmoid()
                if (i, j) not in owners:
                    cells.append((classes, 0, None, None))
                    continue
                owner = owners[i, j]
                p = maps[0][b, k] if len(maps) == 1 else naive.decoupled(maps[0][b], maps[1][b], k, grid)
                (t,) = mask_targets(target["masks"][owner][None], model.strides[level] // 2, (p.shape[0], p.shape[1]))
                cells.append((classes, int(target["labels"][owner]), p, t.double()))
    return list(naive.solo_losses(cells))


@pytest.mark.parametrize(("kind", "options"), MODELS)
def test_losses_by_loop(kind: type[SOLO], options: dict[str, Any]) -> None:
    """Values and gradients of both losses in float64."""
    model = tiny_solo(kind, **options).double()
    targets = [random_targets(n, (64, 90), seeded(n)) for n in (6, 1)] + [empty_target((64, 90))]
    size = (64, 96)
    features = [
        torch.randn(3, 16, size[0] // s, size[1] // s, generator=seeded(s), dtype=torch.float64) for s in model.strides
    ]
    outputs = model.head(features)
    losses = model.losses(outputs, targets, size)
    expected = loop_losses(model, outputs, targets, size)
    inputs = [*outputs.logits, *(m for maps in outputs.maps for m in maps)]
    for ours, theirs in zip((losses["loss_class"], losses["loss_mask"]), expected, strict=True):
        same(ours.detach(), theirs.detach(), 1e-10)
        for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
            same(a, b, 1e-10)


@pytest.mark.parametrize(("kind", "options"), MODELS)
@pytest.mark.parametrize("counts", [(5, 3), (4, 0), (0, 0)])
def test_every_parameter_learns(kind: type[SOLO], options: dict[str, Any], counts: tuple[int, int]) -> None:
    """Images without an object train too: gradients are finite, the mask loss is 0 where there is none at all."""
    model = tiny_solo(kind, **options).train()
    images = [torch.rand(3, *SIZE, generator=seeded(n)) for n in (0, 1)]
    targets = [random_targets(n, SIZE, seeded(n)) if n else empty_target(SIZE) for n in counts]
    losses = model(images, targets)
    assert losses.keys() == {"loss_class", "loss_mask"}
    assert (losses["loss_mask"] == 0) == (sum(counts) == 0)
    check_gradients(lambda: sum(model(images, targets).values()), model, all_nonzero=False)


def test_copies_of_an_object_train() -> None:
    """Two objects with one mask: the later has the cells, and nothing is NaN."""
    model = tiny_solo().train()
    target = random_targets(2, SIZE, seeded(0))
    double = {key: torch.cat([x, x]) for key, x in target.items()}
    image = torch.rand(3, *SIZE, generator=seeded(0))
    ours, expected = model([image], [double]), model([image], [target])
    for key in expected:
        same(ours[key].detach(), expected[key].detach(), 1e-6)


def test_sampled_masks_are_refused() -> None:
    target = random_targets(2, SIZE, seeded(0))
    target["masks"], target["centers"] = target["masks"][:, 2::4, 2::4], torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"full-size masks must have the image's size \(117, 203\)"):
        tiny_solo().train()([torch.rand(3, *SIZE)], [target])
    with pytest.raises(ValueError, match="training needs one target per image"):
        tiny_solo().train()([torch.rand(3, *SIZE)])


def test_it_learns_one_image_by_heart() -> None:
    """Two objects of one form and colour, which only their places tell apart, and a third."""
    torch.manual_seed(0)
    model = tiny_solo(score_threshold=0.3).train()
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 8:28, 6:30] = masks[1, 34:54, 60:84] = masks[2, 30:60, 10:40] = True
    target = {"boxes": boxes_of(masks), "labels": torch.tensor([1, 1, 2]), "masks": masks}
    image = 0.2 + 0.6 * torch.stack([masks[0] | masks[1], masks[2], masks[0]])
    image[2] = 0.2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        losses = model([image], [target])
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval()([image])
    for mask, label in zip(masks, target["labels"], strict=True):
        overlap = (found["masks"] & mask).sum(dim=(1, 2)) / (found["masks"] | mask).sum(dim=(1, 2))
        assert overlap[found["labels"] == label].max() > 0.7


# ------------------------------------------------------------------------------------------------------------ inference


def loop_detect(model: SOLO, outputs: Outputs, size: tuple[int, int]) -> list[tuple[float, int, int, int, Tensor]]:
    """(score, level, cell, label, soft mask) before NMS, by the best score, of image 0, cell by cell."""
    found = []
    for level, grid in enumerate(model.head.grids):
        scores = outputs.logits[level][0].sigmoid()
        maps = [resize(m[:1].sigmoid(), size)[0] for m in outputs.maps[level]]
        for i in range(grid):
            for j in range(grid):
                for k in range(len(scores)):
                    patch = scores[k, max(0, i - 1) : i + 1, max(0, j - 1) : j + 1]
                    if scores[k, i, j] <= model.score_threshold or scores[k, i, j] < patch.max():
                        continue
                    soft = maps[0][i * grid + j] if len(maps) == 1 else maps[1][i] * maps[0][j]
                    if (soft > 0.5).sum() > model.strides[level]:
                        quality = soft[soft > 0.5].mean()
                        found.append((float(scores[k, i, j] * quality), level, i * grid + j, k + 1, soft))
    return sorted(found, key=lambda entry: -entry[0])[: model.candidates]


@pytest.mark.parametrize(("kind", "options"), MODELS)
@pytest.mark.parametrize("nms", ["matrix", "mask"])
def test_detect_by_loop(kind: type[SOLO], options: dict[str, Any], nms: str) -> None:
    """Every cell, class and pair of masks in turn, with NMS of both kinds."""
    model = lively(tiny_solo(kind, **options, nms=nms, candidates=40, detections=12, min_score=0.2)).double().eval()
    features = [torch.randn(2, 16, 64 // s, 96 // s, generator=seeded(s), dtype=torch.float64) for s in model.strides]
    with torch.no_grad():
        outputs = model.head(features)
        cells, soft = model.detect(outputs, 0)
    candidates = loop_detect(model, outputs, (16, 24))
    assert len(candidates) == 40
    masks = torch.stack([entry[4] > 0.5 for entry in candidates])
    scores = torch.tensor([entry[0] for entry in candidates], dtype=torch.float64)
    labels = torch.tensor([entry[3] for entry in candidates])
    kept: list[tuple[float, int]] = []
    if nms == "matrix":
        kept = [(s, n) for n, s in enumerate(loop_matrix_nms(masks, scores, labels, "gaussian", 2.0))]
    else:
        for n in range(len(masks)):
            rivals = [m for _, m in kept if labels[m] == labels[n]]
            iou = [((masks[m] & masks[n]).sum() / (masks[m] | masks[n]).sum()).item() for m in rivals]
            if all(x <= 0.5 for x in iou):
                kept.append((float(scores[n]), n))
    expected = [(s, candidates[n]) for s, n in sorted(kept, key=lambda pair: -pair[0]) if s >= 0.2][:12]
    assert len(expected) == len(cells.scores) > 3
    for n, (score, (_, level, index, label, mask)) in enumerate(expected):
        assert cells.scores[n].item() == pytest.approx(score, abs=1e-9)
        assert (cells.level[n], cells.k[n], cells.labels[n]) == (level, index, label)
        same(soft[n], mask, 1e-9)


@pytest.mark.parametrize(("kind", "options"), MODELS)
@torch.no_grad()
def test_results(kind: type[SOLO], options: dict[str, Any]) -> None:
    """torchvision's form; an image in a batch gives what it gives alone; other output sizes scale."""
    model = lively(tiny_solo(kind, **options)).double().eval()
    images = [
        torch.rand(3, *size, generator=seeded(n), dtype=torch.float64) for n, size in enumerate([SIZE, (128, 224)])
    ]
    results = model(images)
    for image, result in zip(images, results, strict=True):
        count = len(result["scores"])
        assert count > 5
        assert result["masks"].shape == (count, *image.shape[1:])
        assert (result["masks"].dtype, result["labels"].dtype) == (torch.bool, torch.int64)
        assert (result["scores"].diff() <= 0).all()
        assert 1 <= result["labels"].min() <= result["labels"].max() <= 3
        same(result["boxes"], mask_boxes(result["masks"]), 0)
        (alone,) = model([image])
        for key in result:
            assert (result[key] != alone[key]).sum() <= 2 if key == "masks" else True
        same(alone["scores"], result["scores"], 1e-9)
    (large,) = model(images[:1], output_sizes=[(234, 406)])
    assert large["masks"].shape[1:] == (234, 406)
    shares = [result["masks"].float().mean(dim=(1, 2)) for result in (results[0], large)]
    torch.testing.assert_close(*shares, rtol=0, atol=0.02)


@torch.no_grad()
def test_nothing_found() -> None:
    (result,) = tiny_solo(score_threshold=0.99).eval()([torch.rand(3, *SIZE)], output_sizes=[(50, 60)])
    assert (result["masks"].shape, result["masks"].dtype) == ((0, 50, 60), torch.bool)
    assert (result["boxes"].shape, len(result["labels"]), len(result["scores"])) == ((0, 4), 0, 0)


@torch.no_grad()
def test_copies_give_no_nan() -> None:
    """Every cell has the same mask: one of a class is left under the linear kernel."""
    model = tiny_solo(kernel="linear", score_threshold=0.2).eval()
    outputs = Outputs(
        [torch.rand(1, 3, s, s, generator=seeded(s)) for s in model.head.grids],
        [(torch.full((1, s * s, 16, 24), -3.0),) for s in model.head.grids],
    )
    for maps in outputs.maps:
        maps[0][:, :, 3:12, 4:15] = 3
    cells, soft = model.detect(outputs, 0)
    assert torch.isfinite(cells.scores).all()
    assert sorted(cells.labels.tolist()) == [1, 2, 3]
    assert torch.isfinite(soft).all()


def test_mixed_precision() -> None:
    """Half-precision maps: scores, masks and losses are float32."""
    model = lively(tiny_solo())
    image, target = torch.rand(3, *SIZE, generator=seeded(0)), random_targets(4, SIZE, seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([image], [target])
        with torch.no_grad():
            (result,) = model.eval()([image])
    assert {loss.dtype for loss in losses.values()} == {result["scores"].dtype} == {torch.float32}


def test_arguments() -> None:
    with pytest.raises(ValueError, match="equally many"):
        tiny_solo(grids=(3, 4))
    with pytest.raises(ValueError, match=r"strides must be multiples of 4, for masks at half of them: \(8, 8, 6\)"):
        tiny_solo(strides=(8, 8, 6))
    with pytest.raises(ValueError, match="nms must be 'matrix' or 'mask', not 'box'"):
        tiny_solo(nms="box")
    with pytest.raises(ValueError, match=r"levels must be among \[2, 3, 4, 5, 6\], not \(1, 3, 5\)"):
        tiny_solo(levels=(1, 3, 5))
    assert isinstance(build_model("decoupled-solo", 2, TINY), DecoupledSOLO)


def test_full_size_model_is_the_papers() -> None:
    """Five levels with 3872 cells; S * S maps a level, or twice S."""
    with torch.device("meta"):
        plain, decoupled = SOLO(), DecoupledSOLO()
    assert sum(grid**2 for grid in plain.head.grids) == 3872
    assert [len(p) for p in plain.head.cell_maps.parameters() if p.dim() == 4] == [1600, 1296, 576, 256, 144]
    assert isinstance(decoupled.head, DecoupledHead)
    assert [len(p) for p in decoupled.head.row_maps.parameters() if p.dim() == 4] == [40, 36, 24, 16, 12]
    assert sum(p.numel() for p in plain.parameters()) > 36e6


def test_no_loop_over_cells() -> None:
    """The number of operations of inference does not grow with the grids."""
    counts = []
    for grids in ((4, 3, 2), (12, 10, 8)):
        model = lively(tiny_solo(grids=grids)).eval()
        with torch.no_grad(), Record() as record:
            (result,) = model([torch.rand(3, *SIZE, generator=seeded(0))])
        assert len(result["scores"])
        counts.append(sum(record.counts.values()))
    assert counts[1] <= counts[0] + 60  # masks are resized 16 at a time


# -------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", [name for name in RECIPES if "solo" in name])
def test_recipes(name: str) -> None:
    """Each builds its model, of the size it is called by."""
    recipe = get_recipe(name)
    check_recipe(recipe)
    args = {**recipe.model_args, "backbone_options": {**recipe.model_args["backbone_options"]}}
    args["backbone_options"].pop("weights", None)
    with torch.device("meta"):
        model = build_model(recipe.model, 5, args)
    assert isinstance(model, SOLO)
    assert isinstance(model, DecoupledSOLO) == ("decoupled" in name)
    assert getattr(model.head, "light", False) == ("light" in name)
    if name.startswith("coco"):
        epochs = 12 if name.endswith("1x") else 36
        assert recipe.iterations == pytest.approx(epochs * 117_266 / 16, rel=1e-3)
        assert sum(p.numel() for p in model.backbone.parameters()) > (4e7 if "r101" in name else 2e7)


def test_a_recipe_trains(tmp_path: Path) -> None:
    """From the files of a data set to a file that loads, evaluates and predicts, by the engine as it is."""
    changes: dict[str, Any] = {"data": SAMPLE, "cache": False, "iterations": 2, "batch_size": 2}
    recipe = dataclasses.replace(get_recipe("shapes-decoupled-solo"), **changes)
    train(recipe, tmp_path, show_progress=False)
    trained = load_model(tmp_path / "model.safetensors")
    assert isinstance(trained.model, DecoupledSOLO)
    scores = evaluate(trained.model, open_split(recipe, "val"), progress=False)
    assert set(scores) == {"box", "mask"}
