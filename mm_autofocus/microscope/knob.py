"""A knob: one scalar of the instrument, the only thing that moves, and never outside its limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mm_autofocus.errors import HardwareError, LimitError
from mm_autofocus.request import Limits


class Knob:
    """A stage, one axis of an XY stage, or a device property.

    Parameters
    ----------
    name
        Its name in the strategies ("z").
    device
        Label of the device, for messages.
    limits
        Absolute limits in ``unit``. No command ever leaves them: neither the target, nor a step on the way, nor the
        overshoot that takes up backlash.
    read, write, wait
        Return the position; command a position; block until the device has arrived.
    max_step
        Longest single move; None for no bound.
    settle_ms
        Wait after the last step of a move.
    backlash
        The last step of every move goes in this direction and is at least this long; 0 for none.
    tolerance
        Allowed distance between target and read-back.
    """

    def __init__(
        self,
        name: str,
        device: str,
        limits: Limits,
        read: Callable[[], float],
        write: Callable[[float], None],
        wait: Callable[[], None] = lambda: None,
        *,
        max_step: float | None = None,
        settle_ms: float = 0.0,
        backlash: float = 0.0,
        tolerance: float = 1.0,
        unit: str = "µm",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not (math.isfinite(limits.low) and math.isfinite(limits.high) and limits.low < limits.high):
            raise LimitError(
                f"knob {name!r} ({device}) has limits [{limits.low}, {limits.high}]: both must be finite and the first "
                f"below the second. Correct [knobs.{name}] limits."
            )
        self.name = name
        self.device = device
        self.limits = limits
        self.max_step = max_step
        self.settle_ms = settle_ms
        self.backlash = backlash
        self.tolerance = tolerance
        self.unit = unit
        self.moves = 0
        """Commands sent to the device so far."""
        self._read = read
        self._write = write
        self._wait = wait
        self._sleep = sleep

    def get(self) -> float:
        """Return the position that the device reports.

        Raises
        ------
        HardwareError
            When the device does not answer with a finite number.
        """
        try:
            value = float(self._read())
        except Exception as error:
            raise HardwareError(f"{self._who()} does not tell its position: {error}") from error
        if not math.isfinite(value):
            raise HardwareError(f"{self._who()} reports position {value}; check the device before focusing with it")
        return value

    def check(self, target: float) -> float:
        """Return ``target`` as a float if the knob may go there.

        Raises
        ------
        LimitError
            When it is NaN or outside the limits. Nothing has moved.
        """
        target = float(target)
        if target not in self.limits:
            raise LimitError(
                f"{self._who()} was asked for {target:g} {self.unit}, outside its limits [{self.limits.low:g}, "
                f"{self.limits.high:g}]; nothing has moved. If the limits are too tight, widen [knobs.{self.name}] "
                "limits."
            )
        return target

    def set(self, target: float) -> float:
        """Go to ``target`` and return the position read back.

        Raises
        ------
        LimitError
            When ``target``, or the present position, is outside the limits. Nothing has moved.
        HardwareError
            When the device refuses or does not arrive within ``tolerance``.
        """
        target = self.check(target)
        position = self.get()
        if not self._inside(position):
            raise LimitError(
                f"{self._who()} stands at {position:g} {self.unit}, outside its limits [{self.limits.low:g}, "
                f"{self.limits.high:g}]; nothing has moved. Bring it inside by hand, or correct [knobs.{self.name}] "
                "limits."
            )
        for step in self._path(position, target):
            self.moves += 1
            try:
                self._write(step)
                self._wait()
            except Exception as error:
                raise HardwareError(f"{self._who()} refused to go to {step:g} {self.unit}: {error}") from error
        if self.settle_ms > 0:
            self._sleep(self.settle_ms / 1000)
        arrived = self.get()
        if abs(arrived - target) > self.tolerance:
            raise HardwareError(
                f"{self._who()} was sent to {target:g} {self.unit} but reports {arrived:g}: it is blocked, clamped or "
                f"ignores commands. Check the device, or raise [knobs.{self.name}] tolerance ({self.tolerance:g})."
            )
        return arrived

    def _inside(self, position: float) -> bool:
        # A stage parked at a limit may read back a little beyond it; that is arrival, not escape.
        return self.limits.low - self.tolerance <= position <= self.limits.high + self.tolerance

    def _path(self, position: float, target: float) -> list[float]:
        """Return the positions to command, every one of them inside the limits."""
        position = self.limits.clip(position)
        waypoints = [target]
        if self.backlash and (target - position) * math.copysign(1.0, self.backlash) < abs(self.backlash):
            overshoot = self.limits.clip(target - self.backlash)
            if overshoot != target:
                waypoints.insert(0, overshoot)
        path: list[float] = []
        for waypoint in waypoints:
            distance = waypoint - position
            if self.max_step is not None and abs(distance) > self.max_step:
                count = math.ceil(abs(distance) / self.max_step)
                path.extend(self.limits.clip(position + distance * i / count) for i in range(1, count))
            path.append(waypoint)
            position = waypoint
        return path

    def _who(self) -> str:
        return f"knob {self.name!r} (device {self.device!r})"
