"""The look-up table: image metrics over defocus from one fresh sweep, read backwards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.readouts.features import projections
from mm_autofocus.readouts.reading import Array, Images

METRICS = ("log peak", "log SD", "log FFT width of rows", "log FFT width of columns")

_FINE = 2001
_STRANGE = 12.0
"""A reflection is foreign when its metrics lie this many SDs off the table, on average."""


def metrics(images: Images) -> Array:
    """Return peak, standard deviation, and width of the power spectrum along both axes, as logarithms.

    Parameters
    ----------
    images
        Shape (images, pixels, pixels).

    Returns
    -------
    ndarray
        Shape (images, 4), see `METRICS`.
    """
    profiles = projections(images)
    n = profiles.shape[-1]
    background = np.sort(profiles, axis=-1)[..., : n // 10].mean(-1)
    flat = images.reshape(len(images), -1).astype(np.float32)
    peak = np.partition(flat, -20, axis=1)[:, -20:].mean(1) - background.mean(1)
    deviation = flat.std(1)
    p = np.maximum(profiles - background[..., None], 0.0)
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-9)
    power = np.abs(np.fft.rfft(p, axis=-1)[..., 1 : n // 4]) ** 2
    f = np.arange(1, n // 4)
    width = np.sqrt((power * f**2).sum(-1) / np.maximum(power.sum(-1), 1e-12))
    columns = [np.log(np.maximum(peak, 1.0)), np.log(np.maximum(deviation, 1e-3)), *np.log(width + 1e-9).T]
    return np.stack(columns, axis=1).astype(np.float64)


class LookupReadout:
    """Reads defocus as the place in the table whose metrics are most alike.

    Parameters
    ----------
    weights
        ``z`` (planes,), ``table`` (planes, metrics), ``noise`` (metrics,).
    range_um
        Half of the range.
    shape
        (height, width) of the images.
    """

    def __init__(self, weights: Mapping[str, NDArray[np.generic]], range_um: float, shape: tuple[int, int]) -> None:
        self.weights = dict(weights)
        self.range_um = float(range_um)
        self.shape = shape
        z = np.asarray(weights["z"], dtype=float)
        table = np.asarray(weights["table"], dtype=float)
        self._z = np.linspace(z[0], z[-1], _FINE)
        self._table = np.stack([np.interp(self._z, z, column) for column in table.T], axis=1)
        self._noise = np.asarray(weights["noise"], dtype=float)

    @classmethod
    def fit(cls, images: Images, defocus_um: Array, range_um: float) -> LookupReadout:
        """Make a table from one or a few sweeps.

        Raises
        ------
        SettingsError
            When there are fewer than 5 planes within the range.
        """
        inside = np.abs(defocus_um) <= range_um * 1.001
        if np.unique(defocus_um[inside]).size < 5:
            raise SettingsError(f"a look-up table needs at least 5 planes within ±{range_um:g} µm; record a sweep")
        seen, where = metrics(images[inside]), defocus_um[inside]
        z = np.unique(where)
        table = np.stack([seen[where == value].mean(0) for value in z])
        rough = table[1:-1] - (table[:-2] + table[2:]) / 2
        noise = np.maximum(np.median(np.abs(rough), axis=0) / 0.674 / 1.22, 2e-3)
        smooth = table.copy()
        smooth[1:-1] = (table[:-2] + 2 * table[1:-1] + table[2:]) / 4
        return cls({"z": z, "table": smooth, "noise": noise}, range_um, (images.shape[1], images.shape[2]))

    def _distance(self, images: Images) -> Array:
        difference = (metrics(images)[:, None, :] - self._table[None]) / self._noise
        distance: Array = (difference**2).sum(2)
        return distance

    def predict(self, images: Images) -> tuple[Array, Array]:
        """Return defocus and its expected error from the table's slope, µm, each of shape (images,)."""
        defocus, sigma, _ = self.examine(images)
        return defocus, sigma

    def examine(self, images: Images) -> tuple[Array, Array, Array]:
        """Return defocus, expected error, and how far the metrics lie off the table, over the limit."""
        distance = self._distance(images)
        at = distance.argmin(1)
        slope = np.gradient(self._table, self._z, axis=0) / self._noise
        sigma = 1 / np.sqrt((slope**2).sum(1) + 1e-9)
        return self._z[at], sigma[at], np.sqrt(distance.min(1) / len(METRICS)) / _STRANGE
