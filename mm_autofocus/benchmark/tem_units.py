"""What one unit of `bench tem` is, and how it is measured: one alignment, one training, or all that datasets show.

A unit knows everything that it depends on, so that any process can measure it, now or when a killed run goes on.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import Any, Literal

from mm_autofocus.benchmark.runner import MEASURED, Case, Method, Outcome
from mm_autofocus.benchmark.tem_data import record
from mm_autofocus.benchmark.tem_drive import DEPTH_STEPS
from mm_autofocus.benchmark.tem_ours import Case as Aligned
from mm_autofocus.benchmark.tem_ours import Condition, calibration, milliseconds, on_datasets, run_case, unit_of
from mm_autofocus.benchmark.tem_paper import Effort, Training, trained
from mm_autofocus.estimators.response import ResponseMap

Part = Literal["datasets", "loops", "trainings", "speed"]


class TemCase(Case):
    """One thing to measure.

    Attributes
    ----------
    part
        What of the bench it is.
    condition, index
        Of one alignment, and which of its instruments and days.
    training, effort
        Of one training, and how much is trained; the datasets are recorded by its ``points``.
    repeats
        Splits of the datasets, or timings.
    """

    part: Part
    condition: Condition | None = None
    index: int = 0
    training: Training | None = None
    effort: Effort = Effort()
    repeats: int = 0


def measure_tem(case: TemCase, method: Method) -> Outcome:  # noqa: ARG001
    """Measure one unit; the truth is used to put the column where it begins, and to score."""
    details: dict[str, Any]
    if case.condition is not None:
        response = _calibration(unit_of(case.index)) if case.condition.response else None
        return _outcome(run_case(case.condition, case.index, response))
    if case.training is not None:
        details = trained(record(case.effort.points, case.seed), case.training, case.effort)
    elif case.part == "datasets":
        details = on_datasets(record(case.effort.points, case.seed), splits=case.repeats)
    else:
        details = dict(milliseconds(case.repeats))
    return Outcome(status=MEASURED, success=True, details=details)


@lru_cache(maxsize=32)
def _calibration(unit: int) -> ResponseMap:
    return calibration(unit)


def _outcome(run: Aligned) -> Outcome:
    error = max(run.end, key=abs)
    return Outcome(
        status=run.status, success=run.status == "converged" and abs(error) <= DEPTH_STEPS / 2, error=error,
        depth=DEPTH_STEPS, unit="steps", confidence=run.confidence, images=run.images, dose=run.exposure_s,
        compute_seconds=run.compute_seconds, instrument_seconds=run.instrument_seconds, details=asdict(run),
    )  # fmt: skip


def aligned(outcome: Outcome) -> Aligned:
    """Return the alignment that an outcome was made of."""
    kept = outcome.details
    steps = tuple((float(x), float(y)) for x, y in kept["steps"])
    end = float(kept["end"][0]), float(kept["end"][1])
    return Aligned(**{**kept, "steps": steps, "end": end})
