"""FocusRun: whatever a strategy does, the stage stays inside its limits and the instrument is put back."""

from __future__ import annotations

import itertools
import math
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mm_autofocus.microscope import Microscope
from mm_autofocus.request import Budget
from mm_autofocus.result import Status
from mm_autofocus.run import FocusRun
from mm_autofocus.settings import VerifySettings
from mm_autofocus.strategy import Look, Verdict
from support import FakeCore, Scripted, Stack, request, settings, state


def run(core: FakeCore, strategy: Any, **changes: Any) -> Any:
    scope = Microscope(core, settings(**changes.pop("settings", {})))
    return FocusRun(scope, strategy, request(core, **changes))()


def test_an_honest_run_converges_and_is_fully_recorded() -> None:
    core = FakeCore(focus=3.7)
    result = run(core, Stack())
    assert result.status is Status.CONVERGED
    assert result.end["z"] == pytest.approx(4.0)
    assert core.z == pytest.approx(4.0)
    assert [s.purpose for s in result.samples] == ["search"] * 5 + ["verify"]
    assert result.images == core.snaps == 6
    assert result.dose == pytest.approx(60.0)
    assert result.score is not None
    assert result.start_score is not None
    assert result.score > result.start_score
    assert result.correction == {"z": pytest.approx(4.0)}


def test_it_never_ends_worse_than_it_began() -> None:
    core = FakeCore(focus=0.0)
    liar = Scripted([Look({"z": 0.0}), Look({"z": 9.0})], Verdict({"z": 9.0}, 0.99))
    result = run(core, liar)
    assert result.status is Status.LOW_CONFIDENCE
    assert core.z == 0.0
    assert result.target == {"z": 9.0}
    assert "less sharp" in result.reason


def test_no_noise_that_a_strategy_claims_excuses_an_end_that_is_far_worse() -> None:
    core = FakeCore(focus=0.0)
    liar = Scripted([Look({"z": 0.0}), Look({"z": 9.0})], Verdict({"z": 9.0}, 0.99, details={"score_noise": 0.5}))
    result = run(core, liar)
    assert result.status is Status.LOW_CONFIDENCE
    assert core.z == 0.0


def test_the_start_is_imaged_when_the_strategy_did_not() -> None:
    core = FakeCore(focus=9.0)
    blind = Scripted([Look({"z": 5.0})], Verdict({"z": 9.0}, 0.9))
    result = run(core, blind)
    assert [s.purpose for s in result.samples] == ["search", "start", "verify"]
    assert result.ok


BROKEN = {
    "raises": Scripted([Look({"z": 5.0}), ValueError("boom")]),
    "raises at once": Scripted([KeyError("boom")]),
    "yields nonsense": Scripted(["up a bit"]),
    "returns nonsense": Scripted([Look({"z": 5.0})], {"z": 3}),
    "returns nothing": Scripted([Look({"z": 5.0})]),
    "NaN target": Scripted([Look({"z": 5.0})], Verdict({"z": math.nan}, 0.9)),
    "target outside": Scripted([Look({"z": 5.0})], Verdict({"z": 1e6}, 0.9)),
    "NaN confidence": Scripted([Look({"z": 5.0})], Verdict({"z": 5.0}, math.nan)),
    "confidence 3": Scripted([Look({"z": 5.0})], Verdict({"z": 5.0}, 3.0)),
    "unknown knob": Scripted([Look({"stigmator": 5.0})]),
    "look outside": Scripted([Look({"z": 5.0}), Look({"z": 1000.0})]),
    "look NaN": Scripted([Look({"z": math.nan})]),
    "relative outside": Scripted([Look({"z": 150.0}, relative=True)]),
    "score raises": Scripted([Look({"z": 5.0})], Verdict({"z": 5.0}, 0.9), score=lambda frame: 1 / 0),
    "score NaN": Scripted([Look({"z": 5.0})], Verdict({"z": 5.0}, 0.9), score=lambda frame: math.nan),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_strategy_fails_and_everything_is_put_back(name: str) -> None:
    core = FakeCore()
    before = state(core)
    result = run(core, BROKEN[name])
    assert result.status is Status.FAILED
    assert result.reason
    assert state(core) == before
    assert result.end == result.start


@pytest.mark.parametrize(
    ("budget", "images"), [(Budget(images=4), 4), (Budget(dose=45.0), 4), (Budget(images=4, dose=1000.0), 4)]
)
def test_budgets_hold(budget: Budget, images: int) -> None:
    core = FakeCore()
    before = state(core)
    result = run(core, Stack(), budget=budget)
    assert result.status is Status.TIMED_OUT
    assert result.images <= images
    assert state(core) == before


def test_a_strategy_may_answer_with_what_it_has_when_the_budget_is_spent() -> None:
    core = FakeCore(focus=4.0)
    strategy = Scripted([Look({"z": float(z)}) for z in range(5)], Verdict({"z": 4.0}, 0.7))
    strategy.catch = True
    result = run(core, strategy, budget=Budget(images=5))
    assert strategy.thrown
    assert result.status is Status.CONVERGED
    assert result.images <= 5


def test_one_that_keeps_asking_is_stopped() -> None:
    core = FakeCore()
    strategy = Scripted([Look({"z": 1e9})] * 1000)
    strategy.catch = True
    assert run(core, strategy).status is Status.FAILED
    assert core.log == []


def test_one_that_hangs_is_given_up() -> None:
    core = FakeCore()
    release = threading.Event()

    def hang(request: Any) -> Look:
        release.wait(30)
        return Look({"z": 1.0})

    before = state(core)
    result = run(core, Scripted([Look({"z": 5.0}), hang]), budget=Budget(seconds=0.2))
    release.set()
    assert result.status is Status.TIMED_OUT
    assert "has not answered" in result.reason
    assert state(core) == before


def test_a_camera_that_fails_once_is_tried_again() -> None:
    core = FakeCore(focus=4.0)
    core.snap_failures = iter([None, RuntimeError("USB hiccup")])
    result = run(core, Stack())
    assert result.ok
    assert result.images == 7  # the failed exposure costs the specimen as much as any


def test_a_camera_that_fails_for_ever_fails_the_run() -> None:
    core = FakeCore()
    core.snap_failures = itertools.repeat(RuntimeError("gone"))
    before = state(core)
    result = run(core, Stack())
    assert result.status is Status.FAILED
    assert "gone" in result.reason
    assert state(core) == before


def test_a_camera_that_hangs_fails_the_run() -> None:
    core = FakeCore()
    core.getImage = lambda: time.sleep(5)  # type: ignore[method-assign]
    result = run(core, Stack(), settings={"microscope": {"depth_of_field_um": 2.0, "snap_timeout_s": 0.05}})
    assert result.status is Status.FAILED
    assert "has not delivered an image" in result.reason


def test_a_stage_that_refuses_fails_the_run() -> None:
    core = FakeCore()
    core.set_failure = RuntimeError("stage error 42")
    result = run(core, Stack())
    assert result.status is Status.FAILED
    assert "stage error 42" in result.reason


def test_a_stage_that_ignores_commands_is_not_called_converged() -> None:
    core = FakeCore()
    core.on_set = lambda z: 0.0
    result = run(core, Stack())
    assert result.status is Status.FAILED
    assert "ignores commands" in result.reason


def test_ctrl_c_puts_everything_back_and_goes_on_up() -> None:
    core = FakeCore()
    core.snap_failures = iter([None, None, KeyboardInterrupt()])
    before = state(core)
    with pytest.raises(KeyboardInterrupt):
        run(core, Stack())
    assert state(core) == before


def test_cancel_stops_at_the_next_step() -> None:
    core = FakeCore()
    scope = Microscope(core, settings())

    def cancel(request: Any) -> Look:
        scope.cancel.set()
        return Look({"z": 7.0})

    before = state(core)
    result = FocusRun(scope, Scripted([Look({"z": 5.0}), cancel]), request(core))()
    assert result.status is Status.CANCELLED
    assert state(core) == before
    assert 7.0 not in core.log


def test_camera_settings_of_a_look_are_put_back() -> None:
    core = FakeCore(focus=5.0)
    look = Look({"z": 5.0}, exposure_ms=99.0, roi=(8, 8, 16, 16))
    imaging = {"depth_of_field_um": 2.0, "exposure_ms": 20.0, "binning": 2, "roi": [0, 0, 32, 32]}
    result = run(core, Scripted([look], Verdict({"z": 5.0}, 0.9)), settings={"microscope": imaging})
    assert result.ok
    assert (core.exposure, core.roi, core.binning) == (10.0, [0, 0, 64, 48], "1")
    assert core.z == 5.0


def test_start_and_end_are_compared_in_the_way_the_strategy_images() -> None:
    core = FakeCore(focus=5.0)
    exposures: list[float] = []
    core.snapImage = lambda: exposures.append(core.exposure)  # type: ignore[method-assign]
    strategy = Scripted([Look({"z": 0.0}), Look({"z": 5.0}, exposure_ms=40.0)], Verdict({"z": 5.0}, 0.9))
    assert run(core, strategy).ok
    assert exposures == [10.0, 40.0, 40.0, 40.0]  # the start is taken again, as the end will be


def test_no_signal_stays_where_it_began_without_a_verifying_frame() -> None:
    core = FakeCore()
    result = run(core, Scripted([Look({"z": 5.0})], Verdict({}, 0.0, Status.NO_SIGNAL, "blank")))
    assert result.status is Status.NO_SIGNAL
    assert result.images == 1
    assert core.z == 0.0


looks = st.builds(
    Look,
    st.dictionaries(st.sampled_from(["z", "z", "q"]), st.floats(allow_nan=True, allow_infinity=True), max_size=2),
    relative=st.booleans(),
)
verdicts = st.one_of(
    st.none(),
    st.builds(
        Verdict,
        st.dictionaries(st.sampled_from(["z", "z", "q"]), st.floats(allow_nan=True, allow_infinity=True), max_size=2),
        st.floats(allow_nan=True),
        st.sampled_from(list(Status)),
    ),
)
adversaries = st.builds(
    lambda steps, answer, catch, score: _adversary(steps, answer, catch, score),
    st.lists(st.one_of(looks, st.just("nonsense"), st.just(ValueError("x")), looks, looks), max_size=8),
    verdicts,
    st.booleans(),
    st.floats(allow_nan=True, allow_infinity=True),
)


def _adversary(steps: list[Any], answer: Any, catch: bool, score: float) -> Scripted:
    strategy = Scripted(steps, answer, score=lambda frame: score)
    strategy.catch = catch
    return strategy


@hypothesis_settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    adversaries,
    st.floats(-50, 50),
    st.floats(1, 80),
    st.one_of(st.none(), st.floats(1, 50)),
    st.floats(-30, 30),
    st.booleans(),
    st.integers(0, 6),
)
def test_no_strategy_and_no_core_moves_the_stage_outside_its_limits(
    strategy: Scripted,
    low: float,
    width: float,
    step: float | None,
    backlash: float,
    verify: bool,
    bad_core: int,
) -> None:
    """The promise of the whole project: nothing leaves the limits, and a failed run ends where it began."""
    core = FakeCore(low=low, high=low + width)
    core.z = start = low + width / 2
    if bad_core == 1:
        core.on_set = lambda z: math.nan
    elif bad_core == 2:
        core.on_set = lambda z: z + 1e6  # a stage that reports wild positions
    elif bad_core == 3:
        core.snap_failures = itertools.cycle([None, RuntimeError("x"), RuntimeError("x")])
    knob = {"max_step": step, "backlash": backlash, "limits": [low, low + width]}
    scope = Microscope(core, settings(knobs={"z": {k: v for k, v in knob.items() if v is not None}}))
    result = FocusRun(scope, strategy, request(core), verify=VerifySettings(enabled=verify))()
    assert all(low <= command <= low + width for command in core.log)
    assert 0.0 <= result.confidence <= 1.0 or result.status is not Status.CONVERGED
    if bad_core in (0, 3) and result.status not in (Status.CONVERGED, Status.AT_LIMIT, Status.LOW_CONFIDENCE):
        assert core.z == pytest.approx(start, abs=1e-3)
