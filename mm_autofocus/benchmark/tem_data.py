"""The paper's four datasets, taken on the simulated column: three in one night, one days later in other conditions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.wobble_alignment import estimate_wobble
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.training.tem_dataset import Spiral, WobbleCard, WobbleData, simulate

Array = NDArray[np.float64]

UNIT = 61
"""The instrument of the datasets; nothing was tuned on it."""
OPERATOR_SD = 4.0
"""How well an operator centres an aperture by eye before a dataset, steps for each axis (20 is what one is content
with)."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One dataset with what disc geometry reads from it: vectors (series, 2) and covariances (series, 2, 2)."""

    name: str
    data: WobbleData
    vectors: Array
    covariances: Array

    @property
    def shifts(self) -> Array:
        """Commanded shifts, steps, shape (series, 2)."""
        return self.data.shifts


def series_of(name: str, points: float) -> int:
    """Return how many series a dataset has, of a share of the paper's numbers."""
    return max(round((84 if name == "14" else 127) * points), 8)


@lru_cache(maxsize=1)
def record(points: float = 1.0, seed: int = 0) -> dict[str, Recorded]:
    """Take datasets 10, 13, 14 and 6 of Table 1, once for this process.

    Parameters
    ----------
    points
        Share of the paper's numbers of points (84 for dataset 14, 127 for the others).
    """
    rng = np.random.default_rng([seed, 71])
    column = TemColumn(UNIT, 0)
    later = TemColumn(UNIT, 3)
    later.set("c1", 1.012)  # the wobble of dataset 6 is not centred on maximal convergence
    plans = (
        ("10", column, 240.0, 0.03), ("13", column, 240.0, 0.03), ("14", column, 240.0, 0.03), ("6", later, 200.0, 0.02)
    )  # fmt: skip
    recorded = {}
    for name, scope, reach, wobble in plans:
        truth = scope.truth()
        aligned = [round(truth[knob] + rng.normal(0.0, OPERATOR_SD)) for knob in ("aperture_x", "aperture_y")]
        card = WobbleCard(
            spiral=Spiral(points=series_of(name, points), reach=reach), aligned=(aligned[0], aligned[1]),
            wobble=wobble, middle=scope.get("c1"),
        )  # fmt: skip
        data = simulate(scope, card)
        estimates = [
            estimate_wobble(list(series), list(lens)) for series, lens in zip(data.images, data.lens, strict=True)
        ]
        recorded[name] = Recorded(
            name, data, np.array([e.vector for e in estimates]), np.array([e.covariance for e in estimates])
        )
        scope.wait(600.0)
        scope.flash()  # the gun was flashed between the datasets
    return recorded


def merged(sets: dict[str, Recorded], names: tuple[str, ...], small: dict[str, Any]) -> tuple[Any, Array]:
    """Return small images and shifts of several datasets together."""
    return np.concatenate([small[n] for n in names]), np.concatenate([sets[n].shifts for n in names])
