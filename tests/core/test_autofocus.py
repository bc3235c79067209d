"""The orchestrator: when it focuses, what it does about failures, and where it places every event."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import useq

from mm_autofocus import (
    AcquisitionAborted,
    Action,
    Autofocus,
    CancelledError,
    Event,
    FocusResult,
    Look,
    Prior,
    SettingsError,
    Status,
    StrategySettings,
    Verdict,
    hookimpl,
)
from mm_autofocus.recovery import MAX_ACTIONS
from support import FakeCore, contrast, settings, state


class Grid:
    """Nine looks over the window; at_limit at its ends, no_signal when all look alike."""

    name = "grid"

    class Settings(StrategySettings):
        range_um: float = 20.0
        confidence: float = 0.9

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def focus(self, request: Any) -> Any:
        window = request.search_window(self.settings.range_um)
        planes = np.linspace(window.low, window.high, 9).tolist()
        scores: list[float] = []
        for z in planes:
            frame = yield Look({"z": z})
            scores.append(contrast(frame))
        best = int(np.argmax(scores))
        if max(scores) <= 1.01 * min(scores):
            return Verdict({}, 0.0, Status.NO_SIGNAL, "flat")
        status = Status.AT_LIMIT if best in (0, len(planes) - 1) else Status.CONVERGED
        return Verdict({"z": planes[best]}, self.settings.confidence, status)

    def score(self, frame: Any) -> float:
        return contrast(frame)


class Script:
    """A plugin that brings `Grid`, notes what it observes, and answers the questions it is given answers for."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.answers = answers
        self.calls: list[str] = []
        self.observed: list[FocusResult] = []
        self.asked = 0

    @hookimpl
    def mmaf_strategies(self) -> Any:
        return (Grid,)

    @hookimpl
    def mmaf_start(self) -> None:
        self.calls.append("start")

    @hookimpl
    def mmaf_finish(self, error: Any) -> None:
        self.calls.append(f"finish {type(error).__name__}")

    @hookimpl
    def mmaf_focused(self, result: Any) -> None:
        self.observed.append(result)

    @hookimpl
    def mmaf_predict(self, event: Any) -> Any:
        return self.answers["predict"](event) if "predict" in self.answers else None

    @hookimpl
    def mmaf_focus(self, request: Any, run: Any) -> Any:
        return self.answers["focus"](request, run) if "focus" in self.answers else None

    @hookimpl
    def mmaf_focus_failed(self, request: Any, result: Any) -> Any:
        self.asked += 1
        return self.answers["failed"](request, result) if "failed" in self.answers else None

    @hookimpl
    def mmaf_frame(self, frame: Any) -> None:
        if "frame" in self.answers:
            self.answers["frame"](frame)


def make(core: FakeCore, script: Script | None = None, **changes: Any) -> tuple[Autofocus, Script]:
    script = script or Script()
    arguments = {name: changes.pop(name) for name in ("clock",) if name in changes}
    changes = {"map": {"enabled": False}, **changes}
    return Autofocus(core, settings(), strategy="grid", plugins=[script], **arguments, **changes), script


def flat(core: FakeCore) -> FakeCore:
    core.focus = 1e9
    return core


def stack(position: int = 0, base: float = 0.0, time: int = 0, channel: str | None = None) -> list[Event]:
    axes = {"time": time, "position": position}
    return [
        Event(axes={**axes, "z": i}, x=1000.0 * position, y=0.0, z=base + i - 1, channel=channel) for i in range(3)
    ]  # fmt: skip


# ---------------------------------------------------------------- placing
def test_every_slice_of_a_place_goes_with_its_one_focus_run() -> None:
    core = FakeCore(focus=7.5)
    autofocus, script = make(core)
    events = autofocus.plan(stack())
    placements = [autofocus.at(event) for event in events]
    assert [p.z for p in placements] == pytest.approx([6.5, 7.5, 8.5])
    assert [p.result is not None for p in placements] == [True, False, False]
    assert len(script.observed) == len(autofocus.results) == 1
    assert script.calls == ["start"]


def test_the_correction_is_carried_to_the_next_time_point() -> None:
    core, now = FakeCore(focus=5.0), [0.0]
    autofocus, _ = make(core, clock=lambda: now[0], schedule={"minutes": 10})
    plan = autofocus.plan([*stack(time=0), *stack(time=1), *stack(time=2)])
    first = [autofocus.at(event).z for event in plan[:3]]
    core.focus = 8.0
    now[0] = 300.0
    assert [autofocus.at(event).z for event in plan[3:6]] == first == pytest.approx([4, 5, 6])
    now[0] = 900.0
    assert [autofocus.at(event).z for event in plan[6:]] == pytest.approx([6.5, 7.5, 8.5])  # from 5: the plane at +2.5
    assert [result.start["z"] for result in autofocus.results] == [0.0, 5.0]


def test_a_prediction_is_noted_once_a_place_so_that_its_slices_agree() -> None:
    answers = iter(range(100))
    autofocus, _ = make(
        FakeCore(), Script(predict=lambda event: Prior(10.0 + next(answers), 1.0)), schedule={"every": "never"},
        stack={"channel_offsets": {"FITC": 0.5}},
    )  # fmt: skip
    plan = autofocus.plan([*stack(0), *stack(0, channel="FITC"), *stack(1)])
    z = [autofocus.at(event).z for event in plan]
    assert z[:6] == pytest.approx([z[0], z[0] + 1, z[0] + 2, z[0] + 0.5, z[0] + 1.5, z[0] + 2.5])
    assert [b - a for a, b in itertools.pairwise(z[6:])] == pytest.approx([1, 1])  # type: ignore[operator]
    assert z[6] != z[0]
    assert not autofocus.ledger.points()[0].measured


def test_a_place_that_leaves_the_limits_is_taken_at_the_limit_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = FakeCore(focus=5.0, low=-6, high=6)
    autofocus, _ = make(core, strategies={"grid": {"range_um": 12}})
    plan = autofocus.plan([Event(axes={"position": 0, "z": i}, z=-3.0 + 1.5 * i) for i in range(5)])
    with caplog.at_level(logging.WARNING):
        z = [autofocus.at(event).z for event in plan]
    assert z == [1.5, 3.0, 4.5, 6.0, 6.0]
    assert all(-6 <= command <= 6 for command in core.log)
    warnings = [r.message for r in caplog.records if "outside the limits [-6, 6]; acquired at the limit" in r.message]
    assert len(warnings) == 1
    assert "z = 7.5" in warnings[0]


def test_an_event_without_z_gets_the_absolute_focal_plane() -> None:
    autofocus, _ = make(FakeCore(focus=5.0))
    event = Event(axes={"position": 0})
    assert autofocus.at(event).z == pytest.approx(5.0)
    assert autofocus.at(event).z == pytest.approx(5.0)


def test_without_a_result_the_plan_is_followed() -> None:
    autofocus, _ = make(FakeCore(), schedule={"every": "never"})
    assert [autofocus.at(event).z for event in autofocus.plan(stack(base=3.0))] == [2.0, 3.0, 4.0]


# ---------------------------------------------------------------- the failure policy
def test_widen_then_converge_and_the_costs_add_up() -> None:
    core = FakeCore(focus=22.5)
    autofocus, script = make(core)
    result = autofocus.focus(Event(axes={"position": 0}, z=0.0)).result
    assert result is not None
    assert (result.status, result.action, result.end["z"]) == (Status.CONVERGED, ("widen",), 22.5)
    assert (result.images, len(result.samples)) == (core.snaps, core.snaps)
    assert result.dose == core.snaps * 10.0
    assert 18 <= result.moves <= autofocus.microscope.moves
    assert autofocus.ledger.points()[0].measured
    assert script.asked == 1


def test_use_map_goes_where_the_map_says() -> None:
    core = flat(FakeCore())
    autofocus, script = make(core, Script(predict=lambda event: Prior(12.0, 1.0)), failure={"no_signal": "use_map"})
    plan = autofocus.plan(stack())
    placement = autofocus.at(plan[0])
    assert placement.result is not None
    assert (placement.z, placement.result.action, placement.result.final) == (11.0, ("use_map",), 12.0)
    assert (placement.result.status, core.z) == (Status.NO_SIGNAL, 12.0)
    assert autofocus.at(plan[2]).z == 13.0
    assert not autofocus.ledger.points()[0].measured
    assert script.observed == [placement.result]  # observers see what the policy did


def test_use_last_good_carries_the_nearest_correction_to_this_places_base() -> None:
    core = FakeCore(focus=7.5)
    autofocus, _ = make(core, failure={"no_signal": ["use_map", "use_last_good"]})
    plan = autofocus.plan([*stack(0), *stack(1, base=20.0)])
    autofocus.at(plan[0])
    flat(core)
    placement = autofocus.at(plan[4])
    assert placement.result is not None
    assert (placement.z, placement.result.action) == (27.5, ("use_last_good",))


def test_with_nothing_known_it_stays_where_it_started() -> None:
    core = flat(FakeCore())
    autofocus, _ = make(core, failure={"no_signal": ["use_map", "use_last_good"]})
    placement = autofocus.at(autofocus.plan(stack(base=4.0))[0])
    assert placement.result is not None
    assert (placement.z, core.z, placement.result.action) == (3.0, 4.0, ("stay",))


def test_skip_marks_every_event_of_the_place_and_no_other() -> None:
    core = flat(FakeCore())
    autofocus, _ = make(core, failure={"no_signal": "skip"})
    plan = autofocus.plan([*stack(0), *stack(1)])
    assert [autofocus.at(event).skip for event in plan[:3]] == [True] * 3
    core.focus = 3.0
    assert [autofocus.at(event).skip for event in plan[3:]] == [False] * 3


def test_accept_takes_the_result_as_it_is() -> None:
    autofocus, _ = make(
        FakeCore(focus=5.0), strategies={"grid": {"confidence": 0.3}}, failure={"low_confidence": "accept"}
    )
    result = autofocus.focus(Event(axes={"position": 0}, z=0.0)).result
    assert result is not None
    assert (result.status, result.action, result.end["z"]) == (Status.LOW_CONFIDENCE, ("accept",), 5.0)
    assert "0.30 is below min_confidence 0.5" in result.reason
    assert not autofocus.ledger.points()[0].measured  # used, but never offered to others as a good focus


def test_abort_ends_the_acquisition_with_everything_put_back_and_told() -> None:
    core = flat(FakeCore())
    autofocus, script = make(core, failure={"no_signal": "abort"})
    before = state(core)
    with pytest.raises(AcquisitionAborted, match=r"ended with no_signal: flat .*\[failure\]"):
        autofocus.at(Event(axes={"position": 0}, label="B2", z=0.0))
    assert state(core) == before
    assert [r.action for r in script.observed] == [("abort",)]
    assert autofocus.ledger.points() == ()


def wait_and(autofocus: Autofocus, act: Callable[[], None]) -> threading.Thread:
    def work() -> None:
        assert autofocus.paused.wait(20)
        act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_pause_waits_until_another_thread_resumes() -> None:
    core = flat(FakeCore())
    autofocus, _ = make(core, failure={"no_signal": ["pause", "stay"]})

    def mend() -> None:
        core.focus = 5.0
        autofocus.resume.set()

    thread = wait_and(autofocus, mend)
    result = autofocus.focus(Event(axes={"position": 0}, z=0.0)).result
    thread.join(20)
    assert result is not None
    assert (result.status, result.action, result.end["z"]) == (Status.CONVERGED, ("pause",), 5.0)
    assert not autofocus.paused.is_set()


def test_cancel_ends_a_pause() -> None:
    core = flat(FakeCore())
    autofocus, script = make(core, failure={"no_signal": "pause"})
    before = state(core)
    thread = wait_and(autofocus, autofocus.cancel)
    with pytest.raises(CancelledError):
        autofocus.focus(Event(axes={"position": 0}, z=0.0))
    thread.join(20)
    assert state(core) == before
    assert [r.status for r in script.observed] == [Status.NO_SIGNAL]


@pytest.mark.parametrize("chain", [["widen", "abort"], ["widen", "stay"]], ids=["abort", "abort_after"])
def test_what_was_tried_before_an_abort_is_recorded_and_counted(chain: list[str]) -> None:
    core = flat(FakeCore())
    autofocus, script = make(core, failure={"no_signal": chain, "abort_after": 1})
    with pytest.raises(AcquisitionAborted):
        autofocus.focus(Event(axes={"position": 0}, z=0.0))
    assert [r.action for r in script.observed] == [("widen", "abort")]
    assert script.observed[0].images == core.snaps


@pytest.mark.parametrize(
    "answer",
    [Action("use_map", z=1e6), Action("use_last_good", z=math.nan), Action("use_map"), Action("widen", factor=2.0)],
    ids=["outside", "nan", "nowhere", "widen"],
)
def test_a_policy_that_insists_is_ended_and_never_leaves_the_limits(answer: Action) -> None:
    core = flat(FakeCore())
    autofocus, _ = make(core, Script(failed=lambda request, result: answer))
    result = autofocus.focus(Event(axes={"position": 0}, z=4.0)).result
    assert result is not None
    assert result.action == (answer.name,) * MAX_ACTIONS + ("stay",)
    assert core.z == 4.0
    assert all(core.low <= command <= core.high for command in core.log)


def test_failures_in_a_row_end_the_acquisition() -> None:
    autofocus, _ = make(flat(FakeCore()), failure={"no_signal": "stay", "abort_after": 3})
    for position in range(2):
        autofocus.at(Event(axes={"position": position}, z=0.0))
    with pytest.raises(AcquisitionAborted):
        autofocus.at(Event(axes={"position": 2}, z=0.0))


def test_a_stage_that_refuses_the_start_is_a_failed_run_and_the_policy_goes_on() -> None:
    core = FakeCore()
    core.set_failure = RuntimeError("stage error 42")
    autofocus, _ = make(core)
    placement = autofocus.at(Event(axes={"position": 0}, z=5.0))
    assert placement.result is not None
    assert (placement.result.status, placement.result.action) == (Status.FAILED, ("stay",))
    assert "stage error 42" in placement.result.reason
    assert placement.z == 5.0


def test_a_stage_outside_its_limits_is_not_moved_at_all() -> None:
    core = FakeCore()
    autofocus, _ = make(core)
    core.z = 300.0
    with pytest.raises(AcquisitionAborted, match=r"stands at 300, outside its limits \[-100, 100\]"):
        autofocus.focus()
    assert core.log == []


# ---------------------------------------------------------------- confidence
@pytest.mark.parametrize(("confidence", "status"), [(0.79, Status.LOW_CONFIDENCE), (0.8, Status.CONVERGED)])
def test_the_confidence_threshold(confidence: float, status: Status) -> None:
    autofocus, _ = make(
        FakeCore(focus=5.0), min_confidence=0.8, strategies={"grid": {"confidence": confidence}},
        failure={"low_confidence": "stay"},
    )  # fmt: skip
    result = autofocus.focus().result
    assert result is not None
    assert result.status is status


# ---------------------------------------------------------------- a plan
@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "holds no events"),
        (iter(()), "holds no events"),
        ([[]], "holds no events"),
        (useq.MDASequence(), "holds no events"),
        ([{"axes": {"position": 0}, "z": 101.0}], r"goes to z = 101 at .*limits \[-100, 100\].*nothing has moved"),
        ([{"axes": {"position": 0}, "z": math.nan}], "goes to z = nan"),
        ([[{"axes": {"position": 0}, "z": -101.0}]], "goes to z = -101"),
        (useq.MDASequence(stage_positions=[(0, 0, 99)], z_plan={"range": 4, "step": 2}), "goes to z = 101"),
        ([3], "a plan holds int"),
        ([{"axes": {"position": 0}, "x": math.inf, "y": 0.0}], "goes to x = inf"),
        ([{"axes": {"n": i}, "x": 10.0 * i, "y": 0.0, "z": 0.0} for i in range(2)], "number them along .*'position'"),
    ],
)
def test_a_plan_that_cannot_be_acquired_is_refused(events: Any, message: str) -> None:
    core = FakeCore()
    autofocus, _ = make(core)
    with pytest.raises(SettingsError, match=message):
        autofocus.plan(events)
    assert (core.log, core.snaps) == ([], 0)


def test_a_plan_comes_back_as_it_was() -> None:
    autofocus, _ = make(FakeCore())
    sequence = useq.MDASequence(stage_positions=[(0, 0, 0)])
    assert autofocus.plan(sequence) is sequence
    events = stack()
    assert autofocus.plan(events) is events
    assert autofocus.plan(event for event in events) == events
    one = {"axes": {"position": 0}, "z": 1.0}
    assert autofocus.plan(one) == [one]


def test_an_unplanned_slice_is_refused_before_anything_moves() -> None:
    core = FakeCore()
    autofocus, _ = make(core)
    with pytest.raises(SettingsError, match=r"autofocus\.plan\(events\)"):
        autofocus.at(stack()[0])
    assert (core.log, core.snaps) == ([], 0)


# ---------------------------------------------------------------- cancel
def test_cancel_from_another_thread_puts_everything_back() -> None:
    core = FakeCore(focus=5.0)
    autofocus, script = make(core)

    def cancel(frame: Any) -> None:
        if core.snaps == 3:
            thread = threading.Thread(target=autofocus.cancel)
            thread.start()
            thread.join(20)

    script.answers["frame"] = cancel
    before = state(core)
    with pytest.raises(CancelledError):
        autofocus.at(Event(axes={"position": 0}, z=0.0))
    assert state(core) == before
    assert core.snaps == 3
    assert [(r.status, r.action) for r in autofocus.results] == [(Status.CANCELLED, ("abort",))]
    autofocus.finish()
    script.answers.clear()
    assert autofocus.at(Event(axes={"position": 1}, z=0.0)).z == 5.0  # the next acquisition is not cancelled


def test_a_cancel_between_events_ends_the_acquisition_at_the_next() -> None:
    core = FakeCore(focus=5.0)
    autofocus, _ = make(core)
    plan = autofocus.plan(stack())
    autofocus.at(plan[0])
    snaps = core.snaps
    autofocus.cancel()
    with pytest.raises(CancelledError):
        autofocus.at(plan[1])
    assert core.snaps == snaps


def test_a_cancel_in_a_script_ends_one_run_only() -> None:
    core = FakeCore(focus=5.0)
    autofocus, script = make(core, Script(frame=lambda frame: autofocus.cancel()))
    with pytest.raises(CancelledError):
        autofocus.focus()
    assert core.z == 0.0
    script.answers.clear()
    assert autofocus.focus().z == 5.0


# ---------------------------------------------------------------- plugins that misbehave
def claims(**values: Any) -> Script:
    def focus(request: Any, run: Any) -> FocusResult:
        start = dict(request.start)
        return FocusResult(**{
            "status": "converged", "strategy": "liar", "start": start, "end": start, "confidence": 1.0, **values,
        })  # fmt: skip

    return Script(focus=focus)


def test_a_plugin_that_answers_with_nonsense_ends_the_acquisition() -> None:
    autofocus, _ = make(FakeCore(), Script(focus=lambda request, run: "in focus"))
    with pytest.raises(AcquisitionAborted, match="answered with str; a plugin must return a FocusResult"):
        autofocus.focus()


@pytest.mark.parametrize("end", [{"z": 1e6}, {"z": math.nan}, {}], ids=["outside", "nan", "nothing"])
def test_a_plugin_that_claims_an_impossible_end_has_not_converged(end: dict[str, float]) -> None:
    core = FakeCore()
    autofocus, _ = make(core, claims(end=end))
    result = autofocus.focus(Event(axes={"position": 0}, z=0.0)).result
    assert all(core.low <= command <= core.high for command in core.log)
    assert result is not None
    assert not result.ok


def test_a_plugin_that_raises_leaves_the_stage_at_the_start() -> None:
    def focus(request: Any, run: Any) -> None:
        raise KeyError("boom")

    core = FakeCore()
    autofocus, _ = make(core, Script(focus=focus))
    with pytest.raises(KeyError):
        autofocus.focus(Event(axes={"position": 0}, z=6.0))
    assert core.z == 6.0


def test_an_observer_of_frames_that_raises_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(frame: Any) -> None:
        raise OSError("disk full")

    autofocus, _ = make(FakeCore(focus=5.0), Script(frame=fail))
    assert autofocus.focus().z == 5.0
    assert "disk full" in caplog.text


class Answerless:
    """Observes, and brings nothing."""

    def __init__(self) -> None:
        self.observed: list[FocusResult] = []

    @hookimpl
    def mmaf_focused(self, result: Any) -> None:
        self.observed.append(result)


def test_an_observer_of_results_that_raises_costs_nothing() -> None:
    class Fails:
        @hookimpl
        def mmaf_focused(self) -> None:
            raise OSError("disk full")

    before, after = Script(), Answerless()
    plugins = [before, Fails(), after]
    autofocus = Autofocus(FakeCore(focus=5.0), settings(), strategy="grid", plugins=plugins)
    assert autofocus.at(Event(axes={"position": 0}, z=0.0)).z == 5.0
    assert len(before.observed) == len(after.observed) == 1


def test_a_prediction_that_is_no_number_is_not_followed() -> None:
    autofocus, _ = make(FakeCore(), Script(predict=lambda event: Prior(math.nan, 1.0)), schedule={"every": "never"})
    assert autofocus.at(Event(axes={"position": 0}, z=3.0)).z == 3.0


# ---------------------------------------------------------------- a script
def test_a_script_focuses_where_the_stage_stands() -> None:
    core = FakeCore(focus=40.0)
    autofocus, _ = make(core, Script(predict=lambda event: None))
    for here in (38.75, 41.25, 33.0):
        core.z = here
        placement = autofocus.focus()
        assert placement.result is not None
        assert placement.result.start == {"z": here}
        assert placement.z == core.z == pytest.approx(40.0, abs=1.25)


def test_a_script_is_not_taken_elsewhere_when_its_focus_fails() -> None:
    core = flat(FakeCore())
    core.z = 9.0
    autofocus, _ = make(core, Script(predict=lambda event: Prior(12.0, 1.0)), failure={"no_signal": "use_map"})
    placement = autofocus.focus()
    assert placement.result is not None
    assert (placement.result.status, placement.result.action[-1], core.z) == (Status.NO_SIGNAL, "stay", 9.0)


def test_a_script_in_xy_names_the_place() -> None:
    core = FakeCore(focus=5.0)
    core.getXYStageDevice = lambda: "XY"  # type: ignore[method-assign]
    core.getXPosition, core.getYPosition = lambda stage: 100.4, lambda stage: -7.0  # type: ignore[attr-defined]
    autofocus, _ = make(core)
    result = autofocus.focus().result
    assert result is not None
    assert (result.axes, result.x, result.y) == ({"position": "x 100 y -7"}, 100.4, -7.0)


def test_start_finish_and_reset() -> None:
    autofocus, script = make(FakeCore(focus=5.0))
    autofocus.finish()  # nothing has begun
    autofocus.start()
    autofocus.start()
    autofocus.at(Event(axes={"position": 0}, z=0.0))
    autofocus.finish(ValueError("disk"))
    assert script.calls == ["start", "finish ValueError"]
    assert isinstance(autofocus.ended_by, ValueError)
    autofocus.reset()
    assert (autofocus.results, autofocus.ledger.points()) == ([], ())
    autofocus.at(Event(axes={"position": 0}, z=0.0))
    autofocus.finish()
    assert len(autofocus.results) == 1
    autofocus.start()  # the results are the last acquisition's until the next begins
    assert (autofocus.ended_by, autofocus.results, autofocus.ledger.points()) == (None, [], ())


# ---------------------------------------------------------------- settings and cores
def test_a_range_beyond_the_limits_is_refused_before_anything_moves() -> None:
    core = FakeCore(low=-10, high=10)
    autofocus, _ = make(core, strategies={"grid": {"range_um": 21}})
    with pytest.raises(SettingsError, match=r"range_um = 21 is wider than the limits of knob 'z', \[-10, 10\]"):
        autofocus.start()
    assert core.log == []


def test_the_focus_drive_must_be_the_knob_z() -> None:
    autofocus, _ = make(FakeCore(), knobs={"z": {"device": "Camera", "limits": [-10, 10]}})
    with pytest.raises(SettingsError, match=r"focus drive 'Z', but \[knobs\.z\] focuses with 'Camera'"):
        autofocus.check_focus_drive()
    make(FakeCore())[0].check_focus_drive()


def test_depth_of_field_is_asked_for_at_the_start() -> None:
    with pytest.raises(SettingsError, match="needs depth_of_field_um, or na"):
        Autofocus(FakeCore()).start()


def test_settings_can_be_changed_in_the_call() -> None:
    autofocus = Autofocus(FakeCore(), settings(seed=3), strategy=("sweep", "full-stack"), schedule={"every": "well"})
    assert autofocus.settings.strategy == ("sweep", "full-stack")
    assert (autofocus.settings.seed, autofocus.settings.schedule.every) == (3, "well")
    assert list(autofocus.strategies) == ["sweep", "full-stack"]
    with pytest.raises(SettingsError, match='unknown key "shedule"; did you mean "schedule"'):
        Autofocus(FakeCore(), shedule={})


def test_the_running_core_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    core = FakeCore()
    monkeypatch.setitem(sys.modules, "mmpycorex.launcher", SimpleNamespace(_PYMMCORES=[core, object()]))
    assert Autofocus(settings=settings()).microscope.core.raw is core


def test_without_a_core_it_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmpycorex.launcher", SimpleNamespace(_PYMMCORES=[]))
    empty = SimpleNamespace(instance=lambda: SimpleNamespace(getLoadedDevices=lambda: ("Core",)))
    monkeypatch.setitem(sys.modules, "pymmcore_plus", SimpleNamespace(CMMCorePlus=empty))
    with pytest.raises(SettingsError, match=r"pass one: Autofocus\(core\)"):
        _ = Autofocus(settings=settings()).microscope


def test_a_strategys_camera_that_is_not_loaded_is_named_before_anything_moves() -> None:
    core = FakeCore()
    autofocus = Autofocus(core, strategy="laser", microscope={"depth_of_field_um": 2.0})
    with pytest.raises(SettingsError, match=r"\[strategies.laser\] camera = 'LaserCamera' is not loaded"):
        autofocus.focus()
    assert core.log == []
