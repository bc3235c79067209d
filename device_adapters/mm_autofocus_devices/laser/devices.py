"""Micro-Manager devices of the simulated laser autofocus, for a core that loads Python devices.

They stand on the plate microscope's devices: the same ``Instrument`` property means the same instrument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pymmcore_plus import Keyword
from pymmcore_plus.experimental.unicore import CameraDevice, Device, GenericDevice, pymm_property

from mm_autofocus.errors import FocusError, HardwareError
from mm_autofocus.simulation.laser_day import Family
from mm_autofocus.strategies.laser import Laser
from mm_autofocus_devices.autofocus_strategy import StrategyAutofocus
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.laser.continuous import ContinuousFocus, Lock
from mm_autofocus_devices.laser.instrument import LaserInstrument, LaserOptions, laser_of, open_laser
from mm_autofocus_devices.plate import open_instrument, registry

_Buffer = Callable[[Sequence[int], DTypeLike], NDArray[Any]]


class _LaserDevice(Device):
    """Shares the laser autofocus and the plate instrument under it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Instrument", default_value="plate", is_pre_init=True)
        self._plate: Any = None
        self._laser: LaserInstrument | None = None

    def options(self) -> dict[str, Any]:
        """Return the fields of `LaserOptions` that this device sets."""
        return {}

    def initialize(self) -> None:
        """Open the instrument."""
        self.shutdown()
        name = str(self.get_property_value("Instrument"))
        self._plate = registry.attach(name)
        self._laser = open_laser(open_instrument(name), name, **self.options())

    def shutdown(self) -> None:
        """Release the instrument."""
        if self._plate is not None:
            registry.detach(str(self.get_property_value("Instrument")), self._plate)
            self._plate = self._laser = None

    @property
    def laser(self) -> LaserInstrument:
        """The laser autofocus.

        Raises
        ------
        HardwareError
            Before initialize() and after shutdown().
        """
        if self._laser is None:
            raise HardwareError(f"Device {self.get_label() or self.name()!r} is not initialized; initialize it first.")
        return self._laser


class LaserCamera(_LaserDevice, CameraDevice):
    """Camera of the laser autofocus: 192 x 192 pixels, no binning, no region of interest."""

    def __init__(self) -> None:
        super().__init__()
        low, high = LaserInstrument.exposure_limits_ms
        self.set_property_limits(Keyword.Exposure, (low, high))
        defaults = LaserOptions()
        for name, default in (
            ("Seed", defaults.seed),
            ("Day", defaults.day),
            ("DriftScale", defaults.scale),
            ("SurfaceToFocusUm", defaults.surface_to_focus_um),
            ("LostWells", ""),
        ):
            self.register_property(name, default_value=default, is_pre_init=True)
        self.register_property(
            "Drift", default_value=defaults.family.value, allowed_values=[f.value for f in Family], is_pre_init=True
        )

    def options(self) -> dict[str, Any]:
        """Return the options whose property was changed; the others stay as a script may have chosen them."""
        readers: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "Seed": ("seed", int),
            "Day": ("day", int),
            "DriftScale": ("scale", float),
            "SurfaceToFocusUm": ("surface_to_focus_um", float),
            "LostWells": ("lost_wells", lambda text: tuple(str(text).replace(";", " ").replace(",", " ").split())),
            "Drift": ("family", Family),
        }
        chosen = {option: read(self.get_property_value(name)) for name, (option, read) in readers.items()}
        defaults = LaserOptions()
        return {option: value for option, value in chosen.items() if value != getattr(defaults, option)}

    def shape(self) -> tuple[int, int]:
        """Return (height, width) of the images."""
        return self.laser.shape

    def dtype(self) -> DTypeLike:
        """Return 16-bit unsigned; the converter has 12 bits."""
        return np.uint16

    def get_exposure(self) -> float:
        """Return the exposure in ms."""
        return self._laser.exposure_ms if self._laser else 0.0

    def set_exposure(self, exposure: float) -> None:
        """Set the exposure in ms."""
        self.laser.exposure_ms = float(exposure)

    def get_binning(self) -> int:
        """Return 1."""
        return 1

    def set_binning(self, value: int) -> None:
        """Refuse anything but 1."""
        if int(value) != 1:
            raise ValueError("The laser camera has no binning; set Binning to 1.")

    def get_roi(self) -> tuple[int, int, int, int]:
        """Return the whole sensor as (x, y, width, height)."""
        height, width = self.laser.shape
        return 0, 0, width, height

    def set_roi(self, x: int, y: int, width: int, height: int) -> None:
        """Refuse anything but the whole sensor."""
        if (int(x), int(y), int(width), int(height)) != self.get_roi():
            raise ValueError("The laser camera has no region of interest; clear it.")

    def clear_roi(self) -> None:
        """Do nothing: the whole sensor is always read."""

    def start_sequence(self, n: int | None, get_buffer: _Buffer) -> Iterator[Mapping[str, Any]]:
        """Yield once per image, ``n`` images or without end."""
        taken = 0
        while n is None or taken < n:
            image = self.laser.snap()
            get_buffer(image.shape, image.dtype)[:] = image
            yield {}
            taken += 1


class LaserDiode(_LaserDevice, GenericDevice):
    """The laser: ``State`` 1 or 0, and ``Power`` relative to the nominal one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property(
            Keyword.State, getter=type(self).get_on, setter=type(self).set_on, limits=(0, 1), property_type=int
        )
        self.register_property(
            "Power", getter=type(self).get_power, setter=type(self).set_power, limits=(0.0, 100.0), property_type=float
        )

    def get_on(self) -> int:
        """Return 1 while the laser shines."""
        return int(self._laser is not None and self._laser.laser_on)

    def set_on(self, value: int) -> None:
        """Switch the laser."""
        self.laser.laser_on = bool(float(value))

    def get_power(self) -> float:
        """Return the power relative to the nominal one."""
        return self._laser.power if self._laser is not None else 1.0

    def set_power(self, value: float) -> None:
        """Set the power relative to the nominal one."""
        self.laser.power = float(value)


class LaserAutofocus(StrategyAutofocus):
    """The laser AutoFocus device: one-shot focus, offset, and continuous focus.

    ``fullFocus()`` runs the strategy of the ``Settings`` file ("laser") with all its limits. Continuous focus is the
    unit's own: it reads its camera without the core, corrects the stage in small steps, and lets go when the lock is
    poor. Pre-init properties beside those of `StrategyAutofocus`: ``Instrument``, ``EveryFrames`` (images of the main
    camera between two corrections), ``MinQuality``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Instrument", default_value="plate", is_pre_init=True)
        self.register_property("EveryFrames", default_value=1, is_pre_init=True)
        self.register_property("MinQuality", default_value=0.5, is_pre_init=True)
        self._continuous: ContinuousFocus | None = None

    @pymm_property(name="LockQuality", is_read_only=True)
    def lock_quality(self) -> float:
        """Quality of the continuous lock, 0 to 1; 0 without one."""
        return self.last_lock.quality if self.last_lock is not None else 0.0

    @property
    def last_lock(self) -> Lock | None:
        """The last correction of continuous focus; None without one."""
        return self._continuous.last if self._continuous is not None else None

    def incremental_focus(self, core: AutofocusCore) -> None:
        """Refine from close by: the one-shot focus is quick enough for that."""
        self.full_focus(core)

    def full_focus(self, core: AutofocusCore) -> None:
        """Focus once; see `StrategyAutofocus`. Continuous focus pauses meanwhile."""
        holding = self._continuous is not None
        self.set_continuous_focus(False)
        super().full_focus(core)
        if holding:
            self.set_continuous_focus(True)

    def set_continuous_focus(self, enabled: bool) -> None:
        """Hold the present plane, offset included, or stop holding.

        Raises
        ------
        FocusError
            When there is nothing to hold: no reflection, out of range, or the laser is off.
        """
        if self._continuous is not None:
            self._continuous.stop()
            self._continuous = None
        if not enabled:
            return
        laser = laser_of(str(self.get_property_value("Instrument")))
        strategy = next((s for s in self.autofocus.strategies.values() if isinstance(s, Laser)), None)
        if strategy is None:
            raise FocusError(
                'continuous focus needs the strategy "laser"; name it in the autofocus settings of this device'
            )
        knob = self.autofocus.microscope.knob("z")
        continuous = ContinuousFocus(
            laser,
            strategy.model,
            knob.limits,
            every_frames=int(self.get_property_value("EveryFrames")),
            min_quality=float(self.get_property_value("MinQuality")),
        )
        continuous.start()
        self._continuous = continuous

    def get_continuous_focus(self) -> bool:
        """Return True while continuous focus is switched on."""
        return self._continuous is not None

    def is_continuous_focus_locked(self) -> bool:
        """Return True while it holds the plane."""
        return self._continuous is not None and self._continuous.locked

    def shutdown(self) -> None:
        """Stop continuous focus."""
        self.set_continuous_focus(False)
