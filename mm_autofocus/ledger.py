"""The z bookkeeping: position = base + autofocus correction + channel offset + slice offset, keyed by place and time.

The nominal z of an event in the plan is base + slice offset. The *reference* is the z of the focal plane in the plan
(the middle of the stack unless set otherwise), taken from the whole plan and never from the first slice. A focus
result is stored as a correction of that reference, so it moves every slice and every channel of its place alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mm_autofocus.errors import SettingsError
from mm_autofocus.request import Event, Key

FocalPlane = Literal["first", "middle", "last"] | float
"""Where in the stack the focal plane lies: by name, or as a fraction of the stack from its lowest slice (0 to 1)."""

_FRACTIONS = {"first": 0.0, "middle": 0.5, "last": 1.0}


@dataclass(frozen=True, slots=True)
class FocusPoint:
    """One known focal plane: where (µm), when (s), how far (absolute µm), and whether it was measured."""

    event: Event
    z: float
    time: float
    measured: bool
    """True when a run converged there, False when a failure policy supplied the value."""


class Ledger:
    """Knows where every event belongs in z.

    Parameters
    ----------
    focal_plane
        Where in the planned stack the focal plane lies: "first", "middle" (default), "last", or a fraction 0 to 1
        of the stack counted from its first slice in plan order.
    channel_offsets
        Offset in µm by channel name, relative to the channel that the autofocus images in.
    """

    def __init__(self, focal_plane: FocalPlane = "middle", channel_offsets: Mapping[str, float] | None = None) -> None:
        fraction = _FRACTIONS[focal_plane] if isinstance(focal_plane, str) else float(focal_plane)
        if not 0.0 <= fraction <= 1.0:
            raise SettingsError(f"focal_plane is {focal_plane}; it must be first, middle, last or a fraction 0 to 1")
        self._fraction = fraction
        self._offsets = dict(channel_offsets or {})
        self._stacks: dict[Key, tuple[float, float, float, float]] = {}
        """Key -> lowest and highest z index, and the nominal z of those two slices."""
        self._references: dict[Key, float] = {}
        self._points: dict[Key, FocusPoint] = {}
        self._measured: dict[tuple[object, object], FocusPoint] = {}
        """(position, grid) -> what was measured there last, at whatever time."""

    # ------------------------------------------------------------------ the plan
    def plan(self, events: Iterable[Event]) -> None:
        """Learn the stacks of a plan, in any order of the axes.

        Slices are told apart by their z index, so relative stacks, positions with their own z and channels in any
        order give the same reference. Called again, it adds slices to a place that it knows; where a known slice is at
        another z now, the plan is a new one for that place, and what was known of it is forgotten.

        Raises
        ------
        SettingsError
            When a z is not finite.
        """
        for event in events:
            if event.z is None:
                continue
            if not math.isfinite(event.z):
                raise SettingsError(f"the plan has z = {event.z} at {dict(event.axes)}; every z must be finite")
            key = event.key
            index = event.axes.get("z", 0)
            order = float(index) if isinstance(index, int | float) else event.z
            first, last, low, high = self._stacks.get(key, (order, order, event.z, event.z))
            if (order == first and event.z != low) or (order == last and event.z != high):
                first, last, low, high = order, order, event.z, event.z
                self._forget(key)
            if order < first:
                first, low = order, event.z
            if order > last:
                last, high = order, event.z
            self._stacks[key] = first, last, low, high
            self._references[key] = low + self._fraction * (high - low)

    def _forget(self, key: Key) -> None:
        self._points.pop(key, None)
        place = key.position, key.grid
        if (measured := self._measured.get(place)) is not None and measured.event.key == key:
            del self._measured[place]

    def reference(self, event: Event) -> float | None:
        """Nominal z of the focal plane at this event's place and time, None when the plan sets no z there.

        Raises
        ------
        SettingsError
            When the event is a slice of a z-stack that was never planned: its focal plane cannot be known.
        """
        reference = self._references.get(event.key)
        if reference is not None or event.z is None:
            return reference
        if "z" in event.axes:
            raise SettingsError(
                f"event {dict(event.axes)} is one slice of a z-stack that the autofocus was never told of, so it "
                "cannot know which slice is the focal plane. Pass the events through autofocus.plan(events) first."
            )
        return event.z

    # ------------------------------------------------------------------ results
    def record(self, event: Event, z: float, *, time: float = 0.0, measured: bool = True) -> None:
        """Remember that the focal plane at this event's place and time is at ``z`` (absolute µm).

        Raises
        ------
        ValueError
            When ``z`` is not finite.
        """
        if not math.isfinite(z):
            raise ValueError(f"a focal plane at z = {z} cannot be recorded")
        key = event.key
        reference = self.reference(event)
        point = FocusPoint(event, z if reference is None else z - reference, time, measured)
        self._forget(key)
        self._points[key] = point
        if measured:
            self._measured[key.position, key.grid] = point

    def point(self, event: Event) -> FocusPoint | None:
        """What is known for this place: at this time, else as measured there last; ``z`` is the *correction*."""
        key = event.key
        point = self._points.get(key)
        return point if point is not None else self._measured.get((key.position, key.grid))

    def has(self, event: Event) -> bool:
        """True when this very place and time has a recorded focal plane."""
        return event.key in self._points

    def correction(self, event: Event) -> float | None:
        """Correction of the nominal z in µm (absolute focal z where the plan sets none), None when nothing is known."""
        point = self.point(event)
        return None if point is None else point.z

    def focal_z(self, event: Event) -> float | None:
        """Absolute z of the focal plane as recorded for this place, None when nothing is known."""
        correction = self.correction(event)
        if correction is None:
            return None
        reference = self.reference(event)
        return correction if reference is None else reference + correction

    def last_good(self, event: Event) -> float | None:
        """Absolute focal z carried here from the measured place that is nearest in XY (the latest among equals)."""
        best: tuple[float, float, FocusPoint] | None = None
        for point in self._measured.values():
            distance = _distance(event, point.event)
            if best is None or (distance, -point.time) <= best[:2]:
                best = (distance, -point.time, point)
        if best is None:
            return None
        reference = self.reference(event)
        there = self.reference(best[2].event)
        if there is None or reference is None:
            return best[2].z + (there or 0.0)
        return reference + best[2].z

    def points(self) -> tuple[FocusPoint, ...]:
        """Every recorded point, in the order of recording (``z`` is the correction)."""
        return tuple(self._points.values())

    # ------------------------------------------------------------------ where to acquire
    def position(self, event: Event) -> float | None:
        """Return base + correction + channel offset + slice offset: the z to acquire this event at.

        Parameters
        ----------
        event
            The event, with its nominal z (base + slice offset).

        Returns
        -------
        float or None
            None when the plan sets no z and nothing is known: leave the stage alone.
        """
        correction = self.correction(event)
        if event.z is None:
            return None if correction is None else correction + self.channel_offset(event.channel)
        return event.z + (correction or 0.0) + self.channel_offset(event.channel)

    def channel_offset(self, channel: str | None) -> float:
        """Offset of a channel in µm, 0 when none is set."""
        return self._offsets.get(channel, 0.0) if channel is not None else 0.0

    def clear(self, *, plan: bool = True) -> None:
        """Forget the results, and the plan too unless told otherwise: a new acquisition begins."""
        self._points.clear()
        self._measured.clear()
        if plan:
            self._stacks.clear()
            self._references.clear()


def _distance(a: Event, b: Event) -> float:
    if a.x is None or a.y is None or b.x is None or b.y is None:
        return 0.0 if a.key.position == b.key.position else 1.0
    return math.hypot(a.x - b.x, a.y - b.y)
