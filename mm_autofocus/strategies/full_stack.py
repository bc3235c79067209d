"""The exhaustive search: an image at every step of the range, and a parabola through the sharpest ones."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from mm_autofocus.errors import StrategyError
from mm_autofocus.measures.curve import Array
from mm_autofocus.measures.registry import get_measure
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.scoring import ImageScorer, Scorer
from mm_autofocus.strategies.sweep import searchable
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict


class FullStackSettings(StrategySettings):
    """Settings of `FullStack`.

    Attributes
    ----------
    measure
        A key of `mm_autofocus.measures.MEASURES`.
    range_um
        Whole length of the search when the request has no window, µm.
    step_um
        Distance of the images, µm; None: one depth of field. Widened when the budget does not reach.
    fit_points
        Images round the sharpest one that the parabola is fitted to: 3 or 5.
    exposure_ms, camera, crop, downsample
        As in `mm_autofocus.strategies.sweep.SweepSettings`.
    min_contrast
        The sharpest image must exceed the median one by this fraction to count as a signal.
    """

    measure: str = "laplacian_of_gaussian"
    range_um: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    step_um: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    fit_points: int = Field(default=3, ge=3, le=5)
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    camera: str | None = None
    crop: float = Field(default=1.0, gt=0, le=1)
    downsample: int = Field(default=1, ge=1)
    min_contrast: float = Field(default=0.1, ge=0)

    @field_validator("measure")
    @classmethod
    def _known(cls, name: str) -> str:
        return get_measure(name).name


class FullStack:
    """Autofocus by a whole z-stack: slow, and right wherever the measure is.

    Parameters
    ----------
    settings
        See `FullStackSettings`; None for the defaults.
    scorer
        What turns frames into scores; None for the measure of the settings.
    """

    name: ClassVar[str] = "full-stack"
    Settings: ClassVar[type[StrategySettings]] = FullStackSettings

    def __init__(self, settings: FullStackSettings | None = None, scorer: Scorer | None = None) -> None:
        self._settings = s = settings or FullStackSettings()
        self.settings: StrategySettings = s
        self._scorer: Scorer = scorer or ImageScorer([s.measure], s.crop, s.downsample)

    def score(self, frame: Frame) -> float:
        """Sharpness of one frame; higher is sharper."""
        return self._scorer(frame).fine

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Image the window from bottom to top; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When the window is empty, the budget leaves fewer than 3 images, or a frame cannot be measured.
        """
        s, knob = self._settings, request.knob
        window = searchable(request, s.range_um)
        count = math.ceil(window.width / (s.step_um or request.depth_of_field_um) - 1e-9) + 1
        if request.budget.images is not None:
            count = min(count, request.budget.images - 1)
        if count < 3:
            raise StrategyError(
                f"a stack needs 3 images, the step and the image budget of {request.budget.images} leave {count}; "
                "raise the budget or make the step smaller"
            )
        z, logs, noise = np.zeros(count), np.zeros(count), 0.0
        for i, target in enumerate(np.linspace(window.low, window.high, count)):
            at = request.limits[knob].clip(float(target))
            frame = yield Look({knob: at}, camera=s.camera, exposure_ms=s.exposure_ms)
            scores = self._scorer(frame)
            z[i], logs[i], noise = frame.knobs[knob], scores.logs[0], max(noise, scores.noise[0])
        fine = tuple(float(score) for score in np.exp(np.clip(logs, -700.0, 700.0)))
        best = int(logs.argmax())
        contrast = float(np.expm1(min(logs[best] - np.median(logs), 50.0)))
        if contrast < max(s.min_contrast, 5.0 * noise):
            reason = f"the sharpest of {count} images exceeds the median by {contrast:.1%} only"
            return Verdict({}, 0.0, Status.NO_SIGNAL, reason, fine)
        if best in (0, count - 1):
            reason = f"sharpness still rises at the end of the range, {z[best]:.6g} µm; move the range there"
            return Verdict({knob: float(z[best])}, 0.3, Status.AT_LIMIT, reason, fine)
        answer = parabola_peak(z, logs, best, s.fit_points)
        second = _second_peak(logs, best)
        confidence = float(np.clip(0.5 + (logs[best] - second) / max(logs[best] - np.median(logs), 1e-9), 0.5, 0.98))
        reason = f"peak at {answer:.6g} µm, {contrast:.0%} over the median"
        return Verdict({knob: answer}, confidence, Status.CONVERGED, reason, fine)


def parabola_peak(z: Array, logs: Array, best: int, points: int) -> float:
    """Return the vertex of the least-squares parabola of log score through ``points`` images round the best, µm.

    A Gaussian peak is a parabola in the logarithm. The answer stays between the neighbours of the best image, and is
    the best image itself where the parabola opens upward.
    """
    half = points // 2
    part = slice(max(best - half, 0), best + half + 1)
    x = z[part] - z[best]
    if np.unique(x).size < 3:
        return float(z[best])
    curvature, slope, _ = np.polyfit(x, logs[part], 2)
    if curvature >= 0:
        return float(z[best])
    low, high = sorted((z[best - 1], z[best + 1]))
    return float(np.clip(z[best] - slope / (2 * curvature), low, high))


def _second_peak(logs: Array, best: int) -> float:
    """Height of the highest local maximum other than the best image and its neighbours."""
    inner = np.flatnonzero((logs[1:-1] >= logs[:-2]) & (logs[1:-1] >= logs[2:])) + 1
    others = logs[inner[np.abs(inner - best) > 2]]
    return float(others.max()) if others.size else float(np.median(logs))
