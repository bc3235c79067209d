"""The simulated clock: it advances by what the instrument does, and may follow real time."""

from __future__ import annotations

import math
import time


class Clock:
    """Seconds of simulated time; not thread-safe by itself.

    Parameters
    ----------
    speed
        0: time passes only by `wait` and `jump`, at once. Otherwise simulated seconds per real second; waiting sleeps.

    Raises
    ------
    ValueError
        For a negative or infinite speed.
    """

    def __init__(self, speed: float = 0.0) -> None:
        self._seconds = 0.0
        self._real_s = time.monotonic()
        self._speed = 0.0
        self.speed = speed

    @property
    def speed(self) -> float:
        """Simulated seconds per real second, or 0."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ValueError(f"speed={value} must be a finite number, 0 (never sleep) or more.")
        self._seconds, self._real_s, self._speed = self.seconds, time.monotonic(), value

    @property
    def seconds(self) -> float:
        """The time now."""
        return self._seconds + (time.monotonic() - self._real_s) * self._speed

    def wait(self, seconds: float) -> None:
        """Let time pass, asleep when the clock follows real time."""
        if self._speed:
            time.sleep(seconds / self._speed)
        else:
            self._seconds += seconds

    def jump(self, seconds: float) -> None:
        """Let time pass at once, whatever the speed.

        Raises
        ------
        ValueError
            For a negative or infinite time.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"Time cannot pass by {seconds} s; give a finite number, 0 or more.")
        self._seconds += seconds
