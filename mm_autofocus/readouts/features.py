"""What the profile readout sees of a laser spot: the shape of its two projections, not where it lies or how bright."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Features = NDArray[np.float32]

BINS = 96
SPECTRUM = 48
_FLOOR = 1e-7


def projections(images: NDArray[np.generic]) -> Array:
    """Average images along both axes.

    Parameters
    ----------
    images
        Shape (images, pixels, pixels).

    Returns
    -------
    ndarray
        Shape (images, 2, pixels): first the profile along rows (short confocal parameter), then along columns.
    """
    rows = images.mean(axis=2, dtype=np.float64)
    columns = images.mean(axis=1, dtype=np.float64)
    return np.stack([rows, columns], axis=1)


def features(profiles: Array) -> Features:
    """Turn projections into features that know neither the spot's place nor its power.

    The background (mean of the lowest tenth) is subtracted, the flux divided out, the profile shifted to its
    intensity-squared centroid (in the Fourier domain, so to a fraction of a pixel).

    Parameters
    ----------
    profiles
        Shape (images, 2, pixels), see `projections`; ``pixels`` a multiple of `BINS`.

    Returns
    -------
    ndarray
        Shape (images, 2 `BINS` + 2 `SPECTRUM` + 8): square roots of the registered profiles, log10 of the power
        spectra, and first, second and third moment and log of the peak of each axis.
    """
    count, _, n = profiles.shape
    background = np.sort(profiles, axis=-1)[..., : n // 10].mean(-1, keepdims=True)
    p = np.maximum(profiles - background, 0.0)
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-9)
    x = np.arange(n) - (n - 1) / 2
    squared = p**2
    centre = (squared * x).sum(-1, keepdims=True) / np.maximum(squared.sum(-1, keepdims=True), 1e-15)
    spectrum = np.fft.rfft(p, axis=-1)
    shift = np.exp(2j * np.pi * np.fft.rfftfreq(n) * centre)
    registered = np.fft.irfft(spectrum * shift, n, axis=-1).reshape(count, 2, BINS, n // BINS).sum(-1)
    power = np.log10(np.abs(spectrum[..., 1 : SPECTRUM + 1]) ** 2 + _FLOOR)
    d = x - centre
    moments = [
        (p * d).sum(-1),
        np.sqrt((p * d**2).sum(-1)),
        np.cbrt((p * d**3).sum(-1)),
        np.log(p.max(-1) + 1e-9),
    ]
    parts = [np.sqrt(np.maximum(registered, 0.0)).reshape(count, -1), power.reshape(count, -1), *moments]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def of_images(images: NDArray[np.generic]) -> Features:
    """Features of images, shape (images, pixels, pixels)."""
    return features(projections(images))
