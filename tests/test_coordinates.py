"""Locations, coordinate maps and mass centres against loops over single cells."""

import pytest
import torch
from helpers import official, same, seeded

from condinst_edu.coordinates import absolute_coordinates, locations, mass_centers, neighbours, relative_coordinates
from condinst_edu.papers import naive_condinst, naive_fcos

SIZES = [(3, 5), (7, 2), (1, 4)]
STRIDES = [1, 2, 3, 4, 8, 16, 128]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", STRIDES)
def test_locations_are_the_papers(size: tuple[int, int], stride: int) -> None:
    result = locations(size, stride)
    assert result.dtype == torch.float32
    assert result.tolist() == [list(map(float, point)) for point in naive_fcos.locations(size, stride)]


def test_locations_against_the_official_code() -> None:
    numbers = official("component_misc.npz")
    assert torch.equal(locations((3, 4), 8), torch.from_numpy(numbers["locations_h3_w4_s8"]))
    assert torch.equal(locations((2, 2), 128), torch.from_numpy(numbers["locations_h2_w2_s128"]))


@pytest.mark.parametrize("size", [*SIZES, (1, 1)])
@pytest.mark.parametrize("start", [0, 10])
def test_neighbours_by_loop(size: tuple[int, int], start: int) -> None:
    """The 3x3 cells around each, row by row; -1 off the map."""
    height, width = size
    expected = [
        [
            start + y * width + x if 0 <= y < height and 0 <= x < width else -1
            for y in (i - 1, i, i + 1)
            for x in (j - 1, j, j + 1)
        ]
        for i in range(height)
        for j in range(width)
    ]
    assert neighbours(size, start).tolist() == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [3, 8])
def test_relative_coordinates_by_loop(size: tuple[int, int], stride: int) -> None:
    generator = seeded(0)
    centers = 40 * torch.rand(4, 2, generator=generator, dtype=torch.float64)
    scales = 64 + 100 * torch.rand(4, generator=generator, dtype=torch.float64)
    expected = torch.stack(
        [
            naive_condinst.relative_coordinates(size, stride, center, unit)
            for center, unit in zip(centers.tolist(), scales.tolist(), strict=True)
        ]
    )
    result = relative_coordinates(size, stride, centers, scales)
    assert result.dtype == torch.float64
    same(result, expected, 1e-14)


def test_relative_coordinates_have_the_instance_as_origin() -> None:
    """0 at the location itself, x grows to the right and y downwards, one scale away is 1."""
    maps = relative_coordinates((6, 9), 8, torch.tensor([[36.0, 20.0]]), torch.tensor([16.0]))[0]
    assert maps[:, 2, 4].tolist() == [0, 0]
    assert maps[:, 2, 6].tolist() == [1, 0]
    assert maps[:, 4, 4].tolist() == [0, 1]
    assert relative_coordinates((6, 9), 8, torch.zeros(0, 2), torch.zeros(0)).shape == (0, 2, 6, 9)


def test_relative_coordinates_against_the_official_code() -> None:
    """Official: location - pixel, in units of 64 on P3, doubled with every level; the sign is ours to change."""
    numbers = official("component_maskhead_CondInst_MS_R_50_1x.npz")
    centers = torch.from_numpy(numbers["locations"])
    scales = 64.0 * 2 ** torch.from_numpy(numbers["fpn_levels"])
    result = relative_coordinates((32, 40), 8, centers, scales)
    assert torch.equal(-result[:, :, ::4, ::4], torch.from_numpy(numbers["rel_coords"]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [3, 8])
def test_absolute_coordinates_by_loop(size: tuple[int, int], stride: int) -> None:
    result = absolute_coordinates(size, stride)
    same(result, naive_condinst.absolute_coordinates(size, stride), 1e-6)
    assert result.abs().max() <= 1


def ring(height: int, width: int, y: int, x: int, inner: float, outer: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = ((rows - y) ** 2 + (columns - x) ** 2).sqrt()
    return (distance >= inner) & (distance <= outer)


def test_mass_centers_by_loop() -> None:
    masks = torch.rand(5, 11, 17, generator=seeded(1)) < 0.3
    result = mass_centers(masks)
    assert result.dtype == torch.float32
    for mask, center in zip(masks, result, strict=True):
        same(center, naive_fcos.mass_center(mask), 1e-5)
    for dtype in (torch.uint8, torch.int64, torch.float64):
        assert torch.equal(mass_centers(masks.to(dtype)), result)


def test_mass_centers_of_special_masks() -> None:
    masks = torch.zeros(4, 30, 40, dtype=torch.bool)
    masks[0, 7, 31] = True  # a single pixel
    masks[1] = True  # everything: the middle pixel index, not the middle of the image
    masks[2] = ring(30, 40, 14, 19, 6, 9)  # its centre lies in the hole
    centers = mass_centers(masks)  # and one is empty
    same(centers, [[31, 7], [19.5, 14.5], [19, 14], [19.5, 14.5]], 1e-6)
    assert not masks[2, 14, 19]
    assert mass_centers(masks[:0]).shape == (0, 2)


def test_mass_centers_of_weights() -> None:
    """Soft masks are weighted, also where all of it together is less than one pixel."""
    weights = torch.zeros(1, 3, 9)
    weights[0, 1, 2], weights[0, 2, 6] = 0.1, 0.3
    same(mass_centers(weights), [[5.0, 1.75]], 1e-6)


def test_mass_centers_of_large_masks() -> None:
    """A million pixels are summed without losing a hundredth of a pixel."""
    mask = torch.zeros(1, 800, 1333, dtype=torch.bool)
    mask[0, 100:, 33:] = True
    same(mass_centers(mask), [[(33 + 1332) / 2, (100 + 799) / 2]], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mass_centers_in_mixed_precision(dtype: torch.dtype) -> None:
    """The same as without: sums over pixel numbers pass 65504, the largest number of float16."""
    masks = torch.zeros(2, 300, 500, dtype=torch.bool)
    masks[0, 20:280, 101:450] = masks[1, 7:8, 300:499] = True
    with torch.autocast("cpu", dtype):
        centers = mass_centers(masks)
    assert centers.dtype == torch.float32
    assert torch.equal(centers, mass_centers(masks))
