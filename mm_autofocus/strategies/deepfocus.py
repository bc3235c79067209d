"""DeepFocus as published: perturbed pairs, a network on patches, its mean correction added, several iterations."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mm_autofocus.errors import BudgetError, StrategyError
from mm_autofocus.estimators.aberration import ColumnCalibration, PairEstimate, PairEstimator, Vector
from mm_autofocus.estimators.sharpness import sharpness
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.column_knobs import ColumnKnobs, flat, patch_records, refuse_nonsense
from mm_autofocus.strategy import FocusGenerator, Frame, StrategySettings, Verdict

_AGREES = 0.4
"""The last correction counts as an error of this share of itself: the network shrinks what is left, at best."""


class DeepFocusSettings(StrategySettings):
    """Settings of `DeepFocus`.

    Attributes
    ----------
    model
        Path of the network's card (.json), or a name that ``mm-autofocus models`` lists, as
        ``sem_deepfocus_patch_scores``; empty for that of Table 2 which comes along.
    step_um
        The two frames lie so far on either side of the present working distance (the paper's perturbation).
    iterations
        Pairs of a run; the paper settles within three and shows ten.
    patches, patch_seed
        Patches of each pair, and the seed of their places, the same in every iteration.
    weighting
        "scores" weights the patches as the network says (softmax, where it has scores), "mean" equally.
    exposure_ms, camera, pixel_um, stigmate, range_um, stig_range, min_confidence
        As in `PhaseDiversitySettings`.
    """

    model: str = ""
    step_um: float = Field(default=5.0, gt=0, le=50)
    iterations: int = Field(default=3, ge=1, le=20)
    patches: int = Field(default=5, ge=1, le=200)
    patch_seed: int = Field(default=0, ge=0)
    weighting: Literal["scores", "mean"] = "scores"
    exposure_ms: float | None = Field(default=None, gt=0)
    camera: str | None = None
    pixel_um: float | None = Field(default=None, gt=0)
    stigmate: bool = True
    range_um: float = Field(default=100.0, gt=0)
    stig_range: float = Field(default=20.0, gt=0)
    min_confidence: float = Field(default=0.5, ge=0, le=1)


class DeepFocus:
    """Adds the correction of a network to working distance and stigmators, pair after pair (Schubert et al. 2024).

    The network knows one instrument: it answers in the units of the column that it was trained on, whatever the
    convergence angle, the pixel size or the stigmators' scale. The paper gives no confidence; here it comes from the
    scatter of the patches and from how large the last correction still was.

    Parameters
    ----------
    settings
        See `DeepFocusSettings`; None for the defaults.
    estimator
        What reads a pair; None for the network that the settings name.

    Raises
    ------
    SettingsError
        When the network cannot be used.
    """

    name: ClassVar[str] = "deepfocus"
    Settings: ClassVar[type[StrategySettings]] = DeepFocusSettings

    def __init__(self, settings: DeepFocusSettings | None = None, estimator: PairEstimator | None = None) -> None:
        self.settings: DeepFocusSettings = settings or DeepFocusSettings()
        self.estimator: PairEstimator = estimator or _load(self.settings)

    def score(self, frame: Frame) -> float:
        """Band-pass energy of one frame, without its noise; higher is sharper."""
        return sharpness(frame.image).value

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Correct pair after pair; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When the network answers nonsense, a frame lacks what it needs, or the budget leaves no pair.
        HardwareError
            When a frame or the working distance is not what was asked for.
        """
        return (yield from _Run(self, request).search())


class _Run:
    """What one run has seen so far."""

    def __init__(self, strategy: DeepFocus, request: FocusRequest) -> None:
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
        images = request.budget.images  # the start and the verification cost a frame each
        self._most = s.iterations if images is None else min(s.iterations, (images - 2) // 2)
        if self._most < 1:
            raise StrategyError(f"an image budget of {images} leaves no pair to focus with; allow at least 4")
        self._scores: list[float] = []
        self._iterations: list[dict[str, Any]] = []
        self._patches: list[Any] = []

    def search(self) -> FocusGenerator:
        knobs, s = self._knobs, self._s
        at, wanted, sd = knobs.start, knobs.start, np.full(3, np.inf)
        for _ in range(self._most):
            try:
                pair = yield from knobs.pair(at, s.step_um)
            except BudgetError:
                if not self._iterations:
                    raise
                break
            self._scores += [sharpness(pair.under.image).value, sharpness(pair.over.image).value]
            if flat(pair.under.image) or flat(pair.over.image):
                reason = "a frame has one grey value: the beam is blanked or the detector is off"
                return Verdict({}, 0.0, Status.NO_SIGNAL, reason, tuple(self._scores), self._details())
            estimate = self._strategy.estimator.estimate(
                pair.under.image, pair.over.image, pair.step_um, pair.under.pixel_um, ColumnCalibration()
            )
            refuse_nonsense(estimate)
            correction, scatter = _combined(estimate, s.weighting)
            wanted = pair.middle + np.clip(correction, -1e6, 1e6)
            at = knobs.inside(wanted)
            sd = np.hypot(scatter, _AGREES * np.abs(correction))
            self._patches.append(patch_records(estimate))
            self._iterations.append(
                {
                    "middle": [round(float(v), 4) for v in pair.middle],
                    "step_um": round(pair.step_um, 4),
                    "aberration": [round(float(-v), 4) for v in correction],
                    "scatter": [round(float(min(v, 1e6)), 4) for v in scatter],
                    "best": [round(float(v), 4) for v in at],
                }
            )
        return self._verdict(at, wanted, sd)

    def _verdict(self, at: Vector, wanted: Vector, sd: Vector) -> Verdict:
        knobs, n = self._knobs, self._knobs.size
        each = 1.0 - np.exp(-math.sqrt(2.0) * knobs.depths / 2 / np.maximum(sd, 1e-9))
        confidence = float(np.prod(each[:n]))
        last = self._iterations[-1]["aberration"]
        told = ", ".join(f"{name} {-last[i]:+.2f}" for i, name in enumerate(knobs.names))
        reason, status = f"last correction {told} in {len(self._iterations)} iterations", Status.CONVERGED
        beyond = [name for i, name in enumerate(knobs.names) if knobs.beyond(wanted)[i] > 0.25]
        if beyond:
            status, confidence = Status.AT_LIMIT, min(confidence, 0.3)
            reason += f"; {' and '.join(beyond)} would have to leave the limits: widen them if that is safe"
            if knobs.clamped:
                reason += f" ({'; '.join(knobs.clamped.values())})"
        elif confidence < self._s.min_confidence:
            status = Status.LOW_CONFIDENCE
            reason += "; it has not come to rest: allow more iterations, or recalibrate the network"
        return Verdict(knobs.target(at), confidence, status, reason, tuple(self._scores), self._details())

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {"iterations": self._iterations, "patches": self._patches[0] if self._patches else []}
        if self._knobs.clamped:
            details["clamped"] = dict(self._knobs.clamped)
        return details


def _combined(estimate: PairEstimate, weighting: str) -> tuple[Vector, Vector]:
    """Return the correction and the standard error of its mean over the patches, shape (3,) each."""
    if not estimate.patches:
        return -estimate.aberration.vector(), estimate.sigma.vector()
    each = np.array([patch.aberration.vector() for patch in estimate.patches])
    given = np.array([patch.weight for patch in estimate.patches])
    cells = int(estimate.details.get("cells", 1))
    if cells > 1:  # parts of one patch err alike: they are one
        each, given = _whole(each, given, cells, weighting)
    weights = np.full(len(each), 1.0 / len(each))
    if weighting == "scores":
        weights = given / given.sum() if np.all(given >= 0) and given.sum() > 0 else weights
    mean = weights @ each
    effective = 1.0 / float(np.sum(weights**2))
    spread = np.sqrt(weights @ (each - mean) ** 2 / max(effective - 1.0, 0.5))
    # one or two patches tell no scatter, so the network's own figure stands in
    return -mean, np.maximum(spread, estimate.sigma.vector() if effective < 1.5 else 0.0)


def _whole(
    each: NDArray[np.float64], given: NDArray[np.float64], cells: int, weighting: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return aberrations (patches, 3) and weights (patches,) of patches, of those of so many cells each."""
    each, given = each.reshape(-1, cells, 3), given.reshape(-1, cells)
    total = given.sum(1)
    shares = np.full(given.shape, 1.0 / cells)
    if weighting == "scores":
        shares = np.where((total > 0)[:, None], given / np.maximum(total, 1e-300)[:, None], shares)
    return (shares[..., None] * each).sum(1), total


def _load(settings: DeepFocusSettings) -> PairEstimator:
    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator

    return DeepFocusEstimator.load(settings.model, patches=settings.patches, seed=settings.patch_seed)
