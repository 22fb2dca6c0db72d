"""Every step of FCOS against loops written from its rule, torchvision, and numbers of the official code."""

from collections.abc import Sequence
from math import inf, log, sqrt
from typing import Any

import pytest
import torch
from helpers import (
    check_gradients,
    empty_target,
    enliven,
    gradients,
    official,
    official_outputs,
    points_at,
    random_boxes,
    random_targets,
    same,
    seeded,
    step_operations,
    tiny_fcos,
)
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.coordinates import neighbours
from condinst_edu.fcos import (
    FCOS,
    Assignment,
    FCOSHead,
    Instances,
    Outputs,
    Points,
    assign_targets,
    centerness,
    class_nms,
    decode,
    fcos_losses,
    keep_best,
    make_points,
    pad_targets,
    select_candidates,
    to_output_size,
)
from condinst_edu.layers.images import make_batch
from condinst_edu.papers import naive_fcos as naive

STRIDES = (8, 16, 32, 64, 128)
RANGES = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, inf)]


def pyramid_points(size: tuple[int, int], strides: Sequence[int] = STRIDES, ranges: Any = RANGES) -> Points:
    """Points of the pyramid of an image, in float64."""
    points = make_points([torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s)) for s in strides], strides, ranges)
    return points._replace(xy=points.xy.double(), stride=points.stride.double(), reach=points.reach.double())


# ---------------------------------------------------------------------------------------------------- images to maps


def test_make_batch_normalises_then_pads() -> None:
    """Zeros, i.e. the mean colour, at the right and bottom; the common size is the next multiple of the divisor."""
    generator = seeded(0)
    images = [torch.rand(3, h, w, generator=generator) for h, w in ((33, 50), (64, 20), (1, 65))]
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    batch = make_batch(images, mean, std, 32)
    assert batch.images.shape == (3, 3, 64, 96)
    assert batch.sizes == [(33, 50), (64, 20), (1, 65)]
    for image, padded in zip(images, batch.images, strict=True):
        _, height, width = image.shape
        for c in range(3):
            same(padded[c, :height, :width], (image[c] - mean[c]) / std[c], 1e-5)
        assert not padded[:, height:].any()
        assert not padded[:, :, width:].any()


@pytest.mark.parametrize("size", [(32, 64), (31, 33), (1, 1)])
def test_make_batch_of_one(size: tuple[int, int]) -> None:
    batch = make_batch([torch.rand(3, *size)], (0, 0, 0), (1, 1, 1), 32)
    assert batch.images.shape == (1, 3, -(-size[0] // 32) * 32, -(-size[1] // 32) * 32)


@pytest.mark.parametrize(
    "image", [torch.rand(1, 3, 8, 8), torch.rand(8, 8), torch.rand(1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)]
)
def test_make_batch_refuses_other_images(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be float tensors \(3, H, W\) in \[0, 1\]"):
        make_batch([torch.rand(3, 8, 8), image], (0, 0, 0), (1, 1, 1), 32)


@pytest.mark.parametrize("shared_towers", [False, True])
@pytest.mark.parametrize("norm", ["gn", "bn", "none"])
@pytest.mark.parametrize("top_channels", [0, 5])
def test_head_orders_locations_by_level_and_row(shared_towers: bool, norm: Any, top_channels: int) -> None:
    """The same layers on every level; field [b, at] is the map's cell at, row by row, level after level."""
    head = FCOSHead(8, 3, (8, 16), 2, norm, shared_towers, top_channels).double().eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3, generator=seeded(parameter.numel()))
    pyramid = [torch.randn(2, 8, h, w, generator=seeded(w), dtype=torch.float64) for h, w in ((4, 6), (2, 3))]
    outputs = head(pyramid)
    assert outputs.logits.shape == (2, 30, 3)
    assert outputs.tower.shape == (2, 30, 8 if top_channels else 0)
    position = 0
    for x, scale in zip(pyramid, head.scales, strict=True):
        box = head.box_tower(x)
        logits = head.class_logits(box if shared_towers else head.class_tower(x))
        distances, center = (scale * head.box_distances(box)).clamp(min=0), head.centerness(box)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                same(outputs.logits[:, position], logits[:, :, i, j])
                same(outputs.distances[:, position], distances[:, :, i, j])
                same(outputs.centerness[:, position], center[:, 0, i, j])
                if head.top is not None:
                    same(outputs.tower[:, position], box[:, :, i, j])
                position += 1
    assert position == 30
    assert outputs.distances.min() == 0
    assert shared_towers == (not list(head.class_tower.parameters()))


def test_top_module_at_locations_is_the_whole_convolution() -> None:
    """At any locations, corners and edges of every level, in any order and twice: the values of the convolved maps."""
    head = FCOSHead(8, 3, (8, 16, 32), 1, "gn", top_channels=5).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3, generator=seeded(parameter.numel()))
    assert head.top is not None
    sizes = [(4, 7), (2, 3), (1, 1)]
    pyramid = [torch.randn(2, 8, h, w, generator=seeded(w), dtype=torch.float64) for h, w in sizes]
    outputs, points = head(pyramid), make_points(pyramid, head.strides, RANGES[:3])
    maps = [head.top(head.box_tower(x)) for x in pyramid]  # the definition
    expected = torch.cat([m.flatten(2).mT for m in maps], dim=1)
    for image in range(2):
        for location in (torch.arange(35), torch.tensor([34, 0, 0, 27, 28, 33]), torch.arange(0)):
            result = head.top_at(outputs, points, image, location)
            same(result, expected[image, location], 1e-12)
        learned = [*head.box_tower.parameters(), *head.top.parameters()]
        chosen, weight = torch.tensor([3, 27, 28, 34]), torch.randn(4, 5, generator=seeded(1), dtype=torch.float64)
        ours = gradients((head.top_at(outputs, points, image, chosen) * weight).sum(), learned)
        for mine, other in zip(ours, gradients((expected[image, chosen] * weight).sum(), learned), strict=True):
            same(mine, other, 1e-11)
    with pytest.raises(ValueError, match="no top module"):
        FCOSHead(8, 3, (8,), 1).top_at(outputs, points, 0, torch.arange(2))


def test_neighbours_stay_on_their_level() -> None:
    """Each location's 3x3 cells on its own level; the number of locations stands for those off the map."""
    sizes = [(3, 4), (2, 1)]
    points = make_points([torch.zeros(1, 1, *size) for size in sizes], (8, 16), RANGES[:2])
    expected = torch.cat([neighbours((3, 4)), neighbours((2, 1), 12)])
    assert torch.equal(points.neighbours, expected.where(expected >= 0, 14))


def test_head_starts_with_background() -> None:
    """At first every class has probability 0.01 everywhere (focal loss's prior), and each level's scale is 1."""
    head = FCOSHead(16, 4, STRIDES)
    outputs = head([torch.randn(1, 16, 5, 7) for _ in STRIDES])
    assert outputs.logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
    assert head.class_logits.bias is not None
    same(head.class_logits.bias, torch.full((4,), -log(99)), 1e-6)
    assert torch.equal(head.scales, torch.ones(5))
    convs = [m for m in head.box_tower.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 4
    assert convs[0].weight.std().item() == pytest.approx(0.01, rel=0.1)


# ------------------------------------------------------------------------------------------------------------ targets


def test_make_points_by_loop() -> None:
    sizes = [(4, 6), (2, 3), (1, 2)]
    points = make_points([torch.zeros(2, 8, h, w) for h, w in sizes], (8, 16, 32), RANGES[:3])
    expected = [
        (x, y, s, *RANGES[level], level)
        for level, (size, s) in enumerate(zip(sizes, (8, 16, 32), strict=True))
        for x, y in naive.locations(size, s)
    ]
    columns = torch.cat([points.xy, points.stride[:, None], points.reach, points.level[:, None]], dim=1)
    same(columns, expected)


def naive_assign(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float
) -> list[tuple[int, list[int]]]:
    """For every location of one image: its label, and the objects it may answer for (several only with equal areas)."""
    result = []
    real = [m for m, label in enumerate(labels.tolist()) if label]  # the others are padding
    corners, middles = boxes.tolist(), centers.tolist()
    for xy, stride, reach in zip(points.xy.tolist(), points.stride.tolist(), points.reach.tolist(), strict=True):
        found = naive.candidates(xy, stride, reach, [corners[m] for m in real], [middles[m] for m in real], radius)
        objects = naive.smallest([real[m] for m in found], corners)
        result.append((int(labels[objects[0]]) if objects else 0, objects))
    return result


def check_assign(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float
) -> list[list[tuple[int, list[int]]]]:
    """Compare a batch with the loop, exactly; returns what the loop found."""
    result = assign_targets(points, boxes, labels, centers, radius)
    everything = []
    for b in range(len(boxes)):
        expected = naive_assign(points, boxes[b], labels[b], centers[b], radius)
        for at, (label, objects) in enumerate(expected):
            assert bool(result.labels[b, at]) == bool(objects)
            if objects:
                matched = int(result.matched[b, at])
                assert matched in objects
                assert result.labels[b, at] == labels[b, matched]
                assert len(objects) > 1 or result.labels[b, at] == label
                x, y = points.xy[at].tolist()
                x0, y0, x1, y1 = boxes[b, matched].tolist()
                s = points.stride[at].item()
                same(result.distances[b, at], [(x - x0) / s, (y - y0) / s, (x1 - x) / s, (y1 - y) / s], 1e-14)
        everything.append(expected)
    return everything


def padded_batch(counts: Sequence[int], size: tuple[int, int], seed: int, grid: float) -> tuple[Tensor, Tensor, Tensor]:
    """Random objects of images with different counts of them: boxes, labels, box centres.

    What the rows of padding hold must not matter, as their label is 0: here they are boxes, too.
    """
    generator = seeded(seed)
    boxes = torch.stack([random_boxes(max(counts), size, generator, grid) for _ in counts])
    labels = torch.randint(1, 9, (len(counts), max(counts)), generator=generator)
    for b, count in enumerate(counts):
        labels[b, count:] = 0
    return boxes, labels, (boxes[..., :2] + boxes[..., 2:]) / 2


@pytest.mark.parametrize("radius", [0, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("size", [(192, 320), (250, 137)])
@pytest.mark.parametrize("grid", [0, 4])  # multiples of 4 put edges, limits and centre regions exactly on locations
def test_assign_targets_by_loop(radius: float, size: tuple[int, int], grid: float) -> None:
    points = pyramid_points(size)
    boxes, labels, centers = padded_batch((12, 0, 1, 30), size, int(10 * radius), grid)
    found = check_assign(points, boxes, labels, centers, radius)
    assert any(objects for _, objects in found[3])
    assert not any(objects for _, objects in found[1])


@pytest.mark.parametrize("radius", [0, 1.5])
def test_assign_targets_with_other_centers(radius: float) -> None:
    """Mass centres lie anywhere in a box, and may lie outside of what the box and the level allow."""
    size = (200, 300)
    boxes, labels, _ = padded_batch((15, 6), size, 5, 1)
    centers = boxes[..., :2] + torch.rand(2, 15, 2, generator=seeded(6), dtype=torch.float64) * (
        boxes[..., 2:] - boxes[..., :2]
    )
    found = check_assign(pyramid_points(size), boxes, labels, centers, radius)
    moved = check_assign(pyramid_points(size), boxes, labels, (boxes[..., :2] + boxes[..., 2:]) / 2, radius)
    assert (found == moved) == (radius == 0)


def test_assign_targets_breaks_ties_of_area() -> None:
    """Many boxes of one area on one spot: every location takes one of them."""
    x, y = torch.arange(10.0), torch.arange(10.0).flip(0)
    boxes = torch.stack([x, y, x + 64, y + 48], dim=1).double()[None]
    boxes[0, 5:] = torch.stack([x, y, x + 48, y + 64], dim=1)[5:]
    labels = torch.arange(1, 11)[None]
    found = check_assign(pyramid_points((80, 96)), boxes, labels, (boxes[..., :2] + boxes[..., 2:]) / 2, 1.5)
    assert any(len(objects) > 3 for _, objects in found[0])


def levels_of(distances: tuple[float, float, float, float]) -> list[int]:
    """Levels at which the location (64, 64) takes a box of these distances from it."""
    left, top, right, bottom = distances
    box = torch.tensor([[[64 - left, 64 - top, 64 + right, 64 + bottom]]], dtype=torch.float64)
    at = points_at([(64, 64)] * 5, STRIDES, RANGES)
    result = assign_targets(at, box, torch.ones(1, 1, dtype=torch.int64), torch.full((1, 1, 2), 64.0).double())
    return torch.nonzero(result.labels[0]).flatten().tolist()


def test_level_ranges_include_both_ends() -> None:
    assert levels_of((10, 10, 10, 1)) == [0]
    assert levels_of((63.5, 10, 10, 10)) == [0]
    for side in range(4):  # whichever side is the longest
        distances = [10.0] * 4
        distances[side] = 64
        assert levels_of(tuple(distances)) == [0, 1]  # type: ignore[arg-type]
    assert levels_of((64.5, 10, 10, 10)) == [1]
    assert levels_of((10, 128, 10, 10)) == [1, 2]
    assert levels_of((10, 128, 128.5, 10)) == [2]
    assert levels_of((10, 10, 256, 10)) == [2, 3]
    assert levels_of((10, 10, 10, 512)) == [3, 4]
    assert levels_of((10, 10, 10, 5000)) == [4]


def labels_at(locations: list[tuple[float, float]], box: list[float], center: list[float], radius: float) -> list[int]:
    at = points_at(locations, [8], [(-1, 64)])
    one = torch.ones(1, 1, dtype=torch.int64)
    return (
        assign_targets(at, torch.tensor([[box]]).double(), one, torch.tensor([[center]]).double(), radius)
        .labels[0]
        .tolist()
    )


def test_locations_on_an_edge_are_background() -> None:
    """Strictly inside the box and strictly within the radius, on all four sides."""
    on = [(20.0, 30.0), (60.0, 30.0), (40.0, 12.0), (40.0, 52.0), (20.0, 12.0)]
    inside = [(20.5, 30.0), (59.5, 30.0), (40.0, 12.5), (40.0, 51.5)]
    assert labels_at(on, [20, 12, 60, 52], [40, 32], 0) == [0] * 5
    assert labels_at(inside, [20, 12, 60, 52], [40, 32], 0) == [1] * 4
    region = [(28.0, 32.0), (52.0, 32.0), (40.0, 20.0), (40.0, 44.0)]  # 12 = 1.5 * 8 from the centre
    assert labels_at(region, [20, 12, 60, 52], [40, 32], 1.5) == [0] * 4
    near = [(28.5, 32.0), (51.5, 32.0), (40.0, 20.5), (51.5, 43.5)]  # a square, not a disc
    assert labels_at(near, [20, 12, 60, 52], [40, 32], 1.5) == [1] * 4


def test_center_region_is_cut_with_the_box() -> None:
    """A centre near a corner of the box, or off it: no location outside of the box is positive."""
    assert labels_at([(18.0, 30.0), (22.0, 30.0), (40.0, 30.0)], [20, 12, 60, 52], [21, 30], 1.5) == [0, 1, 0]
    assert labels_at([(18.0, 30.0), (22.0, 30.0)], [20, 12, 60, 52], [15, 30], 1.5) == [0, 1]
    assert labels_at([(18.0, 30.0), (22.0, 30.0)], [20, 12, 60, 52], [0, 30], 1.5) == [0, 0]
    # the official code gives an image no positives at all where the first object's centre has x = 0: not so here
    assert labels_at([(4.0, 30.0)], [-10, 12, 10, 52], [0, 30], 1.5) == [1]


def test_smallest_box_wins_even_if_another_is_nearer() -> None:
    at = points_at([(36, 36)], [8], [(-1, 64)])
    boxes = torch.tensor([[[10.0, 10.0, 62.0, 62.0], [30.0, 20.0, 60.0, 60.0]]])  # 52 x 52, 30 x 40
    centers = torch.tensor([[[36.0, 36.0], [45.0, 40.0]]])
    result = assign_targets(at, boxes, torch.tensor([[7, 3]]), centers, 1.5)
    assert result.labels.tolist() == [[3]]
    assert result.matched.tolist() == [[1]]
    same(result.distances, [[[0.75, 2, 3, 3]]])


def test_degenerate_boxes_and_objects_of_a_pixel() -> None:
    """A box without area has no location; one of a pixel has one where it covers a location; one may cover all."""
    assert labels_at([(20.0, 20.0)], [20, 20, 20, 20], [20, 20], 1.5) == [0]
    assert labels_at([(20.0, 20.0), (28.0, 20.0)], [19.5, 19.5, 20.5, 20.5], [20, 20], 1.5) == [1, 0]
    points = pyramid_points((64, 96))
    everything = torch.tensor([[[0, 0, 96, 64]]]).double()
    found = check_assign(points, everything, torch.tensor([[2]]), torch.tensor([[[48, 32]]]).double(), 0)[0]
    # P3 answers where the longest distance is at most 64, P4 from 64 on
    assert {at for at, (_, objects) in enumerate(found) if objects and points.level[at] == 0} == {
        at for at in range(96) if 32 <= points.xy[at, 0] <= 64
    }


def test_pad_targets() -> None:
    generator = seeded(0)
    targets = [random_targets(n, (40, 60), generator) for n in (3, 0, 5)]
    targets[1] = empty_target((40, 60))
    boxes, labels, centers = pad_targets(targets)
    assert (boxes.shape, labels.shape, centers.shape) == ((3, 5, 4), (3, 5), (3, 5, 2))
    for b, target in enumerate(targets):
        count = len(target["labels"])
        assert torch.equal(boxes[b, :count], target["boxes"])
        assert torch.equal(labels[b, :count], target["labels"])
        assert not labels[b, count:].any()
        for box, center in zip(target["boxes"].tolist(), centers[b].tolist(), strict=False):
            assert center == [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    boxes, labels, centers = pad_targets([empty_target((4, 4))] * 2, "mass")
    assert (boxes.shape, labels.shape, centers.shape) == ((2, 1, 4), (2, 1), (2, 1, 2))
    assert not labels.any()


def test_pad_targets_takes_mass_centers() -> None:
    target = random_targets(4, (40, 60), seeded(1))
    target["masks"][0, 12:, :] = True
    expected = [
        [sum(column.tolist()) / len(column) for column in torch.nonzero(mask, as_tuple=True)[::-1]]
        for mask in target["masks"]
    ]
    same(pad_targets([target], "mass")[2][0], expected, 1e-5)
    given = {**target, "centers": torch.rand(4, 2)}
    assert torch.equal(pad_targets([given], "mass")[2][0], given["centers"])


def test_centerness_by_loop() -> None:
    distances = 9 * torch.rand(50, 2, 4, generator=seeded(0), dtype=torch.float64) + 1e-3
    result = centerness(distances)
    for (left, top, right, bottom), value in zip(distances.view(-1, 4).tolist(), result.flatten(), strict=True):
        same(value, naive.centerness(left, top, right, bottom), 1e-13)
    assert centerness(torch.tensor([3.0, 5.0, 3.0, 5.0])) == 1
    assert centerness(torch.zeros(0, 4)).shape == (0,)


# ------------------------------------------------------------------------------------------------------------- losses


def random_outputs(images: int, points: int, classes: int, seed: int) -> Outputs:
    generator = seeded(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, points, *shape, generator=generator, dtype=torch.float64)

    return Outputs(normal(classes) - 1, 2 * normal(4).abs() + 0.1, normal(), normal(0))


def random_assignment(images: int, points: int, classes: int, seed: int, share: float = 0.3) -> Assignment:
    generator = seeded(seed)
    labels = torch.randint(1, classes + 1, (images, points), generator=generator)
    labels *= torch.rand(images, points, generator=generator) < share
    distances = torch.randn(images, points, 4, generator=generator, dtype=torch.float64)
    distances[labels > 0] = distances[labels > 0].abs() + 0.05  # negative in background, as real ones are
    return Assignment(labels, distances, torch.zeros_like(labels))


def naive_losses(outputs: Outputs, assignment: Assignment, smooth: float) -> dict[str, Tensor]:
    """The three losses, one location after the other, of all images together."""
    return naive.fcos_losses(
        outputs.logits.flatten(0, 1),
        outputs.distances.flatten(0, 1),
        outputs.centerness.flatten(),
        assignment.labels.flatten().tolist(),
        assignment.distances.flatten(0, 1),
        smooth,
    )


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_losses_by_loop(smooth: float, share: float) -> None:
    """Values, and the gradients of all outputs; share: of positive locations."""
    outputs, assignment = random_outputs(2, 20, 3, 0), random_assignment(2, 20, 3, 1, share)
    learned = [field.requires_grad_() for field in outputs[:3]]
    ours, expected = fcos_losses(outputs, assignment, smooth), naive_losses(outputs, assignment, smooth)
    assert ours.keys() == expected.keys()
    for name, loss in ours.items():
        same(loss, expected[name], 1e-10)
        if not expected[name].requires_grad:  # no positives: 0, but all outputs have a gradient
            assert loss.requires_grad
            continue
        for mine, other in zip(gradients(loss, learned), gradients(expected[name], learned), strict=True):
            same(mine, other, 1e-9)


def test_class_loss_against_torchvision() -> None:
    outputs, assignment = random_outputs(2, 50, 4, 2), random_assignment(2, 50, 4, 3)
    one_hot = torch.stack([assignment.labels == k for k in range(1, 5)], dim=-1).double()
    positives = (assignment.labels > 0).sum()
    expected = sigmoid_focal_loss(outputs.logits, one_hot).sum() / positives
    same(fcos_losses(outputs, assignment)["loss_class"], expected, 1e-12)


def test_background_distances_do_not_matter() -> None:
    """Target distances of background locations may be anything, not a number even: losses stay what they are."""
    outputs, assignment = random_outputs(1, 30, 3, 4), random_assignment(1, 30, 3, 5)
    spoilt = assignment.distances.masked_fill(assignment.labels[..., None] == 0, torch.nan)
    expected = fcos_losses(outputs, assignment)
    for name, loss in fcos_losses(outputs, assignment._replace(distances=spoilt)).items():
        assert loss == expected[name]


def test_box_loss_adds_one_by_default() -> None:
    """By default IoU is (I + 1) / (U + 1) in units of the stride."""
    outputs, assignment = random_outputs(1, 10, 2, 6), random_assignment(1, 10, 2, 7)
    assert fcos_losses(outputs, assignment)["loss_box"] == fcos_losses(outputs, assignment, 1.0)["loss_box"]
    assert fcos_losses(outputs, assignment)["loss_box"] != fcos_losses(outputs, assignment, 0.0)["loss_box"]


# ---------------------------------------------------------------------------------------------------------- inference


def test_decode_by_loop() -> None:
    points, distances = pyramid_points((64, 96)), random_outputs(2, 129, 1, 0).distances
    boxes = decode(points, distances)
    for b in range(2):
        for at, ((x, y), s) in enumerate(zip(points.xy.tolist(), points.stride.tolist(), strict=True)):
            left, top, right, bottom = (distances[b, at] * s).tolist()
            same(boxes[b, at], [x - left, y - top, x + right, y + bottom], 1e-13)


def test_decode_inverts_the_targets() -> None:
    points = pyramid_points((192, 320))
    boxes, labels, centers = padded_batch((9,), (192, 320), 3, 0)
    result = assign_targets(points, boxes, labels, centers, 0)
    decoded = decode(points, result.distances)[0]
    for at in torch.nonzero(result.labels[0]).flatten().tolist():
        same(decoded[at], boxes[0, result.matched[0, at]], 1e-12)


def sigmoid(x: float) -> float:
    return 1 / (1 + 2.718281828459045 ** (-x))


def naive_candidates(
    points: Points, outputs: Outputs, image: int, threshold: float, product: bool, top_n: int
) -> list[tuple[int, int, float]]:
    """(location, label, score), level by level and by falling score."""
    result = []
    for level in range(int(points.level.max()) + 1):
        found = []
        for at in range(len(points.level)):
            if points.level[at] != level:
                continue
            center = sigmoid(outputs.centerness[image, at].item())
            for k, logit in enumerate(outputs.logits[image, at].tolist(), start=1):
                score = sigmoid(logit) * center
                if (score if product else sigmoid(logit)) > threshold:
                    found.append((at, k, sqrt(score)))
        result += sorted(found, key=lambda candidate: -candidate[2])[:top_n]
    return result


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize(("threshold", "top_n"), [(0.05, 1000), (0.3, 20), (0.0, 7), (0.99, 5)])
def test_candidates_by_loop(product: bool, threshold: float, top_n: int) -> None:
    points = pyramid_points((64, 96))
    outputs = random_outputs(2, 129, 3, 1)
    for image in range(2):
        found = select_candidates(points, outputs, image, threshold, product, top_n)
        expected = naive_candidates(points, outputs, image, threshold, product, top_n)
        assert len(found.scores) == len(expected)
        boxes = decode(points, outputs.distances[image])
        for i, (at, label, score) in enumerate(expected):
            same(found.scores[i], score, 1e-12)
            assert found.labels[i] == label
            assert torch.equal(found.boxes[i], boxes[at])
            assert found.location[i] == at
    if threshold < 0.1:
        assert len({at for at, _, _ in expected}) < len(expected)  # some location gives several classes
    if threshold == 0.99:
        assert not len(expected) or not product
    assert max(sum(points.level[at] == level for at, _, _ in expected) for level in range(5)) <= top_n


@pytest.mark.parametrize("product", [False, True])
def test_candidates_are_above_the_threshold(product: bool) -> None:
    """Strictly: a score of exactly the threshold does not pass."""
    logits = torch.tensor([[[0.0], [0.001], [-0.001]]], dtype=torch.float64)  # sigmoid(0) is 0.5
    outputs = Outputs(logits, torch.ones(1, 3, 4), torch.full((1, 3), 800.0), torch.zeros(1, 3, 0))
    points = points_at([(4, 4), (12, 4), (20, 4)], [8], [(-1, 64)])
    assert select_candidates(points, outputs, 0, 0.5, product, 10).location.tolist() == [1]


def test_candidates_of_nothing() -> None:
    outputs = random_outputs(1, 129, 3, 1)
    found = select_candidates(pyramid_points((64, 96)), outputs, 0, 1.0, True, 10)
    assert found.boxes.shape == (0, 4)
    assert len(keep_best(class_nms(found, 0.6), 100).scores) == 0


def random_instances(count: int, classes: int, seed: int, size: tuple[int, int] = (60, 90)) -> Instances:
    generator = seeded(seed)
    boxes = random_boxes(count, size, generator)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, classes + 1, (count,), generator=generator)
    return Instances(boxes, scores, labels, torch.arange(count))


def naive_class_nms(instances: Instances, threshold: float) -> list[int]:
    boxes, scores, labels = (field.tolist() for field in (instances.boxes, instances.scores, instances.labels))
    return naive.box_nms(boxes, scores, labels, threshold, top=len(boxes))


@pytest.mark.parametrize("classes", [1, 3, 20])
@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_class_nms_by_loop(classes: int, threshold: float) -> None:
    instances = random_instances(120, classes, classes)
    kept = class_nms(instances, threshold)
    assert kept.location.tolist() == naive_class_nms(instances, threshold)
    assert len(kept.scores) < 120


def test_class_nms_beyond_the_image() -> None:
    """Unclipped boxes may reach far below 0; classes must not mix there either."""
    boxes = torch.tensor([[10.0, 10.0, 110.0, 110.0], [-101.0, -101.0, -1.0, -1.0], [-99.0, -99.0, 1.0, 1.0]])
    numbers = torch.tensor([0.9, 0.8, 0.7])
    instances = Instances(boxes, numbers, torch.tensor([1, 2, 2]), torch.arange(3))
    assert class_nms(instances, 0.6).scores.tolist() == pytest.approx([0.9, 0.8])


def test_keep_best_keeps_ties() -> None:
    instances = random_instances(10, 3, 0)
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.5, 0.7, 0.3, 0.5, 0.2, 0.8])
    instances = instances._replace(scores=scores)
    assert keep_best(instances, 3).location.tolist() == [1, 9, 5]
    for limit in (4, 5, 6, 7):  # the four that tie, in their own order
        assert keep_best(instances, limit).location.tolist() == [1, 9, 5, 0, 2, 4, 7]
    assert keep_best(instances, 8).location.tolist() == [1, 9, 5, 0, 2, 4, 7, 6]
    for limit in (0, 10, 100):  # 0: no limit
        assert keep_best(instances, limit).scores.tolist() == scores.sort(descending=True).values.tolist()


@pytest.mark.parametrize(("size", "output_size"), [((60, 90), (60, 90)), ((60, 90), (333, 120)), ((100, 37), (41, 41))])
def test_to_output_size_by_loop(size: tuple[int, int], output_size: tuple[int, int]) -> None:
    boxes = random_boxes(60, (100, 150), seeded(0)) - 30
    boxes[:3] = torch.tensor([[5, 5, 5, 20], [-9, 3, 0, 8], [size[1], 0, size[1] + 5, 9]])  # empty, or so once clipped
    result, keep = to_output_size(boxes, size, output_size)
    (height, width), (sy, sx) = output_size, (output_size[0] / size[0], output_size[1] / size[1])
    for box, ours, kept in zip(boxes.tolist(), result, keep.tolist(), strict=True):
        x0, x1 = (min(max(x * sx, 0), width) for x in box[0::2])
        y0, y1 = (min(max(y * sy, 0), height) for y in box[1::2])
        same(ours, [x0, y0, x1, y1], 1e-12)
        assert kept == (x1 > x0 and y1 > y0)
    assert not keep[:3].any()
    assert keep.any()


# -------------------------------------------------------------------------------------------------------------- model


def images_of(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = seeded(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": {"shared_towers": True}},
        {"head": {"norm": "bn", "top_channels": 0}},
        {"head": {"norm": "none", "tower_convs": 2}},
        {"center": "mass"},
        {"radius": 0, "giou_smooth": 0},
        {"levels": (3, 4, 5, 6, 7), "ranges": (16, 32, 64, 128)},
        {"levels": (2, 3), "ranges": (48,), "backbone_options": {"widths": (4, 8, 12)}},
    ],
)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = tiny_fcos(**options).train()
    sizes = [(128, 160), (117, 140)]
    targets = [random_targets(n, size, seeded(n)) for n, size in zip((5, 3), sizes, strict=True)]
    check_gradients(lambda: sum(model(images_of(*sizes), targets).values()), model)


@pytest.mark.parametrize("counts", [(0, 0), (4, 0), (0, 2)])
def test_trains_on_images_without_objects(counts: tuple[int, int]) -> None:
    """Finite losses and a gradient for every parameter, if only of 0."""
    torch.manual_seed(0)
    model = tiny_fcos().train()
    size = (96, 128)
    targets = [random_targets(n, size, seeded(n)) if n else empty_target(size) for n in counts]
    losses = model(images_of(size, size), targets)
    assert list(losses) == ["loss_class", "loss_box", "loss_centerness"]
    if not any(counts):
        assert losses["loss_box"] == losses["loss_centerness"] == 0
        assert losses["loss_class"] > 0
    check_gradients(lambda: sum(model(images_of(size, size), targets).values()), model, all_nonzero=any(counts))


def test_losses_of_a_batch_are_those_of_its_steps() -> None:
    """forward is: batch, network, assignment, losses."""
    torch.manual_seed(0)
    model = tiny_fcos(center="mass", radius=2.0).eval()  # eval: batch norm is a fixed map
    size = (96, 120)
    images, targets = images_of(size, size), [random_targets(n, size, seeded(n)) for n in (4, 2)]
    _, points, outputs = model.run(make_batch(images, model.mean, model.std, model.divisor))
    assignment = assign_targets(points, *pad_targets(targets, "mass"), 2.0)
    expected = naive_losses(Outputs(*(x.double() for x in outputs)), assignment, 1.0)
    model.training = True  # of the detector alone
    for name, loss in model(images, targets).items():
        same(loss, expected[name], 1e-4)


def detector(**options: Any) -> FCOS:
    torch.manual_seed(0)
    model = tiny_fcos(**options)
    enliven(model, seeded(3))
    return model.eval()


def check_results(results: list[dict[str, Tensor]], sizes: Sequence[tuple[int, int]], num_classes: int = 3) -> None:
    """torchvision's format, boxes within the image and not empty."""
    assert len(results) == len(sizes)
    for result, (height, width) in zip(results, sizes, strict=True):
        boxes, scores, labels = result["boxes"], result["scores"], result["labels"]
        assert boxes.shape == (len(scores), 4)
        assert labels.shape == scores.shape
        assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert (scores.diff() <= 0).all()
        assert ((labels >= 1) & (labels <= num_classes)).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= width).all()
        assert (boxes[:, 1::2] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


@torch.no_grad()
def test_results_are_torchvisions() -> None:
    model = detector()
    sizes = [(117, 203), (96, 128), (33, 61)]
    results = model(images_of(*sizes))
    check_results(results, sizes)
    assert all(result.keys() == {"boxes", "labels", "scores"} for result in results)
    assert all(len(result["scores"]) for result in results)


@torch.no_grad()
def test_inference_is_its_steps_by_loop() -> None:
    """From raw outputs to results by the loops above."""
    model = detector(candidates=40, detections=15).double()
    images = [image.double() for image in images_of((117, 203))]
    result = model(images, output_sizes=[(90, 301)])[0]
    _, points, outputs = model.run(make_batch(images, model.mean, model.std, model.divisor))
    candidates = naive_candidates(points, outputs, 0, 0.05, False, 40)
    locations = torch.tensor([at for at, _, _ in candidates])
    scores = torch.tensor([score for _, _, score in candidates], dtype=torch.float64)
    labels = torch.tensor([label for _, label, _ in candidates])
    boxes = decode(points, outputs.distances[0])[locations]
    everything = Instances(boxes, scores, labels, locations)
    kept = naive_class_nms(everything, 0.6)[:15]
    boxes, keep = to_output_size(boxes[kept], (117, 203), (90, 301))
    same(result["boxes"], boxes[keep], 1e-10)
    same(result["scores"], scores[kept][keep], 1e-10)
    assert torch.equal(result["labels"], labels[kept][keep])
    assert len(result["labels"]) > 5


@torch.no_grad()
def test_batched_equals_single() -> None:
    model = detector().double()
    images = [image.double() for image in images_of((117, 203), (117, 203))]
    single = [model([image])[0] for image in images]
    for together, alone in zip(model(images), single, strict=True):
        assert together.keys() == alone.keys()
        for name in together:
            same(together[name], alone[name], 1e-9)
    assert not torch.equal(single[0]["scores"], single[1]["scores"])


@torch.no_grad()
def test_output_sizes_scale_the_boxes() -> None:
    model = detector()
    images = images_of((96, 128), (96, 128))
    own, scaled = model(images), model(images, output_sizes=[(96, 128), (192, 64)])
    check_results(scaled, [(96, 128), (192, 64)])
    assert torch.equal(own[0]["boxes"], scaled[0]["boxes"])
    same(own[1]["boxes"] * torch.tensor([0.5, 2, 0.5, 2]), scaled[1]["boxes"], 1e-5)
    assert torch.equal(own[1]["scores"], scaled[1]["scores"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: None, "one target per image: 2 images, 0 targets"),
        (lambda t: t[:1], "one target per image: 2 images, 1 targets"),
        (lambda t: [t[0], {"boxes": t[1]["boxes"]}], "target 1 has no labels"),
        (lambda t: [t[0], {"labels": t[1]["labels"]}], "target 1 has no boxes"),
        (lambda t: [{**t[0], "boxes": t[0]["boxes"][:, :3]}, t[1]], r"target 0: boxes must be \(M, 4\)"),
        (lambda t: [{**t[0], "boxes": t[0]["boxes"][:1]}, t[1]], r"target 0: boxes must be \(M, 4\)"),
    ],
)
def test_refuses_targets(change: Any, message: str) -> None:
    size = (64, 64)
    targets = [{k: v for k, v in random_targets(2, size, seeded(i)).items() if k != "masks"} for i in range(2)]
    with pytest.raises(ValueError, match=message):
        tiny_fcos().train()(images_of(size, size), change(targets))


def test_mass_centers_need_masks() -> None:
    target = {k: v for k, v in random_targets(2, (64, 64), seeded(0)).items() if k != "masks"}
    with pytest.raises(ValueError, match="mass centres need 'masks' or 'centers' in every target"):
        tiny_fcos(center="mass").train()(images_of((64, 64)), [target])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": (64,)}, "3 levels need 2 ends of ranges, not 1"),
        ({"head_from": 4}, "2 levels need 1 ends of ranges, not 2"),
        ({"center": "median"}, "center must be"),
        ({"backbone": "alexnet", "backbone_options": {}}, "unknown backbone"),
        ({"levels": (3, 5), "ranges": (64,)}, "FPN levels"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_fcos(**options)


def test_head_from_leaves_the_finest_levels_to_others() -> None:
    """The pyramid has P2, the head starts at P3: strides, ranges and locations are the head's."""
    model = tiny_fcos(levels=(2, 3, 4, 5), head_from=3)
    assert model.strides == (8, 16, 32)
    assert model.ranges == [(-1, 32), (32, 64), (64, inf)]
    pyramid, points, outputs = model.run(make_batch(images_of((64, 96)), model.mean, model.std, model.divisor))
    assert [tuple(x.shape[-2:]) for x in pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert points.stride.unique().tolist() == [8, 16, 32]
    expected = model.head(pyramid[1:])
    assert all(torch.equal(x, y) for x, y in zip(outputs, expected, strict=True))


def test_default_ranges_are_the_papers() -> None:
    model = FCOS(2, backbone="tiny", channels=8, head={"tower_convs": 1})
    assert model.ranges == RANGES
    assert model.strides == STRIDES


def test_no_python_loop_over_objects_or_locations() -> None:
    """A training step runs the same operations, as often, for 2 objects an image and for 20, small images and large."""
    torch.manual_seed(0)
    model = tiny_fcos(center="mass").train()

    def step(count: int, size: tuple[int, int]) -> Any:
        return step_operations(model, images_of(size, size), [random_targets(count, size, seeded(i)) for i in range(2)])

    few = step(2, (96, 128))
    assert sum(few.values()) > 100
    assert step(20, (96, 128)) == few
    assert step(2, (160, 224)) == few


# ------------------------------------------------------------------------------------------------------- golden data


def test_small_steps_against_the_official_code() -> None:
    numbers = {key: torch.from_numpy(value) for key, value in official("component_misc.npz").items()}
    same(centerness(numbers["iou_target"]), numbers["ctrness_target"], 1e-6)
    focal = sigmoid_focal_loss(numbers["focal_logits"], numbers["focal_targets"], alpha=0.25, gamma=2)
    same(focal, numbers["focal_none"], 1e-6)
    for threshold, key in ((0.6, "nms_keep_0p6"), (0.3, "nms_keep_0p3")):
        boxes, scores, classes = numbers["nms_boxes"], numbers["nms_scores"], numbers["nms_classes"]
        kept = class_nms(Instances(boxes, scores, classes + 1, torch.arange(len(boxes))), threshold)
        assert torch.equal(kept.location, numbers[key])


def check_official_targets(result: Assignment, labels: Tensor, matched: Tensor, distances: Tensor) -> None:
    """Official background is 80, class c is our c + 1; only positives' distances and objects mean anything."""
    positive = labels < 80
    assert torch.equal(result.labels, torch.where(positive, labels.long() + 1, 0))
    assert torch.equal(result.matched[positive], matched[positive].long())
    same(result.distances[positive], distances[positive], 1e-6)


@pytest.mark.parametrize(("kind", "center"), [("box", "box"), ("mask", "mass")])
def test_assignment_of_random_boxes_against_the_official_code(kind: str, center: str) -> None:
    numbers = {key: torch.from_numpy(value) for key, value in official("component_misc.npz").items()}
    shape = tuple(numbers["assign_masks_shape"].tolist())
    bits = numbers["assign_masks"][..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1
    target = {
        "boxes": numbers["assign_boxes"],
        "labels": numbers["assign_classes"] + 1,
        "masks": bits.flatten(2).reshape(shape).bool(),
    }
    points = make_points(
        [torch.zeros(1, 1, *s) for s in ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))], STRIDES, RANGES
    )
    result = assign_targets(points, *pad_targets([target], center))
    assert (result.labels > 0).sum() > 100
    check_official_targets(
        Assignment(*(field[0] for field in result)),
        *(numbers[f"assign_{kind}_{name}"] for name in ("labels", "gt", "reg")),
    )


@pytest.mark.parametrize(
    ("name", "center", "radius"),
    [("FCOS_R_50_1x_A", "box", 1.5), ("CondInst_MS_R_50_1x_A", "mass", 1.5)],
)
def test_training_targets_against_the_official_code(name: str, center: str, radius: float) -> None:
    """Two images of different sizes, padded; official order is level, image, location, and objects count through."""
    numbers, inputs = official(f"train_{name}.npz"), official("train_inputs.npz")
    targets = [
        {
            "boxes": torch.from_numpy(inputs[f"A{i}_boxes"]),
            "labels": torch.from_numpy(inputs[f"A{i}_classes"]) + 1,
            "masks": torch.from_numpy(inputs[f"A{i}_masks"]),
        }
        for i in range(2)
    ]
    points = make_points(
        [torch.zeros(1, 1, *s) for s in ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))], STRIDES, RANGES
    )
    result = assign_targets(points, *pad_targets(targets, center), radius)
    first = torch.tensor([0, len(targets[0]["labels"])])[:, None]
    result = result._replace(matched=result.matched + first)
    order = torch.cat(
        [(points.level == level).nonzero().flatten() + len(points.level) * i for level in range(5) for i in range(2)]
    )
    flat = Assignment(*(field.flatten(0, 1)[order] for field in result))
    assert torch.equal(torch.nonzero(flat.labels).flatten(), torch.from_numpy(numbers["pos_inds"]))
    fields = (torch.from_numpy(numbers[key]) for key in ("t_labels", "t_gt_inds", "t_reg_targets"))
    check_official_targets(flat, *fields)


@pytest.mark.parametrize("name", ["FCOS_R_50_1x_A", "CondInst_MS_R_50_1x_A"])
def test_box_losses_against_the_official_code(name: str) -> None:
    numbers = {k: torch.from_numpy(v)[None] for k, v in official(f"train_{name}.npz").items() if k.startswith("pos_")}
    outputs = Outputs(numbers["pos_logits"], numbers["pos_reg_pred"], numbers["pos_ctr_pred"], torch.zeros(1, 1, 0))
    assignment = Assignment(numbers["pos_labels"] + 1, numbers["pos_reg_targets"], numbers["pos_gt_inds"])
    losses = fcos_losses(outputs, assignment)
    expected = {"FCOS_R_50_1x_A": (0.781561, 0.861723), "CondInst_MS_R_50_1x_A": (0.783218, 0.881169)}[name]
    assert losses["loss_box"].item() == pytest.approx(expected[0], abs=2e-6)
    assert losses["loss_centerness"].item() == pytest.approx(expected[1], abs=2e-6)
    same(centerness(assignment.distances), numbers["pos_ctr_targets"], 1e-6)


@pytest.mark.parametrize(
    ("variant", "threshold", "product", "limit"),
    [("", 0.05, False, 100), ("_ctrthresh", 0.05, True, 100), ("_lowthr", 0.015, False, 0)],
)
def test_detections_against_the_official_code(variant: str, threshold: float, product: bool, limit: int) -> None:
    """From the raw outputs of a real network to the same list of boxes, classes and scores."""
    points, outputs = official_outputs(official("infer_FCOS_R_50_1x_synthA.npz"), STRIDES, RANGES)
    expected = official(f"infer_FCOS_R_50_1x_synthA{variant}.npz")
    found = class_nms(select_candidates(points, outputs, 0, threshold, product, 1000), 0.6)
    found = keep_best(found, limit)
    boxes, keep = to_output_size(found.boxes, (256, 320), (256, 320))
    same(found.scores[keep], expected["im0_scores"], 1e-5)
    same(found.labels[keep] - 1, expected["im0_classes"])
    same(boxes[keep], expected["im0_boxes"], 1e-3)
    same(points.xy[found.location[keep]], expected["im0_locations"])
    same(points.level[found.location[keep]], expected["im0_fpn_levels"])
