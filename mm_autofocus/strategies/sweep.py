"""The search by image sharpness: sweeps coarsely, fits the focus curve, excludes rivals, and says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from mm_autofocus.errors import StrategyError
from mm_autofocus.measures.registry import get_measure
from mm_autofocus.request import FocusRequest, Limits
from mm_autofocus.result import Status
from mm_autofocus.strategies.scoring import ImageScorer, Scorer, Scores
from mm_autofocus.strategies.search import Conclusion, Outcome, SearchSample, SearchTask, Step, next_position
from mm_autofocus.strategies.sweep_confidence import confidence
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict

FWHM_PER_DEPTH_OF_FIELD = 1.8
"""Width of the peak of a gradient measure over the depth of field (0.55 FWHM is one depth of field)."""


SAFE: Mapping[str, Any] = {
    "coarse_step": 6.0,
    "rival_cost": 3.0,
    "plausible_cost": 6.0,
    "promise": 0.35,
    "max_rivals": 4,
}
"""What "safe" does more than the defaults of `SearchTask`, on top of expecting peaks half as wide."""


class SweepSettings(StrategySettings):
    """Settings of `Sweep`.

    Attributes
    ----------
    measure
        The focus measure that decides; a key of `mm_autofocus.measures.MEASURES`.
    guide
        A coarser measure that shows the way from afar, or None. For unstained brightfield and phase contrast, where
        coarse contrast is least in focus, set it to None or to ``measure``.
    range_um
        Whole length of the search when the request has no window, µm.
    effort
        "fast", or "safe" for about half as many images again and fewer wrong peaks.
    fwhm_um
        Full width at half maximum of the measure's peak, µm; None: 1.8 depths of field.
    exposure_ms, camera
        What to image with; None for the microscope's own.
    crop, downsample
        Centre fraction of the image that is measured, and bins it is averaged over, pixels.
    min_contrast
        A peak must stand this far over the background, as a fraction of the score, to count as a signal.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    max_images
        Most images of one search; the request's budget, less the verifying frame, also holds.
    """

    measure: str = "laplacian_of_gaussian"
    guide: str | None = "coarse_gradient"
    range_um: float = Field(default=50.0, gt=0, allow_inf_nan=False)
    effort: Literal["fast", "safe"] = "fast"
    fwhm_um: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    camera: str | None = None
    crop: float = Field(default=1.0, gt=0, le=1)
    downsample: int = Field(default=1, ge=1)
    min_contrast: float = Field(default=0.05, ge=0)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    max_images: int = Field(default=60, ge=3)

    @field_validator("measure", "guide")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name is None else get_measure(name).name


class Sweep:
    """Autofocus by image sharpness along one knob.

    Parameters
    ----------
    settings
        See `SweepSettings`; None for the defaults.
    scorer
        What turns frames into scores; None for the measures of the settings.
    """

    name: ClassVar[str] = "sweep"
    Settings: ClassVar[type[StrategySettings]] = SweepSettings

    def __init__(self, settings: SweepSettings | None = None, scorer: Scorer | None = None) -> None:
        self._settings = s = settings or SweepSettings()
        self.settings: StrategySettings = s
        names = [s.measure] if s.guide is None else [s.measure, s.guide]
        self._scorer: Scorer = scorer or ImageScorer(names, s.crop, s.downsample)

    def score(self, frame: Frame) -> float:
        """Sharpness of one frame by the deciding measure; higher is sharper."""
        return self._scorer(frame).fine

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Search the request's window; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When the window is empty, the budget leaves no image, or a frame cannot be measured.
        """
        s, knob = self._settings, request.knob
        task = self._task(request)
        samples: list[SearchSample] = []
        scores: list[Scores] = []
        while not isinstance(answer := next_position(samples, task), Conclusion):
            target = request.limits[knob].clip(answer.z)
            frame = yield Look({knob: target}, camera=s.camera, exposure_ms=s.exposure_ms)
            measured = self._scorer(frame)
            samples.append(_sample(answer, frame, knob, measured))
            scores.append(measured)
        return self._verdict(request, task, answer, scores)

    def _task(self, request: FocusRequest) -> SearchTask:
        s = self._settings
        window = searchable(request, s.range_um)
        limit = request.budget.images
        images = s.max_images if limit is None else min(s.max_images, limit - 1)
        if images < 1:
            raise StrategyError(f"an image budget of {limit} leaves none to search with; allow at least 2")
        fwhm = s.fwhm_um if s.fwhm_um is not None else FWHM_PER_DEPTH_OF_FIELD * request.depth_of_field_um
        prior = request.prior
        if prior is not None and not (math.isfinite(prior.mean) and 0 <= prior.sd < math.inf):
            prior = None
        task = SearchTask(
            low=window.low,
            high=window.high,
            fwhm=fwhm,
            start=request.start[request.knob],
            prior_mean=None if prior is None else window.clip(prior.mean),
            prior_sd=0.0 if prior is None else prior.sd,
            max_images=images,
            priors=self._scorer.priors,
        )
        return task if s.effort == "fast" else replace(task, fwhm=fwhm / 2, **SAFE)

    def _verdict(self, request: FocusRequest, task: SearchTask, answer: Conclusion, scores: list[Scores]) -> Verdict:
        s, knob = self._settings, request.knob
        details: dict[str, Any] = {
            "fwhm_um": None if math.isnan(answer.fwhm) else answer.fwhm,
            "rivals": list(answer.rivals),
            "window": [task.low, task.high],
            "features": answer.features,
        }
        target = {knob: request.limits[knob].clip(answer.z)}
        fine = tuple(score.fine for score in scores)
        contrast = math.expm1(min(answer.features.get("elevation", 0.0), 50.0))
        if answer.outcome is Outcome.NO_SIGNAL or contrast < s.min_contrast:
            reason = (
                f"no peak of sharpness between {task.low:.6g} and {task.high:.6g} µm in {len(scores)} images; "
                "widen the range, expose longer, or move to where there is specimen"
            )
            return Verdict({}, 0.0, Status.NO_SIGNAL, reason, fine, details)
        probability = confidence(answer.features, s.effort)
        if answer.tie is not None:
            at, relative = answer.tie
            details["tie"] = {"z": at, "relative_height": relative}
        if answer.outcome is not Outcome.PEAK:
            side = "lower" if answer.outcome is Outcome.AT_LOW else "upper"
            reason = f"sharpness still rises at the {side} end of the range, {answer.z:.6g} µm; move the range there"
            return Verdict(target, min(probability, 0.5), Status.AT_LIMIT, reason, fine, details)
        if answer.tie is not None:
            reason = f"two peaks within 20 % at {answer.z:.6g} and {answer.tie[0]:.6g} µm"
        else:
            reason = f"peak at {answer.z:.6g} µm, {answer.fwhm:.3g} µm wide, {contrast:.0%} over the background"
        status = Status.CONVERGED if probability >= s.min_confidence else Status.LOW_CONFIDENCE
        if status is Status.LOW_CONFIDENCE:
            reason += f"; confidence {probability:.2f} is below {s.min_confidence:.2f}"
        return Verdict(target, probability, status, reason, fine, details)


def searchable(request: FocusRequest, range_um: float) -> Limits:
    """Return the window of a request, or raise StrategyError when it is empty or not finite."""
    window = request.search_window(range_um)
    if not (math.isfinite(window.low) and math.isfinite(window.high) and window.low < window.high):
        limits = request.limits[request.knob]
        raise StrategyError(
            f"there is nothing to search: the window of {request.knob} is {window.low:.6g} to {window.high:.6g} µm "
            f"within limits {limits.low:.6g} to {limits.high:.6g} µm; move the window or the limits"
        )
    return window


def _sample(step: Step, frame: Frame, knob: str, scores: Scores) -> SearchSample:
    z = frame.knobs.get(knob, math.nan)
    if not math.isfinite(z):
        raise StrategyError(f"a frame came back without the position of {knob!r}: {dict(frame.knobs)}")
    return SearchSample(float(z), step.z, scores.logs, scores.noise, step.purpose)
