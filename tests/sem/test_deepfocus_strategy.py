"""DeepFocus as published: its correction is added pair after pair, patches are averaged, and limits hold."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from column_double import Answers, CodedColumn, CodedEstimator
from mm_autofocus.errors import BudgetError, HardwareError, StrategyError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.request import Budget
from mm_autofocus.result import Status
from mm_autofocus.strategies.deepfocus import DeepFocus, DeepFocusSettings
from mm_autofocus.strategy import Frame

NATIVE = ColumnCalibration()
"""The network answers in the column's own units: no calibration enters."""


def strategy(estimator=None, **changes) -> DeepFocus:
    return DeepFocus(DeepFocusSettings(**changes), estimator or CodedEstimator(NATIVE, patches=5))


@pytest.mark.parametrize("away", [(0.0, 0.0, 0.0), (12.0, -4.0, 3.0), (30.0, -6.0, 6.0), (-20.0, 5.0, 5.0)])
def test_three_iterations_of_symmetrical_pairs(away):
    column = CodedColumn()
    verdict = column.focus(strategy(), column.request(away))
    assert verdict.status is Status.CONVERGED
    assert np.all(np.abs(column.residual(verdict)) < [0.5, 0.15, 0.15])
    assert len(column.looks) == 6 == len(verdict.scores)
    assert column.looks[0]["z"] == pytest.approx(4500.0 + away[0] - 5.0)
    assert column.looks[1]["z"] == pytest.approx(4500.0 + away[0] + 5.0)
    assert len(verdict.details["patches"]) == 5
    json.dumps(verdict.details)


def test_the_correction_is_added_as_it_is():
    column = CodedColumn()
    request = column.request()
    start = dict(request.start)
    answers = Answers([(4.0, 1.0, -0.5), (-1.0, 0.25, 0.0), (0.5, 0.0, 0.0)])
    verdict = column.focus(strategy(answers), request)
    assert verdict.target["z"] == pytest.approx(start["z"] - 3.5)
    assert verdict.target["stig_x"] == pytest.approx(start["stig_x"] - 1.25)
    assert verdict.target["stig_y"] == pytest.approx(start["stig_y"] + 0.5)
    assert column.looks[2]["z"] == pytest.approx(start["z"] - 4.0 - 5.0)


@pytest.mark.parametrize(("weighting", "expected"), [("scores", 2.0), ("mean", 4.0)])
def test_patches_are_weighted_by_their_scores_or_equally(weighting, expected):
    class Patched:
        def estimate(self, *args):
            each = [(0, Aberration(1.0), 0.8), (32, Aberration(5.0), 0.15), (64, Aberration(6.0), 0.05)]
            patches = tuple(PatchEstimate(x, 0, 32, a, w) for x, a, w in each)
            return PairEstimate(Aberration(99.0), Aberration(1.0, 1.0, 1.0), patches)

    column = CodedColumn()
    request = column.request()
    verdict = column.focus(strategy(Patched(), iterations=1, weighting=weighting), request)
    assert request.start["z"] - verdict.target["z"] == pytest.approx({2.0: 1.85, 4.0: 4.0}[expected])


@pytest.mark.parametrize(
    ("column", "word"),
    [
        (CodedColumn(low={"z": 4506.0, "stig_x": -30.0, "stig_y": -30.0}), "leave the limits"),
        (CodedColumn(clamps={"stig_x": (3.5, 30.0)}), "stands at"),
    ],
)
def test_a_best_value_out_of_reach_is_at_limit(column, word):
    verdict = column.focus(strategy(), column.request((14.0, 4.0, 0.0)))
    assert verdict.status is Status.AT_LIMIT
    assert word in verdict.reason


def test_an_ignored_knob_and_a_network_that_diverges_are_not_called_converged():
    column = CodedColumn(ignores=("stig_y",))
    assert not column.focus(strategy(), column.request((5.0, 2.0, 3.0))).status.ok
    column = CodedColumn()
    diverging = CodedEstimator(ColumnCalibration(-20.0, 6.0))  # the wrong sign, twice too far
    verdict = column.focus(strategy(diverging), column.request((3.0, 0.5, 0.5)))
    assert not verdict.status.ok


def test_bad_frames_budgets_and_answers():
    column = CodedColumn(change=lambda image, n: image[:40] if n == 3 else image)
    with pytest.raises(HardwareError, match="size changed"):
        column.focus(strategy(), column.request((9.0, 1.0, 0.0)))
    column = CodedColumn(change=lambda image, n: np.zeros_like(image))
    assert column.focus(strategy(), column.request()).status is Status.NO_SIGNAL
    column = CodedColumn()
    with pytest.raises(StrategyError, match="image budget of 3"):
        column.focus(strategy(), column.request(budget=Budget(images=3)))
    with pytest.raises(StrategyError, match="estimator answered"):
        column.focus(strategy(Answers([(math.nan, 0.0, 0.0)])), column.request())
    column = CodedColumn()
    column.focus(strategy(), column.request((9.0, 1.0, 0.0), budget=Budget(images=6)))
    assert len(column.looks) == 4
    generator = strategy().focus(column.request((9.0, 0.0, 0.0)))
    look = next(generator)
    for _ in range(2):
        look = generator.send(column.frame({**column.request().start, **look.targets}))
    with pytest.raises(StopIteration) as stop:
        generator.throw(BudgetError("spent"))
    assert len(stop.value.value.details["iterations"]) == 1


def test_focus_alone_where_the_request_has_no_stigmators():
    column = CodedColumn()
    full = column.request((9.0, 0.0, 0.0))
    request = column.request(start={"z": full.start["z"]}, limits={"z": full.limits["z"]})
    verdict = column.focus(strategy(), request)
    assert verdict.target.keys() == {"z"}
    assert verdict.target["z"] == pytest.approx(4500.0, abs=0.5)


@pytest.mark.parametrize(("there", "missing"), [("stig_x", "stig_y"), ("stig_y", "stig_x")])
def test_one_stigmator_alone_is_a_mistake_unless_they_are_left_alone(there, missing):
    column = CodedColumn()
    full = column.request((9.0, 0.0, 0.0))
    start, limits = ({name: of[name] for name in ("z", there)} for of in (full.start, full.limits))
    request = column.request(start=start, limits=limits)
    with pytest.raises(StrategyError, match=rf"add \[knobs.{missing}\]"):
        column.focus(strategy(), request)
    assert column.looks == []
    assert column.focus(strategy(stigmate=False), request).target.keys() == {"z"}


@given(
    values=st.lists(
        st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3), min_size=1, max_size=4
    ),
    away=st.tuples(st.floats(-490, 490), st.floats(-25, 25), st.floats(-25, 25)),
)  # fmt: skip
@example_settings(max_examples=100, deadline=None)
def test_no_answer_leads_outside_the_limits(values, away):
    column = CodedColumn(best=(4500.0, 0.0, 0.0))
    run = partial(column.focus, strategy(Answers(values)), column.request(away))
    if np.all(np.isfinite(values[:3])):
        assert 0.0 <= run().confidence <= 1.0
    else:
        with pytest.raises(StrategyError, match="estimator answered"):
            run()


def test_the_score_is_higher_where_the_frame_is_sharper():
    column = CodedColumn()
    near = column.frame({"z": 4500.0, "stig_x": 1.0, "stig_y": -2.0})
    far = column.frame({"z": 4520.0, "stig_x": 1.0, "stig_y": -2.0})
    cut = [Frame(f.image[1:], f.knobs) for f in (near, far)]  # without the row that carries numbers
    s = strategy()
    assert s.score(cut[0]) > 3 * s.score(cut[1])
