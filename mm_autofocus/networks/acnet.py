"""ACNet: how far to turn the working distance, from the last 20 scores (Lee et al. 2021), and what it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

HISTORY = 20
"""States that the network is told of."""

STATE = 4 * HISTORY
"""19 differences of working distance, score, variance and entropy, and the present score, variance, entropy and
magnification: 80 numbers. The present working distance is not among them (Training strategy)."""

HIDDEN = 512

_SCORE_RANGE, _ENTROPY_RANGE, _LARGEST_MAGNIFICATION = 10.0, 8.0, 30_000.0


def largest_action_um(magnification: float) -> float:
    """Return the largest change of working distance, µm (equation 5): 1200 at low magnifications, 36 at high."""
    return 1200.0 * (-0.485 * math.tanh((magnification - 9000.0) / 1000.0) + 0.515)


def image_variance(image: NDArray[Any]) -> float:
    """Return standard deviation over mean (equation 3); 0 for an image without light."""
    mean = float(np.mean(image))
    return float(np.std(image)) / mean if mean > 0 else 0.0


def image_entropy(image: NDArray[Any]) -> float:
    """Return the entropy of the histogram of 256 grey values, bits (equation 4); other images are spread over them."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
    share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    share = share[share > 0]
    return float(-np.sum(share * np.log2(share)))


def state_vector(
    working_distances_um: Sequence[float],
    scores: Sequence[float],
    variances: Sequence[float],
    entropies: Sequence[float],
    magnification: float,
    action_um: float,
) -> NDArray[np.float32]:
    """Return what ACNet is told, shape (80,), each from -1 to 1.

    Parameters
    ----------
    working_distances_um, scores, variances, entropies
        Of the frames so far, the latest last; before the first stands the first.
    magnification
        Such as 10,000.
    action_um
        The largest action here; differences of working distance count in it.
    """
    rows = []
    for values in (working_distances_um, scores, variances, entropies):
        recent = list(values)[-HISTORY:]
        rows.append([recent[0]] * (HISTORY - len(recent)) + recent)
    history = np.array(rows, dtype=np.float64).T[None]
    return np.asarray(states(history, np.array([magnification]), np.array([action_um]))[0])


def states(
    history: NDArray[np.float64], magnification: NDArray[np.float64], action_um: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the same for many runs, shape (runs, 80).

    Parameters
    ----------
    history
        (working distance, score, variance, entropy) of the last 20 frames, shape (runs, 20, 4).
    magnification, action_um
        Shape (runs,).
    """
    runs = len(history)
    units = np.stack([action_um, np.full(runs, _SCORE_RANGE), np.ones(runs), np.full(runs, _ENTROPY_RANGE)], axis=1)
    changes = np.diff(history, axis=1) / units[:, None]
    here = np.concatenate([history[:, -1, 1:] / units[:, 1:], magnification[:, None] / _LARGEST_MAGNIFICATION], axis=1)
    told = np.concatenate([changes.transpose(0, 2, 1).reshape(runs, -1), here], axis=1)
    return np.asarray(np.clip(told, -1.0, 1.0), dtype=np.float32)


def acnet(hidden: int = HIDDEN) -> nn.Sequential:
    """Return the network: five fully connected layers, batch-normalised, LeakyReLU; action -1 to 1 of the largest."""
    from torch import nn

    layers: list[nn.Module] = []
    size = STATE
    for _ in range(4):
        layers += [nn.Linear(size, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(inplace=True)]
        size = hidden
    return nn.Sequential(*layers, nn.Linear(size, 1), nn.Tanh())
