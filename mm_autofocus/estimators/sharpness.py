"""How sharp one frame of a scanning electron microscope is: band-pass energy with the shot noise taken off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from mm_autofocus.strategy import Image

LOW, HIGH = 0.03, 0.35
"""The band, in Nyquist frequencies: above the largest structures, below where noise wins at 5 e-/px."""

_NOISE_FROM = 0.8
"""Beyond this frequency (in Nyquist) the spectrum is taken for white noise."""


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Sharpness of one frame.

    Attributes
    ----------
    value
        Energy of the specimen in the band, per pixel, in squared grey values; 0 where there is only noise.
    noise
        Standard deviation of ``value`` from shot noise.
    """

    value: float
    noise: float


def sharpness(image: Image) -> Sharpness:
    """Measure one frame.

    White noise is measured beyond the band and subtracted, so that the measure neither rewards noise nor drops to it at
    5 electrons per pixel; the lines of coefficients that row and column offsets fall on are left out.

    Parameters
    ----------
    image
        Shape (height, width), any integer or float dtype; at least 32 x 32.
    """
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels - np.float32(pixels.mean(dtype=np.float64))
    weight, outer = _masks(pixels.shape[0], pixels.shape[1])
    spectrum = scipy.fft.rfft2(pixels)
    power = (spectrum.real**2 + spectrum.imag**2) / np.float32(pixels.size)
    floor = float(np.mean(power[outer], dtype=np.float64))
    inside = weight > 0
    excess = float(np.sum(weight * power, dtype=np.float64)) - floor * float(weight.sum(dtype=np.float64))
    # a coefficient's power has the standard deviation of its mean; for the specimen's part that is no noise
    sd = floor * float(np.sqrt(2.0 * np.count_nonzero(inside) + np.square(weight.sum()) / np.count_nonzero(outer)))
    cross = 2.0 * np.sqrt(max(excess, 0.0) * floor)
    scale = 1.0 / pixels.size
    return Sharpness(max(excess, 0.0) * scale, float(np.hypot(sd, cross)) * scale)


@lru_cache(maxsize=8)
def _masks(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the weight of each coefficient of the half spectrum (2: its conjugate counts too), and the noise ring."""
    y = scipy.fft.fftfreq(height)[:, None] * 2.0
    x = scipy.fft.rfftfreq(width)[None, :] * 2.0
    radius = np.hypot(x, y)
    lines = (np.abs(x) < 3.0 / width) | (np.abs(y) < 3.0 / height)
    weight = np.where((radius > LOW) & (radius < HIGH) & ~lines, 2.0, 0.0)
    weight[:, 0] /= 2.0
    return weight.astype(np.float32), (radius > _NOISE_FROM) & ~lines
