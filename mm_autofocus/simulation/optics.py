"""Widefield light optics: how a thin layer, so many µm out of focus, reaches the camera.

Everything is an intensity transfer function of spatial frequency and defocus. Fluorescence integrates a pupil function
(Gibson & Lanni, J. Opt. Soc. Am. A 9, 154 (1992) for the aberrations of a mismatched cover glass and specimen;
Hanser et al., J. Microsc. 216, 32 (2004) for the apodisation); brightfield uses the weak-object transfer function under
partially coherent light (Streibl, J. Opt. Soc. Am. A 2, 121 (1985)).

Sign of defocus: stage z minus the z at which the layer is in focus, in µm of stage travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0, j1, jn

Family = Literal["scalar", "vectorial", "gaussian", "astigmatic"]
"""Ways to compute the blur: the scalar pupil, Richards & Wolf's vector pupil, a Gaussian beam (symmetric about focus),
and a scalar pupil whose focus differs between directions."""

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

_MAX_DEFOCUS_UM = 160.0  # the blur is wider than the field there: further out nothing changes
_FREQUENCY_STEP = 0.00125  # cycles per µm
_ANGLE_BINS = 17


@dataclass(frozen=True, slots=True)
class Optics:
    """The objective, what it looks through, and how its blur is computed.

    Attributes
    ----------
    na, immersion_index
        Numerical aperture and refractive index of the immersion medium.
    pixel_um
        Size of one camera pixel in the specimen, µm.
    coverslip_index, coverslip_error_um
        Refractive index of the plate's bottom, and how much thicker it is than the objective is corrected for, µm.
    sample_index, sample_depth_um
        Refractive index of the specimen's medium, and how deep in it the specimen lies, µm. Both errors give spherical
        aberration, so the blur above focus differs from the blur below.
    condenser_na
        Numerical aperture of the condenser, for brightfield.
    family
        How the blur is computed, see `Family`.
    astigmatism_um
        Distance in z between the two line foci, for the ``astigmatic`` family.

    Raises
    ------
    ValueError
        For an aperture, pixel or family that cannot be.
    """

    na: float = 0.75
    immersion_index: float = 1.0
    pixel_um: float = 0.325
    coverslip_index: float = 1.52
    coverslip_error_um: float = 10.0
    sample_index: float = 1.36
    sample_depth_um: float = 5.0
    condenser_na: float = 0.3
    family: Family = "scalar"
    astigmatism_um: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.na < min(self.immersion_index, self.coverslip_index, self.sample_index):
            raise ValueError(
                f"na={self.na} must be above 0 and below the refractive indices "
                f"(immersion {self.immersion_index}, cover glass {self.coverslip_index}, sample {self.sample_index})."
            )
        if not self.pixel_um > 0:
            raise ValueError(f"pixel_um={self.pixel_um} must be above 0.")
        if not 0 < self.condenser_na <= self.na:
            raise ValueError(f"condenser_na={self.condenser_na} must be above 0 and at most na={self.na}.")
        if self.family not in get_args(Family):
            raise ValueError(f"family={self.family!r} is unknown; choose one of {', '.join(get_args(Family))}.")

    def depth_of_field_um(self, wavelength_um: float) -> float:
        """Return n·λ/NA² + n·e/NA in µm, e being the pixel in the specimen.

        Source: Inoué & Spring, Video Microscopy, 2nd ed. (1997), section 2.5; the form that Nikon's MicroscopyU gives
        (Shillaber's wave term plus the detector term). The range is total, so focus is good to ± half of it.
        """
        n = self.immersion_index
        return n * wavelength_um / self.na**2 + n * self.pixel_um / self.na

    def aberration_um(self, rho: FloatArray) -> FloatArray:
        """Return the optical path error over the pupil, less its piston and its defocus.

        Parameters
        ----------
        rho
            Pupil radius, 0 to 1.

        Returns
        -------
        ndarray
            Path error in µm, the shape of ``rho``.
        """
        sine_squared = (self.na * np.linspace(0.0, 1.0, 256)) ** 2
        at_rho = (self.na * rho) ** 2
        weight = np.sqrt(np.linspace(0.0, 1.0, 256))  # least squares over the area of the pupil

        def error(s: FloatArray) -> FloatArray:
            glass = np.sqrt(self.coverslip_index**2 - s)
            sample = np.sqrt(self.sample_index**2 - s)
            return np.asarray(self.coverslip_error_um * glass + self.sample_depth_um * sample)

        def basis(s: FloatArray) -> FloatArray:
            return np.stack([np.ones_like(s), np.sqrt(self.immersion_index**2 - s)], axis=-1)

        fit, *_ = np.linalg.lstsq(basis(sine_squared) * weight[:, None], error(sine_squared) * weight, rcond=None)
        return np.asarray(error(at_rho) - basis(at_rho) @ fit)


def _max_frequency(optics: Optics) -> float:
    """Highest spatial frequency the camera samples, along the diagonal, cycles per µm."""
    return float(np.sqrt(2.0) / (2.0 * optics.pixel_um))


def _frequencies(optics: Optics) -> FloatArray:
    return np.arange(0.0, _max_frequency(optics) + 2 * _FREQUENCY_STEP, _FREQUENCY_STEP)


def _fluorescence_otf(optics: Optics, wavelength_um: float, z: FloatArray, frequency: FloatArray) -> FloatArray:
    """Return the OTF, shape (len(z), len(frequency)), z in µm along the immersion medium.

    The amplitude is a Hankel transform of the pupil, the OTF one of its squared modulus.
    """
    reach = float(np.abs(z).max()) * np.tan(np.arcsin(optics.na / optics.immersion_index))
    radius = np.arange(0.06, 1.25 * reach + 15.0, 0.12)
    n_rho = max(128, int(3.0 * radius[-1] * optics.na / wavelength_um))
    rho = (np.arange(n_rho) + 0.5) / n_rho
    sine = optics.na * rho
    cosine = np.sqrt(1.0 - (sine / optics.immersion_index) ** 2)
    k = 2.0 * np.pi / wavelength_um
    path = np.outer(optics.immersion_index * (cosine - 1.0), z) + optics.aberration_um(rho)[:, None]
    pupil = (rho / np.sqrt(cosine))[:, None] * np.exp(1j * k * path)
    bessel_argument = np.outer(k * radius, sine)

    def power(order: int, weight: FloatArray) -> FloatArray:
        kernel = (jn(order, bessel_argument) if order > 1 else (j0, j1)[order](bessel_argument)) * weight
        kernel = kernel.astype(np.float32)
        real = kernel @ pupil.real.astype(np.float32)
        imaginary = kernel @ pupil.imag.astype(np.float32)
        return np.asarray(real.astype(np.float64) ** 2 + imaginary.astype(np.float64) ** 2)

    if optics.family == "vectorial":
        # Richards & Wolf, Proc. R. Soc. A 253, 358 (1959), averaged over the polarisation
        sine_inside = sine / optics.immersion_index
        psf = power(0, 1 + cosine) + 2 * power(1, sine_inside) + power(2, 1 - cosine)
    else:
        psf = power(0, np.ones_like(rho))
    transform = j0(2 * np.pi * np.outer(frequency, radius)) * radius
    otf = transform.astype(np.float32) @ psf.astype(np.float32)
    return np.asarray((otf / (radius @ psf)).T, dtype=np.float64)


@lru_cache(maxsize=32)
def best_focus_shift_um(optics: Optics, wavelength_um: float) -> float:
    """Return the z, along the immersion medium, at which a flat-spectrum object looks sharpest.

    Sharpest: the most power in the image, over the frequencies that the camera samples. Defocus counts from there.
    """
    z = np.linspace(-4.0, 4.0, 161)
    frequency = np.linspace(0.02, 1.0 / (2.0 * optics.pixel_um), 128)
    otf = _fluorescence_otf(optics, wavelength_um, z, frequency)
    power = (otf**2 * frequency).sum(axis=1)
    i = int(np.clip(power.argmax(), 1, z.size - 2))
    left, middle, right = power[i - 1 : i + 2]
    return float(z[i] + 0.5 * (z[1] - z[0]) * (left - right) / (left - 2 * middle + right))


class FluorescenceTransfer:
    """The OTF of one emission wavelength, tabulated once over defocus and spatial frequency.

    Parameters
    ----------
    optics
        The objective.
    wavelength_um
        Emission wavelength, µm.
    """

    def __init__(self, optics: Optics, wavelength_um: float) -> None:
        self.optics = optics
        self.wavelength_um = wavelength_um
        self.frequency = _frequencies(optics)
        # fine near focus, 2 % far from it
        self._scale, self._step = 4.0, 0.025
        self._last = int(np.ceil(np.arcsinh(_MAX_DEFOCUS_UM / self._scale) / self._step))
        u = np.arange(-self._last, self._last + 1) * self._step
        z = self._scale * np.sinh(u)
        if optics.family == "gaussian":
            # waist fitted to the core of an Airy disc, divergence to the second moment of the defocused disc
            waist = 0.21 * wavelength_um / optics.na
            spread = 0.5 * np.tan(np.arcsin(optics.na / optics.immersion_index)) * z
            variance = waist**2 + spread**2
            table = np.exp(-2.0 * np.pi**2 * np.outer(variance, self.frequency**2))
        else:
            shift = best_focus_shift_um(optics, wavelength_um)
            table = _fluorescence_otf(optics, wavelength_um, z + shift, self.frequency)
        self._table = table.astype(np.float32)

    def profile(self, defocus_um: float) -> Float32Array:
        """Return the OTF against radial frequency at one defocus, shape (n_directions, n_frequencies).

        Rows are directions from x to y, evenly spaced in cos 2θ; one row when the blur is round.
        """
        if self.optics.family != "astigmatic":
            return self._row(defocus_um)[None]
        half = self.optics.astigmatism_um / 2
        return np.stack([self._row(defocus_um + half * c) for c in np.linspace(1.0, -1.0, _ANGLE_BINS)])

    def _row(self, defocus_um: float) -> Float32Array:
        place = np.arcsinh(defocus_um / self._scale) / self._step + self._last
        place = float(np.clip(place, 0.0, 2 * self._last))
        i = min(int(place), 2 * self._last - 1)
        t = np.float32(place - i)
        return np.asarray((1 - t) * self._table[i] + t * self._table[i + 1])


class BrightfieldTransfer:
    """How a weak absorbing and retarding object modulates transmitted light, against defocus.

    A layer's map m absorbs ``absorption`` · m (amplitude) and retards by ``phase`` · m radians. Its contrast is
    -2·(absorption·Re C + phase·Im C)·m in frequency space, where C is the transmission cross coefficient with the
    undiffracted light: a defocus phase factor, an envelope from the finite condenser, and the aperture's cut-off (the
    cross coefficient to first order in the source's extent). In focus Im C is small: an unstained cell nearly vanishes
    there and inverts its contrast on passing.

    Parameters
    ----------
    optics
        The objective and the condenser.
    wavelength_um
        Wavelength of the light, µm.
    absorption, phase
        Amplitude attenuation and phase per unit of the map.
    """

    def __init__(self, optics: Optics, wavelength_um: float, absorption: float, phase: float) -> None:
        self.optics = optics
        self.wavelength_um = wavelength_um
        self.absorption = absorption
        self.phase = phase
        self.frequency = _frequencies(optics)
        cut = optics.na / wavelength_um
        inside = np.minimum(self.frequency, cut)
        self._edge = int(np.searchsorted(self.frequency, cut)) - 1
        self._cosine = np.sqrt(optics.immersion_index**2 - (wavelength_um * inside) ** 2)
        self._aberration = optics.aberration_um(inside / cut)
        self._aperture = _disc_overlap(self.frequency, cut, optics.condenser_na / wavelength_um)
        self._shift = self._best_focus_shift()

    def _best_focus_shift(self) -> float:
        """Where an absorbing object of flat spectrum is sharpest, µm; defocus counts from there, as in fluorescence."""
        z = np.linspace(-4.0, 4.0, 161)
        seen = self.frequency < 1.0 / (2.0 * self.optics.pixel_um)
        weight = self.frequency[seen]

        def power(at: float) -> float:
            coefficient, phase = self._coefficient(at)
            return float(((coefficient * np.cos(phase))[seen] ** 2 * weight).sum())

        return float(z[np.argmax([power(float(at)) for at in z])])

    def _coefficient(self, z: float) -> tuple[FloatArray, FloatArray]:
        """Modulus and phase of the cross coefficient, z in µm along the immersion medium."""
        path = z * (self._cosine - self.optics.immersion_index) + self._aberration - self._aberration[0]
        phase = 2 * np.pi / self.wavelength_um * path
        gradient = np.gradient(phase, self.frequency)
        gradient[self._edge :] = gradient[self._edge - 1]  # beyond the edge of the pupil the phase is held
        x = np.maximum(np.abs(gradient) * self.optics.condenser_na / self.wavelength_um, 1e-6)
        return self._aperture * 2 * j1(x) / x, phase

    def profile(self, defocus_um: float) -> Float32Array:
        """Return the transfer against radial frequency at one defocus, shape (n_directions, n_frequencies)."""
        if self.optics.family != "astigmatic":
            return self._row(defocus_um)[None]
        half = self.optics.astigmatism_um / 2
        return np.stack([self._row(defocus_um + half * c) for c in np.linspace(1.0, -1.0, _ANGLE_BINS)])

    def _row(self, defocus_um: float) -> Float32Array:
        z = float(np.clip(defocus_um, -_MAX_DEFOCUS_UM, _MAX_DEFOCUS_UM)) + self._shift
        coefficient, phase = self._coefficient(z)
        wave = self.absorption * np.cos(phase) + self.phase * np.sin(phase)
        return np.asarray(-2.0 * coefficient * wave, dtype=np.float32)


Transfer = FluorescenceTransfer | BrightfieldTransfer


@lru_cache(maxsize=16)
def fluorescence_transfer(optics: Optics, wavelength_um: float) -> FluorescenceTransfer:
    """Return the (cached) fluorescence transfer of one objective and emission wavelength."""
    return FluorescenceTransfer(optics, wavelength_um)


def _disc_overlap(shift: FloatArray, large: float, small: float) -> FloatArray:
    """Return the fraction of the small disc that lies inside the large one, whose centre is ``shift`` away."""
    d = np.clip(shift, large - small + 1e-12, large + small - 1e-12)
    a = np.arccos(np.clip((d**2 + small**2 - large**2) / (2 * d * small), -1, 1))
    b = np.arccos(np.clip((d**2 + large**2 - small**2) / (2 * d * large), -1, 1))
    lens = small**2 * (a - np.sin(2 * a) / 2) + large**2 * (b - np.sin(2 * b) / 2)
    overlap = lens / (np.pi * small**2)
    return np.asarray(np.where(shift <= large - small, 1.0, np.where(shift >= large + small, 0.0, overlap)))


class FrequencyGrid:
    """Lays a radial profile out over the frequencies of a real 2-D Fourier transform.

    Parameters
    ----------
    size
        Side of the square image, pixels.
    optics
        For the pixel size and the family.
    """

    def __init__(self, size: int, optics: Optics) -> None:
        self.size = size
        fx = np.fft.rfftfreq(size, optics.pixel_um)[None, :]
        fy = np.fft.fftfreq(size, optics.pixel_um)[:, None]
        self.fx, self.fy = fx, fy
        index = np.rint(np.hypot(fx, fy) / _FREQUENCY_STEP).astype(np.intp)
        if optics.family == "astigmatic":
            direction = np.cos(2 * np.arctan2(np.abs(fy), fx))
            index = index + np.rint((1 - direction) / 2 * (_ANGLE_BINS - 1)).astype(np.intp) * _frequencies(optics).size
        self._index = index
        self.pixel_aperture: Float32Array = (np.sinc(fx * optics.pixel_um) * np.sinc(fy * optics.pixel_um)).astype(
            np.float32
        )

    def expand(self, profile: Float32Array) -> Float32Array:
        """Return the transfer on the grid, shape (size, size // 2 + 1), from a profile of `FluorescenceTransfer`."""
        return np.asarray(profile.reshape(-1).take(self._index))

    def shift(self, dx_um: float, dy_um: float) -> NDArray[np.complex64]:
        """Return the factor that moves an image by (dx, dy) µm, shape (size, size // 2 + 1)."""
        ramp_x = np.exp(-2j * np.pi * self.fx * dx_um).astype(np.complex64)
        ramp_y = np.exp(-2j * np.pi * self.fy * dy_um).astype(np.complex64)
        return np.asarray(ramp_y * ramp_x)
