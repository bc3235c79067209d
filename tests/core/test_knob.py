"""No command of a knob ever leaves its limits, whatever it is asked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.errors import HardwareError, LimitError
from mm_autofocus.microscope import Knob
from mm_autofocus.request import Limits

numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


def make(limits: Limits, position: float = 0.0, **options: Any) -> tuple[Knob, list[float]]:
    log: list[float] = []
    where = [position]

    def write(value: float) -> None:
        log.append(value)
        where[0] = value

    return Knob("z", "Z", limits, lambda: where[0], write, sleep=lambda s: None, **options), log


@given(
    st.lists(numbers, max_size=20),
    st.floats(-500, 500),
    st.floats(0.01, 500),
    st.one_of(st.none(), st.floats(0.5, 100)),
    st.floats(-200, 200),
)
def test_every_command_is_inside_the_limits(
    targets: list[float], low: float, width: float, step: float | None, backlash: float
) -> None:
    limits = Limits(low, low + width)
    knob, log = make(limits, low + width / 3, max_step=step, backlash=backlash)
    for target in targets:
        try:
            knob.set(target)
        except LimitError:
            assert not limits.low <= target <= limits.high
        else:
            assert knob.get() == target
    assert all(limits.low <= command <= limits.high for command in log)


@given(st.floats(-90, 90), st.floats(-90, 90), st.floats(0.5, 30), st.sampled_from([-20.0, -0.5, 0.0, 0.5, 20.0]))
def test_steps_are_short_and_the_last_comes_from_the_backlash_side(
    start: float, target: float, step: float, backlash: float
) -> None:
    knob, log = make(Limits(-100, 100), start, max_step=step, backlash=backlash)
    knob.set(target)
    places = [start, *log]
    assert all(abs(b - a) <= step * (1 + 1e-9) for a, b in itertools.pairwise(places))
    if len(places) > 1 and backlash and abs(target) + abs(backlash) < 100 and log[-1] != places[-2]:
        assert math.copysign(1, log[-1] - places[-2]) == math.copysign(1, backlash)


@pytest.mark.parametrize("target", [float("nan"), float("inf"), -float("inf"), 10.0001, -10.0001])
def test_refuses_and_does_not_move(target: float) -> None:
    knob, log = make(Limits(-10, 10))
    with pytest.raises(LimitError, match=r"nothing has moved"):
        knob.set(target)
    assert log == []


def test_a_stage_outside_its_limits_is_not_driven() -> None:
    knob, log = make(Limits(-10, 10), position=50.0)
    with pytest.raises(LimitError, match=r"stands at 50"):
        knob.set(0.0)
    assert log == []


def test_a_stage_that_does_not_arrive_is_noticed() -> None:
    knob = Knob("z", "Z", Limits(-10, 10), lambda: 0.0, lambda v: None, tolerance=0.5)
    with pytest.raises(HardwareError, match=r"sent to 5 µm but reports 0"):
        knob.set(5.0)


def test_a_position_that_is_no_number_is_an_error() -> None:
    knob = Knob("z", "Z", Limits(-10, 10), lambda: float("nan"), lambda v: None)
    with pytest.raises(HardwareError, match="reports position nan"):
        knob.set(5.0)


@pytest.mark.parametrize("limits", [Limits(5, 5), Limits(5, 1), Limits(float("nan"), 1), Limits(0, float("inf"))])
def test_limits_must_make_sense(limits: Limits) -> None:
    with pytest.raises(LimitError, match="Correct"):
        make(limits)
