"""What every reader of electron images does first: refuse what cannot be read, register, say how much is clipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mm_autofocus.errors import HardwareError
from mm_autofocus.estimators.aberration import ColumnCalibration
from mm_autofocus.estimators.registration import Frame, aligned, register
from mm_autofocus.strategy import Image

SMALLEST = 256
"""Shorter side of a frame, pixels, below which a pair says too little."""

_SHIFT_UM = 0.30
"""How far the second frame may be displaced, µm: twice what 10 µm of working distance do on a real column."""

_SHIFT_PX = (6.0, 64.0)


@dataclass(frozen=True, slots=True)
class PreparedPair:
    """A registered pair.

    Attributes
    ----------
    under, over
        What both frames share, float32.
    shift_px
        Displacement (x, y) of the second frame that was taken out.
    left_px
        The part of it below one pixel, still in the frames.
    delta_px
        Half of the perturbation, blur pixels, by the calibration.
    saturated
        Share of pixels at either end of the grey values, the larger of both frames.
    """

    under: Frame
    over: Frame
    shift_px: tuple[float, float]
    left_px: tuple[float, float]
    delta_px: float
    saturated: float


def prepare(
    under: Image, over: Image, step_um: float, pixel_um: float, calibration: ColumnCalibration, smallest: int = SMALLEST
) -> PreparedPair:
    """Check and register a pair; parameters as in `mm_autofocus.estimators.PairEstimator.estimate`.

    Raises
    ------
    HardwareError
        When the frames differ in shape, are no grey images, hold a NaN or an infinity, or are too small; when the
        step or the pixel size is not positive.
    """
    if under.shape != over.shape:
        raise HardwareError(f"pair of frames: shapes {under.shape} and {over.shape} differ; take both alike")
    for frame in (under, over):
        check_frame(frame, smallest)
    if not (step_um > 0 and pixel_um > 0 and np.isfinite(step_um) and np.isfinite(pixel_um)):
        raise HardwareError(f"pair of frames: step {step_um} µm and pixel size {pixel_um} µm must be above 0")
    expected = [step_um * s / pixel_um for s in calibration.shift_um_per_um]
    reach = max(_SHIFT_UM / pixel_um, _SHIFT_PX[0], 1.5 * max(abs(expected[0]), abs(expected[1])) + 4.0)
    shift = register(under, over, min(reach, _SHIFT_PX[1], min(under.shape) / 4))
    one, two, left = aligned(under, over, shift)
    delta = 0.5 * step_um * calibration.blur_per_um(pixel_um)
    return PreparedPair(one, two, shift, left, delta, max(saturated_share(under), saturated_share(over)))


def check_frame(frame: Image, smallest: int = SMALLEST) -> None:
    """Refuse a frame that cannot be read.

    Raises
    ------
    HardwareError
        When it is no grey image, holds a NaN or an infinity, or is too small.
    """
    if frame.ndim != 2:
        raise HardwareError(f"frame of shape {frame.shape} is not a grey image; set the camera to one channel")
    if min(frame.shape) < smallest:
        raise HardwareError(
            f"frame of {frame.shape[1]} x {frame.shape[0]} px is below {smallest} px; scan a larger one"
        )
    if np.issubdtype(frame.dtype, np.floating) and not np.isfinite(frame).all():
        raise HardwareError(f"frame of {frame.shape[1]} x {frame.shape[0]} px holds NaN or infinity; scan it again")


def saturated_share(frame: Image) -> float:
    """Return the share of pixels at an integer image's ends, or at a float image's own largest and smallest value."""
    if np.issubdtype(frame.dtype, np.integer):
        info = np.iinfo(str(frame.dtype))
        return float(((frame == info.min) | (frame == info.max)).mean())
    low, high = frame.min(), frame.max()
    return 1.0 if low == high else float(((frame == low) | (frame == high)).mean())
