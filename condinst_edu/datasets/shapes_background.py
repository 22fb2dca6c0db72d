"""The background of shapes: several kinds of stuff that meet at irregular borders, each with its colours and pattern.

H, W image, C bands of stuff from top to bottom.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# For each stuff: dark and light RGB, and how much of clouds, blades, ripples and grain leads from one to the other
STUFF_LOOKS = {
    "sky": ((0.36, 0.56, 0.82), (0.88, 0.92, 0.97), (1.0, 0.0, 0.0, 0.0)),
    "grass": ((0.13, 0.30, 0.10), (0.50, 0.64, 0.26), (0.5, 0.45, 0.0, 0.0)),
    "water": ((0.05, 0.24, 0.40), (0.30, 0.58, 0.70), (0.4, 0.0, 0.5, 0.0)),
    "sand": ((0.58, 0.46, 0.28), (0.92, 0.82, 0.62), (0.6, 0.0, 0.0, 0.3)),
}
STUFF = tuple(STUFF_LOOKS)


def paint_background(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Floats]:
    """Two to four kinds of stuff in bands, the sky on top: indices into STUFF (H, W), RGB around 0..1 (3, H, W)."""
    kinds = rng.permutation(len(STUFF))[: int(rng.integers(2, len(STUFF), endpoint=True))]
    kinds = kinds[np.argsort(kinds != STUFF.index("sky"), kind="stable")]
    down, right = np.linspace(0, 1, size[0], dtype=np.float32), np.linspace(0, 1, size[1], dtype=np.float32)
    depth = 0.5 * clouds(rng, size, 2) + down[:, None] + rng.uniform(-0.4, 0.4) * right
    depth -= depth.min()
    depth /= depth.max()  # 0..1 over the image, so that every band gets its part
    band: NDArray[np.intp] = np.zeros(size, np.intp)
    for cut in (np.arange(1, len(kinds)) + rng.uniform(-0.25, 0.25, len(kinds) - 1)) / len(kinds):
        band += depth > cut
    looks = [STUFF_LOOKS[STUFF[kind]] for kind in kinds]
    colors = np.array([look[:2] for look in looks]).transpose(1, 2, 0)
    dark, light = (colors + rng.normal(0, 0.03, colors.shape)).astype(np.float32)  # (3, C) each
    weights = np.array([look[2] for look in looks], np.float32).T  # (4, C)
    texture = _texture(rng, size, weights, band)
    canvas = np.take((light - dark) / 2, band, axis=1)  # (3, H, W)
    canvas *= texture
    canvas += np.take((light + dark) / 2, band, axis=1)
    return kinds.astype(np.uint8)[band], canvas


def _texture(rng: np.random.Generator, size: tuple[int, int], weights: Floats, band: NDArray[np.intp]) -> Floats:
    """From -1 (dark) to 1 (light), (H, W), out of four patterns mixed by each band's weights (4, C)."""
    soft = clouds(rng, size, 3)
    grain = rng.standard_normal((size[0] + 3, size[1]), np.float32)
    blades = (grain[:-3] + grain[1:-2] + grain[2:-1] + grain[3:]) / 2  # grass: tall streaks
    waves = 2 * math.pi / rng.uniform(5, 9) * np.arange(size[0], dtype=np.float32)[:, None]
    ripples = np.sin(waves.astype(np.float32) + 4 * soft)
    total: Floats = np.zeros(size, np.float32)
    for pattern, weight in zip((soft, blades, ripples, grain[:-3]), weights, strict=True):
        if weight.any():
            total += weight[band] * pattern
    return total


def clouds(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Floats:
    """Smooth noise (H, W) around -1..1: a random grid of so many cells along the shorter side, and two finer ones."""
    total: Floats = np.zeros(size, np.float32)
    for octave in range(3):
        rows, columns = (max(1, round(cells * 2**octave * side / min(size))) for side in size)
        grid = rng.uniform(-1, 1, (rows + 1, columns + 1)).astype(np.float32) * 0.5**octave
        total += _between(size[0], rows) @ grid @ _between(size[1], columns).T
    return total


@cache
def _between(pixels: int, cells: int) -> Floats:
    """Weights (pixels, cells + 1) that interpolate smoothly (smoothstep) between a grid's points."""
    place = np.linspace(0, cells, pixels, endpoint=False)
    cell = place.astype(int)
    rest = place - cell
    rest = rest * rest * (3 - 2 * rest)
    weights = np.zeros((pixels, cells + 1), np.float32)
    weights[np.arange(pixels), cell] = 1 - rest
    weights[np.arange(pixels), cell + 1] = rest
    return weights
