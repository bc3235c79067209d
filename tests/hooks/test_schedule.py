"""When to focus: once for each place and time, whatever the order of the axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.ledger import Ledger
from mm_autofocus.request import Event, FocusRequest, Limits, Prior
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus_hooks.schedule import Schedule

AXES = ("time", "position", "grid", "z", "channel")
SIZES = {"time": 2, "position": 4, "grid": 2, "z": 3, "channel": 2}
WELL_OF_POSITION = ("A1", "A1", "B2", "B2")


def events(order: Iterable[str], *, labels: bool = True, reverse: bool = False) -> Iterator[Event]:
    order = tuple(order)
    ranges = [range(SIZES[axis] - 1, -1, -1) if reverse else range(SIZES[axis]) for axis in order]
    for values in itertools.product(*ranges):
        axes: dict[str, Any] = dict(zip(order, values, strict=True))
        label = f"{WELL_OF_POSITION[axes['position']]}_{axes['position']:04d}" if labels else None
        yield Event(axes=axes, label=label, channel=("DAPI", "GFP")[axes["channel"]])


def make(clock: Any = lambda: 0.0, predict: Any = lambda event: None, **schedule: Any) -> Schedule:
    made = Schedule(Settings.parse({"schedule": schedule}), clock=clock)
    made.mmaf_start(autofocus=SimpleNamespace(depth_of_field_um=2.0, predict=predict))
    return made


def report(schedule: Schedule, event: Event, status: Status = Status.CONVERGED) -> None:
    request = FocusRequest(event, {"z": 0.0}, {"z": Limits(-1, 1)})
    schedule.mmaf_focused(request=request, result=FocusResult(status=status, strategy="s", start={}, end={}))


def acquire(schedule: Schedule, plan: Iterable[Event]) -> list[Event]:
    focused = []
    for event in plan:
        if schedule.mmaf_should_focus(event=event):
            focused.append(event)
            report(schedule, event)
        schedule.mmaf_event(event=event)
    return focused


@given(order=st.permutations(AXES), reverse=st.booleans())
def test_once_for_each_time_position_and_tile(order: list[str], reverse: bool) -> None:
    focused = acquire(make(every="position"), events(order, reverse=reverse))
    assert len(focused) == len({event.key for event in focused}) == 2 * 4 * 2


@pytest.mark.parametrize("order", list(itertools.permutations(("time", "position", "channel"))))
@pytest.mark.parametrize(
    ("every", "labels", "runs"),
    [
        ("position", True, 16),
        ("well", True, 4),
        ("well", False, 16),  # no well is known: position by position
        ("channel", True, 32),
        ("time", True, 2),
        ("event", True, 96),
        ("unsure", True, 16),  # the map knows nothing
        ("never", True, 0),
    ],
)
def test_number_of_runs(every: str, labels: bool, runs: int, order: tuple[str, ...]) -> None:
    assert len(acquire(make(every=every), events((*order, "grid", "z"), labels=labels))) == runs


def test_the_first_event_of_a_place_focuses() -> None:
    plan = list(events(AXES))
    schedule = make()
    assert schedule.mmaf_should_focus(event=plan[0])


@pytest.mark.parametrize("name", ["DAPI", "GFP"])
def test_only_in_the_chosen_channels(name: str) -> None:
    focused = acquire(make(channels=(name,)), events(AXES))
    assert len(focused) == 16
    assert {event.channel for event in focused} == {name}


def test_channel_by_axis_when_the_event_names_none() -> None:
    schedule = make(channels=("GFP",))
    assert not schedule.mmaf_should_focus(event=Event(axes={"channel": "DAPI"}))
    assert schedule.mmaf_should_focus(event=Event(axes={"channel": "GFP"}))


@pytest.mark.parametrize(("status", "again"), [(Status.CANCELLED, True), (Status.NO_SIGNAL, False)])
def test_a_cancelled_run_is_not_done_and_a_failed_one_is(status: Status, again: bool) -> None:
    schedule, event = make(), Event(axes={"position": 1})
    report(schedule, event, status)
    assert schedule.mmaf_should_focus(event=event) is again


def test_asking_does_not_count_as_focusing() -> None:
    schedule, event = make(frames=5), Event(axes={"position": 1})
    assert all(schedule.mmaf_should_focus(event=event) for _ in range(3))


def test_start_forgets_the_acquisition_before() -> None:
    schedule, plan = make(), list(events(AXES))
    acquire(schedule, plan)
    schedule.mmaf_start(autofocus=SimpleNamespace(depth_of_field_um=2.0, predict=lambda event: None))
    assert schedule.mmaf_should_focus(event=plan[0])


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_every_n_frames_at_each_place(frames: int) -> None:
    plan = [Event(axes={"time": t, "position": p}) for t in range(20) for p in range(2)]
    focused = acquire(make(every="event", frames=frames), plan)
    for position in range(2):
        times = [event.axes["time"] for event in focused if event.axes["position"] == position]
        assert times == list(range(0, 20, frames))


@pytest.mark.parametrize(
    ("minutes", "frames", "times"), [(10, 0, [0, 2, 4]), (4, 0, [0, 1, 2, 3, 4]), (4, 3, [0, 3]), (11, 1, [0, 3])]
)
def test_minutes_and_frames_must_both_have_passed(minutes: float, frames: int, times: list[int]) -> None:
    now = [0.0]
    schedule = make(clock=lambda: now[0], minutes=minutes, frames=frames)
    focused = []
    for t in range(5):
        now[0] = t * 300.0
        focused += acquire(schedule, [Event(axes={"time": t, "position": 0})])
    assert [event.axes["time"] for event in focused] == times


@pytest.mark.parametrize(
    ("sd", "unsure_um", "focus"),
    [(0.49, None, False), (0.51, None, True), (0.9, 1.0, False), (1.1, 1.0, True), (None, 1.0, True)],
)
def test_unsure_asks_the_map(sd: float | None, unsure_um: float | None, focus: bool) -> None:
    chosen = {} if unsure_um is None else {"unsure_um": unsure_um}
    prior = None if sd is None else Prior(3.0, sd)
    schedule = make(predict=lambda event: prior, every="unsure", **chosen)
    assert schedule.mmaf_should_focus(event=Event()) is focus


def test_unsure_asks_once_for_a_place_that_is_sure_and_never_after_a_run() -> None:
    asked = []
    schedule = make(predict=lambda event: asked.append(event) or Prior(0.0, 0.1), every="unsure")
    acquire(schedule, [Event(axes={"position": 0, "z": z}) for z in range(5)])
    assert len(asked) == 1
    failing = make(predict=lambda event: Prior(0.0, 9.0), every="unsure")
    assert len(acquire(failing, [Event(axes={"position": 0, "z": z}) for z in range(5)])) == 1


def test_the_schedule_is_asked_after_the_plugins_of_the_user() -> None:
    import pluggy

    from mm_autofocus import hookspecs

    class Never:
        @hookspecs.hookimpl
        def mmaf_should_focus(self) -> bool:
            return False

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in (Never(), make()):
        manager.register(plugin)
    manager.check_pending()
    assert manager.hook.mmaf_should_focus(event=Event(), ledger=Ledger()) is False
