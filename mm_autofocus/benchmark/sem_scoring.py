"""Scores of pairs and closed loops: who is within the depth, after how many iterations, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.sem_cases import STIG_DEPTH, WD_DEPTH_UM
from mm_autofocus.benchmark.sem_methods import Trajectory
from mm_autofocus.report.data import wilson

Array = NDArray[np.float64]


def loop_row(runs: Sequence[Trajectory], iterations: int) -> dict[str, Any]:
    """Sum up the closed loops of one method: residuals and shares after each iteration, and how many it took.

    Parameters
    ----------
    runs
    Of the same conditions.
    iterations
    How many to show; a run that ended earlier stays as it was.
    """
    after = []
    for k in range(iterations + 1):
        residuals = np.array([run.after(k) for run in runs])
        off = np.abs(residuals)
        after.append(
            {
                "wd": interval(off[:, 0]), "stig": interval(off[:, 1:].mean(1)),
                "median_wd": rounded(np.median(off[:, 0])), "within": share(within(residuals)),
            }
        )  # fmt: skip
    counts = [settled(run.residuals) for run in runs]
    known = [c for c in counts if c is not None]
    return {
        "after": after, "runs": [table_of(run.residuals) for run in runs],
        "iterations": interval(np.array(known, dtype=float)) if known else None,
        "reached": share(np.array([c is not None for c in counts])),
        "frames": rounded(np.median([run.frames[-1] for run in runs])),
        "seconds": rounded(np.median([run.seconds for run in runs])),
    }  # fmt: skip


def duel(pairs: Sequence[tuple[Trajectory, Trajectory]]) -> dict[str, Any]:
    """Compare two methods on the same cases by the iterations that they need; one that never arrives needs most.

    Parameters
    ----------
    pairs
        The closed loops of one and of the other method, one pair for each case.
    """
    counts = np.array([[_needed(run) for run in pair] for pair in pairs], dtype=float)
    both = np.isfinite(counts).all(1)
    return {
        "runs": len(pairs), "reached": np.isfinite(counts).sum(0).tolist(),
        "iterations": [rounded(v) for v in counts[both].mean(0)] if both.any() else None,
        "fewer": int((counts[:, 0] < counts[:, 1]).sum()), "more": int((counts[:, 0] > counts[:, 1]).sum()),
    }  # fmt: skip


def _needed(run: Trajectory) -> float:
    count = settled(run.residuals)
    return float("inf") if count is None else float(count)


def within(residuals: Array) -> NDArray[np.bool_]:
    """Return which rows (wd, stig x, stig y) are within half the depth, shape (n,)."""
    half = np.array([WD_DEPTH_UM, STIG_DEPTH, STIG_DEPTH]) / 2
    return np.asarray((np.abs(residuals) <= half).all(1))


def settled(residuals: Array) -> int | None:
    """Return after how many iterations a run is within the depth for good, None when it never is."""
    good = within(residuals)
    if not good[-1]:
        return None
    bad = np.flatnonzero(~good)
    return 0 if bad.size == 0 else int(bad[-1]) + 1


def interval(values: Array) -> list[float]:
    """Return mean and 95 % bootstrap interval (percentiles of 2000 resampled means, fixed seed)."""
    values = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(0, values.size, (2000, values.size))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return [rounded(values.mean()), rounded(low), rounded(high)]


def share(good: NDArray[np.bool_]) -> list[float]:
    """Return the share of true values, its 95 % Wilson interval, and how many values there are."""
    n = int(good.size)
    low, high = wilson(int(good.sum()), n)
    return [rounded(good.mean()) if n else float("nan"), rounded(low), rounded(high), n]


def rounded(value: Any) -> float:
    """Return a number for JSON."""
    return round(float(value), 4)


def table_of(rows: Array) -> list[list[float]]:
    """Return rows of numbers for JSON."""
    table: list[list[float]] = np.round(rows, 3).tolist()
    return table
