"""Autofocus by a laser spot: read far, check the sign, move, read near, and verify by a known step."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field

from mm_autofocus.errors import StrategyError
from mm_autofocus.readouts import LaserModel, Reading, Signal, SignalLimits, load_model
from mm_autofocus.request import FocusRequest, Limits
from mm_autofocus.result import Status
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict

MAX_APPROACHES = 4
"""Moves to zero defocus before the strategy gives up."""

SCORE_WIDTH_UM = 1.0
"""Predicted defocus at which the score has fallen to a half."""

_DOUBTFUL = 1.3
"""A foreign reflection less strange than this is looked at once more: one in some hundred good frames is."""
_BEYOND_UM = 2.0
"""A surface read so far beyond the limits is beyond them, whatever the reading's error."""


class LaserSettings(StrategySettings):
    """Settings of `Laser`.

    Attributes
    ----------
    camera, exposure_ms
        The laser camera's label and exposure; None for the exposure that the model was trained at.
    model
        Path of a laser model's card (.json); empty for the one that comes with mm-autofocus.
    objective
        Name of the objective in use; a model of another one is refused. Empty: not checked.
    offset_um
        From the surface that reflects to the plane to image, µm. Find it once with an image sweep: no laser can see it
        drift.
    steps
        "two" (long range, then short), "long" or "short" alone.
    sign_step_um
        Before a move longer than the short range, the reading must follow a known step of at least this length.
    verify_um, verify_tolerance_um
        At the end the spot is read so far on either side of the surface (four times as far with "long"); the readings
        must differ by the known step to within the tolerance, and their mean is the answer.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    min_snr, max_saturated
        See `mm_autofocus.readouts.SignalLimits`.
    """

    camera: str | None = "LaserCamera"
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    model: str = ""
    objective: str = ""
    offset_um: float = Field(default=0.0, allow_inf_nan=False)
    steps: Literal["two", "long", "short"] = "two"
    sign_step_um: float = Field(default=4.0, gt=0, le=20)
    verify_um: float = Field(default=4.0, gt=0, le=20)
    verify_tolerance_um: float = Field(default=0.5, gt=0, le=5)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    min_snr: float = Field(default=60.0, gt=0)
    max_saturated: float = Field(default=0.01, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One frame, read: where the stage stood and what the readout said."""

    z: float
    reading: Reading

    @property
    def surface(self) -> float:
        """Where the reflecting surface is, µm in stage coordinates."""
        return self.z - self.reading.defocus_um


class _Stop(Exception):
    """Ends a run early with a verdict."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


_Looking = Generator[Look, Frame, _Seen]


class Laser:
    """Autofocus by the reflection of a laser at the coverslip (Lightley et al. 2021, two-step).

    A missing, saturated or foreign reflection, or a reading that does not follow a known step, is `Status.NO_SIGNAL`:
    the run then goes back to its start.

    Parameters
    ----------
    settings
        See `LaserSettings`; None for the defaults.
    model
        The readouts; None for those that the settings name.

    Raises
    ------
    SettingsError
        When the model cannot be used, or belongs to another objective.
    """

    name: ClassVar[str] = "laser"
    Settings: ClassVar[type[StrategySettings]] = LaserSettings

    def __init__(self, settings: LaserSettings | None = None, model: LaserModel | None = None) -> None:
        self.settings: LaserSettings = settings or LaserSettings()
        self._full = model or load_model(self.settings.model, objective=self.settings.objective)

    @cached_property
    def model(self) -> LaserModel:
        """The readouts that the settings allow."""
        full, steps = self._full, self.settings.steps
        if steps == "two":
            return full
        kept = full.long if steps == "long" else full.short
        if kept is None:
            raise StrategyError(f'the laser model has no {steps}-range readout; set steps = "two", or train one')
        return LaserModel(full.card, kept if steps == "long" else None, kept if steps == "short" else None)

    def use(self, model: LaserModel) -> None:
        """Read with another model from the next run on, for instance one that was recalibrated."""
        self._full = model
        self.__dict__.pop("model", None)

    def read(self, frame: Frame) -> Reading:
        """Read one frame.

        Raises
        ------
        HardwareError
            When its size is not that of the images that the model was trained on.
        """
        card = self.model.card
        limits = SignalLimits(self.settings.min_snr, self.settings.max_saturated, card.bits)
        return self.model.read(frame.image, limits)

    def score(self, frame: Frame) -> float:
        """1 where the plane to image is in focus, a half where it is `SCORE_WIDTH_UM` away, 0 without a signal."""
        reading = self.read(frame)
        if not reading.good:
            return 0.0
        away = reading.defocus_um - self.settings.offset_um
        return 1.0 / (1.0 + (away / SCORE_WIDTH_UM) ** 2)

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Find the surface; see `mm_autofocus.strategy.Strategy`."""
        run = _Run(self, request)
        try:
            return (yield from run.search())
        except _Stop as stop:
            return Verdict({}, 0.0, stop.status, stop.reason, run.scores, run.details())


class _Run:
    """What one run has seen so far."""

    def __init__(self, strategy: Laser, request: FocusRequest) -> None:
        self._s, self._strategy, self._request = strategy.settings, strategy, request
        self._limits: Limits = request.limits[request.knob]
        self._seen: list[_Seen] = []
        self._steps: dict[str, float] = {}

    @property
    def scores(self) -> tuple[float, ...]:
        """Score of each frame."""
        offset = self._s.offset_um
        return tuple(
            1.0 / (1.0 + ((s.reading.defocus_um - offset) / SCORE_WIDTH_UM) ** 2) if s.reading.good else 0.0
            for s in self._seen
        )

    def details(self) -> dict[str, Any]:
        """Readings and step errors, for the drift monitor and the report."""
        return {
            "readings": [
                {
                    "z": round(s.z, 4),
                    "defocus_um": round(s.reading.defocus_um, 4) if s.reading.good else None,
                    "sigma_um": round(s.reading.sigma_um, 4) if s.reading.good else None,
                    "signal": s.reading.signal.value,
                    "strangeness": round(s.reading.strangeness, 3),
                }
                for s in self._seen
            ],
            **self._steps,
        }

    # ------------------------------------------------------------------ the search
    def search(self) -> FocusGenerator:
        near = self._strategy.model.fine.range_um
        here = yield from self._look(self._request.start[self._request.knob])
        if abs(here.reading.defocus_um) > 0.7 * near:
            here = yield from self._sign_checked(here)
        for _ in range(MAX_APPROACHES):
            if abs(here.reading.defocus_um) <= self._close:
                break
            if abs(here.surface - self._limits.clip(here.surface)) > _BEYOND_UM:
                raise _Stop(
                    Status.AT_LIMIT,
                    f"the surface is at about {here.surface:.1f} µm, beyond the limits [{self._limits.low:g}, "
                    f"{self._limits.high:g}] µm; nothing is gained by going there. Widen [knobs] limits if it is safe",
                )
            here = yield from self._look(here.surface)
        else:
            raise _Stop(
                Status.NO_SIGNAL,
                f"the reading does not come to rest: {here.reading.defocus_um:.2f} µm after {MAX_APPROACHES} moves to "
                "zero; calibrate the laser model again",
            )
        return (yield from self._verified(here))

    @property
    def _close(self) -> float:
        """Defocus at which the approach ends."""
        return 3.0 if self._s.steps == "long" else 0.5

    def _sign_checked(self, here: _Seen) -> _Looking:
        """Take a known step towards the surface; the reading must follow, else the sign may be wrong.

        One reading in some hundred is off by several µm far from the surface, so there is a second try.
        """
        followed = made = 0.0
        for _ in range(2):
            defocus = here.reading.defocus_um
            step = -math.copysign(min(max(self._s.sign_step_um, abs(defocus) / 8), abs(defocus) / 2), defocus)
            there = yield from self._look(here.z + step)
            made, followed = there.z - here.z, there.reading.defocus_um - defocus
            self._steps["sign_error_um"] = followed - made
            if abs(followed - made) <= 0.9 * abs(made):
                return there
            here = there
        raise _Stop(
            Status.NO_SIGNAL,
            f"the reading changed by {followed:.2f} µm in a step of {made:.2f} µm: this is not the coverslip's "
            "reflection, or the laser model no longer fits; calibrate it again",
        )

    def _verified(self, here: _Seen) -> FocusGenerator:
        """Look from a known distance on both sides and conclude: what is odd in defocus cancels in their mean."""
        s, request, far = self._s, self._request, self._s.steps == "long"
        half = s.verify_um * (4.0 if far else 1.0)
        centre = min(max(here.surface, self._limits.low + half), self._limits.high - half)
        low = yield from self._look(centre - half)
        high = yield from self._look(centre + half)
        made = high.z - low.z
        error = high.reading.defocus_um - low.reading.defocus_um - made
        surface = (low.surface + high.surface) / 2
        sigma = max(math.hypot(low.reading.sigma_um, high.reading.sigma_um) / 2, abs(error) / 4, 0.02)
        confidence = 1.0 - math.exp(-request.depth_of_field_um / 2 / sigma)
        self._steps |= {"step_error_um": error, "step_um": made, "sigma_um": sigma, "surface_um": surface}
        tolerance = s.verify_tolerance_um * (6.0 if far else 1.0)
        if abs(error) > 3 * tolerance or abs(surface - here.surface) > 3 * tolerance:
            raise _Stop(
                Status.NO_SIGNAL,
                f"near the focus the reading changed by {made + error:.2f} µm over a known step of {made:.2f} µm; "
                "calibrate the laser model again, or focus by image",
            )
        wanted = surface + s.offset_um
        target = self._limits.clip(wanted)
        reason = f"surface at {surface:.3f} µm, offset {s.offset_um:g} µm, known step missed by {error * 1000:.0f} nm"
        status = Status.CONVERGED
        if target != wanted:
            status, reason = Status.AT_LIMIT, f"{reason}; the plane to image, {wanted:.2f} µm, is beyond the limits"
            confidence = min(confidence, 0.3)
        elif confidence < s.min_confidence or abs(error) > tolerance:
            status = Status.LOW_CONFIDENCE
            confidence = min(confidence, s.min_confidence * 0.9)
        return Verdict({request.knob: target}, confidence, status, reason, self.scores, self.details())

    def _look(self, z: float) -> _Looking:
        """Image at ``z``, inside the limits; anything but the coverslip's reflection ends the run."""
        seen = yield from self._frame(z)
        if seen.reading.signal is Signal.FOREIGN and seen.reading.strangeness < _DOUBTFUL:
            seen = yield from self._frame(z)
        if not seen.reading.good:
            raise _Stop(Status.NO_SIGNAL, f"{_WORDS[seen.reading.signal]} (z = {seen.z:.2f} µm)")
        return seen

    def _frame(self, z: float) -> _Looking:
        strategy, request = self._strategy, self._request
        exposure = self._s.exposure_ms or strategy.model.card.exposure_ms
        frame = yield Look({request.knob: self._limits.clip(z)}, camera=self._s.camera, exposure_ms=exposure)
        at = frame.knobs.get(request.knob, math.nan)
        if not math.isfinite(at):
            raise StrategyError(f"a frame came back without the position of {request.knob!r}: {dict(frame.knobs)}")
        seen = _Seen(float(at), strategy.read(frame))
        self._seen.append(seen)
        return seen


_WORDS = {
    Signal.GOOD: "the readout gave no number",
    Signal.MISSING: "no reflection: the laser is off or blocked, there is no coverslip here, or it is out of range",
    Signal.SATURATED: "the laser camera is saturated; lower the laser's power or the exposure",
    Signal.FOREIGN: "this is not the coverslip's reflection (or the laser is misaligned since the calibration)",
}
