"""The focus measures by name, the checks on the images they get, and what noise does to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mm_autofocus.measures.curve import FINE, GUIDE, MeasurePrior
from mm_autofocus.measures.spatial import (
    FloatImage,
    brenner,
    coarse_gradient,
    energy_of_laplacian,
    gaussian_tenengrad,
    laplacian_of_gaussian,
    squared_gradient,
    tenengrad,
)
from mm_autofocus.measures.spectral import dct_entropy, fft_bandpass, fft_bandpass_high
from mm_autofocus.measures.statistical import normalized_variance, vollath_f4, vollath_f5


@dataclass(frozen=True)
class Measure:
    """A focus measure.

    Attributes
    ----------
    name
        Key in `MEASURES`.
    function
        Takes a float32 image, returns its sharpness.
    smallest
        Least height and width of the image, pixels.
    prior
        What its curve over z looks like.
    noise_gain
        Score that white noise of unit variance adds (sum of the squared kernel); None where the score is no mean of
        a squared linear filter.
    correlated_pixels
        Pixels that share one independent value of filtered noise.
    signed_noise
        For measures that noise leaves at 0 on average, and that can be negative: SD of the score of N pixels of white
        noise of unit variance, times sqrt(N).
    """

    name: str
    function: Callable[[FloatImage], float]
    smallest: int
    prior: MeasurePrior = FINE
    noise_gain: float | None = None
    correlated_pixels: float = 1.0
    signed_noise: float | None = None

    def __call__(self, image: NDArray[Any]) -> float:
        """Return the sharpness of an image of shape (height, width); ValueError when it cannot be measured."""
        return self.function(checked(image, self.smallest, self.name))

    def noise_floor(self, noise_sd: float) -> float:
        """Score of white noise alone, of SD ``noise_sd`` grey values; 0 where it is not known (see ``noise_gain``)."""
        return 0.0 if self.noise_gain is None else self.noise_gain * noise_sd**2

    def log_score(self, image: NDArray[Any], noise: float | None = None) -> tuple[float, float]:
        """Return the natural logarithm of the score and its SD from white noise.

        ``noise`` is the SD of the noise in grey values; None: `noise_sd` of the image.

        A score that is the mean of N / q independent squares, of which n is the noise floor and s the signal, has the
        variance (2 n^2 + 4 n s) q / N; the floor is known no better than that it is not above the score. A measure
        that can be negative is cut off at its noise, and a score of 0 becomes -700.
        """
        score, pixels = self(image), image.size
        sd = noise_sd(image) if noise is None else noise
        if self.signed_noise is not None:
            absolute = self.signed_noise * sd**2 / math.sqrt(pixels)
            score = max(score, absolute)
            return (math.log(score), max(absolute / score, 0.003)) if score > 0 else (-700.0, 0.01)
        if score <= 0:
            return -700.0, 0.01
        if self.noise_gain is None:
            return math.log(score), 0.01
        floor = min(self.noise_floor(sd), score)
        variance = (2 * floor**2 + 4 * floor * (score - floor)) * self.correlated_pixels / pixels
        return math.log(score), max(math.sqrt(variance) / score, 0.003)


def checked(image: NDArray[Any], smallest: int, name: str) -> FloatImage:
    """Return the image as contiguous float32, or raise ValueError naming what is wrong with it."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] in (3, 4):
        raise ValueError(
            f"{name} needs a grey image, got colour of shape {array.shape}; convert it first, "
            "for instance image[..., :3].mean(axis=2)"
        )
    if array.ndim != 2:
        raise ValueError(f"{name} needs an image of two dimensions, got shape {array.shape}")
    if min(array.shape) < smallest:
        raise ValueError(
            f"{name} needs at least {smallest} x {smallest} pixels, got {array.shape[0]} x {array.shape[1]}; "
            "enlarge the crop or downsample less"
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} needs integer or floating-point pixels, got {array.dtype}")
    result = np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype.kind == "f" and not np.isfinite(result).all():
        count = int((~np.isfinite(result)).sum())
        raise ValueError(f"{name} needs finite pixels, {count} of {result.size} are NaN or infinite; check the camera")
    return result


def prepared(image: NDArray[Any], crop: float = 1.0, downsample: int = 1) -> NDArray[Any]:
    """Return the centre of an image, binned.

    Parameters
    ----------
    image
        Shape (height, width).
    crop
        Fraction of the height and of the width to keep, 0 < crop <= 1.
    downsample
        Side of the bins whose mean is taken, in pixels; 1 for none. A remainder of rows and columns is dropped.

    Raises
    ------
    ValueError
        For a crop or a bin out of range, or a bin larger than the crop.
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop is {crop:g}; it must lie in (0, 1]")
    if downsample < 1:
        raise ValueError(f"downsample is {downsample}; it must be 1 or more")
    if image.ndim != 2 or (crop == 1 and downsample == 1):
        return image
    height, width = (max(round(side * crop), 1) for side in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    part = image[top : top + height, left : left + width]
    if downsample == 1:
        return part
    height, width = height // downsample, width // downsample
    if not height or not width:
        raise ValueError(f"downsample {downsample} exceeds the cropped image of {part.shape}; use a smaller bin")
    part = part[: height * downsample, : width * downsample].astype(np.float32)
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA))


def noise_sd(image: NDArray[Any]) -> float:
    """Estimate the SD of the camera's white noise, in grey values, from one image.

    Median absolute diagonal detail of the finest Haar octave over 0.6745 (Donoho and Johnstone, Biometrika 81, 425,
    1994), and never less than the rounding of integers, 1 / sqrt(12). Texture at the pixel scale counts as noise, so
    it is an upper bound. 0 for a constant floating-point image.
    """
    array = np.asarray(image)
    if array.ndim != 2 or min(array.shape) < 2:
        checked(array, 2, "noise_sd")
    height, width = array.shape[0] // 2 * 2, array.shape[1] // 2 * 2
    stride = 2 * max(array.size // 2**19, 1)  # of a large image, every so many pairs of rows are enough
    upper = checked(array[:height:stride, :width], 1, "noise_sd")
    lower = checked(array[1:height:stride, :width], 1, "noise_sd")
    detail = upper[:, ::2] - lower[:, ::2] - upper[:, 1::2] + lower[:, 1::2]
    estimate = float(np.median(np.abs(detail))) / 2.0 / 0.6745
    return estimate if array.dtype.kind == "f" else max(estimate, 1.0 / math.sqrt(12.0))


def _gaussian_gain(laplacian: bool) -> float:
    """Sum of the squares of a derivative kernel after a Gaussian of SD 1.5 pixels."""
    impulse = np.zeros((33, 33), np.float32)
    impulse[16, 16] = 1.0
    return (laplacian_of_gaussian if laplacian else gaussian_tenengrad)(impulse) * impulse.size


_BAND_LOW = math.pi / 4 * (0.14**2 - 0.025**2)  # the part of the spectrum's square that lies in the ring
_BAND_HIGH = math.pi / 4 * (0.4**2 - 0.1**2)

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.name: measure
        for measure in (
            Measure("normalized_variance", normalized_variance, 2, GUIDE),
            Measure("brenner", brenner, 3, FINE, 4.0, 1.0),
            Measure("tenengrad", tenengrad, 3, FINE, 24.0, 1.8),
            Measure("energy_of_laplacian", energy_of_laplacian, 3, FINE, 20.0, 1.9),
            Measure("vollath_f4", vollath_f4, 3, FINE, signed_noise=2.0),
            Measure("vollath_f5", vollath_f5, 2, GUIDE, signed_noise=0.7),
            Measure("dct_entropy", dct_entropy, 6, GUIDE),
            Measure("fft_bandpass", fft_bandpass, 32, GUIDE, _BAND_LOW, 1.0 / _BAND_LOW),
            Measure("fft_bandpass_high", fft_bandpass_high, 16, FINE, _BAND_HIGH, 1.0 / _BAND_HIGH),
            Measure("gaussian_tenengrad", gaussian_tenengrad, 7, FINE, _gaussian_gain(False), 7.5),
            Measure("laplacian_of_gaussian", laplacian_of_gaussian, 7, FINE, _gaussian_gain(True), 5.5),
            Measure("coarse_gradient", coarse_gradient, 8, GUIDE, 4.0 / 16.0, 17.7),
            Measure("squared_gradient", squared_gradient, 2, FINE, 4.0, 1.4),
        )
    }
)
"""Every focus measure by name. A function of one image; higher is sharper."""


def get_measure(name: str) -> Measure:
    """Return a measure by name; ValueError lists the names when there is none."""
    try:
        return MEASURES[name]
    except KeyError:
        raise ValueError(f"no focus measure {name!r}; choose one of {', '.join(sorted(MEASURES))}") from None


def measure_focus(
    image: NDArray[Any], name: str, *, crop: float = 1.0, downsample: int = 1, subtract_noise: bool = False
) -> float:
    """Return the sharpness of an image.

    Parameters
    ----------
    image
        Shape (height, width), integer or floating point.
    name
        Key in `MEASURES`.
    crop, downsample
        See `prepared`.
    subtract_noise
        Take the score of the estimated white noise off, down to 0, where the measure's ``noise_gain`` is known. For
        dim images and unfiltered measures; a fit of the focus curve has its own background and needs it not.

    Raises
    ------
    ValueError
        When the name, an option or the image cannot be used; the message says why.
    """
    measure = get_measure(name)
    part = prepared(np.asarray(image), crop, downsample)
    score = measure(part)
    return max(score - measure.noise_floor(noise_sd(part)), 0.0) if subtract_noise else score
