"""Puts specimen and optics together: the light that a camera would receive at any x, y and defocus, without noise."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mm_autofocus.simulation.optics import (
    BrightfieldTransfer,
    FrequencyGrid,
    Optics,
    Transfer,
    fluorescence_transfer,
)
from mm_autofocus.simulation.specimen import Specimen, Stain


@dataclass(frozen=True, slots=True)
class Channel:
    """One way of looking at the specimen.

    Attributes
    ----------
    stain
        What is visible.
    wavelength_um
        Of the emission, or of the transmitted light, µm.
    signal_per_s, background_per_s
        Photons per pixel and second from a specimen of brightness 1, and from everything else. In transmitted light the
        background is the lamp.
    bleach_lifetime_ms
        Light after which 1/e of the fluorescence is left; infinite where nothing bleaches.
    focus_offset_um
        How much higher the stage must stand for this channel than for one of offset 0.
    """

    stain: Stain
    wavelength_um: float
    signal_per_s: float
    background_per_s: float
    bleach_lifetime_ms: float = float("inf")
    focus_offset_um: float = 0.0


CHANNELS = MappingProxyType(
    {
        "DAPI": Channel("nuclei", 0.46, 14_000.0, 1_600.0, 60_000.0),
        "FITC": Channel("cytoplasm", 0.52, 12_000.0, 1_600.0, 40_000.0),
        "Brightfield": Channel("transmitted", 0.55, 0.0, 120_000.0),
    }
)
"""The default channels."""

_WEAK_PHASE = (0.010, 0.16)  # amplitude attenuation and radians per unit of an unstained cell's optical thickness
_ABSORBING = (0.16, 0.02)  # of a stained one


@lru_cache(maxsize=8)
def _grid(size: int, optics: Optics) -> FrequencyGrid:
    return FrequencyGrid(size, optics)


class Imager:
    """A widefield microscope looking at a specimen.

    The field is drawn with a margin, so that light from just outside blurs in. Blur wider than the margin wraps around,
    which shows only as haze.

    Parameters
    ----------
    optics
        The objective.
    specimen
        What lies under it; drawn with the same ``pixel_um``.
    field_px
        Side of the camera, pixels.
    vignetting
        Loss of light in the corners of the field, as a fraction.
    """

    _CACHED_FIELDS = 8

    def __init__(self, optics: Optics, specimen: Specimen, field_px: int = 512, vignetting: float = 0.12) -> None:
        if specimen.pixel_um != optics.pixel_um:
            raise ValueError(
                f"The specimen is drawn with pixels of {specimen.pixel_um} µm and the optics sample {optics.pixel_um} "
                "µm; make both the same."
            )
        self.optics = optics
        self.specimen = specimen
        self.field_px = field_px
        self._size = int(fft.next_fast_len(field_px + 128, real=True))
        self._margin = (self._size - field_px) // 2
        self._grid = _grid(self._size, optics)
        axis = np.linspace(-1, 1, field_px)
        self._flat_field = (1 - vignetting / 2 * (axis[None, :] ** 2 + axis[:, None] ** 2)).astype(np.float32)
        self._transfers: dict[Channel, Transfer] = {}
        self._blank: dict[tuple[float, float], bool] = {}
        self._fields: OrderedDict[tuple[Stain, float, float], list[tuple[float, NDArray[np.complex64]]]] = OrderedDict()

    @property
    def field_um(self) -> float:
        """Side of the field, µm."""
        return self.field_px * self.optics.pixel_um

    def light(
        self, channel: Channel, x: float, y: float, defocus_um: float, stain_left: float = 1.0
    ) -> NDArray[np.float32]:
        """Return the photons per second that reach each pixel.

        Parameters
        ----------
        channel
            How to look.
        x, y
            Centre of the field, µm. Image columns run along x, rows along y.
        defocus_um
            Height of the stage over the one that is in focus, µm.
        stain_left
            Fraction of the fluorescence that bleaching has left.

        Returns
        -------
        ndarray
            Shape (field_px, field_px).
        """
        transfer = self._transfer(channel)
        total: NDArray[np.complex64] | None = None
        for height, spectrum in self._field(channel.stain, x, y):
            part = self._grid.expand(transfer.profile(defocus_um - height)) * spectrum
            total = part if total is None else np.add(total, part, out=total)
        image = fft.irfft2(total, s=(self._size, self._size), overwrite_x=True)
        inside = slice(self._margin, self._margin + self.field_px)
        image = np.ascontiguousarray(image[inside, inside])
        if channel.stain == "transmitted":
            image += 1
            image *= np.float32(channel.background_per_s)
        else:
            image *= np.float32(channel.signal_per_s * stain_left)
            image += np.float32(channel.background_per_s)
        image *= self._flat_field
        return np.asarray(np.maximum(image, 0, out=image))

    def is_blank(self, x: float, y: float) -> bool:
        """Return True when no cell has its centre in the field around (x, y)."""
        if (x, y) not in self._blank:
            half, pixel = self.field_px / 2, self.optics.pixel_um
            corner = round(x / pixel - half), round(y / pixel - half)
            self._blank[x, y] = self.specimen.is_blank(*corner, self.field_px)
        return self._blank[x, y]

    def _transfer(self, channel: Channel) -> Transfer:
        if channel not in self._transfers:
            if channel.stain == "transmitted":
                weights = _ABSORBING if self.specimen.settings.kind == "stained" else _WEAK_PHASE
                self._transfers[channel] = BrightfieldTransfer(self.optics, channel.wavelength_um, *weights)
            else:
                self._transfers[channel] = fluorescence_transfer(self.optics, channel.wavelength_um)
        return self._transfers[channel]

    def _field(self, stain: Stain, x: float, y: float) -> list[tuple[float, NDArray[np.complex64]]]:
        key = (stain, x, y)
        if key in self._fields:
            self._fields.move_to_end(key)
            return self._fields[key]
        pixel = self.optics.pixel_um
        place_x, place_y = x / pixel - self._size / 2, y / pixel - self._size / 2
        column, row = int(np.floor(place_x)), int(np.floor(place_y))
        sampling = self._grid.pixel_aperture * self._grid.shift((column - place_x) * pixel, (row - place_y) * pixel)
        layers = self.specimen.layers(stain, column, row, self._size)
        field = [(layer.height_um, fft.rfft2(layer.image) * sampling) for layer in layers]
        self._fields[key] = field
        if len(self._fields) > self._CACHED_FIELDS:
            self._fields.popitem(last=False)
        return field
