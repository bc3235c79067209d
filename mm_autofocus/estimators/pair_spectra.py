"""Spectra of a pair of frames in log-polar bins of frequency times perturbation, which is what the aberration shows in.

A probe off by (z, a, b) passes the frequency k with 2 J1(q) / q, ``q² = z² + a² + b² + 2 z (a cos 2θ + b sin 2θ)``
times k² (all lengths blur radii in pixels, θ the direction of k). With frames at z - δ and z + δ the bins run over
``log kδ``, so that the aberration in units of δ looks the same at every pixel size and convergence angle; only where
the frame's band ends differs, and which bins hold nothing. (q₂² - q₁²) / 4δk² = z + a cos 2θ + b sin 2θ: the
difference of both spectra at one angle says the sum, sign included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mm_autofocus.estimators.registration import Frame, block_mean

Array = NDArray[np.float32]

TILE = 256
RADIAL, ANGULAR = 30, 16
_KD = (0.12, 13.0)
"""Range of kδ (dimensionless) that the radial bins share evenly in the logarithm."""

LOG_STEP = math.log(_KD[1] / _KD[0]) / RADIAL
"""Height of a radial bin, in the logarithm of frequency times perturbation."""

REFERENCE_PX = 4.35
"""Perturbation, blur pixels, that frames are averaged down to when theirs is larger."""

_BAND = (1.6 / TILE, 0.47)
"""Cycles per pixel that a tile can hold: above the window's leakage, below Nyquist."""

MAX_TILES = 40
SIGNAL_BAND = 1.5
"""kδ up to which the two frames' common power is looked for: there neither spectrum has changed its sign often."""

CHANNELS = 5
_NOT_ROWS = [i for i in range(ANGULAR) if i not in (ANGULAR // 2 - 1, ANGULAR // 2)]
"""Directions without the vertical one, where the offsets of the scanned rows lie and pass for a specimen."""


@dataclass(frozen=True, slots=True)
class PairSpectra:
    """What `pair_spectra` finds.

    Attributes
    ----------
    stats
        Power of the first frame, of the second, and real cross power, shape (tiles, RADIAL, ANGULAR, 3).
    covered
        Which bins hold any frequency, shape (RADIAL, ANGULAR).
    corners
        (x, y) of the tiles in pixels of the frames, shape (tiles, 2).
    edge
        Edge of a tile in pixels of the frames.
    coherence
        Common power over the geometric mean of both in the signal band, shape (tiles,); 0 ± 0.1 where there is no
        specimen.
    delta_px
        Half of the perturbation in blur pixels after averaging down.
    block
        How many pixels were averaged along each axis.
    """

    stats: Array
    covered: NDArray[np.bool_]
    corners: NDArray[np.intp]
    edge: int
    coherence: Array
    delta_px: float
    block: int

    def weights(self) -> Array:
        """Return the weight of each tile, shape (tiles,): none where there is no specimen."""
        return np.asarray(np.clip((self.coherence - 0.12) / 0.4, 0.0, 1.0), dtype=np.float32)

    def shows_specimen(self) -> bool:
        """Return whether any tile, or all of them together, have more in common than noise has by chance.

        Of noise, registered to where it agrees best, one tile reaches 0.35, the mean of n tiles 0.1 + 0.3 / sqrt(n).
        """
        together = 0.12 + 0.36 / math.sqrt(len(self.coherence))
        return bool(self.coherence.max() > 0.48 or self.coherence.mean() > together)


def pair_spectra(under: Frame, over: Frame, delta_px: float, left_px: tuple[float, float] = (0.0, 0.0)) -> PairSpectra:
    """Return the binned spectra of a registered pair, tile by tile.

    Parameters
    ----------
    under, over
        Frames of the same shape, at least 64 pixels along either axis.
    delta_px
        Half of the perturbation, blur pixels.
    left_px
        Displacement (dx, dy) of the second frame that is left, pixels; taken out of the cross spectrum.
    """
    block = max(1, min(round(delta_px / REFERENCE_PX), min(under.shape) // 128))
    first, second = block_mean(under, block), block_mean(over, block)
    delta = delta_px / block
    height, width = first.shape
    window_size = min(TILE, height, width)
    y, x = _places(height, window_size), _places(width, window_size)
    while len(y) * len(x) > MAX_TILES:
        if len(x) >= len(y):
            x = np.unique(np.linspace(0, width - window_size, len(x) - 1).round().astype(np.intp))
        else:
            y = np.unique(np.linspace(0, height - window_size, len(y) - 1).round().astype(np.intp))
    corners = np.array([(i, j) for j in y for i in x], dtype=np.intp)
    window = _window(window_size)
    stats = tile_stats(first, second, corners, window, delta, (left_px[0] / block, left_px[1] / block))
    bins = _bins(round(delta, 4))
    return PairSpectra(stats, bins.covered, corners * block, window_size * block, coherence(stats), delta, block)


def tile_stats(
    first: Frame, second: Frame, corners: NDArray[np.intp], window: Array, delta: float, left: tuple[float, float]
) -> Array:
    """Return the binned power and cross power of tiles, shape (tiles, RADIAL, ANGULAR, 3)."""
    size = window.shape[0]
    bins = _bins(round(delta, 4))
    turn = bins.phase(left) if left != (0.0, 0.0) else None
    binned = np.empty((len(corners), 3, RADIAL * ANGULAR), dtype=np.float32)
    power = np.empty((3, bins.used.size), dtype=np.float32)
    for t, (x, y) in enumerate(corners):  # tile by tile, so that it all stays in the processor's cache
        one, two = (
            _spectrum(image[y : y + size, x : x + size], window)[bins.used] for image in (first, second)
        )
        if turn is not None:
            two *= turn
        power[0] = one.real**2 + one.imag**2
        power[1] = two.real**2 + two.imag**2
        power[2] = one.real * two.real + one.imag * two.imag
        binned[t] = bins.means(power)
    return np.ascontiguousarray(binned.reshape(-1, 3, RADIAL, ANGULAR).transpose(0, 2, 3, 1))


def _spectrum(tile: Frame, window: Array) -> NDArray[np.complex64]:
    """Return the half plane of a windowed tile's spectrum, flat."""
    spectrum = fft.rfft2((tile - tile.mean()) * window, (TILE, TILE), workers=1)
    return np.asarray(spectrum, dtype=np.complex64).ravel()


def coherence(stats: Array) -> Array:
    """Return common power over the geometric mean of both in the signal band, for each tile, shape (tiles,)."""
    rows = signal_rows()
    power = stats[:, :rows, _NOT_ROWS].sum((1, 2), dtype=np.float64)
    both = np.sqrt(power[:, 0] * power[:, 1])
    return np.where(both > 1e-9, power[:, 2] / np.maximum(both, 1e-9), 0.0).astype(np.float32)


def signal_rows() -> int:
    """Return how many radial bins make the signal band."""
    return int(math.log(SIGNAL_BAND / _KD[0]) / LOG_STEP)


def pooled(stats: Array, weights: Array) -> Array:
    """Return the weighted mean of tiles' spectra, shape (RADIAL, ANGULAR, 3).

    Each tile is first divided by the root of its power, so that a single bright object does not speak for the frame.
    """
    level = np.sqrt(np.maximum(stats[..., :2].mean((1, 2, 3)), 1e-9))
    share = weights / level
    total = share.sum()
    if total <= 0.0:
        share, total = 1.0 / level, (1.0 / level).sum()
    return np.asarray(np.einsum("t,traf->raf", share / total, stats), dtype=np.float32)


def features(stats: Array, covered: NDArray[np.bool_]) -> Array:
    """Return what the network receives, shape (..., CHANNELS, RADIAL, ANGULAR).

    Logarithms of both powers less their common mean, coherence, half the logarithm of their ratio, and which bins are
    covered; all zero where they are not.

    Parameters
    ----------
    stats
        Shape (..., RADIAL, ANGULAR, 3).
    covered
        Shape (..., RADIAL, ANGULAR).
    """
    s1, s2 = np.maximum(stats[..., 0], 1e-6), np.maximum(stats[..., 1], 1e-6)
    common = np.clip(stats[..., 2] / np.sqrt(s1 * s2), -1.0, 1.0)
    l1, l2 = np.log(s1), np.log(s2)
    mask = covered.astype(np.float32)
    count = np.maximum(mask.sum((-1, -2), keepdims=True), 1.0)
    mean = (0.5 * (l1 + l2) * mask).sum((-1, -2), keepdims=True) / count
    out = np.stack([(l1 - mean) * 0.25, (l2 - mean) * 0.25, common, (l1 - l2) * 0.5, np.ones_like(l1)], -3)
    return np.asarray(out * mask[..., None, :, :], dtype=np.float32)


def extras(delta_px: float, weights: Array) -> Array:
    """Return the two numbers beside the spectra: the band's end and how many tiles speak, both as logarithms."""
    count = float(weights.sum() ** 2 / max(float((weights**2).sum()), 1e-9)) if weights.any() else 1.0
    return np.array([math.log(delta_px / REFERENCE_PX), 0.5 * math.log(max(count, 1.0))], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Bins:
    """How the frequencies of a tile fall into bins; those between the middles of two angles are shared by both.

    Attributes
    ----------
    used
        Frequencies that count, indices into the flat half plane, in the order of ring and angle, shape (used,).
    starts, cells
        Where each run of frequencies with the same ring and lower angle begins in ``used``, and its (ring, angle) as
        one index, shape (runs,).
    upper
        Share of the upper angle, shape (used,).
    scale
        One over the frequencies' weights in each bin, shape (RADIAL * ANGULAR,).
    covered
        Bins that hold any, shape (RADIAL, ANGULAR).
    """

    used: NDArray[np.intp]
    starts: NDArray[np.intp]
    cells: NDArray[np.intp]
    upper: Array
    scale: Array
    covered: NDArray[np.bool_]

    def sums(self, values: Array) -> Array:
        """Return weighted sums of values at the used frequencies, shape (n, used) in, (n, RADIAL * ANGULAR) out."""
        both = np.zeros((2, len(values), RADIAL * ANGULAR), dtype=np.float32)
        whole = np.add.reduceat(values, self.starts, axis=1)
        both[1][:, self.cells] = np.add.reduceat(values * self.upper, self.starts, axis=1)
        both[0][:, self.cells] = whole - both[1][:, self.cells]
        above = np.roll(both[1].reshape(len(values), RADIAL, ANGULAR), 1, -1)
        return np.asarray(both[0] + above.reshape(len(values), -1), dtype=np.float32)

    def means(self, values: Array) -> Array:
        """Return weighted means of values at the used frequencies, 0 where there are none; shapes as for `sums`."""
        return self.sums(values) * self.scale

    def phase(self, left: tuple[float, float]) -> NDArray[np.complex64]:
        """Return what takes a displacement (dx, dy) of so many pixels out of a spectrum, shape (used,)."""
        down = np.exp(2j * np.pi * left[1] * np.fft.fftfreq(TILE))
        right = np.exp(2j * np.pi * left[0] * np.fft.rfftfreq(TILE))
        return np.asarray(np.multiply.outer(down, right).ravel()[self.used], dtype=np.complex64)


@lru_cache(maxsize=64)
def _bins(delta: float) -> _Bins:
    """Return how a tile's power is averaged in bins of frequency times perturbation and angle."""
    fy = np.fft.fftfreq(TILE)[:, None]
    fx = np.fft.rfftfreq(TILE)[None, :]
    f = np.hypot(fy, fx).ravel()
    with np.errstate(divide="ignore"):
        radial = np.log(2 * np.pi * f * delta / _KD[0]) / LOG_STEP
    theta = np.mod(np.arctan2(fy, fx + 0 * fy), np.pi).ravel() / np.pi * ANGULAR
    used = np.flatnonzero((f >= _BAND[0]) & (f < _BAND[1]) & (radial >= 0) & (radial < RADIAL))
    lower = np.floor(theta[used] - 0.5)
    cell = radial[used].astype(np.intp) * ANGULAR + lower.astype(np.intp) % ANGULAR
    order = np.argsort(cell, kind="stable")
    upper = (theta[used] - 0.5 - lower)[order].astype(np.float32)
    cells, starts = np.unique(cell[order], return_index=True)
    bins = _Bins(used[order], starts, cells, upper, np.empty(0, np.float32), np.empty((0, 0), np.bool_))
    total = bins.sums(np.ones((1, used.size), dtype=np.float32))[0]
    scale = np.where(total > 0, 1.0 / np.maximum(total, 1e-9), 0.0).astype(np.float32)
    return replace(bins, scale=scale, covered=(total > 0.3).reshape(RADIAL, ANGULAR))


@lru_cache(maxsize=8)
def _window(size: int) -> Array:
    """Return a Hann window of unit mean square."""
    one = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)
    window = one[:, None] * one[None, :]
    return np.asarray(window / np.sqrt((window**2).mean()), dtype=np.float32)


def _places(length: int, size: int) -> NDArray[np.intp]:
    """Return corners of tiles that cover a length, overlapping by about a half."""
    count = max(1, math.ceil((length - size) / (size / 2)) + 1) if length > size else 1
    return np.unique(np.linspace(0, length - size, count).round().astype(np.intp))
