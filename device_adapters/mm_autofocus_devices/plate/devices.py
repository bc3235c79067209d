"""Micro-Manager devices of the simulated plate microscope, for a core that loads Python devices (UniMMCore).

All devices with the same ``Instrument`` property share one `PlateInstrument`. Its options are pre-initialisation
properties of the camera.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
from mm_autofocus_devices.plate import registry
from mm_autofocus_devices.plate.instrument import PlateInstrument
from mm_autofocus_devices.plate.options import PlateOptions

_Buffer = Callable[[Sequence[int], DTypeLike], NDArray[Any]]


class _Choices(tuple[int, ...]):
    """Allowed values that may also be given as text, as configuration files and remote cores do."""

    def __contains__(self, value: object) -> bool:
        return str(value) in map(str, self)


class _PlateDevice(Device):
    """Shares the instrument: opened by initialize(), released by shutdown()."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Instrument", default_value="plate", is_pre_init=True)
        self._attached: tuple[str, PlateInstrument] | None = None

    def options(self) -> dict[str, Any]:
        """Return the fields of `PlateOptions` that this device sets."""
        return {}

    def initialize(self) -> None:
        """Open the instrument."""
        self.shutdown()
        name = str(self.get_property_value("Instrument"))
        self._attached = name, registry.attach(name, **self.options())

    def shutdown(self) -> None:
        """Release the instrument."""
        if self._attached is not None:
            registry.detach(*self._attached)
            self._attached = None

    @property
    def instrument(self) -> PlateInstrument:
        """The instrument.

        Raises
        ------
        HardwareError
            Before initialize() and after shutdown().
        """
        if self._attached is None:
            raise HardwareError(f"Device {self.get_label() or self.name()!r} is not initialized; initialize it first.")
        return self._attached[1]


class PlateCamera(_PlateDevice, CameraDevice):
    """Camera of the simulated plate microscope, with region of interest and binning."""

    def __init__(self) -> None:
        super().__init__()
        low, high = PlateInstrument.exposure_limits_ms
        self.set_property_limits(Keyword.Exposure, (low, high))
        self.set_property_allowed_values(Keyword.Binning, _Choices(PlateInstrument.binnings))
        defaults = PlateOptions()
        for name, default in (
            ("Seed", defaults.seed),
            ("DriftUmPerHour", defaults.drift_um_per_h),
            ("HeightSpanUm", defaults.height_span_um),
            ("EmptyFieldFraction", defaults.empty_field_fraction),
            ("DebrisWellFraction", defaults.debris_well_fraction),
            ("Speed", defaults.speed),
            ("BlankWells", ""),
        ):
            self.register_property(name, default_value=default, is_pre_init=True)
        for name, chosen, allowed in (
            ("Wells", defaults.wells, ("6", "24", "96", "384", "1536")),
            ("Specimen", defaults.specimen, ("fluorescence", "stained", "beads")),
        ):
            self.register_property(name, default_value=chosen, allowed_values=allowed, is_pre_init=True)

    def options(self) -> dict[str, Any]:
        """Return the options whose property was changed; the others stay as a script may have chosen them."""
        readers: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "Seed": ("seed", int),
            "DriftUmPerHour": ("drift_um_per_h", float),
            "HeightSpanUm": ("height_span_um", float),
            "EmptyFieldFraction": ("empty_field_fraction", float),
            "DebrisWellFraction": ("debris_well_fraction", float),
            "Speed": ("speed", float),
            "BlankWells": ("blank_wells", lambda text: tuple(str(text).replace(";", " ").replace(",", " ").split())),
            "Wells": ("wells", str),
            "Specimen": ("specimen", str),
        }
        chosen = {option: read(self.get_property_value(name)) for name, (option, read) in readers.items()}
        defaults = PlateOptions()
        return {option: value for option, value in chosen.items() if value != getattr(defaults, option)}

    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the images, in binned pixels."""
        _, _, width, height = self.instrument.roi
        return height, width

    def dtype(self) -> DTypeLike:
        """Return 16-bit unsigned."""
        return np.uint16

    def get_exposure(self) -> float:
        """Return the exposure in ms."""
        return self._attached[1].exposure_ms if self._attached else 0.0

    def set_exposure(self, exposure: float) -> None:
        """Set the exposure in ms."""
        self.instrument.exposure_ms = float(exposure)

    def get_binning(self) -> int:
        """Return the binning factor."""
        return self._attached[1].binning if self._attached else 1

    def set_binning(self, value: int) -> None:
        """Set the binning factor, which clears the region of interest."""
        self.instrument.binning = int(value)

    def get_roi(self) -> tuple[int, int, int, int]:
        """Return the region of interest (x, y, width, height) in binned pixels."""
        return self.instrument.roi

    def set_roi(self, x: int, y: int, width: int, height: int) -> None:
        """Set the region of interest in binned pixels."""
        self.instrument.roi = (int(x), int(y), int(width), int(height))

    def clear_roi(self) -> None:
        """Image the whole sensor."""
        self.instrument.roi = None

    def start_sequence(self, n: int | None, get_buffer: _Buffer) -> Iterator[Mapping[str, Any]]:
        """Yield once per image, ``n`` images or without end."""
        taken = 0
        while n is None or taken < n:
            image = self.instrument.snap()
            get_buffer(image.shape, image.dtype)[:] = image
            yield {}
            taken += 1


class PlateZStage(_PlateDevice, StageDevice):
    """Focus drive of the simulated plate microscope; its travel shows as the limits of property Position."""

    def __init__(self) -> None:
        super().__init__()
        self._direction = FocusDirection.TowardSample

    def initialize(self) -> None:
        """Open the instrument and show the limits of its travel."""
        super().initialize()
        self.register_property(
            Keyword.Position,
            getter=type(self).get_position_um,
            setter=type(self).set_position_um,
            limits=self.instrument.z_limits_um,
            property_type=float,
        )

    def set_position_um(self, val: float) -> None:
        """Start moving; outside the travel nothing moves and `mm_autofocus.errors.LimitError` is raised."""
        self.instrument.move_z(float(val))

    def get_position_um(self) -> float:
        """Return the position that the stage reports."""
        return self.instrument.z_um

    def busy(self) -> bool:
        """Return True while it moves or settles."""
        return self._attached is not None and self.instrument.z_busy()

    def stop(self) -> None:
        """Halt."""
        self.instrument.stop_z()

    def home(self) -> None:
        """Go to 0."""
        self.instrument.move_z(0.0)

    def set_origin(self) -> None:
        """Refuse: limits and the plate's height count from the fixed origin."""
        raise HardwareError("The simulated focus drive has a fixed origin; add an offset in your script instead.")

    def get_focus_direction(self) -> FocusDirection:
        """Return which way positive is."""
        return self._direction

    def set_focus_direction(self, sign: int) -> None:
        """Remember which way the configuration says positive is."""
        self._direction = FocusDirection(sign)


class PlateXYStage(_PlateDevice, XYStageDevice):
    """XY stage of the simulated plate microscope. (0, 0) is the centre of well A1; rows run along -y."""

    def set_position_um(self, x: float, y: float) -> None:
        """Start moving; outside the travel nothing moves and `mm_autofocus.errors.LimitError` is raised."""
        self.instrument.move_xy(float(x), float(y))

    def get_position_um(self) -> tuple[float, float]:
        """Return the position that the stage reports."""
        return self.instrument.xy_um

    def busy(self) -> bool:
        """Return True while it moves or settles."""
        return self._attached is not None and self.instrument.xy_busy()

    def stop(self) -> None:
        """Halt."""
        self.instrument.stop_xy()

    def home(self) -> None:
        """Go to well A1."""
        self.instrument.move_xy(0.0, 0.0)

    def set_origin_x(self) -> None:
        """Refuse: the plate's wells count from the fixed origin."""
        raise HardwareError("The simulated xy stage has a fixed origin; add an offset in your script instead.")

    def set_origin_y(self) -> None:
        """Refuse, as `set_origin_x` does."""
        self.set_origin_x()


class PlateChannel(_PlateDevice, GenericDevice):
    """Filter wheel of the simulated plate microscope: property Label is DAPI, FITC or Brightfield."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property(
            Keyword.Label,
            getter=type(self).get_channel,
            setter=type(self).set_channel,
            allowed_values=PlateInstrument.channels,
            property_type=str,
        )

    def get_channel(self) -> str:
        """Return the channel in the light path."""
        return self._attached[1].channel if self._attached else PlateInstrument.channels[0]

    def set_channel(self, label: str) -> None:
        """Put a channel into the light path."""
        self.instrument.channel = str(label)


class PlateShutter(_PlateDevice, ShutterDevice):
    """Lamp shutter of the simulated plate microscope; the specimen is lit, and bleaches, only while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property(
            Keyword.State,
            getter=type(self).get_open,
            setter=type(self).set_open,
            limits=(0, 1),
            property_type=int,
        )

    def get_open(self) -> bool:
        """Return True while the shutter is open."""
        return self._attached is not None and self._attached[1].shutter_open

    def set_open(self, open: bool) -> None:
        """Open or close the shutter."""
        self.instrument.shutter_open = bool(float(open))  # property State may come as text
