"""A plugin that keeps the calibration of an electron column: each run measures it, the next one uses it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mm_autofocus.estimators.aberration import ColumnCalibration
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.result import FocusResult
from mm_autofocus.strategies.phase_diversity import PhaseDiversity

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.settings import Settings

logger = logging.getLogger(__name__)

BEST_SD = 0.08
"""The calibration never counts as better known than this (logarithm): estimators stretch by that between specimens."""

GROWTH = 0.01
"""Its variance grows by the square of this from run to run, so that a change of the column is followed."""

BEST_ROTATION_SD_DEG = 0.5


@dataclass(frozen=True, slots=True)
class Known:
    """A calibration and how well it is known: standard deviations of the logarithms, and degrees."""

    calibration: ColumnCalibration
    convergence_sd: float
    stigmator_sd: float
    rotation_sd_deg: float

    def updated(self, measured: Mapping[str, Any]) -> Known:
        """Return what is known after a run whose details say ``measured``.

        A run's figure already contains what was known before (its prior), so it replaces it: the errors only grow a
        little, for a column that changes.
        """
        calibration = replace(
            self.calibration,
            convergence_mrad=float(measured["convergence_mrad"]),
            stigmator_um=float(measured["stigmator_um"]),
            stigmator_rotation_deg=float(measured["stigmator_rotation_deg"]),
        )
        return Known(
            calibration,
            max(math.hypot(float(measured["convergence_sd"]), GROWTH), BEST_SD),
            max(math.hypot(float(measured["stigmator_sd"]), GROWTH), BEST_SD),
            max(math.hypot(float(measured["rotation_sd_deg"]), 0.2), BEST_ROTATION_SD_DEG),
        )


class ColumnCare:
    """Carries the calibration that `PhaseDiversity` measures from run to run; an acquisition begins with the settings.

    Only runs that converged count, and only while the calibration stays within ``most`` of the settings': beyond that
    the settings are wrong by more than a run can be trusted to repair, and a warning says so.

    Parameters
    ----------
    settings
        Not used; plugins are made with the settings.
    most
        Largest factor between the settings' and the measured convergence angle or stigmator scale.
    """

    def __init__(self, settings: Settings | None = None, *, most: float = 2.0) -> None:  # noqa: ARG002
        self.most = most
        self.known: Known | None = None
        self._autofocus: Autofocus | None = None
        self._warned = False

    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Begin with the settings' calibration."""
        self._autofocus, self.known, self._warned = autofocus, None, False
        if (strategy := self._strategy()) is not None:
            strategy.forget()

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Take over what a converged run measured."""
        strategy = self._strategy()
        measured = result.details.get("calibration")
        if strategy is None or measured is None or result.strategy != strategy.name or not result.ok:
            return
        s = strategy.settings
        known = self.known or Known(s.calibration(), s.calibration_sd, s.calibration_sd, s.rotation_sd_deg)
        known = known.updated(measured)
        now, stated = known.calibration, s.calibration()
        factors = now.convergence_mrad / stated.convergence_mrad, now.stigmator_um / stated.stigmator_um
        if not all(1 / self.most <= factor <= self.most for factor in factors):
            if not self._warned:
                logger.warning(
                    "the frames ask for a convergence angle of %.3g mrad and %.3g µm per unit of the stigmators, the "
                    "settings say %.3g and %.3g; calibrate the column",
                    now.convergence_mrad, now.stigmator_um, stated.convergence_mrad, stated.stigmator_um,
                )  # fmt: skip
                self._warned = True
            return
        self.known = known
        strategy.use(known.calibration, max(known.convergence_sd, known.stigmator_sd), known.rotation_sd_deg)

    def _strategy(self) -> PhaseDiversity | None:
        strategies = self._autofocus.strategies.values() if self._autofocus is not None else ()
        return next((s for s in strategies if isinstance(s, PhaseDiversity)), None)
