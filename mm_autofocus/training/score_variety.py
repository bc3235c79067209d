"""Makes more of few specimens: mixed, at other magnifications, toned, inverted, masked, tinted, and sharp still.

What a network learns from one kind of specimen is partly that kind; what is left alike under all of these is the blur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Variety:
    """Shares of the frames to which something is done.

    Attributes
    ----------
    any
        Share to which anything is done at all; the rest is as it is.
    mixed
        Laid over another picture, in any proportion or along a wandering border.
    retold
        Told to be of another magnification, ``finer`` to ``coarser`` times the pixel.
    finer, coarser
        Factors of the pixel. A view at the instrument's finest pixels is softer than a coarse one, so hardly coarser.
    toned, inverted
        Bent brightness, and dark for bright.
    masked
        Partly hidden by nothing.
    tinted, tint
        Filtered to another slope of the spectrum, and the largest change of its exponent.
    contrast
        Least contrast that is left; what is missing is a pedestal.
    """

    any: float = 0.35
    mixed: float = 0.25
    retold: float = 0.5
    finer: float = 0.35
    coarser: float = 1.3
    toned: float = 0.6
    inverted: float = 0.2
    masked: float = 0.15
    tinted: float = 0.35
    tint: float = 0.25
    contrast: float = 0.35

    def wanted(self, rng: np.random.Generator) -> bool:
        """Return whether the next frame is one of those."""
        return self.any > 0.0 and bool(rng.uniform() < self.any)

    def pixel_um(self, rng: np.random.Generator, pixel_um: float, limits: tuple[float, float]) -> float:
        """Return the pixel size that a view of this one is told to have, µm, within the limits."""
        if rng.uniform() >= self.retold:
            return pixel_um
        told = pixel_um * math.exp(rng.uniform(math.log(self.finer), math.log(self.coarser)))
        return min(max(told, limits[0]), limits[1])

    def varied(self, rng: np.random.Generator, sharp: Plane, other: Plane) -> Plane:
        """Return a sharp picture made of one, and sometimes of another one, both of the same shape and 0 to 1."""
        if rng.uniform() < self.mixed:
            share = np.float32(rng.uniform(0.15, 0.85))
            if rng.uniform() < 0.5:
                keep = _border(rng, sharp.shape, float(share))
                sharp = keep * sharp + (1 - keep) * other
            else:
                sharp = share * sharp + (1 - share) * other
        if rng.uniform() < self.toned:
            sharp = np.power(np.maximum(sharp, 0.0), np.float32(math.exp(0.45 * rng.standard_normal())))
        if rng.uniform() < self.inverted:
            sharp = 1.0 - sharp
        if rng.uniform() < self.tinted:
            sharp = self._tinted(rng, sharp)
        if rng.uniform() < self.masked:
            keep = _border(rng, sharp.shape, rng.uniform(0.25, 0.8))
            sharp = keep * sharp + (1 - keep) * np.float32(rng.uniform(0.1, 0.8))
        contrast = rng.uniform(self.contrast, 1.0)
        sharp = rng.uniform(0.0, 0.8) * (1.0 - contrast) + contrast * sharp
        return np.asarray(np.clip(sharp, 0.0, 1.0), dtype=np.float32)

    def _tinted(self, rng: np.random.Generator, sharp: Plane) -> Plane:
        ky, kx = np.fft.fftfreq(sharp.shape[0])[:, None], np.fft.rfftfreq(sharp.shape[1])[None, :]
        angle, stretch = rng.uniform(0.0, math.pi), math.exp(rng.uniform(-0.7, 0.7))
        along, across = math.cos(angle) * kx + math.sin(angle) * ky, math.cos(angle) * ky - math.sin(angle) * kx
        k = np.hypot(along * stretch, across / stretch) + 0.01
        mean, spread = float(sharp.mean()), float(sharp.std())
        spectrum = fft.rfft2(sharp, workers=1)
        spectrum *= np.power(k, rng.uniform(-self.tint, self.tint)).astype(np.float32)
        spectrum[0, 0] = 0.0
        plane = fft.irfft2(spectrum, sharp.shape, workers=1)
        return np.asarray(mean + plane * (spread / max(float(plane.std()), 1e-6)), dtype=np.float32)


PLAIN = Variety(any=0.0)
"""Specimens as they are."""


def _border(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> Plane:
    """Return 1 on about this share of a plane and 0 on the rest, with a wandering border a few pixels wide."""
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    spectrum = rng.standard_normal((shape[0], kx.shape[1])) + 1j * rng.standard_normal((shape[0], kx.shape[1]))
    spectrum *= np.exp(-0.5 * np.square(np.hypot(ky, kx) * rng.uniform(30.0, 120.0)))
    smooth = fft.irfft2(spectrum.astype(np.complex64), shape, workers=1)
    smooth /= max(float(smooth.std()), 1e-12)
    level = float(np.quantile(smooth[::8, ::8], 1.0 - share))
    return np.asarray(np.clip((smooth - level) * rng.uniform(5.0, 40.0) + 0.5, 0.0, 1.0), dtype=np.float32)
