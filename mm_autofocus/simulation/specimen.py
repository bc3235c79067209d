"""A specimen on an endless plane: the same x and y always show the same cells, drawn only when they are looked at.

The plane is divided into tiles, each with at most one cell, which is drawn from hash(seed, tile).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.simulation import cells

Kind = Literal["fluorescence", "stained", "beads"]
"""Fluorescent cells that are unstained in brightfield; the same with stained tissue in brightfield; 0.2 µm beads."""

Stain = Literal["nuclei", "cytoplasm", "transmitted"]
"""What a channel makes visible."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A thin slice of the specimen.

    Attributes
    ----------
    height_um
        Above the focal plane, µm of stage travel.
    image
        Relative brightness (or optical thickness in transmitted light), shape (size, size).
    """

    height_um: float
    image: NDArray[np.float32]


class Ground(Protocol):
    """What a specimen needs to know of the plate it grows on."""

    def holds_specimen(self, x: float, y: float) -> bool:
        """Return True where cells may grow."""
        ...

    def well_at(self, x: float, y: float) -> str | None:
        """Return the name of the well, or None between wells."""
        ...


@dataclass(frozen=True, slots=True)
class SpecimenSettings:
    """What grows on the plate.

    Attributes
    ----------
    kind
        See `Kind`.
    cell_spacing_um
        Mean distance between cells where they grow densely, µm.
    thickness_um
        Distance between the two layers of a cell, which lie evenly about the focal plane, µm.
    empty_field_fraction
        Fraction of the 300 µm squares in which nothing grows.
    debris_well_fraction, debris_height_um
        Fraction of the wells with dust above the cells, and the lowest and highest it may float, µm.
    seed
        Fixes everything.

    Raises
    ------
    ValueError
        For an unknown kind or a fraction outside 0 to 1.
    """

    kind: Kind = "fluorescence"
    cell_spacing_um: float = 33.0
    thickness_um: float = 0.8
    empty_field_fraction: float = 0.0
    debris_well_fraction: float = 0.1
    debris_height_um: tuple[float, float] = (7.0, 14.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {', '.join(get_args(Kind))}.")
        for name in ("empty_field_fraction", "debris_well_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")
        if not 10 <= self.cell_spacing_um < np.inf:
            raise ValueError(f"cell_spacing_um={self.cell_spacing_um} must be 10 or more.")


class Specimen:
    """Draws the fields of a specimen.

    Parameters
    ----------
    settings
        What grows.
    ground
        Where it may grow: a `mm_autofocus.simulation.plate.Plate`.
    pixel_um
        Pixels of the drawings, µm.
    """

    _CACHED_PATCHES = 400
    _EMPTY_SQUARE_UM = 300.0
    _DEBRIS_TILE_UM = 75.0
    _BEADS_PER_TILE = 3
    _BEAD_THICKNESS = 0.15  # optical thickness per brightness: small beads are nearly invisible in transmitted light

    def __init__(self, settings: SpecimenSettings, ground: Ground, pixel_um: float) -> None:
        self.settings = settings
        self.ground = ground
        self.pixel_um = pixel_um
        self._patches: OrderedDict[tuple[object, ...], cells.Patch] = OrderedDict()

    def layers(self, stain: Stain, column: int, row: int, size: int) -> list[Layer]:
        """Draw a field.

        Parameters
        ----------
        stain
            What is visible.
        column, row
            The field's first pixel on the endless grid: it shows x from column · pixel_um on, y from row · pixel_um on.
        size
            Side of the field, pixels.

        Returns
        -------
        list of Layer
            One or more layers of shape (size, size); blank where nothing grows.
        """
        half = self.settings.thickness_um / 2
        canvas = np.zeros((2, size, size), dtype=np.float32)
        if self.settings.kind == "beads":
            self._draw_beads(canvas[0], column, row)
            if stain == "transmitted":
                canvas[0] *= self._BEAD_THICKNESS
            layers = [Layer(0.0, canvas[0])]
        else:
            for ix, iy, x, y in self._cells(column, row, size, self._REACH_UM):
                patch = self._patch(stain, ix, iy)
                self._paste(canvas, patch, round(x / self.pixel_um) - column, round(y / self.pixel_um) - row)
            layers = [Layer(-half, canvas[0]), Layer(half, canvas[1])]
        dust = np.zeros((1, size, size), dtype=np.float32)
        height = self.debris_height_um((column + size / 2) * self.pixel_um, (row + size / 2) * self.pixel_um)
        if height is not None and self._draw_debris(dust, column, row):
            layers.append(Layer(height, dust[0]))
        return layers

    def is_blank(self, column: int, row: int, size: int) -> bool:
        """Return True when the centre of no cell or bead lies in the field."""
        if self.settings.kind == "beads":
            canvas = np.zeros((size, size), dtype=np.float32)
            self._draw_beads(canvas, column, row)
            return not canvas.any()
        return next(self._cells(column, row, size, 0.0), None) is None

    def debris_height_um(self, x: float, y: float) -> float | None:
        """Return how high dust floats over the cells of the well at (x, y), or None where there is none.

        A blank well is empty, of dust too.
        """
        well = self.ground.well_at(x, y)
        if well is None or not self.ground.holds_specimen(x, y):
            return None
        rng = np.random.default_rng([self.settings.seed, 7, *well.encode()])
        dusty = rng.random() < self.settings.debris_well_fraction
        return float(rng.uniform(*self.settings.debris_height_um)) if dusty else None

    # -- tiles ---------------------------------------------------------------------------------------------------

    _REACH_UM = 1.45 * 23.0  # the largest cell

    def _rng(self, purpose: int, ix: int, iy: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.settings.seed, purpose, ix % 2**32, iy % 2**32]))

    def _tiles(self, column: int, row: int, size: int, tile_um: float, reach_um: float) -> Iterator[tuple[int, int]]:
        def span(first: int) -> range:
            low, high = first * self.pixel_um - reach_um, (first + size) * self.pixel_um + reach_um
            return range(int(np.floor(low / tile_um)), int(np.floor(high / tile_um)) + 1)

        for ix in span(column):
            for iy in span(row):
                yield ix, iy

    def _grows_at(self, x: float, y: float) -> bool:
        if not self.ground.holds_specimen(x, y):
            return False
        if not self.settings.empty_field_fraction:
            return True
        square = (int(np.floor(x / self._EMPTY_SQUARE_UM)), int(np.floor(y / self._EMPTY_SQUARE_UM)))
        return bool(self._rng(3, *square).random() >= self.settings.empty_field_fraction)

    def _cells(self, column: int, row: int, size: int, reach_um: float) -> Iterator[tuple[int, int, float, float]]:
        """Yield (tile, tile, x, y) of every cell whose centre is within ``reach_um`` of the field."""
        tile = self.settings.cell_spacing_um
        low_x, low_y = column * self.pixel_um - reach_um, row * self.pixel_um - reach_um
        span = size * self.pixel_um + 2 * reach_um
        for ix, iy in self._tiles(column, row, size, tile, reach_um):
            rng = self._rng(1, ix, iy)
            x, y = tile * (np.array([ix, iy]) + rng.uniform(0.08, 0.92, 2))
            crowd = 0.72 + 0.28 * np.sin(x / 97.0 + 2.1 * np.sin(y / 131.0)) * np.sin(y / 83.0)
            present = rng.random() < crowd and 0 <= x - low_x < span and 0 <= y - low_y < span
            if present and self._grows_at(float(x), float(y)):
                yield ix, iy, float(x), float(y)

    def _patch(self, stain: Stain, ix: int, iy: int) -> cells.Patch:
        key = (stain, ix, iy)
        if key in self._patches:
            self._patches.move_to_end(key)
            return self._patches[key]
        cell = cells.Cell.random(self._rng(2, ix, iy))
        if stain == "nuclei":
            patch = cells.nucleus(cell, self._rng(4, ix, iy), self.pixel_um)
        elif stain == "cytoplasm":
            patch = cells.cytoplasm(cell, self._rng(5, ix, iy), self.pixel_um)
        elif self.settings.kind == "stained":
            patch = cells.stained(cell, self._rng(6, ix, iy), self.pixel_um)
        else:
            patch = cells.relief(cell, self._rng(6, ix, iy), self.pixel_um)
        self._patches[key] = patch
        if len(self._patches) > self._CACHED_PATCHES:
            self._patches.popitem(last=False)
        return patch

    @staticmethod
    def _paste(canvas: NDArray[np.float32], patch: cells.Patch, column: int, row: int) -> None:
        size, side = canvas.shape[1], patch.shape[1]
        top, left = row - side // 2, column - side // 2
        y0, y1, x0, x1 = max(top, 0), min(top + side, size), max(left, 0), min(left + side, size)
        if y0 < y1 and x0 < x1:
            canvas[:, y0:y1, x0:x1] += patch[:, y0 - top : y1 - top, x0 - left : x1 - left]

    def _draw_beads(self, canvas: NDArray[np.float32], column: int, row: int) -> None:
        tile = self.settings.cell_spacing_um
        for ix, iy in self._tiles(column, row, canvas.shape[0], tile, 0.0):
            rng = self._rng(1, ix, iy)
            n = int(rng.poisson(self._BEADS_PER_TILE))
            place = tile * (np.array([ix, iy]) + rng.uniform(0, 1, (n, 2)))
            brightness = np.exp(rng.normal(0, 0.15, n)) * 30.0
            grows = np.array([self._grows_at(float(x), float(y)) for x, y in place], dtype=bool)
            if grows.any():
                x, y = place[grows].T / self.pixel_um
                cells.splat(canvas, x - column, y - row, brightness[grows])

    def _draw_debris(self, canvas: NDArray[np.float32], column: int, row: int) -> bool:
        tile = self._DEBRIS_TILE_UM
        drawn = False
        for ix, iy in self._tiles(column, row, canvas.shape[1], tile, 30.0):
            rng = self._rng(8, ix, iy)
            x, y = tile * (np.array([ix, iy]) + rng.uniform(0, 1, 2))
            if rng.random() < 0.45 and self.ground.well_at(float(x), float(y)) is not None:
                patch = cells.debris(rng, self.pixel_um)
                self._paste(canvas, patch, round(x / self.pixel_um) - column, round(y / self.pixel_um) - row)
                drawn = True
        return drawn
