"""The autofocus camera and laser of the plate microscope: plain Python; stage, plate and clock are the plate's own."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus.simulation.laser_day import Family, LaserDay, instrument, make_day
from mm_autofocus.simulation.laser_spot import LaserOptics, LaserSpot, Shot
from mm_autofocus_devices.plate import PlateInstrument


@dataclass(frozen=True, slots=True)
class LaserOptions:
    """What can be chosen about the laser autofocus.

    Attributes
    ----------
    seed
        Fixes the unit, its window and its noise.
    day
        Number of the day: another alignment each day.
    family
        Law of the drift.
    scale
        1 from day to day, 3 after a knock.
    surface_to_focus_um
        From the surface that reflects to the plane in focus (DAPI), µm. It does not drift in the simulation.
    lost_wells
        Wells without a reflection (a bubble in the immersion medium).
    optics
        Slit, wavelength and camera.
    """

    seed: int = 1
    day: int = 0
    family: Family = Family.HELD_OUT
    scale: float = 1.0
    surface_to_focus_um: float = 2.0
    lost_wells: tuple[str, ...] = ()
    optics: LaserOptics = field(default_factory=LaserOptics)


class LaserInstrument:
    """The laser autofocus. All methods may be called from any thread.

    Parameters
    ----------
    plate
        The microscope that it is built on: it shares stage, plate and clock.
    options
        See `LaserOptions`.
    """

    exposure_limits_ms: tuple[float, float] = (0.05, 100.0)

    def __init__(self, plate: PlateInstrument, options: LaserOptions | None = None) -> None:
        self.plate = plate
        self.options = options or LaserOptions()
        self._lock = threading.RLock()
        self._exposure_ms = self.options.optics.exposure_ms
        self._laser_on = True
        self._power = 1.0
        self.foreign = False
        """True to see, in place of the coverslip, the far side of the plate's bottom through a tilted window."""

    def configure(self, **overrides: Any) -> None:
        """Change options before the first image.

        Raises
        ------
        ValueError
            For an unknown option, or a different value once an image was taken.
        """
        known = {f.name for f in fields(LaserOptions)}
        if unknown := set(overrides) - known:
            raise ValueError(f"Unknown laser options {sorted(unknown)}; known: {', '.join(sorted(known))}.")
        with self._lock:
            changed = replace(self.options, **overrides)
            if changed != self.options and "_spot" in self.__dict__:
                raise ValueError("The simulated laser is already in use; unload its devices before changing it.")
            self.options = changed

    @cached_property
    def _spot(self) -> LaserSpot:
        return LaserSpot(self.options.optics, self.options.seed)

    @cached_property
    def _day(self) -> LaserDay:
        o = self.options
        return make_day(instrument(o.seed), o.seed * 1000 + o.day, o.family, scale=o.scale)

    @cached_property
    def _noise(self) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, self.options.day, 61])

    # ------------------------------------------------------------------ the laser
    @property
    def laser_on(self) -> bool:
        """True while the laser shines. It is infrared and does not bleach."""
        return self._laser_on

    @laser_on.setter
    def laser_on(self, value: bool) -> None:
        with self._lock:
            self._laser_on = bool(value)

    @property
    def power(self) -> float:
        """Power relative to the nominal one."""
        return self._power

    @power.setter
    def power(self, value: float) -> None:
        if not 0 <= value <= 100:
            raise ValueError(f"A laser power of {value} is outside 0 to 100 (1 is nominal).")
        with self._lock:
            self._power = float(value)

    # ------------------------------------------------------------------ the camera
    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        side = self.options.optics.pixels
        return side, side

    @property
    def exposure_ms(self) -> float:
        """Exposure time."""
        return self._exposure_ms

    @exposure_ms.setter
    def exposure_ms(self, value: float) -> None:
        low, high = self.exposure_limits_ms
        if not low <= value <= high:
            raise ValueError(f"An exposure of {value} ms is outside {low:g} to {high:g} ms.")
        with self._lock:
            self._exposure_ms = float(value)

    def snap(self) -> NDArray[np.uint16]:
        """Expose and read one image, shape (height, width); the simulated clock advances by the exposure."""
        with self._lock:
            self.plate.advance(self._exposure_ms / 1000)
            hours = self.plate.clock_s / 3600
            well = self.plate.plate.well_at(*self.plate.xy_um)
            shot = Shot(
                exposure_ms=self._exposure_ms,
                laser_on=self._laser_on and self._power > 0,
                reflection=0.0 if well in self.options.lost_wells else self._power,
            )
            state, defocus = self._day.state(hours), self.plate.z_um - self.surface_um()
            if self.foreign:
                state = replace(
                    state, rotation_deg=state.rotation_deg + 35.0, axis_offset_um=state.axis_offset_um - 14.0
                )
            image: NDArray[np.uint16] = self._spot.images(defocus, state, self._noise, shot)[0]
            return image

    # ------------------------------------------------------------------ truth, for scoring only
    def surface_um(self) -> float:
        """Return the stage z at which the surface here has no defocus, now."""
        return self.plate.true_focus_um(channel="DAPI") - self.options.surface_to_focus_um


_lock = threading.Lock()
_entries: dict[str, tuple[PlateInstrument, LaserInstrument]] = {}


def open_laser(plate: PlateInstrument, name: str = "plate", **overrides: Any) -> LaserInstrument:
    """Return the laser autofocus of the plate instrument of that name, made on the first call.

    Raises
    ------
    ValueError
        See `LaserInstrument.configure`.
    """
    with _lock:
        entry = _entries.get(name)
        if entry is None or entry[0] is not plate:
            entry = plate, LaserInstrument(plate)
        entry[1].configure(**overrides)
        _entries[name] = entry
        return entry[1]


def discard_laser(name: str = "plate") -> None:
    """Forget the laser autofocus of that name."""
    with _lock:
        _entries.pop(name, None)


def laser_of(name: str) -> LaserInstrument:
    """Return the laser autofocus of that name.

    Raises
    ------
    HardwareError
        When no laser camera has opened it.
    """
    with _lock:
        if name not in _entries:
            raise HardwareError(
                f"there is no laser autofocus on instrument {name!r}: load and initialize its LaserCamera first"
            )
        return _entries[name][1]
