"""Numbers of an image that follow its blur and not its brightness, contrast or size: spectrum, edges, band energies.

Each is a logarithm or a share. Edges tell blur on specimens that were never seen: how much a gradient loses when it is
blurred once more depends on how wide the edge was (Zhuo and Sim 2011), whatever its height.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

Vector = NDArray[np.float32]
Plane = NDArray[np.float32]

RINGS = 28
"""Bins of the spectrum, evenly in the logarithm of frequency, from `_LOWEST` cycles per pixel to 0.5."""

COARSE_RINGS, SECTORS = 9, 4
"""Bins in which directions are told apart, for astigmatism."""

GRADIENT_QUANTILES = (0.5, 0.8, 0.93, 0.98, 0.995, 0.9995)
EDGE_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
SCALES = (1.0, 1.6, 2.5, 4.0, 6.3, 10.0, 16.0)
"""Standard deviations of the smoothing, pixels; coarse ones are worked out on a reduced image."""

_LOWEST = 1 / 110
_EDGE_SHARE = 0.04
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)

LENGTH = (
    RINGS + 2 * COARSE_RINGS + (len(GRADIENT_QUANTILES) + 1) * len(SCALES) + len(EDGE_QUANTILES) * (len(SCALES) - 1) + 6
)
"""How many numbers `blur_features` returns."""


def blur_features(image: NDArray[np.generic], pixel_um: float) -> Vector:
    """Return the numbers that a focus score is read from, shape (`LENGTH`,).

    Parameters
    ----------
    image
        Shape (240, 320) or any other, grey, finite, not of one value.
    pixel_um
        Pixel size, µm.
    """
    raw = np.asarray(image, dtype=np.float32)
    quiet = cv2.medianBlur(raw, 3)
    spread = max(float(quiet.std()), 1e-3)
    centred = (raw - np.float32(quiet.mean())) / np.float32(spread)
    quiet = (quiet - np.float32(quiet.mean())) / np.float32(spread)
    parts = [_spectrum(centred), _edges(quiet), _whole(raw, centred, pixel_um)]
    return np.concatenate(parts).astype(np.float32)


@lru_cache(maxsize=4)
def _bins(height: int, width: int) -> tuple[Plane, NDArray[np.intp], NDArray[np.intp], Plane, Plane]:
    """Return the window, ring and sector-ring of each frequency (0: none), and how many fall into each."""
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    window /= math.sqrt(float(np.mean(window**2)) * height * width)
    ky, kx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    k = np.hypot(ky, kx)
    with np.errstate(divide="ignore"):
        depth = np.log(k / _LOWEST) / math.log(0.5 / _LOWEST)
    inside = (depth >= 0) & (depth < 1)
    ring = np.where(inside, 1 + (np.clip(depth, 0, 0.999999) * RINGS).astype(np.intp), 0)
    sector = np.floor((np.arctan2(ky, kx) / math.pi + 0.5 + 0.5 / SECTORS) * SECTORS).astype(np.intp) % SECTORS
    coarse = (np.clip(depth, 0, 0.999999) * COARSE_RINGS).astype(np.intp)
    coarse = np.where(inside, 1 + coarse * SECTORS + sector, 0)
    counts = np.maximum(np.bincount(ring.ravel(), minlength=RINGS + 1), 1)
    coarse_counts = np.maximum(np.bincount(coarse.ravel(), minlength=COARSE_RINGS * SECTORS + 1), 1)
    return window, ring.ravel(), coarse.ravel(), counts.astype(np.float32), coarse_counts.astype(np.float32)


def _spectrum(centred: Plane) -> Vector:
    """Return log power by frequency, and how its directions spread."""
    window, ring, coarse, counts, coarse_counts = _bins(*centred.shape)
    transformed = fft.rfft2(centred * window, workers=1)
    power = np.square(transformed.real) + np.square(transformed.imag)
    rings = np.bincount(ring, power.ravel(), RINGS + 1)[1:] / counts[1:]
    sectors = np.bincount(coarse, power.ravel(), COARSE_RINGS * SECTORS + 1)[1:] / coarse_counts[1:]
    logs = np.log(sectors.reshape(COARSE_RINGS, SECTORS) + 1e-4)
    return np.concatenate([np.log(rings + 1e-4), logs.max(1) - logs.min(1), logs.std(1)])


def _edges(quiet: Plane) -> Vector:
    """Return quantiles of the gradient at each scale, their tails, and how edges fade from scale to scale."""
    gradients: list[Plane] = []
    found: list[NDArray[np.floating]] = []
    for sigma in SCALES:
        gradients.append(_gradient(quiet, sigma))
        # A quarter of the pixels tells the quantiles of a full-size plane as well.
        thin = 2 if sigma < 3 else 1
        flat = gradients[-1][::thin, ::thin].ravel()
        at = [min(int(q * flat.size), flat.size - 1) for q in GRADIENT_QUANTILES]
        values = np.partition(flat, at)[at]
        squares = np.square(flat)
        tail = float(np.mean(np.square(squares))) / max(float(np.mean(squares)) ** 2, 1e-12)
        found += [np.log(values + 1e-3), np.array([math.log(tail + 1e-6)])]
    quiet_shape = gradients[0].shape
    for fine, rough in pairwise(gradients):
        if fine.shape != rough.shape:
            fine = _resized(fine, rough.shape)
        thin = 2 if rough.shape == quiet_shape else 1
        edge, sharper = rough[::thin, ::thin].ravel(), fine[::thin, ::thin].ravel()
        most = max(8, int(_EDGE_SHARE * edge.size))
        strong = np.argpartition(edge, -most)[-most:]
        ratio = np.log((sharper[strong] + 1e-4) / (edge[strong] + 1e-4))
        found.append(np.quantile(ratio, EDGE_QUANTILES))
    return np.concatenate(found)


def _resized(plane: Plane, shape: tuple[int, ...]) -> Plane:
    return np.asarray(cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_AREA), dtype=np.float32)


def _gradient(quiet: Plane, sigma: float) -> Plane:
    """Return the gradient's magnitude after smoothing, times the scale, so that a step gives the same at each."""
    reduction = 1 if sigma < 3 else 2 if sigma < 6 else 4
    plane, left = quiet, sigma
    if reduction > 1:
        plane = _resized(quiet, (quiet.shape[0] // reduction, quiet.shape[1] // reduction))
        left = math.sqrt(sigma**2 - (reduction**2 - 1) / 12.0) / reduction
    smooth = cv2.GaussianBlur(plane, (0, 0), left, borderType=cv2.BORDER_REFLECT_101)
    dx = (smooth[1:-1, 2:] - smooth[1:-1, :-2]) * np.float32(left / 2)
    dy = (smooth[2:, 1:-1] - smooth[:-2, 1:-1]) * np.float32(left / 2)
    return np.asarray(np.sqrt(dx * dx + dy * dy))


def _whole(raw: Plane, centred: Plane, pixel_um: float) -> Vector:
    """Return noise, clipping, skewness and the pixel size."""
    ripple = cv2.filter2D(centred, cv2.CV_32F, _NOISE_KERNEL)[1:-1, 1:-1]
    noise = float(np.median(np.abs(ripple[::3, ::2]))) / 0.6745 / 6.0
    high, low = float(raw.max()), float(raw.min())
    clipped = [float(np.mean(raw >= high)), float(np.mean(raw <= low))]
    skew = float(np.mean(np.clip(centred, -6, 6) ** 3))
    return np.array(
        [math.log(noise + 1e-3), *(math.log(c + 1e-4) for c in clipped), skew, math.log(pixel_um), float(centred.std())]
    )
