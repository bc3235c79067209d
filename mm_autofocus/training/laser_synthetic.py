"""Labelled frames of many simulated days, for training and for testing laser readouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.readouts.features import Features, of_images
from mm_autofocus.simulation.laser_day import Family, instrument, make_day
from mm_autofocus.simulation.laser_spot import Images, LaserSpot

Array = NDArray[np.float64]

RANGES = {"long": 100.0, "short": 10.0}
"""Half ranges in µm, as in the paper."""

_OVERHANG = 1.05


@dataclass(frozen=True, slots=True)
class Frames:
    """Labelled frames.

    Attributes
    ----------
    defocus
        Actual defocus, µm, shape (frames,).
    features
        Shape (frames, features).
    day
        Number of the day of each frame.
    """

    defocus: Array
    features: Features
    day: NDArray[np.int64]

    def of_day(self, day: int) -> Frames:
        """Return the frames of one day."""
        return self.where(self.day == day)

    def where(self, mask: NDArray[np.bool_]) -> Frames:
        """Return the frames that the mask selects."""
        return Frames(self.defocus[mask], self.features[mask], self.day[mask])


def join(parts: Sequence[Frames]) -> Frames:
    """Put several sets together."""
    return Frames(
        np.concatenate([p.defocus for p in parts]),
        np.concatenate([p.features for p in parts]),
        np.concatenate([p.day for p in parts]),
    )


def synthetic_frames(
    kind: str, days: int, frames: int = 40, seed: int = 0, *, scale: tuple[float, float] = (0.7, 2.0)
) -> Frames:
    """Simulate days of as many different instruments, in the training family.

    Parameters
    ----------
    kind
        "long" or "short", a key of `RANGES`.
    days, frames
        How many days, and frames per day at random defocus.
    seed
        Fixes everything.
    scale
        The drift of a day is drawn between these multiples of the usual one, evenly in the logarithm.
    """
    rng = np.random.default_rng([seed, 53, len(kind)])
    parts = []
    spot = LaserSpot(seed=seed)
    for day in range(days):
        if day % 25 == 24:
            spot = LaserSpot(seed=seed + day)
        number = seed * 100_000 + day
        strength = float(np.exp(rng.uniform(*np.log(scale))))
        today = make_day(instrument(number), number, Family.TRAINING, scale=strength)
        state = today.state(float(rng.uniform(0, 6)))
        z = rng.uniform(-1, 1, frames) * RANGES[kind] * _OVERHANG
        parts.append(labelled(spot.images(z, state, rng), z, day))
    return join(parts)


@dataclass(frozen=True, slots=True)
class DaysPlan:
    """Arguments of `synthetic_frames`: one part of what a training needs."""

    kind: str
    days: int
    frames: int
    seed: int
    scale: tuple[float, float] = (0.7, 2.0)

    def simulated(self) -> Frames:
        """Return the frames of these days."""
        return synthetic_frames(self.kind, self.days, self.frames, self.seed, scale=self.scale)


def labelled(images: Images, defocus_um: Array, day: int = 0) -> Frames:
    """Frames of images of known defocus, shape (frames, pixels, pixels) and (frames,), all of one day."""
    return Frames(defocus_um, of_images(images), np.full(defocus_um.size, day, dtype=np.int64))
