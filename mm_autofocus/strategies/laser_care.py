"""A plugin that keeps a laser autofocus true: it notices drift, and recalibrates from ten frames at a known focus."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.errors import FocusError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.readouts.drift import DriftMonitor
from mm_autofocus.result import FocusResult
from mm_autofocus.strategies.laser import Laser

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.settings import Settings

logger = logging.getLogger(__name__)

KNOWN_UM = (-75.0, -30.0, -10.0, -5.0, -1.5, 1.5, 5.0, 10.0, 30.0, 75.0)
"""Defocus of the ten frames of a recalibration: six of them serve the short range."""


class LaserCare:
    """Watches every run; once the laser has drifted it recalibrates at the next focus that was found by image.

    An image sweep is what knows the true focal plane: put it behind the laser, ``strategy = ["laser", "sweep"]``. When
    the laser no longer fits, the sweep answers, ten frames of the laser camera at known distances from there follow,
    and the laser works again from the next position on. No training run is needed.

    Parameters
    ----------
    settings
        Not used; plugins are made with the settings.
    monitor
        Tells when the model no longer fits; None for a `DriftMonitor` with its defaults.
    """

    def __init__(self, settings: Settings | None = None, *, monitor: DriftMonitor | None = None) -> None:  # noqa: ARG002
        self.monitor = monitor or DriftMonitor(runs=3)
        self.recalibrations = 0
        self._autofocus: Autofocus | None = None

    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Remember which instrument to recalibrate."""
        self._autofocus = autofocus

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Watch; recalibrate where the image sweep has just found the focus."""
        laser = self._laser()
        if laser is None:
            return
        if result.strategy == laser.name:
            self.monitor.add(result.details)
        elif "laser" in [each["strategy"] for each in result.details.get("cascade", ())]:
            self.monitor.add({"readings": [{"signal": "missing", "strangeness": float("nan")}]})
        if self.monitor.reason and result.ok and result.strategy != laser.name:
            try:
                self._recalibrate(laser, result.end[result.knob])
            except FocusError as error:
                logger.warning("the laser was not recalibrated: %s", error)
            self.monitor.reset()

    def _laser(self) -> Laser | None:
        strategies = self._autofocus.strategies.values() if self._autofocus is not None else ()
        return next((s for s in strategies if isinstance(s, Laser)), None)

    def _recalibrate(self, laser: Laser, focus_um: float) -> None:
        from mm_autofocus.training.laser_dataset import Day, take_frames

        assert self._autofocus is not None
        settings, card = laser.settings, laser.model.card
        day = Day(
            objective=card.objective, camera=settings.camera or "", shape=card.shape,
            exposure_ms=settings.exposure_ms or card.exposure_ms, focus_um=focus_um - settings.offset_um,
        )  # fmt: skip
        images, defocus = take_frames(self._autofocus.microscope, day, np.array(KNOWN_UM))
        laser.use(laser.model.recalibrated(images, defocus))
        self.recalibrations += 1
        logger.info("the laser autofocus was recalibrated from %d frames", len(images))
