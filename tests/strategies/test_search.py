"""The search as a pure function: what it asks for next, and what it concludes, from made-up scores."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_curves import ScoresAt, noisy, peaks
from mm_autofocus.strategies.search import (
    Conclusion,
    Outcome,
    SearchSample,
    SearchTask,
    Step,
    next_position,
    planned_positions,
)


def searched(task: SearchTask, scores: ScoresAt) -> tuple[Conclusion, list[SearchSample]]:
    samples: list[SearchSample] = []
    while isinstance(answer := next_position(samples, task), Step):
        logs = tuple(math.log(score) for score in scores(answer.z))
        samples.append(SearchSample(answer.z, answer.z, logs, (0.01,) * len(logs), answer.purpose))
    return answer, samples


PLANS = [
    ("start in the middle", SearchTask(-10, 10, 1.8, start=0.0), 0.0),
    ("start at the edge", SearchTask(-10, 10, 1.8, start=-10.0), -10.0),
    ("no start", SearchTask(-10, 10, 1.8), None),
    ("start outside", SearchTask(-10, 10, 1.8, start=99.0), None),
    ("wide", SearchTask(-72, 72, 1.8, start=0.0), 0.0),
    ("narrower than the peak", SearchTask(-0.2, 0.2, 1.8, start=0.0), 0.0),
    ("prior", SearchTask(-10, 10, 1.8, start=0.0, prior_mean=3.0, prior_sd=2.0), 0.0),
]


@pytest.mark.parametrize(("name", "task", "first"), PLANS, ids=[name for name, *_ in PLANS])
def test_the_plan_begins_at_the_start_and_leaves_no_wide_gap(name: str, task: SearchTask, first: float | None) -> None:
    plan = planned_positions(task)
    assert len(plan) == len(set(plan))
    assert all(task.low <= z <= task.high for z in plan)
    if first is not None:
        assert plan[0] == first
    if task.prior_mean is None:
        ordered = sorted(plan)
        gaps = [b - a for a, b in itertools.pairwise(ordered)]
        gaps += [2 * (ordered[0] - task.low), 2 * (task.high - ordered[-1])]
        assert max(gaps) <= task.coarse_step * task.fwhm + 1e-9


PEAKS = [
    ("one", SearchTask(-20, 20, 1.8, start=0.0), peaks((6.3, 10.0)), 6.3),
    ("80 FWHM wide", SearchTask(-72, 72, 1.8, start=0.0), peaks((41.0, 20.0)), 41.0),
    ("width told half", SearchTask(-20, 20, 0.9, start=0.0), peaks((6.3, 10.0)), 6.3),
    ("width told double", SearchTask(-20, 20, 3.6, start=0.0), peaks((6.3, 10.0)), 6.3),
    ("weak", SearchTask(-10, 10, 1.8, start=0.0), peaks((3.0, 0.4)), 3.0),
    ("the higher of two", SearchTask(-30, 30, 1.8, start=0.0), peaks((-20.0, 5.0), (12.0, 10.0)), 12.0),
    ("good prior", SearchTask(-20, 20, 1.8, 5.0, 5.0, 2.0), peaks((6.3, 10.0)), 6.3),
    ("wrong prior", SearchTask(-10, 10, 1.8, -5.0, -5.0, 1.0), peaks((4.0, 10.0)), 4.0),
    ("one measure", SearchTask(-10, 10, 1.8, 0.0, priors=SearchTask(0, 1, 1).priors[:1]), None, 4.0),
]


@pytest.mark.parametrize(("name", "task", "scores", "at"), PEAKS, ids=[name for name, *_ in PEAKS])
def test_a_peak_is_found(name: str, task: SearchTask, scores: ScoresAt | None, at: float) -> None:
    if scores is None:
        both = peaks((at, 10.0))

        def scores(z: float) -> tuple[float]:
            return (both(z)[0],)

    conclusion, samples = searched(task, scores)
    assert conclusion.outcome is Outcome.PEAK
    assert conclusion.z == pytest.approx(at, abs=0.5)
    assert len(samples) <= 30
    assert all(task.low <= sample.z <= task.high for sample in samples)


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_curve_has_no_signal(seed: int) -> None:
    conclusion, _ = searched(SearchTask(-20, 20, 1.8, start=0.0), noisy(peaks(), seed))
    assert conclusion.outcome is Outcome.NO_SIGNAL


@pytest.mark.parametrize(("at", "outcome"), [(-10.6, Outcome.AT_LOW), (11.0, Outcome.AT_HIGH)])
def test_a_peak_beyond_the_edge_is_said_to_be_there(at: float, outcome: Outcome) -> None:
    conclusion, _ = searched(SearchTask(-10, 10, 1.8, start=0.0), peaks((at, 10.0)))
    assert conclusion.outcome is outcome


def test_two_alike_peaks_are_a_tie() -> None:
    task = SearchTask(-20, 20, 1.8, start=0.0, rival_cost=3.0, max_rivals=4)
    conclusion, _ = searched(task, peaks((-8.0, 10.0), (8.0, 9.5)))
    assert conclusion.tie is not None
    at, relative = conclusion.tie
    assert sorted([conclusion.z, at]) == pytest.approx([-8.0, 8.0], abs=0.9)
    assert relative == pytest.approx(1.0, abs=0.2)


def test_the_same_samples_give_the_same_answer() -> None:
    task = SearchTask(-20, 20, 1.8, start=0.0)
    _, samples = searched(task, peaks((6.3, 10.0)))
    for count in range(len(samples)):
        step = next_position(samples[:count], task)
        assert isinstance(step, Step)
        assert step.z == samples[count].asked


def test_no_budget_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        next_position([], SearchTask(0, 1, 1.0, max_images=0))


@settings(max_examples=40, deadline=None)
@given(
    width=st.floats(0.01, 200.0),
    centre=st.floats(-1e4, 1e4),
    fwhm=st.floats(0.05, 50.0),
    images=st.integers(1, 25),
    stuck=st.booleans(),
    scale=st.floats(0.0, 30.0),
    salt=st.integers(0, 2**31),
)
def test_any_scores_end_within_the_budget_and_the_window(
    width: float, centre: float, fwhm: float, images: int, stuck: bool, scale: float, salt: int
) -> None:
    task = SearchTask(centre - width / 2, centre + width / 2, fwhm, start=centre, max_images=images)
    samples: list[SearchSample] = []
    while isinstance(step := next_position(samples, task), Step):
        assert task.low <= step.z <= task.high
        assert len(samples) < images
        chaos = math.sin(salt + 1e3 * len(samples)) * scale
        at = centre if stuck else step.z  # a stage that does not move
        samples.append(SearchSample(at, step.z, (chaos, -chaos / 2), (0.01, 0.01), step.purpose))
    assert math.isfinite(step.z)
