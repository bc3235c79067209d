"""Finds what cannot work in settings, plan and instrument before anything moves."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from mm_autofocus.errors import SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.request import Event, Key
from mm_autofocus.strategy import Strategy

logger = logging.getLogger(__name__)


def check_strategies(strategies: Mapping[str, Strategy], microscope: Microscope) -> None:
    """Raise `SettingsError` when a strategy's own camera is missing, or its range is wider than the limits."""
    for name, strategy in strategies.items():
        camera = getattr(strategy.settings, "camera", None)
        if camera:
            microscope.core.require(camera, f"[strategies.{name}] camera")
    if "z" not in microscope.knobs:
        return
    width = microscope.knob("z").limits.width
    for name, strategy in strategies.items():
        wanted = getattr(strategy.settings, "range_um", None)
        if wanted is not None and wanted > width:
            limits = microscope.knob("z").limits
            raise SettingsError(
                f"[strategies.{name}] range_um = {wanted:g} is wider than the limits of knob 'z', "
                f"[{limits.low:g}, {limits.high:g}]; narrow the range or widen [knobs.z] limits"
            )


def check_plan(events: list[Event], microscope: Microscope) -> None:
    """Raise `SettingsError` for a plan that cannot be placed."""
    stage = str(microscope.core.get_xy_stage_device())  # a column's stigmators have an x and a y too
    axes = {
        microscope.settings.knobs[name].axis: knob.limits
        for name, knob in microscope.knobs.items()
        if (microscope.settings.knobs[name].axis in ("x", "y") and knob.device == stage) or name == "z"
    }
    where: dict[Key, tuple[float | None, float | None]] = {}
    for event in events:
        for axis in ("x", "y", "z"):
            value, limits = getattr(event, axis), axes.get(axis)
            if value is not None and not isinstance(value, int | float):
                raise SettingsError(f"the plan has {axis} = {value!r} at {dict(event.axes)}; it must be a number")
            if value is None or (math.isfinite(value) and (limits is None or value in limits)):
                continue
            bounds = f"[{limits.low:g}, {limits.high:g}]" if limits else "finite numbers"
            raise SettingsError(
                f"the plan goes to {axis} = {value:g} at {dict(event.axes)}, outside the limits {bounds} of knob "
                f"{axis!r}; nothing has moved. Correct the plan, or [knobs.{axis}] limits."
            )
        if where.setdefault(event.key, (event.x, event.y)) != (event.x, event.y):
            raise SettingsError(
                f"the plan has several XY positions at {dict(event.axes)} with the same time, position and grid "
                "index, so that one focus would serve them all; number them along the axis 'position'"
            )
    channels = {event.channel for event in events if event.channel is not None}
    if len(channels) > 1 and not microscope.settings.microscope.channel:
        logger.warning(
            "the plan has the channels %s and [microscope] channel is not set: focusing uses whichever is in the "
            "light path",
            ", ".join(sorted(channels)),
        )


def check_focus_drive(microscope: Microscope) -> None:
    """Raise `SettingsError` when a plan's z would go to one stage and the corrections belong to another."""
    if "z" not in microscope.settings.knobs:
        return
    knob, drive = microscope.knob("z"), str(microscope.core.get_focus_device())
    if knob.device != drive:
        raise SettingsError(
            f"acquisitions move the core's focus drive {drive!r}, but [knobs.z] focuses with {knob.device!r}. Make "
            f"that the focus drive (Core, Focus = {knob.device}), or set [knobs.z] device = {drive!r}."
        )
