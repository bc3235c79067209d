"""Focus and stigmators of an electron column from pairs of frames at two working distances: the default for SEM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from mm_autofocus.errors import BudgetError, StrategyError
from mm_autofocus.estimators.aberration import ColumnCalibration, PairEstimate, PairEstimator, Vector
from mm_autofocus.estimators.sharpness import sharpness
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.column_fit import Belief, ColumnFit
from mm_autofocus.strategies.column_knobs import (
    ColumnKnobs,
    Pair,
    flat,
    patch_records,
    refuse_nonsense,
)
from mm_autofocus.strategy import FocusGenerator, Frame, StrategySettings, Verdict

_REACH = np.array([20.0, 5.0, 5.0])
"""How far from the start the best knobs are expected, one standard deviation, µm and a.u."""

_NEAR_DEPTHS = (0.1, 2.5)
"""A pair confirms an answer that is within so many depths in focus of its midpoint: the first over the error of the
calibration, at most the second. A wrong angle stretches what a pair says near focus by its square, and 2.5 standard
deviations of that must not matter: 2.5 x 2 x error x distance is half a depth."""

_BEYOND = 0.25
"""Depths in focus by which the best value must lie outside the limits to say so."""

_CONTRADICTION = 4.0
"""Pairs whose chi-squared per degree of freedom is higher contradict each other: another one is taken."""

_MUTE = 1.4
"""An error of the defocus above this many steps says nothing."""

_ASIDE = 0.6
"""A pair is taken so many steps beside the best working distance to see whether its frames follow."""

_STANDS_STILL = 0.3
"""A pair that shows less than this fraction of its own step did not make it."""


class PhaseDiversitySettings(StrategySettings):
    """Settings of `PhaseDiversity`.

    Attributes
    ----------
    convergence_mrad, stigmator_um, stigmator_rotation_deg, shift_um_per_um
        The column's calibration, see `ColumnCalibration`; off by 20 % costs an iteration, since every run measures it.
    estimator
        What reads a pair: "spectral" (whole frames, robust at low dose) or "convolutional" (patches).
    model
        Path of the estimator's card (.json), or a name that ``mm-autofocus models`` lists; empty for the default.
    step_um
        The two frames of a pair lie so far on either side of the present working distance.
    exposure_ms, camera
        Frame time, and the camera; None for the microscope's own.
    pixel_um
        Pixel size in the specimen; None for the microscope's.
    stigmate
        False to leave the stigmators alone.
    range_um, stig_range
        Whole length of the search around the start when the request has no window, µm, and a.u. of each stigmator.
    max_iterations
        Most pairs of a run.
    stop_confidence
        The run ends when it is so sure; after ``max_iterations`` it ends in any case.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    min_signal
        A pair with less signal shows no specimen, see `PairEstimate.signal`.
    calibration_sd, rotation_sd_deg
        How well the calibration is known: relative error of the angle and of the stigmators' scale, and degrees.
    """

    convergence_mrad: float = Field(default=8.7, gt=0.1, le=100)
    stigmator_um: float = Field(default=6.0, gt=0.01, le=1000)
    stigmator_rotation_deg: float = Field(default=3.0, ge=-180, le=180)
    shift_um_per_um: tuple[float, float] = (0.0, 0.0)
    estimator: Literal["spectral", "convolutional"] = "spectral"
    model: str = ""
    step_um: float = Field(default=5.0, gt=0, le=50)
    exposure_ms: float | None = Field(default=None, gt=0)
    camera: str | None = None
    pixel_um: float | None = Field(default=None, gt=0)
    stigmate: bool = True
    range_um: float = Field(default=100.0, gt=0)
    stig_range: float = Field(default=20.0, gt=0)
    max_iterations: int = Field(default=5, ge=1, le=20)
    stop_confidence: float = Field(default=0.95, ge=0, le=1)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    min_signal: float = Field(default=0.05, ge=0)
    calibration_sd: float = Field(default=0.2, gt=0, le=1)
    rotation_sd_deg: float = Field(default=4.0, gt=0, le=45)

    def calibration(self) -> ColumnCalibration:
        """Return the calibration that the settings state."""
        return ColumnCalibration(
            self.convergence_mrad, self.stigmator_um, self.stigmator_rotation_deg, self.shift_um_per_um
        )


class PhaseDiversity:
    """Corrects working distance and stigmators by what two frames at a known distance show.

    Each pair says how far its midpoint is from focus; all pairs of the run are fitted together with the calibration.
    The first pair contains the start's frame, which the verification needs anyway; two iterations cost five frames.

    Parameters
    ----------
    settings
        See `PhaseDiversitySettings`; None for the defaults.
    estimator
        What reads a pair; None for the one that the settings name.

    Raises
    ------
    SettingsError
        When the estimator's model cannot be used.
    """

    name: ClassVar[str] = "phase-diversity"
    Settings: ClassVar[type[StrategySettings]] = PhaseDiversitySettings

    def __init__(self, settings: PhaseDiversitySettings | None = None, estimator: PairEstimator | None = None) -> None:
        self.settings: PhaseDiversitySettings = settings or PhaseDiversitySettings()
        self.estimator: PairEstimator = estimator or _load(self.settings)
        self.forget()

    def use(self, calibration: ColumnCalibration, calibration_sd: float, rotation_sd_deg: float) -> None:
        """Believe another calibration from the next run on, to within these errors (see the settings)."""
        self.calibration, self.calibration_sd, self.rotation_sd_deg = calibration, calibration_sd, rotation_sd_deg

    def forget(self) -> None:
        """Go back to the calibration of the settings."""
        self.use(self.settings.calibration(), self.settings.calibration_sd, self.settings.rotation_sd_deg)

    def score(self, frame: Frame) -> float:
        """Band-pass energy of one frame, without its noise; higher is sharper."""
        return sharpness(frame.image).value

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Take pairs until the answer is sure; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When the estimator answers nonsense, a frame lacks what it needs, or the budget leaves no pair.
        HardwareError
            When a frame or the working distance is not what was asked for.
        """
        run = _Run(self, request)
        return (yield from run.search())


class _Run:
    """What one run has seen so far."""

    def __init__(self, strategy: PhaseDiversity, request: FocusRequest) -> None:
        s = self._s = strategy.settings
        self._strategy = strategy
        self._knobs = ColumnKnobs(
            request,
            range_um=s.range_um,
            stig_range=s.stig_range,
            stigmate=s.stigmate,
            camera=s.camera,
            exposure_ms=s.exposure_ms,
            pixel_um=s.pixel_um,
        )
        self._calibration = strategy.calibration
        self._fit = ColumnFit(
            self._knobs.start,
            _REACH,
            self._calibration.stigmator_um,
            strategy.calibration_sd,
            strategy.rotation_sd_deg,
            s.step_um,
        )
        images = request.budget.images
        self._most = s.max_iterations if images is None else min(s.max_iterations, (images - 1) // 2)
        if self._most < 1:
            raise StrategyError(f"an image budget of {images} leaves no pair to focus with; allow at least 3")
        self._scores: list[float] = []
        self._noise = 0.0
        self._iterations: list[dict[str, Any]] = []
        self._patches: list[list[Mapping[str, float]]] = []
        self._unfollowed = self._mute = 0

    # ------------------------------------------------------------------ the search
    def search(self) -> FocusGenerator:
        knobs, step = self._knobs, self._s.step_um
        belief: Belief | None = None
        for iteration in range(self._most):
            try:
                if belief is None:
                    pair = yield from knobs.first_pair(step)
                else:
                    pair = yield from knobs.pair(self._next(belief), step)
            except BudgetError:
                if belief is None:
                    raise
                break
            self._remember(pair)
            if flat(pair.under.image) or flat(pair.over.image):
                return self._nothing("a frame has one grey value: the beam is blanked or the detector is off")
            estimate = self._estimate(pair)
            if estimate.signal < self._s.min_signal:
                return self._nothing(
                    f"no specimen to focus on (signal {estimate.signal:.3g} below {self._s.min_signal:g}): blank "
                    "resin, or too low a dose; move, or expose longer"
                )
            if not np.any(np.isfinite(estimate.sigma.vector())):
                return self._nothing(
                    "the pair says nothing: its frames are saturated, or too little of them is specimen"
                )
            self._mute = self._mute + 1 if estimate.sigma.defocus_um > _MUTE * step else 0
            if self._mute >= 2:
                return self._nothing(
                    f"two pairs tell the defocus to no better than {estimate.sigma.defocus_um:.2g} µm: there is no "
                    "specimen, the beam is blanked, or the dose is too low"
                )
            if estimate.step_ratio < _STANDS_STILL:
                return self._nothing(
                    f"a pair shows {estimate.step_ratio:.0%} of its {pair.step_um:.3g} µm step: the working distance "
                    "stands still whatever it says, or the calibration is wrong"
                )
            belief = self._learn(pair, estimate)
            lost = [knobs.names[i] for i in self._fit.unfollowed() if i < knobs.size]
            self._unfollowed = self._unfollowed + 1 if lost else 0
            if self._unfollowed >= 2 or (lost and iteration + 1 == self._most):
                return self._nothing(
                    f"the frames do not follow {' and '.join(lost)} over known moves: the instrument ignores it, its "
                    "stigmators are swapped or reversed, or the calibration is wrong"
                )
            if not lost and self._done(belief, pair, first=iteration == 0):
                break
        assert belief is not None
        if not self._fit.differs():
            return self._nothing(
                "the two frames of a pair look alike wherever they are taken: the working distance stands still "
                "whatever it says, or they hold too little signal; expose longer"
            )
        return self._verdict(belief)

    def _next(self, belief: Belief) -> Vector:
        """Return the middle of the next pair: the best knobs, or beside them while no pair's frames differed."""
        middle = self._knobs.inside(belief.best)
        if not self._fit.differs():
            aside = _ASIDE * self._s.step_um
            middle[0] += aside if middle[0] + aside <= self._knobs.high[0] else -aside
        return self._knobs.inside(middle)

    def _done(self, belief: Belief, pair: Pair, *, first: bool) -> bool:
        """Return True when the answer is sure and the last pair confirms it."""
        knobs = self._knobs
        target = knobs.inside(belief.best)
        turned = slice(0, knobs.size)
        if first:  # only a start that is good already needs no confirmation
            near = np.abs(target - knobs.start) <= knobs.depths / 2
        else:
            depths = min(_NEAR_DEPTHS[0] / self._strategy.calibration_sd, _NEAR_DEPTHS[1])
            near = np.abs(target - pair.middle) <= depths * knobs.depths
        if not np.all(near[turned]) or not self._fit.differs():
            return False
        outside = bool(np.any(knobs.beyond(belief.best) > _BEYOND))
        sure = belief.misfit <= _CONTRADICTION and self._confidence(belief) >= self._s.stop_confidence
        return (outside and not first) or sure

    def _estimate(self, pair: Pair) -> PairEstimate:
        estimate = self._strategy.estimator.estimate(
            pair.under.image,
            pair.over.image,
            pair.step_um,
            pair.under.pixel_um,
            self._calibration,
        )
        refuse_nonsense(estimate)
        return estimate

    def _learn(self, pair: Pair, estimate: PairEstimate) -> Belief:
        self._fit.add(pair.middle, estimate)
        belief = self._fit.belief()
        self._patches.append(patch_records(estimate))
        self._iterations.append(
            {
                "middle": _plain(pair.middle),
                "step_um": round(pair.step_um, 4),
                "aberration": _plain(estimate.aberration.vector()),
                "sigma": _plain(np.minimum(estimate.sigma.vector(), 1e6)),
                "best": _plain(belief.best),
                "best_sd": _plain(belief.sd),
                "signal": round(float(estimate.signal), 4),
                "shift_px": _plain(np.asarray(estimate.shift_px, dtype=float)),
                "step_ratio": round(estimate.step_ratio, 4) if math.isfinite(estimate.step_ratio) else None,
            }
        )
        return belief

    def _remember(self, pair: Pair) -> None:
        # the start's frame comes first in a first pair; later pairs are taken under, then over
        shots = (pair.under, pair.over)
        if not self._scores and pair.over.knobs[0] == self._knobs.start[0]:
            shots = (pair.over, pair.under)
        for shot in shots:
            measured = sharpness(shot.image)
            self._scores.append(measured.value)
            if measured.value > 0:
                self._noise = max(self._noise, min(measured.noise / measured.value, 0.5))

    # ------------------------------------------------------------------ the answer
    def _confidence(self, belief: Belief) -> float:
        knobs = self._knobs
        each = belief.within(knobs.depths / 2, knobs.inside(belief.best))
        return float(np.prod(each[: knobs.size]))

    def _verdict(self, belief: Belief) -> Verdict:
        knobs, s = self._knobs, self._s
        confidence = self._confidence(belief)
        best, sd = belief.best, belief.sd
        told = ", ".join(f"{name} {best[i]:.2f} ± {sd[i]:.2f}" for i, name in enumerate(knobs.names))
        reason, status = f"best at {told} after {self._fit.pairs} pairs", Status.CONVERGED
        beyond = [name for i, name in enumerate(knobs.names) if knobs.beyond(best)[i] > _BEYOND]
        if beyond:
            status, confidence = Status.AT_LIMIT, min(confidence, 0.3)
            reason += f"; {' and '.join(beyond)} would have to leave the limits: widen them if that is safe"
            stopped = [knobs.clamped[name] for name in beyond if name in knobs.clamped]
            if stopped:
                reason += f" ({'; '.join(stopped)}: the instrument itself goes no further)"
        elif self._fit.unfollowed() or confidence < s.min_confidence:
            status = Status.LOW_CONFIDENCE
            confidence = min(confidence, s.min_confidence * 0.9)
            reason += "; the pairs do not agree well enough, or say too little: expose longer, or allow more iterations"
        return Verdict(knobs.target(best), confidence, status, reason, tuple(self._scores), self._details(belief))

    def _nothing(self, reason: str) -> Verdict:
        return Verdict({}, 0.0, Status.NO_SIGNAL, reason, tuple(self._scores), self._details(None))

    def _details(self, belief: Belief | None) -> dict[str, Any]:
        details: dict[str, Any] = {
            "iterations": self._iterations,
            "patches": self._patches[0] if self._patches else [],
            "score_noise": self._noise,
        }
        if self._knobs.clamped:
            details["clamped"] = dict(self._knobs.clamped)
        if belief is not None:
            change, now = belief.change, belief.change.of(self._calibration)
            details["misfit"] = round(belief.misfit, 3)
            details["calibration"] = {
                "convergence_mrad": round(now.convergence_mrad, 4),
                "stigmator_um": round(now.stigmator_um, 4),
                "stigmator_rotation_deg": round(now.stigmator_rotation_deg, 3),
                "convergence_sd": round(change.convergence_sd, 4),
                "stigmator_sd": round(change.stigmator_sd, 4),
                "rotation_sd_deg": round(change.rotation_sd_deg, 3),
            }
        return details


def _load(settings: PhaseDiversitySettings) -> PairEstimator:
    if settings.estimator == "spectral":
        from mm_autofocus.estimators.spectral import SpectralEstimator

        return SpectralEstimator.load(settings.model)
    from mm_autofocus.estimators.convolutional import ConvolutionalEstimator

    return ConvolutionalEstimator.load(settings.model)


def _plain(vector: Vector) -> list[float]:
    return [round(float(v), 4) for v in vector]
