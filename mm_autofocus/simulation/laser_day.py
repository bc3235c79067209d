"""How a laser autofocus drifts: from unit to unit, from day to day, and within a day.

Two families that share no law: `TRAINING` (independent Gaussian offsets, a random walk within the day) makes the days
that models may train on; `HELD_OUT` (a common temperature through coefficients of each instrument's own, Laplace
residuals, a warm-up and an air conditioning cycle within the day) makes those that they are tested on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import numpy as np

from mm_autofocus.simulation.laser_spot import RIPPLES, LaserState

DAY_SD = {
    "shift_short_um": 0.8, "shift_long_um": 0.8, "axis_offset_um": 0.5, "tilt_short": 0.006, "tilt_long": 0.004,
    "decentre_short": 0.02, "decentre_long": 0.01, "rotation_deg": 0.5, "magnification": 0.01, "power": 0.12,
    "spherical": 0.03, "coma_short": 0.03, "coma_long": 0.02, "stray": 0.3, "ghost": 0.25, "ghost_short_um": 0.8,
    "ghost_long_um": 0.8,
}  # fmt: skip
"""SD from day to day; of the logarithm for power, stray light and ghost."""

HOUR_SD = {
    "shift_short_um": 0.15, "shift_long_um": 0.15, "axis_offset_um": 0.08, "tilt_short": 0.001, "tilt_long": 0.001,
    "rotation_deg": 0.05, "power": 0.02, "ghost": 0.05, "ghost_phase": 1.0,
}  # fmt: skip
"""Change within one hour, in the same units."""

_RATIOS = ("power", "stray", "ghost", "magnification")
_UNIT_SHARE = 0.7
_RIPPLE_UNIT, _RIPPLE_DAY = 0.025, 0.008


class Family(StrEnum):
    """Which law the drift follows."""

    TRAINING = "gaussian-walk"
    HELD_OUT = "thermal-laplace"


@dataclass(frozen=True, slots=True)
class LaserDay:
    """One day of one instrument.

    Attributes
    ----------
    morning
        The alignment when the day begins.
    family
        Law of the drift within the day.
    seed
        Fixes that drift.
    warmup
        Direction of the warm-up by field, in units of `HOUR_SD` (held-out family).
    """

    morning: LaserState
    family: Family
    seed: int
    warmup: dict[str, float]

    def state(self, hours: float = 0.0) -> LaserState:
        """Return the alignment so many hours after the morning.

        Raises
        ------
        ValueError
            For a time before the morning.
        """
        if not 0 <= hours < math.inf:
            raise ValueError(f"hours={hours} must be a finite number, 0 or more.")
        if self.family is Family.TRAINING:
            return self._walk(hours)
        cycle = 0.25 * (math.sin(2 * math.pi * (hours * 3 + self.seed % 7 / 7)) - math.sin(2 * math.pi * self.seed / 7))
        grown = 1.5 * (1 - math.exp(-hours / 1.5)) + cycle
        return _shifted(self.morning, {name: grown * slope * HOUR_SD[name] for name, slope in self.warmup.items()})

    def _walk(self, hours: float) -> LaserState:
        """Random walk in steps of 6 minutes, the last one in part."""
        steps, part = divmod(hours * 10, 1.0)
        rng = np.random.default_rng([self.seed, 17])
        change = dict.fromkeys(HOUR_SD, 0.0)
        for i in range(int(steps) + 1):
            weight = 1.0 if i < int(steps) else part
            for name, sd in HOUR_SD.items():
                change[name] += weight * sd * math.sqrt(0.1) * float(rng.standard_normal())
        return _shifted(self.morning, change)


def instrument(seed: int) -> LaserState:
    """Return the alignment of one instrument as it was built: unit-to-unit differences and its own pupil."""
    rng = np.random.default_rng([seed, 5])
    change = {name: _UNIT_SHARE * sd * float(rng.standard_normal()) for name, sd in DAY_SD.items()}
    unit = _shifted(LaserState(), change)
    return replace(
        unit,
        ripple_short=tuple(rng.normal(0, _RIPPLE_UNIT, RIPPLES).tolist()),
        ripple_long=tuple(rng.normal(0, _RIPPLE_UNIT, RIPPLES).tolist()),
    )


def make_day(unit: LaserState, seed: int, family: Family = Family.TRAINING, *, scale: float = 1.0) -> LaserDay:
    """Return a day of an instrument.

    Parameters
    ----------
    unit
        The instrument as built, see `instrument`.
    seed
        Fixes the day.
    family
        Law of the drift.
    scale
        1 from day to day, 3 for an instrument that was knocked.
    """
    rng = np.random.default_rng([seed, 29, list(Family).index(family)])
    draw: Callable[[], float]
    if family is Family.TRAINING:
        draw = lambda: float(rng.standard_normal())  # noqa: E731
        change = {name: scale * sd * draw() for name, sd in DAY_SD.items()}
    else:
        own = np.random.default_rng([int(abs(unit.ripple_short[0]) * 1e9), 31])
        temperature = float(rng.uniform(-math.sqrt(3), math.sqrt(3)))
        change = {}
        for name, sd in DAY_SD.items():
            coefficient = float(own.choice([-1.0, 1.0]) * own.uniform(0.4, 0.9))
            rest = math.sqrt(1 - coefficient**2) / math.sqrt(2)
            change[name] = scale * sd * (coefficient * temperature + rest * float(rng.laplace()))
        draw = lambda: float(rng.laplace() / math.sqrt(2))  # noqa: E731
    morning = _shifted(unit, change)
    ripple = scale * _RIPPLE_DAY
    morning = replace(
        morning,
        ghost_phase=float(rng.uniform(0, 2 * math.pi)),
        ripple_short=tuple(r + ripple * draw() for r in unit.ripple_short),
        ripple_long=tuple(r + ripple * draw() for r in unit.ripple_long),
    )
    warmup = {name: float(rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.5)) for name in HOUR_SD}
    return LaserDay(morning, family, seed, warmup)


def _shifted(state: LaserState, change: dict[str, float]) -> LaserState:
    known = {f.name for f in fields(LaserState)}
    assert set(change) <= known
    values = {
        name: getattr(state, name) * math.exp(by) if name in _RATIOS else getattr(state, name) + by
        for name, by in change.items()
    }
    return replace(state, **values)
