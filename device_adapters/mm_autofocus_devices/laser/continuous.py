"""Continuous focus: keeps the coverslip where it was when it locked, and lets go rather than follow nonsense."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass

from mm_autofocus.errors import FocusError
from mm_autofocus.readouts import LaserModel
from mm_autofocus.request import Limits
from mm_autofocus_devices.laser.instrument import LaserInstrument

logger = logging.getLogger(__name__)

LOCK_FRAMES = 5
"""Frames that are averaged when the lock is set."""
GAIN = 0.6
"""Share of the measured error that one correction takes back."""
MAX_STEP_UM = 2.0
"""A larger error is not drift: the lock lets go."""
DEAD_BAND_UM = 0.03
"""Smaller errors are left alone."""
PATIENCE = 3
"""Poor readings in a row before the lock lets go; no correction is made on any of them."""


@dataclass(frozen=True, slots=True)
class Lock:
    """One reading of a continuous focus.

    Attributes
    ----------
    error_um
        Measured deviation from the locked defocus; NaN without a signal.
    quality
        1 for a certain and familiar reading, 0 for none.
    moved_um
        Correction that was made.
    locked
        False once it has let go.
    """

    error_um: float
    quality: float
    moved_um: float
    locked: bool


class ContinuousFocus:
    """Holds a plane.

    Parameters
    ----------
    laser
        The instrument, whose stage it moves.
    model
        Reads its images.
    limits
        The stage is never sent outside.
    every_frames
        Images of the main camera between two corrections.
    min_quality
        Below it a reading is poor.
    period_s
        How often the thread looks whether a correction is due.
    """

    def __init__(
        self,
        laser: LaserInstrument,
        model: LaserModel,
        limits: Limits,
        *,
        every_frames: int = 1,
        min_quality: float = 0.5,
        period_s: float = 0.02,
    ) -> None:
        self._laser, self._model, self._limits = laser, model, limits
        self._every, self._min_quality, self._period_s = max(every_frames, 1), min_quality, period_s
        self._reference = 0.0
        self._poor = 0
        self.last: Lock | None = None
        self.corrections = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def locked(self) -> bool:
        """True while it holds."""
        return self.last is not None and self.last.locked

    def lock(self) -> Lock:
        """Remember the present defocus as the one to keep.

        Raises
        ------
        FocusError
            When there is no good reading here.
        """
        values, worst = [], 1.0
        for _ in range(LOCK_FRAMES):
            value, quality = self._read()
            values.append(value)
            worst = min(worst, quality)
        if worst < self._min_quality:
            raise FocusError(
                f"continuous focus cannot lock: quality {worst:.2f} is below {self._min_quality:g}. Is the laser on, "
                "and the coverslip within the short range? Run fullFocus() first."
            )
        self._reference, self._poor = sum(values) / len(values), 0
        self.last = Lock(0.0, worst, 0.0, True)
        return self.last

    def step(self) -> Lock:
        """Read once and correct; do nothing once it has let go."""
        if not self.locked:
            return self.last or Lock(math.nan, 0.0, 0.0, False)
        value, quality = self._read()
        error = value - self._reference
        poor = quality < self._min_quality or not abs(error) <= MAX_STEP_UM
        self._poor = self._poor + 1 if poor else 0
        moved = 0.0
        if self._poor >= PATIENCE:
            logger.warning("continuous focus let go: quality %.2f, error %.2f µm", quality, error)
        elif not poor and abs(error) > DEAD_BAND_UM:
            z = self._laser.plate.z_um
            target = self._limits.clip(z - GAIN * error)
            self._laser.plate.move_z(target)
            moved = target - z
            self.corrections += 1
        self.last = Lock(error, quality, moved, self._poor < PATIENCE)
        return self.last

    def _read(self) -> tuple[float, float]:
        reading = self._model.read(self._laser.snap())
        if not reading.good:
            return math.nan, 0.0
        certain = 1.0 / (1.0 + (reading.sigma_um / 0.5) ** 2)
        familiar = min(1.0, 2.0 * max(1.0 - reading.strangeness, 0.0))
        return reading.defocus_um, certain * familiar

    # ------------------------------------------------------------------ on its own
    def start(self) -> None:
        """Lock here, and correct from a thread of its own after every so many images of the main camera."""
        self.lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name="laser continuous focus")
        self._thread.start()

    def stop(self) -> None:
        """Stop correcting; wait for the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        seen = len(self._laser.plate.exposures)
        while not self._stop.wait(self._period_s):
            taken = len(self._laser.plate.exposures)
            if taken - seen >= self._every and not self._laser.plate.z_busy():
                seen = taken
                try:
                    self.step()
                except Exception:
                    logger.exception("continuous focus failed and let go")
                    self.last = Lock(math.nan, 0.0, 0.0, False)
                    return
