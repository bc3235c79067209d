"""Where patches of a frame lie: on a grid that covers it, or at random with a fixed seed (DeepFocus)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def grid_corners(shape: tuple[int, ...], edge: int) -> NDArray[np.intp]:
    """Return the fewest (x, y) corners of square patches that cover a frame, shape (patches, 2).

    Parameters
    ----------
    shape
        (height, width) of the frame.
    edge
        Of a patch, at most the shorter side.
    """
    places = []
    for length in shape[:2]:
        count = math.ceil(length / edge)
        places.append(np.unique(np.linspace(0, length - edge, count).round().astype(np.intp)))
    return np.array([(x, y) for y in places[0] for x in places[1]], dtype=np.intp)


def random_corners(shape: tuple[int, ...], edge: int, count: int, seed: int) -> NDArray[np.intp]:
    """Return (x, y) corners of patches drawn evenly; the same seed, the same places in every iteration (Methods).

    Parameters
    ----------
    shape
        (height, width) of the frame.
    edge, count
        Of a patch, at most the shorter side; how many.
    seed
        Of the draw.
    """
    rng = np.random.default_rng([0xDF, seed])
    y = rng.integers(0, shape[0] - edge + 1, count)
    x = rng.integers(0, shape[1] - edge + 1, count)
    return np.stack([x, y], 1).astype(np.intp)
