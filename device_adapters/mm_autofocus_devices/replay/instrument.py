"""A recorded z-stack that is imaged at any z: plain Python, no Micro-Manager import."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError, LimitError, SettingsError


class RecordedStack:
    """Images between the planes are interpolated linearly from the two neighbours.

    Parameters
    ----------
    planes
        Shape (planes, height, width).
    z_um
        z of each plane in µm, shape (planes,), in any order, all different.
    noise
        SD of the noise added to every image, as a fraction of the brightest pixel, so that two looks differ.
    seed
        Of the noise.

    Raises
    ------
    SettingsError
        When planes and positions do not fit, or there are fewer than three.
    """

    def __init__(self, planes: NDArray[Any], z_um: NDArray[Any], *, noise: float = 0.0, seed: int = 0) -> None:
        planes, z = np.asarray(planes), np.asarray(z_um, dtype=float)
        if planes.ndim != 3 or len(planes) < 3:
            raise SettingsError(f"a z-stack needs axes ZYX and three planes or more; this one has shape {planes.shape}")
        if z.shape != (len(planes),) or not np.isfinite(z).all() or len(np.unique(z)) != len(z):
            raise SettingsError(f"{len(planes)} planes need as many different, finite z positions; got {z.tolist()}")
        if planes.dtype.kind == "f":  # a camera delivers integers
            if not np.isfinite(planes).all():
                raise SettingsError("the z-stack holds NaN or infinity; replace them before replaying it")
            low, high = float(planes.min()), float(planes.max())
            planes = np.rint((planes - low) * (60_000.0 / (high - low if high > low else 1.0))).astype(np.uint16)
        order = np.argsort(z)
        self.z_um: NDArray[np.float64] = z[order]
        self._planes = planes[order]
        self._noise = noise * float(np.percentile(self._planes, 99.9))
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._z = float(self.z_um[len(z) // 2])
        self.exposure_ms = 10.0

    @classmethod
    def open(
        cls, path: str | Path, *, step_um: float | None = None, positions: str | Path | None = None, noise: float = 0.0
    ) -> RecordedStack:
        """Read a multi-page TIFF.

        z comes from ``positions`` (JSON: a list, ``{"z_um": [...]}``, or ``{"file.tif": {"z_um": [...]}}``), from
        ``step_um``, from a ``stacks.json`` beside the file, or from the file's own ImageJ or OME spacing.

        Raises
        ------
        SettingsError
            When the file cannot be read, or nobody says where its planes lie.
        """
        path = Path(path).expanduser()
        try:
            with tifffile.TiffFile(path) as tiff:
                planes = tiff.asarray().squeeze()
                spacing = _spacing(tiff)
        except (OSError, tifffile.TiffFileError, ValueError) as error:
            raise SettingsError(f"z-stack {path} cannot be read: {error}") from error
        beside = path.with_name("stacks.json")
        if positions is None and step_um is None and beside.exists() and path.name in _json(beside):
            positions = beside
        if positions is not None:
            found = _json(Path(positions))
            if isinstance(found, dict):
                found = found.get(path.name, found)
                found = found.get("z_um") if isinstance(found, dict) else None
            if found is None:
                raise SettingsError(f'{positions} has no "z_um" for {path.name}')
            try:
                z = np.asarray(found, dtype=float)[: len(planes)]
            except (TypeError, ValueError):
                raise SettingsError(f'{positions} must hold numbers in "z_um"; it has {found!r}') from None
        elif step_um is not None or spacing is not None:
            step = step_um if step_um is not None else spacing
            z = np.arange(len(planes)) * float(step or 0.0)
        else:
            raise SettingsError(f"nothing says where the planes of {path} lie; give --step or --positions")
        return cls(planes, z, noise=noise)

    @property
    def planes(self) -> NDArray[Any]:
        """The recorded planes in the order of ``z_um``, shape (planes, height, width)."""
        return self._planes

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return int(self._planes.shape[1]), int(self._planes.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the images are made of: 8 or 16 bits, as recorded."""
        return self._planes.dtype if self._planes.dtype in (np.uint8, np.uint16) else np.dtype(np.uint16)

    @property
    def z(self) -> float:
        """Where the stage stands, µm."""
        return self._z

    @z.setter
    def z(self, value: float) -> None:
        if not self.z_um[0] <= value <= self.z_um[-1]:  # NaN too
            raise LimitError(
                f"z = {value:g} µm is outside the recording, {self.z_um[0]:g} to {self.z_um[-1]:g}; nothing has moved"
            )
        self._z = float(value)

    def snap(self) -> NDArray[Any]:
        """Return the image where the stage stands, shape (height, width), in the recording's dtype."""
        with self._lock:
            z = self._z
            above = int(np.clip(np.searchsorted(self.z_um, z), 1, len(self.z_um) - 1))
            weight = (z - self.z_um[above - 1]) / (self.z_um[above] - self.z_um[above - 1])
            image = (1 - weight) * self._planes[above - 1].astype(np.float32) + weight * self._planes[above]
            if self._noise:
                image += self._rng.normal(0.0, self._noise, image.shape)
            top = np.iinfo(self.dtype).max
            rounded: NDArray[Any] = np.clip(np.rint(image), 0, top).astype(self.dtype)
            return rounded


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"positions file {path} cannot be read: {error}") from error


def _spacing(tiff: tifffile.TiffFile) -> float | None:
    spacing = (tiff.imagej_metadata or {}).get("spacing")
    if spacing:
        return float(spacing)
    if tiff.ome_metadata:
        pixels = tifffile.xml2dict(tiff.ome_metadata).get("OME", {}).get("Image", {})
        pixels = pixels[0] if isinstance(pixels, list) else pixels
        pixels = pixels.get("Pixels", {})
        step, unit = pixels.get("PhysicalSizeZ"), pixels.get("PhysicalSizeZUnit", "µm")
        if step and unit not in _UNITS_UM:
            raise SettingsError(f"the file's z spacing is in {unit!r}; give --step in µm")
        return float(step) * _UNITS_UM[unit] if step else None
    return None


_UNITS_UM = {"µm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "Å": 1e-4}
"""Units of an OME file's z spacing in µm."""


def no_recording() -> HardwareError:
    """Return the error for a device that is used before a recording is open."""
    return HardwareError("no recording is open: set property File of the replay camera, then initialize")
