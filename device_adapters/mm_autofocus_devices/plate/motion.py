"""How one axis of a stage moves: at finite speed, settling after it arrives, with backlash, within its limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mm_autofocus.errors import LimitError


@dataclass(frozen=True, slots=True)
class AxisSettings:
    """Mechanics of one axis.

    Attributes
    ----------
    low_um, high_um
        Hard limits of the travel.
    speed_um_per_s
        Speed of a move.
    settle_s, lag, lag_max_um
        On arrival the axis lacks ``lag`` times the distance (at most ``lag_max_um``), and closes in exponentially with
        the time constant ``settle_s``.
    backlash_um
        Lost motion when the direction reverses; a position approached from below is exact.
    tolerance_um
        The axis is busy until it is this close.
    """

    low_um: float
    high_um: float
    speed_um_per_s: float
    settle_s: float
    lag: float = 0.05
    lag_max_um: float = 2.0
    backlash_um: float = 0.0
    tolerance_um: float = 0.02

    def __post_init__(self) -> None:
        if not self.low_um < self.high_um:
            raise ValueError(f"The lower limit {self.low_um} µm must be below the upper limit {self.high_um} µm.")
        if not (self.speed_um_per_s > 0 and self.settle_s > 0 and self.backlash_um >= 0 and self.tolerance_um > 0):
            raise ValueError(f"Speed, settle time and tolerance must be above 0, backlash at least 0: {self}.")


class Axis:
    """One axis of a stage, as a function of the simulated clock.

    Parameters
    ----------
    name
        For messages ("z").
    settings
        Its mechanics.
    position_um
        Where it stands at first.
    """

    def __init__(self, name: str, settings: AxisSettings, position_um: float = 0.0) -> None:
        self.name = name
        self.settings = settings
        self._check(position_um)
        self._start = self._target = self._load = position_um
        self._left_at = self._arrives_at = -math.inf
        self._lag_um = 0.0

    def _check(self, target_um: float) -> None:
        low, high = self.settings.low_um, self.settings.high_um
        if not low <= target_um <= high:  # NaN fails too
            raise LimitError(
                f"Stage axis {self.name}: {target_um} µm is outside its travel of {low:g} to {high:g} µm; nothing has "
                "moved. Ask for a position inside."
            )

    def check(self, target_um: float) -> None:
        """Raise LimitError when the target is outside the travel or not a number; nothing moves."""
        self._check(target_um)

    def move(self, target_um: float, clock_s: float) -> None:
        """Start moving to ``target_um``.

        Raises
        ------
        LimitError
            When the target is outside the travel or not a number; the axis stays.
        """
        self._check(target_um)
        self._load = self.actual_um(clock_s)
        start = self._drive_um(clock_s)
        distance = target_um - start
        reach = self.settings.lag * abs(distance)
        self._start, self._target = start, target_um
        self._lag_um = math.copysign(min(reach, self.settings.lag_max_um), distance)
        self._left_at = clock_s
        self._arrives_at = clock_s + abs(distance) / self.settings.speed_um_per_s

    def stop(self, clock_s: float) -> None:
        """Halt where the axis is now."""
        self.move(min(max(self._drive_um(clock_s), self.settings.low_um), self.settings.high_um), clock_s)

    def _drive_um(self, clock_s: float) -> float:
        """Position of the drive, before backlash."""
        if clock_s < self._arrives_at:
            share = (clock_s - self._left_at) / (self._arrives_at - self._left_at)
            return self._start + share * (self._target - self._lag_um - self._start)
        return self._target - self._lag_um * math.exp(-(clock_s - self._arrives_at) / self.settings.settle_s)

    def actual_um(self, clock_s: float) -> float:
        """Return where the load really is: it trails the drive by up to the backlash when that moves down."""
        drive = self._drive_um(clock_s)
        return min(max(self._load, drive), drive + self.settings.backlash_um)

    def readback_um(self, clock_s: float) -> float:
        """Return what the encoder reports: the target once arrived, and on the way the drive's position."""
        return self._target if clock_s >= self._arrives_at else self._drive_um(clock_s)

    def settled_at(self) -> float:
        """Return the clock at which the axis is within its tolerance of the target."""
        excess = abs(self._lag_um) / self.settings.tolerance_um
        return self._arrives_at + self.settings.settle_s * math.log(max(excess, 1.0))
