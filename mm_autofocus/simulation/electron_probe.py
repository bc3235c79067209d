"""The electron probe: what defocus, astigmatism, aperture and lens make of a point, as transfer functions of a frame.

A ray through the aperture at angle α·u (u in the unit disc) of a column off by defocus ``z``, astigmatism ``(a, b)``,
all µm, meets the specimen at ``M u`` with ``M = α [[z + a, b], [b, z - a]]``, x (columns) first, y down the rows. The
probe is the image of the aperture under M, so its transfer function is that of the aperture at ``q = Mᵀ k``: for an
evenly lit disc 2 J1(|q|) / |q|. Times exp(-k² σ² / 2) for the core that is left in focus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import j1

Frame = NDArray[np.float32]
"""Shape (height, width)."""

ENERGY_SPREAD_EV = 0.3
"""Standard deviation of the beam's energy, a Schottky emitter with its Boersch broadening."""

CHROMATIC_MM = 2.0
"""Chromatic aberration coefficient of the objective."""

_RAYS = 60_000
_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


class ProbeFamily(StrEnum):
    """Shape of the probe out of focus."""

    DISC = "disc"
    """Evenly lit round aperture, geometric."""
    SOFT = "soft"
    """Disc mixed with a Gaussian of the same width, as `Probe.softness` says."""
    POLYGON = "polygon"
    """Irregular polygon, drawn by `Probe.seed`: an aperture that is dirty or was cut badly."""
    WAVE = "wave"
    """Traced rays with spherical and chromatic aberration, times the aperture's diffraction."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A beam as it leaves the objective.

    Attributes
    ----------
    convergence_mrad
        Half-angle α at the specimen.
    core_nm
        Standard deviation of the probe in focus, with the interaction volume's share.
    softness
        Share of the Gaussian, 0 to 1; `ProbeFamily.SOFT` only.
    family
        Shape out of focus.
    voltage_kv
        Landing energy; `ProbeFamily.WAVE` only.
    cs_mm
        Spherical aberration coefficient; `ProbeFamily.WAVE` only.
    seed
        Draws the polygon; `ProbeFamily.POLYGON` only.
    """

    convergence_mrad: float = 8.7
    core_nm: float = 6.0
    softness: float = 0.0
    family: ProbeFamily = ProbeFamily.SOFT
    voltage_kv: float = 1.5
    cs_mm: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("convergence_mrad", "voltage_kv"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")
        for name in ("core_nm", "cs_mm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
        if not 0 <= self.softness <= 1:
            raise ValueError(f"softness={self.softness} must be 0 to 1, the share of the Gaussian.")

    @property
    def wavelength_um(self) -> float:
        """De Broglie wavelength, h / sqrt(2 m e V), µm."""
        return 1.2264e-3 / math.sqrt(self.voltage_kv * 1e3)


def otf(
    shape: tuple[int, int],
    pixel_um: float,
    z_um: float,
    a_um: float,
    b_um: float,
    probe: Probe,
    shift_px: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float32] | NDArray[np.complex64]:
    """Return the transfer function of a frame, to multiply `scipy.fft.rfft2` of the specimen with.

    Parameters
    ----------
    shape
        Frame (height, width).
    pixel_um
        Pixel size in the specimen, µm.
    z_um, a_um, b_um
        Defocus and astigmatic defocus along the image's axes and diagonals, µm.
    probe
        The beam.
    shift_px
        Displacement (x, y) of the image, pixels, positive to the right and down.

    Returns
    -------
    array
        Shape (height, width // 2 + 1), 1 at zero frequency; float32 where it is real (no shift, symmetric aperture),
        else complex64.
    """
    height, width = shape
    kx, ky = _frequencies(height, width)
    matrix = probe.convergence_mrad * 1e-3 / pixel_um * np.array([[z_um + a_um, b_um], [b_um, z_um - a_um]])
    transfer: NDArray[np.float32] | NDArray[np.complex64]
    match probe.family:
        case ProbeFamily.DISC | ProbeFamily.SOFT:
            softness = probe.softness if probe.family is ProbeFamily.SOFT else 0.0
            transfer = _disc(matrix, kx, ky, softness)
        case ProbeFamily.POLYGON:
            u = _polygon_rays(probe.seed)
            transfer = _traced((matrix @ u).astype(np.float32), height, width)
        case ProbeFamily.WAVE:
            transfer = _traced(_aberrated(matrix, probe, pixel_um), height, width) * _diffraction(
                kx, ky, probe, pixel_um
            )
    core = (probe.core_nm * 1e-3 / pixel_um) ** 2 / 2.0
    transfer *= np.exp(-core * kx * kx)
    transfer *= np.exp(-core * ky * ky)
    dx, dy = shift_px
    if dx or dy:
        phase = np.exp(-1j * dy * ky).astype(np.complex64) * np.exp(-1j * dx * kx).astype(np.complex64)
        transfer = np.asarray(phase * transfer, dtype=np.complex64)
    return transfer


def blurred(
    specimen: Frame,
    pixel_um: float,
    z_um: float,
    a_um: float,
    b_um: float,
    probe: Probe,
    shift_px: tuple[float, float] = (0.0, 0.0),
) -> Frame:
    """Return the specimen as this probe shows it, without noise; the frame's edges wrap around.

    Parameters are those of `otf`; ``specimen`` has shape (height, width) and dtype float32.
    """
    height, width = specimen.shape
    transfer = otf((height, width), pixel_um, z_um, a_um, b_um, probe, shift_px)
    spectrum = fft.rfft2(np.asarray(specimen, dtype=np.float32), workers=1)
    spectrum *= transfer
    return np.asarray(fft.irfft2(spectrum, s=(height, width), workers=1, overwrite_x=True), dtype=np.float32)


def _frequencies(height: int, width: int) -> tuple[Frame, Frame]:
    """Return kx of shape (1, width // 2 + 1) and ky of shape (height, 1), radians per pixel."""
    kx = (2.0 * np.pi * np.fft.rfftfreq(width)).astype(np.float32)[None, :]
    ky = (2.0 * np.pi * np.fft.fftfreq(height)).astype(np.float32)[:, None]
    return kx, ky


def _disc(matrix: NDArray[np.float64], kx: Frame, ky: Frame, softness: float) -> Frame:
    """Return 2 J1(q) / q mixed with exp(-q² / 8), the Gaussian of the disc's second moment."""
    m = matrix.astype(np.float32)
    q_squared = np.square(m[0, 0] * kx + m[1, 0] * ky) + np.square(m[0, 1] * kx + m[1, 1] * ky)
    if softness == 1.0:
        return np.asarray(np.exp(q_squared / np.float32(-8.0)), dtype=np.float32)
    q = np.sqrt(np.maximum(q_squared, np.float32(1e-6)))
    transfer = np.asarray(j1(q), dtype=np.float32)
    transfer /= q
    transfer *= np.float32(2.0 * (1.0 - softness))
    if softness:
        transfer += np.float32(softness) * np.exp(q_squared / np.float32(-8.0))
    return transfer


def _sunflower() -> NDArray[np.float64]:
    """Return points that fill the unit disc evenly, shape (2, rays)."""
    i = np.arange(_RAYS) + 0.5
    radius, angle = np.sqrt(i / _RAYS), i * _GOLDEN_ANGLE
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)])


@lru_cache(maxsize=16)
def _polygon_rays(seed: int) -> NDArray[np.float64]:
    """Return points that fill an irregular polygon evenly, centred, of the unit disc's second moment; shape (2, n)."""
    rng = np.random.default_rng([0x9017, seed])
    corners = int(rng.integers(5, 8))
    angle = 2.0 * np.pi * (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) / corners + rng.uniform(0.0, np.pi)
    radius = rng.uniform(0.8, 1.2, corners)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    u = 1.3 * _sunflower()
    inside = np.ones(u.shape[1], dtype=bool)
    # Convex or nearly so: a point is inside where it lies left of every edge.
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        inside &= (x1 - x0) * (u[1] - y0) - (y1 - y0) * (u[0] - x0) >= 0
    u = u[:, inside]
    u -= u.mean(axis=1, keepdims=True)
    return u / math.sqrt(2.0 * np.mean(np.sum(u**2, axis=0)))


@lru_cache(maxsize=1)
def _energy_quantiles() -> NDArray[np.float64]:
    """Return standard normal deviates, one to a ray of `_sunflower`, in an order unrelated to the ray's place."""
    from scipy.special import ndtri

    order = np.random.default_rng(0xE4E).permutation(_RAYS)
    return np.asarray(ndtri((order + 0.5) / _RAYS), dtype=np.float64)


def _aberrated(matrix: NDArray[np.float64], probe: Probe, pixel_um: float) -> Frame:
    """Return where rays land, pixels, shape (2, rays): M u, plus Cs α³ |u|² u, plus Cc (ΔE / E) α u."""
    alpha = probe.convergence_mrad * 1e-3
    u = _sunflower()
    spread_um = CHROMATIC_MM * 1e3 * ENERGY_SPREAD_EV / (probe.voltage_kv * 1e3) * _energy_quantiles()
    # Spherical aberration counts from the plane of least confusion, 3/4 of the way to the marginal focus, where an
    # operator would focus: its best setting then is z = 0.
    spherical_um = probe.cs_mm * 1e3 * alpha**2 * (np.sum(u**2, axis=0) - 0.75)
    landing = matrix @ u + alpha / pixel_um * (spherical_um + spread_um) * u
    return np.asarray(landing, dtype=np.float32)


def _diffraction(kx: Frame, ky: Frame, probe: Probe, pixel_um: float) -> Frame:
    """Return the overlap of two apertures λk apart: the transfer function of a perfect lens.

    Defocus and astigmatism are quadratic, so the phase between the two apertures is linear, exactly that of the traced
    rays; multiplying by the overlap is exact in focus, and elsewhere as long as λk is small against the aperture.
    """
    alpha = probe.convergence_mrad * 1e-3
    s = np.sqrt(kx * kx + ky * ky) * np.float32(probe.wavelength_um / (2.0 * np.pi * pixel_um) / (2.0 * alpha))
    s = np.minimum(s, np.float32(1.0))
    return np.asarray((np.arccos(s) - s * np.sqrt(1.0 - s * s)) * np.float32(2.0 / np.pi), dtype=np.float32)


def _traced(landing: Frame, height: int, width: int) -> NDArray[np.complex64]:
    """Return the transfer function of rays that land at these pixels, shape (2, rays)."""
    column, row = np.floor(landing[0]).astype(np.intp), np.floor(landing[1]).astype(np.intp)
    fx, fy = landing[0] - column, landing[1] - row
    left, right = column % width, (column + 1) % width
    top, bottom = (row % height) * width, ((row + 1) % height) * width
    index = np.concatenate([top + left, top + right, bottom + left, bottom + right])
    weight = np.concatenate([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    spot = np.bincount(index, weight, minlength=height * width).reshape(height, width) / landing.shape[1]
    transfer = fft.rfft2(spot.astype(np.float32), workers=1)
    # Sharing a ray between four pixels is a convolution with a triangle, whose sinc² is divided out again.
    transfer /= np.square(np.sinc(np.fft.rfftfreq(width))).astype(np.float32)[None, :]
    transfer /= np.square(np.sinc(np.fft.fftfreq(height))).astype(np.float32)[:, None]
    return np.asarray(transfer, dtype=np.complex64)
