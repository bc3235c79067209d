"""What one unit of `bench sem-scores` is, and how it is measured: scores of test frames, one focus run, or a series.

A unit knows everything that it depends on, so that any process can measure it, now or when a killed run goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.runner import MEASURED, Case, Method, Outcome
from mm_autofocus.benchmark.score_cases import FocusCase, run
from mm_autofocus.estimators.cards import WEIGHTS
from mm_autofocus.estimators.focus_score import FocusScorer, load_scorer
from mm_autofocus.networks.acnet import image_entropy, image_variance
from mm_autofocus.strategies.dual_network import DualNetwork, DualNetworkSettings
from mm_autofocus.training.score_data import (
    SEEN,
    TEST_SEED,
    TRAINING_SEED,
    Conditions,
    ScoredImage,
    ScoreSampler,
    focus_series,
    render_views,
)
from mm_autofocus.training.score_training import TEST_MAGNIFICATIONS, compare, held_out_images

Part = Literal["scores", "focus", "stay", "series", "speed"]

METRICS: dict[str, Callable[[NDArray[Any]], float]] = {"variance": image_variance, "entropy": image_entropy}
CHANGES: dict[str, tuple[str, NDArray[np.float64]]] = {
    "brightness": ("offset, grey values", np.linspace(-45, 45, 9)),
    "contrast": ("gain", np.linspace(0.4, 1.25, 9)),
    "gamma": ("gamma", np.linspace(0.6, 1.6, 9)),
    "magnification": ("magnification", np.geomspace(600.0, 10_000.0, 9)),
}
"""What must leave a score alone: unit and values of each change."""

_KEPT_SAMPLES = 300


class ScoreCase(Case):
    """One thing to measure.

    Attributes
    ----------
    part
        What of the bench it is.
    kind
        Sample, or what changes.
    focus
        Where a focus run begins; None for the others.
    views, images
        Test specimens of the sample, and frames of each, of a series, or repeats of a timing.
    """

    part: Part
    kind: str = ""
    focus: FocusCase | None = None
    views: int = 0
    images: int = 0


class ScoreMethod(Method):
    """One row; ``strategy`` is a network's or a metric's key, or a controller's.

    Attributes
    ----------
    weights
        Digest of the networks, so that another training is measured anew.
    """

    weights: str = ""


def weights_of(*stems: str) -> str:
    """Return a digest of the weights that come along under these names, with or without a network in them."""
    found = sorted(path for stem in stems for path in WEIGHTS.glob(f"{stem}.*"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:16]


@lru_cache(maxsize=4)
def scorer_of(network: str) -> FocusScorer:
    """Load a score network once for this process."""
    return load_scorer(network)


@lru_cache(maxsize=2)
def strategy_of(controller: str) -> DualNetwork:
    """Make the strategy with our network and a controller once for this process."""
    settings = DualNetworkSettings() if controller == "ours" else DualNetworkSettings(controller="acnet")
    return DualNetwork(settings, scorer=scorer_of("ours"))


def measure_score(case: ScoreCase, method: ScoreMethod) -> Outcome:
    """Measure one unit; the truth is used to put the column where it begins, and to score."""
    if case.part == "focus":
        return _focus(case, method)
    return Outcome(status=MEASURED, success=True, details=_PARTS[case.part](case, method))


# ---------------------------------------------------------------------- scores of single images
@lru_cache(maxsize=1)
def _test_images(kind: str, views: int, images: int, seed: int) -> dict[str, list[ScoredImage]]:
    """Return the test frames of a sample by what is tested: the same ones for every method."""
    return held_out_images(views=views, images=images, seed=seed, kinds=(kind,))


@lru_cache(maxsize=2)
def _metric_line(metric: str, seed: int) -> NDArray[np.float64]:
    """Return the straight line that turns a metric's values into scores, fitted to training frames."""
    images = list(ScoreSampler(render_views(SEEN, 3, TRAINING_SEED), seed + 1, empty=0.0).samples(90))
    return np.polyfit([METRICS[metric](i.image) for i in images], [i.score for i in images], 1)


def _scores(case: ScoreCase, method: ScoreMethod) -> dict[str, Any]:
    """Return what a network or a metric says of a sample's test frames, and how far that is from the labels."""
    found: dict[str, Any] = {"parts": {}, "errors": {}}
    for part, images in _test_images(case.kind, case.views, case.images, case.seed).items():
        if method.strategy in METRICS:
            metric = METRICS[method.strategy]
            line = _metric_line(method.strategy, case.seed)
            read = np.clip(np.polyval(line, [metric(i.image) for i in images]), 0.0, 10.0)
        else:
            scorer = scorer_of(method.strategy)
            read = np.array([scorer.read(i.image, i.pixel_um).score for i in images])
        cell = compare(read, images)
        found["parts"][part] = {k: v for k, v in cell.items() if k not in ("labels", "scores", "magnifications")}
        found["parts"][part]["pairs"] = list(zip(cell["labels"], cell["scores"], strict=True))[:_KEPT_SAMPLES]
        found["errors"][part] = {
            f"{m:g}": [
                round(float(s - i.score), 4)
                for s, i in zip(read, images, strict=True) if abs(i.magnification - m) < 1.0
            ]
            for m in TEST_MAGNIFICATIONS
        }  # fmt: skip
    return found


# ---------------------------------------------------------------------- focusing
def _focus(case: ScoreCase, method: ScoreMethod) -> Outcome:
    assert case.focus is not None
    made = run(case.focus, strategy_of(method.strategy))
    kept = {k: v for k, v in asdict(made).items() if k not in ("trajectory", "scores")}
    kept |= {"trajectory": [round(v, 2) for v in made.trajectory], "scores": [round(v, 2) for v in made.scores]}
    off = made.final_um / made.depth_um
    return Outcome(
        status=made.status, success=made.status == "converged" and abs(off) <= 0.5, error=off, depth=1.0,
        unit="depths of field", confidence=made.confidence, images=made.frames, dose=made.dose,
        compute_seconds=made.seconds, instrument_seconds=made.instrument_s, details=kept,
    )  # fmt: skip


# ---------------------------------------------------------------------- what must leave a score alone
def _stay(case: ScoreCase, method: ScoreMethod) -> dict[str, Any]:  # noqa: ARG001
    """Return scores, variances and entropies of three places in focus while one thing changes."""
    unit, values = CHANGES[case.kind]
    rows: dict[str, list[list[float]]] = {key: [] for key in ("score", *METRICS)}
    for i in range(3):
        for key, row in _changed(case.kind, values.tolist(), i).items():
            rows[key].append(row)
    relative = {
        key: round(float(np.mean([float(np.std(row)) / max(float(np.mean(row)), 1e-9) for row in table])), 4)
        for key, table in rows.items()
    }
    return {
        "unit": unit, "values": [round(float(v), 3) for v in values], "rows": rows, "relative_sd": relative,
        "score_sd": round(float(np.mean([np.std(row) for row in rows["score"]])), 3),
    }  # fmt: skip


def _changed(name: str, values: Sequence[float], i: int) -> dict[str, list[float]]:
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
        rows["score"].append(round(scorer_of("ours").read(image.image, image.pixel_um).score, 3))
        for key, metric in METRICS.items():
            rows[key].append(round(metric(image.image), 4))
    return rows


# ---------------------------------------------------------------------- score against working distance
def _series(case: ScoreCase, method: ScoreMethod) -> dict[str, Any]:  # noqa: ARG001
    """Return focus series of places of a sample: score, variance and entropy against defocus (Fig. 4b-d)."""
    magnifications = (15_000.0,) if case.kind == "particles" else (1000.0, 5000.0)
    views = render_views((case.kind,), len(magnifications), TEST_SEED + 50, magnifications=magnifications, fine=0.0)
    found = []
    for view in views:
        made = focus_series(view, case.seed, frames=case.images)
        read = [scorer_of("ours").read(image, made.pixel_um).score for image in made.images]
        found.append({
            "kind": case.kind, "magnification": round(view.magnification),
            "defocus_um": [round(float(v), 2) for v in made.defocus_um],
            "score": [round(v, 3) for v in read], "label": [round(float(v), 3) for v in made.score],
            **{key: [round(metric(i), 4) for i in made.images] for key, metric in METRICS.items()},
        })  # fmt: skip
    return {"series": found}


# ---------------------------------------------------------------------- speed
def _speed(case: ScoreCase, method: ScoreMethod) -> dict[str, Any]:
    """Return the median time of one score of 320 x 240 pixels on one thread, ms, and ratios to ours."""
    import cv2

    view = render_views(("tin",), 1, TEST_SEED, magnifications=(2000.0,), fine=0.0)[0]
    image = next(iter(ScoreSampler((view,), case.seed).of(view)))
    cv2.setNumThreads(1)
    found: dict[str, Any] = {}
    for name in method.settings["networks"]:
        found[name] = _milliseconds(partial(scorer_of(name).read, image.image, image.pixel_um), case.images)
    if method.settings["full_aenet"] and "torch" in _importable():
        found["aenet, full width"] = _milliseconds(_full_aenet(image.image, image.magnification), 2)
    for cell in found.values():
        cell["ratio"] = round(cell["cpu_ms"] / found["ours"]["cpu_ms"], 1)
    return found


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


_PARTS: dict[Part, Callable[[ScoreCase, ScoreMethod], dict[str, Any]]] = {
    "scores": _scores, "stay": _stay, "series": _series, "speed": _speed,
}  # fmt: skip
