"""Drawings of single cells and of debris, each on its own small patch of pixels, all from a random generator.

A patch is a stack of thin layers; brightness is relative (about 1 in the middle of a cell), sizes are in µm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Patch = NDArray[np.float32]
"""Shape (layers, side, side), side odd; the middle pixel is the centre of the cell."""

_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """Shape of one cell, shared by every channel.

    Attributes
    ----------
    angle
        Direction of the long axis, radians.
    nucleus_um
        Semi-axes of the nucleus.
    body_um
        Semi-axes of the cell.
    outline
        Amplitudes of the second to fifth harmonic of the outline, cosine and sine, shape (2, 4).
    brightness
        Relative amount of stain.
    mitotic
        True when the chromatin is condensed.
    """

    angle: float
    nucleus_um: tuple[float, float]
    body_um: tuple[float, float]
    outline: NDArray[np.float64]
    brightness: float
    mitotic: bool

    @classmethod
    def random(cls, rng: np.random.Generator) -> Cell:
        """Draw the shape of a cell."""
        long, ratio = rng.uniform(6.0, 8.5), rng.uniform(0.62, 0.9)
        body = rng.uniform(15.0, 23.0)
        return cls(
            angle=float(rng.uniform(0, 2 * np.pi)),
            nucleus_um=(long, long * ratio),
            body_um=(body, body * rng.uniform(0.5, 0.8)),
            outline=rng.normal(0, 1, (2, 4)) * np.array([0.10, 0.08, 0.05, 0.04]),
            brightness=float(np.exp(rng.normal(0, 0.25))),
            mitotic=bool(rng.random() < 0.04),
        )

    @property
    def reach_um(self) -> float:
        """Radius that holds the whole cell."""
        return 1.45 * self.body_um[0]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Coordinates of a patch: u along the cell's long axis and v across it, µm, shape (side, side)."""

    u: NDArray[np.float32]
    v: NDArray[np.float32]
    angle: float
    pixel_um: float

    @classmethod
    def of(cls, reach_um: float, pixel_um: float, angle: float) -> _Frame:
        half = int(np.ceil(reach_um / pixel_um))
        axis = (np.arange(-half, half + 1) * pixel_um).astype(np.float32)
        x, y = axis[None, :], axis[:, None]
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cls(x * cosine + y * sine, y * cosine - x * sine, angle, pixel_um)

    @property
    def side(self) -> int:
        return int(self.u.shape[0])

    def pixels(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (column, row) of points given in µm along and across the cell."""
        column = (u * np.cos(self.angle) - v * np.sin(self.angle)) / self.pixel_um + self.side // 2
        row = (u * np.sin(self.angle) + v * np.cos(self.angle)) / self.pixel_um + self.side // 2
        return column, row

    def outline(self, cell: Cell, semi_axes_um: tuple[float, float], strength: float = 1.0) -> NDArray[np.float32]:
        """Return the squared radius relative to an irregular ellipse: 0 in the middle, 1 on the outline."""
        first = self.u + 1j * self.v
        first /= np.maximum(np.abs(first), 1e-6)
        power, wobble = first, np.ones_like(self.u)
        for cosine, sine in strength * cell.outline.T:
            power = power * first
            wobble += np.float32(cosine) * power.real + np.float32(sine) * power.imag
        a, b = semi_axes_um
        return np.asarray(((self.u / np.float32(a)) ** 2 + (self.v / np.float32(b)) ** 2) / wobble**2)


def _inside(r_squared: NDArray[np.float32], sharpness: float) -> NDArray[np.float32]:
    """1 within the outline, 0 beyond, with an edge of width 1 / sharpness."""
    return np.asarray(0.5 - 0.5 * np.tanh((r_squared - 1) * np.float32(sharpness / 2)))


_TEXTURE_SIDE = 640


@lru_cache(maxsize=8)
def _texture_bank(sigma: float) -> NDArray[np.float32]:
    """Endless smooth noise of zero mean and unit variance that patches are cut from; ``sigma`` in pixels."""
    rng = np.random.default_rng([int(10 * sigma)])
    noise = rng.standard_normal((_TEXTURE_SIDE, _TEXTURE_SIDE), dtype=np.float32)
    smooth = gaussian_filter(noise, sigma, mode="wrap", truncate=3.0)
    return np.asarray(smooth / smooth.std())


def _texture(rng: np.random.Generator, side: int, sigma: float) -> NDArray[np.float32]:
    top, left = rng.integers(0, _TEXTURE_SIDE - side, 2)
    return _texture_bank(sigma)[top : top + side, left : left + side]


def splat(canvas: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64], weight: object = 1.0) -> None:
    """Add points at fractional pixel positions, each shared between its four nearest pixels; outside is dropped."""
    height, width = canvas.shape
    column, row = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    keep = (column >= 0) & (row >= 0) & (column < width - 1) & (row < height - 1)
    column, row = column[keep], row[keep]
    fx, fy = x[keep] - column, y[keep] - row
    amount = np.broadcast_to(np.asarray(weight, dtype=np.float64), x.shape)[keep]
    base = row * width + column
    index = np.concatenate([base, base + 1, base + width, base + width + 1])
    parts = [amount * (1 - fx) * (1 - fy), amount * fx * (1 - fy), amount * (1 - fx) * fy, amount * fx * fy]
    canvas += np.bincount(index, np.concatenate(parts), minlength=height * width).reshape(height, width)


def _bundles(cell: Cell, frame: _Frame, rng: np.random.Generator, number: int, weight: float, disorder: float) -> Patch:
    """Draw filaments that follow the cell's long axis, each in one of the layers."""
    long, wide = cell.body_um
    steps = int(2.2 * long / (0.6 * frame.pixel_um))
    along = np.linspace(-1.1, 1.1, steps)[None, :] * long
    tilt = rng.normal(0, disorder, (number, 1))
    bend = rng.normal(0, 2.7 * disorder / long, (number, 1))
    offset = rng.uniform(-1.0, 1.0, (number, 1)) * wide
    centre = rng.uniform(-0.3, 0.3, (number, 1)) * long
    extent = rng.uniform(0.35, 0.9, (number, 1)) * long
    from_centre = along - centre
    across = offset * (1 - 0.25 * (along / long) ** 2) + tilt * from_centre + bend * from_centre**2
    amount = rng.exponential(weight, (number, 1)) * np.clip((extent - np.abs(from_centre)) / 2.0, 0, 1)
    x, y = frame.pixels(np.broadcast_to(along, across.shape), across)
    lines = np.zeros((_LAYERS, frame.side, frame.side), dtype=np.float32)
    for layer in range(_LAYERS):
        rows = slice(layer, None, _LAYERS)
        splat(lines[layer], x[rows].ravel(), y[rows].ravel(), amount[rows].ravel())
    return lines


def _points(
    frame: _Frame, u: NDArray[np.float64], v: NDArray[np.float64], weight: NDArray[np.float64], sigma: float = 0.0
) -> Patch:
    """Draw points at (u, v), each in one of the layers, blurred by ``sigma`` pixels."""
    spots = np.zeros((_LAYERS, frame.side, frame.side), dtype=np.float32)
    x, y = frame.pixels(u, v)
    for layer in range(_LAYERS):
        rows = slice(layer, None, _LAYERS)
        splat(spots[layer], x[rows], y[rows], weight[rows])
    return np.asarray(gaussian_filter(spots, (0, sigma, sigma), truncate=3.0)) if sigma else spots


def nucleus(cell: Cell, rng: np.random.Generator, pixel_um: float) -> Patch:
    """Draw stained chromatin: an ellipsoid with coarse and fine texture, dark nucleoli and bright foci."""
    a, b = cell.nucleus_um
    if cell.mitotic:
        a, b = 0.8 * a, 0.3 * b
    frame = _Frame.of(a * 1.25 + 2.0, pixel_um, cell.angle)
    r_squared = frame.outline(cell, (a, b), strength=0.35)
    thickness = 0.55 * np.sqrt(np.clip(1 - r_squared, 0, 1)) + 0.45 * _inside(r_squared, 14)
    fine = np.stack([_texture(rng, frame.side, 1.0) for _ in range(_LAYERS)])
    chromatin = np.clip(1 + 0.20 * _texture(rng, frame.side, 3.2) + 0.20 * fine, 0.15, None)
    if cell.mitotic:
        return np.asarray(3.0 * cell.brightness * thickness * chromatin, dtype=np.float32)
    for _ in range(rng.integers(1, 5)):
        at, radius = rng.uniform(-0.5, 0.5, 2) * (a, b), rng.uniform(0.6, 1.3)
        square = (frame.u - np.float32(at[0])) ** 2 + (frame.v - np.float32(at[1])) ** 2
        chromatin *= 1 - 0.65 * np.exp(-((square / np.float32(radius**2)) ** 2))
    n = int(rng.integers(14, 34))
    phi, rho = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.uniform(0, 0.75, n))
    chromatin += _points(frame, a * rho * np.cos(phi), b * rho * np.sin(phi), rng.exponential(4.0, n), sigma=0.8)
    return np.asarray(cell.brightness / _LAYERS * thickness * chromatin, dtype=np.float32)


def cytoplasm(cell: Cell, rng: np.random.Generator, pixel_um: float) -> Patch:
    """Draw a fluorescent cytoskeleton: diffuse cytoplasm, bundles of filaments along the cell, bright puncta."""
    frame = _Frame.of(cell.reach_um, pixel_um, cell.angle)
    r_squared = frame.outline(cell, cell.body_um)
    inside = _inside(r_squared, 12)
    hollow = 1 - 0.55 * _inside(frame.outline(cell, cell.nucleus_um, strength=0.5), 4)
    reticulum = 1 + 0.35 * _texture(rng, frame.side, 1.6) + 0.15 * _texture(rng, frame.side, 5.0)
    diffuse = 0.45 * (0.25 + 0.75 * np.exp(-2.5 * r_squared)) * hollow * np.clip(reticulum, 0.1, None)
    lines = _bundles(cell, frame, rng, int(rng.integers(26, 44)), weight=0.19, disorder=0.13)
    n = int(rng.integers(30, 70))
    phi, rho = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.3, 0.8, n)
    long, wide = cell.body_um
    lines += _points(frame, long * rho * np.cos(phi), wide * rho * np.sin(phi), rng.exponential(1.6, n))
    return np.asarray(cell.brightness * inside * (diffuse / _LAYERS + lines), dtype=np.float32)


def relief(cell: Cell, rng: np.random.Generator, pixel_um: float) -> Patch:
    """Draw the optical thickness of an unstained cell: a dome with a sharp rim, a nucleus, granules."""
    frame = _Frame.of(cell.reach_um, pixel_um, cell.angle)
    r_squared = frame.outline(cell, cell.body_um)
    inside = _inside(r_squared, 25)
    dome = inside * (0.3 + 0.5 * np.exp(-3.0 * r_squared))
    dome += 0.35 * _inside(frame.outline(cell, cell.nucleus_um, strength=0.5), 10)
    n = int(rng.integers(60, 140))
    radius, phi = cell.body_um[0] * np.abs(rng.normal(0, 0.45, n)), rng.uniform(0, 2 * np.pi, n)
    granules = _points(frame, radius * np.cos(phi), radius * np.sin(phi), rng.exponential(2.2, n), sigma=0.9)
    textured = dome * (1 + 0.25 * _texture(rng, frame.side, 1.6))
    return np.asarray(textured / _LAYERS + granules * inside, dtype=np.float32)


def stained(cell: Cell, rng: np.random.Generator, pixel_um: float) -> Patch:
    """Draw the absorbance of a stained cell in tissue: a dark nucleus in paler, fibrous cytoplasm."""
    frame = _Frame.of(cell.reach_um, pixel_um, cell.angle)
    inside = _inside(frame.outline(cell, cell.body_um), 6)
    mottled = 1 + 0.30 * _texture(rng, frame.side, 1.0) + 0.35 * _texture(rng, frame.side, 5.0)
    pale = 0.20 * np.clip(mottled, 0, None) / _LAYERS
    patch = np.asarray(inside * (pale + 0.6 * _bundles(cell, frame, rng, 60, weight=0.12, disorder=0.3)), np.float32)
    chromatin = nucleus(cell, rng, pixel_um)
    margin = (frame.side - chromatin.shape[1]) // 2
    patch[:, margin : frame.side - margin, margin : frame.side - margin] += 0.8 / cell.brightness * chromatin
    return patch


def debris(rng: np.random.Generator, pixel_um: float) -> Patch:
    """Draw dust: a curled fibre and a few grains, one layer, reach 30 µm."""
    half = int(np.ceil(30.0 / pixel_um))
    side = 2 * half + 1
    canvas = np.zeros((1, side, side), dtype=np.float32)
    steps = int(rng.integers(150, 420))
    heading = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.normal(0, 1.5), steps)
    heading += np.cumsum(rng.normal(0, 0.035, steps))
    x, y = np.cumsum(0.5 * np.cos(heading)), np.cumsum(0.5 * np.sin(heading))
    splat(canvas[0], x - x.mean() + half, y - y.mean() + half, 1.3)
    for _ in range(rng.integers(2, 7)):
        n = int(rng.integers(5, 60))
        at = rng.uniform(0.2, 0.8, 2) * side
        splat(canvas[0], at[0] + rng.normal(0, 3.0, n), at[1] + rng.normal(0, 3.0, n), 0.9)
    return np.asarray(gaussian_filter(canvas, (0, 0.9, 0.9), truncate=3.0), dtype=np.float32)
