"""Micro-Manager devices of a TEM over TCP, for a core that loads Python devices.

All devices with the same ``Host`` and ``Port`` share one `TemClient`. Stages that are no lengths have positions in
units of their own: lenses are fractions of the nominal current (1.0 is 100 %), the aperture is in whole steps of its
drive, beam shift in µm, beam tilt in mrad, stigmators from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pymmcore_plus import FocusDirection, Keyword
from pymmcore_plus.experimental.unicore import CameraDevice, Device, GenericDevice, StageDevice, XYStageDevice

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.tem.instrument import TemClient, discard_tem, open_tem
from mm_autofocus_devices.tem.protocol import CONTROLS, DEFAULT_PORT, Capture

_Buffer = Callable[[Sequence[int], DTypeLike], NDArray[Any]]


class _TemDevice(Device):
    """Shares the client."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Host", default_value="127.0.0.1", is_pre_init=True)
        self.register_property("Port", default_value=DEFAULT_PORT, is_pre_init=True)
        self._client: TemClient | None = None
        self._address = ("", 0)

    def initialize(self) -> None:
        """Connect.

        Raises
        ------
        HardwareError
            When the server does not answer.
        """
        self.shutdown()
        self._address = str(self.get_property_value("Host")), int(self.get_property_value("Port"))
        client = open_tem(*self._address)
        try:
            client.connect()
        except HardwareError:
            discard_tem(*self._address)
            raise
        self._client = client

    def shutdown(self) -> None:
        """Let go of the client."""
        if self._client is not None:
            self._client = None
            discard_tem(*self._address)

    @property
    def tem(self) -> TemClient:
        """The client.

        Raises
        ------
        HardwareError
            Before initialize() and after shutdown().
        """
        if self._client is None:
            raise HardwareError(f"Device {self.get_label() or self.name()!r} is not initialized; initialize it first.")
        return self._client


class TemCamera(_TemDevice, CameraDevice):
    """The camera: 16 bits from the detector, or 8 bits from a captured screen (property ``Capture``)."""

    def __init__(self) -> None:
        super().__init__()
        known = CONTROLS["exposure_ms"]
        self.set_property_limits(Keyword.Exposure, (known.low, known.high))
        self.register_property(
            "Capture",
            getter=type(self).get_capture,
            setter=type(self).set_capture,
            allowed_values=[word.value for word in Capture],
            property_type=str,
        )
        self._capture = Capture.DETECTOR
        self._exposure_ms: float | None = None

    def initialize(self) -> None:
        """Connect and ask how the camera is set."""
        super().initialize()
        self._capture = self.tem.capture
        self._exposure_ms = self.tem.get("exposure_ms")

    def get_capture(self) -> str:
        """Return where images come from."""
        return self._capture.value

    def set_capture(self, value: str) -> None:
        """Choose where images come from."""
        self.tem.capture = Capture(value)
        self._capture = Capture(value)

    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the images."""
        return self.tem.shape

    def dtype(self) -> DTypeLike:
        """Return 8 or 16 bits, unsigned."""
        return np.uint8 if self._capture is Capture.SCREEN else np.uint16

    def get_exposure(self) -> float:
        """Return the exposure in ms."""
        if self._client is not None:  # asked, for another program may have changed it
            self._exposure_ms = self.tem.get("exposure_ms")
        return self._exposure_ms or 0.0

    def set_exposure(self, exposure: float) -> None:
        """Set the exposure in ms."""
        self.tem.set(exposure_ms=float(exposure))
        self._exposure_ms = float(exposure)

    def get_binning(self) -> int:
        """Return 1."""
        return 1

    def set_binning(self, value: int) -> None:
        """Refuse anything but 1."""
        if int(value) != 1:
            raise ValueError("The camera has no binning; set Binning to 1.")

    def get_roi(self) -> tuple[int, int, int, int]:
        """Return the whole frame as (x, y, width, height)."""
        height, width = self.tem.shape
        return 0, 0, width, height

    def set_roi(self, x: int, y: int, width: int, height: int) -> None:
        """Refuse anything but the whole frame."""
        if (int(x), int(y), int(width), int(height)) != self.get_roi():
            raise ValueError("The camera has no region of interest; clear it.")

    def clear_roi(self) -> None:
        """Do nothing: the whole frame is always read."""

    def start_sequence(self, n: int | None, get_buffer: _Buffer) -> Iterator[Mapping[str, Any]]:
        """Yield once per image, ``n`` images or without end."""
        taken = 0
        while n is None or taken < n:
            image = self.tem.image()
            get_buffer(image.pixels.shape, image.pixels.dtype)[:] = image.pixels
            yield {"TemClockS": image.clock_s, "TemImage": image.number}
            taken += 1


class _TemStage(_TemDevice, StageDevice):
    """One scalar as a stage; its range shows as the limits of property Position."""

    control: ClassVar[str]

    def initialize(self) -> None:
        """Connect and show the range."""
        super().initialize()
        known = CONTROLS[self.control]
        self.register_property(
            Keyword.Position,
            getter=type(self).get_position_um,
            setter=type(self).set_position_um,
            limits=(known.low, known.high),
            property_type=float,
        )

    def set_position_um(self, val: float) -> None:
        """Set it; it counts as busy while it settles."""
        self.tem.set(**{self.control: float(val)})

    def get_position_um(self) -> float:
        """Return what the instrument reads."""
        return self.tem.get(self.control)

    def busy(self) -> bool:
        """Return True while it settles."""
        return self._client is not None and self.tem.busy(self.control)

    def stop(self) -> None:
        """Do nothing: a lens cannot be halted."""

    def home(self) -> None:
        """Go to nominal."""
        self.set_position_um(1.0)

    def set_origin(self) -> None:
        """Refuse: the zero is the instrument's own."""
        raise HardwareError(f"the zero of {self.control} is the instrument's own; add an offset in your script instead")

    def get_focus_direction(self) -> FocusDirection:
        """Return that it has none."""
        return FocusDirection.Unknown

    def set_focus_direction(self, sign: int) -> None:
        """Do nothing."""


class TemC1(_TemStage):
    """Current of condenser lens C1, 1.0 is nominal."""

    control = "c1"


class TemC2(_TemStage):
    """Current of condenser lens C2, 1.0 is nominal."""

    control = "c2"


class TemObjective(_TemStage):
    """Current of the objective lens, 1.0 is nominal."""

    control = "objective"


class TemIntensity(_TemStage):
    """The intensity knob, 1.0 is nominal."""

    control = "intensity"


class _TemPair(_TemDevice, XYStageDevice):
    """Two settings as an XY stage."""

    controls: ClassVar[tuple[str, str]]

    def set_position_um(self, x: float, y: float) -> None:
        """Set both, or none when one is refused."""
        self.tem.set(**dict(zip(self.controls, (float(x), float(y)), strict=True)))

    def get_position_um(self) -> tuple[float, float]:
        """Return what the instrument reads."""
        return self.tem.get_pair(*self.controls)

    def busy(self) -> bool:
        """Return True while it travels or settles."""
        return self._client is not None and any(self.tem.busy(control) for control in self.controls)

    def stop(self) -> None:
        """Do nothing: a coil cannot be halted."""

    def home(self) -> None:
        """Go to (0, 0)."""
        self.set_position_um(0.0, 0.0)

    def set_origin_x(self) -> None:
        """Refuse: the zero is the instrument's own."""
        raise HardwareError(
            f"the zero of {self.controls[0]} is the instrument's own; add an offset in your script instead"
        )

    def set_origin_y(self) -> None:
        """Refuse, as `set_origin_x` does."""
        self.set_origin_x()


class TemAperture(_TemPair):
    """The condenser aperture's drive in whole steps: slow, mechanical, useful within about 1000 steps of its zero."""

    controls = ("aperture_x", "aperture_y")

    def stop(self) -> None:
        """Halt the drive."""
        self.tem.stop()


class TemBeamShift(_TemPair):
    """Beam shift in µm."""

    controls = ("beam_shift_x", "beam_shift_y")


class TemBeamTilt(_TemPair):
    """Beam tilt in mrad."""

    controls = ("beam_tilt_x", "beam_tilt_y")


class TemStigmators(_TemPair):
    """Condenser stigmators, -1 to 1."""

    controls = ("stig_x", "stig_y")


class TemScreen(_TemDevice, GenericDevice):
    """The fluorescent screen: ``Position`` is "up" (the camera sees the beam) or "down"."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property(
            "Position",
            getter=type(self).get_screen,
            setter=type(self).set_screen,
            allowed_values=("up", "down"),
            property_type=str,
        )

    def get_screen(self) -> str:
        """Return where the screen is."""
        return "down" if self._client is not None and self.tem.get("screen") > 0.5 else "up"

    def set_screen(self, position: str) -> None:
        """Move the screen."""
        self.tem.set(screen=float(position == "down"))


class TemColumn(_TemDevice, GenericDevice):
    """``Magnification`` (nominal) and ``Aperture`` (number of the hole)."""

    def __init__(self) -> None:
        super().__init__()
        for name, control, kind in (("Magnification", "magnification", float), ("Aperture", "aperture", int)):
            known = CONTROLS[control]
            self.register_property(
                name,
                getter=_reader(control),
                setter=_writer(control),
                limits=(known.low, known.high),
                property_type=kind,
            )


def _reader(control: str) -> Callable[[TemColumn], float]:
    def read(device: TemColumn) -> float:
        return device.tem.get(control) if device._client is not None else CONTROLS[control].low

    return read


def _writer(control: str) -> Callable[[TemColumn, float], None]:
    def write(device: TemColumn, value: float) -> None:
        device.tem.set(**{control: float(value)})

    return write
