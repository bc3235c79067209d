"""Defocus and astigmatism of a transmission electron microscope from the Thon rings of a pair of images.

A thin amorphous film is a weak phase object: the power spectrum of its image is modulated by sin²(χ - φ), with
χ = π λ k² (z + a cos 2θ + b sin 2θ) + π/2 Cs λ³ k⁴ (defocus z, two-fold astigmatism (a, b), both as lengths) and φ the
amplitude contrast. One image says neither the sign of z nor whether its rings belong to the transfer or to the
specimen. Two images a known step apart say both: their rings must differ by that step, and the step, not the nominal
pixel size, sets the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize

from mm_autofocus.errors import HardwareError
from mm_autofocus.strategy import Image

Array = NDArray[np.float64]

SECTORS = 36
"""Directions, 5° each, over the half plane of the spectrum."""
TABLE_STEP_UM = 0.004
REACH_UM = 12.0
"""Defocus of the steepest rings that are looked for."""
MAX_ASTIGMATISM_UM = 0.8
SCALES = (0.94, 0.97, 1.0, 1.03, 1.06)
"""Errors of the pixel size that a search begins with (their square root), refined by the fit."""
MAX_SCALE_ERROR = 0.12


@dataclass(frozen=True, slots=True)
class TransferOptics:
    """What the rings depend on beside defocus and astigmatism.

    Attributes
    ----------
    pixel_nm
        Size of a pixel in the specimen, nm; an error of 5 % does no harm, the pair tells.
    voltage_kv
        Acceleration voltage.
    cs_mm
        Spherical aberration of the objective lens.
    amplitude_contrast
        Share of amplitude contrast, 0 to 1.
    coarsest_nm, finest_nm
        The rings between these spacings are used: the specimen's own structure rules below, noise above.
    """

    pixel_nm: float
    voltage_kv: float = 200.0
    cs_mm: float = 1.2
    amplitude_contrast: float = 0.07
    coarsest_nm: float = 4.0
    finest_nm: float = 0.6

    @property
    def wavelength_nm(self) -> float:
        """Relativistic electron wavelength, nm (1.22643 / sqrt(U + 0.97845e-6 U²), U in volts)."""
        volts = self.voltage_kv * 1e3
        return 1.226426 / math.sqrt(volts + 0.97845e-6 * volts * volts)

    @property
    def phase_of_amplitude(self) -> float:
        """φ of the amplitude contrast, rad."""
        return math.asin(self.amplitude_contrast)


@dataclass(frozen=True, slots=True)
class TransferState:
    """Defocus and astigmatism of the objective lens, µm; overfocus is positive (χ above)."""

    defocus_um: float
    astigmatism_x_um: float = 0.0
    astigmatism_y_um: float = 0.0

    @property
    def astigmatism(self) -> Array:
        """(a, b), shape (2,), µm."""
        return np.array([self.astigmatism_x_um, self.astigmatism_y_um])


@dataclass(frozen=True, slots=True)
class RingEstimate:
    """What a pair, or one image, says.

    Attributes
    ----------
    state
        Defocus and astigmatism where ``steps`` are 0.
    sigma_um
        Standard deviation of the defocus, from the width of the maximum and the strength of the rings; that of each
        component of the astigmatism is about as large.
    strength
        Mean correlation of the rings with the model, 0 to 1.
    significance
        How far, in standard deviations of the correlation at wrong values, the weakest image stands out. The search
        finds up to 3.6 in pure noise.
    scale
        Step as the rings show it over the step that was commanded: the square of the true over the nominal pixel size,
        inverted. NaN for a single image.
    at_edge
        True when the best scale or defocus is at the edge of what was searched.
    """

    state: TransferState
    sigma_um: float
    strength: float
    significance: float
    scale: float = math.nan
    at_edge: bool = False


@dataclass(frozen=True, slots=True)
class Rings:
    """The rings of one image: what is left of its power spectrum when the slow background is gone.

    Attributes
    ----------
    frequency
        1/nm, shape (n,).
    modulation
        Shape (`SECTORS`, n), each row of unit weighted norm.
    weights
        Spectrum samples in each bin, shape (`SECTORS`, n).
    """

    frequency: Array
    modulation: Array
    weights: Array = field(repr=False)


def find_rings(image: Image, optics: TransferOptics) -> Rings:
    """Take the power spectrum of an image, in sectors, and remove its slow background.

    Raises
    ------
    HardwareError
        When the image is not a finite grey plane of at least 256 x 256 pixels, or is constant, or its pixels are too
        large for the rings.
    """
    data = np.asarray(image, float)
    if data.ndim != 2 or min(data.shape) < 256 or not np.isfinite(data).all():
        raise HardwareError(
            f"an image of shape {data.shape} cannot show Thon rings: a finite grey plane of at least 256 x 256 pixels "
            "is needed"
        )
    if not data.std() > 0:
        raise HardwareError("the image is constant: there is no beam, or the camera delivers nothing")
    low, high = 1.0 / optics.coarsest_nm, min(1.0 / optics.finest_nm, 0.45 / optics.pixel_nm)
    if high < 2.0 * low:
        raise HardwareError(
            f"pixels of {optics.pixel_nm:g} nm are too large for Thon rings of {optics.coarsest_nm:g} nm and finer; "
            "raise the magnification"
        )
    height, width = data.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.rfft2((data - data.mean()) * window)) ** 2
    ky = np.fft.fftfreq(height, optics.pixel_nm)[:, None]
    kx = np.fft.rfftfreq(width, optics.pixel_nm)[None, :]
    k, angle = np.hypot(kx, ky), np.mod(np.arctan2(ky, kx + 0.0 * ky), math.pi)
    step = 1.0 / (min(height, width) * optics.pixel_nm)
    bins = math.floor((high - low) / step)
    index = np.floor((k - low) / step).astype(int)
    inside = (index >= 0) & (index < bins) & (kx > 0)
    flat = np.minimum((angle[inside] / math.pi * SECTORS).astype(int), SECTORS - 1) * bins + index[inside]
    count = np.bincount(flat, minlength=SECTORS * bins).reshape(SECTORS, bins)
    total = np.bincount(flat, power[inside], minlength=SECTORS * bins).reshape(SECTORS, bins)
    logarithm = np.log(np.maximum(total, 1e-300) / np.maximum(count, 1))
    weights = count.astype(float)
    logarithm[count == 0] = 0.0
    frequency = low + (np.arange(bins) + 0.5) * step
    modulation = _high_passed(logarithm, weights, step)
    spread = 3.0 * np.sqrt(np.average(modulation**2, axis=1, weights=np.maximum(weights, 1e-12)))
    modulation = np.clip(modulation, -spread[:, None], spread[:, None])  # a Bragg spot is not a ring
    norm = np.sqrt((weights * modulation**2).sum(1))
    return Rings(frequency, modulation / np.maximum(norm, 1e-12)[:, None], weights)


def _high_passed(rows: Array, weights: Array, step: float, width: float = 0.08) -> Array:
    """Subtract the weighted running mean along the frequency; ``width`` is its standard deviation, 1/nm."""
    sigma = width / step
    mean = gaussian_filter1d(rows * weights, sigma, axis=-1) / np.maximum(
        gaussian_filter1d(weights, sigma, axis=-1), 1e-9
    )
    return np.where(weights > 0, rows - mean, 0.0)


_GRID = np.arange(-REACH_UM, REACH_UM + TABLE_STEP_UM / 2, TABLE_STEP_UM)
DAMPINGS_MRAD = (0.02, 0.06, 0.12)
"""Half-angles of illumination that are tried: it damps the rings by exp(-(π α z k)²)."""


@lru_cache(maxsize=4)
def _models(optics: TransferOptics, first: float, bins: int, step: float, damping_mrad: float) -> NDArray[np.float32]:
    """Modulation that each defocus of the table would show, high-passed as the data are; shape (grid, bins)."""
    k = first + np.arange(bins) * step
    lam, z = optics.wavelength_nm, _GRID[:, None] * 1e3
    twice_chi = 2.0 * math.pi * lam * z * k**2 + math.pi * optics.cs_mm * 1e6 * lam**3 * k**4
    twice_chi -= 2.0 * optics.phase_of_amplitude  # the sign goes with overfocus positive
    model = -np.cos(twice_chi) * np.exp(-((math.pi * damping_mrad * 1e-3 * z * k) ** 2))
    return _high_passed(model, np.broadcast_to(k, model.shape), step).astype(np.float32)


class _Table:
    """Correlation of each sector of each image with the rings of each defocus, looked up by the fit."""

    def __init__(self, rings: Sequence[Rings], optics: TransferOptics, damping_mrad: float) -> None:
        first = rings[0]
        step = float(first.frequency[1] - first.frequency[0])
        models = _models(optics, float(first.frequency[0]), len(first.frequency), step, damping_mrad)
        tables = []
        for image in rings:
            weighted = (image.weights * image.modulation).astype(np.float32)
            norm = np.sqrt(np.maximum(models**2 @ image.weights.T.astype(np.float32), 1e-12))
            tables.append((models @ weighted.T) / norm)
        self.values: Array = np.stack([table.T for table in tables]).astype(float)  # image, sector, defocus
        angle = (np.arange(SECTORS) + 0.5) * math.pi / SECTORS
        self.cos, self.sin = np.cos(2 * angle), np.sin(2 * angle)
        self.scatter = 1.4826 * np.median(
            np.abs(self.values.mean(1) - np.median(self.values.mean(1), axis=1)[:, None]), axis=1
        )
        """Standard deviation of an image's mean correlation at wrong defocus, shape (images,)."""

    def look_up(self, image: int, defocus_um: Array) -> Array:
        """Interpolated correlation; ``defocus_um`` has the sectors as its last axis."""
        position = np.clip((defocus_um + REACH_UM) / TABLE_STEP_UM, 0, len(_GRID) - 1.001)
        below = position.astype(int)
        part = position - below
        sectors = np.arange(SECTORS)
        table = self.values[image]
        found: Array = table[sectors, below] * (1 - part) + table[sectors, below + 1] * part
        return found

    def score(self, steps: Sequence[float], parameters: Array) -> Array:
        """Mean correlation of each image; parameters (..., 4) are z, a, b and scale; returns (images, ...)."""
        z, a, b, scale = (parameters[..., i, None] for i in range(4))
        astigmatism = a * self.cos + b * self.sin
        return np.stack([self.look_up(i, scale * (z + step + astigmatism)).mean(-1) for i, step in enumerate(steps)])


def estimate_pair(
    images: Sequence[Image],
    steps_um: Sequence[float],
    optics: TransferOptics,
    *,
    range_um: float = 3.0,
    astigmatism_um: float = 0.5,
) -> RingEstimate:
    """Fit two or more images that differ by known steps of defocus.

    Parameters
    ----------
    images
        Of the same place, shape (height, width) each.
    steps_um
        Defocus of each image, counted from the point that is asked about; they must not all be equal.
    optics
        See `TransferOptics`.
    range_um, astigmatism_um
        Search the defocus, and each component of the astigmatism, between plus and minus this.

    Raises
    ------
    HardwareError
        See `find_rings`.
    """
    if len(images) != len(steps_um) or len(set(steps_um)) < 2:
        raise ValueError(f"{len(images)} images with steps {list(steps_um)}: two different steps are needed at least")
    rings = [find_rings(image, optics) for image in images]
    table = _Table(rings, optics, DAMPINGS_MRAD[1])
    starts = _search(table, steps_um, range_um, astigmatism_um)
    value, parameters = _refined(table, steps_um, starts, range_um)
    for damping in (DAMPINGS_MRAD[0], *DAMPINGS_MRAD[2:]):
        other = _Table(rings, optics, damping)
        better, refined = _refined(other, steps_um, [parameters], range_um)
        if better > value:
            value, parameters, table = better, refined, other
    return _conclude(table, steps_um, parameters, range_um)


def _search(table: _Table, steps: Sequence[float], range_um: float, astigmatism_um: float) -> list[Array]:
    """Return the best points of a coarse grid, shape (4,) each."""
    z = np.arange(-range_um, range_um + 1e-9, 0.04)
    each = np.arange(-astigmatism_um, astigmatism_um + 1e-9, 0.1)
    starts: list[tuple[float, Array]] = []
    for a, b, scale in product(each, each, SCALES):
        grid = np.stack([z, np.full_like(z, a), np.full_like(z, b), np.full_like(z, scale)], -1)
        total = table.score(steps, grid).sum(0)
        i = int(total.argmax())
        starts.append((float(total[i]), grid[i]))
    starts.sort(key=lambda item: -item[0])
    return [start for _, start in starts[:6]]


def _refined(table: _Table, steps: Sequence[float], starts: Sequence[Array], range_um: float) -> tuple[float, Array]:
    """Climb by the simplex from each start; return the greatest correlation and where it is."""

    def cost(p: Array) -> float:
        beyond = max(abs(p[0]) - range_um, 0.0) + 10 * max(abs(p[3] - 1) - MAX_SCALE_ERROR, 0.0)
        beyond += max(math.hypot(p[1], p[2]) - MAX_ASTIGMATISM_UM, 0.0)
        return float(beyond - table.score(steps, p).sum())

    best = (math.inf, starts[0])
    for start in starts:
        simplex = np.vstack([start] + [start + d for d in np.diag([0.03, 0.04, 0.04, 0.01])])
        found = minimize(cost, start, method="Nelder-Mead", options={"initial_simplex": simplex, "maxiter": 300})
        if found.fun < best[0]:
            best = float(found.fun), np.asarray(found.x, float)
    return -best[0], best[1]


def estimate_single(
    image: Image, near: TransferState, scale: float, optics: TransferOptics, *, range_um: float = 0.3
) -> RingEstimate:
    """Fit one image whose defocus is known already, to within ``range_um``, with its sign.

    Parameters
    ----------
    image
        Shape (height, width).
    near
        Where it is expected.
    scale
        See `RingEstimate.scale`, from a pair.
    optics, range_um
        See `TransferOptics`, and above.

    Raises
    ------
    HardwareError
        See `find_rings`.
    """
    rings = [find_rings(image, optics)]
    best: tuple[float, Array, _Table] | None = None
    each = np.arange(-MAX_ASTIGMATISM_UM, MAX_ASTIGMATISM_UM + 1e-9, 0.1)
    z = near.defocus_um + np.linspace(-range_um, range_um, 7)
    grid = np.stack([g.ravel() for g in np.meshgrid(z, each, each, [scale], indexing="ij")], -1)
    for damping in DAMPINGS_MRAD:
        table = _Table(rings, optics, damping)
        start = grid[int(table.score((0.0,), grid)[0].argmax())]

        def cost(p: Array, table: _Table = table) -> float:
            beyond = max(abs(p[0] - near.defocus_um) - range_um, 0.0) + max(math.hypot(p[1], p[2]) - 1.0, 0.0)
            full = np.append(p, scale)
            return float(10 * beyond - table.score((0.0,), full).sum())

        simplex = np.vstack([start[:3]] + [start[:3] + d for d in np.diag([0.05, 0.05, 0.05])])
        found = minimize(cost, start[:3], method="Nelder-Mead", options={"initial_simplex": simplex, "maxiter": 200})
        if best is None or -float(found.fun) > best[0]:
            best = -float(found.fun), np.append(found.x, scale), table
    assert best is not None
    _, parameters, table = best
    estimate = _conclude(table, (0.0,), parameters, math.inf)
    return RingEstimate(estimate.state, estimate.sigma_um, estimate.strength, estimate.significance)


def _conclude(table: _Table, steps: Sequence[float], parameters: Array, range_um: float) -> RingEstimate:
    each = table.score(steps, parameters)
    strength = float(each.mean())
    significance = float((each / np.maximum(table.scatter, 1e-6)).min())
    # Width of the maximum over its height: the correlation falls off as strength - curvature z²/2.
    z = np.array([-0.02, 0.0, 0.02])
    moved = np.tile(parameters, (3, 1))
    moved[:, 0] += z
    total = table.score(steps, moved).mean(0)
    curvature = max(float(2 * total[1] - total[0] - total[2]) / 0.02**2, 1e-3)
    noise = float(np.mean(table.scatter)) / math.sqrt(len(steps))
    sigma = noise / math.sqrt(curvature * max(strength, 1e-3)) if strength > 0 else math.inf
    x, a, b, scale = (float(v) for v in parameters)
    edge = abs(x) > range_um - 0.05 or abs(scale - 1) > MAX_SCALE_ERROR - 0.01
    return RingEstimate(TransferState(x, a, b), sigma, strength, significance, scale, edge)
