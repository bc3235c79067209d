"""Where to look next for the sharpest position: a pure function over the scores measured so far.

`next_position` fits the focus curve of `mm_autofocus.measures.curve` to the samples and answers either with one more
position, or with a conclusion. It knows no image and no hardware, and holds no state: the same samples give the same
answer, so a search can be replayed, paused and tested as a table.

The order of its questions: are the planned positions imaged; does any peak show; has every fitted peak that could win
been visited; is the best bracketed; could a gap, or the outside of the window, still hide a peak as high as the winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from mm_autofocus.strategies.search_state import SearchSample, SearchState, SearchTask

__all__ = [
    "Conclusion",
    "Outcome",
    "SearchSample",
    "SearchTask",
    "Step",
    "next_position",
    "planned_positions",
]


@dataclass(frozen=True, slots=True)
class Step:
    """Look there next, for this reason."""

    z: float
    purpose: str


class Outcome(StrEnum):
    """What a search concludes."""

    PEAK = "peak"
    NO_SIGNAL = "no_signal"
    AT_LOW = "at_low"
    AT_HIGH = "at_high"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The answer.

    Attributes
    ----------
    outcome
        Whether there is a peak, and whether it is inside.
    z
        Sharpest position, µm; the best sample when there is no peak.
    fwhm
        Fitted FWHM of the fine measure, µm; NaN without a peak.
    tie
        Position and relative height of another peak within 20 % of the best, or None.
    rivals
        Positions where a peak as high as the winner is still possible, nearest to possible first, µm.
    features
        What the confidence is computed from; see `mm_autofocus.strategies.sweep_confidence`.
    """

    outcome: Outcome
    z: float
    fwhm: float
    tie: tuple[float, float] | None
    rivals: tuple[float, ...]
    features: dict[str, float]


def next_position(samples: Sequence[SearchSample], task: SearchTask) -> Step | Conclusion:
    """Answer which position to look at next, or conclude.

    Parameters
    ----------
    samples
        Everything measured so far, in order.
    task
        The window, the expected width, the prior, the budget.

    Returns
    -------
    Step or Conclusion
        Every Step lies inside the window and at least 0.1 FWHM from all positions asked before, or is one of the
        finitely many planned ones; with ``max_images`` samples it is a Conclusion.
    """
    spent = len(samples) >= task.max_images
    if not spent:
        for z in planned_positions(task):
            if not any(abs(sample.asked - z) < 1e-9 for sample in samples):
                return Step(z, "plan")
    if not samples:
        raise ValueError("max_images is 0: a search needs at least one image; raise the image budget")
    state = SearchState(samples, task)
    if not spent:
        for question in (_look_for_signal, _visit_fitted_peak, _bracket_best, _challenge):
            if step := question(state):
                return step
            if not state.detected:
                break
    return _conclude(state)


def planned_positions(task: SearchTask) -> list[float]:
    """Return the positions to image before anything is known: the start, then an upward sweep (or the prior's three).

    Without a prior they leave no point of the window further than half a coarse step away from an image, as far as half
    of the budget allows.
    """
    low, high, width = task.low, task.high, task.high - task.low
    start = task.start if task.start is not None and low <= task.start <= high else None
    if task.prior_mean is not None and task.prior_sd <= 3.0 * task.fwhm:
        reach = min(max(1.2 * task.prior_sd, 0.6 * task.fwhm), 2.5 * task.fwhm)
        sweep = [task.clip(task.prior_mean + offset) for offset in (-reach, 0.0, reach)]
        if start is not None:
            sweep = [z for z in sweep if abs(z - start) > 0.3 * task.fwhm]
    else:
        step = max(task.coarse_step * task.fwhm, width / max(task.max_images // 2, 4))
        if start is None:
            count = max(math.ceil(width / step), 4)
            sweep = [low + (i + 0.5) * width / count for i in range(count)]
        else:
            below, above = (max(math.ceil(side / step - 0.5), 0) for side in (start - low, high - start))
            sweep = [low + (i + 0.5) * (start - low) / (below + 0.5) for i in range(below)]
            sweep += [start + (i + 1) * (high - start) / (above + 0.5) for i in range(above)]
    distinct: list[float] = []
    for z in ([] if start is None else [start]) + sweep:
        if all(abs(z - other) > 1e-6 * task.fwhm for other in distinct):
            distinct.append(z)
    return distinct


def _look_for_signal(state: SearchState) -> Step | None:
    """While no peak shows, halve the widest gap until none can hide one.

    A weak peak also needs more images than a few: fewer than eight are spread further, down to a third of an FWHM.
    """
    if state.detected:
        return None
    task, f = state.task, state.f
    edges = np.sort(np.concatenate([[task.low], np.clip(state.z, task.low, task.high), [task.high]]))
    gaps = np.diff(edges)
    gaps[[0, -1]] *= 2.0  # an edge has an image on one side only
    widest = int(gaps.argmax())
    scarce = len(state.z) < 8
    if gaps[widest] <= (min(0.35 * f, (task.high - task.low) / 6) if scarce else task.bracket * f):
        return None
    a, b = float(edges[widest]), float(edges[widest + 1])
    z = a + (b - a) / 4 if widest == 0 else b - (b - a) / 4 if widest == len(gaps) - 1 else (a + b) / 2
    return Step(z, "signal") if state.distance(z) >= min(0.1 * f, (task.high - task.low) / 20) else None


def _visit_fitted_peak(state: SearchState) -> Step | None:
    """Go to the fitted peak that promises most, when it may beat the best image and was never imaged."""
    task, f, best = state.task, state.f, state.fine[state.best]
    candidates = []
    for fit in [*state.fits, *state.singles[:3]]:
        if fit.cost > state.winner.cost + task.plausible_cost:
            continue
        for z, sd, elevation in zip(fit.positions, fit.positions_sd, fit.elevations, strict=True):
            predicted = float(elevation + fit.background(z, state.data))
            inside = task.clip(float(z))
            fresh = state.distance(inside) > min(task.fresh * f, max(0.15 * f, float(sd)))
            if fresh and predicted + task.promise * max(float(elevation), 0.05) > best:
                candidates.append((predicted, inside))
    return Step(max(candidates)[1], "peak") if candidates else None


def _bracket_best(state: SearchState) -> Step | None:
    """Image on either side of the best, within `SearchTask.bracket` FWHM, so that its peak is a peak."""
    task, f = state.task, state.f
    z = state.z[state.order]
    j = int(np.flatnonzero(state.order == state.best)[0])
    at = float(z[j])
    below = at - z[j - 1] < task.bracket * f if j > 0 else at - task.low < 0.3 * f
    above = z[j + 1] - at < task.bracket * f if j < len(z) - 1 else task.high - at < 0.3 * f
    if below and above:
        return None
    down = state.best_peak() < at if not below and not above else not below
    target = task.clip(at - 0.6 * f if down else at + 0.6 * f)
    return Step(target, "bracket") if state.distance(target) > 0.1 * f else None


def _challenge(state: SearchState) -> Step | None:
    """Image where a peak as high as the winner is still possible."""
    task, f = state.task, state.f
    if sum(sample.purpose == "rival" for sample in state.samples) >= task.max_rivals:
        return None
    for rise, z in state.find_rivals():
        target = task.clip(z)
        if rise < task.rival_cost and state.distance(target) > 0.4 * f:
            return Step(target, "rival")
    return None


def _conclude(state: SearchState) -> Conclusion:
    task, f, z, fine = state.task, state.f, state.z, state.fine
    best = float(z[state.best])
    if not state.detected:
        return Conclusion(Outcome.NO_SIGNAL, best, math.nan, None, (), {"gain": state.gain})
    fit = state.winner
    k = int(np.abs(fit.positions - best).argmin())
    peak = float(fit.positions[k])
    j = int(np.flatnonzero(state.order == state.best)[0])
    ordered = z[state.order]
    outermost_low, outermost_high = j == 0, j == len(z) - 1
    believed = peak if abs(peak - best) < 3.0 * f else best
    outcome, answer = Outcome.PEAK, best
    if outermost_low and best - task.low < 0.45 * f and believed < task.low + 0.1 * f:
        outcome, answer = Outcome.AT_LOW, task.low
    elif outermost_high and task.high - best < 0.45 * f and believed > task.high - 0.1 * f:
        outcome, answer = Outcome.AT_HIGH, task.high
    elif not outermost_low and not outermost_high and ordered[j - 1] < peak < ordered[j + 1]:
        answer = float(np.clip(peak, best - 0.5 * f, best + 0.5 * f))
    elevation = max(state.best_elevation(), 0.02)
    rivals = state.find_rivals()
    far = np.abs(z - answer) > 2.0 * f
    others = [(float(fine[i]), float(z[i])) for i in np.flatnonzero(far)]
    for other in [*state.fits, *state.singles[:3]]:
        if other.cost <= fit.cost + 12.0:
            heights = other.elevations + other.background(other.positions, state.data)
            others += [
                (float(h), float(q)) for h, q in zip(heights, other.positions, strict=True) if abs(q - answer) > 2 * f
            ]
    second = max(others, default=(-math.inf, math.nan))
    background = float(fit.background(best, state.data))
    relative = math.expm1(min(max(second[0] - background, 0.0), 50.0)) / math.expm1(min(elevation, 50.0))
    inside = [rise for rise, q in rivals if task.low <= q <= task.high]
    outside = [rise for rise, q in rivals if not task.low <= q <= task.high]
    rim = (z - task.low < 3.0 * f) | (task.high - z < 3.0 * f)
    guide = state.data.y[-1]
    spread = max(float(np.ptp(guide)), 0.02)
    base = np.log(state.data.base_variance).sum()
    features = {
        "elevation": elevation,
        "gain": state.gain,
        "margin": (float(fine[state.best]) - second[0]) / elevation if others else 1.0,
        "rival_inside": min(inside, default=30.0),
        "rival_outside": min(outside, default=30.0),
        "rival_sum": sum(math.exp(min(-rise / 2, 3.0)) for rise, _ in rivals),
        "misfit": (fit.cost - float(base)) / len(z),
        "position_sd": float(fit.positions_sd[k]) / f,
        "nearest": float(np.abs(z - answer).min()) / f,
        "bracketed": float(
            not outermost_low and not outermost_high and max(np.diff(ordered)[[j - 1, j]]) < task.bracket * f
        ),
        "rim_guide": float(guide[rim].max() - guide[state.best]) / spread if rim.any() else -1.0,
        "rim_fine": float(fine[rim].max() - fine[state.best]) / elevation if rim.any() else -1.0,
        "guide_agrees": float(abs(z[int(guide.argmax())] - answer) < 3.0 * f),
        "edge_distance": min(answer - task.low, task.high - answer) / f,
        "width": math.log(fit.fwhm / (f * task.priors[0].width_factor)),
        "two_peaks": float(fit.peaks == 2),
        "images": float(len(z)),
        "spent": float(len(z) >= task.max_images),
        "range": (task.high - task.low) / f,
    }
    tie = (second[1], relative) if relative > 0.8 else None
    return Conclusion(
        outcome, answer, fit.fwhm, tie, tuple(q for rise, q in rivals if rise < task.rival_cost), features
    )
