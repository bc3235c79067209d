"""Downhill simplex on a score that falls towards focus: it arrives, kicks when stuck, and never leaves the limits."""

from __future__ import annotations

import json
import math
from itertools import islice

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from column_double import CodedColumn
from mm_autofocus.errors import BudgetError, HardwareError, StrategyError
from mm_autofocus.request import Budget
from mm_autofocus.result import Status
from mm_autofocus.strategies.deepscore import DeepScore, DeepScoreSettings
from mm_autofocus.strategies.simplex_steps import simplex_steps
from mm_autofocus.strategy import Frame


class CodedScore:
    """|defocus| and |stig x| + |stig y| as a `CodedColumn` wrote them, with noise."""

    def __init__(self, noise: float = 0.0, floor: float = 0.0) -> None:
        self.noise, self.floor, self.calls = noise, floor, 0

    def score(self, image, pixel_um, calibration):
        self.calls += 1
        z, x, y = np.abs(image[0, :3].astype(float))
        noise = self.noise * np.random.default_rng(self.calls).normal(size=2)
        return self.floor + z + noise[0], abs(x) + abs(y) + 0.3 * noise[1]


class Fixed:
    def __init__(self, values) -> None:
        self.values, self.calls = values, 0

    def score(self, image, pixel_um, calibration):
        self.calls += 1
        return self.values[self.calls % len(self.values)]


def strategy(scorer=None, **changes) -> DeepScore:
    return DeepScore(DeepScoreSettings(**changes), scorer or CodedScore())


def run_steps(function, start, **changes):
    values = {
        "steps": np.array([4.0, 1.0]), "low": np.array([-50.0, -50.0]), "high": np.array([50.0, 50.0]),
        "kick": np.array([1.0, 1.0]), "patience": 5, "tolerance": np.array([1e-3, 1e-3]),
        "rng": np.random.default_rng(1),
    } | changes  # fmt: skip
    generator = simplex_steps(np.asarray(start, dtype=float), **values)
    point, kicks = next(generator)
    while True:
        yield point, kicks
        point, kicks = generator.send(function(point))


def rosenbrock(x):
    return float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)


def test_replaying_gives_the_points_of_an_uninterrupted_scipy():
    asked = []
    start, steps = np.array([-3.0, 4.0]), np.array([4.0, 1.0])
    simplex = start + np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    scipy.optimize.minimize(
        lambda x: asked.append(x.copy()) or rosenbrock(x), start, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": 60},
    )  # fmt: skip
    stepped = [point for point, _ in islice(run_steps(rosenbrock, start, steps=steps, patience=100), len(asked))]
    assert np.allclose(stepped, asked)
    assert len(asked) >= 60


def test_it_kicks_only_after_the_iterations_without_improvement():
    taken = list(islice(run_steps(lambda x: 1.0, [0.0, 0.0]), 200))
    kicks = [k for _, k in taken]
    changes = np.flatnonzero(np.diff(kicks))
    assert len(changes) > 3
    # n + 1 corners, then five iterations of at least one value each
    assert np.diff(changes).min() >= 3 + 5
    starts = np.array([point for point, _ in taken])[changes + 1]
    assert np.all(np.abs(starts) <= 1.0)
    assert len(np.unique(starts[:, 0])) > 3


@given(
    start=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
    values=st.lists(st.floats(-1e9, 1e9), min_size=40, max_size=40),
)
@example_settings(max_examples=40, deadline=None)
def test_no_values_lead_out_of_the_bounds(start, values):
    low, high = np.array([-40.0, -40.0]), np.array([40.0, 40.0])
    each = iter(values)
    steps = run_steps(lambda x: next(each), start, low=low, high=high)
    for point, _ in islice(steps, 40):
        assert np.all(point >= low)
        assert np.all(point <= high)


@pytest.mark.parametrize("away", [(15.0, 2.0, -2.0), (-10.0, 3.0, 1.0)])
def test_it_comes_down_to_the_threshold_of_a_frame_focused_by_hand(away):
    column = CodedColumn()
    scorer = CodedScore(floor=0.4)
    verdict = column.focus(strategy(scorer, threshold=0.9), column.request(away))
    assert verdict.status is Status.CONVERGED
    assert np.abs(column.residual(verdict)).sum() <= 1.05 * 0.9
    assert len(column.looks) < 75
    assert len(verdict.scores) == len(column.looks)
    assert max(verdict.scores) == verdict.scores[-1]  # it stops at the frame that reached it
    json.dumps(verdict.details)


def test_without_a_threshold_it_ends_when_kicks_gain_nothing():
    column = CodedColumn()
    request = column.request((10.0, 2.0, -2.0), budget=Budget(images=None))
    verdict = column.focus(strategy(CodedScore(noise=0.05), max_images=300), request)
    assert np.all(np.abs(column.residual(verdict)) < [1.0, 0.25, 0.25])
    assert verdict.status is Status.CONVERGED
    assert verdict.details["kicks"] >= 3
    assert len(column.looks) < 300


def test_a_threshold_that_is_never_reached_is_not_called_converged():
    column = CodedColumn()
    request = column.request((10.0, 2.0, -2.0), budget=Budget(images=None))
    verdict = column.focus(strategy(CodedScore(floor=3.0), threshold=0.5), request)
    assert verdict.status is Status.LOW_CONFIDENCE
    assert "not reached" in verdict.reason
    assert len(column.looks) == 75
    blank = CodedColumn().focus(strategy(Fixed([(5.0, 2.0)]), threshold=0.5), request)
    assert blank.status is Status.LOW_CONFIDENCE
    assert blank.confidence <= 0.1


def test_the_score_is_the_sum_of_both_and_higher_is_sharper():
    s = strategy(Fixed([(3.0, 0.2)]))
    assert s.score(Frame(np.zeros((64, 80), np.float32), {}, 0.01)) == pytest.approx(-3.2)


def test_focus_at_a_limit_is_at_limit():
    column = CodedColumn(low={"z": 4505.0, "stig_x": -30.0, "stig_y": -30.0})
    verdict = column.focus(strategy(max_images=120), column.request((12.0, 1.0, -1.0)))
    assert verdict.status is Status.AT_LIMIT
    assert verdict.confidence <= 0.3


def test_a_stigmator_missing_from_the_request_is_left_alone():
    column = CodedColumn()
    full = column.request((9.0, 0.0, 0.0))
    request = column.request(start={"z": full.start["z"]}, limits={"z": full.limits["z"]})
    verdict = column.focus(strategy(), request)
    assert verdict.target.keys() == {"z"}
    assert verdict.target["z"] == pytest.approx(4500.0, abs=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonsense_from_the_network_is_an_error(value):
    column = CodedColumn()
    with pytest.raises(StrategyError, match="score network answered"):
        column.focus(strategy(Fixed([(1.0, value)])), column.request())


def test_bad_frames_and_budgets():
    column = CodedColumn(change=lambda image, n: image[:40] if n == 4 else image)
    with pytest.raises(HardwareError, match="size changed"):
        column.focus(strategy(), column.request((9.0, 1.0, 0.0)))
    column = CodedColumn(change=lambda image, n: np.zeros_like(image))
    assert column.focus(strategy(), column.request()).status is Status.NO_SIGNAL
    column = CodedColumn()
    with pytest.raises(StrategyError, match="image budget of 4"):
        column.focus(strategy(), column.request(budget=Budget(images=4)))
    with pytest.raises(StrategyError, match="pixel size"):
        strategy().score(Frame(np.zeros((48, 64)), {}))
    column.focus(strategy(), column.request((9.0, 1.0, 0.0), budget=Budget(images=20)))
    assert len(column.looks) == 19
    generator = strategy().focus(column.request())
    next(generator)
    with pytest.raises(BudgetError):
        generator.throw(BudgetError("spent"))


def test_closing_a_run_midway_leaves_nothing_behind():
    column = CodedColumn()
    generator = strategy().focus(column.request())
    look = next(generator)
    for _ in range(3):
        look = generator.send(column.frame(dict(look.targets)))
    generator.close()
    with pytest.raises(StopIteration):
        next(generator)


@given(scores=st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
@example_settings(max_examples=40, deadline=None)
def test_no_scores_lead_outside_the_limits(scores):
    column = CodedColumn(best=(4500.0, 0.0, 0.0))
    verdict = column.focus(strategy(Fixed(scores), max_images=40), column.request((490.0, 25.0, -25.0)))
    assert 0.0 <= verdict.confidence <= 1.0


def test_the_seed_of_the_request_decides_the_kicks():
    def trajectory(seed):
        column = CodedColumn()
        column.focus(strategy(Fixed([(1.0, 1.0)]), max_images=40, max_kicks=99), column.request(seed=seed))
        return column.looks

    assert trajectory(1) == trajectory(1)
    assert trajectory(1) != trajectory(2)
