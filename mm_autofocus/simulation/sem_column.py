"""A scanning electron microscope: knobs, beam, specimen and detector, and the frames and the dose that come of them.

`Column.truth` says how far the knobs are from focus. Only what scores may call it; nothing in a frame tells.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.sparse import csr_array

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration
from mm_autofocus.simulation.electron_probe import otf
from mm_autofocus.simulation.sem_setups import SETUP_A, SETUP_B, SETUPS, ColumnSetup
from mm_autofocus.simulation.sem_specimen import Specimen, SpecimenKind

__all__ = ["DWELLS_NS", "FRAMES", "SETUPS", "SETUP_A", "SETUP_B", "Column", "ColumnSetup"]

FRAMES = ((320, 240), (512, 384), (1024, 768), (2048, 1536))
"""(width, height) of frames that the scan generator makes."""

DWELLS_NS = (50.0, 100.0, 200.0, 400.0, 800.0)
WORKING_DISTANCE_UM = (2000.0, 20000.0)
STIGMATOR = (-30.0, 30.0)
PIXEL_NM = (1.0, 1000.0)
POLAROID_MM = 114.3
"""Width of the picture that magnification refers to."""

_ELECTRON_C = 1.602e-19
_FLYBACK = 0.08
_POISSON_BELOW = 4.0
_MARGINS = (48, 96, 160, 256)
_STEP_PX = 32
_CACHED_SPECTRA = 3
_CHARGING_DOSE = 100.0
_CHARGE_DECAY_S = 90.0
_CHARGE_SHIFT_UM = 0.08


class Column:
    """A running instrument with a specimen in it; the same commands give the same frames.

    Knobs clamp themselves to their range, as hardware does: read them back. Public state besides the properties:
    ``scan_rotation_deg``, ``brightness`` and ``contrast`` (0 to 100), ``blanked``, ``x_um``, ``y_um``.

    Parameters
    ----------
    setup
        The instrument, or its name in `SETUPS`.
    kind, seed, blank_fraction
        The specimen; the seed also draws noise, drift and the column's own zero error.
    drift_um_per_min
        Rate at which focus drifts, mean of its absolute value.
    image_drift_nm_per_min
        Rate at which the specimen drifts sideways.
    charging
        0 (conducting) to 1 (resin without metal): brightness, contrast and position creep with dose.
    speed
        0: frames take no time; else they take their real time divided by this. The simulated clock is the same.
    zero_error
        What the column is off by at its nominal settings; drawn if None.
    """

    def __init__(
        self,
        setup: ColumnSetup | str,
        kind: SpecimenKind | str,
        seed: int,
        *,
        drift_um_per_min: float = 0.0,
        image_drift_nm_per_min: float = 0.0,
        charging: float = 0.0,
        blank_fraction: float = 0.0,
        speed: float = 0.0,
        zero_error: Aberration | None = None,
        specimen: Specimen | None = None,
    ) -> None:
        self.setup = SETUPS[setup] if isinstance(setup, str) else setup
        self.specimen = specimen or Specimen(kind, seed, blank_fraction)
        self.scan_rotation_deg = self.setup.scan_rotation_deg
        self.brightness, self.contrast = 50.0, 50.0
        self.blanked = False
        self.x_um, self.y_um = 0.0, 0.0
        self.dose, self.frames, self.clock_s = 0.0, 0, 0.0
        self._speed, self._charging, self._charge = speed, charging, 0.0
        self._charged_at = (0.0, 0.0)
        self._frame, self._dwell_ns, self._pixel_nm = (1024, 768), 200.0, 10.0
        self._working_distance_um = self.setup.working_distance_mm * 1e3
        self._stig = [0.0, 0.0]
        rng = np.random.default_rng([0xC01, seed])
        self._noise = np.random.default_rng([0xC02, seed])
        spread = self.setup.zero_error.vector()
        drawn = Aberration(*(float(v) for v in np.clip(rng.standard_normal(3), -2, 2) * spread))
        self._zero = drawn if zero_error is None else zero_error
        self._drift = drift_um_per_min / 60.0 * float(rng.choice([-1.0, 1.0]))
        self._drift_period_s, self._drift_phase = rng.uniform(200.0, 600.0), rng.uniform(0.0, 2.0 * math.pi)
        towards = rng.uniform(0.0, 2.0 * math.pi, 3)
        creep = image_drift_nm_per_min * 1e-3 / 60.0
        self._creep = creep * math.cos(towards[0]), creep * math.sin(towards[0])
        self._charge_way = math.cos(towards[1]), math.sin(towards[1])
        self._stig_way = math.cos(towards[2]), math.sin(towards[2])
        self._spectra: OrderedDict[tuple[object, ...], NDArray[np.complex64]] = OrderedDict()

    @property
    def working_distance_um(self) -> float:
        """Working distance, µm."""
        return self._working_distance_um

    @working_distance_um.setter
    def working_distance_um(self, value: float) -> None:
        self._working_distance_um = _clamped("working_distance_um", value, WORKING_DISTANCE_UM)

    @property
    def stig_x(self) -> float:
        """Stigmator x, a.u."""
        return self._stig[0]

    @stig_x.setter
    def stig_x(self, value: float) -> None:
        self._stig[0] = _clamped("stig_x", value, STIGMATOR)

    @property
    def stig_y(self) -> float:
        """Stigmator y, a.u."""
        return self._stig[1]

    @stig_y.setter
    def stig_y(self, value: float) -> None:
        self._stig[1] = _clamped("stig_y", value, STIGMATOR)

    @property
    def pixel_nm(self) -> float:
        """Pixel size in the specimen, nm."""
        return self._pixel_nm

    @pixel_nm.setter
    def pixel_nm(self, value: float) -> None:
        self._pixel_nm = _clamped("pixel_nm", value, PIXEL_NM)

    @property
    def magnification(self) -> float:
        """Width of a Polaroid over that of the field; set it after the frame size, which keeps the pixel size."""
        return POLAROID_MM * 1e6 / (self._pixel_nm * self._frame[0])

    @magnification.setter
    def magnification(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f"magnification={value} must be above 0.")
        self.pixel_nm = POLAROID_MM * 1e6 / (value * self._frame[0])

    @property
    def dwell_ns(self) -> float:
        """Time on a pixel, ns: the nearest of `DWELLS_NS`, by ratio."""
        return self._dwell_ns

    @dwell_ns.setter
    def dwell_ns(self, value: float) -> None:
        if not value > 0:
            raise ValueError(f"dwell_ns={value} must be above 0.")
        self._dwell_ns = min(DWELLS_NS, key=lambda dwell: abs(math.log(dwell / value)))

    @property
    def frame(self) -> tuple[int, int]:
        """Frame (width, height), one of `FRAMES`."""
        return self._frame

    @frame.setter
    def frame(self, value: tuple[int, int]) -> None:
        if tuple(value) not in FRAMES:
            raise ValueError(f"frame={value} must be one of {', '.join(f'{w}x{h}' for w, h in FRAMES)}.")
        self._frame = int(value[0]), int(value[1])

    @property
    def frame_s(self) -> float:
        """Time of a whole frame, seconds, flyback included."""
        return self._seconds(*self._frame)

    def _seconds(self, width: int, height: int) -> float:
        return self._dwell_ns * 1e-9 * width * height * (1.0 + _FLYBACK)

    def frame_dose(self) -> float:
        """Return the dose of one frame at present settings, electrons that land per nm²."""
        return self.setup.beam_current_na * 1e-9 * self._dwell_ns * 1e-9 / _ELECTRON_C / self._pixel_nm**2

    def advance(self, seconds: float) -> None:
        """Let simulated time pass: focus drifts, charge leaks away."""
        if not seconds >= 0:
            raise ValueError(f"seconds={seconds} must not be negative.")
        self.clock_s += seconds
        self._charge *= math.exp(-seconds / _CHARGE_DECAY_S)

    def scan(self, roi: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8]:
        """Scan one frame at present settings; it takes time and, unless the beam is blanked, dose.

        Parameters
        ----------
        roi
            (x, y, width, height) of the part to scan, pixels of the frame; the whole frame if None.

        Returns
        -------
        array
            Shape (height, width), 8 bits.

        Raises
        ------
        ValueError
            When the part does not lie in the frame.
        """
        x, y, width, height = roi or (0, 0, *self._frame)
        if not (x >= 0 and y >= 0 and width > 0 and height > 0) or (
            x + width > self._frame[0] or y + height > self._frame[1]
        ):
            raise ValueError(f"roi={roi} must lie in the frame of {self._frame[0]}x{self._frame[1]} pixels.")
        self.frames += 1
        if self.blanked:
            signal = np.zeros((height, width), np.float32)
        else:
            self._charge_up()
            signal = self._signal(x, y, width, height)
            self.dose += self.frame_dose()
        grey = self._detected(signal)
        seconds = self._seconds(width, height)
        self.advance(seconds)
        if self._speed > 0:
            time.sleep(seconds / self._speed)
        return grey

    def truth(self) -> Aberration:
        """Return present minus best settings: for scoring only."""
        drift = self._drift_um()
        best_um = self.setup.working_distance_mm * 1e3 - self._zero.defocus_um + drift
        best_um += self.specimen.height_um(self.x_um, self.y_um)
        turn = self.setup.stigmator_drift * drift
        return Aberration(
            self._working_distance_um - best_um,
            self._stig[0] + self._zero.stig_x - turn * self._stig_way[0],
            self._stig[1] + self._zero.stig_y - turn * self._stig_way[1],
        )

    def detune(self, aberration: Aberration) -> None:
        """Turn the knobs so that `truth` is this aberration, as far as their ranges go: for benchmarks only."""
        change = aberration + -self.truth()
        self.working_distance_um += change.defocus_um
        self.stig_x += change.stig_x
        self.stig_y += change.stig_y

    def calibration(self) -> ColumnCalibration:
        """Return the true calibration at the present scan rotation: what a perfect calibration run would find."""
        angle = math.radians(self.scan_rotation_deg)
        c, s = math.cos(angle), math.sin(angle)
        x, y = self.setup.shift_um_per_um
        return ColumnCalibration(
            self.setup.probe.convergence_mrad,
            self.setup.stigmator_um,
            self.setup.stigmator_rotation_deg - self.scan_rotation_deg,
            (c * x + s * y, c * y - s * x),
        )

    def _drift_um(self) -> float:
        """Return how far focus has drifted: a ramp with a slow swing on it."""
        swing = 2.0 * math.pi * self.clock_s / self._drift_period_s
        wave = math.sin(swing + self._drift_phase) - math.sin(self._drift_phase)
        return self._drift * (self.clock_s + 0.4 * self._drift_period_s / (2.0 * math.pi) * wave)

    def _charge_up(self) -> None:
        field_um = self._frame[0] * self._pixel_nm * 1e-3
        if math.hypot(self.x_um - self._charged_at[0], self.y_um - self._charged_at[1]) > 0.5 * field_um:
            self._charge, self._charged_at = 0.0, (self.x_um, self.y_um)
        self._charge += (self._charging - self._charge) * (1.0 - math.exp(-self.frame_dose() / _CHARGING_DOSE))

    def _signal(self, x: int, y: int, width: int, height: int) -> NDArray[np.float32]:
        """Return the blurred yield that arrives at the detector.

        A tilted specimen's defocus also varies within a frame, by α tan(tilt) / 2 pixels of blur for each pixel from
        its centre: below 0.1 pixel at the 0.3 degrees of a holder, so one transfer function serves the frame.
        """
        pixel_um = self._pixel_nm * 1e-3
        truth, calibration = self.truth(), self.calibration()
        z, a, b = calibration.to_blur(truth, pixel_um) / calibration.blur_per_um(pixel_um)
        # Image axes in the specimen, and how far the content is displaced along them, pixels.
        angle = math.radians(self.scan_rotation_deg)
        c, s = math.cos(angle), math.sin(angle)
        moved = [
            k * self.clock_s + _CHARGE_SHIFT_UM * self._charge * w
            for k, w in zip(self._creep, self._charge_way, strict=True)
        ]
        shift = np.array(calibration.shift_um_per_um) * truth.defocus_um
        shift += [c * moved[0] + s * moved[1], c * moved[1] - s * moved[0]]
        centre = np.array([x + width // 2 - self._frame[0] // 2, y + height // 2 - self._frame[1] // 2])
        shift_px = shift / pixel_um
        whole = _STEP_PX * np.round(shift_px / _STEP_PX)
        reach = calibration.blur_per_um(pixel_um) * (abs(z) + math.hypot(a, b)) + _STEP_PX / 2 + 8
        margin = next((m for m in _MARGINS if m >= reach), _MARGINS[-1])
        tall, wide = (int(fft.next_fast_len(n + 2 * margin, real=True)) for n in (height, width))
        padded = tall, wide
        spectrum = self._spectrum(centre - whole, padded)
        dx, dy = shift_px - whole
        transfer = otf(padded, pixel_um, float(z), float(a), float(b), self.setup.probe, (float(dx), float(dy)))
        blurred = fft.irfft2(spectrum * transfer, s=padded, workers=1, overwrite_x=True)
        growth = 1.0 + np.array(self.setup.magnification_per_um) * truth.defocus_um
        # The middle of the frame stays; a part away from it moves as the frame grows.
        across = _resampler(padded[1], width, float(growth[0]), float(centre[0]))
        down = _resampler(padded[0], height, float(growth[1]), float(centre[1]))
        return np.asarray((across @ (down @ blurred).T).T, dtype=np.float32)

    def _spectrum(self, centre_px: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.complex64]:
        """Return the transformed specimen around a place given in pixels of the image from its middle."""
        key = (self.x_um, self.y_um, self._pixel_nm, self.scan_rotation_deg, *map(float, centre_px), shape)
        if key in self._spectra:
            self._spectra.move_to_end(key)
            return self._spectra[key]
        pixel_um = self._pixel_nm * 1e-3
        angle = math.radians(self.scan_rotation_deg)
        c, s = math.cos(angle), math.sin(angle)
        across, down = centre_px * pixel_um
        view = self.specimen.view(
            self.x_um + c * across - s * down,
            self.y_um + s * across + c * down,
            pixel_um,
            shape,
            self.scan_rotation_deg,
        )
        spectrum = np.asarray(fft.rfft2(view, workers=1), dtype=np.complex64)
        self._spectra[key] = spectrum
        if len(self._spectra) > _CACHED_SPECTRA:
            self._spectra.popitem(last=False)
        return spectrum

    def _detected(self, signal: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return grey levels: shot noise, charge, gain and offset, row offsets, eight bits."""
        height = signal.shape[0]
        electrons = self.setup.electrons_per_pixel * self._dwell_ns / 200.0
        if not self.blanked:
            np.maximum(signal, 0.0, out=signal)
            if electrons < _POISSON_BELOW:
                signal = (self._noise.poisson(signal * electrons) / electrons).astype(np.float32)
            else:
                noise = self._noise.standard_normal(signal.shape, dtype=np.float32)
                noise *= np.sqrt(signal / np.float32(electrons))
                signal = signal + noise
            signal *= np.float32(1.0 - 0.25 * self._charge)
            signal += (0.15 * self._charge * np.linspace(0.8, 1.2, height, dtype=np.float32))[:, None]
        gain = 255.0 * 0.8 * 2.0 ** ((np.clip(self.contrast, 0.0, 100.0) - 50.0) / 20.0)
        offset = 2.55 * np.clip(self.brightness, 0.0, 100.0) - 0.5 * gain + 0.5
        rows = self._noise.standard_normal((height, 1), dtype=np.float32) * np.float32(self.setup.row_noise)
        signal *= np.float32(gain)
        signal += rows + np.float32(offset)
        if self.blanked:
            signal += np.float32(self.setup.dark_noise) * self._noise.standard_normal(signal.shape, dtype=np.float32)
        return np.clip(signal, 0.0, 255.0, out=signal).astype(np.uint8)


def _clamped(name: str, value: float, limits: tuple[float, float]) -> float:
    """Return the value within its limits; raise ValueError for what is no number."""
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a number between {limits[0]:g} and {limits[1]:g}.")
    return float(min(max(value, limits[0]), limits[1]))


def _resampler(size: int, kept: int, growth: float, centre: float) -> csr_array:
    """Return a matrix (kept, size) that cuts the middle out of a line magnified about the frame's middle.

    Cubic convolution (Catmull-Rom). ``centre`` is where the middle of the kept part lies from the frame's, pixels.
    """
    place = (np.arange(kept) - kept // 2 + centre) / growth - centre + size // 2
    base = np.clip(np.floor(place).astype(int), 1, size - 3)
    t = place - base
    weights = np.stack(
        [
            -t * (1 - t) ** 2,
            2 - 5 * t**2 + 3 * t**3,
            t * (1 + 4 * t - 3 * t**2),
            -(t**2) * (1 - t),
        ],
        axis=1,
    )
    columns = base[:, None] - 1 + np.arange(4)
    return csr_array(
        ((0.5 * weights).astype(np.float32).ravel(), columns.ravel(), np.arange(0, 4 * kept + 1, 4)), shape=(kept, size)
    )
