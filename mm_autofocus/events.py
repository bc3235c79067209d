"""Reads the events of pycro-manager and of useq-schema into our own, without importing either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mm_autofocus.errors import SettingsError
from mm_autofocus.request import Event

_USEQ_AXES = {"t": "time", "p": "position", "g": "grid", "c": "channel", "z": "z"}


def from_pycromanager(event: Mapping[str, Any]) -> Event:
    """Read one pycro-manager event (a dict with ``axes``, ``x``, ``y``, ``z``, ``config_group`` ...)."""
    axes: Mapping[str, Any] = event.get("axes") or {}
    position = axes.get("position")
    group = event.get("config_group")
    channel = group[1] if group else axes.get("channel")
    get = event.get
    return Event(
        axes,
        position if isinstance(position, str) else None,
        get("x"),
        get("y"),
        get("z"),
        channel if isinstance(channel, str) else None,
        get("exposure"),
    )


def from_useq(event: Any) -> Event:
    """Read one ``useq.MDAEvent``; the channel's own z offset is taken out of z, it belongs to the channel."""
    axes = {_USEQ_AXES.get(axis, axis): index for axis, index in event.index.items()}
    z = event.z_pos
    return Event(
        axes,
        event.pos_name,
        event.x_pos,
        event.y_pos,
        None if z is None else float(z) - useq_channel_offset(event),
        event.channel.config if event.channel is not None else None,
        event.exposure,
    )


def useq_channel_offset(event: Any) -> float:
    """Return the ``z_offset`` in µm that useq added to this event's z for its channel.

    useq adds it only where there is a z plan; a position's own sub-sequence may have its own channels and z plan.
    """
    sequence, channel = event.sequence, event.channel
    if sequence is None or channel is None or event.z_pos is None:
        return 0.0
    index = event.index.get("p")
    positions = sequence.stage_positions
    position = positions[index] if index is not None and index < len(positions) else None
    own = getattr(position, "sequence", None)
    if (own.z_plan if own is not None and own.z_plan is not None else sequence.z_plan) is None:
        return 0.0
    channels = own.channels if own is not None and own.channels else sequence.channels
    return next(
        (float(c.z_offset or 0.0) for c in channels if (c.group, c.config) == (channel.group, channel.config)), 0.0
    )


def read(event: Any) -> Event:
    """Read one event of any kind.

    Raises
    ------
    SettingsError
        When it is none that we know.
    """
    if isinstance(event, Event):
        return event
    if isinstance(event, Mapping):
        if not isinstance(event.get("axes", {}), Mapping):
            raise SettingsError(f'an event has "axes": {event["axes"]!r}; it must be like {{"position": 0, "z": 1}}')
        return from_pycromanager(event)
    if hasattr(event, "index") and hasattr(event, "z_pos"):
        return from_useq(event)
    raise SettingsError(
        f"a plan holds {type(event).__name__}; it must hold pycro-manager events (dicts) or useq.MDAEvent"
    )


def read_plan(plan: Iterable[Any]) -> list[Event]:
    """Read a whole plan, bursts (lists of events) included.

    Raises
    ------
    SettingsError
        When the plan is empty or holds something that is no event.
    """
    events: list[Event] = []
    for item in plan:
        if isinstance(item, list | tuple):
            events.extend(read(one) for one in item)
        elif getattr(item, "action", None) is None or type(item.action).__name__ == "AcquireImage":
            events.append(read(item))
    if not events:
        raise SettingsError("the plan holds no events: give it at least one position")
    return events
