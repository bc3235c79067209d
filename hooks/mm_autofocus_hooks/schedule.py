"""The schedule: decides at which events to focus, once for each place and time whatever the order of the axes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.request import Event, FocusRequest
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus

SECONDS_PER_MINUTE = 60.0


class Schedule:
    """Focus at every position, well, channel, time point or event, where the focus map is unsure, or never.

    An event counts as focused when its run is reported (``mmaf_focused``), failed ones too; an event that was
    cancelled before or during its run is asked for again. The waits of ``frames`` and ``minutes`` count at each place
    by itself, where a place is a position and grid tile, a well with ``every = "well"``, a channel at a position with
    ``"channel"``, and the whole acquisition with ``"time"``. When both are set, both must have passed.

    Parameters
    ----------
    settings
        Section ``[schedule]``; see `mm_autofocus.settings.ScheduleSettings`.
    clock
        Seconds that never run backwards. None: the autofocus's.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings.schedule
        self._given_clock = clock
        self._clock = clock or time.monotonic
        self._autofocus: Autofocus | None = None
        self._unsure_um = self._settings.unsure_um or (settings.microscope.depth_of_field_um or 1.0) / 4
        self._clear()

    def _clear(self) -> None:
        self._done: set[Hashable] = set()
        self._sure: Hashable = None
        """The place and time at which the map was last found to be sure."""
        self._last: dict[Hashable, float] = {}
        self._events: dict[Hashable, int] = {}

    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Forget which places are done."""
        self._clear()
        self._autofocus = autofocus
        self._clock = self._given_clock or autofocus.microscope.clock
        self._unsure_um = self._settings.unsure_um or autofocus.depth_of_field_um / 4

    @hookimpl(trylast=True)
    def mmaf_should_focus(self, event: Event) -> bool:
        """Answer yes or no for every event."""
        every = self._settings.every
        if every == "never" or (self._settings.channels and _channel(event) not in self._settings.channels):
            return False
        if every != "event" and self._occasion(event) in self._done:
            return False
        if self._must_wait(event):
            return False
        return every != "unsure" or self._is_unsure(event)

    @hookimpl
    def mmaf_focused(self, request: FocusRequest, result: FocusResult) -> None:
        """Mark the event's place and time as done."""
        if result.status is Status.CANCELLED:
            return
        if self._settings.every != "event":
            self._done.add(self._occasion(request.event))
        place = self._place(request.event)
        if self._settings.minutes:
            self._last[place] = self._clock()
        if self._settings.frames:
            self._events[place] = 0

    @hookimpl
    def mmaf_event(self, event: Event) -> None:
        """Count the events at each place since its last run."""
        if self._settings.frames:
            place = self._place(event)
            if place in self._events:
                self._events[place] += 1

    def _must_wait(self, event: Event) -> bool:
        minutes, frames = self._settings.minutes, self._settings.frames
        if not minutes and not frames:
            return False
        place = self._place(event)
        last = self._last.get(place)
        if last is not None and self._clock() - last < minutes * SECONDS_PER_MINUTE:
            return True
        return self._events.get(place, frames) < frames

    def _is_unsure(self, event: Event) -> bool:
        key = event.key
        if key == self._sure:  # one answer for all slices and channels of a place
            return False
        prior = self._autofocus.predict(event) if self._autofocus is not None else None
        if prior is not None and prior.sd <= self._unsure_um:
            self._sure = key
            return False
        return True

    def _place(self, event: Event) -> Hashable:
        every = self._settings.every
        if every == "time":
            return None
        key = event.key
        if every == "well" and (well := event.well) is not None:
            return well
        if every == "channel":
            return key.position, key.grid, _channel(event)
        return key.position, key.grid

    def _occasion(self, event: Event) -> Hashable:
        return event.axes.get("time", 0), self._place(event)


def _channel(event: Event) -> str | int | None:
    return event.channel if event.channel is not None else event.axes.get("channel")
