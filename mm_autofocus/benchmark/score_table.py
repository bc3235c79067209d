"""Measures focus scores of single images, and controllers that focus by them, on specimens of no training set."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.score_cases import FocusOutcome, cases, run
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.focus_score import FocusScorer, load_scorer
from mm_autofocus.networks.acnet import image_entropy, image_variance
from mm_autofocus.strategies.dual_network import DualNetwork, DualNetworkSettings
from mm_autofocus.training.score_data import (
    SEEN,
    TEST_SEED,
    TRAINING_SEED,
    UNSEEN,
    Conditions,
    ScoredImage,
    ScoreSampler,
    ScoreView,
    focus_series,
    render_views,
)
from mm_autofocus.training.score_training import TEST_MAGNIFICATIONS, compare, held_out_images

Say = Callable[[str], None]

NETWORKS = {"ours": "blur features, ours", "aenet": "AENet, narrow", "resnet18": "ResNet-18 + magnification"}
CONTROLLERS = {"ours": "known shape, ours", "acnet": "ACNet"}
METRICS: dict[str, Callable[[NDArray[Any]], float]] = {"variance": image_variance, "entropy": image_entropy}

_CHANGES = 9
_KEPT_SAMPLES = 300
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
        Focus runs on each kind with the paper's controller.
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
    paper_runs: int = 10
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
    size
        How much.
    seed
        Of test frames and starts.
    say
        Told about progress.

    Raises
    ------
    SettingsError
        When not even our own network can be used.
    """

    def __init__(self, size: Size | None = None, *, seed: int = 9, say: Say = lambda _: None) -> None:
        self.size, self.seed, self.say = size or Size(), seed, say
        self.scorers: dict[str, FocusScorer] = {"ours": load_scorer("ours")}
        self.missing: dict[str, str] = {}
        for name in ("aenet", "resnet18"):
            try:
                self.scorers[name] = load_scorer(name)
            except SettingsError:
                self.missing[name] = f"no weights; train them: mm-autofocus train sem-score --network {name}"
            except ImportError:
                self.missing[name] = "torch is not installed"

    def measure(self) -> dict[str, Any]:
        """Return everything, JSON-serialisable."""
        parts = held_out_images(views=self.size.views, images=self.size.images, seed=self.seed, say=self.say)
        return {
            "names": {name: NETWORKS[name] for name in self.scorers},
            "missing": self.missing,
            "scores": self.scores(parts),
            "loops": self.loops(),
            "stay": self.stay_put(),
            "series": self.series(),
            "speed": self.speed(),
            "training": self.training(),
            "examples": self.examples(),
            "seed": self.seed,
        }

    # ------------------------------------------------------------------ scores of single images
    def scores(self, parts: dict[str, list[ScoredImage]]) -> dict[str, Any]:
        """Return errors by method and by what is tested, and by magnification over tin and grid."""
        found: dict[str, Any] = {}
        for name, scorer in self.scorers.items():
            self.say(f"scores by {NETWORKS[name]}")
            read = {
                part: np.array([scorer.read(i.image, i.pixel_um).score for i in images])
                for part, images in parts.items()
            }
            found[name] = _summary(read, parts)
        calibration = self._calibration_images()
        for name, metric in METRICS.items():
            given = np.array([metric(i.image) for i in calibration])
            line = np.polyfit(given, [i.score for i in calibration], 1)
            read = {
                part: np.clip(np.polyval(line, [metric(i.image) for i in images]), 0.0, 10.0)
                for part, images in parts.items()
            }
            found[name] = _summary(read, parts)
        return found

    def _calibration_images(self) -> list[ScoredImage]:
        """Return training frames, to which a metric's values are turned into scores by a straight line."""
        views = render_views(SEEN, 3, TRAINING_SEED)
        return list(ScoreSampler(views, self.seed + 1, empty=0.0).samples(90))

    # ------------------------------------------------------------------ focusing
    def loops(self) -> dict[str, Any]:
        """Return focus runs by controller: seen and unseen samples, and physics that was not trained on."""
        size = self.size
        found: dict[str, Any] = {}
        ours = DualNetwork(DualNetworkSettings(), scorer=self.scorers["ours"])
        found["ours"] = self._runs("ours", ours, size.runs)
        found["ours, untrained probes, angle off by 20 %"] = self._runs(
            "ours", ours, size.untrained_runs, untrained=True
        )
        try:
            paper = DualNetwork(DualNetworkSettings(controller="acnet"), scorer=self.scorers["ours"])
        except SettingsError:
            self.missing["acnet"] = "no weights; train them: mm-autofocus train sem-control"
        else:
            found["acnet"] = self._runs("acnet", paper, size.paper_runs)
        return found

    def _runs(self, name: str, strategy: DualNetwork, count: int, *, untrained: bool = False) -> dict[str, Any]:
        outcomes: dict[str, list[FocusOutcome]] = {}
        for kind in (*SEEN, *UNSEEN):
            outcomes[kind] = [run(case, strategy) for case in cases((kind,), count, untrained=untrained)]
            self.say(f"focusing by {CONTROLLERS[name]} on {kind}: {count} runs")
        groups = {
            **outcomes,
            "seen": [o for kind in SEEN for o in outcomes[kind]],
            "unseen": [o for kind in UNSEEN for o in outcomes[kind]],
        }
        return {name: _loop_summary(group) for name, group in groups.items()}

    # ------------------------------------------------------------------ what must leave a score alone
    def stay_put(self) -> dict[str, Any]:
        """Return scores, variances and entropies of one place in focus while detector and magnification change."""
        changes: dict[str, tuple[str, list[float]]] = {
            "brightness": ("offset, grey values", list(np.linspace(-45, 45, _CHANGES))),
            "contrast": ("gain", list(np.linspace(0.4, 1.25, _CHANGES))),
            "gamma": ("gamma", list(np.linspace(0.6, 1.6, _CHANGES))),
            "magnification": ("magnification", list(np.geomspace(600.0, 10_000.0, _CHANGES))),
        }
        found: dict[str, Any] = {}
        for name, (unit, values) in changes.items():
            rows: dict[str, list[list[float]]] = {key: [] for key in ("score", *METRICS)}
            for i in range(3):
                for key, row in self._changed(name, values, i).items():
                    rows[key].append(row)
            relative = {
                key: round(float(np.mean([float(np.std(row)) / max(float(np.mean(row)), 1e-9) for row in table])), 4)
                for key, table in rows.items()
            }
            found[name] = {
                "unit": unit, "values": [round(v, 3) for v in values], "rows": rows, "relative_sd": relative,
                "score_sd": round(float(np.mean([np.std(row) for row in rows["score"]])), 3),
            }  # fmt: skip
        self.say("scores under brightness, contrast, gamma and magnification")
        return found

    def _changed(self, name: str, values: Sequence[float], i: int) -> dict[str, list[float]]:
        still = Conditions(
            electrons=(60.0, 60.0), softness=(0.2, 0.2), core_nm=(6.0, 6.0), gamma=(1.0, 1.0), contrast=(0.8, 0.8),
            brightness=(0.0, 0.0), row_noise=(1.0, 1.0), astigmatic=0.0,
        )  # fmt: skip
        kind = ("tin", "grid", "tin")[i]
        magnifications = values if name == "magnification" else (2000.0,)
        views = [render_views((kind,), 1, TEST_SEED + i, magnifications=(m,), fine=0.0)[0] for m in magnifications]
        rows: dict[str, list[float]] = {key: [] for key in ("score", *METRICS)}
        for k, value in enumerate(values):
            changed: dict[str, Any] = {} if name == "magnification" else {name: (value, value)}
            conditions = replace(still, **changed)
            view = views[k % len(views)]
            image = next(iter(ScoreSampler((view,), 77 + i, conditions).of(view, score=9.5)))
            rows["score"].append(round(self.scorers["ours"].read(image.image, image.pixel_um).score, 3))
            for key, metric in METRICS.items():
                rows[key].append(round(metric(image.image), 4))
        return rows

    # ------------------------------------------------------------------ score against working distance
    def series(self) -> list[dict[str, Any]]:
        """Return focus series of places of every sample: score, variance and entropy against defocus (Fig. 4b-d)."""
        found = []
        for kind in (*SEEN, *UNSEEN):
            magnifications = (15_000.0,) if kind == "particles" else (1000.0, 5000.0)
            views = render_views((kind,), len(magnifications), TEST_SEED + 50, magnifications=magnifications, fine=0.0)
            for view in views:
                made = focus_series(view, self.seed, frames=self.size.series_frames)
                read = [self.scorers["ours"].read(image, made.pixel_um).score for image in made.images]
                found.append({
                    "kind": kind, "magnification": round(view.magnification),
                    "defocus_um": [round(float(v), 2) for v in made.defocus_um],
                    "score": [round(v, 3) for v in read], "label": [round(float(v), 3) for v in made.score],
                    **{key: [round(metric(i), 4) for i in made.images] for key, metric in METRICS.items()},
                })  # fmt: skip
        self.say("score against working distance")
        return found

    # ------------------------------------------------------------------ the rest
    def speed(self) -> dict[str, Any]:
        """Return the median time of one score of 320 x 240 pixels on one thread, ms, and ratios to ours."""
        import cv2

        view = render_views(("tin",), 1, TEST_SEED, magnifications=(2000.0,), fine=0.0)[0]
        image = next(iter(ScoreSampler((view,), self.seed).of(view)))
        cv2.setNumThreads(1)
        found: dict[str, Any] = {}
        for name, scorer in self.scorers.items():
            found[name] = _milliseconds(partial(scorer.read, image.image, image.pixel_um), self.size.timings)
        if self.size.full_aenet and "torch" in _importable():
            found["aenet, full width"] = _milliseconds(_full_aenet(image.image, image.magnification), 2)
        for cell in found.values():
            cell["ratio"] = round(cell["cpu_ms"] / found["ours"]["cpu_ms"], 1)
        return found

    def training(self) -> dict[str, Any]:
        """Return what the cards say of the training: losses, accuracy, seconds, parameters."""
        import json

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
                found.append({
                    "kind": kind, "magnification": round(view.magnification), "label": round(image.score, 2),
                    "scores": {n: round(s.read(image.image, image.pixel_um).score, 2) for n, s in self.scorers.items()},
                    "picture": data_uri(image.image, 240),
                })  # fmt: skip
        return found


def _summary(read: dict[str, NDArray[np.float64]], parts: dict[str, list[ScoredImage]]) -> dict[str, Any]:
    found: dict[str, Any] = {"parts": {}}
    for name, images in parts.items():
        cell = compare(read[name], images)
        found["parts"][name] = {k: v for k, v in cell.items() if k not in ("labels", "scores", "magnifications")}
        found["parts"][name]["pairs"] = list(zip(cell["labels"], cell["scores"], strict=True))[:_KEPT_SAMPLES]
    both = [(s, i) for kind in ("tin", "grid") for s, i in zip(read[kind], parts[kind], strict=True)]
    by_magnification = {}
    for magnification in TEST_MAGNIFICATIONS:
        errors = [s - i.score for s, i in both if abs(i.magnification - magnification) < 1.0]
        if errors:
            by_magnification[f"{magnification:g}"] = round(float(np.sqrt(np.mean(np.square(errors)))), 4)
    found["by_magnification"] = by_magnification
    found["mean_rmse"] = round(float(np.mean(list(by_magnification.values()))), 4)
    return found


def _loop_summary(outcomes: Sequence[FocusOutcome]) -> dict[str, Any]:
    gone = np.array([o.best - o.final for o in outcomes])
    read = np.array([o.read_best - o.read_final for o in outcomes])
    frames = np.array([o.frames for o in outcomes])
    inside = np.array([abs(o.final_um) <= o.depth_um / 2.0 for o in outcomes])
    sure = np.array([o.confidence >= 0.9 and o.status == "converged" for o in outcomes])
    return {
        "runs": len(outcomes),
        "score_loss": round(float(gone.mean()), 4),
        "score_loss_worst": round(float(gone.max()), 3),
        "score_loss_read": round(float(read.mean()), 4),
        "frames": round(float(frames.mean()), 2),
        "frames_sd": round(float(frames.std()), 2),
        "within_depth": round(float(inside.mean()), 4),
        "converged": round(float(np.mean([o.status == "converged" for o in outcomes])), 4),
        "false_confidence": round(float(np.mean(~inside[sure])), 4) if sure.any() else 0.0,
        "ms_per_frame": round(float(np.mean([1e3 * o.seconds / o.frames for o in outcomes])), 2),
        "each": [
            {k: v for k, v in asdict(o).items() if k not in ("trajectory", "scores")}
            | {"trajectory": [round(v, 2) for v in o.trajectory], "scores": [round(v, 2) for v in o.scores]}
            for o in outcomes
        ],
    }


def _milliseconds(task: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return median wall and least CPU time of a task, ms; the second is right on a machine that others use too."""
    task()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"ms": round(1e3 * float(np.median(walls)), 2), "cpu_ms": round(1e3 * float(np.median(cpus)), 2)}


def _full_aenet(image: NDArray[np.uint8], magnification: float) -> Callable[[], object]:
    import torch

    from mm_autofocus.estimators.focus_score import normalised
    from mm_autofocus.networks.aenet import AENet

    torch.set_num_threads(1)
    net = AENet().eval()
    planes, told = torch.from_numpy(normalised(image))[None, None], torch.tensor([magnification])

    def task() -> object:
        with torch.inference_mode():
            return net(planes, told)

    return task


def _importable() -> tuple[str, ...]:
    from importlib.util import find_spec

    return ("torch",) if find_spec("torch") else ()


def machine() -> str:
    """Return the machine in words."""
    import platform

    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
