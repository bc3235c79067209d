"""MAPFoSt, the explicit-model peer of pair estimators, behind the same call as ours.

Binding, Mikula and Denk, Microsc. Microanal. 19, 38 (2013), in the Python version of its authors (PyPI ``mapfost``). It
maximises the posterior of (z, a, b) given both spectra. Used in benchmarks only.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.strategy import Image

BAND = 0.25
"""Part of the spectrum, in each direction, that mapfost keeps (its ``radial_aperture``)."""
SMALLEST_PATCH_PX = 128


def load_mapfost() -> Any:
    """Import the package.

    Raises
    ------
    SettingsError
        When it, or something that it needs and does not declare, is not installed.
    """
    try:
        return importlib.import_module("mapfost.mapfost")
    except ImportError as error:
        raise SettingsError(
            f"the peer MAPFoSt cannot be used ({error}); install it with `pip install mm-autofocus[bench]`, or leave "
            "it out of the table"
        ) from error


class MapfostEstimator:
    """MAPFoSt as a `mm_autofocus.estimators.PairEstimator`.

    It works in square patches on a grid, and the median of their answers counts. It takes the shift between the two
    frames out by itself.

    Parameters
    ----------
    patch_px
        Side of a patch; smaller where the frame is smaller.
    patches
        Patches (across, down) of the frame; they overlap where the frame is too small for them.
    disc
        Let it assume the disc's transfer function, 2 J1(q) / q, as a defocused probe has (its ``use_bessel``). Its own
        default is a Gaussian, which overshoots by a third with the true convergence angle and finds large aberrations
        worse; so this is how it is at its best.
    fast_bessel
        Lend it scipy's J1 of real numbers in place of that of complex order, ten times faster with the same values, so
        that tables can be made. False to time it as it is.

    Raises
    ------
    SettingsError
        When mapfost is not installed.
    """

    def __init__(
        self, patch_px: int = 512, patches: tuple[int, int] = (2, 2), disc: bool = True, fast_bessel: bool = True
    ) -> None:
        self._mapfost = load_mapfost()
        self._patch_px, self._patches, self._disc, self._fast = patch_px, patches, disc, fast_bessel

    def estimate(
        self, under: Image, over: Image, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        """Estimate from a pair; see `mm_autofocus.estimators.PairEstimator`.

        ``sigma`` is the standard error over the patches: infinite when none, or only one, could be used.

        Raises
        ------
        HardwareError
            When the frames differ in shape, hold a NaN, or are smaller than a patch may be.
        """
        images = [np.asarray(image, dtype=float) for image in (under, over)]
        if images[0].shape != images[1].shape or images[0].ndim != 2:
            raise HardwareError(f"the frames of a pair must be alike; they are {images[0].shape} and {images[1].shape}")
        if min(images[0].shape) < SMALLEST_PATCH_PX:
            raise HardwareError(f"frames of {images[0].shape} are too small for MAPFoSt; {SMALLEST_PATCH_PX} is least")
        if not all(np.isfinite(image).all() for image in images):
            raise HardwareError("a frame of the pair holds NaN or infinity; the camera has failed")
        found = []
        for x, y, size in self._grid(images[0].shape):
            blur = self._patch(images, (x, y), size, step_um, pixel_um, calibration)
            if blur is not None:
                found.append((x, y, size, blur))
        if not found:
            unknown = Aberration(np.inf, np.inf, np.inf)
            return PairEstimate(Aberration(0.0), unknown, signal=0.0, details={"patches_used": 0})
        blurs = np.array([blur for *_, blur in found])
        n = len(blurs)
        middle = calibration.from_blur(np.median(blurs, axis=0), pixel_um)
        each = [calibration.from_blur(blur, pixel_um) for blur in blurs]
        spread = np.array([a.vector() for a in each]).std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(3, np.inf)
        patches = tuple(PatchEstimate(x, y, size, a, 1.0 / n) for (x, y, size, _), a in zip(found, each, strict=True))
        return PairEstimate(middle, Aberration(*map(float, spread)), patches, details={"patches_used": n})

    def _grid(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
        height, width = shape
        size = min(self._patch_px, height, width) // 8 * 8  # mapfost cuts a quarter of an even spectrum
        across, down = self._patches
        for y in np.linspace(0, height - size, down) if down > 1 else [(height - size) / 2]:
            for x in np.linspace(0, width - size, across) if across > 1 else [(width - size) / 2]:
                yield int(x), int(y), size

    def _patch(
        self,
        images: list[NDArray[np.float64]],
        corner: tuple[int, int],
        size: int,
        step_um: float,
        pixel_um: float,
        calibration: ColumnCalibration,
    ) -> NDArray[np.float64] | None:
        """Return (z, a, b) of one patch in blur pixels, None where mapfost gives up."""
        with _lent_bessel(self._mapfost, self._disc and self._fast):
            used, _, result = self._mapfost.est_aberr(
                images, [-step_um / 2, step_um / 2],
                pix_size_um=pixel_um / BAND,  # it cuts the spectrum to BAND, and then spans k over the whole of it
                num_aperture=calibration.convergence_mrad * 1e-3,
                crop_ref=list(corner), crop_size=(size, size), test_ims_aligned=0, use_bessel=self._disc,
            )  # fmt: skip
        if used is not True or result is None or not np.isfinite(result.x).all():
            return None
        blur: NDArray[np.float64] = calibration.blur_per_um(pixel_um) * np.asarray(result.x, dtype=float)
        return blur


@contextmanager
def _lent_bessel(mapfost: Any, wanted: bool) -> Iterator[None]:
    """Let mapfost's ``special.jv(1, x)`` be ``j1(x)`` while it estimates."""
    module = mapfost.mtl
    own = module.special
    if wanted:
        module.special = SimpleNamespace(jv=lambda order, x: special.j1(x) if order == 1 else special.jv(order, x))
    try:
        yield
    finally:
        module.special = own
