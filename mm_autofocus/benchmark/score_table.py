"""Measures focus scores of single images, and controllers that focus by them, on specimens of no training set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm_autofocus.benchmark.runner import BenchRun, Measure, Progress, Record, key_of, run_units
from mm_autofocus.benchmark.score_cases import cases
from mm_autofocus.benchmark.score_units import (
    CHANGES,
    METRICS,
    Part,
    ScoreCase,
    ScoreMethod,
    measure_score,
    scorer_of,
    strategy_of,
    weights_of,
)
from mm_autofocus.errors import SettingsError
from mm_autofocus.training.score_data import SEEN, TEST_SEED, UNSEEN, Conditions, ScoreSampler, ScoreView, render_views
from mm_autofocus.training.score_training import TEST_MAGNIFICATIONS

Say = Callable[[str], None]
Unit = tuple[ScoreCase, ScoreMethod]

NETWORKS = {"ours": "blur features, ours", "aenet": "AENet, narrow", "resnet18": "ResNet-18 + magnification"}
CONTROLLERS = {"ours": "known shape, ours", "acnet": "ACNet"}
UNTRAINED = "ours, untrained probes, angle off by 20 %"
KNOWN, OTHERS, PROBES = "samples it knows", "samples it does not know", "untrained probes, angle off by 20 %"
"""Rows over several samples."""

_EXAMPLE_SCORES = (1.0, 4.0, 7.0, 9.5)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    views, images
        Test specimens of each kind, and frames of each.
    runs, untrained_runs
        Focus runs on each kind of specimen, and with probes that were not trained on.
    paper_runs
        Focus runs on each kind with the paper's controller: as many as with ours, for the starts to be the same.
    series_frames
        Frames of each drawn focus series.
    timings
        Repeats of each timing.
    full_aenet
        Time an AENet of full width too (about 2 s each).
    """

    views: int = 10
    images: int = 30
    runs: int = 20
    untrained_runs: int = 8
    paper_runs: int = 20
    series_frames: int = 60
    timings: int = 30
    full_aenet: bool = True

    @classmethod
    def quick(cls) -> Size:
        """Return a few per cent of it."""
        return cls(5, 4, 2, 1, 1, 16, 5, full_aenet=False)


class ScoreBench:
    """Measures every network and controller whose weights are there.

    Parameters
    ----------
    journal
        Where each unit is kept; a run that was killed goes on there.
    size
        How much.
    seed
        Of test frames and starts.
    say
        Told what is left out.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`. Speed is measured in this process in any case.
    measured
        What measures a unit.

    Raises
    ------
    SettingsError
        When not even our own network can be used.
    """

    def __init__(
        self, journal: Path, size: Size | None = None, *, seed: int = 9, say: Say = lambda _: None, workers: int = 0,
        scheduler: str = "", measured: Measure[ScoreCase, ScoreMethod] = measure_score,
    ) -> None:  # fmt: skip
        self.journal, self.size, self.seed = journal, size or Size(), seed
        self.workers, self.scheduler, self.measured = workers, scheduler, measured
        self.missing: dict[str, str] = {}
        scorer_of("ours")
        self.networks = ["ours"]
        for name in ("aenet", "resnet18"):
            try:
                scorer_of(name)
            except SettingsError:
                self.missing[name] = f"no weights; train them: mm-autofocus train sem-score --network {name}"
            except ImportError:
                self.missing[name] = "torch is not installed"
            else:
                self.networks.append(name)
        self.controllers = ["ours"]
        try:
            strategy_of("acnet")
        except SettingsError:
            self.missing["acnet"] = "no weights; train them: mm-autofocus train sem-control"
        else:
            self.controllers.append("acnet")
        for name, reason in self.missing.items():
            say(f"left out: {name}: {reason}")

    # ------------------------------------------------------------------ what there is to do
    def units(self) -> list[Unit]:
        """Return everything but the speed, in the order in which it is begun."""
        return [*self._scores(), *self._focus(), *self._stay(), *self._series()]

    def speed(self) -> Unit:
        """Return the unit of the speed: one process and one run, so that the ratios mean something."""
        settings = {"networks": self.networks, "full_aenet": self.size.full_aenet}
        method = ScoreMethod(name="all", strategy="all", settings=settings)
        case = ScoreCase(name="speed", group="speed", part="speed", seed=self.seed, images=self.size.timings)
        return case, method

    def _network(self, name: str) -> ScoreMethod:
        title = NETWORKS.get(name, name)
        return ScoreMethod(name=title, strategy=name, peer=name != "ours", weights=weights_of(f"score_{name}"))

    def _scores(self) -> Iterator[Unit]:
        """Errors of scores, by sample: networks, and metrics turned into scores."""
        for kind in (*SEEN, *UNSEEN):
            case = ScoreCase(
                name=f"scores, {kind}", group="scores", seed=self.seed, part="scores", kind=kind,
                views=self.size.views, images=self.size.images,
            )  # fmt: skip
            for name in (*self.networks, *METRICS):
                yield case, self._network(name)

    def _focus(self) -> Iterator[Unit]:
        """Focus runs by controller: seen and unseen samples, and physics that was not trained on."""
        counts = {"ours": self.size.runs, "acnet": self.size.paper_runs}
        for controller in self.controllers:
            weights = weights_of("score_ours", *(["control_acnet"] if controller == "acnet" else []))
            method = ScoreMethod(
                name=CONTROLLERS[controller], strategy=controller, peer=controller != "ours", weights=weights
            )
            for untrained in (False, True) if controller == "ours" else (False,):
                count = self.size.untrained_runs if untrained else counts[controller]
                for kind in (*SEEN, *UNSEEN):
                    group = f"{kind}, untrained probes" if untrained else kind
                    for i, start in enumerate(cases((kind,), count, untrained=untrained)):
                        case = ScoreCase(
                            name=f"{group}, {i + 1}", group=group, seed=start.seed, part="focus", kind=kind, focus=start
                        )
                        yield case, method

    def _stay(self) -> Iterator[Unit]:
        """Scores, variances and entropies of one place in focus while detector and magnification change."""
        for name in CHANGES:
            yield ScoreCase(name=f"changing {name}", group="stay", part="stay", kind=name), self._network("ours")

    def _series(self) -> Iterator[Unit]:
        """Score against working distance."""
        for kind in (*SEEN, *UNSEEN):
            case = ScoreCase(
                name=f"series, {kind}", group="series", seed=self.seed, part="series", kind=kind,
                images=self.size.series_frames,
            )  # fmt: skip
            yield case, self._network("ours")

    # ------------------------------------------------------------------ measuring
    def measure(self, progress: Progress | None = None) -> tuple[dict[str, Any], list[Record]]:
        """Measure what the journal does not hold; return the tables, JSON-serialisable, and all focus runs."""
        units = self.units()
        done = run_units(
            units, self.measured, self.journal, workers=self.workers, scheduler=self.scheduler, progress=progress
        )
        timed = run_units([self.speed()], self.measured, self.journal)
        failures = [failure.model_dump() for failure in done.failures + timed.failures]
        outcome = {
            "names": {name: NETWORKS[name] for name in self.networks}, "missing": self.missing,
            **tabulate(units, done), "speed": timed.records[0].details if timed.records else {},
            "training": self.training(), "examples": self.examples(), "seed": self.seed, "failures": failures,
            "units": len(units) + 1, "resumed": done.resumed + timed.resumed,
        }  # fmt: skip
        return outcome, [record for record in done.records if record.judged]

    def training(self) -> dict[str, Any]:
        """Return what the cards say of the training: losses, accuracy, seconds, parameters."""
        from mm_autofocus.estimators.cards import WEIGHTS

        found = {}
        for name in ("score_ours", "score_aenet", "score_resnet18", "control_acnet"):
            path = WEIGHTS / f"{name}.json"
            if path.exists():
                measured = json.loads(path.read_text(encoding="utf-8"))["measured"]
                kept = ("loss", "accuracy", "training_seconds", "parameters")
                found[name] = {k: measured[k] for k in kept if k in measured}
        return found

    def examples(self) -> list[dict[str, Any]]:
        """Return images of every sample with label and scores, as picture data for a page."""
        from mm_autofocus.report.sem import data_uri

        found = []
        for kind in (*SEEN, *UNSEEN):
            view: ScoreView = render_views((kind,), 1, TEST_SEED + 3, fine=0.0)[0]
            sampler = ScoreSampler((view,), self.seed, Conditions(astigmatic=0.0))
            for wanted in _EXAMPLE_SCORES:
                image = next(iter(sampler.of(view, score=wanted)))
                scores = {n: round(scorer_of(n).read(image.image, image.pixel_um).score, 2) for n in self.networks}
                found.append({
                    "kind": kind, "magnification": round(view.magnification), "label": round(image.score, 2),
                    "scores": scores, "picture": data_uri(image.image, 240),
                })  # fmt: skip
        return found


# ---------------------------------------------------------------------- tables
def totals() -> dict[str, set[str]]:
    """Return the rows over several samples of the outcome tables, and their groups."""
    return {
        KNOWN: set(SEEN), OTHERS: set(UNSEEN), PROBES: {f"{kind}, untrained probes" for kind in (*SEEN, *UNSEEN)}
    }  # fmt: skip


def tabulate(units: Sequence[Unit], run: BenchRun) -> dict[str, Any]:
    """Return scores, focus runs, changes and series as numbers, of the units that have been measured."""
    by_key = {record.key: record for record in run.records}
    parts: dict[Part, list[tuple[ScoreCase, ScoreMethod, Record]]] = {}
    for case, method in units:
        if (record := by_key.get(key_of(case, method))) is not None:
            parts.setdefault(case.part, []).append((case, method, record))
    read: dict[str, list[Record]] = {}
    for _, method, record in parts.get("scores", []):
        read.setdefault(method.strategy, []).append(record)
    loops: dict[str, dict[str, list[Record]]] = {}
    for case, method, record in parts.get("focus", []):
        name = UNTRAINED if case.group != case.kind else method.strategy
        loops.setdefault(name, {}).setdefault(case.kind, []).append(record)
    return {
        "scores": {name: _summary(records) for name, records in read.items()},
        "loops": {name: _loops(by_kind) for name, by_kind in loops.items()},
        "stay": {case.kind: record.details for case, _, record in parts.get("stay", [])},
        "series": [each for *_, record in parts.get("series", []) for each in record.details["series"]],
    }


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    """Sum up a network's scores of all samples; magnifications over tin and grid."""
    found: dict[str, Any] = {"parts": {}}
    errors: dict[str, list[float]] = {}
    for record in records:
        for part, cell in record.details["parts"].items():
            correlation = cell["correlation"]
            found["parts"][part] = cell | {"correlation": math.nan if correlation is None else correlation}
        for part in {"tin", "grid"} & set(record.details["errors"]):
            for magnification, each in record.details["errors"][part].items():
                errors.setdefault(magnification, []).extend(each)
    by_magnification = {
        key: round(float(np.sqrt(np.mean(np.square(errors[key])))), 4)
        for key in (f"{m:g}" for m in TEST_MAGNIFICATIONS) if errors.get(key)
    }  # fmt: skip
    found["by_magnification"] = by_magnification
    found["mean_rmse"] = round(float(np.mean(list(by_magnification.values()))), 4) if by_magnification else math.nan
    return found


def _loops(by_kind: dict[str, list[Record]]) -> dict[str, Any]:
    groups = {
        **by_kind, "seen": [r for kind in SEEN for r in by_kind.get(kind, [])],
        "unseen": [r for kind in UNSEEN for r in by_kind.get(kind, [])],
    }  # fmt: skip
    return {name: _loop_summary([r.details for r in group]) for name, group in groups.items() if group}


def _loop_summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gone = np.array([r["best"] - r["final"] for r in runs])
    read = np.array([r["read_best"] - r["read_final"] for r in runs])
    frames = np.array([r["frames"] for r in runs])
    inside = np.array([abs(r["final_um"]) <= r["depth_um"] / 2.0 for r in runs])
    sure = np.array([r["confidence"] >= 0.9 and r["status"] == "converged" for r in runs])
    return {
        "runs": len(runs),
        "score_loss": round(float(gone.mean()), 4),
        "score_loss_worst": round(float(gone.max()), 3),
        "score_loss_read": round(float(read.mean()), 4),
        "frames": round(float(frames.mean()), 2),
        "frames_sd": round(float(frames.std()), 2),
        "within_depth": round(float(inside.mean()), 4),
        "converged": round(float(np.mean([r["status"] == "converged" for r in runs])), 4),
        "false_confidence": round(float(np.mean(~inside[sure])), 4) if sure.any() else 0.0,
        "ms_per_frame": round(float(np.mean([1e3 * r["seconds"] / r["frames"] for r in runs])), 2),
        "each": list(runs),
    }
