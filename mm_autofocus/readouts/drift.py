"""Knows when a laser autofocus has drifted away from its model, from what every focus run measures anyway."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.result import FocusResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drift:
    """How a laser model fits, over the last runs.

    Attributes
    ----------
    step_error
        Median error of the reading over the known step, relative to the step; a wrong scale.
    strangeness
        Median distance of the images from those of the training; 1 is the limit of the gate.
    lost
        Share of runs without a usable reflection.
    """

    step_error: float
    strangeness: float
    lost: float


class DriftMonitor:
    """A plugin that watches the runs of the strategy "laser"; pass it to ``Autofocus(..., plugins=[monitor])``.

    Parameters
    ----------
    runs
        Runs that are looked at together.
    max_step_error, max_strangeness, max_lost
        Above any of them the model counts as drifted; see `Drift`.
    on_drift
        Called once with the reason, for instance to recalibrate; again only after `reset`.
    """

    def __init__(
        self,
        runs: int = 8,
        *,
        max_step_error: float = 0.06,
        max_strangeness: float = 0.85,
        max_lost: float = 0.5,
        on_drift: Callable[[str], None] | None = None,
    ) -> None:
        self._limits = Drift(max_step_error, max_strangeness, max_lost)
        self._on_drift = on_drift
        self._runs: deque[tuple[float, float, bool]] = deque(maxlen=runs)
        self._told = False

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Observe a finished run."""
        if result.strategy == "laser" or "readings" in result.details:
            self.add(result.details)

    def add(self, details: Mapping[str, Any]) -> None:
        """Observe the details of one verdict of the strategy."""
        readings = details.get("readings") or []
        strange = [float(r["strangeness"]) for r in readings if r.get("signal") in ("good", "foreign")]
        step, error = details.get("step_um"), details.get("step_error_um")
        relative = abs(error / step) if step and error is not None else math.nan
        self._runs.append((relative, _median(strange), any(r.get("signal") != "good" for r in readings)))
        reason = self.reason
        if reason and not self._told:
            self._told = True
            logger.warning("%s", reason)
            if self._on_drift is not None:
                self._on_drift(reason)

    @property
    def drift(self) -> Drift:
        """How the model fits now."""
        steps = [step for step, _, _ in self._runs if math.isfinite(step)]
        strange = [value for _, value, _ in self._runs if math.isfinite(value)]
        lost = sum(is_lost for _, _, is_lost in self._runs) / max(len(self._runs), 1)
        return Drift(_median(steps), _median(strange), lost)

    @property
    def reason(self) -> str:
        """Why the model counts as drifted, for the user; empty while it fits or fewer than ``runs`` were seen."""
        if len(self._runs) < (self._runs.maxlen or 1):
            return ""
        now, limits = self.drift, self._limits
        for name, value, limit in (
            ("the readings miss known steps by", now.step_error, limits.step_error),
            ("the images' distance from the training set is", now.strangeness, limits.strangeness),
            ("the share of runs without a usable reflection is", now.lost, limits.lost),
        ):
            if value > limit:
                return (
                    f"the laser autofocus has drifted: {name} {value:.2f} (limit {limit:g}, median of "
                    f"{len(self._runs)} runs); recalibrate it from ten frames (`mm-autofocus recalibrate laser`)"
                )
        return ""

    def reset(self) -> None:
        """Begin anew, after a recalibration."""
        self._runs.clear()
        self._told = False


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan
