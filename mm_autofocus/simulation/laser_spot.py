"""The physics of a laser autofocus: an infrared beam through a 3:1 slit, reflected by the coverslip, on a small camera.

The pupil is a slit, so the field on the camera is a product of two one-dimensional fields, one for each side of the
slit, with two confocal parameters (6.4 and 55 µm). The reflected beam is defocused twice. Along image rows (axis 0)
lies the short confocal parameter, along columns (axis 1) the long one. Lengths are µm in the specimen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Images = NDArray[np.uint16]

RIPPLES = 8
_PUPIL_SAMPLES = 256
_OVERSAMPLING = 2
_SPECKLES = 12


@dataclass(frozen=True, slots=True)
class LaserOptics:
    """What is built and does not drift.

    Attributes
    ----------
    objective
        Name of the objective, which a trained model belongs to.
    wavelength_um, index
        Wavelength of the laser, and refractive index between objective and coverslip.
    na_short, na_long
        Half widths of the slit's long and short side, as numerical apertures: the short and the long confocal
        parameter.
    beam_na
        Radius (1/e of the field) of the Gaussian beam at the slit.
    field_um, pixels
        Side of the camera's square field in the specimen, and its pixels.
    full_well, bits, black, read_noise
        Electrons at full scale, bits of the converter, its black level in counts, and read noise in electrons.
    peak
        Peak at best focus as a fraction of full scale, at ``exposure_ms``; above 1 the centre saturates.
    exposure_ms
        Exposure that ``peak`` is for.
    """

    objective: str = "simulated-100x"
    wavelength_um: float = 0.830
    index: float = 1.515
    na_short: float = 0.36
    na_long: float = 0.12
    beam_na: float = 0.5
    field_um: float = 36.0
    pixels: int = 192
    full_well: float = 40_000.0
    bits: int = 12
    black: int = 16
    read_noise: float = 6.0
    peak: float = 1.3
    exposure_ms: float = 1.0


@dataclass(frozen=True, slots=True)
class LaserState:
    """What drifts: the alignment of the autofocus optics at one moment.

    Attributes
    ----------
    shift_short_um, shift_long_um
        Position of the spot on the camera.
    axis_offset_um
        Focus of the long axis minus that of the short one (astigmatism).
    zero_um
        Stage position of zero defocus relative to the coverslip: the drift between autofocus and imaging plane.
    tilt_short, tilt_long
        Tilt of the reflected beam, as numerical aperture: the spot walks with defocus.
    decentre_short, decentre_long
        Where the beam meets the slit, as numerical aperture.
    rotation_deg, magnification
        Of the camera.
    spherical, coma_short, coma_long
        In waves at the edge of the slit.
    power, stray
        Of the laser, relative; stray light as a fraction of full scale.
    ghost, ghost_short_um, ghost_long_um, ghost_width_um, ghost_phase, visibility
        A second, coherent reflection: strength as a fraction of full scale, place, radius, phase, fringe visibility.
    ripple_short, ripple_long
        Unevenness of the beam across the slit, one number for each of `RIPPLES` harmonics.
    speckle
        Contrast of the speckle from the rough coverslip.
    """

    shift_short_um: float = 0.0
    shift_long_um: float = 0.0
    axis_offset_um: float = 3.0
    zero_um: float = 0.0
    tilt_short: float = 0.010
    tilt_long: float = 0.006
    decentre_short: float = 0.06
    decentre_long: float = 0.02
    rotation_deg: float = 0.5
    magnification: float = 1.0
    spherical: float = 0.12
    coma_short: float = 0.10
    coma_long: float = 0.05
    power: float = 1.0
    stray: float = 0.004
    ghost: float = 0.005
    ghost_short_um: float = -4.0
    ghost_long_um: float = 3.0
    ghost_width_um: float = 5.0
    ghost_phase: float = 0.0
    visibility: float = 0.35
    ripple_short: tuple[float, ...] = (0.0,) * RIPPLES
    ripple_long: tuple[float, ...] = (0.0,) * RIPPLES
    speckle: float = 0.02


@dataclass(frozen=True, slots=True)
class Shot:
    """What differs from image to image.

    Attributes
    ----------
    exposure_ms
        Exposure; None for that of the optics.
    laser_on
        False for a dark laser: stray light only.
    reflection
        Fraction of light that comes back; 0 when the coverslip is missing.
    power_noise
        SD of the laser's power from image to image.
    z_noise_um
        SD of the stage and the coverslip from image to image.
    coverslip_tilt_mrad
        SD of the coverslip's local tilt, drawn once for the images of one call.
    """

    exposure_ms: float | None = None
    laser_on: bool = True
    reflection: float = 1.0
    power_noise: float = 0.01
    z_noise_um: float = 0.010
    coverslip_tilt_mrad: float = 0.3


_SHOT = Shot()


class LaserSpot:
    """Makes the images of one laser autofocus.

    Parameters
    ----------
    optics
        What is built.
    seed
        Fixes the camera window's dust and the pixels' gains.
    """

    def __init__(self, optics: LaserOptics | None = None, seed: int = 0) -> None:
        self.optics = optics or LaserOptics()
        o = self.optics
        self._k = 2 * np.pi / o.wavelength_um
        samples = o.pixels * _OVERSAMPLING
        self._u = (np.arange(samples) + 0.5) / samples * o.field_um - o.field_um / 2
        self._pupil = (np.arange(_PUPIL_SAMPLES) + 0.5) / _PUPIL_SAMPLES * 2 - 1
        rng = np.random.default_rng([seed, 41])
        self._gain = self._window(rng)
        self._speckle = self._speckles(rng)

    def images(
        self, defocus_um: Array | float, state: LaserState, rng: np.random.Generator, shot: Shot = _SHOT
    ) -> Images:
        """Return camera images.

        Parameters
        ----------
        defocus_um
            Stage minus coverslip, µm; one number per image.
        state
            The alignment.
        rng
            Draws noise, speckle, power and tilt.
        shot
            Exposure and what else differs from image to image.

        Returns
        -------
        ndarray
            Counts, shape (images, pixels, pixels).
        """
        o = self.optics
        z = np.atleast_1d(np.asarray(defocus_um, dtype=float))
        z = z + state.zero_um + shot.z_noise_um * rng.standard_normal(z.size)
        tilt = 2 * o.index * shot.coverslip_tilt_mrad * 1e-3 * rng.standard_normal(2)
        exposure = (shot.exposure_ms or o.exposure_ms) / o.exposure_ms
        light = exposure * state.power * shot.reflection * np.exp(shot.power_noise * rng.standard_normal(z.size))
        out = np.empty((z.size, o.pixels, o.pixels), dtype=np.uint16)
        if not shot.laser_on or shot.reflection <= 0:
            for i in range(z.size):
                out[i] = self._read(np.zeros((o.pixels, o.pixels), dtype=np.float32), state, exposure, rng)
            return out
        short, long = self._fields(z, state, float(tilt[0]), float(tilt[1]))
        amplitude = np.sqrt(o.peak * o.full_well / self._peak)
        rows = (_bin(np.abs(short) ** 2) * amplitude).astype(np.float32)
        columns = (_bin(np.abs(long) ** 2) * amplitude).astype(np.float32)
        ghost_short, ghost_long = self._ghost(state)
        strength = np.sqrt(state.ghost * o.full_well)
        ghost = strength**2 * np.outer(_bin(np.abs(ghost_short) ** 2), _bin(np.abs(ghost_long) ** 2))
        cross_short = _bin(short * ghost_short.conj()) * (2 * state.visibility * amplitude * strength)
        cross_long = _bin(long * ghost_long.conj())
        rotate = self._rotation(state.rotation_deg)
        for i in range(z.size):
            phase = np.exp(1j * (2 * self._k * o.index * z[i] + state.ghost_phase))
            a, b = (cross_short[i] * phase).astype(np.complex64), cross_long[i].astype(np.complex64)
            image = np.outer(rows[i], columns[i]) + np.outer(a.real, b.real) - np.outer(a.imag, b.imag)
            image = np.maximum(rotate(image) + ghost.astype(np.float32), 0.0)
            pattern = self._speckle[rng.integers(_SPECKLES)]
            roll = rng.integers(o.pixels, size=2)
            pattern = np.roll(pattern, tuple(int(r) for r in roll), axis=(0, 1))
            image *= np.float32(light[i]) * self._gain * np.maximum(1 + np.float32(state.speckle) * pattern, 0)
            out[i] = self._read(image, state, exposure, rng)
        return out

    # ------------------------------------------------------------------ fields
    def _fields(
        self, z: Array, s: LaserState, tilt_short: float, tilt_long: float
    ) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        o = self.optics
        short = self._field(
            z, o.na_short, s.decentre_short, s.ripple_short, s.tilt_short + tilt_short, s.spherical, s.coma_short,
            s.shift_short_um, s.magnification,
        )  # fmt: skip
        long = self._field(
            z - s.axis_offset_um, o.na_long, s.decentre_long, s.ripple_long, s.tilt_long + tilt_long, 0.0, s.coma_long,
            s.shift_long_um, s.magnification,
        )  # fmt: skip
        return short, long

    def _field(
        self,
        z: Array,
        na: float,
        decentre: float,
        ripple: tuple[float, ...],
        tilt: float,
        spherical: float,
        coma: float,
        shift: float,
        magnification: float,
    ) -> NDArray[np.complex128]:
        """Field along one axis, shape (images, samples): E(u) = Σ A(p) exp(i[2 k n z (√(1-s²)-1) + Φ]) exp(i k p u)."""
        o, t = self.optics, self._pupil
        p = t * na
        amplitude = np.exp(-(((p - decentre) / o.beam_na) ** 2))
        for m, height in enumerate(ripple):
            amplitude = amplitude * (1 + height * np.cos((m + 2) * np.pi * (t + 1) / 2 + m))
        path = np.sqrt(1 - ((p + tilt) / o.index) ** 2) - 1
        fixed = spherical * (35 * t**4 - 30 * t**2 + 3) / 8 + coma * (5 * t**3 - 3 * t) / 2
        phase = 2 * self._k * o.index * np.outer(z, path) + 2 * np.pi * fixed
        pupil = (amplitude * np.exp(1j * phase)).astype(np.complex64)
        kernel = np.exp(1j * self._k * np.outer(p, (self._u - shift) / magnification)).astype(np.complex64)
        field: NDArray[np.complex128] = (pupil @ kernel).astype(np.complex128) * (p[1] - p[0])
        return field

    def _ghost(self, s: LaserState) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        u = self._u
        short = np.exp(-(((u - s.ghost_short_um) / s.ghost_width_um) ** 2) + 0.05j * self._k * u)
        long = np.exp(-(((u - s.ghost_long_um) / s.ghost_width_um) ** 2) + 0.02j * self._k * u)
        return short, long

    @cached_property
    def _peak(self) -> float:
        z, ideal, o = np.linspace(-2, 4, 61), (0.0,) * RIPPLES, self.optics
        short = _bin(np.abs(self._field(z, o.na_short, 0, ideal, 0, 0, 0, 0, 1)) ** 2)
        long = _bin(np.abs(self._field(z - 3, o.na_long, 0, ideal, 0, 0, 0, 0, 1)) ** 2)
        return float((short.max(1) * long.max(1)).max())

    # ------------------------------------------------------------------ camera
    def _read(
        self, electrons: NDArray[np.float32], state: LaserState, exposure: float, rng: np.random.Generator
    ) -> Images:
        o = self.optics
        electrons = electrons + np.float32(state.stray * o.full_well * exposure)
        noise = rng.standard_normal(electrons.shape, dtype=np.float32)
        electrons = electrons + np.sqrt(electrons + np.float32(o.read_noise**2)) * noise
        top = 2**o.bits - 1
        counts = electrons * np.float32(top / o.full_well) + o.black
        image: Images = np.clip(counts, 0, top).astype(np.uint16)
        return image

    def _window(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Gains of the pixels, with 25 dust grains on the window."""
        n = self.optics.pixels
        gain = 1 + 0.01 * rng.standard_normal((n, n))
        y, x = np.ogrid[:n, :n]
        for _ in range(25):
            cy, cx = rng.uniform(0, n, 2)
            distance = ((y - cy) ** 2 + (x - cx) ** 2) / rng.uniform(1, 4) ** 2
            gain = gain * (1 - rng.uniform(0.03, 0.15) * np.exp(-distance))
        return gain.astype(np.float32)

    def _speckles(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Patterns of unit contrast, about 6 pixels a grain, periodic so that they can be rolled."""
        n = self.optics.pixels
        frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
        spectrum = np.fft.rfft2(rng.standard_normal((_SPECKLES, n, n))) * np.exp(-((frequency * 6) ** 2) * 4)
        patterns = np.fft.irfft2(spectrum, (n, n))
        patterns /= patterns.std(axis=(1, 2), keepdims=True)
        return patterns.astype(np.float32)

    def _rotation(self, degrees: float) -> _Rotation:
        return _Rotation(self.optics.pixels, degrees)


class _Rotation:
    """Rotates images about their centre, bilinearly."""

    def __init__(self, pixels: int, degrees: float) -> None:
        self._identity = abs(degrees) < 1e-3
        if self._identity:
            return
        angle = np.deg2rad(degrees)
        cosine, sine, centre = np.cos(angle), np.sin(angle), (pixels - 1) / 2
        y, x = np.mgrid[:pixels, :pixels] - centre
        rows = np.clip(cosine * y - sine * x + centre, 0, pixels - 1.001)
        columns = np.clip(sine * y + cosine * x + centre, 0, pixels - 1.001)
        row, column = rows.astype(np.int64), columns.astype(np.int64)
        self._at = row * pixels + column
        self._pixels = pixels
        fy, fx = (rows - row).astype(np.float32), (columns - column).astype(np.float32)
        self._weights = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._identity:
            return image
        flat, at, n = image.ravel(), self._at, self._pixels
        a, b, c, d = self._weights
        rotated: NDArray[np.float32] = (
            flat.take(at) * a + flat.take(at + 1) * b + flat.take(at + n) * c + flat.take(at + n + 1) * d
        )
        return rotated


def _bin(values: NDArray[Any]) -> NDArray[Any]:
    """Average the samples of each pixel along the last axis."""
    binned: NDArray[Any] = values.reshape(*values.shape[:-1], -1, _OVERSAMPLING).mean(-1)
    return binned
