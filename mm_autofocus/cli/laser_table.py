"""Measures the three laser readouts side by side on days, drift and an instrument that ours was not trained on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mm_autofocus.benchmark.laser_models import FIRST_DAY, KINDS, METHODS, TRAINED, UNIT, Effort, rng_of
from mm_autofocus.benchmark.laser_units import LaserCase, Part, measurer, rounded
from mm_autofocus.benchmark.runner import Failure, Method, Progress, Record, key_of, run_units, set_aside
from mm_autofocus.readouts import load_model
from mm_autofocus.simulation.laser_day import Family

Unit = tuple[LaserCase, Method]

LOST_UM = 2.0
SNAKES = ("horizontal", "vertical")
STEPS = {"two": "two steps", "long": "long range only", "short": "short range only"}
TESTS = (("1 day", "same day"), ("1 day", "next days"), ("10 days", "next days"))
TWO_STEPS = "two steps from ±100 µm, next days"


@dataclass
class Bench:
    """One measurement of everything.

    Attributes
    ----------
    out
        Folder: laser.jsonl is the journal, where a run that was killed goes on, and models/ holds what was trained.
    quick
        A few per cent of the images and of the training.
    paper_seconds
        Time for training the paper's networks, all together (3 h each on a GPU in the paper).
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`. Processes that do not share the folder train for themselves.
    """

    out: Path
    quick: bool = False
    paper_seconds: float = 480.0
    workers: int = 0
    scheduler: str = ""
    effort: Effort = field(init=False)

    def __post_init__(self) -> None:
        self.effort = Effort(self.quick, self.paper_seconds)
        self.methods = {key: Method(name=name, strategy=key, peer=key != "ours") for key, name in METHODS.items()}

    @property
    def journal(self) -> Path:
        """Where each unit is kept."""
        return self.out / "laser.jsonl"

    @property
    def models(self) -> Path:
        """Where trained readouts are kept."""
        return (self.out / "models").absolute()

    def begin_anew(self) -> None:
        """Set the journal aside and forget what was trained."""
        set_aside(self.journal)
        shutil.rmtree(self.models, ignore_errors=True)

    # ------------------------------------------------------------------ what there is to do
    def trainings(self) -> list[Unit]:
        """Return what must be there before the rest is measured."""
        return [
            (self._case("training", f"training, {kind} range, {name}", kind=kind, trained=name), method)
            for kind in KINDS for name in TRAINED for method in self.methods.values()
        ]  # fmt: skip

    def units(self) -> list[Unit]:
        """Return everything but the trainings, in the order in which it is begun."""
        parts = self._stacks(), self._recalibration(), self._starts(), self._plates(), self._rest()
        return [unit for part in parts for unit in part]

    def _case(self, part: Part, name: str, **more: Any) -> LaserCase:
        return LaserCase(name=name, group=more.pop("group", part), part=part, effort=self.effort, **more)

    def _stacks(self) -> Iterator[Unit]:
        """Rows that need only stacks: same day, next days."""
        for kind in KINDS:
            for trained, when in TESTS:
                name = f"{kind} range, trained on {trained}, {when}"
                for method in self.methods.values():
                    yield self._case("stacks", name, kind=kind, trained=trained, when=when), method

    def _recalibration(self) -> Iterator[Unit]:
        for kind in KINDS:
            name = f"{kind} range, trained on 1 day, next days, recalibrated"
            for key in ("lookup", "ours"):
                yield self._case("recalibration", name, kind=kind), self.methods[key]

    def _starts(self) -> Iterator[Unit]:
        for i, start in enumerate(rng_of("starts").uniform(-100, 100, 20 if self.quick else 120)):
            case = self._case("starts", f"start {i + 1}", group=TWO_STEPS, start_um=float(start), index=i)
            for method in self.methods.values():
                yield case, method

    def _plates(self) -> Iterator[Unit]:
        for snake in SNAKES:
            for steps, words in STEPS.items():
                case = self._case("plates", f"96 wells, {snake} snake, {words}", snake=snake, steps=steps)
                for method in self.methods.values():
                    yield case, method

    def _rest(self) -> Iterator[Unit]:
        yield self._case("zero", "zero criterion (normalised)"), self.methods["paper"]
        if not self.quick:
            for kind in KINDS:
                for method in self.methods.values():
                    yield self._case("knocked", f"{kind} range, knocked", kind=kind), method

    # ------------------------------------------------------------------ measuring
    def measure(self, progress: Progress | None = None) -> tuple[dict[str, Any], list[Record]]:
        """Train, measure everything, and return the table with its context, and all focus runs."""
        began = time.perf_counter()
        self.models.mkdir(parents=True, exist_ok=True)
        trainings, units = self.trainings(), self.units()
        first, total = len(trainings), len(trainings) + len(units)

        def later(done: int, _: int, record: Record) -> None:
            if progress is not None:
                progress(done + first, total, record)

        measure = measurer(self.models)
        trained = run_units(
            trainings, measure, self.journal, workers=self.workers, scheduler=self.scheduler, progress=progress
        )
        done = run_units(
            units, measure, self.journal, workers=self.workers, scheduler=self.scheduler, progress=later
        )  # fmt: skip
        failures: list[Failure] = trained.failures + done.failures
        records = {record.key: record for record in done.records}
        known = [(*unit, records[key]) for unit in units if (key := key_of(*unit)) in records]
        rows, figures = _rows(known), _figures(known)
        seconds: dict[str, float] = {}
        for record in trained.records:
            name = f"training: {record.method}"
            seconds[name] = round(seconds.get(name, 0.0) + record.compute_seconds, 2)
        outcome = {
            "rows": rows, "figures": figures, "seconds": seconds | _spent(known),
            "total_seconds": round(time.perf_counter() - began, 1), "quick": self.quick,
            "paper_seconds": self.paper_seconds, "units": total, "resumed": trained.resumed + done.resumed,
            "failures": [failure.model_dump() for failure in failures],
            "tested_on": f"instrument {UNIT}, days {FIRST_DAY} to {FIRST_DAY + 14}, drift {Family.HELD_OUT.value}",
            "trained_on": load_model().card.trained_on,
        }  # fmt: skip
        return outcome, [record for record in done.records if record.judged]


# ---------------------------------------------------------------------- tables
Known = Sequence[tuple[LaserCase, Method, Record]]


def _rows(known: Known) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the cells of the table by row and by method."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    starts: dict[str, list[Record]] = {}
    for case, method, record in known:
        if case.part in ("stacks", "recalibration", "zero"):
            if case.part == "recalibration":
                rows.setdefault(case.name, {"paper": {"note": "cannot"}})
            rows.setdefault(case.name, {})[method.strategy] = record.details["row"]
        elif case.part == "knocked":
            for when, row in record.details["rows"].items():
                rows.setdefault(f"{case.name}, {when}", {})[method.strategy] = row
        elif case.part == "starts":
            rows.setdefault(TWO_STEPS, {})
            rows.setdefault("compute per focus", {})
            starts.setdefault(method.strategy, []).append(record)
        else:
            rows.setdefault(case.name, {})[method.strategy] = _plate_cell(case, record)
    for key, runs in starts.items():
        rows[TWO_STEPS][key] = _start_cell(runs)
        rows["compute per focus"][key] = {"ms": round(1000 * float(np.median([r.compute_seconds for r in runs])), 1)}
    return rows


def _start_cell(runs: Sequence[Record]) -> dict[str, Any]:
    ends = [run.error or 0.0 for run in runs if run.details["found"] and abs(run.error or 0.0) < LOST_UM]
    error, lost = np.array(ends), {"lost": f"{len(runs) - len(ends)}/{len(runs)}"}
    if not ends:
        return lost
    return {
        "sd": rounded(error.std()), "rms": rounded(np.sqrt((error**2).mean())), "bias": rounded(error.mean()),
        "p95": rounded(np.percentile(np.abs(error), 95)), **lost,
    }  # fmt: skip


def _plate_cell(case: LaserCase, record: Record) -> dict[str, Any]:
    wells = list(record.details["wells"].values())
    reach = LOST_UM if case.steps != "long" else 5 * LOST_UM
    kept = [end for end in wells if abs(end) < reach]
    lost = {"lost": f"{len(wells) - len(kept)}/{len(wells)}"}
    return {"sd": rounded(np.std(kept)), "bias": rounded(np.mean(kept)), **lost} if kept else lost


def _figures(known: Known) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {"stacks": {}, "starts": {}, "plates": {}}
    for case, method, record in known:
        if case.part == "stacks":
            kept = {name: record.details[name] for name in ("z", "errors")}
            figures["stacks"].setdefault(case.name, {})[method.strategy] = kept
        elif case.part == "starts":
            pair = [record.details["start"], rounded(record.error)]
            figures["starts"].setdefault(method.strategy, []).append(pair)
        elif case.part == "plates":
            name = f"{case.snake} snake, {case.steps}"
            figures["plates"].setdefault(name, {})[method.strategy] = record.details["wells"]
    return figures


def _spent(known: Known) -> dict[str, float]:
    """Return the processor's time of recalibration and of training on."""
    words = {"recalibration": "recalibration", "knocked": "training on, knocked"}
    spent: dict[str, float] = {}
    for case, method, record in known:
        if case.part in words and record.details["seconds"]:
            name = f"{words[case.part]}: {method.name}"
            spent[name] = round(spent.get(name, 0.0) + record.details["seconds"], 4)
    return spent
