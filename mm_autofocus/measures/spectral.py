"""Focus measures from the image's spectrum.

Each takes a float32 image of shape (height, width).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from mm_autofocus.measures.spatial import FloatImage


def fft_bandpass(image: FloatImage) -> float:
    """Energy per pixel between 2.5 and 14 % of the Nyquist frequency, in squared grey values.

    The band of the FFTBandpass measure of Micro-Manager's OughtaFocus, as energy: sum |F|^2 / N^2.
    """
    return _band_energy(image, 0.025, 0.14)


def fft_bandpass_high(image: FloatImage) -> float:
    """Energy per pixel between 10 and 40 % of the Nyquist frequency, in squared grey values.

    Formula of `fft_bandpass`; the band keeps a sampled lens's detail and drops most of the noise.
    """
    return _band_energy(image, 0.1, 0.4)


def dct_entropy(image: FloatImage) -> float:
    """Shannon entropy of the normalised low-frequency cosine spectrum; 0 for a flat image.

    Royer et al., Nature Biotechnol. 34, 1267 (2016), DCTS: -2 / (r_x r_y) sum |d| log2 |d|, d the orthonormal DCT of
    the image over its L2 norm, summed over the lowest third of either axis (an optical support of 3 pixels).
    """
    spectrum = scipy.fft.dctn(image, norm="ortho")
    norm = float(np.linalg.norm(spectrum))
    if norm == 0.0:
        return 0.0
    low = np.abs(spectrum[: image.shape[0] // 3, : image.shape[1] // 3]) / norm
    low[low < 1e-7] = 1.0  # rounding of an empty coefficient; 1 log 1 = 0
    return -2.0 * float(np.sum(low * np.log2(low), dtype=np.float64)) / float(low.size)


def _band_energy(image: FloatImage, low: float, high: float) -> float:
    spectrum = scipy.fft.rfft2(image)
    energy = (spectrum.real**2 + spectrum.imag**2) * _band(image.shape, low, high)
    return float(np.sum(energy, dtype=np.float64)) / image.size**2


@lru_cache(maxsize=8)
def _band(shape: tuple[int, int], low: float, high: float) -> NDArray[np.float32]:
    """Weight of every coefficient of the half spectrum: 2 in the band (its conjugate counts too), 0 outside."""
    y = scipy.fft.fftfreq(shape[0])[:, None] * 2.0
    x = scipy.fft.rfftfreq(shape[1])[None, :] * 2.0
    radius = np.hypot(x, y)
    weight = np.where((radius > low) & (radius < high), 2.0, 0.0)
    weight[:, 0] /= 2.0
    if shape[1] % 2 == 0:
        weight[:, -1] /= 2.0
    return weight.astype(np.float32)
