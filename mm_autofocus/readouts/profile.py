"""Our readout: a small network on the spot's two profiles, with an uncertainty, a gate, and recalibration.

It runs in NumPy; only training needs torch. Three parts, each an array or two:

- the network: features -> 2 hidden layers (GELU, LayerNorm) -> position and log scale of a Laplace distribution;
- the gate: how the features of training images vary at each defocus; what lies far from that is foreign;
- the curve: how the error over defocus differs from day to day, as principal components with their SDs. A few frames
  of known defocus determine today's curve (Gaussian process regression); no training run is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.readouts.features import Features, of_images
from mm_autofocus.readouts.reading import Array, Images

Arrays = Mapping[str, NDArray[np.generic]]

CLIP = 8.0
"""Standardised features, and the log of the scale from below, are clipped here."""
LOG_SCALE = (-8.0, 2.0)
MAX_OPENING = 2.0
"""A recalibration may find its own frames so many times beyond the gate's limit, and opens the gate for them."""
_SD_FLOOR = np.float32(0.03)
"""Least SD of a standardised feature in the gate."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A correction: error over defocus.

    Attributes
    ----------
    z
        Knots, µm, shape (knots,).
    error
        Mean predicted minus actual defocus at the knots, µm.
    """

    z: Array
    error: Array

    def correct(self, predicted: Array) -> Array:
        """Return the defocus whose prediction would be ``predicted`` (fixed-point iteration)."""
        z = predicted
        for _ in range(4):
            z = predicted - np.interp(z, self.z, self.error)
        return z


class ProfileReadout:
    """Reads defocus from the profiles of the laser spot.

    Parameters
    ----------
    weights
        Arrays of the network (``mean``, ``scale``, ``w0`` ...), the gate (``gate_*``) and the curve (``curve_*``).
    range_um
        Half of the range that it was trained on.
    shape
        (height, width) of the images that it was trained on.
    curve
        Today's correction, see `recalibrated`.
    """

    def __init__(self, weights: Arrays, range_um: float, shape: tuple[int, int], curve: Curve | None = None) -> None:
        self.weights = dict(weights)
        self.range_um = float(range_um)
        self.shape = shape
        self.curve = curve
        self._w = {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}

    def predict(self, images: Images) -> tuple[Array, Array]:
        """Return defocus and expected error (the Laplace scale), µm, each of shape (images,)."""
        return self.predict_features(of_images(images))

    def predict_features(self, seen: Features) -> tuple[Array, Array]:
        """Like `predict`, from features of shape (images, features)."""
        return self._answer(self._raw(self._standardised(seen)))

    def examine(self, images: Images) -> tuple[Array, Array, Array]:
        """Return defocus, expected error and strangeness; see `mm_autofocus.readouts.Readout`."""
        return self.examine_features(of_images(images))

    def examine_features(self, seen: Features) -> tuple[Array, Array, Array]:
        """Like `examine`, from features.

        Strangeness is how unusual the features are for the defocus that they are read as, over the gate's limit.
        """
        x = self._standardised(seen)
        raw = self._raw(x)
        lower, part = _between(raw[:, 0].astype(np.float64) * self.range_um, self._w["gate_z"])
        near = _blend(self._w["gate_mean"], lower, part)
        standard = (x - near) / _blend(self._w["gate_sd"], lower, part)
        strange = _distance(standard @ self._w["gate_basis"]) / float(self._w["gate_limit"][0])
        return *self._answer(raw), strange

    def _answer(self, raw: Features) -> tuple[Array, Array]:
        defocus = raw[:, 0].astype(np.float64) * self.range_um
        scale = np.exp(np.clip(raw[:, 1].astype(np.float64), *LOG_SCALE)) * self.range_um
        return defocus if self.curve is None else self.curve.correct(defocus), scale

    def with_gate(self, frames: Features, components: int = 40, knots: int = 41) -> ProfileReadout:
        """Return this readout with a gate that knows these features of good images.

        For each defocus, as read, it keeps mean and SD of every feature, and the principal components of what is left.
        The limit is the 99th percentile of the Mahalanobis distance of these images, plus 5 %.

        Parameters
        ----------
        frames
            Shape (images, features).
        components, knots
            Principal components, and steps over the range, that are kept.
        """
        z = np.linspace(-self.range_um, self.range_um, knots)
        x = self._standardised(frames)
        lower, part = _between(self._raw(x)[:, 0].astype(np.float64) * self.range_um, z)
        count = _scatter(np.ones((len(x), 1), np.float32), lower, part, knots) + 1e-6
        mean = _scatter(x, lower, part, knots) / count
        rest = x - _blend(mean, lower, part)
        sd = np.sqrt(_scatter(rest**2, lower, part, knots) / count) + _SD_FLOOR
        standard = rest / _blend(sd, lower, part)
        spread, vectors = np.linalg.eigh((standard.T @ standard).astype(np.float64) / len(standard))
        kept = slice(-1, -components - 1, -1)
        basis = (vectors[:, kept] / np.sqrt(spread[kept])).astype(np.float32)
        limit = 1.05 * np.percentile(_distance(standard @ basis), 99.0)
        arrays: dict[str, NDArray[np.generic]] = {
            "gate_z": z.astype(np.float32), "gate_mean": mean, "gate_sd": sd, "gate_basis": basis,
            "gate_limit": np.array([limit], dtype=np.float32),
        }  # fmt: skip
        return with_arrays(self, arrays)

    def recalibrated(self, images: Images, defocus_um: Array) -> ProfileReadout:
        """Return this readout with today's correction, from a few frames of known defocus.

        Parameters
        ----------
        images
            Shape (frames, pixels, pixels); those beyond the range are left out.
        defocus_um
            Their defocus, µm, relative to a focus found by an image sweep.

        Raises
        ------
        SettingsError
            When fewer than 3 frames lie within the range, or the frames are too strange to be the same alignment.
        """
        known = np.asarray(defocus_um, dtype=float)
        inside = np.abs(known) <= self.range_um
        if inside.sum() < 3:
            raise SettingsError(
                f"recalibrating the range of ±{self.range_um:g} µm needs 3 frames of known defocus inside it, "
                f"{int(inside.sum())} were given; take more"
            )
        plain = replace_curve(self, None)
        predicted, _, strange = plain.examine(images[inside])
        worst = float(strange.max())
        if worst > MAX_OPENING:
            raise SettingsError(
                f"the frames lie {worst:.1f} times beyond what the laser model for ±{self.range_um:g} µm knows (limit "
                f"{MAX_OPENING:g}): ten frames are not enough. Train it on ten stacks of today, or realign the laser"
            )
        opened = with_arrays(self, {"gate_limit": self._w["gate_limit"] * np.float32(max(1.0, worst / 0.8))})
        return replace_curve(opened, self._posterior(known[inside], predicted - known[inside]))

    def _posterior(self, z: Array, error: Array) -> Curve:
        """Regress the errors on the components of the error curve, with their SDs as prior (Laplace noise tamed)."""
        knots = self._w["curve_z"].astype(np.float64)
        basis = self._w["curve_basis"].astype(np.float64)
        mean = self._w["curve_mean"].astype(np.float64)
        noise = np.interp(z, knots, self._w["curve_noise"].astype(np.float64))
        design = np.stack([np.interp(z, knots, column) for column in basis.T], axis=1)
        target = error - np.interp(z, knots, mean)
        weight = 1 / noise**2
        coefficients = np.zeros(basis.shape[1])
        for _ in range(6):
            normal = design.T @ (weight[:, None] * design) + np.eye(basis.shape[1])
            coefficients = np.linalg.solve(normal, design.T @ (weight * target))
            rest = np.abs(target - design @ coefficients) / noise
            weight = 1 / noise**2 * np.minimum(1.0, 2.5 / np.maximum(rest, 1e-9))
        return Curve(knots, mean + basis @ coefficients)

    # ------------------------------------------------------------------ the network
    def _standardised(self, seen: Features) -> Features:
        x: Features = np.clip((seen - self._w["mean"]) / self._w["scale"], -CLIP, CLIP)
        return x

    def _raw(self, x: Features) -> Features:
        w = self._w
        for layer in ("0", "1"):
            x = _gelu(x @ w[f"w{layer}"].T + w[f"b{layer}"])
            centred = x - x.mean(1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * w[f"g{layer}"] + w[f"h{layer}"]
        out: Features = x @ w["w2"].T + w["b2"]
        return out


def replace_curve(readout: ProfileReadout, curve: Curve | None) -> ProfileReadout:
    """Return the same readout with another correction."""
    return ProfileReadout(readout.weights, readout.range_um, readout.shape, curve)


def error_curves(days: list[tuple[Array, Array]], range_um: float, components: int = 10) -> dict[str, Array]:
    """Learn how the error over defocus differs from day to day.

    Parameters
    ----------
    days
        For each day the actual and the predicted defocus of its frames, µm; days that were not trained on.
    range_um
        Half of the range.
    components
        Principal components to keep.

    Returns
    -------
    dict
        ``curve_z``, ``curve_mean``, ``curve_basis`` (components scaled by their SD), ``curve_noise`` (SD of one frame).
    """
    knots = np.linspace(-range_um, range_um, 41)
    width = 1.5 * (knots[1] - knots[0])
    curves, noises = [], []
    for z, predicted in days:
        error = np.clip(predicted - z, -range_um / 4, range_um / 4)
        weight = np.exp(-(((knots[:, None] - z[None]) / width) ** 2)) + 1e-12
        weight /= weight.sum(1, keepdims=True)
        smooth = weight @ error
        curves.append(smooth)
        noises.append(weight @ (error - np.interp(z, knots, smooth)) ** 2)
    table = np.array(curves)
    mean = np.median(table, axis=0)
    centred = table - mean
    spread = np.median(np.sqrt((centred**2).mean(1))) * 6 + 1e-9
    centred = np.clip(centred, -spread, spread)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    keep = min(components, len(days) - 1)
    basis = vectors[:keep].T * (singular[:keep] / np.sqrt(len(days)))
    noise = np.sqrt(np.median(np.array(noises), axis=0)) + 1e-3 * range_um / 10
    return {"curve_z": knots, "curve_mean": mean, "curve_basis": basis, "curve_noise": noise}


def with_arrays(readout: ProfileReadout, arrays: Arrays) -> ProfileReadout:
    """Return the same readout with some arrays added or replaced."""
    return ProfileReadout({**readout.weights, **arrays}, readout.range_um, readout.shape, readout.curve)


def _gelu(x: Features) -> Features:
    y: Features = 0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x**3)))
    return y


def _between(z: Array, knots: NDArray[np.generic]) -> tuple[NDArray[np.int64], Features]:
    """Index of the knot below, and how far on the way to the next one, for evenly spaced knots."""
    low, high, last = float(knots[0]), float(knots[-1]), len(knots) - 1
    place = (np.clip(z, low, high) - low) / (high - low) * last
    lower = np.minimum(place.astype(np.int64), last - 1)
    return lower, (place - lower).astype(np.float32)[:, None]


def _blend(table: Features, lower: NDArray[np.int64], part: Features) -> Features:
    blended: Features = table[lower] * (1 - part) + table[lower + 1] * part
    return blended


def _scatter(values: Features, lower: NDArray[np.int64], part: Features, knots: int) -> Features:
    """Add each image's values to its two knots; shape (knots, columns)."""
    table = np.zeros((knots, values.shape[1]), dtype=np.float32)
    np.add.at(table, lower, values * (1 - part))
    np.add.at(table, lower + 1, values * part)
    return table


def _distance(coordinates: NDArray[Any]) -> Array:
    distance: Array = np.sqrt((coordinates.astype(np.float64) ** 2).mean(1))
    return distance
