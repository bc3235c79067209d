"""Measures estimators on simulated pairs of specimens that no training saw, by the exact probe and not the fast one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimator
from mm_autofocus.simulation.electron_probe import Probe, ProbeFamily, blurred
from mm_autofocus.training.sem_pairs import MARGIN

Array = NDArray[np.float32]


class Score(Protocol):
    """Scores a single frame."""

    def total(self, image: NDArray[np.generic]) -> float:
        """Return how far the frame is from focus."""
        ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which pairs are taken.

    Attributes
    ----------
    shape
        Frame (height, width).
    pixel_um, step_um
        Pixel size, and working distance between both frames.
    electrons
        Per pixel at full signal.
    convergence
        True over nominal convergence angle.
    family, softness
        Of the probe.
    defocus_um, stigmator
        Half ranges of the aberration, µm and a.u.
    shift_px_per_um
        Size of the image shift with working distance; its direction is drawn.
    """

    shape: tuple[int, int] = (768, 1024)
    pixel_um: float = 0.010
    step_um: float = 10.0
    electrons: float = 20.0
    convergence: float = 1.0
    family: ProbeFamily = ProbeFamily.SOFT
    softness: float = 0.0
    defocus_um: float = 20.0
    stigmator: float = 5.0
    shift_px_per_um: float = 1.5


NOMINAL = ColumnCalibration(8.7, 6.0, 3.0)
"""What estimators are told; `Conditions.convergence` says how wrong it is."""


def simulate_pair(
    view: NDArray[np.uint8], truth: Aberration, conditions: Conditions, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return both frames of a pair around an aberration, from a random part of a view."""
    height, width = conditions.shape
    padded = (height + 2 * MARGIN, width + 2 * MARGIN)
    y = int(rng.integers(view.shape[0] - padded[0] + 1))
    x = int(rng.integers(view.shape[1] - padded[1] + 1))
    specimen = np.asarray(view[y : y + padded[0], x : x + padded[1]] / 255.0, dtype=np.float32)
    probe = Probe(
        NOMINAL.convergence_mrad * conditions.convergence, 6.0, conditions.softness, conditions.family,
        seed=int(rng.integers(100)),
    )  # fmt: skip
    z, a, b = NOMINAL.to_blur(truth, conditions.pixel_um) / NOMINAL.blur_per_um(conditions.pixel_um)
    angle = rng.uniform(0, 2 * np.pi)
    shift = conditions.shift_px_per_um * conditions.step_um * np.array([np.cos(angle), np.sin(angle)])
    frames = []
    for sign in (-0.5, 0.5):
        clean = blurred(
            specimen, conditions.pixel_um, z + sign * conditions.step_um, a, b, probe,
            (float(sign * shift[0]), float(sign * shift[1])),
        )[MARGIN:-MARGIN, MARGIN:-MARGIN]  # fmt: skip
        frames.append(expose(clean, conditions.electrons, rng))
    return frames[0], frames[1]


def expose(clean: Array, electrons: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a frame as an 8-bit detector gives it: Poisson noise, row offsets of 1.5 grey values, gain 200."""
    counted = rng.poisson(np.maximum(clean, 0.0) * electrons) / electrons
    grey = 20.0 + 200.0 * counted + 1.5 * rng.standard_normal((len(clean), 1))
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)


def evaluate(
    estimator: PairEstimator,
    views: Sequence[NDArray[np.uint8]],
    conditions: Conditions | None = None,
    *,
    pairs: int = 60,
    seed: int = 0,
) -> dict[str, Any]:
    """Return errors of an estimator over random aberrations.

    Parameters
    ----------
    estimator
        What is measured.
    views
        Of specimens that it was not trained on.
    conditions
        Under which.
    pairs, seed
        How many, and which.

    Returns
    -------
    dict
        ``wd_um``, ``stig_au``: mean absolute errors; medians and 95th percentiles; ``bias_wd_um``; ``within``: share
        within 1 µm and 0.25 a.u.; ``wd_scale``, ``stig_scale``: mean of error over the stated Laplace scale (sigma
        over the root of 2), 1 where sigma is right; ``step_ratio``: mean of the estimated over the true one;
        ``blind``: share without a finite sigma; ``seconds`` of one estimate.
    """
    conditions = conditions or Conditions()
    rng = np.random.default_rng([0xE7, seed])
    errors, over_sigma, ratios, seconds, blind = [], [], [], [], 0
    for i in range(pairs):
        reach = np.array([conditions.defocus_um, conditions.stigmator, conditions.stigmator])
        truth = Aberration(*(float(v) for v in rng.uniform(-1, 1, 3) * reach))
        under, over = simulate_pair(views[i % len(views)], truth, conditions, rng)
        begin = time.perf_counter()
        found = estimator.estimate(under, over, conditions.step_um, conditions.pixel_um, NOMINAL)
        seconds.append(time.perf_counter() - begin)
        error = (found.aberration + -truth).vector()
        errors.append(error)
        if np.isfinite(found.sigma.vector()).all():
            over_sigma.append(error / np.maximum(found.sigma.vector(), 1e-9))
            ratios.append(found.step_ratio / conditions.convergence)
        else:
            blind += 1
    size = np.abs(np.array(errors))
    scale = math.sqrt(2.0) * np.abs(np.array(over_sigma).reshape(-1, 3)) if over_sigma else np.full((1, 3), math.nan)
    stig = size[:, 1:].mean(1)
    return {
        "wd_um": round(float(size[:, 0].mean()), 3),
        "stig_au": round(float(stig.mean()), 3),
        "wd_median_um": round(float(np.median(size[:, 0])), 3),
        "stig_median_au": round(float(np.median(stig)), 3),
        "wd_95_um": round(float(np.quantile(size[:, 0], 0.95)), 2),
        "stig_95_au": round(float(np.quantile(stig, 0.95)), 2),
        "bias_wd_um": round(float(np.mean([e[0] for e in errors])), 3),
        "within": round(float(((size[:, 0] <= 1) & (size[:, 1:].max(1) <= 0.25)).mean()), 3),
        "wd_scale": round(float(scale[:, 0].mean()), 2),
        "stig_scale": round(float(scale[:, 1:].mean()), 2),
        "step_ratio": round(float(np.mean(ratios)), 3) if ratios else float("nan"),
        "blind": round(blind / pairs, 3),
        "seconds": round(float(np.median(seconds)), 4),
        "pairs": pairs,
    }


def score_order(
    estimator: Score, views: Sequence[NDArray[np.uint8]], conditions: Conditions | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Return how well a single-image score orders the frames of stacks through focus and through stigmation.

    Parameters
    ----------
    estimator
        With ``total(image)``, larger further from focus.
    views
        One stack of working distance and one of a stigmator from each.
    conditions
        ``step_um`` is not used.
    seed
        Of places and noise.

    Returns
    -------
    dict
        ``wd_spearman``, ``stig_spearman``: mean rank correlation within a stack with the distance from focus;
        ``pooled_spearman`` over all frames; ``wd_miss_um``: mean distance from focus of each stack's least score.
    """
    from scipy.stats import spearmanr

    conditions = conditions or Conditions(electrons=84.0)
    rng = np.random.default_rng([0x5C, seed])
    within: dict[str, list[float]] = {"wd": [], "stig": []}
    pooled: list[tuple[float, float]] = []
    misses = []
    for view in views:
        for knob, values in (("wd", np.linspace(-20, 20, 15)), ("stig", np.linspace(-5, 5, 11))):
            scores = []
            for value in values:
                truth = Aberration(float(value)) if knob == "wd" else Aberration(0.0, float(value), 0.0)
                single = replace(conditions, step_um=1e-6, shift_px_per_um=0.0)
                frame, _ = simulate_pair(view, truth, single, rng)
                scores.append(estimator.total(frame))
            far = np.abs(values)
            within[knob].append(float(spearmanr(scores, far).statistic))
            pooled += [(s, f / far.max()) for s, f in zip(scores, far, strict=True)]
            if knob == "wd":
                misses.append(far[int(np.argmin(scores))])
    every = np.array(pooled)
    return {
        "wd_spearman": round(float(np.mean(within["wd"])), 3),
        "stig_spearman": round(float(np.mean(within["stig"])), 3),
        "pooled_spearman": round(float(spearmanr(every[:, 0], every[:, 1]).statistic), 3),
        "wd_miss_um": round(float(np.mean(misses)), 2),
        "stacks": 2 * len(views),
    }
