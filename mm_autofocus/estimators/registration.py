"""Finds how far the second frame of a pair is displaced and cuts both to what they share.

Two working distances image the specimen at two places (beam tilt: about 1.5 px of 10 nm for each µm). Fifteen pixels
that are left in cost an estimator more than the noise does, so that this comes first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mm_autofocus.strategy import Image

Frame = NDArray[np.float32]

_BLOCK_FROM = 512
"""Frames whose shorter side is at least this are averaged 2 x 2 first: a blurred pair holds nothing finer."""

_BAND = 0.35
"""Width (standard deviation, radians per pixel) of the low-pass under which the frames are compared."""

_TAPER = 0.1


def register(
    under: Image, over: Image, max_shift_px: float, expected: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Return the displacement (dx, dy) of ``over`` against ``under``, pixels, positive to the right and down.

    The peak of a cross-correlation whose spectrum is half whitened and low-passed, with a parabola through it.

    Parameters
    ----------
    under, over
        Frames of the same shape.
    max_shift_px
        How far from ``expected`` to search, along either axis; at most a third of the frame.
    expected
        Displacement that the calibration foretells.
    """
    first, second, block = _reduced(under), _reduced(over), 1
    if min(first.shape) >= _BLOCK_FROM:
        first, second, block = block_mean(first, 2), block_mean(second, 2), 2
    height, width = first.shape
    window = _taper(height)[:, None] * _taper(width)[None, :]
    shape = (fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True))
    one = fft.rfft2((first - first.mean()) * window, shape, workers=1)
    two = fft.rfft2((second - second.mean()) * window, shape, workers=1)
    cross = np.conj(one) * two
    power = np.sqrt(np.abs(cross))
    ky = (2 * np.pi * np.fft.fftfreq(shape[0])).astype(np.float32)[:, None]
    kx = (2 * np.pi * np.fft.rfftfreq(shape[1])).astype(np.float32)[None, :]
    cross *= np.exp(-0.5 * (ky / _BAND) ** 2) * np.exp(-0.5 * (kx / _BAND) ** 2) / np.maximum(power, 1e-12)
    cross[:, 0] = 0.0  # offsets of whole rows, which are noise
    surface = fft.irfft2(cross, shape, workers=1)
    x = _offsets(expected[0] / block, max_shift_px / block, width)
    y = _offsets(expected[1] / block, max_shift_px / block, height)
    near = surface[np.ix_(y % shape[0], x % shape[1])]
    row, column = np.unravel_index(int(np.argmax(near)), near.shape)
    if near[row, column] <= 0.0:  # nothing in common, for instance two constant frames
        return expected
    dx = x[column] + _parabola(near[row], int(column))
    dy = y[row] + _parabola(near[:, column], int(row))
    return float(block * dx), float(block * dy)


def aligned(under: Image, over: Image, shift_px: tuple[float, float]) -> tuple[Frame, Frame, tuple[float, float]]:
    """Return both frames cut to what they share, and the part of the displacement below one pixel that is left.

    Parameters
    ----------
    under, over
        Frames of the same shape.
    shift_px
        Displacement (dx, dy) of ``over``, see `register`.
    """
    dx, dy = round(shift_px[0]), round(shift_px[1])
    height, width = under.shape
    first = under[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    second = over[max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
    left = (shift_px[0] - dx, shift_px[1] - dy)
    return np.asarray(first, dtype=np.float32), np.asarray(second, dtype=np.float32), left


def block_mean(image: Frame, block: int) -> Frame:
    """Return the mean of each block x block pixels; rows and columns left over are dropped."""
    if block == 1:
        return image
    height, width = image.shape[0] // block * block, image.shape[1] // block * block
    cut = image[:height, :width]
    total = cut[0::block].copy()
    for i in range(1, block):
        total += cut[i::block]
    out = total[:, 0::block].copy()
    for i in range(1, block):
        out += total[:, i::block]
    out /= np.float32(block * block)
    return out


def _reduced(image: Image) -> Frame:
    return np.asarray(image, dtype=np.float32)


def _taper(size: int) -> NDArray[np.float32]:
    """Return a window that is flat but for cosine edges."""
    edge = max(2, round(size * _TAPER))
    window = np.ones(size, dtype=np.float32)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)).astype(np.float32)
    window[:edge], window[-edge:] = ramp, ramp[::-1]
    return window


def _offsets(centre: float, reach: float, size: int) -> NDArray[np.intp]:
    middle = round(float(np.clip(centre, -size / 3, size / 3)))
    span = max(1, min(int(np.ceil(reach)), size // 3))
    return np.arange(middle - span, middle + span + 1)


def _parabola(values: NDArray[np.float32], peak: int) -> float:
    """Return the vertex of the parabola through a peak and its neighbours, from -0.5 to 0.5; 0 at the border."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    left, top, right = float(values[peak - 1]), float(values[peak]), float(values[peak + 1])
    curvature = left - 2.0 * top + right
    return 0.0 if curvature >= 0.0 else float(np.clip(0.5 * (left - right) / curvature, -0.5, 0.5))
