"""Drawing of endless specimens, tile by tile: hashed noise, scattered bodies, strands and cells, in fixed world places.

Everything is a function of world position and seed alone, so that neighbouring tiles, and tiles of different pixel
size, show the same specimen. What is finer than a pixel is left at its mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

Map = NDArray[np.float32]
"""Shape (side, side), or what broadcasts to it."""

FINEST_UM = 0.000625
"""Pixel of level 0; each level is twice as coarse."""

LEVELS = 13
"""Levels 0.6 nm to 2.6 µm."""

SIDE = 256
"""Pixels along a tile."""

_SMALLEST_PX = 0.45
_SMALLEST_CLASS_PX = 0.8
_STAMPS_PX = np.array([2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 26, 32, 2**30])
_CHUNK = 2_000_000

Place = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Rows and columns in a tile, to index a map with."""

Shade = Callable[[Map, Map, Map, Map, Place], tuple[Map, Map]]
"""Takes (dx, dy, radius, u, place): offsets from the body's centre and its radius, pixels, its 8 uniform deviates
(first axis), and where it lies; returns brightness and coverage."""


def hashed(key: int, i: NDArray[np.int64], j: NDArray[np.int64] | int = 0) -> NDArray[np.float32]:
    """Return uniform deviates in [0, 1), one for each integer place (i, j) under this key (splitmix64)."""
    with np.errstate(over="ignore"):
        z = (
            np.asarray(i).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            + np.asarray(j).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
            + np.uint64(key * 0xD6E8FEB86659FD93 % 2**64)
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


def coverage(distance_px: Map) -> Map:
    """Return the share of a pixel inside an edge at this distance, negative inside."""
    return np.asarray(np.clip(np.float32(0.5) - distance_px, 0.0, 1.0))


def line(distance: Map, width: float | Map, pixel: float) -> Map:
    """Return a Gaussian line 1 high; a line finer than a pixel is broader and paler, its area kept. Any one unit."""
    effective = np.sqrt(np.square(width) + (0.5 * pixel) ** 2)
    return np.asarray(width / effective * np.exp(-np.square(distance / effective)), dtype=np.float32)


def comb(phase: Map, width: float, pixel: float) -> Map:
    """Return lines at integers of ``phase``; ``width`` and ``pixel`` in periods. Unresolved, it is its mean."""
    mean = width * math.sqrt(math.pi)
    blend = min(1.0, max(0.0, (pixel - 0.25) / 0.2))
    if blend == 1.0:
        return np.full_like(phase, mean)
    teeth = line((phase - np.round(phase)).astype(np.float32), width, pixel)
    return np.asarray(teeth * (1.0 - blend) + mean * blend, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Bodies:
    """Things scattered over a tile: centres and radii in pixels, shape (n,), and uniform deviates, shape (8, n)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius: NDArray[np.float64]
    u: NDArray[np.float32]

    def where(self, keep: NDArray[np.bool_]) -> Bodies:
        """Return those that ``keep``, shape (n,), names."""
        return Bodies(self.x[keep], self.y[keep], self.radius[keep], self.u[:, keep])


@dataclass(frozen=True, slots=True)
class Cells:
    """A tessellation: per pixel the distance to the nearest wall, µm, and the cell's own uniform deviate."""

    wall_um: Map
    tone: Map
    tree: cKDTree
    tones: NDArray[np.float32]

    def tone_at(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the deviate of the cells at these places, unwarped, shape (n,)."""
        _, nearest = self.tree.query(np.stack([y_um, x_um], 1), workers=1)
        return np.asarray(self.tones[nearest])


class Tile:
    """A square of `SIDE` pixels of a specimen at one level.

    Parameters
    ----------
    seed
        Of the specimen.
    level
        Pixel `FINEST_UM` * 2**level.
    column, row
        Which tile: pixel (0, 0) has its centre at (column, row) * SIDE pixels of the world.
    """

    def __init__(self, seed: int, level: int, column: int, row: int) -> None:
        self.seed, self.level = seed, level
        self.pixel_um = FINEST_UM * 2.0**level
        self._left, self._top = column * SIDE, row * SIDE
        steps = np.arange(SIDE)
        self.x: Map = ((self._left + steps) * self.pixel_um).astype(np.float32)[None, :]
        self.y: Map = ((self._top + steps) * self.pixel_um).astype(np.float32)[:, None]

    def key(self, channel: int) -> int:
        """Return the key for `hashed` of one ingredient of this specimen."""
        return (self.seed * 1009 + channel) % 2**63

    def noise(self, channel: int, coarsest_um: float, finest_um: float, slope: float = 1.0) -> Map:
        """Return noise of unit variance whose octaves, ``finest_um`` to ``coarsest_um``, grow as scale**slope.

        Octaves finer than a pixel are missing, so that the variance is smaller then.
        """
        first, last = (round(math.log2(s / FINEST_UM)) for s in (finest_um, coarsest_um))
        octaves = range(max(0, first), last + 1)
        norm = math.sqrt(sum(4.0 ** (slope * o) for o in octaves))
        total = np.zeros((SIDE, SIDE), np.float32)
        for octave in octaves:
            if octave >= self.level:
                total += np.float32(2.0 ** (slope * octave) / norm) * self._octave(channel, octave)
        return total

    def _octave(self, channel: int, octave: int) -> Map:
        """Return a cubic B-spline over hashed values on a lattice of level ``octave``, unit variance."""
        across, down = (self._spline(start, octave - self.level) for start in (self._left, self._top))
        i, j = across[1][None, :], down[1][:, None]
        lattice = hashed(self.key(channel * 64 + octave), i, j)
        lattice -= np.float32(0.5)
        lattice *= np.float32(math.sqrt(12.0) / 0.485)  # 0.485: mean SD of the spline over unit lattice values
        return np.asarray((across[0] @ (down[0] @ lattice).T).T)

    @staticmethod
    def _spline(start: int, halvings: int) -> tuple[csr_array, NDArray[np.int64]]:
        """Return interpolation weights (SIDE x lattice) and the lattice's indices along one axis."""
        place = (start + np.arange(SIDE)) / 2.0**halvings
        base = np.floor(place).astype(np.int64)
        t = place - base
        weights = np.stack(
            [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
        ).astype(np.float32) / np.float32(6.0)
        first = int(base[0]) - 1
        columns = (base[:, None] - 1 + np.arange(4)) - first
        size = int(columns.max()) + 1
        matrix = csr_array((weights.ravel(), columns.ravel(), np.arange(0, 4 * SIDE + 1, 4)), shape=(SIDE, size))
        return matrix, np.arange(first, first + size)

    def bodies(
        self, channel: int, spacing_um: float, radius_um: tuple[float, float], presence: float = 1.0, reach: float = 1.0
    ) -> Bodies:
        """Return bodies that reach into the tile, one to a square of ``spacing_um`` with probability ``presence``.

        Radii are spread evenly in their logarithm. ``reach`` is how far a body's drawing extends, in radii.
        """
        nothing = np.zeros(0)
        if not self.resolves(radius_um[1]):
            return Bodies(nothing, nothing, nothing, np.zeros((8, 0), np.float32))
        key = self.key(channel)
        # Every kind of body has its squares at an angle of its own, so that no lattice shows.
        angle = 2.0 * math.pi * float(hashed(key, np.array([-1]), -1)[0])
        c, s = math.cos(angle), math.sin(angle)
        margin = reach * radius_um[1] + 2 * self.pixel_um
        size = SIDE * self.pixel_um
        corner = np.array(
            [[-margin, size + margin, -margin, size + margin], [-margin, -margin, size + margin, size + margin]]
        )
        corner += np.array([[self._left], [self._top]]) * self.pixel_um
        turned = np.array([[c, s], [-s, c]]) @ corner / spacing_um
        low, high = np.floor(turned.min(axis=1)).astype(int) - 1, np.ceil(turned.max(axis=1)).astype(int) + 1
        i, j = (a.ravel() for a in np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])))
        p, q = (i + 0.5) * spacing_um, (j + 0.5) * spacing_um
        x, y = (c * p - s * q) / self.pixel_um - self._left, (s * p + c * q) / self.pixel_um - self._top
        far = (reach * radius_um[1] + spacing_um) / self.pixel_um + 2
        keep = (np.abs(x - SIDE / 2) < SIDE / 2 + far) & (np.abs(y - SIDE / 2) < SIDE / 2 + far)
        keep[keep] = hashed(key, i[keep], j[keep]) < presence
        i, j, x, y = i[keep], j[keep], x[keep], y[keep]
        u = np.stack([hashed(key + 7919 * (k + 1), i, j) for k in range(8)])
        radius = radius_um[0] * (radius_um[1] / radius_um[0]) ** u[2].astype(float)
        room = np.maximum(spacing_um - 2 * radius, 0.75 * spacing_um) / self.pixel_um
        return Bodies(x + (u[0] - 0.5) * room, y + (u[1] - 0.5) * room, radius / self.pixel_um, u)

    def resolves(self, radius_um: float) -> bool:
        """Return whether bodies up to this radius are drawn; else they are to be left at their mean."""
        return radius_um >= _SMALLEST_CLASS_PX * self.pixel_um

    def paint(self, canvas: Map, bodies: Bodies, shade: Shade, reach: float = 1.0) -> None:
        """Lay bodies over the canvas, shape (SIDE, SIDE), in place."""
        extent = bodies.radius * reach + 1.5
        near = (
            (bodies.x + extent > 0) & (bodies.y + extent > 0) & (bodies.x - extent < SIDE) & (bodies.y - extent < SIDE)
        )
        bodies, extent = (
            bodies.where(near & (bodies.radius > _SMALLEST_PX)),
            extent[near & (bodies.radius > _SMALLEST_PX)],
        )
        half = _STAMPS_PX[np.searchsorted(_STAMPS_PX[:-1], extent)]
        for size in np.unique(half):
            members = np.flatnonzero(half == size)
            if size == _STAMPS_PX[-1]:
                for k in members:
                    self._paint_one(canvas, bodies, int(k), float(extent[k]), shade)
                continue
            step = max(1, _CHUNK // int(2 * size + 1) ** 2)
            for start in range(0, len(members), step):
                self._stamp(canvas, bodies, members[start : start + step], int(size), shade)

    @staticmethod
    def _paint_one(canvas: Map, bodies: Bodies, k: int, extent: float, shade: Shade) -> None:
        x, y = bodies.x[k], bodies.y[k]
        left, right = max(0, int(x - extent)), min(SIDE, int(x + extent) + 2)
        top, bottom = max(0, int(y - extent)), min(SIDE, int(y + extent) + 2)
        if left >= right or top >= bottom:
            return
        dx = (np.arange(left, right) - x).astype(np.float32)[None, None, :]
        dy = (np.arange(top, bottom) - y).astype(np.float32)[None, :, None]
        radius = np.full((1, 1, 1), bodies.radius[k], np.float32)
        place = np.arange(top, bottom)[None, :, None], np.arange(left, right)[None, None, :]
        value, alpha = shade(dx, dy, radius, bodies.u[:, k].reshape(8, 1, 1, 1), place)
        part = canvas[top:bottom, left:right]
        part += np.broadcast_to(alpha, (1, *part.shape))[0] * (np.broadcast_to(value, (1, *part.shape))[0] - part)

    @staticmethod
    def _stamp(canvas: Map, bodies: Bodies, members: NDArray[np.intp], size: int, shade: Shade) -> None:
        column, row = np.round(bodies.x[members]).astype(int), np.round(bodies.y[members]).astype(int)
        steps = np.arange(-size, size + 1)
        dx = (steps[None, :] - (bodies.x[members] - column)[:, None]).astype(np.float32)[:, None, :]
        dy = (steps[None, :] - (bodies.y[members] - row)[:, None]).astype(np.float32)[:, :, None]
        radius = bodies.radius[members].astype(np.float32)[:, None, None]
        shape = (len(members), 2 * size + 1, 2 * size + 1)
        columns, rows = (column[:, None] + steps)[:, None, :], (row[:, None] + steps)[:, :, None]
        within = np.clip(rows, 0, SIDE - 1), np.clip(columns, 0, SIDE - 1)
        value, alpha = shade(dx, dy, radius, bodies.u[:, members, None, None], within)
        # A body smaller than a pixel is as pale as its share of that pixel.
        alpha = np.broadcast_to(alpha * np.minimum(1.0, np.square(radius / 0.6)), shape)
        columns, rows = np.broadcast_to(columns, shape), np.broadcast_to(rows, shape)
        seen = (alpha > 0) & (columns >= 0) & (columns < SIDE) & (rows >= 0) & (rows < SIDE)
        place = rows[seen] * SIDE + columns[seen]
        strength = alpha[seen]
        flat = canvas.reshape(-1)
        flat[place] += strength * (np.broadcast_to(value, shape)[seen] - flat[place])

    def cells(self, channel: int, spacing_um: float, presence: float, warp_um: float) -> Cells:
        """Return a Voronoi tessellation about jittered points, its walls bent by up to about ``warp_um``."""
        reach = 4.0 * spacing_um / math.sqrt(presence) + 3.0 * warp_um
        spans = [
            np.arange(
                math.floor((start * self.pixel_um - reach) / spacing_um),
                math.floor(((start + SIDE) * self.pixel_um + reach) / spacing_um) + 1,
            )
            for start in (self._left, self._top)
        ]
        i, j = (a.ravel() for a in np.meshgrid(*spans))
        keep = hashed(self.key(channel), i, j) < presence
        i, j = i[keep], j[keep]
        x, y = (
            (k + 0.5 + 0.95 * (hashed(self.key(channel) + o, i, j).astype(float) - 0.5)) * spacing_um
            for k, o in ((i, 11), (j, 23))
        )
        points, tones = np.stack([y, x], 1), hashed(self.key(channel) + 37, i, j)
        tree = cKDTree(points)
        scale = spacing_um, spacing_um / 4
        bend = [warp_um * self.noise(channel + k, *scale) for k in (1, 2)]
        x, y = self.x + bend[1], self.y + bend[0]
        # Where cells span many pixels, the two nearest points of one pixel serve a block; the wall between the two is
        # then found for each pixel. Which of the two is nearer may change within the block.
        step = 4 if self.pixel_um < spacing_um / 64 else 2 if self.pixel_um < spacing_um / 12 else 1
        corners = slice(step // 2, None, step)
        _, nearest = tree.query(np.stack([y[corners, corners].ravel(), x[corners, corners].ravel()], 1), k=2, workers=1)
        first, second = (np.repeat(np.repeat(n.reshape(SIDE // step, -1), step, 0), step, 1) for n in nearest.T)
        place = (points - points.mean(axis=0)).astype(np.float32)
        x, y = (v - np.float32(m) for v, m in zip((x, y), points.mean(axis=0)[::-1], strict=True))
        (y1, x1), (y2, x2) = ((place[n, 0], place[n, 1]) for n in (first, second))
        gap = np.hypot(x1 - x2, y1 - y2)
        wall = ((x1 - x2) * (2 * x - x1 - x2) + (y1 - y2) * (2 * y - y1 - y2)) / (2 * gap)
        return Cells(np.abs(wall), tones[np.where(wall > 0, first, second)], tree, tones)

    def strands(
        self, channel: int, angle_deg: float, spacing_um: float, width: float, presence: float, warp_um: float
    ) -> tuple[Map, Map, Map]:
        """Return (t, coverage, tone) of nearly parallel strands.

        ``t`` runs from -1 to 1 across a strand, ``coverage`` is its share of the pixel, ``tone`` its uniform deviate;
        ``width`` is the mean width over the spacing.
        """
        c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        bend = self.noise(channel + 1, 16 * spacing_um, 2 * spacing_um, 1.2)
        v = (self.y * c - self.x * s + warp_um * bend) / spacing_um
        index = np.floor(v).astype(np.int64)
        low = int(index.min())
        every = np.arange(low, int(index.max()) + 1)
        u = [hashed(self.key(channel) + k, every)[index - low] for k in range(4)]
        half = np.float32(0.5 * width) * (0.6 + 0.8 * u[0])
        t = (v - index - 0.5 - (u[1] - 0.5) * np.maximum(0.0, 1 - 2 * half)) / half
        cover = coverage((np.abs(t) - 1) * half * np.float32(spacing_um / self.pixel_um)) * (u[2] < presence)
        blend = min(1.0, max(0.0, (self.pixel_um / spacing_um - 0.25) / 0.25))
        cover = cover * (1 - blend) + blend * width * presence
        return np.clip(t, -1, 1).astype(np.float32), cover.astype(np.float32), u[3]
