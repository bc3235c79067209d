"""The downhill simplex of scipy as a generator, with random kicks when it no longer improves.

`scipy.optimize.minimize` calls a function and cannot be suspended in between. Nelder and Mead's method is
deterministic, so it is suspended by replaying: each time scipy runs from its beginning on the values known so far and
is stopped where it asks for the next point. That costs well under a millisecond for each known value, needs no second
thread, and closes cleanly at any point.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

Point = NDArray[np.float64]


class _Wanted(Exception):
    """Scipy asks for a value that is not known yet."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.point = point


class _StaleError(Exception):
    """The best value has not improved for a while."""


def simplex_steps(
    start: Point,
    steps: Point,
    low: Point,
    high: Point,
    *,
    kick: Point,
    patience: int,
    tolerance: Point,
    rng: np.random.Generator,
) -> Generator[tuple[Point, int], float, None]:
    """Minimise by scipy's Nelder-Mead inside bounds; never ends by itself.

    After ``patience`` iterations without improvement, or once the simplex is smaller than ``tolerance``, the best point
    is perturbed uniformly within ± ``kick`` and a new simplex starts there, so there are at least ``patience``
    iterations between two kicks that stagnation caused (Schubert et al. 2024, Recalibration procedure).

    Parameters
    ----------
    start, steps
        First vertex, and the edge to each other vertex of the first simplex; shape (n,).
    low, high
        Bounds, shape (n,); every point yielded lies inside.
    kick, tolerance
        Shape (n,), see above.
    patience
        Iterations without improvement before a kick.
    rng
        Draws the kicks.

    Yields
    ------
    point, kicks
        Where to evaluate next, shape (n,), and how many kicks there were before; the value must be sent back.
    """
    origin, edges = np.clip(start, low, high), np.asarray(steps, dtype=float)
    best_value, best_point = np.inf, origin
    kicks = 0
    while True:
        values: list[float] = []
        while (point := _next_point(values, origin, edges, low, high, patience, tolerance)) is not None:
            value = yield point.copy(), kicks
            values.append(value)
            if value < best_value:
                best_value, best_point = value, point.copy()
        kicks += 1
        origin = np.clip(best_point + rng.uniform(-1.0, 1.0, len(best_point)) * kick, low, high)
        edges = np.maximum(np.asarray(kick, dtype=float), 4.0 * tolerance)


def _next_point(
    values: list[float], origin: Point, edges: Point, low: Point, high: Point, patience: int, tolerance: Point
) -> Point | None:
    """Return where scipy evaluates after ``values``, or None once it has stopped or stagnated."""
    known = iter(values)
    best, stale = np.inf, 0

    def value(scaled: Point) -> float:
        answer = next(known, None)
        if answer is None:
            raise _Wanted(np.clip(scaled * tolerance, low, high))
        return answer

    def after_iteration(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        nonlocal best, stale
        stale = 0 if intermediate_result.fun < best else stale + 1
        best = min(best, intermediate_result.fun)
        if stale >= patience:
            raise _StaleError

    corners = np.tile(origin, (len(origin) + 1, 1))
    for i, edge in enumerate(edges):
        corners[i + 1, i] += edge if origin[i] + edge <= high[i] else -edge
    try:
        scipy.optimize.minimize(
            value,
            origin / tolerance,
            method="Nelder-Mead",
            bounds=scipy.optimize.Bounds(low / tolerance, high / tolerance),
            callback=after_iteration,
            options={
                "initial_simplex": np.clip(corners, low, high) / tolerance,
                "xatol": 1.0, "fatol": np.inf, "maxiter": 10_000, "maxfev": 10_000,
            },
        )  # fmt: skip
    except _Wanted as wanted:
        return wanted.point
    except _StaleError:
        return None
    return None
