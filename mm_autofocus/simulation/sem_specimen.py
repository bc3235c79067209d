"""A specimen in a scanning electron microscope: an endless picture, looked at from any place, pixel size and angle."""

from __future__ import annotations

import math
from collections import OrderedDict
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from mm_autofocus.simulation import sem_textures
from mm_autofocus.simulation.sem_drawing import FINEST_UM, LEVELS, SIDE, Map, Tile, hashed

_CACHED_TILES = 400
_VESSEL_UM = (4.0, 9.0)
_WALL_UM = 0.35


class SpecimenKind(StrEnum):
    """What lies on the holder."""

    TISSUE = "tissue"
    """Stained neuropil: membranes, vesicles, mitochondria, myelin, cell bodies."""
    TIN = "tin"
    """Tin balls on carbon."""
    GRID = "grid"
    """TEM grid with a holey film."""
    PARTICLES = "particles"
    """Gold nanoparticles on carbon."""
    FIBRES = "fibres"
    """Filter paper."""
    WING = "wing"
    """Butterfly wing."""
    FABRIC = "fabric"
    """Woven cloth."""
    POWDER = "powder"
    """Crushed crystal."""


_TEXTURES: dict[SpecimenKind, sem_textures.Texture] = {
    SpecimenKind.TISSUE: sem_textures.tissue,
    SpecimenKind.TIN: sem_textures.tin,
    SpecimenKind.GRID: sem_textures.grid,
    SpecimenKind.PARTICLES: sem_textures.particles,
    SpecimenKind.FIBRES: sem_textures.fibres,
    SpecimenKind.WING: sem_textures.wing,
    SpecimenKind.FABRIC: sem_textures.fabric,
    SpecimenKind.POWDER: sem_textures.powder,
}


class Specimen:
    """One specimen.

    Parameters
    ----------
    kind
        What it is.
    seed
        Specimens of different seeds differ in everything; not negative.
    blank_fraction
        Share of the area that is empty, 0 to 0.6: lumina of blood vessels in tissue, else bare support.
    tilt_deg
        How steep the holder stands; the direction is drawn.
    bumps_um
        Standard deviation of the surface's height over hundreds of µm.

    Raises
    ------
    ValueError
        For a negative seed or a share beyond its limits.
    """

    def __init__(
        self,
        kind: SpecimenKind | str,
        seed: int,
        blank_fraction: float = 0.0,
        *,
        tilt_deg: float = 0.3,
        bumps_um: float = 1.0,
    ) -> None:
        self.kind = SpecimenKind(kind)
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative.")
        if not 0 <= blank_fraction <= 0.6:
            raise ValueError(f"blank_fraction={blank_fraction} must be 0 to 0.6.")
        self.seed, self.blank_fraction = seed, blank_fraction
        self._key = 1_000_003 * seed + 101 * list(SpecimenKind).index(self.kind)
        self._tiles: OrderedDict[tuple[int, int, int], Map] = OrderedDict()
        rng = np.random.default_rng([0x5EA, self._key])
        direction = rng.uniform(0.0, 2.0 * math.pi)
        slope = math.tan(math.radians(tilt_deg))
        self._slope = slope * math.cos(direction), slope * math.sin(direction)
        wavelength = rng.uniform(150.0, 600.0, 6)
        angle = rng.uniform(0.0, 2.0 * math.pi, 6)
        self._waves = 2.0 * math.pi / wavelength * np.stack([np.cos(angle), np.sin(angle)])
        self._phases = rng.uniform(0.0, 2.0 * math.pi, 6)
        self._bumps = bumps_um * math.sqrt(2.0 / 6.0)
        self._flat = float(np.sum(np.sin(self._phases)))
        # Vessels, one to a square of this spacing in 4 of 5, cover the share that is asked for: 1 - exp(-n A).
        low, high = _VESSEL_UM
        area = 0.8 * math.pi * 0.8 * (high**2 - low**2) / (2.0 * math.log(high / low))
        self._vessel_spacing = math.sqrt(area / -math.log(1.0 - blank_fraction)) if blank_fraction else math.inf

    def view(
        self, x_um: float, y_um: float, pixel_um: float, shape: tuple[int, int], rotation_deg: float = 0.0
    ) -> NDArray[np.float32]:
        """Return the secondary electron yield around a place, without blur and noise.

        Parameters
        ----------
        x_um, y_um
            Centre of the view; pixel (height // 2, width // 2).
        pixel_um
            Pixel size, 0.000625 to 5 µm.
        shape
            (height, width).
        rotation_deg
            Rotation of the scan: the view's x axis points along (cos, sin) of it in the specimen, so that what is seen
            turns by the negative.

        Returns
        -------
        array
            Shape ``shape``, float32, 0 to 1.

        Raises
        ------
        ValueError
            For a pixel size beyond its limits.
        """
        if not FINEST_UM <= pixel_um <= 2 * FINEST_UM * 2 ** (LEVELS - 1):
            raise ValueError(f"pixel_um={pixel_um} must be {FINEST_UM} to {FINEST_UM * 2**LEVELS:.3g}.")
        level = min(LEVELS - 1, math.floor(math.log2(pixel_um / FINEST_UM * 1.0001)))
        fine = FINEST_UM * 2.0**level
        height, width = shape
        c, s = _cos_sin(rotation_deg)
        ratio = pixel_um / fine
        # Rows of the matrix: (row, column) in the level's pixels for one step in (row, column) of the view.
        matrix = ratio * np.array([[c, s], [-s, c]])
        origin = np.array([y_um, x_um]) / fine - matrix @ np.array([height // 2, width // 2])
        corners = origin[:, None] + matrix @ np.array([[0, 0, height - 1, height - 1], [0, width - 1, 0, width - 1]])
        pad = 4 + math.ceil(2 * ratio)
        low = np.floor(corners.min(axis=1)).astype(int) - pad
        high = np.ceil(corners.max(axis=1)).astype(int) + pad + 1
        mosaic = self._mosaic(level, low, high)
        offset = origin - low
        if ratio > 1.05:
            # What the coarser pixels cannot hold is averaged before it is sampled.
            mosaic = gaussian_filter(mosaic, 0.42 * math.sqrt(ratio**2 - 1.0), mode="nearest", truncate=3.0)
        whole = np.round(offset).astype(int)
        if (c, s) == (1.0, 0.0) and abs(ratio - 1) < 1e-9 and np.abs(offset - whole).max() < 1e-3:
            return mosaic[whole[0] : whole[0] + height, whole[1] : whole[1] + width].copy()
        unturned = np.diag(matrix) if s == 0.0 else matrix
        sampled = affine_transform(mosaic, unturned, offset, output_shape=shape, order=3, mode="nearest")
        return np.asarray(np.clip(sampled, 0.0, 1.0), dtype=np.float32)

    def blank(self, x_um: float, y_um: float) -> bool:
        """Return whether this place is empty; truth, for scoring."""
        return bool(self.blank_map(x_um, y_um, 0.01, (1, 1))[0, 0])

    def blank_map(
        self, x_um: float, y_um: float, pixel_um: float, shape: tuple[int, int], rotation_deg: float = 0.0
    ) -> NDArray[np.bool_]:
        """Return which pixels of a `view` are empty, shape ``shape``; truth, for scoring."""
        height, width = shape
        c, s = _cos_sin(rotation_deg)
        across = (np.arange(width) - width // 2) * pixel_um
        down = (np.arange(height) - height // 2)[:, None] * pixel_um
        return np.asarray(self._depth(x_um + c * across - s * down, y_um + s * across + c * down) > 0)

    def height_um(self, x_um: float, y_um: float) -> float:
        """Return how much the best working distance here differs from that at (0, 0), µm: tilt and bumps."""
        bumps = float(np.sum(np.sin(self._waves.T @ np.array([x_um, y_um]) + self._phases))) - self._flat
        return self._slope[0] * x_um + self._slope[1] * y_um + self._bumps * bumps

    def _mosaic(self, level: int, low: NDArray[np.int_], high: NDArray[np.int_]) -> Map:
        mosaic = np.empty(tuple(high - low), np.float32)
        for row in range(low[0] // SIDE, (high[0] - 1) // SIDE + 1):
            for column in range(low[1] // SIDE, (high[1] - 1) // SIDE + 1):
                top, left = row * SIDE - low[0], column * SIDE - low[1]
                y0, x0 = max(0, top), max(0, left)
                part = mosaic[y0 : top + SIDE, x0 : left + SIDE]
                tile = self._tile(level, column, row)
                part[:] = tile[y0 - top : y0 - top + part.shape[0], x0 - left : x0 - left + part.shape[1]]
        return mosaic

    def _tile(self, level: int, column: int, row: int) -> Map:
        name = level, column, row
        if name in self._tiles:
            self._tiles.move_to_end(name)
            return self._tiles[name]
        tile = Tile(self._key, level, column, row)
        canvas = np.asarray(_TEXTURES[self.kind](tile, np.random.default_rng([0x7E8, self._key])), dtype=np.float32)
        if self.blank_fraction:
            depth = self._depth(tile.x, tile.y)
            wall = np.clip(0.5 + (depth + _WALL_UM) / tile.pixel_um, 0.0, 1.0)
            canvas += wall * (np.float32(0.36) + np.float32(0.25) * (canvas - 0.5) - canvas)
            empty = np.clip(0.5 + depth / tile.pixel_um, 0.0, 1.0)
            canvas += empty * (sem_textures.resin(tile) - canvas)
        np.clip(canvas, 0.0, 1.0, out=canvas)
        self._tiles[name] = canvas
        if len(self._tiles) > _CACHED_TILES:
            self._tiles.popitem(last=False)
        return canvas

    def _depth(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return how far inside an empty region places are, µm, negative outside; shapes broadcast."""
        shape = np.broadcast_shapes(x.shape, y.shape)
        depth = np.full(shape, -1e3, np.float32)
        if not self.blank_fraction:
            return depth
        spacing, reach = self._vessel_spacing, 1.3 * _VESSEL_UM[1]
        spans = [
            np.arange(math.floor((v.min() - reach) / spacing) - 1, math.floor((v.max() + reach) / spacing) + 2)
            for v in (x, y)
        ]
        i, j = (a.ravel() for a in np.meshgrid(*spans))
        u = [hashed(self._key + 77 + k, i, j).astype(float) for k in range(6)]
        for n in np.flatnonzero(u[0] < 0.8):
            radius = _VESSEL_UM[0] * (_VESSEL_UM[1] / _VESSEL_UM[0]) ** u[1][n]
            dx = (x - (i[n] + u[2][n]) * spacing).astype(np.float32)
            dy = (y - (j[n] + u[3][n]) * spacing).astype(np.float32)
            if min(np.abs(dx).min(), 1e9) > reach or np.abs(dy).min() > reach:
                continue
            angle = math.pi * u[4][n]
            along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
            flat = 0.6 + 0.4 * u[5][n]
            wobble = 1.0 + 0.05 * np.sin(3.0 * np.arctan2(across, along) + 7.0 * u[1][n])
            np.maximum(depth, (radius * wobble - np.hypot(along, across / flat)) * flat, out=depth, casting="unsafe")
        return depth


def _cos_sin(angle_deg: float) -> tuple[float, float]:
    """Return cosine and sine, exact at quarter turns."""
    quarter = round(angle_deg / 90.0)
    if angle_deg == 90.0 * quarter:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[quarter % 4]
    return math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
