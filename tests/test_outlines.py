"""Polygons drawn sparsely against pycocotools at full, padded size, as the official code draws them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from condinst_edu.coordinates import mass_centers
from condinst_edu.datasets.outlines import Placement, Polygons, draw_polygons, run_limits


def random_objects(old: tuple[int, int], count: int = 40) -> list[Polygons]:
    """Objects of one to three polygons: tiny, large, thin, star-shaped, some beyond the image's edges."""
    rng = np.random.default_rng(old[0])
    objects: list[Polygons] = []
    for k in range(count):
        polygons = []
        for _ in range(1 + k % 3):
            corners = int(rng.integers(3, 40))
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            radius = rng.uniform(0.3, 1, corners)
            extent = np.array(old[::-1]) * rng.uniform(0.005, 0.9, 2)
            points = np.array(old[::-1]) * rng.uniform(-0.1, 1.1, 2) + extent * np.stack(
                [radius * np.cos(angles), radius * np.sin(angles)], axis=1
            )
            polygons.append((points.round(2) if k % 2 else points.round()).reshape(-1))
        objects.append(polygons)
    width, height = float(old[1]), float(old[0])
    objects.append([np.array([0, 0, width, 0, width, height, 0, height])])  # the whole image
    objects.append([np.array([5.0, -9, 9, -9, 9, height + 9, 5, height + 9])])  # all of some columns
    objects.append([np.array([-9.0, -9, -5, -9, -5, -5])])  # outside
    return objects


def official(polygons: Polygons, place: Placement) -> NDArray[np.bool_]:
    """The steps of the official code: move the points, draw them at the padded size, crop."""
    moved = []
    for polygon in polygons:
        points = polygon.reshape(-1, 2).copy()
        points[:, 0] = points[:, 0] * (place.new[1] * 1.0 / place.old[1])
        points[:, 1] = points[:, 1] * (place.new[0] * 1.0 / place.old[0])
        if place.mirror:
            points[:, 0] = place.new[1] - points[:, 0]
        if place.turn:
            points[:, 1] = place.new[0] - points[:, 1]
        moved.append(points.reshape(-1))
    padded = [-(-side // 32) * 32 for side in place.new]
    mask = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(moved, *padded))).astype(bool)
    return mask[: place.new[0], : place.new[1]]


@pytest.mark.parametrize("stride", [None, 1, 2, 4, 8, 32])
@pytest.mark.parametrize(
    "place",
    [
        Placement((48, 64), (48, 64)),
        Placement((48, 64), (80, 107), mirror=True),
        Placement((61, 33), (203, 110), turn=True),
        Placement((90, 120), (31, 41), True, True),
        Placement((40, 50), (3, 4)),
    ],
)
def test_equals_the_official_way(place: Placement, stride: int | None) -> None:
    objects = random_objects(place.old)
    full = np.stack([official(polygons, place) for polygons in objects])
    masks, area, centers = draw_polygons(objects, place, stride)
    step = stride or 1
    assert torch.equal(masks, torch.from_numpy(full[:, step // 2 :: step, step // 2 :: step].copy()))
    assert area.tolist() == full.sum(axis=(1, 2)).tolist()
    assert (area == 0).any()
    assert full.mean() > 0.1
    expected = torch.where(area[:, None] > 0, mass_centers(torch.from_numpy(full).double()), 0)
    torch.testing.assert_close(centers, expected.float(), rtol=0, atol=1e-4)


def test_large_image() -> None:
    """At COCO's size every cell is right too, and centres are to a hundredth of a pixel those of float32 sums."""
    place = Placement((480, 640), (800, 1067), True)
    objects = random_objects(place.old, 8)
    full = torch.from_numpy(np.stack([official(polygons, place) for polygons in objects]))
    masks, _, centers = draw_polygons(objects, place, 4)
    assert torch.equal(masks, full[:, 2::4, 2::4])
    seen = full.flatten(1).any(dim=1)
    assert (centers - mass_centers(full))[seen].abs().max() < 0.01


def test_no_object() -> None:
    masks, area, centers = draw_polygons([], Placement((48, 64), (80, 107)), 4)
    assert (masks.shape, masks.dtype, area.shape, centers.shape) == ((0, 20, 27), torch.bool, (0,), (0, 2))
    assert draw_polygons([], Placement((48, 64), (80, 107)), None).masks.shape == (0, 80, 107)


def test_run_limits() -> None:
    """Noise of all densities, beginning with a set pixel too, against the pixels themselves."""
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((37, 53)) < share for share in (0, 0.001, 0.3, 0.97, 1)] * 2)
    masks[5:, 0, 0] = True
    rles = mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    starts, ends = run_limits([rle["counts"] for rle in rles])
    for mask, first, last in zip(masks, starts, ends, strict=True):
        found = np.zeros(37 * 53, bool)
        for a, b in zip(first, last, strict=True):
            assert not found[a:b].any()
            found[a:b] = True
        assert np.array_equal(found.reshape(53, 37).T, mask)
