"""CondInst's own steps against loops written from the paper, the whole model, and numbers of the official code."""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    check_gradients,
    empty_target,
    enliven,
    gradients,
    mask_boxes,
    official,
    official_json,
    official_outputs,
    random_targets,
    same,
    same_to_scale,
    see_tower,
    seeded,
    step_operations,
    tiny_condinst,
)
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from condinst_edu.condinst import (
    BottomBranch,
    CondInst,
    SemanticHead,
    mask_nms,
    sample_locations,
    sampled_masks,
    semantic_loss,
    semantic_map,
    semantic_targets,
)
from condinst_edu.coordinates import mass_centers
from condinst_edu.fcos import Assignment, Outputs, Points, make_points, to_output_size
from condinst_edu.layers import aligned_upsample, resize_masks
from condinst_edu.layers.images import make_batch
from condinst_edu.mask_head import DynamicMaskHead
from condinst_edu.papers import naive_condinst as naive
from condinst_edu.papers import naive_fcos

# ----------------------------------------------------------------------------------------------------- bottom branch


@pytest.mark.parametrize(("num_levels", "convs"), [(1, 2), (2, 0), (3, 4)])
def test_bottom_branch_by_steps(num_levels: int, convs: int) -> None:
    """Refine each level, bring it to the finest by aligned upsampling, add, refine, reduce."""
    torch.manual_seed(0)
    branch = BottomBranch(6, num_levels, 8, 5, convs).double().eval()
    pyramid = [torch.randn(2, 6, 16 >> i, 24 >> i, dtype=torch.float64) for i in range(4)]
    x = torch.zeros(2, 8, 16, 24, dtype=torch.float64)
    for i in range(num_levels):
        x = x + aligned_upsample(branch.refine[i](pyramid[i]), 2**i)
    for i in range(convs):
        x = branch.tower[i](x)
    last = branch.tower[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    expected = torch.einsum("oc,bchw->bohw", last.weight[:, :, 0, 0], x) + last.bias[:, None, None]
    result = branch(pyramid)
    assert result.shape == (2, 5, 16, 24)
    same(result, expected, 1e-10)


def test_default_bottom_branch_is_the_papers() -> None:
    """P3, P4 and P5, four 3x3 convolutions of 128 channels, then 8 channels."""
    branch = BottomBranch()
    shapes = [tuple(p.shape) for p in branch.parameters() if p.dim() == 4]
    assert shapes == [(128, 256, 3, 3)] * 3 + [(128, 128, 3, 3)] * 4 + [(8, 128, 1, 1)]


def test_semantic_head_starts_with_background() -> None:
    head = SemanticHead(8, 5)
    logits = head(torch.randn(2, 8, 6, 9))
    assert logits.shape == (2, 5, 6, 9)
    same(head[-1].bias, torch.full((5,), -log(99)), 1e-6)


# ----------------------------------------------------------------------------------------------------------- sampling


def sampling_case(seed: int, share: float = 0.3) -> tuple[Outputs, Assignment]:
    generator = seeded(seed)
    labels = torch.randint(1, 5, (3, 40), generator=generator) * (torch.rand(3, 40, generator=generator) < share)
    labels[1] = 0  # an image without positives
    logits = torch.randn(3, 40, 4, generator=generator, dtype=torch.float64)
    center = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(3, 40, 4)
    return Outputs(logits, zeros, center, zeros), Assignment(labels, zeros, labels)


@pytest.mark.parametrize("limit", [1, 5, 39, 64])
def test_sample_locations_by_score(limit: int) -> None:
    """The best by class probability of the object's own class times centre-ness."""
    outputs, assignment = sampling_case(0)
    index, positive = sample_locations(outputs, assignment, limit, "score")
    assert index.shape == positive.shape == (3, min(limit, 40))
    for b in range(3):
        scores = [0.0] * 40
        for at, label in enumerate(assignment.labels[b].tolist()):
            if label:
                score = outputs.logits[b, at, label - 1].sigmoid() * outputs.centerness[b, at].sigmoid()
                scores[at] = score.item()
        expected = naive.top_64([bool(label) for label in assignment.labels[b]], scores, limit)
        assert index[b][positive[b]].tolist() == expected
        assert not positive[1].any()


@pytest.mark.parametrize("limit", [3, 20, 64])
def test_sample_locations_at_random(limit: int) -> None:
    """Distinct positives; all of them where they are few enough, and otherwise each with the same probability."""
    outputs, assignment = sampling_case(1)
    torch.manual_seed(0)
    counts = torch.zeros(3, 40)
    for _ in range(400):
        index, positive = sample_locations(outputs, assignment, limit, "random")
        for b in range(3):
            chosen = index[b][positive[b]].tolist()
            everything = torch.nonzero(assignment.labels[b]).flatten().tolist()
            assert len(set(chosen)) == len(chosen) == min(limit, len(everything))
            assert set(chosen) <= set(everything)
            counts[b, chosen] += 1
    for b in (0, 2):
        frequency = counts[b][assignment.labels[b] > 0] / 400
        share = min(1, limit / len(frequency))
        assert (frequency - share).abs().max() < 0.1


# ------------------------------------------------------------------------------------------------------ mask targets


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 3])
@pytest.mark.parametrize("size", [(40, 56), (37, 51)])
def test_sampled_masks_by_loop(stride: int, size: tuple[int, int]) -> None:
    targets = [random_targets(n, size, seeded(n)) for n in (3, 0, 5)]
    targets[1] = empty_target((20, 30))
    grid = (-(-40 // stride), -(-64 // stride))
    result = sampled_masks(targets, stride, grid)
    assert result.dtype == torch.bool
    assert result.shape == (3, 5, *grid)
    nothing = torch.zeros(grid, dtype=torch.bool)
    for b, target in enumerate(targets):
        for m in range(5):
            expected = naive.target_mask(target["masks"][m], stride, grid) if m < len(target["masks"]) else nothing
            assert torch.equal(result[b, m], expected)


def test_sampled_masks_that_already_are() -> None:
    """A target with `centers` has its masks on the grid; beside it there may be one with full-size masks."""
    targets = [random_targets(n, (37, 51), seeded(n)) for n in (3, 4)]
    expected = sampled_masks(targets, 4, (10, 16))
    sampled = {**targets[0], "masks": targets[0]["masks"][:, 2::4, 2::4], "centers": torch.zeros(3, 2)}
    assert torch.equal(sampled_masks([sampled, targets[1]], 4, (10, 16)), expected)
    assert torch.equal(sampled_masks([{**t, "masks": t["masks"].byte()} for t in targets], 4, (10, 16)), expected)
    assert expected.any()


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_semantic_targets_by_loop(count: int, size: tuple[int, int]) -> None:
    target = random_targets(count, size, seeded(count), 9) if count else empty_target(size)
    if count > 2:  # one covers all, one a single pixel, which lies on a cell
        target["masks"][0], target["masks"][1] = True, False
        target["masks"][1, 12, 20] = True
        target["masks"][3] = target["masks"][2].roll(3, 1)  # about the same area
    result = semantic_targets([target], 8, (8, 12))[0]
    expected = naive.semantic_labels(target["masks"], target["labels"].tolist(), 8)
    for i in range(8):
        for j in range(12):
            inside = i < len(expected) and j < len(expected[0])
            assert int(result[i, j]) in (expected[i][j] if inside else {0})
    if count > 2:
        assert result[1, 2] == target["labels"][1]


def test_semantic_targets_may_be_given() -> None:
    size = (61, 83)
    full = [random_targets(4, size, seeded(i)) for i in range(2)]
    sampled = {
        **full[0],
        "masks": full[0]["masks"][:, 2::4, 2::4],
        "centers": mass_centers(full[0]["masks"]),
        "semantic": semantic_map(full[0]["masks"], full[0]["labels"], 8),
    }
    expected = semantic_targets(full, 8, (8, 12))
    assert torch.equal(semantic_targets([sampled, full[1]], 8, (8, 12)), expected)
    assert expected.any()
    del sampled["semantic"]
    with pytest.raises(ValueError, match="needs full-size masks, or a 'semantic' map"):
        semantic_targets([sampled, full[1]], 8, (8, 12))


def test_semantic_loss_by_loop() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    for labels in (torch.randint(0, 4, (2, 4, 5), generator=seeded(1)), torch.zeros(2, 4, 5, dtype=torch.int64)):
        expected = naive.semantic_loss(logits, labels)
        result = semantic_loss(logits, labels)
        same(result, expected, 1e-11)
        same(gradients(result, [logits])[0], gradients(expected, [logits])[0], 1e-11)


# ---------------------------------------------------------------------------------------------------------- mask loss


def naive_mask_scores(features: Tensor, theta: Tensor, xy: Tensor, unit: float, stride: int, factor: int) -> Tensor:
    """Mask scores of one instance: the mask head, upsampling, sigmoid."""
    return naive.upsampling(naive.mask_head(features, theta, xy.tolist(), unit, stride), factor).sigmoid()


def naive_mask_loss(
    model: CondInst,
    points: Points,
    outputs: Outputs,
    assignment: Assignment,
    features: Tensor,
    targets: Sequence[dict[str, Tensor]],
) -> Tensor:
    """Eq. 2 over the sampled locations, one after another, with full-size target masks."""
    logits, masks = [], []
    for b, target in enumerate(targets):
        labels = assignment.labels[b].tolist()
        best = [outputs.logits[b, at, label - 1].sigmoid().item() if label else 0 for at, label in enumerate(labels)]
        scores = [p * c for p, c in zip(best, outputs.centerness[b].sigmoid().tolist(), strict=True)]
        for at in naive.top_64([bool(label) for label in labels], scores, model.mask_limit):
            unit = 8.0 * model.fcos.strides[int(points.level[at])]
            theta, xy = outputs.tower[b, at], points.xy[at].tolist()
            logits.append(naive.mask_head(features[b], theta, xy, unit, model.stride))
            masks.append(target["masks"][int(assignment.matched[b, at])])
    return naive.eq_2(logits, masks, model.stride, model.factor)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("limit", [4, 64])
def test_mask_loss_by_loop(factor: Any, limit: int) -> None:
    """Value, and gradients for features and theta; one image has few objects, one none, one many."""
    model = tiny_condinst(factor=factor, mask_limit=limit, ranges=(16, 24))
    see_tower(model.fcos.head)  # outputs.tower is theta
    model.double()
    sizes = [(64, 90), (64, 96), (50, 96)]
    targets = [random_targets(2, sizes[0], seeded(1)), empty_target(sizes[1]), random_targets(9, sizes[2], seeded(2))]
    points = make_points([torch.zeros(1, 1, 64 // s, 96 // s) for s in (8, 16, 32)], (8, 16, 32), model.fcos.ranges)
    generator = seeded(3)
    count = len(points.xy)
    zeros = torch.zeros(3, count, 4, dtype=torch.float64)
    outputs = Outputs(
        torch.randn(3, count, 3, generator=generator, dtype=torch.float64),
        zeros,
        torch.randn(3, count, generator=generator, dtype=torch.float64),
        0.3 * torch.randn(3, count, 169, generator=generator, dtype=torch.float64),
    )
    features = torch.randn(3, 8, 8, 12, generator=generator, dtype=torch.float64)
    learned = [outputs.tower.requires_grad_(), features.requires_grad_()]
    assignment = model.fcos.assign(points, targets)
    positives = (assignment.labels > 0).sum(dim=1)
    assert positives[1] == 0
    assert positives[2] > 4
    assert points.level[torch.nonzero(assignment.labels)[:, 1]].unique().tolist() == [0, 1, 2]
    result = model.mask_loss(points, outputs, assignment, features, targets)
    expected = naive_mask_loss(model, points, outputs, assignment, features, targets)
    same(result, expected, 1e-10)
    for mine, other in zip(gradients(result, learned), gradients(expected, learned), strict=True):
        same(mine, other, 1e-10)
    assert gradients(result, learned)[1][2].abs().max() > 0


def test_losses_are_equation_1() -> None:
    """The sum of what the model returns is L_fcos + L_mask, from its own outputs."""
    model = tiny_condinst(ranges=(16, 24)).double()
    images = [torch.rand(3, 64, 96, generator=seeded(i), dtype=torch.float64) for i in range(2)]
    targets = [random_targets(5, (64, 96), seeded(7)), empty_target((64, 96))]
    batch = make_batch(images, model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    features = model.bottom(pyramid)
    losses = model.losses(pyramid, points, outputs, features, targets)
    assignment = model.fcos.assign(points, targets)
    fcos = naive_fcos.fcos_losses(
        outputs.logits.flatten(0, 1),
        outputs.distances.flatten(0, 1),
        outputs.centerness.flatten(),
        assignment.labels.flatten().tolist(),
        assignment.distances.flatten(0, 1),
        smooth=1.0,
    )
    mask = model.mask_loss(points, outputs, assignment, features, targets)  # by a loop in test_mask_loss_by_loop
    assert mask > 0
    same(sum(losses.values()), naive.eq_1(fcos, mask), 1e-9)


def test_mask_loss_without_positives() -> None:
    """0, with a gradient of 0 for features and theta."""
    model = tiny_condinst()
    see_tower(model.fcos.head)
    points = make_points([torch.zeros(1, 1, 64 // s, 96 // s) for s in (8, 16, 32)], (8, 16, 32), model.fcos.ranges)
    zeros = torch.zeros(2, len(points.xy), 4)
    theta = torch.randn(2, len(points.xy), 169, requires_grad=True)
    features = torch.randn(2, 8, 8, 12, requires_grad=True)
    outputs = Outputs(zeros[..., :3], zeros, zeros[..., 0], theta)
    targets = [empty_target((64, 96))] * 2
    loss = model.mask_loss(points, outputs, model.fcos.assign(points, targets), features, targets)
    assert loss == 0
    loss.backward()
    for x in (theta, features):
        assert x.grad is not None
        assert not x.grad.any()


# ---------------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_mask_nms_by_loop(classes: int, threshold: float) -> None:
    target = random_targets(60, (24, 40), seeded(classes), classes)
    masks = target["masks"]
    masks[7], masks[8] = False, False  # empty masks overlap with nothing, not even with each other
    masks[9] = True
    masks[10] = masks[11] = masks[12]
    scores = torch.rand(60, generator=seeded(4), dtype=torch.float64)
    kept = mask_nms(masks, scores, target["labels"], threshold).tolist()
    assert kept == naive.mask_nms(masks, scores.tolist(), target["labels"].tolist(), threshold)
    assert len(kept) < 60
    assert {7, 8} <= set(kept)


def test_mask_nms_is_greedy() -> None:
    """What has been removed removes nothing: of a chain, the first and the third stay."""
    masks = torch.zeros(3, 1, 20, dtype=torch.bool)
    masks[0, 0, :10], masks[1, 0, 3:13], masks[2, 0, 6:16] = True, True, True
    labels = torch.ones(3, dtype=torch.int64)
    assert mask_nms(masks, torch.tensor([0.9, 0.8, 0.7]), labels, 0.5).tolist() == [0, 2]
    assert mask_nms(masks, torch.tensor([0.7, 0.9, 0.8]), labels, 0.5).tolist() == [1]
    assert mask_nms(masks, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 1]), 0.5).tolist() == [0, 1, 2]
    assert mask_nms(masks[:0], torch.zeros(0), labels[:0], 0.5).tolist() == []


def detector(**options: Any) -> CondInst:
    torch.manual_seed(0)
    model = tiny_condinst(**options)
    enliven(model, seeded(3))
    return model.eval()


def images_of(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = seeded(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def check_results(results: list[dict[str, Tensor]], sizes: Sequence[tuple[int, int]]) -> None:
    """torchvision's format but for bool masks of the output's size; boxes within the image and not empty."""
    assert len(results) == len(sizes)
    for result, (height, width) in zip(results, sizes, strict=True):
        boxes, scores, labels, masks = (result[name] for name in ("boxes", "scores", "labels", "masks"))
        count = len(scores)
        assert (boxes.shape, labels.shape, masks.shape) == ((count, 4), (count,), (count, height, width))
        assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert masks.dtype == torch.bool
        assert (scores.diff() <= 0).all()
        assert ((labels >= 1) & (labels <= 3)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factor": 1},
        {"factor": 4, "nms": "mask"},
        {"mask_head": {"coordinates": "absolute"}},
        {"mask_head": {"coordinates": "none", "depth": 2}},
        {"mask_head": {"use_features": False}, "head": {"shared_towers": True}},
    ],
)
@torch.no_grad()
def test_results_are_torchvisions(options: dict[str, Any]) -> None:
    model = detector(**options)
    sizes = [(117, 203), (96, 128), (33, 61)]
    results = model(images_of(*sizes))
    check_results(results, sizes)
    assert all(len(result["scores"]) > 3 for result in results)
    assert all(0 < result["masks"].float().mean() < 1 for result in results)


def all_thetas(model: CondInst, pyramid: list[Tensor]) -> Tensor:
    """The controller at every location of the head's levels: (B, L, P)."""
    head = model.fcos.head
    assert head.top is not None
    maps = pyramid[-len(model.fcos.strides) :]
    return torch.cat([head.top(head.box_tower(x)).flatten(2).mT for x in maps], dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 2},
        {"factor": 1, "scale": 3.0},
        {"factor": 4, "detections": 7},
        {"levels": (2, 3, 4, 5), "head_from": 3, "factor": 1},  # masks on P2, instances from P3 on
    ],
)
@torch.no_grad()
def test_masks_are_the_papers(options: dict[str, Any]) -> None:
    """Masks of the network's detections: the loop's scores, upsampled to the input's pixels, resized, above 0.5."""
    model = detector(**options).double()
    images = [image.double() for image in images_of((117, 203))]
    result = model(images, output_sizes=[(90, 301)])[0]
    batch = make_batch(images, model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    features = model.bottom(pyramid)[0]
    found = model.fcos.detect(points, outputs, 0)
    found = found.pick(to_output_size(found.boxes, (117, 203), (90, 301))[1])
    assert 3 < len(result["masks"]) == len(found.scores) <= options.get("detections", 100)
    thetas = all_thetas(model, pyramid)[0]
    for at, mask in zip(found.location.tolist(), result["masks"], strict=True):
        unit = options.get("scale", 8.0) * model.fcos.strides[int(points.level[at])]
        scores = naive_mask_scores(features, thetas[at], points.xy[at], unit, model.stride, model.factor)
        rows, columns = (
            naive.spread(n, model.mask_stride)[:size] for n, size in zip(scores.shape, (117, 203), strict=True)
        )
        scores = F.interpolate((rows @ scores @ columns.T)[None, None], size=(90, 301), mode="bilinear")[0, 0]
        ties = (scores - 0.5).abs() < 1e-4
        assert ties.float().mean() < 0.01
        assert torch.equal(mask[~ties], (scores > 0.5)[~ties])


@torch.no_grad()
def test_mask_nms_replaces_box_nms() -> None:
    """By the loops: candidates, their masks at the mask stride, greedy suppression among them, the best."""
    model = detector(nms="mask", mask_candidates=60, detections=12).double()
    images = [image.double() for image in images_of((96, 128))]
    batch = make_batch(images, model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    features = model.bottom(pyramid)
    candidates = model.fcos.propose(points, outputs, 0)
    assert len(candidates.scores) > 60
    candidates = candidates.pick(candidates.scores.argsort(descending=True)[:60])
    thetas = all_thetas(model, pyramid)[0]
    scores = [
        naive_mask_scores(features[0], thetas[at], points.xy[at], 8.0 * points.stride[at].item(), 8, 2)
        for at in candidates.location.tolist()
    ]
    masks = torch.stack(scores) > 0.5
    kept = naive.mask_nms(masks, candidates.scores.tolist(), candidates.labels.tolist(), 0.6)[:12]
    found = model.detect(points, outputs, features, 0)
    same(found.scores, candidates.scores[kept], 1e-12)
    same(found.boxes, candidates.boxes[kept], 1e-12)
    result = model(images)[0]
    assert set(result["scores"].tolist()) <= set(found.scores.tolist())


@pytest.mark.parametrize("options", [{}, {"nms": "mask"}])
@torch.no_grad()
def test_batched_equals_single(options: dict[str, Any]) -> None:
    model = detector(**options).double()
    images = [image.double() for image in images_of((117, 203), (117, 203))]
    single = [model([image])[0] for image in images]
    for together, alone in zip(model(images), single, strict=True):
        assert together.keys() == alone.keys() == {"boxes", "labels", "scores", "masks"}
        for name in ("boxes", "labels", "scores"):
            same(together[name], alone[name], 1e-9)
        assert together["masks"].shape == alone["masks"].shape
        assert (together["masks"] != alone["masks"]).float().mean() < 1e-5
    assert single[0]["scores"].shape != single[1]["scores"].shape or not torch.equal(*(s["scores"] for s in single))


@torch.no_grad()
def test_output_sizes() -> None:
    model = detector()
    sizes = [(117, 203), (96, 128)]
    own, scaled = model(images_of(*sizes)), model(images_of(*sizes), output_sizes=[(234, 101), (96, 128)])
    check_results(scaled, [(234, 101), (96, 128)])
    same(own[0]["boxes"] * torch.tensor([101 / 203, 2, 101 / 203, 2]), scaled[0]["boxes"], 1e-4)
    again = F.interpolate(own[0]["masks"][:, None].float(), size=(234, 101), mode="bilinear")[:, 0] > 0.5
    assert (again != scaled[0]["masks"]).float().mean() < 0.01
    for name, value in own[1].items():
        assert torch.equal(value, scaled[1][name])


@torch.no_grad()
def test_nothing_is_found_in_nothing() -> None:
    model = detector(score_threshold=1.0)
    for nms in ("box", "mask"):
        model.nms = nms
        sizes = [(117, 203), (64, 64)]
        results = model(images_of(*sizes))
        check_results(results, sizes)
        assert all(len(result["scores"]) == 0 for result in results)


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"semantic": True},
        {"factor": 1},
        {"factor": 4, "sampling": "random"},
        {"mask_limit": 2},
        {"mask_limit": 5000, "sampling": "random"},
        {"head": {"shared_towers": True}},
        {"head": {"norm": "bn", "tower_convs": 2}},
        {"center": "box", "radius": 0},
        {"bottom": {"num_levels": 1}},
        {"bottom": {"norm": "gn", "out_channels": 3}, "mask_head": {"width": 5, "depth": 4}},
        {"mask_head": {"coordinates": "absolute"}},
        {"mask_head": {"coordinates": "none"}},
        {"mask_head": {"depth": 1}},
        {"levels": (2, 3, 4, 5), "ranges": (16, 32, 64), "factor": 1},
        {"levels": (2, 3, 4, 5), "head_from": 3, "factor": 1, "bottom": {"num_levels": 4}, "semantic": True},
    ],
)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = tiny_condinst(**options).train()
    sizes = [(128, 160), (117, 140)]
    targets = [random_targets(n, size, seeded(n)) for n, size in zip((5, 3), sizes, strict=True)]
    # theta's own bias of the last layer moves every logit, so one step from the start reaches all that feeds theta
    check_gradients(lambda: sum(model(images_of(*sizes), targets).values()), model)


@pytest.mark.parametrize("counts", [(0, 0), (4, 0), (0, 2)])
@pytest.mark.parametrize("semantic", [False, True])
def test_trains_on_images_without_objects(counts: tuple[int, int], semantic: bool) -> None:
    """Finite losses and a gradient for every parameter, if only of 0; then a step, and finite losses again."""
    torch.manual_seed(0)
    model = tiny_condinst(semantic=semantic).train()
    size = (96, 128)
    targets = [random_targets(n, size, seeded(n)) if n else empty_target(size) for n in counts]
    losses = model(images_of(size, size), targets)
    names = ["loss_class", "loss_box", "loss_centerness", "loss_mask", *(["loss_semantic"] if semantic else [])]
    assert list(losses) == names
    if not any(counts):
        assert losses["loss_box"] == losses["loss_centerness"] == losses["loss_mask"] == 0
    check_gradients(lambda: sum(model(images_of(size, size), targets).values()), model, all_nonzero=any(counts))
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert all(torch.isfinite(loss) for loss in model(images_of(size, size), targets).values())


def test_trains_on_special_objects() -> None:
    """A pixel, a line, everything, a ring, a box without area, an empty mask: finite losses and gradients."""
    torch.manual_seed(0)
    model = tiny_condinst(semantic=True, radius=2.5).train()
    height, width = 96, 128
    masks = torch.zeros(6, height, width, dtype=torch.bool)
    masks[0, 20, 36] = True
    masks[1, 60] = True
    masks[2] = True
    masks[3, 30:70, 50:110] = True
    masks[3, 36:64, 56:104] = False
    masks[4, 12, 12] = True
    boxes = [*mask_boxes(masks[:4]).tolist(), [12.0] * 4, [40.0, 50.0, 60.0, 80.0]]
    target = {"boxes": torch.tensor(boxes), "labels": torch.tensor([1, 2, 3, 1, 2, 3]), "masks": masks}
    x, y = mass_centers(masks)[3].tolist()
    assert not masks[3, round(y), round(x)]
    check_gradients(lambda: sum(model(images_of((height, width)), [target]).values()), model)


def test_losses_under_autocast() -> None:
    """In bfloat16 the losses are float32 and near those of float32."""
    torch.manual_seed(0)
    model = tiny_condinst(semantic=True).train()
    size = (96, 128)
    images, targets = images_of(size, size), [random_targets(4, size, seeded(i)) for i in range(2)]
    expected = model(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_inference_with_gradients_enabled() -> None:
    """Forgetting torch.no_grad costs memory and changes nothing."""
    model = detector()
    images = images_of((96, 128))
    with torch.no_grad():
        expected = model(images)[0]
    result = model(images)[0]
    for name in ("labels", "masks"):
        assert torch.equal(result[name], expected[name])
    same(result["boxes"].detach(), expected["boxes"], 1e-5)


def test_bottom_branch_has_a_gradient_even_if_unused() -> None:
    """Table 3's coordinates-only head does not read the bottom branch, whose parameters keep a gradient, of 0."""
    torch.manual_seed(0)
    model = tiny_condinst(mask_head={"use_features": False}).train()
    size = (96, 128)
    targets = [random_targets(3, size, seeded(0))]
    check_gradients(lambda: sum(model(images_of(size), targets).values()), model, all_nonzero=False)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("semantic", [False, True])
def test_sampled_targets_give_the_same_losses(factor: Any, semantic: bool) -> None:
    """Full-size masks, or the same at the mask stride with their centres (and the semantic map): no difference."""
    torch.manual_seed(0)
    model = tiny_condinst(factor=factor, semantic=semantic).train()
    sizes = [(117, 140), (128, 131)]
    full = [random_targets(n, size, seeded(n), 3) for n, size in zip((5, 2), sizes, strict=True)]
    s = model.mask_stride
    sampled = [
        {
            **target,
            "masks": target["masks"][:, s // 2 :: s, s // 2 :: s],
            "centers": mass_centers(target["masks"]),
            "semantic": semantic_map(target["masks"], target["labels"], model.stride),
        }
        for target in full
    ]
    images = images_of(*sizes)
    ours, expected = model(images, sampled), model(images, full)
    assert expected["loss_mask"] > 0
    for name, loss in expected.items():
        assert torch.equal(ours[name], loss)


def test_random_sampling_follows_the_seed() -> None:
    torch.manual_seed(0)
    model = tiny_condinst(sampling="random", mask_limit=2).train()
    images, targets = images_of((96, 128)), [random_targets(6, (96, 128), seeded(0))]
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(images, targets)["loss_mask"].item())
    assert losses[0] == losses[1] != losses[2]


def test_a_few_steps_lower_every_loss() -> None:
    torch.manual_seed(0)
    model = tiny_condinst(semantic=True).train()
    images, targets = images_of((96, 128)), [random_targets(4, (96, 128), seeded(5))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        losses = model(images, targets)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name in ("loss_class", "loss_box", "loss_mask", "loss_semantic"):
        assert history[-1][name] < 0.7 * history[0][name], name


def test_no_python_loop_over_objects_or_locations() -> None:
    """A training step runs the same operations, as often, for 2 objects an image and for 20, small images and large."""
    torch.manual_seed(0)
    for options in ({"semantic": True}, {"sampling": "random", "mask_limit": 16}):
        model = tiny_condinst(**options).train()

        def step(count: int, size: tuple[int, int], model: CondInst = model) -> Any:
            targets = [random_targets(count, size, seeded(i)) for i in range(2)]
            return step_operations(model, images_of(size, size), targets)

        few = step(2, (96, 128))
        assert sum(few.values()) > 100
        assert step(20, (96, 128)) == few
        assert step(2, (160, 224)) == few


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: None, "one target per image: 2 images, 0 targets"),
        (lambda t: t[:1], "one target per image: 2 images, 1 targets"),
        (lambda t: [t[0], {k: v for k, v in t[1].items() if k != "masks"}], "target 1 has no masks"),
        (lambda t: [t[0], {}], "target 1 has no boxes and no labels and no masks"),
        (lambda t: [{**t[0], "masks": t[0]["masks"][:1]}, t[1]], "target 0: boxes must be"),
    ],
)
def test_refuses_targets(change: Any, message: str) -> None:
    size = (64, 64)
    targets = [random_targets(2, size, seeded(i)) for i in range(2)]
    with pytest.raises(ValueError, match=message):
        tiny_condinst().train()(images_of(size, size), change(targets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 3}, "factor must be 1, 2 or 4"),
        ({"factor": 8}, "factor must be 1, 2 or 4"),
        ({"sampling": "best"}, "sampling must be 'score' or 'random', not 'best'"),
        ({"nms": "soft"}, "nms must be 'box' or 'mask', not 'soft'"),
        ({"center": "corner"}, "center must be"),
        ({"mask_head": {"coordinates": "polar"}}, "coordinates must be"),
        ({"bottom": {"norm": "layer"}}, "norm must be"),
        ({"bottom": {"num_levels": 4}}, "the bottom branch takes 4 levels"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_condinst(**options)


def test_refuses_images() -> None:
    with pytest.raises(ValueError, match="images must be float tensors"):
        tiny_condinst().eval()([torch.zeros(3, 64, 64, dtype=torch.uint8)])


def test_defaults_are_the_papers() -> None:
    """169 parameters from the controller, masks at a quarter of the image's size, 64 locations, 8 channels."""
    model = CondInst(80, backbone="tiny", channels=32)
    assert model.mask_head.num_parameters == 169
    assert model.fcos.head.top is not None
    assert model.fcos.head.top.out_channels == 169
    assert (model.mask_stride, model.mask_limit, model.sampling, model.nms) == (4, 64, "score", "box")
    assert (model.bottom.out_channels, len(model.bottom.refine)) == (8, 3)
    assert model.scales.tolist() == [64, 128, 256, 512, 1024]
    assert (model.fcos.center, model.fcos.radius, model.fcos.threshold_product) == ("mass", 1.5, True)
    assert (model.fcos.score_threshold, model.fcos.nms_threshold, model.fcos.detections) == (0.05, 0.6, 100)


# ------------------------------------------------------------------------------------------------------- golden data


def flip_coordinates(theta: Tensor) -> Tensor:
    """Official coordinates are location - pixel: the first layer's weights on x and y change sign."""
    theta = theta.clone()
    theta[..., :80].unflatten(-1, (8, 10))[..., :2] *= -1
    return theta


class Given(nn.Module):
    """Gives the same, whatever it gets."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Any) -> Any:
        return self.value


def test_inference_against_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a real network's raw outputs and features to the same boxes, classes, scores and masks."""
    numbers = official("infer_CondInst_MS_R_50_1x_synthA.npz")
    model = CondInst(80, backbone="tiny", channels=32).eval()
    points, outputs = official_outputs(numbers, model.fcos.strides, model.fcos.ranges)
    see_tower(model.fcos.head)
    outputs = outputs._replace(tower=flip_coordinates(outputs.tower))
    monkeypatch.setattr(model.fcos, "run", lambda batch: ([], points, outputs))
    features = torch.from_numpy(numbers["mask_feats"])
    model.bottom = Given(features)  # type: ignore[assignment]
    with torch.no_grad():
        result = model([torch.zeros(3, 256, 320)])[0]
        found = model.fcos.detect(points, outputs, 0)
        logits = model.mask_logits(points, outputs, features, 0, found.location)
    same(result["boxes"], numbers["im0_boxes"], 1e-3)
    same(result["scores"], numbers["im0_scores"], 1e-5)
    same(result["labels"] - 1, numbers["im0_classes"])
    assert len(result["masks"]) == 34

    same_to_scale(logits[:20], torch.from_numpy(numbers["mask_logits_s8"]), 1e-4)
    same(aligned_upsample(logits, 2).sigmoid()[:20], numbers["mask_scores_s4"], 1e-3)
    whole = aligned_upsample(aligned_upsample(logits, 2).sigmoid(), 4)
    same(whole[:2], numbers["im0_mask_scores_final_top2"], 1e-3)
    areas = result["masks"].sum(dim=(1, 2))
    near = torch.from_numpy(numbers["im0_mask_pixels_within_1e-3_of_half"])
    assert ((areas - torch.from_numpy(numbers["im0_mask_area"])).abs() <= near).all()


def decode_masks(rles: list[dict[str, Any]]) -> Tensor:
    return torch.stack([torch.from_numpy(coco_mask.decode(rle)).bool() for rle in rles])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools under numpy 2
@pytest.mark.parametrize(
    ("name", "input_size", "output_size"),
    [("synthA", (256, 320), (256, 320)), ("photo2_small", (256, 455), (360, 640))],
)
def test_masks_against_the_official_code(name: str, input_size: tuple[int, int], output_size: tuple[int, int]) -> None:
    """Binary masks, pixel by pixel, but for as many as the official soft masks have within 0.001 of the threshold."""
    numbers = {k: torch.from_numpy(v) for k, v in official(f"infer_CondInst_MS_R_50_1x_{name}.npz").items()}
    expected = decode_masks(official_json(f"infer_CondInst_MS_R_50_1x_{name}.json")["im0_rle"])
    theta = flip_coordinates(numbers["mask_head_params"])
    levels = numbers["mask_inst_levels"][:20]
    logits = DynamicMaskHead()(
        numbers["mask_feats"][0], theta, numbers["mask_inst_locations"][:20], 64.0 * 2**levels, stride=8
    )
    masks = resize_masks(logits, 8, input_size, output_size, 2)
    assert masks.shape == (20, *output_size)
    wrong = (masks != expected[:20]).sum(dim=(1, 2))
    assert (wrong <= numbers["im0_mask_pixels_within_1e-3_of_half"][:20]).all()
    assert wrong.float().mean() < 5


def test_mask_targets_against_the_official_code() -> None:
    inputs, numbers = official("train_inputs.npz"), official("train_CondInst_MS_R_50_1x_A.npz")
    targets = [{"masks": torch.from_numpy(inputs[f"A{i}_masks"])} for i in range(2)]
    ours = sampled_masks(targets, 4, (64, 80))
    expected = np.unpackbits(numbers["gt_bitmasks_s4"], axis=-1).reshape(numbers["gt_bitmasks_s4_shape"])
    assert torch.equal(ours[0], torch.from_numpy(expected[:6]).bool())
    assert torch.equal(ours[1, :4], torch.from_numpy(expected[6:]).bool())
    assert not ours[1, 4:].any()


def test_sentences_for_wrong_calls() -> None:
    model = CondInst(2, backbone="tiny", channels=16, levels=(3, 4), ranges=(32,), bottom={"num_levels": 2})
    image = torch.rand(3, 64, 64)
    target = {"boxes": torch.tensor([[4.0, 4, 30, 30]]), "labels": torch.tensor([1]), "masks": torch.ones(1, 32, 64)}
    with pytest.raises(ValueError, match="at least one image"):
        model([], [])
    with pytest.raises(ValueError, match=r"full-size masks must have the image's size \(64, 64\)"):
        model([image], [target])
    with pytest.raises(ValueError, match="1 images need as many output sizes, not 2"):
        model.eval()([image], output_sizes=[(64, 64), (64, 64)])
