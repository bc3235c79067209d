"""What the SEM's client and server say to each other, on the native dialect of the transport (docs/protocol.md).

Requests: ``describe`` -> `Description`; ``state`` -> `State`; ``set`` with any of `WRITABLE` -> the `State` read back,
all of the values applied or none; ``scan`` with ``roi`` = [x, y, width, height] or null -> one 8-bit frame as payload,
with ``width`` and ``height``, and the `State` after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mm_autofocus_devices.transport import FrameCodec, Message, ProtocolError

PORT = 7520
"""Where setup A listens by default; setup B takes the next one."""

CODEC = FrameCodec(max_payload=16 * 1024 * 1024)
"""The largest frame has 3 MB."""

_FLYBACK = 1.25
"""A frame takes longer than its pixels; this bounds by how much."""


@dataclass(frozen=True, slots=True)
class Description:
    """What the instrument is and can do; µm, nm, ns.

    Attributes
    ----------
    name
        Model and setup.
    working_distance_um, stigmator, pixel_nm, xy_um
        (lowest, highest) value of a knob; the stigmators' unit is the instrument's own.
    frames
        (width, height) of the frames it scans.
    dwells_ns
        Times on a pixel that it knows.
    missing
        Names in `State` that a dialect neither tells nor sets. The native one tells all.
    """

    name: str
    working_distance_um: tuple[float, float]
    stigmator: tuple[float, float]
    pixel_nm: tuple[float, float]
    xy_um: tuple[float, float]
    frames: tuple[tuple[int, int], ...]
    dwells_ns: tuple[float, ...]
    missing: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Return it as fields of a message."""
        return {
            "name": self.name,
            "working_distance_um": list(self.working_distance_um),
            "stigmator": list(self.stigmator),
            "pixel_nm": list(self.pixel_nm),
            "xy_um": list(self.xy_um),
            "frames": [side for frame in self.frames for side in frame],
            "dwells_ns": list(self.dwells_ns),
        }

    @classmethod
    def of(cls, message: Message) -> Description:
        """Read it from a reply.

        Raises
        ------
        ProtocolError
            When a field is missing or wrong.
        """
        sides = [int(v) for v in _reals(message, "frames")]
        low_high = {
            key: (reals[0], reals[1])
            for key in ("working_distance_um", "stigmator", "pixel_nm", "xy_um")
            if len(reals := _reals(message, key)) == 2
        }
        if len(low_high) != 4 or not sides or len(sides) % 2:
            raise ProtocolError("the SEM's description of its ranges or frames cannot be read")
        return cls(
            message.text("name"),
            working_distance_um=low_high["working_distance_um"],
            stigmator=low_high["stigmator"],
            pixel_nm=low_high["pixel_nm"],
            xy_um=low_high["xy_um"],
            frames=tuple(zip(sides[::2], sides[1::2], strict=True)),
            dwells_ns=tuple(_reals(message, "dwells_ns")),
        )


@dataclass(frozen=True, slots=True)
class State:
    """Where everything stands.

    Attributes
    ----------
    working_distance_um, stig_x, stig_y
        The knobs of focus: µm, and the stigmators' own unit.
    pixel_nm, magnification
        Size of a pixel in the specimen; width of a Polaroid over that of the field. One follows from the other.
    scan_rotation_deg
        Rotation of the scan.
    brightness, contrast
        Of the detector, 0 to 100.
    blanked
        True while no electrons reach the specimen.
    x_um, y_um
        Stage.
    dwell_ns, width, height
        Time on a pixel, and pixels of a whole frame.
    dose, frame_dose
        Electrons per nm²: all so far, and what one frame at the present settings adds where it scans.
    frames
        Frames so far.
    """

    working_distance_um: float
    stig_x: float
    stig_y: float
    pixel_nm: float
    magnification: float
    scan_rotation_deg: float
    brightness: float
    contrast: float
    blanked: bool
    x_um: float
    y_um: float
    dwell_ns: float
    width: int
    height: int
    dose: float
    frame_dose: float
    frames: int

    @property
    def frame_ms(self) -> float:
        """Time that a whole frame's pixels take, ms: what the camera calls its exposure."""
        return self.dwell_ns * 1e-6 * self.width * self.height

    def fields(self) -> dict[str, Any]:
        """Return it as fields of a message."""
        return asdict(self)

    @classmethod
    def of(cls, message: Message) -> State:
        """Read it from a reply; raises ProtocolError when a field is missing or wrong."""
        values: dict[str, float | bool | int] = {}
        for name, kind in cls.__annotations__.items():
            read = message.truth if kind == "bool" else message.whole if kind == "int" else message.real
            values[name] = read(name)
        return cls(**values)  # type: ignore[arg-type]

    def scan_s(self, roi: tuple[int, int, int, int] | None) -> float:
        """Return a bound for how long a scan takes, seconds."""
        width, height = (self.width, self.height) if roi is None else roi[2:]
        return _FLYBACK * self.dwell_ns * 1e-9 * width * height


WRITABLE = (
    "working_distance_um", "stig_x", "stig_y", "pixel_nm", "magnification", "scan_rotation_deg", "brightness",
    "contrast", "blanked", "x_um", "y_um", "dwell_ns", "width", "height",
)  # fmt: skip
"""What ``set`` takes; pixel size or magnification, and both sides of a frame."""

RESTORED = tuple(name for name in WRITABLE if name not in ("magnification", "blanked"))
"""What a client puts back after the server was restarted: not the pixel size twice, and the beam stays off."""


def checked(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the values of a ``set`` request, of the right kinds; nothing is applied when one is wrong.

    Raises
    ------
    ProtocolError
        When one is unknown, or no finite number, or they contradict each other.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name not in WRITABLE:
            raise ProtocolError(f"the SEM has no setting {name!r}; it has {', '.join(WRITABLE)}")
        kind = State.__annotations__[name]
        if kind == "bool":
            if not isinstance(value, bool):
                raise ProtocolError(f"{name} must be true or false, not {value!r}")
            out[name] = value
        elif kind == "int":
            if isinstance(value, bool) or not isinstance(value, int):
                raise ProtocolError(f"{name} must be a whole number, not {value!r}")
            out[name] = value
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ProtocolError(f"{name} must be a finite number, not {value!r}")
        else:
            out[name] = float(value)
    if {"pixel_nm", "magnification"} <= out.keys():
        raise ProtocolError("pixel_nm and magnification are one setting; give one of them")
    if ("width" in out) != ("height" in out):
        raise ProtocolError("width and height of a frame belong together; give both")
    return out


def _reals(message: Message, key: str) -> list[float]:
    values = message.fields.get(key)
    if not isinstance(values, list):
        raise ProtocolError(f"field {key!r} of message {message.name!r} must be a list of numbers")
    return [Message("", {key: value}).real(key) for value in values]
