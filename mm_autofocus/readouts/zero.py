"""Where a through-focus stack has its zero: the paper's criterion, with both signs, and which one was used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from mm_autofocus.errors import FocusError

Array = NDArray[np.float64]
Sign = Literal["minimum", "maximum", "auto"]


@dataclass(frozen=True, slots=True)
class Zero:
    """Zero defocus of one stack.

    Attributes
    ----------
    z_um
        Stage position.
    sign
        Whether the criterion has its minimum or its maximum there. It is a minimum only where the spot saturates the
        camera and the profiles are not normalised; otherwise it is a maximum.
    criterion
        Its value at every plane.
    """

    z_um: float
    sign: Literal["minimum", "maximum"]
    criterion: Array


def criterion(images: NDArray[np.generic], *, normalise: bool = True, window: int = 11, order: int = 3) -> Array:
    """Standard deviation of the power spectrum of the smoothed row averages (Lightley et al. 2021, methods).

    Parameters
    ----------
    images
        Shape (planes, height, width).
    normalise
        Divide each profile by its sum first. Without, the criterion follows the laser's power.
    window, order
        Of the Savitzky-Golay filter, pixels.

    Returns
    -------
    ndarray
        Shape (planes,).
    """
    profiles = images.mean(axis=2, dtype=np.float64)
    smooth = savgol_filter(profiles, window, order, axis=1)
    if normalise:
        tenth = max(smooth.shape[1] // 10, 1)
        smooth = smooth - np.sort(smooth, axis=1)[:, :tenth].mean(1, keepdims=True)
        smooth = smooth / np.maximum(smooth.sum(1, keepdims=True), 1e-9)
    power = np.abs(np.fft.rfft(smooth, axis=1)) ** 2
    deviation: Array = power.std(axis=1)
    return deviation


def find_zero(
    z_um: Array, images: NDArray[np.generic], *, sign: Sign = "auto", normalise: bool = True, reach_um: float = 2.0
) -> Zero:
    """Find zero defocus in a stack.

    Parameters
    ----------
    z_um
        Stage position of each plane, ascending or descending.
    images
        Shape (planes, height, width).
    sign
        Which extremum to take. "auto": the one that stands out more from the ends of the stack.
    normalise
        See `criterion`.
    reach_um
        Whole length of the interval round the extremum that the parabola is fitted to.

    Raises
    ------
    FocusError
        When there are fewer than 5 planes, or the extremum lies at the end of the stack.
    """
    z = np.asarray(z_um, dtype=float)
    if len(z) != len(images) or len(z) < 5:
        raise FocusError(f"zero defocus needs a stack of at least 5 planes with their z, {len(z)} z were given")
    order = np.argsort(z)
    z, raw = z[order], criterion(images[order], normalise=normalise)
    values = _smoothed(z, raw)
    top, bottom, ends = int(values.argmax()), int(values.argmin()), (values[0], values[-1])
    dips = float(min(ends) - values[bottom]) > float(values[top] - max(ends))
    chosen: Literal["minimum", "maximum"] = "minimum" if sign == "minimum" or (sign == "auto" and dips) else "maximum"
    at = bottom if chosen == "minimum" else top
    if at in (0, len(z) - 1):
        raise FocusError(
            f"the zero criterion has no {chosen} inside the stack from {z[0]:g} to {z[-1]:g} µm; record the stack "
            "through focus, or choose the other sign"
        )
    near = np.abs(z - z[at]) <= max(reach_um / 2, 1.01 * float(np.diff(z).max()))
    a, b, _ = np.polyfit(z[near] - z[at], values[near], 2)
    inverted = a > 0 if chosen == "minimum" else a < 0
    best = z[at] - b / (2 * a) if inverted and abs(b / (2 * a)) < reach_um else z[at]
    back = np.empty_like(raw)  # in the order of the caller's planes
    back[order] = raw
    return Zero(float(best), chosen, back)


def _smoothed(z: Array, values: Array, sd_um: float = 0.3) -> Array:
    """Average over about one period of the ghost's fringes, half a wavelength in the immersion medium."""
    weight = np.exp(-(((z[:, None] - z[None]) / sd_um) ** 2) / 2)
    smooth: Array = weight @ values / weight.sum(1)
    return smooth
