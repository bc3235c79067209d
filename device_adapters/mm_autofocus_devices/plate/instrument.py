"""A simulated widefield microscope with a multiwell plate on it: plain Python, no Micro-Manager, its own clock.

The clock advances by moves, settling and exposures, so that hours of acquisition take as long as the arithmetic. What
only a simulation knows (`PlateInstrument.true_focus_um`, `PlateInstrument.exposures`) is for scoring.
"""

from __future__ import annotations

import math
import threading
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus.simulation.detector import Bleaching
from mm_autofocus.simulation.imaging import CHANNELS, Imager
from mm_autofocus.simulation.plate import PLATE_FORMATS, Drift, Plate
from mm_autofocus.simulation.specimen import Specimen, SpecimenSettings
from mm_autofocus_devices.plate.clock import Clock
from mm_autofocus_devices.plate.motion import Axis
from mm_autofocus_devices.plate.options import Exposure, PlateOptions

_XY_GRID_UM = 0.05  # fields closer than this share one drawing
_COMMAND_S = 0.002


class PlateInstrument:
    """The microscope. All methods may be called from any thread.

    Parameters
    ----------
    options
        See `PlateOptions`.
    """

    channels: tuple[str, ...] = tuple(CHANNELS)
    binnings: tuple[int, ...] = (1, 2, 4)
    exposure_limits_ms: tuple[float, float] = (0.1, 10_000.0)

    def __init__(self, options: PlateOptions | None = None) -> None:
        self._options = options or PlateOptions()
        self._lock = threading.RLock()
        self._exposures: list[Exposure] = []
        self._clock = Clock(self._options.speed)
        self._shutter_open = False
        self._channel = self.channels[0]
        self._exposure_ms = 50.0
        self._binning = 1
        self._roi: tuple[int, int, int, int] | None = None
        self._failing_snaps: float = 0
        self._frozen = False
        self._stage_error = False

    # -- parts, made on first use --------------------------------------------------------------------------------

    @property
    def options(self) -> PlateOptions:
        """What was chosen."""
        return self._options

    def configure(self, **overrides: Any) -> None:
        """Change options before the instrument is first used.

        Raises
        ------
        ValueError
            For an unknown option, or a different value once the instrument is in use.
        """
        known = {f.name for f in fields(PlateOptions)}
        if unknown := set(overrides) - known:
            raise ValueError(f"Unknown plate options {sorted(unknown)}; known: {', '.join(sorted(known))}.")
        with self._lock:
            changed = replace(self._options, **overrides)
            if changed == self._options:
                return
            if "plate" in self.__dict__:
                different = [n for n in overrides if getattr(changed, n) != getattr(self._options, n)]
                raise ValueError(
                    f"The simulated plate is already in use with other values of {', '.join(different)}; unload its "
                    "devices, or discard_instrument(), before changing them."
                )
            self._options = changed
            self.speed = changed.speed

    @cached_property
    def plate(self) -> Plate:
        """The plate; its height is truth, for scoring only."""
        o = self._options
        return Plate(o.wells, o.height_span_um, o.height_um, Drift.of_rate(o.drift_um_per_h), o.blank_wells, o.seed)

    @cached_property
    def _imager(self) -> Imager:
        o = self._options
        settings = SpecimenSettings(
            kind=o.specimen,
            empty_field_fraction=o.empty_field_fraction,
            debris_well_fraction=o.debris_well_fraction,
            seed=o.seed,
        )
        return Imager(o.optics, Specimen(settings, self.plate, o.optics.pixel_um), o.field_px)

    @cached_property
    def _bleaching(self) -> Bleaching:
        return Bleaching()

    @cached_property
    def _noise(self) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self._options.seed, 11]))

    @cached_property
    def _z(self) -> Axis:
        axis = self._options.z_axis
        return Axis("z", axis, min(max(0.0, axis.low_um), axis.high_um))

    @cached_property
    def _xy(self) -> tuple[Axis, Axis]:
        axis, (x, y) = self._options.xy_axis, self.xy_limits_um
        return Axis("x", replace(axis, low_um=x[0], high_um=x[1])), Axis("y", replace(axis, low_um=y[0], high_um=y[1]))

    # -- clock ---------------------------------------------------------------------------------------------------

    @property
    def speed(self) -> float:
        """Simulated seconds per real second; 0 never sleeps."""
        return self._clock.speed

    @speed.setter
    def speed(self, value: float) -> None:
        with self._lock:
            self._clock.speed = value

    @property
    def clock_s(self) -> float:
        """Simulated seconds since the instrument was made."""
        with self._lock:
            return self._clock.seconds

    def advance(self, seconds: float) -> None:
        """Let simulated time pass at once, for instance the hour between two timepoints.

        Raises
        ------
        ValueError
            For a negative or infinite time.
        """
        with self._lock:
            self._clock.jump(seconds)

    # -- stages --------------------------------------------------------------------------------------------------

    @property
    def z_limits_um(self) -> tuple[float, float]:
        """Lower and upper end of the z travel."""
        return self._options.z_axis.low_um, self._options.z_axis.high_um

    @property
    def xy_limits_um(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lower and upper end of the x travel and of the y travel."""
        axis, plate = self._options.xy_axis, PLATE_FORMATS[self._options.wells]
        width, height = plate.pitch_um * (plate.columns - 1), plate.pitch_um * (plate.rows - 1)
        return (axis.low_um, axis.high_um + width), (axis.low_um - height, axis.high_um)

    def _stage_answers(self) -> bool:
        if self._stage_error:
            raise HardwareError("The simulated stage reports an error and has not moved; call clear_faults().")
        return not self._frozen

    def move_z(self, z_um: float) -> None:
        """Start moving the z stage.

        Raises
        ------
        LimitError
            When the position is outside the travel or not a number; nothing moves.
        HardwareError
            When a stage error is simulated.
        """
        with self._lock:
            self._z.check(z_um)
            if self._stage_answers():
                self._clock.wait(_COMMAND_S)
                self._z.move(z_um, self.clock_s)

    def move_xy(self, x_um: float, y_um: float) -> None:
        """Start moving the xy stage; raises as `move_z` does."""
        with self._lock:
            for axis, target in zip(self._xy, (x_um, y_um), strict=True):
                axis.check(target)
            if self._stage_answers():
                self._clock.wait(_COMMAND_S)
                for axis, target in zip(self._xy, (x_um, y_um), strict=True):
                    axis.move(target, self.clock_s)

    @property
    def z_um(self) -> float:
        """What the z stage reports, µm."""
        with self._lock:
            return self._z.readback_um(self.clock_s)

    @property
    def xy_um(self) -> tuple[float, float]:
        """What the xy stage reports, µm."""
        with self._lock:
            x, y = self._xy
            return x.readback_um(self.clock_s), y.readback_um(self.clock_s)

    def _busy(self, *axes: Axis) -> bool:
        with self._lock:
            left = max(axis.settled_at() for axis in axes) - self.clock_s
            if left > 0 and not self._clock.speed:
                self._clock.wait(left)  # asking is waiting: nothing else would move the clock
                return False
            return left > 0

    def z_busy(self) -> bool:
        """Return True while the z stage moves or settles; at speed 0 the clock jumps to the end of that instead."""
        return self._busy(self._z)

    def xy_busy(self) -> bool:
        """Return True while the xy stage moves or settles; at speed 0 the clock jumps to the end of that instead."""
        return self._busy(*self._xy)

    def stop_z(self) -> None:
        """Halt the z stage where it is."""
        with self._lock:
            self._z.stop(self.clock_s)

    def stop_xy(self) -> None:
        """Halt the xy stage where it is."""
        with self._lock:
            for axis in self._xy:
                axis.stop(self.clock_s)

    # -- light ---------------------------------------------------------------------------------------------------

    @property
    def shutter_open(self) -> bool:
        """True while the lamp can reach the specimen."""
        return self._shutter_open

    @shutter_open.setter
    def shutter_open(self, value: bool) -> None:
        with self._lock:
            self._shutter_open = bool(value)

    @property
    def channel(self) -> str:
        """Name of the filter set in the light path."""
        return self._channel

    @channel.setter
    def channel(self, name: str) -> None:
        if name not in CHANNELS:
            raise ValueError(f"There is no channel {name!r}; choose one of {', '.join(self.channels)}.")
        with self._lock:
            self._channel = name

    # -- camera --------------------------------------------------------------------------------------------------

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

    @property
    def binning(self) -> int:
        """Sensor pixels per image pixel, in both directions. Changing it clears the region of interest."""
        return self._binning

    @binning.setter
    def binning(self, value: int) -> None:
        if value not in self.binnings:
            raise ValueError(f"binning={value} is not possible; choose one of {', '.join(map(str, self.binnings))}.")
        with self._lock:
            if value != self._binning:
                self._binning, self._roi = int(value), None

    @property
    def roi(self) -> tuple[int, int, int, int]:
        """Region of interest (x, y, width, height) in binned pixels; the whole sensor when none is set."""
        side = self._options.field_px // self._binning
        return self._roi or (0, 0, side, side)

    @roi.setter
    def roi(self, value: tuple[int, int, int, int] | None) -> None:
        side = self._options.field_px // self._binning
        if value is not None:
            x, y, width, height = value
            if not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= side and y + height <= side):
                raise ValueError(f"The region {value} (x, y, width, height) does not fit in {side} x {side} pixels.")
        with self._lock:
            self._roi = value

    def forget_exposures(self) -> None:
        """Drop the truth about the images so far: a long run that is not scored need not keep it."""
        with self._lock:
            self._exposures.clear()

    def snap(self) -> NDArray[np.uint16]:
        """Expose and read one image; dark unless the shutter is open.

        Returns
        -------
        ndarray
            Counts, shape (height, width) of the region of interest.

        Raises
        ------
        HardwareError
            When a camera fault is simulated.
        """
        with self._lock:
            if self._failing_snaps > 0:
                self._failing_snaps -= 1
                raise HardwareError("The simulated camera sent no image; snap again, or call clear_faults().")
            lit = self._shutter_open
            seconds, channel = self._exposure_ms / 1000, CHANNELS[self._channel]
            self._clock.wait(seconds / 2)
            now = self.clock_s
            x, y = (round(axis.actual_um(now) / _XY_GRID_UM) * _XY_GRID_UM for axis in self._xy)
            actual, focus = self._z.actual_um(now), self.true_focus_um(x, y)
            side_px = self._options.field_px
            if lit:
                where = (self._channel, x, y, self._imager.field_um)
                left = self._bleaching.remaining(*where, channel.bleach_lifetime_ms)
                photons = self._imager.light(channel, x, y, actual - focus, left) * np.float32(seconds)
                self._bleaching.expose(*where, self._exposure_ms)
            else:
                photons = np.zeros((side_px, side_px), dtype=np.float32)
            self._exposures.append(
                Exposure(
                    clock_s=now,
                    x_um=x,
                    y_um=y,
                    nominal_z_um=self._z.readback_um(now),
                    actual_z_um=actual,
                    focus_z_um=focus,
                    blank=self._imager.is_blank(x, y),
                    channel=self._channel,
                    exposure_ms=self._exposure_ms,
                    light_ms=self._exposure_ms if lit else 0.0,
                )
            )
            self._clock.wait(seconds / 2)
            return self._read(photons)

    def _read(self, photons: NDArray[np.float32]) -> NDArray[np.uint16]:
        b = self._binning
        x, y, width, height = self.roi
        part = photons[y * b : (y + height) * b, x * b : (x + width) * b]
        if b > 1:
            part = part.reshape(height, b, width, b).sum(axis=(1, 3))
        return self._options.detector.read(part, self._noise, pixels_summed=b * b)

    # -- truth, for scoring only ---------------------------------------------------------------------------------

    def true_focus_um(self, x: float | None = None, y: float | None = None, channel: str | None = None) -> float:
        """Return the stage z that is in focus now.

        Parameters
        ----------
        x, y
            Where, µm; by default where the stage is.
        channel
            By default the present one.
        """
        with self._lock:
            here = self.xy_um
            offset = CHANNELS[channel or self._channel].focus_offset_um
            at = (here[0] if x is None else x, here[1] if y is None else y)
            return self.plate.focus_um(*at, self.clock_s) + offset

    def is_blank(self, x: float, y: float) -> bool:
        """Tell whether no cell has its centre in the field around (x, y) in µm."""
        with self._lock:
            return self._imager.is_blank(x, y)

    def depth_of_field_um(self, channel: str | None = None) -> float:
        """Return the depth of field of a channel, by default the present one, see `Optics.depth_of_field_um`."""
        return self._options.optics.depth_of_field_um(CHANNELS[channel or self._channel].wavelength_um)

    @property
    def exposures(self) -> tuple[Exposure, ...]:
        """Every image so far, in order."""
        with self._lock:
            return tuple(self._exposures)

    # -- faults, for tests ---------------------------------------------------------------------------------------

    def fail_next_snaps(self, number: int) -> None:
        """Make the next ``number`` snaps raise HardwareError."""
        self._failing_snaps = number

    def fail_snaps_forever(self) -> None:
        """Make every snap raise HardwareError."""
        self._failing_snaps = math.inf

    def freeze_stage(self) -> None:
        """Make both stages ignore moves, silently."""
        self._frozen = True

    def stage_error(self) -> None:
        """Make every move raise HardwareError."""
        self._stage_error = True

    def clear_faults(self) -> None:
        """End all simulated faults."""
        self._failing_snaps, self._frozen, self._stage_error = 0, False, False
