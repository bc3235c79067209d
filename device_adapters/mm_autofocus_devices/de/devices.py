"""Micro-Manager devices of a TEM with a Direct Electron camera, for a core that loads Python devices.

All devices with the same ``Host``, ``DeapiPort`` and ``SoapPort`` share one `DeInstrument`. Stages that are no lengths
(stigmators, beam tilt, intensity) are in the units of DE-TEM-Channel; a position of theirs is no µm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pymmcore_plus import FocusDirection, Keyword
from pymmcore_plus.experimental.unicore import (
    CameraDevice,
    Device,
    GenericDevice,
    ShutterDevice,
    StageDevice,
    XYStageDevice,
)

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.de.instrument import ANSWER_S, DeInstrument, open_de
from mm_autofocus_devices.de.instrument import DeCamera as Camera
from mm_autofocus_devices.de.soap import CONTROLS

_Buffer = Callable[[Sequence[int], DTypeLike], NDArray[Any]]


class _DeDevice(Device):
    """Shares the instrument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Host", default_value="127.0.0.1", is_pre_init=True)
        self.register_property("DeapiPort", default_value=13240, is_pre_init=True)
        self.register_property("SoapPort", default_value=5002, is_pre_init=True)
        self._instrument: DeInstrument | None = None

    def initialize(self) -> None:
        """Open the instrument.

        Raises
        ------
        HardwareError
            When the server behind this device does not answer.
        """
        host = str(self.get_property_value("Host"))
        ports = (int(self.get_property_value(name)) for name in ("DeapiPort", "SoapPort"))
        instrument = open_de(host, *ports)
        self.check(instrument)
        self._instrument = instrument

    def check(self, instrument: DeInstrument) -> None:
        """Ask the column once, so that a missing server is known now."""
        instrument.column.get("high_tension")

    def shutdown(self) -> None:
        """Let go of the instrument; the camera's connection is closed with its device."""
        self._instrument = None

    @property
    def instrument(self) -> DeInstrument:
        """The instrument.

        Raises
        ------
        HardwareError
            Before initialize() and after shutdown().
        """
        if self._instrument is None:
            raise HardwareError(f"Device {self.get_label() or self.name()!r} is not initialized; initialize it first.")
        return self._instrument


class DeCamera(_DeDevice, CameraDevice):
    """The camera of DE-Server: the sum of the frames of one exposure.

    Pre-init properties ``FramesPerSecond`` (0 leaves the server's) and ``Timeout`` (s that an image may take beyond ten
    exposures), property ``PixelType``: "16bit", cut off at 65535, or
    "32bit" (float), the camera's own numbers. ``PixelSizeNm`` is what DE-Server believes, at the present magnification.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_property_limits(Keyword.Exposure, Camera.exposure_limits_ms)
        self.set_property_allowed_values(Keyword.Binning, ("1", "2"))
        self.register_property("FramesPerSecond", default_value=0.0, is_pre_init=True)
        self.register_property("Timeout", default_value=ANSWER_S, is_pre_init=True)
        self.register_property("PixelType", default_value="16bit", allowed_values=("16bit", "32bit"))
        self.register_property("PixelSizeNm", getter=type(self).get_pixel_nm, property_type=float)

    def check(self, instrument: DeInstrument) -> None:
        """Connect, and set the frame rate."""
        instrument.camera.answer_s = float(self.get_property_value("Timeout"))
        instrument.camera.connect()
        if (rate := float(self.get_property_value("FramesPerSecond"))) > 0:
            instrument.camera.set("Frames Per Second", rate)

    def shutdown(self) -> None:
        """Close the connection."""
        if self._instrument is not None:
            self._instrument.camera.disconnect()
        super().shutdown()

    def get_pixel_nm(self) -> float:
        """Return the nominal pixel size in the specimen, nm."""
        return self._instrument.camera.pixel_nm if self._instrument is not None else 0.0

    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the images."""
        return self.instrument.camera.shape

    def dtype(self) -> DTypeLike:
        """Return what ``PixelType`` says."""
        return np.float32 if self.get_property_value("PixelType") == "32bit" else np.uint16

    def get_exposure(self) -> float:
        """Return the exposure in ms."""
        return self._instrument.camera.exposure_ms if self._instrument is not None else 0.0

    def set_exposure(self, exposure: float) -> None:
        """Set the exposure in ms; the server rounds it to whole frames."""
        self.instrument.camera.exposure_ms = float(exposure)

    def get_binning(self) -> int:
        """Return the hardware binning."""
        return self._instrument.camera.binning if self._instrument is not None else 1

    def set_binning(self, value: int) -> None:
        """Set the hardware binning."""
        self.instrument.camera.binning = int(value)

    def get_roi(self) -> tuple[int, int, int, int]:
        """Return the whole sensor as (x, y, width, height)."""
        height, width = self.instrument.camera.shape
        return 0, 0, width, height

    def set_roi(self, x: int, y: int, width: int, height: int) -> None:
        """Refuse anything but the whole sensor."""
        if (int(x), int(y), int(width), int(height)) != self.get_roi():
            raise ValueError("This camera device has no region of interest; set it in DE-Server.")

    def clear_roi(self) -> None:
        """Do nothing: the whole sensor is always read."""

    def start_sequence(self, n: int | None, get_buffer: _Buffer) -> Iterator[Mapping[str, Any]]:
        """Yield once per image, ``n`` images or without end."""
        dtype = np.dtype(self.dtype())
        taken = 0
        while n is None or taken < n:
            image = self.instrument.camera.snap()
            if dtype == np.uint16:
                image = np.clip(np.round(image), 0, 65535)
            get_buffer(image.shape, dtype)[:] = image
            yield {}
            taken += 1


class _DeStage(_DeDevice, StageDevice):
    """One scalar of the column as a stage; its range shows as the limits of property Position."""

    control: ClassVar[str]

    def initialize(self) -> None:
        """Open the instrument and show the range."""
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
        """Set it; what is read back must be what was set."""
        self.instrument.column.set(self.control, float(val))

    def get_position_um(self) -> float:
        """Return what the column reads."""
        return self.instrument.column.get(self.control)[0]

    def busy(self) -> bool:
        """Return False: the channel answers when the setting is made."""
        return False

    def stop(self) -> None:
        """Do nothing."""

    def home(self) -> None:
        """Refuse."""
        raise HardwareError(f"{self.control} has no home position; nothing has moved")

    def set_origin(self) -> None:
        """Refuse: the column's zero is its own."""
        raise HardwareError(f"the zero of {self.control} is the column's own; add an offset in your script instead")

    def get_focus_direction(self) -> FocusDirection:
        """Return that it has none."""
        return FocusDirection.Unknown

    def set_focus_direction(self, sign: int) -> None:
        """Do nothing."""


class DeDefocus(_DeStage):
    """Defocus of the objective lens in µm."""

    control = "defocus"


class DeIntensity(_DeStage):
    """Intensity (C2), 0 to 1."""

    control = "intensity"


class _DePair(_DeDevice, XYStageDevice):
    """Two coils of the column as an XY stage."""

    control: ClassVar[str]

    def set_position_um(self, x: float, y: float) -> None:
        """Set both; what is read back must be what was set."""
        self.instrument.column.set(self.control, float(x), float(y))

    def get_position_um(self) -> tuple[float, float]:
        """Return what the column reads."""
        x, y = self.instrument.column.get(self.control)
        return x, y

    def busy(self) -> bool:
        """Return False: the channel answers when the setting is made."""
        return False

    def stop(self) -> None:
        """Do nothing."""

    def home(self) -> None:
        """Set both to 0."""
        self.set_position_um(0.0, 0.0)

    def set_origin_x(self) -> None:
        """Refuse: the column's zero is its own."""
        raise HardwareError(f"the zero of {self.control} is the column's own; add an offset in your script instead")

    def set_origin_y(self) -> None:
        """Refuse, as `set_origin_x` does."""
        self.set_origin_x()


class DeStigmators(_DePair):
    """Stigmators of the objective lens, -1 to 1."""

    control = "objective_stigmator"


class DeCondenserStigmators(_DePair):
    """Stigmators of the condenser, -1 to 1."""

    control = "condenser_stigmator"


class DeBeamShift(_DePair):
    """Beam shift in µm."""

    control = "beam_shift"


class DeBeamTilt(_DePair):
    """Beam tilt, -1 to 1."""

    control = "beam_tilt"


class DeBeamShutter(_DeDevice, ShutterDevice):
    """The beam blanker: open while the beam falls on the specimen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property(
            Keyword.State, getter=type(self).get_open, setter=type(self).set_open, limits=(0, 1), property_type=int
        )

    def get_open(self) -> bool:
        """Return True while the beam is not blanked."""
        return self._instrument is not None and self._instrument.column.get("beam_blank")[0] < 0.5

    def set_open(self, open: bool) -> None:
        """Blank the beam or let it through."""
        self.instrument.column.set("beam_blank", 0.0 if bool(float(open)) else 1.0)


class DeColumn(_DeDevice, GenericDevice):
    """The rest of the column: ``Magnification`` (snaps to its ladder), ``SpotSize``, ``Screen``, ``HighTensionKv``."""

    def __init__(self) -> None:
        super().__init__()
        for name, control in (("Magnification", "magnification"), ("SpotSize", "spot_size"), ("Screen", "screen")):
            self.register_property(
                name,
                getter=_reader(control),
                setter=_writer(control),
                limits=(CONTROLS[control].low, CONTROLS[control].high),
                property_type=float if control == "magnification" else int,
            )
        self.register_property("HighTensionKv", getter=type(self).get_high_tension_kv, property_type=float)

    def get_high_tension_kv(self) -> float:
        """Return the acceleration voltage in kV."""
        return self._instrument.column.get("high_tension")[0] / 1e3 if self._instrument is not None else 0.0


def _reader(control: str) -> Callable[[DeColumn], float]:
    def read(device: DeColumn) -> float:
        instrument = device._instrument
        return instrument.column.get(control)[0] if instrument is not None else CONTROLS[control].low

    return read


def _writer(control: str) -> Callable[[DeColumn, float], None]:
    def write(device: DeColumn, value: float) -> None:
        device.instrument.column.set(control, float(value))

    return write
