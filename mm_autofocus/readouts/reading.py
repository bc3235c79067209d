"""What a readout answers about one image of the laser spot, and the checks that come before it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError

Image = NDArray[np.generic]
Images = NDArray[np.generic]
Array = NDArray[np.float64]


class Signal(StrEnum):
    """What the camera sees."""

    GOOD = "good"
    MISSING = "missing"
    SATURATED = "saturated"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Reading:
    """One image, read.

    Attributes
    ----------
    defocus_um
        Stage minus coverslip, µm; NaN without a signal.
    sigma_um
        Expected error, µm.
    signal
        Whether this is a reflection that the readout knows.
    strangeness
        Distance from the images that the readout was trained on; 1 is its limit.
    """

    defocus_um: float
    sigma_um: float
    signal: Signal = Signal.GOOD
    strangeness: float = 0.0

    @property
    def good(self) -> bool:
        """True when the number can be used."""
        return self.signal is Signal.GOOD and bool(np.isfinite(self.defocus_um))


@runtime_checkable
class Readout(Protocol):
    """Reads defocus from images of the laser spot.

    Attributes
    ----------
    range_um
        It reads from minus this to plus this.
    shape
        Images that it reads, (height, width) in pixels.
    """

    range_um: float
    shape: tuple[int, int]

    def predict(self, images: Images) -> tuple[Array, Array]:
        """Return defocus and expected error in µm, each of shape (images,)."""
        ...

    def examine(self, images: Images) -> tuple[Array, Array, Array]:
        """Return defocus, expected error, and strangeness, each of shape (images,).

        Strangeness is the distance from the images that the readout knows; above 1 a reflection is foreign.
        """
        ...


@dataclass(frozen=True, slots=True)
class SignalLimits:
    """When an image holds no usable reflection.

    Attributes
    ----------
    min_snr
        The laser's light in the image must exceed so many SDs of the image's own noise.
    max_saturated
        Largest fraction of pixels at the camera's full scale.
    bits
        Bits of the camera.
    """

    min_snr: float = 60.0
    max_saturated: float = 0.01
    bits: int = 12


def check_shape(image: Image, shape: tuple[int, int]) -> None:
    """Raise HardwareError when an image is not of the size that a model was trained on."""
    if image.ndim != 2 or image.shape != shape:
        found = " x ".join(str(n) for n in image.shape)
        raise HardwareError(
            f"the laser camera gave {found} pixels, the laser model was trained on {shape[0]} x {shape[1]}: "
            "clear the camera's region of interest and binning, or calibrate and train a model for this camera"
        )


def inspect(image: Image, limits: SignalLimits) -> Signal:
    """Tell whether there is a reflection at all, and whether the camera can show it.

    The profiles of both axes are smoothed over 9 pixels; light is what stands over their darkest tenth, noise the SD of
    neighbouring pixels' differences.
    """
    top = 2**limits.bits - 1
    if float((image >= top).mean()) > limits.max_saturated:
        return Signal.SATURATED
    return Signal.GOOD if signal_to_noise(image) >= limits.min_snr else Signal.MISSING


def signal_to_noise(image: Image) -> float:
    """Light of the reflection over the image's noise, both summed over the image; see `inspect`."""
    counts = image.astype(np.float32)
    noise = float(np.median(np.abs(np.diff(counts[::4], axis=1)))) / 0.954 + 1e-3
    best = 0.0
    for axis in (0, 1):
        profile = counts.mean(axis=axis, dtype=np.float64)
        smooth = np.convolve(profile, np.full(9, 1 / 9), mode="valid")
        tenth = max(smooth.size // 10, 1)
        dark = float(np.sort(smooth)[:tenth].mean())
        light = float((smooth - dark).sum())
        best = max(best, light * counts.shape[axis] / (noise * float(np.sqrt(counts.size))))
    return best
