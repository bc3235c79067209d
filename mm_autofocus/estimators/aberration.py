"""What an electron column is off by, in the units of its knobs and in pixels of blur, and who estimates it.

A probe that is out of focus by ``z`` and astigmatic by ``(a, b)`` images a point as the aperture's disc under
``M = α [[z + a, b], [b, z - a]]`` (α the convergence half-angle). In *blur pixels*, α z / pixel, networks need to know
neither convergence angle, nor pixel size, nor the stigmators' scale: `ColumnCalibration` converts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.strategy import Image

Vector = NDArray[np.float64]
"""Shape (3,)."""


@dataclass(frozen=True, slots=True)
class Aberration:
    """How far the column is from focus: present value minus the best one. The correction is the negative.

    Attributes
    ----------
    defocus_um
        Working distance, µm.
    stig_x, stig_y
        Stigmators, in their arbitrary units (a.u.).
    """

    defocus_um: float
    stig_x: float = 0.0
    stig_y: float = 0.0

    def __neg__(self) -> Aberration:
        return Aberration(-self.defocus_um, -self.stig_x, -self.stig_y)

    def __add__(self, other: Aberration) -> Aberration:
        return Aberration(self.defocus_um + other.defocus_um, self.stig_x + other.stig_x, self.stig_y + other.stig_y)

    def vector(self) -> Vector:
        """Return (defocus_um, stig_x, stig_y)."""
        return np.array([self.defocus_um, self.stig_x, self.stig_y])


@dataclass(frozen=True, slots=True)
class ColumnCalibration:
    """What turns knobs into blur.

    Attributes
    ----------
    convergence_mrad
        Half-angle α of the beam at the specimen.
    stigmator_um
        Astigmatic defocus of one unit of a stigmator, µm.
    stigmator_rotation_deg
        Angle θ by which the stigmators' axes are turned against the image: the blur's astigmatism is
        ``stigmator_um * R(2θ) (stig_x, stig_y)``.
    shift_um_per_um
        Image shift (x, y) in the specimen, µm for each µm of working distance (beam tilt).
    """

    convergence_mrad: float = 8.7
    stigmator_um: float = 6.0
    stigmator_rotation_deg: float = 0.0
    shift_um_per_um: tuple[float, float] = (0.0, 0.0)

    def blur_per_um(self, pixel_um: float) -> float:
        """Blur radius in pixels of 1 µm of defocus."""
        return self.convergence_mrad * 1e-3 / pixel_um

    def _turn(self) -> NDArray[np.float64]:
        angle = 2.0 * math.radians(self.stigmator_rotation_deg)
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, -s], [s, c]])

    def to_blur(self, aberration: Aberration, pixel_um: float) -> Vector:
        """Return (z, a, b) in blur pixels, shape (3,)."""
        a, b = self.stigmator_um * self._turn() @ np.array([aberration.stig_x, aberration.stig_y])
        return self.blur_per_um(pixel_um) * np.array([aberration.defocus_um, a, b])

    def from_blur(self, blur: Vector, pixel_um: float) -> Aberration:
        """Return the aberration of (z, a, b) in blur pixels; the inverse of `to_blur`."""
        z, a, b = np.asarray(blur, dtype=float) / self.blur_per_um(pixel_um)
        x, y = self._turn().T @ np.array([a, b]) / self.stigmator_um
        return Aberration(float(z), float(x), float(y))

    def scaled(self, convergence: float = 1.0, stigmator: float = 1.0) -> ColumnCalibration:
        """Return a calibration whose angle and stigmator scale are multiplied by these factors."""
        return replace(
            self,
            convergence_mrad=self.convergence_mrad * convergence,
            stigmator_um=self.stigmator_um * stigmator,
        )


@dataclass(frozen=True, slots=True)
class PatchEstimate:
    """What one patch of the pair says: where it lies (pixels), its aberration, and its weight (sum 1 over a pair)."""

    x: int
    y: int
    size: int
    aberration: Aberration
    weight: float


@dataclass(frozen=True, slots=True)
class PairEstimate:
    """What a pair of frames says about the point midway between their working distances.

    Attributes
    ----------
    aberration
        Of the midpoint.
    sigma
        Standard deviation of each component; infinite where the pair says nothing.
    patches
        The single patches, for the report; may be empty.
    signal
        Contrast of the specimen over the noise in the pair's passband; near 0 for blank resin.
    shift_px
        Displacement (x, y) of the second frame against the first that was taken out.
    step_ratio
        Perturbation as the pair shows it over the perturbation that was commanded, NaN where it is not estimated: above
        1 the convergence angle is larger than the calibration says.
    details
        Anything worth keeping, JSON-serialisable.
    """

    aberration: Aberration
    sigma: Aberration
    patches: tuple[PatchEstimate, ...] = ()
    signal: float = 1.0
    shift_px: tuple[float, float] = (0.0, 0.0)
    step_ratio: float = math.nan
    details: Mapping[str, Any] = field(default_factory=dict)


class PairEstimator(Protocol):
    """Estimates the aberration from two frames of the same place at two working distances."""

    def estimate(
        self, under: Image, over: Image, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        """Estimate from a pair.

        Parameters
        ----------
        under, over
            Frames at the lower and the higher working distance, shape (height, width), any integer or float dtype.
        step_um
            Working distance of ``over`` minus that of ``under``, µm, positive.
        pixel_um
            Pixel size in the specimen, µm.
        calibration
            The column's, as far as it is known.

        Raises
        ------
        HardwareError
            When the frames differ in shape, hold a NaN, or are smaller than the estimator can use.
        """
        ...
