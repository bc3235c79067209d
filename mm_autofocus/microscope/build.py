"""From settings to knobs: finds the devices, their limits, and says clearly what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable

from mm_autofocus.errors import SettingsError
from mm_autofocus.microscope.core import PortableCore
from mm_autofocus.microscope.knob import Knob
from mm_autofocus.request import Limits
from mm_autofocus.settings import KnobSettings

Sleep = Callable[[float], None]


def build_knob(core: PortableCore, name: str, settings: KnobSettings, sleep: Sleep = time.sleep) -> Knob:
    """Make the knob ``name`` from its section of autofocus.toml.

    Raises
    ------
    SettingsError
        When the device is missing, or nobody says what its limits are, or they exceed what the device allows.
    """
    device = settings.device or _default_device(core, name, settings)
    core.require(device, f"[knobs.{name}] device")
    read: Callable[[], float]
    write: Callable[[float], None]
    own: Limits | None = None
    if settings.axis == "z":
        own = _property_limits(core, device, "Position")

        def read() -> float:
            return float(core.get_position(device))

        def write(value: float) -> None:
            core.set_position(device, value)

    elif settings.axis == "property":
        prop = settings.property
        if not core.has_property(device, prop):
            raise SettingsError(f"[knobs.{name}] device {device!r} has no property {prop!r}")
        own = _property_limits(core, device, prop)

        def read() -> float:
            return float(core.get_property(device, prop))

        def write(value: float) -> None:
            core.set_property(device, prop, value)

    else:
        first = settings.axis == "x"

        def read() -> float:
            return float(core.get_x_position(device) if first else core.get_y_position(device))

        def write(value: float) -> None:
            if first:
                core.set_xy_position(device, value, float(core.get_y_position(device)))
            else:
                core.set_xy_position(device, float(core.get_x_position(device)), value)

    limits = settings.limits or own
    if limits is None:
        raise SettingsError(
            f"device {device!r} does not say how far it may move, so nothing protects the specimen. Set "
            f"[knobs.{name}] limits = [low, high] in µm."
        )
    if own is not None and (limits.low < own.low or limits.high > own.high):
        raise SettingsError(
            f"[knobs.{name}] limits = [{limits.low:g}, {limits.high:g}] reach beyond those of device {device!r}, "
            f"[{own.low:g}, {own.high:g}]; stay inside them"
        )
    return Knob(
        name,
        device,
        limits,
        read,
        write,
        lambda: core.wait_for_device(device),
        max_step=settings.max_step,
        settle_ms=settings.settle_ms,
        backlash=settings.backlash,
        tolerance=settings.tolerance,
        unit=settings.unit,
        sleep=sleep,
    )


def _default_device(core: PortableCore, name: str, settings: KnobSettings) -> str:
    if settings.axis == "z":
        device, role = str(core.get_focus_device()), "focus stage (Core, Focus)"
    elif settings.axis in ("x", "y"):
        device, role = str(core.get_xy_stage_device()), "XY stage (Core, XYStage)"
    else:
        raise SettingsError(f"[knobs.{name}] turns a property and must say which device has it: device = ...")
    if not device:
        raise SettingsError(
            f"the configuration has no default {role}, and [knobs.{name}] names no device; set one of them"
        )
    return device


def _property_limits(core: PortableCore, device: str, prop: str) -> Limits | None:
    if not core.has_property(device, prop) or not core.has_property_limits(device, prop):
        return None
    return Limits(
        float(core.get_property_lower_limit(device, prop)), float(core.get_property_upper_limit(device, prop))
    )
