"""Micro-Manager devices of an SEM behind TCP, for a core that loads Python devices (UniMMCore).

Devices with the same ``Host`` and ``Port`` are one instrument and share one connection. ``Timeout`` (of one answer)
and ``RetryFor`` (how long a server has to come back) are in seconds; those of the first device count. The camera's
exposure is the time of a whole frame in ms: dwell time times pixels, whatever part of the frame is scanned.
``Dialect`` says what the server speaks, ``Options`` what that dialect needs to be told; what it cannot tell or set
has no property or device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pymmcore_plus import FocusDirection, Keyword
from pymmcore_plus.experimental.unicore import CameraDevice, Device, GenericDevice, StageDevice, XYStageDevice

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.sem import registry
from mm_autofocus_devices.sem.instrument import RETRY_S, Roi, Sem
from mm_autofocus_devices.sem.protocol import PORT, State

_Buffer = Callable[[Sequence[int], DTypeLike], NDArray[Any]]

WORKING_DISTANCE_TOLERANCE_UM = 0.01
STIGMATOR_TOLERANCE = 1e-3
XY_TOLERANCE_UM = 0.01


class _Choices(tuple[Any, ...]):
    """Allowed values that may also be given as text, as configuration files and remote cores do."""

    def __contains__(self, value: object) -> bool:
        return any(str(value) == str(choice) or _number(value) == choice for choice in self)


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


class _SemDevice(Device):
    """Shares the instrument's client: opened by initialize(), released by shutdown()."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Host", default_value="127.0.0.1", is_pre_init=True)
        self.register_property("Port", default_value=PORT, is_pre_init=True)
        self.register_property("Timeout", default_value=5.0, is_pre_init=True)
        self.register_property("RetryFor", default_value=RETRY_S, is_pre_init=True)
        self.register_property(
            "Dialect", default_value="native", allowed_values=tuple(registry.DIALECTS), is_pre_init=True
        )
        self.register_property("Options", default_value="", is_pre_init=True)
        self._attached: tuple[registry.Key, Sem] | None = None

    def initialize(self) -> None:
        """Connect.

        Raises
        ------
        HardwareError
            The server cannot be reached, or is no SEM.
        """
        self.shutdown()
        port = int(self.get_property_value("Port"))
        times = float(self.get_property_value("Timeout")), float(self.get_property_value("RetryFor"))
        if not 0 < port < 65536 or not all(0 < seconds < math.inf for seconds in times):
            raise HardwareError(
                f"Device {self._who()}: Port {port} must be 1 to 65535, Timeout and RetryFor ({times[0]:g} and "
                f"{times[1]:g} s) above 0."
            )
        key = str(self.get_property_value("Dialect")), str(self.get_property_value("Host")), port
        sem = registry.attach(key, *times, str(self.get_property_value("Options") or ""))
        try:
            self.connected(sem)
        except BaseException:
            registry.detach(key, sem)
            raise
        self._attached = key, sem

    def connected(self, sem: Sem) -> None:
        """Ask the instrument for what this device needs to know once; at least whether it is there."""
        sem.state()

    def shutdown(self) -> None:
        """Release the connection."""
        if self._attached is not None:
            attached, self._attached = self._attached, None
            registry.detach(*attached)

    @property
    def sem(self) -> Sem:
        """The instrument.

        Raises
        ------
        HardwareError
            Before initialize() and after shutdown().
        """
        if self._attached is None:
            raise HardwareError(f"Device {self._who()} is not initialized; initialize it first.")
        return self._attached[1]

    def put(self, tolerance: float | None = None, **values: float | bool) -> State:
        """Change settings and make sure that the instrument has taken them.

        Parameters
        ----------
        tolerance
            By how much a value may differ from what was asked for; by default by a millionth.

        Raises
        ------
        HardwareError
            It has not: it clamps or ignores them, or refuses.
        """
        state = self.sem.set(**values)
        for name, wanted in values.items():
            present = getattr(state, name)
            allowed = 1e-6 * max(abs(float(wanted)), 1.0) if tolerance is None else tolerance
            if abs(float(present) - float(wanted)) > allowed:
                raise HardwareError(
                    f"{self._who()}: the SEM was asked for {name} = {wanted:g} and reports {present:g}: it is blocked, "
                    "clamped or ignores commands. Ask for a value in its range, or check the instrument."
                )
        return state

    def _who(self) -> str:
        return repr(self.get_label() or self.name())


class SemCamera(_SemDevice, CameraDevice):
    """The scan generator and its detector, as a camera.

    Properties ``FrameSize`` ("1024x768") and ``DwellTimeNs`` (the nearest that there is); a region of interest is a
    reduced scan: less time, and dose only there. A change of the frame size clears it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._roi: Roi | None = None
        self._timed = True

    def connected(self, sem: Sem) -> None:
        """Show which frames and dwell times there are."""
        described = sem.describe()
        self._roi = None
        self._timed = "dwell_ns" not in described.missing
        self.register_property(
            "FrameSize",
            getter=type(self).get_frame_size,
            setter=type(self).set_frame_size,
            allowed_values=tuple(f"{width}x{height}" for width, height in described.frames),
            property_type=str,
        )
        if self._timed:
            self.register_property(
                "DwellTimeNs",
                getter=type(self).get_dwell_ns,
                setter=type(self).set_dwell_ns,
                allowed_values=_Choices(described.dwells_ns),
                property_type=float,
            )

    def get_frame_size(self) -> str:
        """Return the pixels of a whole frame, "1024x768"."""
        state = self.sem.state()
        return f"{state.width}x{state.height}"

    def set_frame_size(self, value: str) -> None:
        """Set the pixels of a whole frame; it clears the region of interest."""
        width, height = (int(side) for side in str(value).split("x"))
        self.put(width=width, height=height)
        self._roi = None

    def get_dwell_ns(self) -> float:
        """Return the time on a pixel."""
        return self.sem.state().dwell_ns

    def set_dwell_ns(self, value: float) -> None:
        """Set the time on a pixel."""
        self.put(dwell_ns=float(value))

    def get_exposure(self) -> float:
        """Return the time of a whole frame in ms; 0 before initialize(), and where the dialect does not tell."""
        return self.sem.state().frame_ms if self._attached and self._timed else 0.0

    def set_exposure(self, exposure: float) -> None:
        """Take the dwell time that comes nearest to a frame time in ms."""
        exposure = float(exposure)
        if not self._timed:
            if exposure == 0.0:  # what get_exposure() says, put back
                return
            raise HardwareError(
                f"{self._who()}: this SEM's dialect cannot set the frame time; set it in the instrument's program, "
                "and leave "
                "the exposure out."
            )
        if not 0 < exposure < math.inf:
            raise HardwareError(f"{self._who()}: the frame time must be a number above 0, not {exposure} ms.")
        state = self.sem.state()
        self.sem.set(dwell_ns=exposure * 1e6 / (state.width * state.height))

    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the images."""
        _, _, width, height = self.get_roi()
        return height, width

    def dtype(self) -> DTypeLike:
        """Return 8-bit unsigned."""
        return np.uint8

    def get_binning(self) -> int:
        """Return 1."""
        return 1

    def set_binning(self, value: int) -> None:
        """Refuse anything but 1."""
        if int(value) != 1:
            raise HardwareError(f"{self._who()} has no binning; choose another FrameSize or pixel size.")

    def get_roi(self) -> Roi:
        """Return the region of interest (x, y, width, height), pixels of the frame."""
        if self._roi is not None:
            return self._roi
        state = self.sem.state()
        return 0, 0, state.width, state.height

    def set_roi(self, x: int, y: int, width: int, height: int) -> None:
        """Scan only a part of the frame.

        Raises
        ------
        HardwareError
            It does not lie in the frame.
        """
        state = self.sem.state()
        roi = int(x), int(y), int(width), int(height)
        if min(roi[:2]) < 0 or min(roi[2:]) < 1 or x + width > state.width or y + height > state.height:
            raise HardwareError(
                f"{self._who()}: the region {roi} does not lie in the frame of {state.width}x{state.height} pixels."
            )
        self._roi = None if roi == (0, 0, state.width, state.height) else roi

    def clear_roi(self) -> None:
        """Scan the whole frame."""
        self._roi = None

    def start_sequence(self, n: int | None, get_buffer: _Buffer) -> Iterator[Mapping[str, Any]]:
        """Yield once per frame, ``n`` frames or without end."""
        taken = 0
        while n is None or taken < n:
            image = self.sem.scan(self._roi)
            get_buffer(image.shape, image.dtype)[:] = image
            yield {}
            taken += 1


class SemWorkingDistance(_SemDevice, StageDevice):
    """The working distance as a focus stage, µm; its range shows as the limits of property Position."""

    def __init__(self) -> None:
        super().__init__()
        self._direction = FocusDirection.AwayFromSample

    def connected(self, sem: Sem) -> None:
        """Show the limits of its range."""
        self.register_property(
            Keyword.Position,
            getter=type(self).get_position_um,
            setter=type(self).set_position_um,
            limits=sem.describe().working_distance_um,
            property_type=float,
        )

    def set_position_um(self, val: float) -> None:
        """Set the working distance; a value that the instrument does not take raises HardwareError."""
        self.put(WORKING_DISTANCE_TOLERANCE_UM, working_distance_um=float(val))

    def get_position_um(self) -> float:
        """Return the working distance."""
        return self.sem.state().working_distance_um

    def stop(self) -> None:
        """Do nothing: lenses change at once."""

    def home(self) -> None:
        """Refuse: a working distance has no home."""
        raise HardwareError(f"{self._who()} has no home position; set a working distance instead.")

    def set_origin(self) -> None:
        """Refuse: a working distance is absolute."""
        raise HardwareError(f"{self._who()} has a fixed origin; add an offset in your script instead.")

    def get_focus_direction(self) -> FocusDirection:
        """Return which way positive is."""
        return self._direction

    def set_focus_direction(self, sign: int) -> None:
        """Remember which way the configuration says positive is."""
        self._direction = FocusDirection(sign)


class _SemXYStage(_SemDevice, XYStageDevice):
    """Two settings of the instrument as an XY stage without motors to wait for."""

    x_name, y_name = "", ""
    tolerance = 0.0

    def connected(self, sem: Sem) -> None:
        """Refuse where the dialect cannot tell or set them."""
        if self.x_name in sem.describe().missing:
            raise HardwareError(
                f"Device {self._who()}: in dialect {self.get_property_value('Dialect')!r} {self.x_name} and "
                f"{self.y_name} can "
                "neither be told nor set. Take the device out of the configuration, or say in Options what the "
                "dialect needs."
            )

    def set_position_um(self, x: float, y: float) -> None:
        """Set both; values that the instrument does not take raise HardwareError."""
        self.put(self.tolerance, **{self.x_name: float(x), self.y_name: float(y)})

    def get_position_um(self) -> tuple[float, float]:
        """Return both."""
        state = self.sem.state()
        return getattr(state, self.x_name), getattr(state, self.y_name)

    def stop(self) -> None:
        """Do nothing: it has arrived."""

    def home(self) -> None:
        """Go to (0, 0)."""
        self.set_position_um(0.0, 0.0)

    def set_origin_x(self) -> None:
        """Refuse: the origin is the instrument's."""
        raise HardwareError(f"{self._who()} has a fixed origin; add an offset in your script instead.")

    def set_origin_y(self) -> None:
        """Refuse, as `set_origin_x` does."""
        self.set_origin_x()


class SemStigmators(_SemXYStage):
    """The two stigmators as an XY stage whose unit is the instrument's own, not µm."""

    x_name, y_name = "stig_x", "stig_y"
    tolerance = STIGMATOR_TOLERANCE


class SemXYStage(_SemXYStage):
    """The specimen stage, µm."""

    x_name, y_name = "x_um", "y_um"
    tolerance = XY_TOLERANCE_UM


class SemColumn(_SemDevice, GenericDevice):
    """Magnification, scan, detector, beam, and what the specimen has received.

    ``BeamBlank`` is 1 but during a frame; a 0 holds until the next frame, at most a few seconds.
    """

    _SETTINGS = (
        ("Magnification", "magnification"),
        ("PixelSizeNm", "pixel_nm"),
        ("ScanRotation", "scan_rotation_deg"),
        ("Brightness", "brightness"),
        ("Contrast", "contrast"),
    )
    _READINGS = (("DoseElectronsPerNm2", "dose"), ("FrameDose", "frame_dose"), ("Frames", "frames"))

    def __init__(self) -> None:
        super().__init__()
        self._register(())

    def _register(self, missing: Sequence[str]) -> None:
        """Show the properties that the instrument has."""
        for name, setting in self._SETTINGS:
            self.register_property(
                name, getter=_getter(setting), setter=_setter(setting), limits=None, property_type=float
            )
        for name, reading in self._READINGS:
            self.register_property(name, getter=_getter(reading), is_read_only=True, property_type=float)
        self.register_property(
            "BeamBlank",
            getter=type(self).get_beam_blank,
            setter=type(self).set_beam_blank,
            limits=(0, 1),
            property_type=int,
        )
        for name, value in (*self._SETTINGS, *self._READINGS, ("BeamBlank", "blanked")):
            if value in missing:
                del self._prop_controllers_[name]  # the core has no way to take a property back

    def get_beam_blank(self) -> int:
        """Return 1 while no electrons reach the specimen."""
        return int(self.sem.state().blanked)

    def set_beam_blank(self, value: int) -> None:
        """Blank the beam, or put it on the specimen until the next frame."""
        self.put(blanked=bool(float(value)))

    def connected(self, sem: Sem) -> None:
        """Show the limits of the settings."""
        described = sem.describe()
        self._register(described.missing)
        limits = {"PixelSizeNm": described.pixel_nm, "ScanRotation": (-360.0, 360.0)}
        limits |= dict.fromkeys(("Brightness", "Contrast"), (0.0, 100.0))
        for name in limits.keys() & self.get_property_names():
            self.set_property_limits(name, limits[name])


def _getter(setting: str) -> Callable[[SemColumn], float]:
    return lambda device: float(getattr(device.sem.state(), setting))


def _setter(setting: str) -> Callable[[SemColumn, float], None]:
    def write(device: SemColumn, value: float) -> None:
        device.put(**{setting: float(value)})

    return write
