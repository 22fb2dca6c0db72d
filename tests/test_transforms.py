"""Resizing, mirroring and sampling against loops over pixels; the training transform against its steps in turn."""

from typing import Any

import pytest
import torch
from helpers import mask_boxes, seeded
from torch import Tensor

from condinst_edu.condinst import semantic_map
from condinst_edu.coordinates import mass_centers
from condinst_edu.datasets import transforms
from condinst_edu.datasets.transforms import TrainTransform


def random_sample(height: int, width: int, objects: int = 4) -> tuple[Tensor, dict[str, Any]]:
    """An image of noise, and masks of noise within boxes; the last object is a crowd."""
    generator = seeded(height * width)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(0, n // 2, (), generator=generator)) for n in (height, width))
        part = mask[y : y + height // 2, x : x + width // 2]
        part[:] = torch.rand(part.shape, generator=generator) < 0.5
    labels = torch.arange(1, objects + 1)
    target = {"boxes": mask_boxes(masks), "labels": labels, "masks": masks, "iscrowd": labels == 4, "image_id": 5}
    return image, target


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, other[key], rtol=0, atol=tolerance)
        else:
            assert value == other[key]


# Sizes that detectron2's ResizeShortestEdge.get_output_shape gives.
@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 640), 800, 1333, (625, 1333)),
        ((640, 300), 640, 1333, (1333, 625)),
        ((128, 128), 128, 1333, (128, 128)),
        ((5, 4000), 10, 100, (1, 100)),
        ((333, 500), 640, 1333, (640, 961)),
    ],
)
def test_resized_size(size: tuple[int, int], short_side: int, max_size: int, expected: tuple[int, int]) -> None:
    assert transforms.resized_size(size, short_side, max_size) == expected


@pytest.mark.parametrize("short_side", [7, 31, 48, 100])
def test_resize(short_side: int) -> None:
    image, target = random_sample(31, 45)
    resized, found = transforms.resize(image, target, short_side, 1000)
    height, width = resized.shape[1:]
    assert (height, width) == transforms.resized_size((31, 45), short_side, 1000)
    assert resized.dtype == torch.uint8
    for y in range(height):
        for x in range(width):
            source = target["masks"][:, int((y + 0.5) * 31 / height), int((x + 0.5) * 45 / width)]
            assert torch.equal(found["masks"][:, y, x], source)
    scale = torch.tensor([width / 45, height / 31, width / 45, height / 31])
    torch.testing.assert_close(found["boxes"], target["boxes"] * scale)
    exact = torch.nn.functional.interpolate(
        image[None].double(), size=(height, width), mode="bilinear", antialias=True
    )[0]
    assert (resized - exact).abs().max() <= 1  # uint8 is rounded
    as_float = transforms.resize_image(image.float() / 255, short_side, 1000)
    torch.testing.assert_close(as_float.double(), exact / 255, atol=1e-5, rtol=0)


def test_masks_keep_their_place_under_resizing() -> None:
    """Boxes are scaled, masks resized: the box of a large mask follows within a pixel."""
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 11:47, 23:71] = True
    target = {"boxes": mask_boxes(masks), "masks": masks}
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    for short_side in (37, 60, 93, 180):
        _, found = transforms.resize(image, target, short_side, 1000)
        assert (mask_boxes(found["masks"]) - found["boxes"]).abs().max() <= 0.5


def test_flips() -> None:
    image, target = random_sample(20, 31)
    for flip, axis in ((transforms.hflip, 2), (transforms.vflip, 1)):
        flipped, found = flip(image, target)
        assert torch.equal(flipped, torch.stack(image.unbind(axis)[::-1], axis))
        assert torch.equal(found["masks"], torch.stack(target["masks"].unbind(axis)[::-1], axis))
        assert torch.equal(found["boxes"], mask_boxes(found["masks"]))
        again, back = flip(flipped, found)
        assert torch.equal(again, image)
        assert_same(back, target)
        assert not torch.equal(found["boxes"], target["boxes"])


def test_drop_crowd() -> None:
    _, target = random_sample(20, 31)
    found = transforms.drop_crowd(target)
    assert found["labels"].tolist() == [1, 2, 3]
    assert torch.equal(found["masks"], target["masks"][:3])
    assert found["image_id"] == 5
    assert len(target["boxes"]) == 4


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_sample_masks(stride: int) -> None:
    _, target = random_sample(23, 33)
    found = transforms.sample_masks(target["masks"], stride)
    for i, y in enumerate(range(stride // 2, 23, stride)):
        for j, x in enumerate(range(stride // 2, 33, stride)):
            assert torch.equal(found[:, i, j], target["masks"][:, y, x])
    assert found.shape[1:] == (-((stride // 2 - 23) // stride), -((stride // 2 - 33) // stride))


def test_read_centers() -> None:
    _, target = random_sample(23, 33)
    target["masks"][2] = False
    rows, columns = transforms.nearest_pixels(23, 50).flip(0), transforms.nearest_pixels(33, 20)
    area, centers = transforms.read_centers(target["masks"], rows, columns)
    masks = transforms.read_masks(target["masks"], rows, columns)
    for k, mask in enumerate(masks):
        pixels = [(x, y) for y in range(50) for x in range(20) if mask[y, x]]
        assert area[k] == len(pixels)
        expected = torch.tensor(pixels, dtype=torch.float64).mean(dim=0) if pixels else torch.zeros(2)
        torch.testing.assert_close(centers[k], expected.float())


def test_large_centers_are_exact() -> None:
    masks = torch.ones(1, 1333, 1333, dtype=torch.bool)
    pixels = torch.arange(1333)
    area, centers = transforms.read_centers(masks, pixels, pixels)
    assert area.tolist() == [1333**2]
    assert centers.tolist() == [[666, 666]]


# --------------------------------------------------------------------------------------------------------- for training


def in_turn(
    transform: TrainTransform, image: Tensor, target: dict[str, Any], short_side: int | None, mirror: bool, turn: bool
) -> tuple[Tensor, dict[str, Any]]:
    """What the training transform does, with each step on full-size masks."""
    target = transforms.drop_crowd(target)
    if short_side is not None:
        image, target = transforms.resize(image, target, short_side, transform.max_size)
    if mirror:
        image, target = transforms.hflip(image, target)
    if turn:
        image, target = transforms.vflip(image, target)
    target = transforms.select(target, target["masks"].flatten(1).any(dim=1))
    if transform.mask_stride is not None:
        target["centers"] = mass_centers(target["masks"])
        target["masks"] = transforms.sample_masks(target["masks"], transform.mask_stride)
    return image, target


@pytest.mark.parametrize("mask_stride", [None, 2, 4])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("short_side", [None, 17, 55])
def test_train_transform(mask_stride: int | None, mirror: bool, turn: bool, short_side: int | None) -> None:
    short_sides = () if short_side is None else (short_side,)
    transform = TrainTransform(short_sides, 60, float(mirror), float(turn), mask_stride)
    image, target = random_sample(29, 41)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
    found_image, found = transform(image, target, seed=3)
    expected_image, expected = in_turn(transform, image, target, short_side, mirror, turn)
    assert found_image.dtype == torch.uint8
    assert torch.equal(found_image, expected_image)
    assert_same(found, expected, 1e-4)
    assert ("centers" in found) == (mask_stride is not None)
    assert_same(target, before)


@pytest.mark.parametrize("outlines", [False, True])
def test_semantic_map_of_sampled_masks(outlines: bool) -> None:
    """Labels for the semantic task: those that full-size masks give, without making these."""
    image, target = random_sample(61, 43)
    if outlines:
        corners = torch.tensor([[4.0, 3, 40, 5, 37, 55], [10, 20, 30, 20, 30, 58], [12, 22, 29, 24, 20, 50]]).double()
        target = {k: v[:3] for k, v in target.items() if isinstance(v, Tensor)}
        target["segmentations"] = [[polygon.numpy()] for polygon in corners]
        target["boxes"] = torch.tensor([[4.0, 3, 40, 55], [10, 20, 30, 58], [12, 22, 29, 50]])
        target["iscrowd"] = torch.zeros(3, dtype=torch.bool)
        del target["masks"]
    target["labels"] = torch.arange(1, len(target["labels"]) + 1)
    settings = ((90,), 200, 1.0, 1.0)
    _, full = TrainTransform(*settings)(image, target, 5)
    _, found = TrainTransform(*settings, mask_stride=4, semantic_stride=8)(image, target, 5)
    assert torch.equal(found["semantic"], semantic_map(full["masks"], full["labels"], 8))
    assert len(found["semantic"].unique()) > 2
    assert torch.equal(found["masks"], full["masks"][:, 2::4, 2::4])


def test_seed_decides() -> None:
    transform = TrainTransform((20, 30, 40), 100, 0.5, 0.5, 4)
    image, target = random_sample(29, 41)
    results = [transform(image, target, seed) for seed in range(200)]
    again = transform(image, target, 7)
    assert torch.equal(again[0], results[7][0])
    assert_same(again[1], results[7][1])
    assert {min(image.shape[1:]) for image, _ in results} == {20, 30, 40}
    assert 45 < sum(min(image.shape[1:]) == 20 for image, _ in results) < 90
    native = TrainTransform((), 100, 0.5)
    mirrored = sum(torch.equal(native(image, target, s)[0], image.flip(2)) for s in range(200))
    assert 80 < mirrored < 120


def test_tiny_and_outlying_objects() -> None:
    """An object that vanishes in resizing is left out; one between the cells stays; boxes end at the image's edge."""
    masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    masks[0, 4, 4] = True  # between the pixels that are read at a quarter of the size
    masks[1, 8:20, 8:20] = True
    masks[2, 9:11, 9:11] = True  # two pixels, none of which is read at stride 4
    masks[3, 8:20, 8:20] = True
    boxes = mask_boxes(masks)
    boxes[1] = torch.tensor([-5.0, 8, 40, 20])
    boxes[3] = torch.tensor([32.0, 0, 40, 20])  # beyond the edge
    target = {"boxes": boxes, "labels": torch.arange(4), "masks": masks, "iscrowd": torch.zeros(4, dtype=torch.bool)}
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    _, found = TrainTransform((8,), 100, 0.0)(image, target, 0)
    assert found["labels"].tolist() == [1, 2]
    assert found["boxes"][0].tolist() == [0, 2, 8, 5]
    _, found = TrainTransform((), 100, 0.0, mask_stride=4)(image, target, 0)
    assert found["labels"].tolist() == [0, 1, 2]
    assert found["masks"].flatten(1).any(dim=1).tolist() == [False, True, True]


def test_image_without_objects() -> None:
    image, target = random_sample(29, 41, objects=0)
    image, target = TrainTransform((40,), 100, 1.0, 1.0, 4)(image, target, 0)
    shapes = {k: tuple(v.shape) for k, v in target.items() if isinstance(v, Tensor)}
    size = (-((2 - image.shape[1]) // 4), -((2 - image.shape[2]) // 4))
    assert shapes == {"boxes": (0, 4), "labels": (0,), "masks": (0, *size), "iscrowd": (0,), "centers": (0, 2)}


def test_random_crop() -> None:
    """Image, masks and boxes are cut alike; the place depends on the seed; objects that lose all their pixels go."""
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, :, :] = True
    masks[1, 5:9, 50:58] = True
    masks[2, 30:38, 2:6] = True
    target = {
        "boxes": torch.tensor([[0.0, 0, 60, 40], [50, 5, 58, 9], [2, 30, 6, 38]]),
        "labels": torch.tensor([1, 2, 3]),
        "masks": masks,
        "iscrowd": torch.zeros(3, dtype=torch.bool),
        "image_id": 7,
    }
    image = torch.arange(40 * 60).reshape(1, 40, 60).expand(3, -1, -1).remainder(251).byte()
    transform = TrainTransform(flip=0.0, crop=(16, 100))
    places = set()
    for seed in range(12):
        part, found = transform(image, dict(target), seed)
        assert part.shape == (3, 16, 60)
        top = next(t for t in range(25) if torch.equal(image[:, t : t + 16], part))
        places.add(top)
        kept = [k for k in range(3) if masks[k, top : top + 16].any()]
        assert found["labels"].tolist() == [k + 1 for k in kept]
        assert torch.equal(found["masks"], masks[kept, top : top + 16])
        for box, mask in zip(found["boxes"].tolist(), found["masks"], strict=True):
            y, x = mask.nonzero(as_tuple=True)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert len(places) > 3
    assert torch.equal(transform(image, dict(target), 5)[0], transform(image, dict(target), 5)[0])
