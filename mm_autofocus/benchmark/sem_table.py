"""Measures `bench sem`: single pairs, closed loops, the paper's figures, throughput and confidence, on the same cases.

Every method sees the same specimens, places, starts and first frames. None was trained on these specimens, seeds and
probe families; see `mm_autofocus.benchmark.sem_cases`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.sem_cases import (
    NARROW,
    WIDE,
    Conditions,
    cases,
    location_cases,
    open_column,
    take_pair,
    vessel_column,
)
from mm_autofocus.benchmark.sem_methods import OURS, Method, Trajectory, deepscore_loop, methods
from mm_autofocus.benchmark.sem_scoring import interval, loop_row, rounded, share, table_of, within
from mm_autofocus.errors import FocusError
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.strategy import Image

Array = NDArray[np.float64]
Say = Callable[[str], None]

DOSES = (84.0, 20.0, 5.0)
CONFIDENT = 0.95
DEFAULT = "spectral"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured; the defaults take about 20 minutes on one core that has nothing else to do.

    Attributes
    ----------
    pairs
        Single pairs, at each dose.
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
    loops: int = 24
    peer_loops: int = 6
    iterations: int = 5
    repeats: int = 3
    locations: int = 9
    score_loops: int = 3
    labelled_pairs: int = 30
    timings: int = 3
    quickly: bool = False

    @classmethod
    def quick(cls) -> Size:
        """A few per cent of it."""
        return cls(
            pairs=2, loops=2, peer_loops=1, iterations=3, repeats=1, locations=2, score_loops=0, labelled_pairs=0,
            timings=1, quickly=True,
        )  # fmt: skip


LOOPS: dict[str, tuple[Conditions, tuple[float, float], tuple[str, ...]]] = {
    "20 e-/px": (Conditions(20.0), WIDE, ("spectral", "convolutional", "deepfocus", "mapfost", "mapfost_off")),
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
}  # fmt: skip
"""Closed loops: conditions, range of the starts, and who takes part."""


@dataclass
class Bench:
    """One measurement of everything; `measure` returns it as a JSON-serialisable dictionary.

    Attributes
    ----------
    size
        How much.
    say
        Told what goes on.
    keys
        Which methods; None for all that are installed.
    """

    size: Size = field(default_factory=Size)
    say: Say = print
    keys: Sequence[str] | None = None
    vessel_frame: Image | None = field(default=None, init=False)
    """The frame with the blood vessel at the start of the first run."""
    _stated: list[tuple[str, float, bool]] = field(default_factory=list)
    """Method, confidence and whether it was within the depth, of every run of ours."""

    def __post_init__(self) -> None:
        found, self.missing = methods(self.keys, quick=self.size.quickly)
        self.methods: dict[str, Method] = {method.key: method for method in found}
        for name, reason in self.missing.items():
            self.say(f"left out: {name}: {reason}")

    def measure(self) -> dict[str, Any]:
        """Measure everything."""
        began = time.perf_counter()
        seconds = {}
        outcome: dict[str, Any] = {}
        parts: dict[str, Callable[[], Any]] = {
            "pairs": self.pairs, "loops": self.loops, "far": self.far, "vessel": self.vessel,
            "locations": self.locations, "score": self.score, "speed": self.speed, "recalibration": self.recalibration,
        }  # fmt: skip
        for name, part in parts.items():
            since = time.perf_counter()
            outcome[name] = part()
            seconds[name] = round(time.perf_counter() - since, 1)
            self.say(f"{name}: {seconds[name]:g} s")
        outcome["confidence"] = self.confidence()
        return outcome | {
            "names": {key: method.name for key, method in self.methods.items()},
            "missing": self.missing, "seconds": seconds, "total_seconds": round(time.perf_counter() - began, 1),
            "tested_on": "wing, fabric, fibres, powder and tissue of unseen seeds; probe of WAVE and POLYGON family",
        }  # fmt: skip

    # ------------------------------------------------------------------ single pairs
    def pairs(self) -> dict[str, dict[str, Any]]:
        """One pair, its error; the same frames for every method and the same aberrations at every dose."""
        made: dict[str, dict[str, Any]] = {}
        readers = [method for method in self.methods.values() if method.estimator is not None]
        for electrons in DOSES:
            chosen = [method for method in readers if method.belief == 1.0 or electrons == DOSES[1]]
            errors: dict[str, list[Array]] = {method.key: [] for method in chosen}
            spent: dict[str, list[float]] = {method.key: [] for method in chosen}
            for case in cases(self.size.pairs, 1, WIDE):
                column = open_column(case, Conditions(electrons))
                under, over, step_um = take_pair(column)
                truth, calibration = column.truth().vector(), Conditions(electrons).calibration()
                for method in chosen:
                    assert method.estimator is not None
                    began = time.process_time()
                    found = method.estimator.estimate(
                        under, over, step_um, column.pixel_nm * 1e-3, method.believed(calibration)
                    )
                    spent[method.key].append(time.process_time() - began)
                    errors[method.key].append(found.aberration.vector() - truth)
            made[f"{electrons:g} e-/px"] = {
                method.key: self._pair_row(np.array(errors[method.key]), spent[method.key]) for method in chosen
            }
        return made

    def _pair_row(self, errors: Array, spent: list[float]) -> dict[str, Any]:
        off = np.abs(errors)
        return {
            "wd": interval(off[:, 0]), "stig": interval(off[:, 1:].mean(1)),
            "median_wd": rounded(np.median(off[:, 0])), "worst_wd": rounded(off[:, 0].max()),
            "within": share(within(errors)), "seconds": rounded(np.median(spent)), "errors": table_of(errors),
        }  # fmt: skip

    # ------------------------------------------------------------------ closed loops
    def loops(self) -> dict[str, dict[str, Any]]:
        """Residuals after each iteration, and the share within the depth."""
        made: dict[str, dict[str, Any]] = {}
        for name, (conditions, reach, keys) in LOOPS.items():
            made[name] = {}
            for key in keys:
                if key not in self.methods or (key not in OURS and self.size.quickly and made.keys() - {name}):
                    continue
                count = self._loops_of(key)
                runs = [
                    self.loop(self.methods[key], open_column(case, conditions), conditions)
                    for case in cases(count, 2, reach)
                ]
                made[name][key] = loop_row(runs, self.size.iterations)
        return made

    def _loops_of(self, key: str) -> int:
        """How many closed loops a method runs at each condition: the first so many of the same cases."""
        if key == DEFAULT:
            return self.size.loops
        return max(self.size.loops // 2, 1) if key in OURS else min(self.size.peer_loops, self.size.loops)

    def loop(self, method: Method, column: Column, conditions: Conditions) -> Trajectory:
        """Run one closed loop from where the column stands."""
        run = method.loop(column, conditions.calibration(), self.size.iterations)
        if np.isfinite(run.confidence):
            self._stated.append((method.key, run.confidence, bool(within(run.residuals[-1:])[0])))
        return run

    # ------------------------------------------------------------------ the paper's figures
    def far(self) -> dict[str, dict[str, Any]]:
        """Figure 2: from 30 µm, +6, -6 at 200 and 50 ns of dwell."""
        made: dict[str, dict[str, Any]] = {}
        for dwell in (200, 50):
            conditions = Conditions(84.0 * dwell / 200)
            made[f"{dwell} ns"] = {}
            for key, method in self.methods.items():
                if not self._goes_far(key):
                    continue
                starts = cases(self.size.repeats, 2, WIDE, at=(30.0, 6.0, -6.0))
                runs = [self.loop(method, open_column(case, conditions), conditions) for case in starts]
                made[f"{dwell} ns"][key] = loop_row(runs, self.size.iterations)
        return made

    def _goes_far(self, key: str) -> bool:
        """Whether a method takes part in the paper's figures."""
        return key in OURS or (key != "mapfost_off" and not self.size.quickly)

    def vessel(self) -> dict[str, dict[str, Any]]:
        """Figure 3: an image of which a good part is the empty resin of a blood vessel."""
        made: dict[str, dict[str, Any]] = {}
        conditions = Conditions(84.0)
        for key, method in self.methods.items():
            if not self._goes_far(key):
                continue
            runs = []
            for case in cases(self.size.repeats, 4, WIDE, at=(30.0, 6.0, -6.0), tissue=True):
                column = vessel_column(case, conditions)
                if self.vessel_frame is None:
                    self.vessel_frame = vessel_column(case, conditions).scan()
                runs.append(self.loop(method, column, conditions))
            made[key] = loop_row(runs, self.size.iterations) | {"patches": runs[0].patches}
        return made

    def locations(self) -> dict[str, Any]:
        """Figure 5: locations on a grid, from 8-12 µm, -4 to -2 and 2 to 4 a.u.; MAPFoSt at four times the dwell."""
        made = {}
        for key, method in self.methods.items():
            if not self._goes_far(key):
                continue
            dwell = 200 if key == "mapfost" else 50
            conditions = Conditions(84.0 * dwell / 200)
            runs = [
                self.loop(method, open_column(case, conditions), conditions)
                for case in location_cases(self.size.locations)
            ]
            made[key] = loop_row(runs, self.size.iterations) | {"dwell_ns": dwell}
        return made

    def score(self) -> dict[str, Any]:
        """DeepScore with Nelder and Mead: residuals and frames; the threshold is that of a frame in focus there."""
        if self.size.score_loops == 0:
            return {}
        conditions = Conditions(20.0)
        try:
            runs = [
                deepscore_loop(open_column(case, conditions), conditions.calibration())
                for case in cases(self.size.score_loops, 2, WIDE)
            ]
        except (FocusError, ImportError) as error:
            self.missing["DeepScore + Nelder-Mead"] = str(error)
            return {}
        ends = np.array([run.residuals[-1] for run in runs])
        return {
            "wd": interval(np.abs(ends[:, 0])), "stig": interval(np.abs(ends[:, 1:]).mean(1)),
            "within": share(within(ends)), "frames": rounded(np.median([run.frames[-1] for run in runs])),
            "seconds": rounded(np.median([run.seconds for run in runs])), "runs": [table_of(r.residuals) for r in runs],
        }  # fmt: skip

    # ------------------------------------------------------------------ speed, recalibration and confidence
    def speed(self) -> list[dict[str, Any]]:
        """Seconds of a 512 x 512 pair and of a whole frame's pair, every model in turn in one run."""
        from mm_autofocus.benchmark.sem_speed import measure_speed

        return measure_speed(self.methods, self.size.timings, slow=not self.size.quickly)

    def recalibration(self) -> dict[str, Any]:
        """Figure 4: setup B before and after recalibration."""
        from mm_autofocus.benchmark.sem_recalibration import measure_recalibration

        return measure_recalibration(
            self.methods, starts=self.size.repeats, iterations=self.size.iterations,
            labelled_pairs=self.size.labelled_pairs, say=self.say,
        )  # fmt: skip

    def confidence(self) -> dict[str, Any]:
        """Of ours given with at least 0.95, the share within the depth."""
        made = {}
        for key in OURS:
            sure = [right for k, stated, right in self._stated if k == key and stated >= CONFIDENT]
            every = [1 for k, *_ in self._stated if k == key]
            if every:
                made[key] = {"runs": len(every), "sure": len(sure), "within": share(np.array(sure, dtype=bool))}
        return made
