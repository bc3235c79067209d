"""`bench sem` with methods that know the truth, on small frames: what its tests run, here and in other processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mm_autofocus.benchmark import sem_cases, sem_methods, sem_units
from mm_autofocus.benchmark.runner import MEASURED, Outcome
from mm_autofocus.benchmark.sem_cases import FIRST_SEED, Case, Conditions
from mm_autofocus.benchmark.sem_methods import Method
from mm_autofocus.benchmark.sem_table import Bench, Size
from mm_autofocus.benchmark.sem_units import SemCase, SemMethod
from mm_autofocus.estimators import Aberration, PairEstimate
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.simulation.sem_specimen import SpecimenKind

SIZE = Size(
    pairs=3, peer_pairs=3, loops=2, peer_loops=2, iterations=3, repeats=1, locations=1, score_loops=0, labelled_pairs=0,
    timings=1,
)  # fmt: skip
TRACE = "SEM_BENCH_TRACE"
"""Environment variable with the file in which every measurement leaves a line, and after which it waits a little."""
SPEED = {"name": "ours", "seconds_512": 0.01, "seconds_frame": None, "mpx_per_s": 52.4, "ratio": None}
_OPENED: list[Column] = []
_open_column = sem_cases.open_column


@dataclass
class Cheat:
    """Answers the truth of the column that was opened last, times a factor."""

    factor: float

    def estimate(self, *args: object) -> PairEstimate:
        truth = _OPENED[-1].truth().vector()
        return PairEstimate(Aberration(*(float(v) * self.factor for v in truth)), Aberration(0.1, 0.1, 0.1))


def _opened(case: Case, conditions: Conditions, **options: float) -> Column:
    same = replace(case, kind=SpecimenKind.TIN, seed=FIRST_SEED, place_um=(0.0, 0.0))
    made = _open_column(same, conditions, **options)
    made.frame = (320, 240)
    _OPENED.append(made)
    return made


def install(patch: pytest.MonkeyPatch) -> None:
    """Put two methods in place of all, the truth and half of it, without training and timing."""

    def make(factor: float) -> Callable[[str, str, bool], Method]:
        return lambda key, name, quick: Method(key, name, Cheat(factor))

    makers = {"spectral": ("ours, spectral", make(1.0)), "mapfost": ("MAPFoSt", make(0.5))}
    patch.setattr(sem_methods, "_MAKERS", makers)
    for name in ("open_column", "vessel_column"):
        patch.setattr(sem_cases, name, _opened)
    for part, rows in (("recalibration", {}), ("speed", [SPEED])):
        done = Outcome(status=MEASURED, success=True, details={"rows": rows})
        patch.setitem(sem_units._PARTS, part, lambda case, method, done=done: done)
    _forget()


def _forget() -> None:
    sem_units.loaded.cache_clear()
    sem_units._pair.cache_clear()


@contextmanager
def installed() -> Iterator[None]:
    """Have the stand-ins in place for a while."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        yield
    _forget()


def measure(case: SemCase, method: SemMethod) -> Outcome:
    """Measure with the stand-ins, whatever the process, and leave a trace."""
    if sem_cases.open_column is not _opened:
        install(pytest.MonkeyPatch())
    made = sem_units.measure_sem(case, method)
    if trace := os.environ.get(TRACE):
        with Path(trace).open("a", encoding="utf-8") as file:
            file.write(f"{case.name}|{method.name}|{os.getpid()}\n")
        time.sleep(0.02)
    return made


def bench(journal: Path, **options: int) -> Bench:
    """Return the small bench."""
    return Bench(journal, SIZE, say=lambda text: None, measured=measure, **options)


if __name__ == "__main__":
    install(pytest.MonkeyPatch())
    bench(Path(sys.argv[1])).measure()
