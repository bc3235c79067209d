"""What `bench sem` compares: each method as an estimator of one pair, and as a closed loop on a simulated column.

Ours run as the strategy that an acquisition runs, with its calibration on the fly and its stopping. The peers iterate
as their papers do: a pair, its correction in full, the next pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.sem_cases import DEPTHS, HALF_STEP_UM, LIMITS, knobs_of, set_knobs, take_pair
from mm_autofocus.errors import FocusError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimator
from mm_autofocus.request import Budget, Event, FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.strategies.column_knobs import patch_records
from mm_autofocus.strategy import Frame, Strategy, Verdict

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One closed loop.

    Attributes
    ----------
    residuals
        Aberration before, and after each iteration, shape (iterations + 1, 3); µm and a.u.
    frames
        Frames taken until then, shape (iterations + 1,).
    confidence
        Of the end, NaN for methods that state none.
    status
        How it ended.
    seconds
        Of computing, the processor's.
    patches
        What the patches of the first pair said, for the report.
    """

    residuals: Array
    frames: Array
    confidence: float
    status: Status
    seconds: float
    patches: list[dict[str, float]] = field(default_factory=list)

    def after(self, iteration: int) -> Array:
        """Return the aberration after that iteration; after the last one where it ended earlier."""
        return np.asarray(self.residuals[min(iteration, len(self.residuals) - 1)])


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes
    ----------
    key, name
        For JSON, and for readers.
    estimator
        Reads one pair; None for a method that scores single images.
    strategy
        Makes the strategy that believes a calibration; None for a method that iterates pair by pair.
    belief
        Factor of the convergence angle and of the stigmators' scale that the method believes instead of the right ones.
    """

    key: str
    name: str
    estimator: PairEstimator | None = None
    strategy: Callable[[ColumnCalibration], Strategy] | None = None
    belief: float = 1.0

    def believed(self, calibration: ColumnCalibration) -> ColumnCalibration:
        """Return what this method takes for the calibration."""
        return calibration.scaled(convergence=self.belief)

    def loop(self, column: Column, calibration: ColumnCalibration, iterations: int) -> Trajectory:
        """Focus and stigmate from where the column stands."""
        if self.strategy is not None:
            return strategy_loop(column, self.strategy(self.believed(calibration)))
        assert self.estimator is not None
        return pair_loop(column, self.estimator, self.believed(calibration), iterations)


def methods(keys: Iterable[str] | None = None, *, quick: bool = False) -> tuple[list[Method], dict[str, str]]:
    """Load the methods; return those that can be used, and why the others cannot, by name.

    Parameters
    ----------
    keys
        Which; None for all.
    quick
        Let the peers look at a part of each frame.
    """
    found: list[Method] = []
    missing: dict[str, str] = {}
    for key, (name, make) in _MAKERS.items():
        if keys is not None and key not in keys:
            continue
        try:
            found.append(make(key, name, quick))
        except (FocusError, ImportError, OSError) as error:
            missing[name] = str(error)
    return found, missing


def pair_loop(column: Column, estimator: PairEstimator, calibration: ColumnCalibration, iterations: int) -> Trajectory:
    """Correct by each pair's whole estimate, so often."""
    residuals, frames, seconds = [column.truth().vector()], [0.0], 0.0
    patches: list[dict[str, float]] = []
    for _ in range(iterations):
        here = knobs_of(column)
        under, over, step_um = take_pair(column)
        began = time.process_time()
        estimate = estimator.estimate(under, over, step_um, column.pixel_nm * 1e-3, calibration)
        seconds += time.process_time() - began
        patches = patches or [dict(record) for record in patch_records(estimate)]
        correction = -estimate.aberration.vector()
        set_knobs(column, here + np.where(np.isfinite(correction), correction, 0.0))
        residuals.append(column.truth().vector())
        frames.append(frames[-1] + 2)
    return Trajectory(np.array(residuals), np.array(frames), float("nan"), Status.CONVERGED, seconds, patches)


def strategy_loop(column: Column, strategy: Strategy, seed: int = 0, images: int = 100) -> Trajectory:
    """Run a strategy on the column, without Micro-Manager; it sees frames and knobs only."""
    start = knobs_of(column)
    best = start - column.truth().vector()
    names = ("z", "stig_x", "stig_y")
    request = FocusRequest(
        Event(), dict(zip(names, start.tolist(), strict=True)), LIMITS, depths=DEPTHS, depth_of_field_um=DEPTHS["z"],
        pixel_um=column.pixel_nm * 1e-3, budget=Budget(images, None), seed=seed,
    )  # fmt: skip
    generator = strategy.focus(request)
    seconds, taken = 0.0, 0
    began = time.process_time()
    look = next(generator)
    while True:
        seconds += time.process_time() - began
        target = knobs_of(column)
        for i, name in enumerate(names):
            if name in look.targets:
                target[i] = look.targets[name] + (start[i] if look.relative else 0.0)
        set_knobs(column, target)
        image = column.scan()
        taken += 1
        at = dict(zip(names, knobs_of(column).tolist(), strict=True))
        began = time.process_time()
        try:
            look = generator.send(Frame(image, at, column.pixel_nm * 1e-3, 0.0, float(taken)))
        except StopIteration as stop:
            verdict: Verdict = stop.value
            seconds += time.process_time() - began
            break
    end = np.array([verdict.target.get(name, start[i]) for i, name in enumerate(names)])
    set_knobs(column, end)
    steps, frames = steps_of(verdict.details, taken)
    residuals = np.array([start, *steps[:-1], end]) - best if steps else np.array([start, end]) - best
    return Trajectory(
        residuals, np.array([0, *frames] if steps else [0, taken], dtype=float), verdict.confidence, verdict.status,
        seconds, list(verdict.details.get("patches", [])),
    )  # fmt: skip


def steps_of(details: Any, taken: int) -> tuple[list[Array], list[int]]:
    """Return where a strategy would have gone after each iteration, and the frames by then."""
    if "iterations" in details:
        steps = [np.array(item["best"] if "best" in item else item["target"]) for item in details["iterations"]]
        return steps, [2 * (i + 1) for i in range(len(steps))]
    if "deep_scores" in details:  # the best frame so far
        scores, places = details["deep_scores"], details["trajectory"]
        best = np.minimum.accumulate(scores)
        return [np.array(places[int(np.argmax(scores == value))]) for value in best], list(range(1, taken + 1))
    return [], []


def _spectral(key: str, name: str, quick: bool) -> Method:  # noqa: ARG001
    from mm_autofocus.estimators.spectral import SpectralEstimator

    return _ours(key, name, SpectralEstimator.load())


def _convolutional(key: str, name: str, quick: bool) -> Method:  # noqa: ARG001
    from mm_autofocus.estimators.convolutional import ConvolutionalEstimator

    return _ours(key, name, ConvolutionalEstimator.load())


def _ours(key: str, name: str, estimator: PairEstimator) -> Method:
    from mm_autofocus.strategies.phase_diversity import PhaseDiversity, PhaseDiversitySettings

    def make(calibration: ColumnCalibration) -> Strategy:
        settings = PhaseDiversitySettings(
            convergence_mrad=calibration.convergence_mrad, stigmator_um=calibration.stigmator_um,
            stigmator_rotation_deg=calibration.stigmator_rotation_deg, shift_um_per_um=calibration.shift_um_per_um,
            step_um=HALF_STEP_UM,
        )  # fmt: skip
        return PhaseDiversity(settings, estimator)

    return Method(key, name, estimator, make)


def _deepfocus(key: str, name: str, quick: bool) -> Method:
    from mm_autofocus.estimators.cards import WEIGHTS
    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator

    return Method(key, name, DeepFocusEstimator.load(WEIGHTS / f"sem_{key}.json", patches=2 if quick else 5))


def _mapfost(key: str, name: str, quick: bool) -> Method:
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    estimator = MapfostEstimator(patches=(1, 1) if quick else (2, 2))
    return Method(key, name, estimator, belief=0.8 if key.endswith("off") else 1.0)


_MAKERS: dict[str, tuple[str, Callable[[str, str, bool], Method]]] = {
    "spectral": ("ours, spectral", _spectral),
    "convolutional": ("ours, convolutional", _convolutional),
    "deepfocus": ("StackedConv (DeepFocus)", _deepfocus),
    "deepfocus_patch_scores": ("DeepFocus, patch scores", _deepfocus),
    "mapfost": ("MAPFoSt", _mapfost),
    "mapfost_off": ("MAPFoSt, angle 20 % off", _mapfost),
}
OURS = ("spectral", "convolutional")
VARIANTS = ("deepfocus_patch_scores",)
"""Of the paper's network, those that come along."""


def names() -> dict[str, str]:
    """Return the names of all methods by key, those too that cannot be used here."""
    return {key: name for key, (name, _) in _MAKERS.items()}


def deepscore_loop(
    column: Column, calibration: ColumnCalibration, images: int = 45, patches: int = 10
) -> Trajectory:
    """Run DeepScore with Nelder and Mead's search; the threshold comes from a frame that is in focus at this place.

    The paper looks at 10 patches of each frame.

    Raises
    ------
    SettingsError
        When its network is not there.
    """
    from mm_autofocus.strategies.deepscore import DeepScore, DeepScoreSettings

    settings = DeepScoreSettings(convergence_mrad=calibration.convergence_mrad, patches=patches)
    start = column.truth()
    column.detune(Aberration(0.0))  # somebody has focused here once by hand (paper, Recalibration procedure)
    strategy = DeepScore(settings)
    threshold = strategy.deep_score(column.scan(), column.pixel_nm * 1e-3)
    column.detune(start)
    strategy = DeepScore(settings.model_copy(update={"threshold": max(threshold, 1e-6)}), strategy.scorer)
    return strategy_loop(column, strategy, images=images)
