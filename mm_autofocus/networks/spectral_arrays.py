"""The spectral pair network in numpy, for columns whose computer has no torch; the same numbers to rounding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_SCALE = 4.0  # as in spectral_pair
_SWAP = [1, 0, 2, 3, 4]
_LAYERS = ((2, 2), (1, 2), (1, 1))
"""Padding and stride along the radius of the three convolutions."""


def forward(weights: Mapping[str, NDArray[np.generic]], x: Array, extras: Array) -> Array:
    """Return the outputs of `mm_autofocus.networks.spectral_pair.SpectralPair`, shape (batch, 6).

    Parameters
    ----------
    weights
        Its state.
    x
        Shape (batch, channels, rows, angles).
    extras
        Shape (batch, extras).
    """
    swapped = x[:, _SWAP].copy()
    swapped[:, 3] = -swapped[:, 3]
    both = _half(weights, np.concatenate([x, swapped]), np.concatenate([extras, extras]))
    one, two = both[: len(x)], both[len(x) :]
    odd = np.float32(0.5 * _SCALE) * (one[:, :3] - two[:, :3])
    return np.concatenate([odd, 0.5 * (one[:, 3:] + two[:, 3:])], 1).astype(np.float32)


def _half(weights: Mapping[str, NDArray[np.generic]], x: Array, extras: Array) -> Array:
    for i, (padding, stride) in enumerate(_LAYERS):
        x = _circular(x, weights[f"convolutions.{i}.weight"], weights[f"convolutions.{i}.bias"], padding, stride)
    n, channels, rows, angles = x.shape
    y = x.reshape(n, channels * rows, angles).transpose(0, 2, 1)
    y = np.concatenate([y, np.broadcast_to(extras[:, None], (n, angles, extras.shape[1]))], -1)
    y = np.maximum(_linear(y, weights, "each"), 0.0)
    around = np.concatenate([y.mean(1), y.max(1)], -1) @ _as_array(weights["around.weight"]).T
    y = np.maximum(_linear(y, weights, "joint") + around[:, None], 0.0)
    y = np.maximum(_linear(np.concatenate([np.roll(y, 1, 1), y, np.roll(y, -1, 1)], -1), weights, "beside"), 0.0)
    y = _linear(y, weights, "out")
    angle = 2.0 * np.pi * (np.arange(angles) + 0.5) / angles
    a = 2.0 * (y[..., 1] * np.cos(angle)).mean(1)
    b = 2.0 * (y[..., 1] * np.sin(angle)).mean(1)
    mean = y.mean(1)
    return np.stack([mean[:, 0], a, b, mean[:, 2], mean[:, 3], mean[:, 4]], 1).astype(np.float32)


def _circular(x: Array, weight: NDArray[np.generic], bias: NDArray[np.generic], padding: int, stride: int) -> Array:
    """Return relu(convolution), circular in the angle, zero-padded in the radius."""
    n, channels, rows, angles = x.shape
    out, _, high, wide = weight.shape
    padded = np.zeros((n, channels, rows + 2 * padding, angles + 2), dtype=np.float32)
    padded[:, :, padding : padding + rows, 1:-1] = x
    padded[:, :, padding : padding + rows, 0] = x[..., -1]
    padded[:, :, padding : padding + rows, -1] = x[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (high, wide), (2, 3))[:, :, ::stride]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels * high * wide)
    y = columns @ _as_array(weight).reshape(out, -1).T + _as_array(bias)
    np.maximum(y, 0.0, out=y)
    return np.asarray(y.reshape(n, windows.shape[2], angles, out).transpose(0, 3, 1, 2))


def _linear(x: Array, weights: Mapping[str, NDArray[np.generic]], name: str) -> Array:
    return np.asarray(x @ _as_array(weights[f"{name}.weight"]).T + _as_array(weights[f"{name}.bias"]))


def _as_array(value: NDArray[np.generic]) -> Array:
    return np.asarray(value, dtype=np.float32)
