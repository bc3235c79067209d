"""What a TEM can be asked over TCP, in frames of `mm_autofocus_devices.transport`; see docs/protocol-tem.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PORT = 5160
VERSION = 1
"""Of these requests; the frames have a version of their own."""

APERTURE_STEPS = 8_388_608
"""The aperture's drive counts in whole steps from minus this to this less one."""


class Ask(StrEnum):
    """Names of the requests."""

    IDENTIFY = "identify"
    GET = "get"
    SET = "set"
    BUSY = "busy"
    STOP = "stop"
    IMAGE = "image"
    WAIT = "wait"


class Capture(StrEnum):
    """Where images come from."""

    DETECTOR = "detector"
    """The camera itself: 16 bits, linear."""
    SCREEN = "screen"
    """A captured screen: 8 bits, contrast stretched to each frame, half a second late, sometimes two frames mixed."""


@dataclass(frozen=True, slots=True)
class Control:
    """One setting.

    Attributes
    ----------
    low, high, unit
        What the instrument takes.
    whole
        True when it counts in whole steps.
    lens
        True for what is put back when a client is lost while it was away from rest.
    """

    low: float
    high: float
    unit: str
    whole: bool = False
    lens: bool = False


_LENS = Control(0.5, 1.5, "of nominal", lens=True)
_STEPS = Control(-APERTURE_STEPS, APERTURE_STEPS - 1, "steps", whole=True)
_SHIFT = Control(-20.0, 20.0, "µm")
_TILT = Control(-50.0, 50.0, "mrad")
_STIGMATOR = Control(-1.0, 1.0, "of full scale")

CONTROLS: dict[str, Control] = {
    "c1": _LENS,
    "c2": _LENS,
    "objective": _LENS,
    "intensity": _LENS,
    "aperture_x": _STEPS,
    "aperture_y": _STEPS,
    "beam_shift_x": _SHIFT,
    "beam_shift_y": _SHIFT,
    "beam_tilt_x": _TILT,
    "beam_tilt_y": _TILT,
    "stig_x": _STIGMATOR,
    "stig_y": _STIGMATOR,
    "screen": Control(0, 1, "(1: in the beam)", whole=True),
    "magnification": Control(50.0, 2e6, "x"),
    "aperture": Control(1, 4, "(number of the hole)", whole=True),
    "exposure_ms": Control(0.1, 60_000.0, "ms"),
}
"""Every setting by name. Lens currents are fractions of the nominal current: 1.0 is 100 %."""
