"""Aligns what a wobbled lens shows: wobble, read, move the targets, and wobble again to confirm.

With its defaults it centres a condenser aperture under a wobble of C1 (Grossetête et al. 2024). Any knob can be wobbled
and any two knobs be the targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.beam_disc import Beam, fit_disc
from mm_autofocus.estimators.response import ResponseMap
from mm_autofocus.request import FocusRequest
from mm_autofocus.strategies.alignment import Stop, failed
from mm_autofocus.strategies.aperture_run import ApertureRun
from mm_autofocus.strategies.aperture_settings import ApertureSettings
from mm_autofocus.strategy import FocusGenerator, Frame, StrategySettings

if TYPE_CHECKING:
    from mm_autofocus.networks.aperture_model import ApertureModel

__all__ = ["Aperture", "ApertureSettings"]


class Aperture:
    """Alignment by wobble, with a confirming wobble.

    The lens is put back in every case. Without a beam, with a saturated detector, or a lens or drive that does not
    follow, nothing is moved blindly: the verdict is `Status.NO_SIGNAL` and says why.

    Parameters
    ----------
    settings
        See `ApertureSettings`; None for the defaults.
    response
        The calibration; None for the one that the settings name, or its own moves.
    model
        The network; None for the one that the settings name, if any.

    Raises
    ------
    SettingsError
        When the calibration or the network cannot be used, or belongs to other knobs.
    """

    name: ClassVar[str] = "aperture"
    Settings: ClassVar[type[StrategySettings]] = ApertureSettings

    def __init__(
        self,
        settings: ApertureSettings | None = None,
        response: ResponseMap | None = None,
        model: ApertureModel | None = None,
    ) -> None:
        self.settings: ApertureSettings = settings or ApertureSettings()
        s = self.settings
        self.response = response
        self.model = model
        if response is None and s.calibration:
            self.response = ResponseMap.load(s.calibration)
        if model is None and s.model:
            from mm_autofocus.networks.aperture_model import ApertureModel

            self.model = ApertureModel.load(s.model)
        if self.model is not None and s.count != self.model.frames:
            raise SettingsError(
                f"[strategies.aperture] count = {s.count}, but the network was trained on {self.model.frames} images; "
                f"set count = {self.model.frames}"
            )
        if self.response is not None and self.response.knobs != s.target_knobs:
            raise SettingsError(
                f"the calibration is of the knobs {self.response.knobs}, not of target_knobs = {s.target_knobs}; "
                "calibrate these, or correct target_knobs"
            )

    def score(self, frame: Frame) -> float:
        """Share of the disc that is on the detector, 0 without a beam.

        One frame cannot tell whether the aperture is centred; the confirming wobble does. The verifying frame guards
        against an end at which the beam is lost.
        """
        disc = fit_disc(frame.image)
        return 1.0 if disc.beam is Beam.TOO_LARGE else float(disc.visible > 0.5) if disc.beam.usable else 0.0

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Align; see `mm_autofocus.strategy.Strategy`."""
        run = ApertureRun(self.settings, self.response, self.model, request)
        try:
            return (yield from run.align())
        except Stop as stop:
            return failed(run.walk, stop, run.details())
