"""Focus and stigmators by a score of single images and the downhill simplex (Schubert et al. 2024, DeepScore)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import numpy as np
from pydantic import Field

from mm_autofocus.errors import BudgetError, StrategyError
from mm_autofocus.estimators.aberration import ColumnCalibration, Vector
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.column_knobs import ColumnKnobs, Shot, flat
from mm_autofocus.strategies.simplex_steps import simplex_steps
from mm_autofocus.strategy import FocusGenerator, Frame, Image, StrategySettings, Verdict

PATIENCE = 5
"""Iterations without improvement before the knobs are perturbed (paper, Recalibration procedure)."""

THRESHOLD_MARGIN = 1.05
"""The search ends at this multiple of the score of a frame that was focused by hand (same place)."""

_REACHED_CONFIDENCE, _MISSED_CONFIDENCE = 0.9, 0.4
"""Confidence of a search that came down to its threshold, and the most of one that did not."""


class AbsoluteScore(Protocol):
    """What scores one image: (focus, stigmators), about 0 when in focus and growing with the aberration.

    Each is the minimum over patches at fixed places.
    """

    def score(self, image: Image, pixel_um: float, calibration: ColumnCalibration) -> tuple[float, float]:
        """Score one image, shape (height, width)."""
        ...


class DeepScoreSettings(StrategySettings):
    """Settings of `DeepScore`.

    Attributes
    ----------
    model
        Path of the score network's card (.json), or a name that ``mm-autofocus models`` lists; empty for the default.
    patches, patch_seed
        Patches of each frame (the best of them counts), and the seed of their places, the same throughout.
    threshold
        Score of one frame that was focused by hand; the search ends within 5 % of it. 0: none is known, it ends when
        ``max_kicks`` perturbations in a row have gained nothing.
    simplex_um, simplex_stig
        Edges of the first simplex.
    kick_um, kick_stig
        Largest perturbation after 5 iterations without improvement.
    max_images, max_kicks
        Where the search ends in any case.
    range_um, stig_range
        Whole length of the search around the start when the request has no window, µm, and a.u. of each stigmator.
    stigmate, exposure_ms, camera, pixel_um, convergence_mrad
        As in `PhaseDiversitySettings`.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    """

    model: str = ""
    patches: int = Field(default=10, ge=1, le=200)
    patch_seed: int = Field(default=0, ge=0)
    threshold: float = Field(default=0.0, ge=0)
    simplex_um: float = Field(default=8.0, gt=0)
    simplex_stig: float = Field(default=2.0, gt=0)
    kick_um: float = Field(default=2.0, gt=0)
    kick_stig: float = Field(default=0.5, gt=0)
    max_images: int = Field(default=75, ge=8)
    max_kicks: int = Field(default=3, ge=1)
    range_um: float = Field(default=100.0, gt=0)
    stig_range: float = Field(default=20.0, gt=0)
    stigmate: bool = True
    exposure_ms: float | None = Field(default=None, gt=0)
    camera: str | None = None
    pixel_um: float | None = Field(default=None, gt=0)
    convergence_mrad: float = Field(default=8.7, gt=0.1, le=100)
    min_confidence: float = Field(default=0.7, ge=0, le=1)


class DeepScore:
    """Minimises the score of single images by Nelder and Mead's method over working distance and stigmators.

    It knows neither direction nor calibration and so needs many frames, but it works on a column that no other method
    was calibrated for; `DeepFocus` is recalibrated with it.

    Parameters
    ----------
    settings
        See `DeepScoreSettings`; None for the defaults.
    scorer
        What scores an image; None for the network that the settings name.

    Raises
    ------
    SettingsError
        When the network cannot be used.
    """

    name: ClassVar[str] = "deepscore"
    Settings: ClassVar[type[StrategySettings]] = DeepScoreSettings

    def __init__(self, settings: DeepScoreSettings | None = None, scorer: AbsoluteScore | None = None) -> None:
        self.settings: DeepScoreSettings = settings or DeepScoreSettings()
        self.scorer: AbsoluteScore = scorer or _load(self.settings)

    def score(self, frame: Frame) -> float:
        """Minus the score of `deep_score`, so that higher is sharper."""
        if frame.pixel_um is None and self.settings.pixel_um is None:
            raise StrategyError("the pixel size is unknown; calibrate it in Micro-Manager, or set pixel_um")
        return -self.deep_score(frame.image, self.settings.pixel_um or frame.pixel_um or math.nan)

    def deep_score(self, image: Image, pixel_um: float) -> float:
        """Score one image: focus plus stigmators, without weights; lower is sharper.

        Raises
        ------
        StrategyError
            When the network answers NaN.
        HardwareError
            When the image is smaller than the network can use.
        """
        focus, stigmation = self.scorer.score(image, pixel_um, ColumnCalibration(self.settings.convergence_mrad))
        if not (math.isfinite(focus) and math.isfinite(stigmation)):
            raise StrategyError(
                f"the score network answered {focus}, {stigmation}; the column is put back. Its model does not fit "
                "these images, or its file is damaged"
            )
        return float(focus + stigmation)

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Search downhill; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When the network answers nonsense, a frame lacks what it needs, or the budget leaves too few images.
        HardwareError
            When a frame is not what was asked for.
        """
        return (yield from _Run(self, request).search())


class _Run:
    """What one run has seen so far."""

    def __init__(self, strategy: DeepScore, request: FocusRequest) -> None:
        s = self._s = strategy.settings
        self._strategy, self._request = strategy, request
        self._knobs = ColumnKnobs(
            request,
            range_um=s.range_um,
            stig_range=s.stig_range,
            stigmate=s.stigmate,
            camera=s.camera,
            exposure_ms=s.exposure_ms,
            pixel_um=s.pixel_um,
        )
        images = request.budget.images
        self._most = s.max_images if images is None else min(s.max_images, images - 1)
        if self._most < self._knobs.size + 2:
            raise StrategyError(
                f"an image budget of {images} is too small for a simplex of {self._knobs.size + 1} corners; allow at "
                f"least {self._knobs.size + 3}, better 50"
            )
        self._shots: list[Vector] = []
        self._scores: list[float] = []
        self._kicks: list[int] = []

    def search(self) -> FocusGenerator:
        knobs, s, n = self._knobs, self._s, self._knobs.size
        stigmators = [1.0, s.simplex_stig, s.simplex_stig], [1.0, s.kick_stig, s.kick_stig]
        steps, kick = (np.array(each[:n]) for each in stigmators)
        steps[0], kick[0] = s.simplex_um, s.kick_um
        points = simplex_steps(
            knobs.start[:n],
            steps,
            knobs.low[:n],
            knobs.high[:n],
            kick=kick,
            patience=PATIENCE,
            tolerance=knobs.depths[:n] / 8,
            rng=np.random.default_rng(self._request.seed),
        )
        point, kicks = next(points)
        try:
            while len(self._scores) < self._most:
                shot: Shot = yield from knobs.take(np.concatenate([point, knobs.start[n:]]))
                if flat(shot.image):
                    reason = "a frame has one grey value: the beam is blanked or the detector is off"
                    return Verdict({}, 0.0, Status.NO_SIGNAL, reason, self._told, self._details())
                value = self._strategy.deep_score(shot.image, shot.pixel_um)
                self._shots.append(shot.knobs)
                self._scores.append(value)
                self._kicks.append(kicks)
                if self._reached or self._stagnant:
                    break
                point, kicks = points.send(value)
        except BudgetError:
            if len(self._scores) < n + 2:
                raise
        finally:
            points.close()
        return self._verdict()

    @property
    def _told(self) -> tuple[float, ...]:
        """Scores of all frames, higher is sharper."""
        return tuple(-score for score in self._scores)

    @property
    def _reached(self) -> bool:
        return self._s.threshold > 0 and min(self._scores) <= THRESHOLD_MARGIN * self._s.threshold

    @property
    def _stagnant(self) -> bool:
        """True when several kicks in a row have gained nothing and no threshold is waited for."""
        best_kick = self._kicks[int(np.argmin(self._scores))]
        return self._s.threshold == 0 and self._kicks[-1] - best_kick >= self._s.max_kicks

    def _verdict(self) -> Verdict:
        knobs, s = self._knobs, self._s
        best = int(np.argmin(self._scores))
        at, score = self._shots[best], self._scores[best]
        confidence = self._confidence(at, score)
        status = Status.CONVERGED
        reason = f"score {score:.4g}, best of {len(self._scores)} frames"
        edge = self._at_edge(at)
        if self._scores[best] >= self._scores[0] and knobs.clamped:
            status, confidence, reason = Status.LOW_CONFIDENCE, 0.1, f"{reason}; {'; '.join(knobs.clamped.values())}"
        elif edge:
            status, confidence = Status.AT_LIMIT, min(confidence, 0.3)
            reason += f"; {' and '.join(edge)} stands at the end of what is allowed: widen it if that is safe"
        elif confidence < s.min_confidence:
            status = Status.LOW_CONFIDENCE
            reason += (
                f"; the threshold of {THRESHOLD_MARGIN:g} x {s.threshold:.4g} was not reached"
                if s.threshold > 0
                else "; the search has not settled: allow more images, or set a threshold"
            )
        return Verdict(knobs.target(at), confidence, status, reason, self._told, self._details())

    def _at_edge(self, at: Vector) -> list[str]:
        knobs = self._knobs
        margin = knobs.depths / 8
        low, high = at <= knobs.low + margin, at >= knobs.high - margin
        return [name for i, name in enumerate(knobs.names) if low[i] or high[i]]

    def _confidence(self, at: Vector, score: float) -> float:
        """Probability to be in focus: the threshold, or how closely the best frames agree on where it is."""
        if self._reached:
            return _REACHED_CONFIDENCE
        knobs, n = self._knobs, self._knobs.size
        order = np.argsort(self._scores)[: 2 * n + 2]
        if len(order) < 2 * n + 2 or score >= self._scores[0]:
            return 0.1
        worst = self._scores[int(order[-1])]
        weight = np.array([worst - self._scores[int(i)] for i in order]) / max(worst - score, 1e-12)
        away = np.array([self._shots[int(i)] for i in order]) - at
        spread = np.sqrt(np.average(away**2, axis=0, weights=np.maximum(weight, 1e-6)))[:n]
        each = 1.0 - np.exp(-math.sqrt(2.0) * knobs.depths[:n] / 2 / np.maximum(spread, 1e-9))
        most = 1.0 if self._s.threshold == 0 else _MISSED_CONFIDENCE
        return min(float(np.prod(each)), most)

    def _details(self) -> dict[str, Any]:
        return {
            "trajectory": [[round(float(v), 4) for v in at] for at in self._shots],
            "deep_scores": [round(score, 6) for score in self._scores],
            "kicks": self._kicks[-1] if self._kicks else 0,
            "clamped": dict(self._knobs.clamped),
        }


def _load(settings: DeepScoreSettings) -> AbsoluteScore:
    from mm_autofocus.estimators.deepscore_estimator import DeepScoreEstimator

    return DeepScoreEstimator.load(settings.model, patches=settings.patches, seed=settings.patch_seed)
