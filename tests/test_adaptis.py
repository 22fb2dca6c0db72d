"""AdaptIS against loops written straight from the paper, in float64 with gradients, and on inputs that break things."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import check_gradients, empty_target, random_targets, same, seeded
from torch import Tensor

import condinst_edu.adaptis
from condinst_edu.adaptis import (
    AdaIN,
    AdaptIS,
    InstanceHead,
    mask_iou,
    panoptic,
    point_features,
    proposal_labels,
    sample_points,
    semantic_targets,
    soft_proposal_labels,
)
from condinst_edu.adaptis_greedy import (
    RandomPoints,
    RankedPoints,
    aggregate,
    aggregate_official,
    class_of_mask,
    find_local_maxima,
    local_maxima_points,
    mean_confidence,
)
from condinst_edu.adaptis_targets import AdaptiveThreshold, Queries
from condinst_edu.coordinates import relative_coordconv
from condinst_edu.engine.checkpoint import load_model, save_model
from condinst_edu.engine.recipe import override_model
from condinst_edu.engine.train import open_split, train
from condinst_edu.layers import normalized_focal_loss
from condinst_edu.layers.deeplab import DeepLab
from condinst_edu.layers.losses import normalized_focal_softmax_loss
from condinst_edu.layers.unet import UNet
from condinst_edu.papers import naive_adaptis as naive
from condinst_edu.recipes import get_recipe
from condinst_edu.teach.tiny import train_proposals


def tiny(**options: Any) -> AdaptIS:
    torch.manual_seed(0)
    base: dict[str, Any] = {"backbone_options": {"width": 4, "max_width": 8, "depth": 2}, "branch_width": 4}
    return AdaptIS(**{**base, "points": 5, "limit": 8, **options})


def shift_biases(model: AdaptIS, masks: float, stuff: float = 0) -> None:
    """Larger masks, and less of the first class of stuff, than random weights give."""
    state = model.state_dict()
    state["head.after.1.bias"] += masks
    state["semantic.3.bias"][0] += stuff


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def same_gradients(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Both results, and the gradients of both by all inputs, for one random direction."""
    same(ours.detach(), expected.detach())
    direction = random(*ours.shape, seed=9)
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), inputs, retain_graph=True),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        same(a, b)


# ------------------------------------------------------------------------------------------------------ from the paper


def test_adain() -> None:
    adain = AdaIN(3, 4).double()
    x, vector = random(2, 3, 4, 5).requires_grad_(), random(2, 4, seed=1).requires_grad_()
    inputs = [x, vector, *adain.parameters()]
    scale, shift = adain.scale(vector), adain.shift(vector)
    expected = torch.stack([naive.adain(x[n], scale[n], shift[n], adain.eps) for n in range(2)])
    same_gradients(adain(x, vector), expected, inputs)


def test_adain_begins_near_the_identity_of_normalised_maps() -> None:
    adain = AdaIN(3, 4)
    assert adain.scale.bias.tolist() == [1, 1, 1]
    assert adain.shift.bias.tolist() == [0, 0, 0]
    same(adain(torch.full((1, 3, 4, 5), 8.0), torch.zeros(1, 4)), torch.zeros(1, 3, 4, 5), 1e-6)


@pytest.mark.parametrize("distance", [False, True])
def test_relative_coordconv(distance: bool) -> None:
    """x - R is -1 and x + R is 1, beyond it is clipped; cell (i, j) is pixel (stride * j, stride * i)."""
    points = torch.tensor([[3.0, 5.5], [0.0, 11.0]], dtype=torch.float64)
    maps = relative_coordconv((4, 6), 4, points, 8.0, distance)
    assert maps.shape == (2, 3 if distance else 2, 4, 6)
    for n, point in enumerate(points.tolist()):
        same(maps[n], naive.relative_coordconv((4, 6), 4, point, 8.0, distance))


@pytest.mark.parametrize("stride", [1, 4])
def test_point_features(stride: int) -> None:
    features = random(2, 3, 5, 7).requires_grad_()
    points = torch.tensor([[2.0, 3.0], [5.3, 1.9], [0.0, 0.0], [6.0, 4.0], [5.999, 3.5]], dtype=torch.float64) * stride
    image = torch.tensor([0, 1, 1, 0, 1])
    cells = zip(image.tolist(), (points / stride).tolist(), strict=True)
    rows = [naive.embedding(features[b], x, y) for b, (x, y) in cells]
    same_gradients(point_features(features, image, points, stride), torch.stack(rows), [features])


def test_point_features_off_the_map_are_those_of_its_edge() -> None:
    features = random(1, 2, 3, 4)
    found = point_features(features, torch.zeros(2, dtype=torch.int64), torch.tensor([[-5.0, 1], [9, 99]]).double())
    same(found, torch.stack([features[0, :, 1, 0], features[0, :, 2, 3]]))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_normalized_focal_loss(gamma: float, detach: bool) -> None:
    logits = random(3, 4, 5).requires_grad_()
    targets = torch.randint(-1, 2, (3, 4, 5), generator=seeded(2)).double()
    losses = [naive.nfl(z, t, gamma, detach) for z, t in zip(logits, targets, strict=True)]
    same_gradients(normalized_focal_loss(logits, targets, gamma, detach=detach), torch.stack(losses), [logits])


def test_normalized_focal_loss_of_masks_without_a_pixel() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    targets = torch.full((2, 3, 4), -1.0)
    loss = normalized_focal_loss(logits, targets)
    assert loss.tolist() == [0, 0]
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert (grad == 0).all()
    assert normalized_focal_loss(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).shape == (0,)
    sure = normalized_focal_loss(torch.full((1, 3, 4), 200.0), torch.ones(1, 3, 4))  # nothing left to learn
    assert sure.isfinite().all()
    wrong = normalized_focal_loss(torch.full((1, 3, 4), -200.0), torch.ones(1, 3, 4))
    assert wrong.item() == pytest.approx(200)


def test_powers_of_the_official_code() -> None:
    """As they come, masks have a gamma of 2 and classes of 1; classes pixel by pixel."""
    logits = random(3, 4, 5)
    targets = torch.randint(-1, 2, (3, 4, 5), generator=seeded(2)).double()
    losses = [naive.nfl(z, t, 2) for z, t in zip(logits, targets, strict=True)]
    same(normalized_focal_loss(logits, targets), torch.stack(losses))
    logits, labels = random(2, 3, 4, 5), torch.randint(-1, 3, (2, 4, 5), generator=seeded(3))
    for z, label, loss in zip(logits, labels, normalized_focal_softmax_loss(logits, labels), strict=True):
        right = [float(z[:, y, x].softmax(0)[label[y, x]]) for y, x in (label >= 0).nonzero().tolist()]
        expected = sum(-(1 - p) * math.log(p) for p in right) / sum(1 - p for p in right)
        assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_normalized_focal_softmax_loss_of_two_classes_is_the_sigmoid_one() -> None:
    z = random(2, 3, 4)
    labels = torch.randint(-1, 2, (2, 3, 4), generator=seeded(1))
    two = torch.stack([torch.zeros_like(z), z], dim=1)
    same(normalized_focal_softmax_loss(two, labels, gamma=2), normalized_focal_loss(z, labels.double(), gamma=2))


def test_the_first_convolution_reads_features_once() -> None:
    """One convolution of features and coordinates together gives the same, with gradients."""
    torch.manual_seed(0)
    head = InstanceHead(3, radius=5.0).double().eval()
    features = random(2, 3, 6, 8).requires_grad_()
    image, points = torch.tensor([1, 0, 1]), torch.tensor([[1.0, 2], [7, 5], [3, 3]], dtype=torch.float64)
    maps = relative_coordconv((6, 8), 1, points, 5.0)
    x = head.first(torch.cat([maps, features[image]], dim=1))
    x_index, y_index = points.long().T
    vectors = head.controller(features[image, :, y_index, x_index])
    expected = 0.2 * head.after(head.adain(head.before(x), vectors))[:, 0] - 1.7
    trained = [p for p in head.parameters() if p.requires_grad]
    same_gradients(head(features, image, points), expected, [features, *trained])


def test_a_mask_depends_on_its_own_point_and_image_alone() -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, 13, 18)
    with torch.no_grad():
        features = model.backbone(images)
        image, points = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 4], [10, 2], [17, 12]])
        together = model.head(features, image, points)
        for k in range(3):
            same(model.head(features[image[k]][None], torch.tensor([0]), points[k : k + 1])[0], together[k], 1e-5)
    assert (together[1] - together[2]).abs().max() > 1e-4


def test_without_coordinates_two_equal_places_have_the_same_mask() -> None:
    """What Table 7 takes away: the image repeats itself, and nothing tells which copy is meant."""
    model = tiny(head={"coordinates": False}).eval()
    image = torch.rand(3, 8, 8).tile(1, 1, 3)
    features = model.backbone(image[None])
    image_index, points = torch.zeros(2, dtype=torch.int64), torch.tensor([[8.0, 4], [12, 4]])
    features = features.roll(4, 3).where(torch.arange(24) == 12, features)  # the same embedding at both points
    first, second = model.head(features, image_index, points)
    same(first.detach(), second.detach(), 1e-6)
    first, second = tiny().eval().head(features, image_index, points)
    assert (first - second).abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------------------ training


def test_points_are_drawn_from_objects_first() -> None:
    """Each object has the same chance, whatever its size, and each of its pixels too."""
    masks = torch.zeros(2, 6, 9, dtype=torch.bool)
    masks[0, 0, 0] = True
    masks[1, 2:6, 3:9] = True  # 24 pixels
    torch.manual_seed(0)
    queries = sample_points([{"masks": masks}], [(6, 9)], (6, 9), 4000, one=False)
    expected, times = naive.point_sampling(masks), torch.zeros(6, 9)
    x, y = queries.points.long().T
    times.index_put_((y, x), torch.ones(len(x)), accumulate=True)
    deviation = (4000 * expected * (1 - expected)).sqrt()
    assert (times - 4000 * expected).abs().le(5 * deviation).all()
    small = (queries.points == 0).all(dim=1)
    assert 0.47 < small.float().mean() < 0.53
    x, y = queries.points[~small].long().T
    hits = torch.zeros(6, 9).index_put_((y, x), torch.ones(len(x)), accumulate=True)
    assert (hits[masks[1]] > 40).all()
    assert hits[~masks[1]].sum() == 0
    same(queries.masks[~small][0], masks[1].float())


def test_points_of_images_of_several_sizes_and_without_objects() -> None:
    torch.manual_seed(0)
    targets = [random_targets(4, (20, 30), seeded(0)), empty_target((25, 22))]
    queries = sample_points(targets, [(20, 30), (25, 22)], (25, 30), 3, one=False)
    assert queries.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert (queries.masks[:3, 20:] == -1).all()
    assert (queries.masks[:3, :20] >= 0).all()
    assert (queries.masks[3:] == -1).all()
    for point, mask in zip(queries.points[:3].long(), queries.masks[:3], strict=True):
        assert mask[point[1], point[0]] == 1
    one = sample_points(targets, [(20, 30), (25, 22)], (25, 30), 6, one=True)
    assert all(torch.equal(mask, one.masks[0]) for mask in one.masks[:6])


def test_semantic_targets() -> None:
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, :3] = True
    masks[1, 1, 1:4] = True
    masks[2, 3, 0] = True
    target = {"masks": masks, "labels": torch.tensor([2, 1, 4])}  # things 1 and 2, stuff 3, 4 and 5
    labels = semantic_targets([target], [(4, 5)], (5, 6), num_things=2, stuff=3)[0]
    assert labels[:4, :5].tolist() == [[4] * 5, [4, 3, 3, 3, 4], [4] * 5, [1, 0, 0, 0, 0]]
    assert (labels[4] == -1).all()
    assert (labels[:, 5] == -1).all()
    void = semantic_targets([target], [(4, 5)], (4, 5), num_things=2, stuff=3, rest=-1)[0]
    assert void[3].tolist() == [1, -1, -1, -1, -1]


def test_proposal_labels() -> None:
    iou = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.0, 0.5, 0.6, 0.7, 0.4], [0.5] * 9 + [0.6]])
    labels = proposal_labels(iou)
    assert labels[0].tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]  # a fifth of ten
    assert labels.sum(dim=1).tolist() == [2, 2]
    assert labels[1, 9] == 1
    assert proposal_labels(iou[:, :3]).sum(dim=1).tolist() == [1, 1]
    for points in (37, 38):  # a fifth of these is 7.4 and 7.6
        many = torch.rand(4, points, generator=seeded(0))
        assert proposal_labels(many).bool().tolist() == [naive.proposal_labels(row) for row in many.tolist()]
        assert proposal_labels(many).sum(dim=1).tolist() == [points - 30] * 4
    soft = soft_proposal_labels(iou.double(), torch.ones(2, 10).double())
    assert soft[0, 1] == 1
    assert ((soft == 0) | (soft >= 0.7)).all()


def test_soft_proposal_labels_by_hand() -> None:
    """Percentile, degrees, all alike, none: one object each; theirs were compared in test_adaptis_official.py."""
    iou = torch.tensor(
        [[0.2, 0.4, 0.6, 0.8, 1.0], [0.9, 0.92, 0.94, 0.96, 0.98], [0.5] * 5, [0.0] * 5, [0.5, 0.6, 0.7, 0.8, -1]]
    )
    soft = soft_proposal_labels(iou, torch.ones(5, 5))
    same(soft[0], [0, 0, 0.7, 0.85, 1], 1e-6)  # above 0.95 * 0.44
    same(soft[1], [0.7, 0.775, 0.85, 0.925, 1], 1e-5)
    same(soft[2], [1] * 5)
    same(soft[3:], torch.full((2, 5), -1.0))


def soft_labels_by_loop(iou: list[float], confidence: list[float]) -> list[float]:
    """The labels of one object's points, step by step; -1 of an object that is ignored."""
    if min(iou) < 0 or max(iou) < 1e-5:
        return [-1] * len(iou)
    score = [a * b for a, b in zip(iou, confidence, strict=True)]
    bound = 0.95 * float(np.percentile(score, 30)) if max(iou) - min(iou) > 0.1 else 0.99 * min(score)
    good = [s for s in score if s > bound]
    span = max(good) - min(good)
    return [0 if s <= bound else 0.7 + 0.3 * (s - min(good)) / span if span > 1e-3 else 1 for s in score]


def test_soft_proposal_labels_by_loop() -> None:
    """Objects whose IoUs spread over 0.02 to 1, a little below and above the 0.1 that changes the bound."""
    for k, spread in enumerate((0.02, 0.08, 0.099, 0.101, 0.12, 0.18, 0.5, 0.9, 1.0)):
        points = 7 + 2 * k
        iou = torch.rand(6, points, generator=seeded(k), dtype=torch.float64)
        low, high = iou.amin(dim=1, keepdim=True), iou.amax(dim=1, keepdim=True)
        iou = 1 - spread * (iou - low) / (high - low)
        confidence = 0.5 + 0.5 * torch.rand(6, points, generator=seeded(50 + k), dtype=torch.float64)
        loop = [soft_labels_by_loop(*rows) for rows in zip(iou.tolist(), confidence.tolist(), strict=True)]
        same(soft_proposal_labels(iou, confidence), loop, 1e-9)
        assert any(0 in labels for labels in loop) == (spread > 0.1)


def test_adaptive_threshold() -> None:
    """It follows the best of three by 1 % of the way; without an object it stays."""
    truth = torch.zeros(2, 4, 6)
    truth[0, 1:3, 1:4] = 1
    truth[1] = -1
    adaptive = AdaptiveThreshold()
    assert adaptive(truth.clamp(min=0), truth).item() == 0.35  # all alike
    higher = torch.full_like(truth, 0.36)
    higher[0, 1:3, 1:4] = 0.9
    assert adaptive(higher, truth).item() == pytest.approx(0.35025, abs=1e-12)
    lower = torch.where(truth == 1, 0.33, 0)
    for k in range(3):
        assert adaptive(lower, truth).item() == pytest.approx(0.35 - 0.00025 * k, abs=1e-12)
    adaptive(lower[1:], truth[1:])
    assert adaptive.moves == -2


def test_mask_iou() -> None:
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[1, 0, 1, 1]]]).bool()
    truth = torch.tensor([[[1, 0, 1, 0]], [[0, 0, 0, 0]], [[1, -1, -1, 0]]])
    same(mask_iou(masks, truth), [1 / 3, 0, 1 / 2], 1e-6)


@pytest.mark.parametrize("loss", ["nfl", "focal", "bce"])
def test_training(loss: str) -> None:
    """Every trained parameter has a gradient, the proposal branch has none; images of several sizes, one empty."""
    model = tiny(num_classes=5, num_things=3, loss=loss).train()
    sizes = [(33, 41), (40, 29), (25, 30)]
    images = [torch.rand(3, *size, generator=seeded(k)) for k, size in enumerate(sizes)]
    targets = [random_targets(4, sizes[0], seeded(0)), random_targets(9, sizes[1], seeded(1)), empty_target(sizes[2])]
    assert set(model(images, targets)) == {"loss_mask", "loss_semantic"}
    check_gradients(lambda: sum(model(images, targets).values()), model, all_nonzero=False)
    assert all(p.grad is None for p in model.proposals.parameters())
    model(images[2:], targets[2:])["loss_mask"].backward()  # nothing but an empty image


@pytest.mark.parametrize("soft_labels", [False, True])
def test_proposals_are_trained_second(soft_labels: bool) -> None:
    """Only the branch gets gradients, and all else stays as it is, the statistics of batch norm too."""
    model = tiny(stage="proposals", soft_labels=soft_labels).train()
    images = [torch.rand(3, 33, 41, generator=seeded(0)), torch.rand(3, 33, 41, generator=seeded(1))]
    targets = [random_targets(4, (33, 41), seeded(0)), empty_target((33, 41))]
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(("proposals", "label_threshold"))}
    losses = model(images, targets)
    assert set(losses) == {"loss_proposals"}
    losses["loss_proposals"].backward()
    assert all(p.grad is not None for p in model.proposals.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("proposals"))
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_loss_of_proposals_with_soft_labels_by_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of three images: masks of an object, masks that all miss theirs, and no object at all."""
    model = tiny(stage="proposals", soft_labels=True)
    truth = torch.zeros(3, 4, 6)
    truth[:2, 1:3, 1:5] = 1
    truth[0, 3] = -1
    masks = truth.repeat_interleave(5, 0)  # (15, 4, 6)
    drawn = torch.rand(15, 4, 6, generator=seeded(3)) * 0.5 + 0.4 * (masks == 1)
    drawn[1, 1], drawn[5:10] = 0.1, 0.01
    monkeypatch.setattr(model, "logits", lambda *_: drawn.logit())
    model.proposals = torch.nn.Sequential()  # what is read at the points is then the features themselves
    features = torch.randn(3, 1, 1, 5, generator=seeded(4))
    points = torch.stack([torch.arange(5.0), torch.zeros(5)], dim=1).repeat(3, 1)
    loss = model.proposal_loss(features, Queries(points, torch.arange(3).repeat_interleave(5), masks))
    threshold = float(model.label_threshold.value)  # type: ignore[union-attr]
    iou, confidence = [], []
    for mask, p in zip(masks[:5], drawn[:5], strict=True):
        inside, found = mask == 1, (p > threshold) & (mask >= 0)
        iou.append(float((inside & found).sum() / (inside | found).sum()))
        confidence.append(float(p[inside].mean()))
    labels = soft_labels_by_loop(iou, confidence)
    assert 0 in labels
    read = features[0, 0, 0].tolist()
    terms = [math.log1p(math.exp(-z)) * t + math.log1p(math.exp(z)) * (1 - t) for z, t in zip(read, labels, strict=True)]
    assert loss.item() == pytest.approx(sum(terms) / 15, rel=1e-5)  # the other ten points teach nothing


def test_losses_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """FL is -(1 - p)^2 log p and BCE -log p, the mean over pixels; ignored ones count for none of them."""
    logits, masks = random(2, 3, 4).requires_grad_(), torch.randint(-1, 2, (2, 3, 4), generator=seeded(3)).double()
    for loss, gamma in (("focal", 2), ("bce", 0)):
        expected = [naive.focal(z, t, gamma).mean() for z, t in zip(logits, masks, strict=True)]
        same_gradients(tiny(loss=loss).mask_loss(logits, masks), torch.stack(expected), [logits])


def test_wrong_arguments() -> None:
    for options in ({"loss": "dice"}, {"stage": "all"}, {"propose": "best"}):
        with pytest.raises(ValueError, match="must be one of"):
            tiny(**options)
    with pytest.raises(ValueError, match="images must be float"):
        tiny().eval()([torch.zeros(3, 8, 8, dtype=torch.uint8)])


# -------------------------------------------------------------------------------------------------------------- greedy


def script(masks: list[list[float]]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Proposals one by one, the k-th of which draws the k-th of these rows of pixels."""
    rows = iter(range(len(masks)))

    def propose(unknown: Tensor) -> Tensor:
        k = next(rows, None)
        return torch.zeros(0, 2) if k is None else torch.tensor([[float(k), 0.0]])

    return lambda points: torch.tensor([masks[int(points[0, 0])]])[:, None], propose


def test_aggregate_by_hand() -> None:
    """Kept below half of overlap with all that is segmented, by exactly half not; each pixel to the most confident."""
    draw, propose = script(
        [
            [0.9, 0.9, 0.6, 0.6, 0.1, 0.1, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.8, 0.8, 0.1, 0.1, 0.1],  # one of two is segmented: half is too much
            [0.1, 0.1, 0.7, 0.5, 0.8, 0.8, 0.8, 0.1],  # two of five
            [0.1] * 8,  # nothing above T
        ]
    )
    found = aggregate(draw, propose, torch.zeros(1, 8, dtype=torch.bool), threshold=0.4)
    assert [step.kept for step in found.steps] == [True, False, True, False]
    assert found.instances.tolist() == [[1, 1, 2, 1, 2, 2, 2, 0]]
    assert found.masks.sum(dim=(1, 2)).tolist() == [3, 4]
    assert found.points.tolist() == [[0, 0], [2, 0]]
    same(found.scores, [0.75, 0.72], 1e-6)


def test_aggregate_begins_with_stuff_and_ends_in_every_way() -> None:
    rows = [[0.9, 0.9, 0.9, 0.1], [0.1, 0.1, 0.1, 0.9]]
    draw, propose = script(rows)
    stuff = torch.tensor([[True, True, False, False]])
    found = aggregate(draw, propose, stuff)  # the first is on stuff for two thirds
    assert found.instances.tolist() == [[0, 0, 0, 1]]
    assert stuff.tolist() == [[True, True, False, False]]  # not changed
    draw, propose = script(rows * 5)
    assert len(aggregate(draw, propose, torch.zeros(1, 4, dtype=torch.bool)).steps) == 2  # all is segmented
    draw, propose = script(rows * 5)
    assert len(aggregate(draw, propose, torch.zeros(1, 4, dtype=torch.bool), limit=1).steps) == 1
    draw, propose = script([])
    nothing = aggregate(draw, propose, torch.zeros(2, 4, dtype=torch.bool))
    assert nothing.masks.shape == (0, 2, 4)
    assert nothing.instances.sum() == 0


@pytest.mark.parametrize("seed", range(5))
def test_aggregate_is_section_4(seed: int) -> None:
    size = (9, 14)
    y, x = torch.meshgrid(torch.arange(9), torch.arange(14), indexing="ij")

    def draw(points: Tensor) -> Tensor:
        """A blob around each point, as large as the point says."""
        return torch.stack(
            [
                (1 - ((x - px) ** 2 + (y - py) ** 2) / (4 + (px * 7 + py * 3) % 11)).clamp(min=0) * 0.9 + 0.05
                for px, py in points
            ]
        )

    points = torch.stack([torch.randperm(14 * 9, generator=seeded(seed)) % 14, torch.arange(14 * 9) // 14], dim=1)[
        torch.randperm(14 * 9, generator=seeded(seed + 100))
    ].unique(dim=0)
    points = points[torch.randperm(len(points), generator=seeded(seed))].float()
    found = aggregate(draw, RankedPoints(points), torch.zeros(size, dtype=torch.bool))
    rows = [[int(a), int(b)] for a, b in points.tolist()]
    expected = naive.greedy_aggregation(lambda px, py: draw(torch.tensor([[float(px), float(py)]]))[0], rows, size)
    assert torch.equal(found.instances, expected)
    assert len(found.points) > 3


def test_random_points() -> None:
    """Unknown pixels only, none twice, seven at a time; of these the most confident counts."""
    unknown = torch.zeros(5, 8, dtype=torch.bool)
    unknown[1:4, 2:7] = True  # 15 pixels
    propose = RandomPoints(7, seeded(0))
    drawn = [propose(unknown) for _ in range(4)]
    assert [len(points) for points in drawn] == [7, 7, 1, 0]
    everything = torch.cat(drawn)
    assert len(everything.unique(dim=0)) == 15
    x, y = everything.long().T
    assert unknown[y, x].all()

    def draw(points: Tensor) -> Tensor:
        return (0.5 + points[:, 0] / 100)[:, None, None].expand(-1, 5, 8)

    found = aggregate(draw, RandomPoints(40, seeded(1)), torch.zeros(5, 8, dtype=torch.bool))
    assert found.points[0, 0] == 7


def test_the_most_confident_of_seven_masks_is_kept() -> None:
    """Of what 7 points draw, the mask with the highest mean probability above T, not the largest one."""
    drawn = torch.rand(5, 7, 5, 8, generator=seeded(0)) * torch.linspace(1, 0.3, 7)[:, None, None]
    for seed in range(5):
        drawn[seed, seed] = 0.1  # nothing above T

        def draw(points: Tensor, maps: Tensor = drawn[seed]) -> Tensor:
            assert len(points) == 7
            return maps

        found = aggregate(draw, RandomPoints(7, seeded(seed)), torch.zeros(5, 8, dtype=torch.bool), limit=1)
        assert found.steps[0].best == naive.most_confident(drawn[seed])


def test_mean_confidence_of_an_empty_mask_is_0() -> None:
    probabilities = torch.tensor([[[0.9, 0.5, 0.1]], [[0.1, 0.2, 0.3]]])
    same(mean_confidence(probabilities, probabilities > 0.4), [0.7, 0], 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_find_local_maxima(seed: int) -> None:
    noise = torch.rand(1, 1, 6, 9, generator=seeded(seed))
    smooth = F.interpolate(noise, (23, 37), mode="bicubic", align_corners=True)[0, 0].clamp(0, 1)
    values = (smooth * 50).round() / 50 if seed % 2 else smooth  # with plateaus
    values = (values * 512).round() / 512  # exact in every type
    points, basins = find_local_maxima(values, 0.25)
    expected, flooded = naive.local_maxima(values, 0.25)
    assert points.tolist() == expected
    assert torch.equal(basins, flooded)
    assert len(points) > 3


def test_local_maxima_beside_low_values() -> None:
    """In noise many a maximum has a neighbour below the threshold: it is none."""
    values = (torch.rand(23, 37, generator=seeded(0)) * 512).round() / 512
    points, basins = find_local_maxima(values, 0.25)
    expected, flooded = naive.local_maxima(values, 0.25)
    assert points.tolist() == expected
    assert torch.equal(basins, flooded)
    assert len(points) < len(find_local_maxima(values.clamp(min=0.25), 0.25)[0])


def test_local_maxima_of_flat_and_of_tiny_maps() -> None:
    assert find_local_maxima(torch.zeros(4, 6))[0].shape == (0, 2)
    assert find_local_maxima(torch.full((4, 6), 0.8))[0].tolist() == [[0, 0]]  # one plateau, its first pixel
    assert find_local_maxima(torch.full((1, 1), 0.8))[0].tolist() == [[0, 0]]
    values = torch.zeros(5, 12)
    values[0:3, 1:4], values[1, 2] = 0.5, 0.6
    values[2:5, 8:11], values[3, 9] = 0.5, 0.95
    assert local_maxima_points(values, 0.35).tolist() == [[9, 3], [2, 1]]


def test_local_maxima_of_a_large_map_take_a_moment() -> None:
    """No loop over pixels: a thousand operations of numpy, not a million of Python."""
    noise = F.avg_pool2d(torch.rand(1, 1, 264, 264, generator=seeded(0)), 9, stride=1)[0, 0]
    values = (noise - noise.min()) / (noise.max() - noise.min())
    calls = 0
    original = condinst_edu.adaptis_greedy._flood

    def count(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        original(*arguments)

    condinst_edu.adaptis_greedy._flood = count  # type: ignore[assignment]
    try:
        points, basins = find_local_maxima(values, 0.35)
    finally:
        condinst_edu.adaptis_greedy._flood = original
    assert calls == len(points) > 50
    assert (basins > 0).float().mean() > 0.9


def test_class_of_mask() -> None:
    probabilities = torch.rand(3, 4, 5, generator=seeded(0)).softmax(dim=0)
    masks = torch.rand(6, 4, 5, generator=seeded(1)) > 0.6
    masks[2] = False
    label, mean = class_of_mask(probabilities, masks)
    for n in range(6):
        if n != 2:
            assert label[n] == (best := naive.class_of_mask(probabilities, masks[n]))
            assert mean[n].item() == pytest.approx(float(probabilities[best][masks[n]].mean()))
    assert mean[2] == 0


def test_aggregate_official_without_a_thing() -> None:
    found = aggregate_official(lambda points: torch.zeros(len(points), 6, 9), torch.rand(6, 9), torch.zeros(1, 6, 9))
    assert found.instances.sum() == 0
    assert len(found.points) == 0


# --------------------------------------------------------------------------------------------------------- whole model


@pytest.mark.parametrize("propose", ["random", "branch"])
@pytest.mark.parametrize("flip", [False, True])
def test_inference(propose: str, flip: bool) -> None:
    """torchvision's interface, disjoint masks, scores that fall; batched is single; any size that is asked for."""
    model = tiny(num_classes=3, propose=propose, flip=flip, threshold=0.1, proposal_threshold=0.2).eval()
    shift_biases(model, masks=5, stuff=-3)
    images = [torch.rand(3, 37, 50, generator=seeded(0)), torch.rand(3, 30, 33, generator=seeded(1))]
    results = model(images)
    for image, result in zip(images, results, strict=True):
        height, width = image.shape[1:]
        count = len(result["labels"])
        assert result["masks"].shape == (count, height, width)
        assert result["masks"].dtype == torch.bool
        assert result["masks"].sum(dim=0).amax() <= 1 if count else True
        assert result["boxes"].shape == (count, 4)
        assert result["scores"].tolist() == sorted(result["scores"].tolist(), reverse=True)
        for mask, (x1, y1, x2, y2) in zip(result["masks"], result["boxes"].int().tolist(), strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
        alone = model([image])[0]
        assert torch.equal(alone["masks"], result["masks"])
    assert len(results[0]["labels"])
    larger = model(images[:1], output_sizes=[(74, 100)])[0]
    assert larger["masks"].shape[1:] == (74, 100)
    assert torch.equal(larger["masks"][:, ::2, ::2], results[0]["masks"])


def test_mirrored_images_give_mirrored_probabilities() -> None:
    """With the mean over both, a mirrored image's masks are the mirrored masks."""
    model = tiny(flip=True).eval()
    image = torch.rand(3, 20, 31, generator=seeded(0))
    points = torch.tensor([[4.0, 3.0], [30.0, 19.0]])
    mirrored = torch.stack([30 - points[:, 0], points[:, 1]], dim=1)
    same(model.look(image).draw(points), model.look(image.flip(2)).draw(mirrored).flip(2), 1e-5)


def test_panoptic() -> None:
    """Every pixel belongs to the segment that its id names; in any size; things 1 to K, stuff after them."""
    model = tiny(num_classes=4, num_things=2, threshold=0.1).eval()
    shift_biases(model, masks=5)
    image = torch.rand(3, 37, 50, generator=seeded(0))
    for size in ((37, 50), (50, 37)):
        result = model([image], output_sizes=[size])[0]
        assert result["panoptic"].shape == size
        ids = {segment["id"] for segment in result["segments_info"]}
        assert ids == set(result["panoptic"].unique().tolist()) - {0}
        for segment in result["segments_info"]:
            assert segment["area"] == (result["panoptic"] == segment["id"]).sum()
            assert segment["category_id"] in ((1, 2) if segment["isthing"] else (3, 4))
        for k, mask in enumerate(result["masks"], start=1):
            assert torch.equal(result["panoptic"] == k, mask)
    model.min_stuff = 37 * 50 + 1
    (result,) = model([image])
    assert all(segment["isthing"] for segment in result["segments_info"])
    with pytest.raises(ValueError, match="num_things is between 1 and"):
        tiny(num_classes=2, num_things=2)


def test_specks_of_stuff_are_void() -> None:
    """Stuff is counted where no instance lies; of a class with exactly as many pixels as asked for, it stays."""
    semantic = torch.tensor([[0, 0, 0, 1, 1], [0, 2, 2, 1, 3], [0, 2, 2, 1, 1]])  # 2 classes of stuff, 2 of things
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, 1:, 1:4] = True
    result = {"masks": mask, "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    for least, wanted in {0: (5, 3), 3: (5, 3), 5: (5,), 6: ()}.items():
        found = panoptic(result, semantic, 2, 2, least)
        assert [s["area"] for s in found["segments_info"]] == [6, *wanted]
        assert (found["panoptic"] == 0).sum() == 15 - 6 - sum(wanted)


def test_the_backbone_runs_once_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(threshold=0.1).eval()
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    model([torch.rand(3, 37, 50)])
    seen = model.look(torch.rand(3, 37, 50))
    for k in range(3):
        seen.draw(torch.tensor([[float(k), 1.0]]))
    assert len(calls) == 2


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("size", [(32, 48), (33, 49), (21, 38)])
def test_unet_keeps_every_size(size: tuple[int, int], frozen: bool) -> None:
    net = UNet(4, 16, 3, frozen_upsampling=frozen).eval()
    assert net(torch.randn(2, 3, *size)).shape == (2, 4, *size)


@pytest.mark.parametrize("finest", [1, 2])
@pytest.mark.parametrize("size", [(32, 48), (33, 49), (21, 38)])
def test_unet_without_the_last_steps_up(size: tuple[int, int], finest: int) -> None:
    """What it gives is what the whole network has at that level, and its `stride` and `out_channels` say which."""
    whole, net = UNet(4, 16, 4).eval(), UNet(4, 16, 4, finest).eval()
    net.load_state_dict(
        {k: v for k, v in whole.state_dict().items() if k in net.state_dict() and k[:5] != "final"}, False
    )
    levels: list[torch.Tensor] = []
    for block in whole.up:
        block.register_forward_hook(lambda *found: levels.append(found[2]))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        whole(x)
        found = net(x)
        same(found, net.final(levels[3 - finest]), 1e-6)
    stride = 2**finest
    assert net.stride == stride
    assert found.shape[1:] == (net.out_channels, -(-size[0] // stride), -(-size[1] // stride))
    with pytest.raises(ValueError, match="finest is between 0 and depth - 1, not 4 of 4"):
        UNet(4, 16, 4, 4)


def test_a_head_at_half_size_trains_on_odd_images() -> None:
    model = tiny(backbone_options={"width": 4, "max_width": 8, "depth": 2, "finest": 1}).train()
    sizes = [(33, 41), (20, 35)]
    images = [torch.rand(3, *size) for size in sizes]
    losses = model(images, [random_targets(4, size, seeded(i)) for i, size in enumerate(sizes)])
    assert all(loss.isfinite() for loss in losses.values())
    found = model.eval()(images)
    assert [tuple(result["masks"].shape[1:]) for result in found] == sizes


def test_maps_at_half_size_are_enlarged_corners_on_corners() -> None:
    model = tiny(backbone_options={"width": 4, "max_width": 8, "depth": 2, "finest": 1})
    x = random(2, 3, 5, 7)
    rows, columns = (np.linspace(0, n - 1, 2 * n) for n in x.shape[2:])
    wide = np.apply_along_axis(lambda line: np.interp(columns, range(7), line), 3, x.numpy())
    same(model.enlarge(x), np.apply_along_axis(lambda line: np.interp(rows, range(5), line), 2, wide))


def test_proposals_at_half_size_are_read_at_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch is 0 in every cell but one, so only the loss of the point on that cell is not log 2."""
    half = {"width": 4, "max_width": 8, "depth": 2, "finest": 1}
    model = tiny(backbone_options=half, stage="proposals", points=2).train()
    branch = torch.zeros(1, 1, 6, 8)
    branch[0, 0, 2, 3] = 5
    monkeypatch.setattr(model.proposals, "forward", lambda features: branch)
    masks = torch.ones(2, 12, 16)
    queries = Queries(torch.tensor([[6.0, 4.0], [3.0, 2.0]]), torch.tensor([0, 0]), masks)
    loss = model.proposal_loss(torch.rand(1, 4, 6, 8), queries)
    lost = [math.log1p(math.exp(5)), math.log1p(math.exp(-5))]  # by whether the first is a good proposal
    assert min(abs(float(loss) - (one + math.log(2)) / 2) for one in lost) < 1e-5


def test_unet_with_frozen_upsampling() -> None:
    """It is twice the size, bilinear with half-pixel centres, and the only thing that is not trained."""
    model = tiny(backbone_options={"width": 4, "max_width": 8, "depth": 2, "frozen_upsampling": True}).train()
    images, targets = [torch.rand(3, 33, 41)], [random_targets(4, (33, 41), seeded(0))]
    sum(model(images, targets).values()).backward()
    untouched = [name for name, p in model.backbone.named_parameters() if p.grad is None]
    assert untouched == ["up.0.upsample.weight", "up.1.upsample.weight"]
    x = torch.rand(1, 4, 5, 7)
    expected = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]  # 0 around
    same(model.backbone.get_submodule("up.1.upsample")(x).detach(), expected, 1e-6)


def test_deeplab() -> None:
    net = DeepLab("resnet50", out_channels=16, skip_channels=4).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 40, 64)).shape == (1, 16, 10, 16)
        assert net.coarse(net.fine(net.stem(torch.randn(1, 3, 40, 64)))).shape[2:] == (5, 8)


# ------------------------------------------------------------------------------------------------------------- engine


def test_training_on_drawn_images_and_then_the_proposals(tmp_path: Path) -> None:
    """Two iterations by the engine, from a recipe without any file; then the branch, which changes nothing else."""
    recipe = override_model(
        get_recipe("bacteria-adaptis"),
        ("backbone_options.width=4", "backbone_options.depth=2", "branch_width=4", "points=2", "limit=2"),
    )
    recipe = dataclasses.replace(recipe, iterations=2, batch_size=2)
    first = train(recipe, tmp_path / "first", show_progress=False).state_dict()
    path = train_proposals(recipe, tmp_path / "first" / "model.safetensors", 2, tmp_path / "second")
    both = load_model(path)
    assert both.class_names == ["cell"]
    assert both.recipe["model_args"] == json.loads(json.dumps(recipe.model_args))
    for name, value in both.model.state_dict().items():
        trained = name.startswith("proposals") and not name.endswith("num_batches_tracked")
        assert torch.equal(value, first[name]) != trained or "num_batches" in name, name
    image, _ = open_split(recipe, "val")[0]
    assert set(both.model([image / 255])[0]) == {"boxes", "labels", "scores", "masks"}
    again = train(recipe, tmp_path / "again", show_progress=False).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())  # images, points and all


def test_training_of_the_proposals_with_soft_labels(tmp_path: Path) -> None:
    """From a model without them, and on from a checkpoint: what the threshold has moved is kept."""
    recipe = override_model(
        get_recipe("bacteria-adaptis"),
        ("backbone_options.width=4", "backbone_options.depth=2", "branch_width=4", "points=4", "limit=2"),
    )
    recipe = dataclasses.replace(recipe, iterations=1, batch_size=2)
    first = train(recipe, tmp_path / "first", show_progress=False)
    assert isinstance(first, AdaptIS)
    shift_biases(first, masks=5)  # trained so little, they would all be empty
    weights = tmp_path / "larger.safetensors"
    save_model(weights, first, recipe, [1], ["cell"])
    second = override_model(recipe, ("stage=proposals", "soft_labels=True"))
    second = dataclasses.replace(second, start=str(weights), iterations=6, save_every=3)
    moves = []

    def note(done: int, model: Any) -> None:
        moves.append(int(model.label_threshold.moves))

    whole = train(second, tmp_path / "whole", on_step=note, show_progress=False).state_dict()
    assert moves[-1] != moves[2] != 0
    out = tmp_path / "parts"

    def stop(done: int, model: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(second, out, on_step=stop, show_progress=False)
    parts = train(second, out, show_progress=False).state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert load_model(out / "model.safetensors").model.state_dict()["label_threshold.moves"] == moves[-1]
    masks = load_model(weights).model.state_dict()
    kept = [name for name in masks if not name.startswith("proposals")]
    assert all(torch.equal(masks[name], whole[name]) for name in kept)
    begun = dataclasses.replace(second, start=str(out / "model.safetensors"), iterations=1)
    third = train(begun, tmp_path / "third", show_progress=False).state_dict()
    assert abs(int(third["label_threshold.moves"])) <= 1 < abs(moves[-1])
