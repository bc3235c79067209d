"""z = base + correction + channel offset + slice offset, in every order of the axes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.errors import SettingsError
from mm_autofocus.ledger import Ledger
from mm_autofocus.request import Event

AXES = ("time", "position", "grid", "z", "channel")
OFFSETS = {"DAPI": 0.0, "FITC": 0.7}


def base(position: int) -> float:
    return 10.0 * position


def plan(order: tuple[str, ...], slices: list[float]) -> list[Event]:
    sizes = {"time": 2, "position": 2, "grid": 2, "z": len(slices), "channel": 2}
    events = []
    for indices in itertools.product(*(range(sizes[a]) for a in order)):
        axes: dict[str, Any] = dict(zip(order, indices, strict=True))
        channel = tuple(OFFSETS)[axes["channel"]]
        axes["channel"] = channel
        events.append(Event(axes=axes, z=base(axes["position"]) + slices[axes["z"]], channel=channel))
    return events


orders = st.permutations(AXES).map(tuple)
stacks = st.lists(st.floats(-20, 20), min_size=1, max_size=5, unique=True).map(sorted)


@given(orders, stacks, st.randoms(use_true_random=False), st.data())
def test_every_slice_and_channel_gets_its_places_correction(
    order: tuple[str, ...], slices: list[float], random: Any, data: Any
) -> None:
    events = plan(order, slices)
    ledger = Ledger("middle", OFFSETS)
    ledger.plan(events)
    middle = (slices[0] + slices[-1]) / 2
    truth: dict[Any, float] = {}
    kept = [event for event in events if random.random() < 0.8]  # skipped events must not matter
    for event in kept:
        if event.key not in truth:
            assert ledger.reference(event) == pytest.approx(base(event.axes["position"]) + middle)  # type: ignore[arg-type]
            truth[event.key] = data.draw(st.floats(-100, 100))
            ledger.record(event, truth[event.key])  # whichever slice and channel came first
        index = int(event.axes["z"])
        expected = truth[event.key] + (slices[index] - middle) + OFFSETS[event.channel or ""]
        assert ledger.position(event) == pytest.approx(expected, abs=1e-9)


@given(orders, stacks)
def test_without_results_the_plan_is_followed(order: tuple[str, ...], slices: list[float]) -> None:
    ledger = Ledger()
    events = plan(order, slices)
    ledger.plan(events)
    assert all(ledger.position(event) == event.z for event in events)


@pytest.mark.parametrize(
    ("where", "reference"), [("first", 1.0), ("middle", 3.0), ("last", 5.0), (0.25, 2.0), (0.0, 1.0), (1.0, 5.0)]
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_focal_plane_is_where_the_setting_says(where: Any, reference: float, reverse: bool) -> None:
    events = [Event(axes={"z": i}, z=z) for i, z in enumerate((1.0, 2.0, 5.0))]
    ledger = Ledger(where)
    ledger.plan(reversed(events) if reverse else events)
    assert ledger.reference(events[0]) == pytest.approx(reference)


def test_a_correction_is_carried_to_the_next_time_and_not_to_another_place() -> None:
    ledger = Ledger()
    here = [Event(axes={"time": t, "position": 0}, z=5.0) for t in range(3)]
    there = Event(axes={"time": 1, "position": 1}, z=5.0)
    ledger.plan([*here, there])
    ledger.record(here[0], 7.5)
    assert ledger.position(here[1]) == pytest.approx(7.5)
    assert not ledger.has(here[1])
    assert ledger.position(there) == 5.0
    ledger.record(here[1], 8.0)
    assert ledger.position(here[2]) == pytest.approx(8.0)
    assert ledger.position(here[0]) == pytest.approx(7.5)


def test_last_good_is_the_nearest_measured_place_and_respects_each_places_base() -> None:
    ledger = Ledger()
    places = [(0, 0), (9000, 10), (9500, 20)]
    a, b, c = (Event(axes={"position": i}, x=x, y=0.0, z=z) for i, (x, z) in enumerate(places))
    ledger.plan([a, b, c])
    assert ledger.last_good(c) is None
    ledger.record(a, 1.0)
    ledger.record(b, 12.0)
    assert ledger.last_good(c) == pytest.approx(22.0)  # b is nearest: its correction is +2
    ledger.record(b, 17.0, measured=False)
    assert ledger.last_good(c) == pytest.approx(21.0)


def test_a_plan_without_z_keeps_absolute_focal_planes() -> None:
    ledger = Ledger(channel_offsets={"FITC": 0.5})
    event = Event(axes={"position": 0})
    assert ledger.position(event) is None
    ledger.record(event, 42.0)
    assert ledger.position(event) == 42.0
    assert ledger.position(Event(axes={"position": 0}, channel="FITC")) == 42.5


def test_an_unplanned_stack_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"autofocus\.plan\(events\)"):
        Ledger().reference(Event(axes={"z": 0}, z=3.0))
    assert Ledger().reference(Event(z=3.0)) == 3.0


def test_nonsense_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be finite"):
        Ledger().plan([Event(z=float("nan"))])
    with pytest.raises(SettingsError, match="focal_plane"):
        Ledger(1.5)
    with pytest.raises(ValueError, match="cannot be recorded"):
        Ledger().record(Event(), float("nan"))
