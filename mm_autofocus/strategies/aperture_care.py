"""A plugin that keeps an alignment through a long series: again every n events, or when one frame shows a drift."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from mm_autofocus.errors import FocusError
from mm_autofocus.estimators.beam_disc import Disc, fit_disc
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import validate
from mm_autofocus.strategies.aperture import Aperture

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.request import Event
    from mm_autofocus.settings import Settings

logger = logging.getLogger(__name__)


class ApertureCareSettings(BaseModel):
    """Section ``[plugins.aperture_care]``; with both numbers 0 the plugin leaves the decision to the schedule.

    Attributes
    ----------
    every
        Align again after so many events; 0: not for that reason.
    check_every
        Take a frame after so many events, with nothing moved, and measure the drift; 0: never.
    threshold
        Align again when the drift measure passes this: movement of the disc as a fraction of the frame's width, or
        change of its radius as a fraction of the radius, whichever is larger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    every: int = Field(default=0, ge=0)
    check_every: int = Field(default=0, ge=0)
    threshold: float = Field(default=0.02, gt=0, lt=1)


def drift_measure(reference: Disc, now: Disc, width: int) -> float:
    """Return how far the beam has drifted: see `ApertureCareSettings`; infinite when it is no longer seen."""
    if not (reference.beam.usable and now.beam.usable):
        return 0.0 if not reference.beam.usable else math.inf
    moved = math.hypot(now.x - reference.x, now.y - reference.y) / width
    # a spot's radius is too uncertain for its relative change to mean anything
    grown = abs(now.radius - reference.radius) / max(reference.radius, 0.05 * width)
    return max(moved, grown)


class ApertureCare:
    """Decides when the strategy "aperture" runs again (section 4 of Grossetête et al. 2024 asks for that).

    Parameters
    ----------
    settings
        Its section is ``settings.plugins["aperture_care"]``.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        section = settings.plugins.get("aperture_care", {}) if settings is not None else {}
        self.settings = validate(ApertureCareSettings, section, "[plugins.aperture_care]")
        self.drift = 0.0
        """Last drift measure."""
        self._autofocus: Autofocus | None = None
        self._clear()

    def _clear(self) -> None:
        self._aligned = False
        self._since = 0
        self._checked = -1
        self._due = False
        self._reference: Disc | None = None

    @hookimpl
    def mmaf_settings(self) -> dict[str, Any]:
        """Bring the section of its settings."""
        return {"aperture_care": ApertureCareSettings}

    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Remember the instrument, and forget the last series."""
        self._autofocus = autofocus
        self._clear()

    @hookimpl
    def mmaf_should_focus(self, event: Event) -> bool | None:  # noqa: ARG002
        """Align at the first event, after ``every`` events, and when the beam has drifted."""
        s, strategy = self.settings, self._strategy()
        if strategy is None or not (s.every or s.check_every):
            return None
        if not self._aligned or (s.every and self._since >= s.every):
            return True
        if s.check_every and self._since % s.check_every == 0 and self._since != self._checked:
            self._checked = self._since
            self._due = self._drifted(strategy)
        return self._due

    @hookimpl
    def mmaf_event(self, event: Event) -> None:  # noqa: ARG002
        """Count the events since the last alignment."""
        self._since += 1

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Begin to count anew; what the beam looks like now is the reference of the drift measure."""
        if result.strategy == Aperture.name:
            self._clear()
            self._aligned = True

    def _strategy(self) -> Aperture | None:
        strategies = self._autofocus.strategies.values() if self._autofocus is not None else ()
        return next((s for s in strategies if isinstance(s, Aperture)), None)

    def _drifted(self, strategy: Aperture) -> bool:
        assert self._autofocus is not None
        scope = self._autofocus.microscope
        try:
            with scope.preserved():
                scope.apply_imaging()
                image, _ = scope.snap(camera=strategy.settings.camera, exposure_ms=strategy.settings.exposure_ms)
            disc = fit_disc(image)
        except FocusError as error:
            logger.warning("the drift of the beam could not be measured: %s", error)
            return False
        if self._reference is None:
            if disc.beam.usable:  # compared with a frame without a beam nothing would ever have drifted
                self._reference = disc
            return False
        self.drift = drift_measure(self._reference, disc, image.shape[1])
        if self.drift > self.settings.threshold:
            logger.info("the beam has drifted by %.3f of the frame; aligning again", self.drift)
            return True
        return False
