"""Measures `bench sem`: single pairs, closed loops, the paper's figures, throughput and confidence, on the same cases.

Every method sees the same specimens, places, starts and first frames. None was trained on these specimens, seeds and
probe families (see `mm_autofocus.benchmark.sem_cases`), but for what figure 4 recalibrates on the instrument that it is
then tried on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.runner import BenchRun, Measure, Progress, Record, key_of, run_units
from mm_autofocus.benchmark.sem_cases import NARROW, WIDE, Conditions, cases, location_cases
from mm_autofocus.benchmark.sem_methods import OURS, VARIANTS, names
from mm_autofocus.benchmark.sem_scoring import duel, interval, loop_row, rounded, share, table_of, within
from mm_autofocus.benchmark.sem_units import (
    ALL,
    SCORE,
    Part,
    SemCase,
    SemMethod,
    loaded,
    measure_sem,
    sem_method,
    weights_of,
)
from mm_autofocus.benchmark.sem_units import trajectory as trajectory_of
from mm_autofocus.errors import FocusError, SettingsError

Array = NDArray[np.float64]
Say = Callable[[str], None]
Unit = tuple[SemCase, SemMethod]

DOSES = (84.0, 20.0, 5.0)
DEFAULT = "spectral"
RECALIBRATED = ("spectral", "deepfocus")
"""Methods of figure 4."""
SCORE_NAME = "DeepScore + Nelder-Mead"
VESSEL_SERIES = 4


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured; the defaults take about a quarter of an hour of one core.

    Attributes
    ----------
    pairs, peer_pairs
        Single pairs at each dose, of ours and of the peers: the first so many of the same ones.
    loops, peer_loops
        Closed loops at each condition, of the default and of the peers; our other one runs half as many as the default.
    iterations
        Pairs of a loop.
    repeats, locations
        Loops of the paper's figures.
    score_loops
        Loops of DeepScore with Nelder and Mead.
    labelled_pairs
        For recalibrating DeepFocus (the paper: 100).
    timings
        Rounds.
    quickly
        Peers look at a part of each frame, and take part in the first tables only.
    """

    pairs: int = 24
    peer_pairs: int = 12
    loops: int = 24
    peer_loops: int = 12
    iterations: int = 5
    repeats: int = 3
    locations: int = 9
    score_loops: int = 3
    labelled_pairs: int = 100
    timings: int = 3
    quickly: bool = False

    @classmethod
    def quick(cls) -> Size:
        """A few per cent of it."""
        return cls(
            pairs=2, peer_pairs=2, loops=2, peer_loops=1, iterations=3, repeats=1, locations=2, score_loops=0,
            labelled_pairs=0, timings=1, quickly=True,
        )  # fmt: skip


LOOPS: dict[str, tuple[Conditions, tuple[float, float], tuple[str, ...]]] = {
    "20 e-/px": (
        Conditions(20.0), WIDE, ("spectral", "convolutional", "deepfocus", *VARIANTS, "mapfost", "mapfost_off"),
    ),
    "5 e-/px": (Conditions(5.0), WIDE, ("spectral", "convolutional", "deepfocus", "mapfost")),
    "20 e-/px, believed angle x0.8": (
        Conditions(20.0, angle=1 / 0.8), WIDE, ("spectral", "convolutional", "deepfocus", "mapfost"),
    ),
    "20 e-/px, believed angle x1.2": (
        Conditions(20.0, angle=1 / 1.2), WIDE, ("spectral", "convolutional", "deepfocus", "mapfost"),
    ),
    "20 e-/px, starts within ±0.5 a.u.": (
        Conditions(20.0), NARROW, ("spectral", "deepfocus", "mapfost", "mapfost_off"),
    ),
    "20 e-/px, starts within ±0.5 a.u., believed angle x0.8": (
        Conditions(20.0, angle=1 / 0.8), NARROW, ("spectral", "mapfost"),
    ),
    "20 e-/px, starts within ±0.5 a.u., believed angle x1.2": (
        Conditions(20.0, angle=1 / 1.2), NARROW, ("spectral", "mapfost"),
    ),
}  # fmt: skip
"""Closed loops: conditions, range of the starts, and who takes part."""
QUICK_LOOPS = 1
"""In how many of these the peers take part when it must be quick."""
DWELLS_NS = (200, 50)


@dataclass
class Bench:
    """One measurement of everything; `measure` returns it as a JSON-serialisable dictionary.

    Attributes
    ----------
    journal
        Where each unit is kept; a run that was killed goes on there.
    size
        How much.
    say
        Told what goes on.
    keys
        Which methods; None for all that are installed.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`. Speed is measured in this process in any case.
    measured
        What measures a unit.

    Raises
    ------
    SettingsError
        When no method can be used.
    """

    journal: Path
    size: Size = field(default_factory=Size)
    say: Say = print
    keys: Sequence[str] | None = None
    workers: int = 0
    scheduler: str = ""
    measured: Measure[SemCase, SemMethod] = measure_sem

    def __post_init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.methods: dict[str, SemMethod] = {}
        for key, name in names().items():
            if self.keys is not None and key not in self.keys:
                continue
            try:
                loaded(key, self.size.quickly)
            except SettingsError as error:
                self.missing[name] = str(error)
                self.say(f"left out: {name}: {error}")
            else:
                self.methods[key] = sem_method(key, name, quick=self.size.quickly)
        if not self.methods:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
            raise SettingsError(f"none of the methods can be used ({reasons or f'no method is called {self.keys}'})")

    # ------------------------------------------------------------------ what there is to do
    def units(self) -> list[Unit]:
        """Return everything but the speed, in the order in which it is begun."""
        parts = (
            self._pairs, self._loops, self._far, self._vessel, self._locations, self._score, self._recalibration
        )  # fmt: skip
        return [unit for part in parts for unit in part()]

    def speed(self) -> Unit:
        """Return the unit of the speed: one process and one run, so that the ratios mean something."""
        method = SemMethod(name="all", strategy=ALL, quick=self.size.quickly, settings={"keys": list(self.methods)})
        return SemCase(name="speed", group="speed", part="speed", counts={"timings": self.size.timings}), method

    def _pairs(self) -> Iterator[Unit]:
        """One pair, its error; the same frames for every method and the same aberrations at every dose."""
        for electrons in DOSES:
            group = f"{electrons:g} e-/px"
            for i, start in enumerate(cases(self.size.pairs, 1, WIDE)):
                case = SemCase(
                    name=f"pair {i + 1}, {group}", group=group, seed=start.seed, part="pairs", start=start,
                    conditions=Conditions(electrons),
                )  # fmt: skip
                for key, method in self.methods.items():
                    few = key not in OURS and i >= self.size.peer_pairs
                    if not few and (key != "mapfost_off" or electrons == DOSES[1]):
                        yield case, method

    def _loops(self) -> Iterator[Unit]:
        """Residuals after each iteration, and the share within the depth."""
        for number, (group, (conditions, reach, keys)) in enumerate(LOOPS.items()):
            for key in keys:
                if key not in self.methods or (self.size.quickly and key not in OURS and number >= QUICK_LOOPS):
                    continue
                for i, start in enumerate(cases(self._loops_of(key), 2, reach)):
                    yield self._loop("loops", group, i, start, conditions), self.methods[key]

    def _loops_of(self, key: str) -> int:
        """How many closed loops a method runs at each condition: the first so many of the same cases."""
        if key == DEFAULT:
            return self.size.loops
        return max(self.size.loops // 2, 1) if key in OURS else min(self.size.peer_loops, self.size.loops)

    def _loop(self, part: Part, group: str, i: int, start: Any, conditions: Conditions) -> SemCase:
        return SemCase(
            name=f"{part} {i + 1}, {group}", group=group, seed=start.seed, part=part, start=start,
            conditions=conditions, iterations=self.size.iterations,
        )  # fmt: skip

    def _far(self) -> Iterator[Unit]:
        """Figure 2: from 30 µm, +6, -6 at 200 and 50 ns of dwell."""
        for dwell in DWELLS_NS:
            for method in self._figures():
                for i, start in enumerate(cases(self.size.repeats, 2, WIDE, at=(30.0, 6.0, -6.0))):
                    conditions = Conditions(84.0 * dwell / 200)
                    yield self._loop("far", f"from 30 µm, +6, -6 a.u. at {dwell} ns", i, start, conditions), method

    def _figures(self) -> Iterator[SemMethod]:
        """Yield the methods that take part in the paper's figures."""
        for key, method in self.methods.items():
            if key in OURS or (key not in ("mapfost_off", *VARIANTS) and not self.size.quickly):
                yield method

    def _vessel(self) -> Iterator[Unit]:
        """Figure 3: an image of which a good part is the empty resin of a blood vessel."""
        variants = [] if self.size.quickly else [m for key, m in self.methods.items() if key in VARIANTS]
        for method in (*self._figures(), *variants):
            for i, start in enumerate(self.vessel_starts()):
                yield self._loop("vessel", "blood vessel", i, start, Conditions(84.0)), method

    def vessel_starts(self) -> list[Any]:
        """Return where the loops over a blood vessel begin."""
        return cases(self.size.repeats, VESSEL_SERIES, WIDE, at=(30.0, 6.0, -6.0), tissue=True)

    def _locations(self) -> Iterator[Unit]:
        """Figure 5: locations on a grid, from 8-12 µm, -4 to -2 and 2 to 4 a.u.; MAPFoSt at four times the dwell."""
        for method in self._figures():
            dwell = location_dwell_ns(method.strategy)
            conditions = Conditions(84.0 * dwell / 200)
            for i, start in enumerate(location_cases(self.size.locations)):
                yield self._loop("locations", f"locations, {dwell} ns", i, start, conditions), method

    def _score(self) -> Iterator[Unit]:
        """DeepScore with Nelder and Mead: residuals and frames; the threshold is that of a frame in focus there."""
        if self.size.score_loops == 0:
            return
        try:
            from mm_autofocus.strategies.deepscore import DeepScore

            _ = DeepScore().scorer
        except (FocusError, ImportError) as error:
            self.missing[SCORE_NAME] = str(error)
            return
        method = sem_method(SCORE, SCORE_NAME, quick=self.size.quickly)
        for i, start in enumerate(cases(self.size.score_loops, 2, WIDE)):
            yield self._loop("score", "20 e-/px", i, start, Conditions(20.0)), method

    def _recalibration(self) -> Iterator[Unit]:
        """Figure 4: setup B before and after recalibration."""
        for key in RECALIBRATED:
            if key in self.methods:
                counts = {"starts": self.size.repeats}
                counts["labelled_pairs"] = self.size.labelled_pairs if key == "deepfocus" else 0
                method = self.methods[key]
                if counts["labelled_pairs"]:  # half of it depends on who labels, too
                    method = method.model_copy(update={"weights": weights_of("sem_deepfocus", "sem_deepscore")})
                yield SemCase(
                    name="setup B", group="recalibration", part="recalibration", iterations=self.size.iterations,
                    counts=counts,
                ), method  # fmt: skip

    # ------------------------------------------------------------------ measuring
    def measure(self, progress: Progress | None = None) -> tuple[dict[str, Any], list[Record]]:
        """Measure what the journal does not hold; return the tables and the records of all closed loops."""
        began = time.perf_counter()
        units = self.units()
        run = run_units(
            units, self.measured, self.journal, workers=self.workers, scheduler=self.scheduler, progress=progress
        )
        timed = run_units([self.speed()], self.measured, self.journal)
        both = BenchRun(
            records=run.records + timed.records, failures=run.failures + timed.failures,
            resumed=run.resumed + timed.resumed,
        )  # fmt: skip
        outcome = tabulate([*units, self.speed()], both, self.size)
        outcome |= {
            "names": {key: method.name for key, method in self.methods.items()}, "missing": self.missing,
            "failures": [failure.model_dump() for failure in both.failures],
            "units": len(units) + 1, "resumed": both.resumed,
            "total_seconds": round(time.perf_counter() - began, 1),
            "tested_on": "wing, fabric, fibres, powder and tissue of unseen seeds; probe of WAVE and POLYGON family, "
            "which only what was recalibrated on setup B has seen",
        }  # fmt: skip
        return outcome, [record for record in both.records if record.judged]


def location_dwell_ns(key: str) -> int:
    """Return with how much dwell a method focuses at the locations of figure 5, as in the paper."""
    return 200 if key == "mapfost" else 50


# ---------------------------------------------------------------------- tables
def tabulate(units: Sequence[Unit], run: BenchRun, size: Size) -> dict[str, Any]:
    """Return every table as numbers, of the units that have been measured."""
    by_key = {record.key: record for record in run.records}
    measured: dict[Part, dict[str, dict[str, list[Record]]]] = {}
    for case, method in units:
        record = by_key.get(key_of(case, method))
        if record is not None:
            group = measured.setdefault(case.part, {}).setdefault(case.group, {})
            group.setdefault(method.strategy, []).append(record)

    def loops(part: Part) -> dict[str, dict[str, Any]]:
        return {
            group: {key: _loop_row(records, size.iterations) for key, records in methods.items()}
            for group, methods in measured.get(part, {}).items()
        }

    vessel = loops("vessel").get("blood vessel", {})
    for key, records in measured.get("vessel", {}).get("blood vessel", {}).items():
        vessel[key]["patches"] = records[0].details["patches"]
    locations = {
        key: row | {"dwell_ns": location_dwell_ns(key)}
        for methods in loops("locations").values() for key, row in methods.items()
    }  # fmt: skip
    scored = [record for methods in measured.get("score", {}).values() for record in methods.get(SCORE, [])]
    again = [r for methods in measured.get("recalibration", {}).values() for rs in methods.values() for r in rs]
    timed = measured.get("speed", {}).get("speed", {}).get(ALL, [])
    return {
        "pairs": {
            group: {key: _pair_row(records) for key, records in methods.items()}
            for group, methods in measured.get("pairs", {}).items()
        },
        "loops": loops("loops"), "far": loops("far"), "vessel": vessel, "locations": locations,
        "score": _score_row(scored) if scored else {},
        "recalibration": {name: row for record in again for name, row in record.details["rows"].items()},
        "speed": timed[0].details["rows"] if timed else [], "against": _against(measured.get("loops", {})),
    }  # fmt: skip


def _pair_row(records: Sequence[Record]) -> dict[str, Any]:
    errors = np.array([record.details["error"] for record in records])
    off = np.abs(errors)
    return {
        "wd": interval(off[:, 0]), "stig": interval(off[:, 1:].mean(1)), "median_wd": rounded(np.median(off[:, 0])),
        "worst_wd": rounded(off[:, 0].max()), "within": share(within(errors)),
        "seconds": rounded(np.median([record.compute_seconds for record in records])), "errors": table_of(errors),
    }  # fmt: skip


def _loop_row(records: Sequence[Record], iterations: int) -> dict[str, Any]:
    return loop_row([trajectory_of(record) for record in records], iterations)


def _score_row(records: Sequence[Record]) -> dict[str, Any]:
    runs = [trajectory_of(record) for record in records]
    ends = np.array([run.residuals[-1] for run in runs])
    return {
        "wd": interval(np.abs(ends[:, 0])), "stig": interval(np.abs(ends[:, 1:]).mean(1)),
        "within": share(within(ends)), "frames": rounded(np.median([run.frames[-1] for run in runs])),
        "seconds": rounded(np.median([run.seconds for run in runs])), "runs": [table_of(r.residuals) for r in runs],
    }  # fmt: skip


def _against(loops: dict[str, dict[str, list[Record]]]) -> list[dict[str, Any]]:
    """Compare the default with MAPFoSt, case by case, on those that both have."""
    rows = []
    for group, methods in loops.items():
        for key in ("mapfost", "mapfost_off"):
            if DEFAULT in methods and key in methods:
                theirs = {record.case: trajectory_of(record) for record in methods[key]}
                ours = {record.case: trajectory_of(record) for record in methods[DEFAULT]}
                pairs = [(ours[case], theirs[case]) for case in theirs if case in ours]
                rows.append({"condition": group, "peer": key, **duel(pairs)})
    return rows
