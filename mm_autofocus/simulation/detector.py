"""What turns light into an image, and what the light does to the specimen: camera noise and bleaching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_POISSON_BELOW = 12.0


@dataclass(frozen=True, slots=True)
class Detector:
    """A scientific CMOS camera.

    Attributes
    ----------
    offset_counts
        Counts of a pixel without light.
    read_noise_electrons
        Standard deviation of the readout, electrons.
    gain_counts_per_electron
        Counts per detected photon.
    bits
        Depth of the digitiser: counts saturate at 2**bits - 1.
    """

    offset_counts: float = 100.0
    read_noise_electrons: float = 1.6
    gain_counts_per_electron: float = 2.0
    bits: int = 16

    def __post_init__(self) -> None:
        if not self.gain_counts_per_electron > 0:
            raise ValueError(f"gain_counts_per_electron={self.gain_counts_per_electron} must be above 0.")
        if not self.read_noise_electrons >= 0:
            raise ValueError(f"read_noise_electrons={self.read_noise_electrons} must not be negative.")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits={self.bits} must be 1 to 16: images are 16-bit.")

    @property
    def saturation(self) -> int:
        """The largest count."""
        return int(2**self.bits - 1)

    def read(
        self, photons: NDArray[np.float32], rng: np.random.Generator, pixels_summed: int = 1
    ) -> NDArray[np.uint16]:
        """Return an image of the expected photons.

        Shot noise is Poisson: drawn as such below 12 photons; above, as the Cornish-Fisher expansion
        λ + √λ·g + (g² - 1)/6 of a normal variate g, which has its mean, variance and skewness.

        Parameters
        ----------
        photons
            Expected photons per pixel, shape (height, width), not negative.
        rng
            Source of the noise.
        pixels_summed
            Sensor pixels read and summed per image pixel (binning squared): their read noise adds up.
        """
        noise = rng.standard_normal(photons.shape, dtype=np.float32)
        read_variance = np.float32(pixels_summed * self.read_noise_electrons**2)
        variance = photons + read_variance
        electrons = noise * noise
        electrons -= 1
        electrons *= photons
        electrons /= 6 * variance
        noise *= np.sqrt(variance)
        electrons += noise
        electrons += photons
        few = np.flatnonzero(photons < _POISSON_BELOW)
        if few.size:
            read = rng.normal(0.0, np.sqrt(read_variance), few.size)
            electrons.reshape(-1)[few] = rng.poisson(photons.reshape(-1)[few]) + read
        electrons *= np.float32(self.gain_counts_per_electron)
        electrons += np.float32(self.offset_counts + 0.5)
        return np.clip(electrons, 0, self.saturation, out=electrons).astype(np.uint16)


class Bleaching:
    """Remembers the light that every patch of the specimen has received, per channel.

    Fluorescence falls as exp(-dose / lifetime). Patches are a fixed grid on the specimen, so that a field stays
    bleached when it is visited again, and a field that overlaps it is bleached in that part; the whole field dims by
    the mean over its patches.

    Parameters
    ----------
    patch_um
        Side of a patch, µm.
    """

    def __init__(self, patch_um: float = 40.0) -> None:
        if not patch_um > 0:
            raise ValueError(f"patch_um={patch_um} must be above 0.")
        self.patch_um = patch_um
        self._dose_ms: dict[tuple[str, int, int], float] = {}

    def _patches(self, x: float, y: float, side_um: float) -> list[tuple[int, int]]:
        def span(centre: float) -> range:
            first = int(np.floor((centre - side_um / 2) / self.patch_um + 0.5))
            last = int(np.floor((centre + side_um / 2) / self.patch_um + 0.5))
            return range(first, max(last, first + 1))

        return [(i, j) for i in span(x) for j in span(y)]

    def expose(self, channel: str, x: float, y: float, side_um: float, light_ms: float) -> None:
        """Add light on the square field of ``side_um`` around (x, y), in ms."""
        for i, j in self._patches(x, y, side_um):
            key = (channel, i, j)
            self._dose_ms[key] = self._dose_ms.get(key, 0.0) + light_ms

    def remaining(self, channel: str, x: float, y: float, side_um: float, lifetime_ms: float) -> float:
        """Return the fraction of the fluorescence that is left in the field, 0 to 1."""
        doses = [self._dose_ms.get((channel, i, j), 0.0) for i, j in self._patches(x, y, side_um)]
        return float(np.mean(np.exp(-np.array(doses) / lifetime_ms)))
