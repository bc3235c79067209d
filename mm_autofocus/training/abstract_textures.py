"""Pictures of no specimen: leaves, stripes and noise of every scale, so that a network learns blur and not specimens.

A network that has met a few kinds of specimen takes what is common to them for sharpness. Random shapes that occlude
one another have the edge and scale statistics of natural pictures (dead leaves; Lee, Mumford and Huang 2001), stripes
and noise the rest.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mm_autofocus.estimators.focus_score import pixel_um_of
from mm_autofocus.training.score_data import BEYOND, FINE_SHARE, VIEW, ScoreView

Plane = NDArray[np.float32]

_OVERSAMPLED = 2
"""Drawn this much finer and averaged, for edges to be as wide as a pixel."""

_LEAVES = (150, 900)
_STRIPES = (1, 4)
_SHIFT = 4
"""Bits after the point of the coordinates that OpenCV draws at."""


def abstract_views(count: int, seed: int) -> list[ScoreView]:
    """Return pictures of no specimen, told to be of magnifications all over the range.

    Parameters
    ----------
    count
        How many.
    seed
        Of the first one; the others follow.
    """
    low, high = 500.0 / BEYOND, 30_000.0 * BEYOND
    views = []
    for i in range(count):
        rng = np.random.default_rng([0x5C4, seed + i])
        magnification = low * (high / low) ** ((i + float(rng.uniform())) / count)
        pixel_um = pixel_um_of(magnification) * (0.5 if rng.uniform() < FINE_SHARE else 1.0)
        image = abstract_picture(rng, VIEW)
        views.append(ScoreView("abstract", seed + i, magnification, pixel_um, image.astype(np.float16)))
    return views


def abstract_picture(rng: np.random.Generator, shape: tuple[int, int]) -> Plane:
    """Return a sharp picture.

    Parameters
    ----------
    rng
        Draws everything.
    shape
        (height, width).

    Returns
    -------
    array
        Shape ``shape``, 0 to 1.
    """
    fine = _OVERSAMPLED * shape[0], _OVERSAMPLED * shape[1]
    picture = np.full(fine, rng.uniform(0.1, 0.6), np.float32)
    picture += np.float32(rng.uniform(0.02, 0.3)) * _noise(rng, fine, rng.uniform(0.6, 2.0))
    layers = rng.permutation(("leaves", "stripes", "phases"))[: int(rng.integers(1, 4))]
    for layer in layers:
        match layer:
            case "leaves":
                _lay_leaves(rng, picture)
            case "stripes":
                _lay_stripes(rng, picture)
            case _:
                _lay_phases(rng, picture)
    # Fine relief on everything, as surfaces have it.
    picture += np.float32(rng.uniform(0.0, 0.06)) * _noise(rng, fine, rng.uniform(0.3, 1.2))
    low, high = np.quantile(picture[::7, ::7], (0.005, 0.995))
    picture = (picture - np.float32(low)) / np.float32(max(high - low, 1e-3))
    coarse = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(0.05 + 0.8 * coarse, 0.0, 1.0), dtype=np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], slope: float) -> Plane:
    """Return noise of unit variance whose amplitude falls as frequency to the power of -``slope``, not alike in all
    directions."""
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    angle, stretch = rng.uniform(0.0, math.pi), math.exp(rng.uniform(-1.0, 1.0))
    along, across = math.cos(angle) * kx + math.sin(angle) * ky, math.cos(angle) * ky - math.sin(angle) * kx
    k = np.hypot(along * stretch, across / stretch)
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32), workers=1)
    spectrum *= np.power(k + 1.0 / max(shape), -slope).astype(np.float32)
    spectrum[0, 0] = 0.0
    plane = fft.irfft2(spectrum, shape, workers=1)
    return np.asarray(plane / max(float(plane.std()), 1e-9), dtype=np.float32)


def _lay_leaves(rng: np.random.Generator, picture: Plane) -> None:
    """Lay ellipses and polygons over the picture, radii evenly in their logarithm, some shaded or rimmed."""
    height, width = picture.shape
    largest = rng.uniform(20.0, 160.0)
    smallest = largest * math.exp(-rng.uniform(0.7, 4.0))
    spread, rim, shaded = rng.uniform(0.05, 0.4), rng.uniform(0.0, 0.4), rng.uniform(0.0, 0.5)
    middle, polygons, flat = rng.uniform(0.2, 0.9), rng.uniform(), rng.uniform(0.0, 1.2)
    count = int(rng.integers(*_LEAVES))
    # Large ones first, or the small ones would lie under them.
    radii = np.sort(np.exp(rng.uniform(math.log(smallest), math.log(largest), count)))[::-1]
    for radius in radii:
        x, y = rng.uniform(0.0, width), rng.uniform(0.0, height)
        tone = float(middle + spread * rng.standard_normal())
        corners = int(rng.integers(3, 8)) if rng.uniform() < polygons else 32
        turn = 2.0 * math.pi * np.arange(corners) / corners + rng.uniform(0.0, 6.3)
        reach = radius * (rng.uniform(0.55, 1.0, corners) if corners < 32 else np.ones(corners))
        px, py = reach * np.cos(turn), reach * np.sin(turn) * math.exp(-flat * rng.uniform())
        angle = rng.uniform(0.0, math.pi)
        c, s = math.cos(angle), math.sin(angle)
        outline = np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)
        points = np.round(outline * 2**_SHIFT).astype(np.int32)
        if rng.uniform() < shaded and radius > 3:
            _shade(picture, points, outline, tone, rng)
        else:
            cv2.fillConvexPoly(picture, points, tone, cv2.LINE_8, _SHIFT)
        if rim and radius > 4:
            thick = max(1, int(radius * rng.uniform(0.03, 0.12)))
            cv2.polylines(picture, [points], True, tone + rim * rng.uniform(), thick, cv2.LINE_8, _SHIFT)


def _shade(
    picture: Plane, points: NDArray[np.int32], outline: NDArray[np.float64], tone: float, rng: np.random.Generator
) -> None:
    """Fill an outline with brightness that rises to one side or to the rim."""
    height, width = picture.shape
    left, top = np.maximum(np.floor(outline.min(0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(outline.max(0)).astype(int) + 2, (width, height))
    if right <= left or bottom <= top:
        return
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(mask, [points - np.array([left, top], np.int32) * 2**_SHIFT], 1, cv2.LINE_8, _SHIFT)
    centre, size = outline.mean(0), max(float(np.ptp(outline, axis=0).max()) / 2.0, 1.0)
    dx = (np.arange(left, right) - centre[0])[None, :] / size
    dy = (np.arange(top, bottom) - centre[1])[:, None] / size
    a, b, bowl = 0.2 * rng.standard_normal(3)
    value = tone + a * dx + b * dy + bowl * (dx * dx + dy * dy) ** rng.uniform(1.0, 3.0)
    part = picture[top:bottom, left:right]
    np.copyto(part, value.astype(np.float32), where=mask.astype(bool))


def _lay_stripes(rng: np.random.Generator, picture: Plane) -> None:
    """Lay sets of bent bands over the picture, regular or not, thin lines or broad, opaque or added."""
    height, width = picture.shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    for _ in range(int(rng.integers(*_STRIPES))):
        angle, pitch = rng.uniform(0.0, math.pi), math.exp(rng.uniform(math.log(4.0), math.log(150.0)))
        bend = np.float32(rng.uniform(0.0, 0.8) * pitch) * _noise(rng, picture.shape, rng.uniform(2.0, 3.0))
        place = (np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y + bend) / np.float32(pitch)
        index = np.floor(place).astype(np.int64)
        low = int(index.min())
        count = int(index.max()) - low + 1
        jitter = rng.uniform(0.0, 0.4)
        at = (0.5 + jitter * (rng.uniform(size=count) - 0.5)).astype(np.float32)[index - low]
        half = (rng.uniform(0.05, 0.35) * (0.6 + 0.8 * rng.uniform(size=count))).astype(np.float32)[index - low]
        tone = (rng.uniform(0.2, 0.9) + rng.uniform(0.0, 0.25) * rng.standard_normal(count)).astype(np.float32)
        across = (place - index - at) / half
        cover = np.clip((1.0 - np.abs(across)) * half * np.float32(pitch) + 0.5, 0.0, 1.0)
        cover *= (rng.uniform(size=count) < rng.uniform(0.4, 1.0)).astype(np.float32)[index - low]
        round_edge = np.float32(rng.uniform(-0.2, 0.4)) * np.minimum(across * across, 1.0) ** 2
        value = tone[index - low] + round_edge
        strength = np.float32(rng.uniform(0.3, 1.0))
        picture += strength * cover * (value - picture)


def _lay_phases(rng: np.random.Generator, picture: Plane) -> None:
    """Divide part of the picture into two phases along a level of smooth noise, or draw the level itself as lines."""
    plane = _noise(rng, picture.shape, rng.uniform(1.2, 2.5))
    level = float(np.quantile(plane[::9, ::9], rng.uniform(0.15, 0.85)))
    slope = np.hypot(*np.gradient(plane))
    away = (plane - level) / np.maximum(slope, 1e-3)
    cover = np.clip(away + 0.5, 0.0, 1.0)
    if rng.uniform() < 0.4:
        cover = np.exp(-np.square(away / rng.uniform(1.0, 4.0)))
    tone = np.float32(rng.uniform(0.0, 1.0))
    picture += np.float32(rng.uniform(0.4, 1.0)) * cover.astype(np.float32) * (tone - picture)
