"""What one unit of `bench sem` is, and how it is measured: one pair, one closed loop, or one series of the paper's.

A unit knows everything that it depends on, so that any process can measure it, now or when a killed run goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mm_autofocus.benchmark import sem_cases, sem_methods
from mm_autofocus.benchmark.runner import MEASURED, Case, Method, Outcome
from mm_autofocus.benchmark.sem_cases import STIG_DEPTH, WD_DEPTH_UM, Conditions
from mm_autofocus.benchmark.sem_methods import OURS, Trajectory, deepscore_loop
from mm_autofocus.benchmark.sem_scoring import within
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.cards import WEIGHTS
from mm_autofocus.result import Status
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.strategy import Image

Part = Literal["pairs", "loops", "far", "vessel", "locations", "score", "recalibration", "speed"]

SCORE = "deepscore"
"""Key of DeepScore with Nelder and Mead's search, which reads single images."""
ALL = "all"
"""Key of a unit that all methods take part in."""


class SemCase(Case):
    """One thing to measure.

    Attributes
    ----------
    part
        What of the bench it is.
    start, conditions
        Where it begins, and on what instrument; None for what chooses by itself.
    iterations
        Pairs of a loop.
    counts
        How many of what, for recalibration and speed.
    """

    part: Part
    start: sem_cases.Case | None = None
    conditions: Conditions | None = None
    iterations: int = 0
    counts: dict[str, int] = Field(default_factory=dict)


class SemMethod(Method):
    """One row of the tables; ``strategy`` is its key in `mm_autofocus.benchmark.sem_methods.methods`.

    Attributes
    ----------
    quick
        Let the peers look at a part of each frame.
    weights
        Digest of the network, so that another training is measured anew.
    """

    quick: bool = False
    weights: str = ""


def sem_method(key: str, name: str, *, quick: bool = False) -> SemMethod:
    """Return a row."""
    return SemMethod(name=name, strategy=key, quick=quick, weights=weights_of(f"sem_{key}"), peer=key not in OURS)


@lru_cache(maxsize=16)
def weights_of(*stems: str) -> str:
    """Return a digest of the cards and weights of these stems; empty where there are none."""
    found = sorted(path for stem in stems for path in WEIGHTS.glob(f"{stem}.*"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16] if found else ""


@lru_cache(maxsize=16)
def loaded(key: str, quick: bool) -> sem_methods.Method:
    """Load a method once for this process.

    Raises
    ------
    SettingsError
        When it cannot be used.
    """
    found, missing = sem_methods.methods((key,), quick=quick)
    if not found:
        raise SettingsError("; ".join(missing.values()) or f"there is no method {key!r}")
    return found[0]


def measure_sem(case: SemCase, method: SemMethod) -> Outcome:
    """Measure one unit; the truth is used to put the column where it begins, and to score."""
    one_thread()
    return _PARTS[case.part](case, method)


def one_thread() -> None:
    """Let torch, where it is installed, compute on one thread, as every time in the tables is meant."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


# ---------------------------------------------------------------------- single pairs
@lru_cache(maxsize=2)
def _pair(start: sem_cases.Case, conditions: Conditions) -> tuple[Image, Image, float, float, tuple[float, ...]]:
    """Return both frames, their distance in µm, the pixel in µm, and the truth: the same ones for every method."""
    column = sem_cases.open_column(start, conditions)
    under, over, step_um = sem_cases.take_pair(column)
    truth = tuple(float(v) for v in column.truth().vector())
    return under, over, step_um, column.pixel_nm * 1e-3, truth


def _measure_pair(case: SemCase, method: SemMethod) -> Outcome:
    assert case.start is not None
    assert case.conditions is not None
    used = loaded(method.strategy, method.quick)
    assert used.estimator is not None
    under, over, step_um, pixel_um, truth = _pair(case.start, case.conditions)
    calibration = used.believed(case.conditions.calibration())
    began = time.process_time()
    found = used.estimator.estimate(under, over, step_um, pixel_um, calibration)
    seconds = time.process_time() - began
    error = found.aberration.vector() - np.array(truth)
    good = bool(within(error[None])[0])
    return Outcome(
        status=MEASURED, success=good, images=2, compute_seconds=seconds,
        details={"error": [round(float(v), 3) for v in error]},
    )  # fmt: skip


# ---------------------------------------------------------------------- closed loops
def _measure_loop(case: SemCase, method: SemMethod) -> Outcome:
    assert case.start is not None
    assert case.conditions is not None
    opened = sem_cases.vessel_column if case.part == "vessel" else sem_cases.open_column
    column = opened(case.start, case.conditions)
    used = loaded(method.strategy, method.quick)
    run = used.loop(column, case.conditions.calibration(), case.iterations)
    return loop_outcome(run, column, case.conditions, patches=case.part == "vessel")


def _measure_score(case: SemCase, method: SemMethod) -> Outcome:
    assert case.start is not None
    assert case.conditions is not None
    column = sem_cases.open_column(case.start, case.conditions)
    run = deepscore_loop(column, case.conditions.calibration(), patches=3 if method.quick else 10)
    return loop_outcome(run, column, case.conditions)


def loop_outcome(run: Trajectory, column: Column, conditions: Conditions, *, patches: bool = False) -> Outcome:
    """Return what a closed loop on a column that was fresh came to; ``patches`` keeps what they said.

    Dose and time are those of the dwell that gives the conditions' electrons (84 of them in 200 ns), while the column
    itself scans with one dwell in all conditions.
    """
    share = conditions.electrons / conditions.setup.electrons_per_pixel
    end = run.residuals[-1]
    depths = np.array([WD_DEPTH_UM, STIG_DEPTH, STIG_DEPTH])
    halves = end / (depths / 2)
    details: dict[str, Any] = {
        "residuals": np.round(run.residuals, 6).tolist(), "frames": run.frames.tolist(), "seconds": run.seconds,
    }  # fmt: skip
    if patches:
        details["patches"] = run.patches
    return Outcome(
        status=run.status.value, success=run.status.ok and bool(within(run.residuals[-1:])[0]),
        error=float(halves[np.abs(halves).argmax()]), depth=2.0, unit="half depths of field",
        errors={"wd µm": float(end[0]), "stig a.u.": float(end[1:][np.abs(end[1:]).argmax()])},
        confidence=run.confidence if np.isfinite(run.confidence) else None, images=column.frames,
        dose=share * column.dose, compute_seconds=run.seconds, instrument_seconds=share * column.clock_s,
        details=details,
    )  # fmt: skip


def trajectory(outcome: Outcome) -> Trajectory:
    """Return the closed loop that an outcome of `loop_outcome` was made of."""
    kept = outcome.details
    stated = outcome.confidence if outcome.confidence is not None else float("nan")
    return Trajectory(
        np.array(kept["residuals"], dtype=float), np.array(kept["frames"], dtype=float), stated,
        Status(outcome.status), kept["seconds"], kept.get("patches", []),
    )  # fmt: skip


# ---------------------------------------------------------------------- recalibration and speed
def _measure_recalibration(case: SemCase, method: SemMethod) -> Outcome:
    """Measure figure 4 for one model; it is trained on the way, so that all of it is one unit."""
    from mm_autofocus.benchmark.sem_recalibration import measure_recalibration

    rows = measure_recalibration(
        {method.strategy: loaded(method.strategy, method.quick)}, iterations=case.iterations, say=_silent, **case.counts
    )
    return Outcome(status=MEASURED, success=True, details={"rows": rows})


def _measure_speed(case: SemCase, method: SemMethod) -> Outcome:
    """Time every model in turn, in this one process; those that cannot be used are left out."""
    from mm_autofocus.benchmark.sem_speed import measure_speed

    found, _ = sem_methods.methods(method.settings["keys"], quick=method.quick)
    rows = measure_speed({each.key: each for each in found}, case.counts["timings"], slow=not method.quick)
    return Outcome(status=MEASURED, success=True, details={"rows": rows})


def _silent(text: str) -> None:
    """Say nothing."""


_PARTS: dict[Part, Callable[[SemCase, SemMethod], Outcome]] = {
    "pairs": _measure_pair, "loops": _measure_loop, "far": _measure_loop, "vessel": _measure_loop,
    "locations": _measure_loop, "score": _measure_score, "recalibration": _measure_recalibration,
    "speed": _measure_speed,
}  # fmt: skip
