"""Finds the disc that a condenser aperture throws on the detector: centre and radius to a fraction of a pixel.

The edge is sought along rays from a first guess, at a share of the *local* level inside, so that uneven illumination,
fringes and a ghost of an earlier frame do not pull it; a robust circle is put through what lies inside the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label, map_coordinates, uniform_filter

from mm_autofocus.errors import HardwareError
from mm_autofocus.strategy import Image

Array = NDArray[np.float64]

WORKING_PX = 320
"""Larger frames are binned to at most this many pixels on a side before the fit."""
RAYS = 96
EDGE_LEVEL = 0.35
"""Share of the local level at which the edge is read. The geometric edge of a Fresnel fringe lies at 0.25, that of a
blurred disc at 0.5."""
MIN_SIGNAL = 9.0
"""Contrast of the brightest spot over the noise of a smoothed frame; noise alone reaches 5."""
_SPOT_PX = 6.0
"""Below this radius there is no inside to measure a level in; the disc is read by its moments."""


class Beam(StrEnum):
    """What one frame shows."""

    DISC = "disc"
    SPOT = "spot"
    NONE = "none"
    SATURATED = "saturated"
    TOO_LARGE = "too_large"

    @property
    def usable(self) -> bool:
        """True when centre and radius mean something."""
        return self in (Beam.DISC, Beam.SPOT)


@dataclass(frozen=True, slots=True)
class Disc:
    """The disc in one frame; lengths in pixels of the frame, the first pixel's centre is (0, 0).

    Attributes
    ----------
    beam
        What was seen; the numbers below are NaN unless ``beam.usable``.
    x, y, radius
        Of the circle.
    covariance
        Of (x, y, radius), shape (3, 3): large where only an arc is inside the frame.
    edge_rms
        Scatter of the edge about the circle.
    visible
        Share of the circumference inside the frame, 0 to 1.
    signal
        Contrast over noise.
    saturated
        Share of the disc at the detector's ceiling.
    edge
        Points (x, y) of the edge that the circle was put through, shape (points, 2).
    """

    beam: Beam
    x: float = math.nan
    y: float = math.nan
    radius: float = math.nan
    covariance: tuple[tuple[float, ...], ...] = ()
    edge_rms: float = math.nan
    visible: float = 0.0
    signal: float = 0.0
    saturated: float = 0.0
    edge: Array = field(default_factory=lambda: np.empty((0, 2)), compare=False, repr=False)

    @property
    def centre(self) -> Array:
        """(x, y)."""
        return np.array([self.x, self.y])

    @property
    def sigma(self) -> float:
        """Standard deviation of the centre, px (root mean square of both axes)."""
        if not self.covariance:
            return math.inf
        return math.sqrt(max((self.covariance[0][0] + self.covariance[1][1]) / 2, 0.0))

    @property
    def radius_sigma(self) -> float:
        """Standard deviation of the radius, px."""
        return math.sqrt(max(self.covariance[2][2], 0.0)) if self.covariance else math.inf


def fit_disc(image: Image) -> Disc:
    """Fit the disc of one frame.

    Parameters
    ----------
    image
        Shape (height, width), any integer or float dtype, at least 16 x 16.

    Raises
    ------
    HardwareError
        When the frame is not a grey image of that size, or holds NaN or infinity.
    """
    frame, binning = _working(image)
    ceiling = _ceiling(image)
    smooth = uniform_filter(frame, 3, mode="nearest")
    height, width = smooth.shape
    thinned = np.sort(smooth[1::3, 1::3], axis=None)  # enough for the levels, at a ninth of the cost
    floor, median = float(thinned[len(thinned) // 20]), float(thinned[len(thinned) // 2])
    noise = _noise(frame, smooth, median)
    top = float(np.partition(smooth, -12, axis=None)[-12:].mean())
    signal = (top - floor) / max(noise, 1e-9)
    clipped = float((frame[::3, ::3] >= ceiling).mean()) if ceiling is not None else 0.0
    if clipped > 0.97:
        return Disc(Beam.SATURATED, signal=signal, saturated=1.0)
    if signal < MIN_SIGNAL:
        return Disc(Beam.TOO_LARGE if _lit_all_over(frame, noise) else Beam.NONE, signal=signal)
    guess = _first_guess(smooth, floor, top, noise)
    if guess is None:
        return Disc(Beam.NONE, signal=signal)
    x, y, radius, filled = guess
    if filled > 0.985:
        return Disc(Beam.TOO_LARGE, signal=signal)
    if radius < _SPOT_PX:
        return _spot(smooth, floor, x, y, radius, binning, signal)
    fit = _refined(smooth, floor, noise, x, y, radius)
    if fit is None:
        return Disc(Beam.TOO_LARGE if filled > 0.5 else Beam.NONE, signal=signal)
    centre, covariance, rms, visible, edge = fit
    x, y, radius = (float(v) for v in centre)
    if radius < _SPOT_PX:
        return _spot(smooth, floor, x, y, radius, binning, signal)
    if visible < 0.08 or radius > 4 * max(height, width):
        return Disc(Beam.TOO_LARGE, signal=signal, visible=visible)
    yy, xx = np.ogrid[:height, :width]
    inside = (xx - x) ** 2 + (yy - y) ** 2 < (0.8 * radius) ** 2
    saturated = float((frame[inside] >= ceiling).mean()) if ceiling is not None and inside.any() else 0.0
    kind = Beam.DISC
    if saturated > 0.3 and float(inside.mean()) < 0.02:
        # a display that stretches the contrast clips the brightest half per cent of any frame: a small disc then looks
        # larger than it is, and its centre is good still
        kind, saturated = Beam.SPOT, 0.0
        covariance = np.diag([*np.diag(covariance)[:2] + 0.1**2, (0.5 * radius) ** 2])
    offset = (binning - 1) / 2
    return Disc(
        kind, x * binning + offset, y * binning + offset, radius * binning,
        tuple(tuple(float(v) for v in row) for row in covariance * binning**2),
        rms * binning, visible, signal, saturated, edge * binning + offset,
    )  # fmt: skip


# ---------------------------------------------------------------------- preparation
def _working(image: Image) -> tuple[NDArray[np.float32], int]:
    frame = np.asarray(image)
    if frame.ndim != 2 or min(frame.shape) < 16:
        raise HardwareError(
            f"a beam disc needs a grey frame of at least 16 x 16 pixels, not shape {frame.shape}; set the camera so"
        )
    data = frame.astype(np.float32)
    if not np.isfinite(data).all():
        raise HardwareError("the frame holds NaN or infinite values; check the camera")
    binning = math.ceil(max(frame.shape) / WORKING_PX)
    if binning > 1:
        height, width = (n // binning * binning for n in frame.shape)
        data = data[:height, :width].reshape(height // binning, binning, width // binning, binning).mean((1, 3))
    return data, binning


def _ceiling(image: Image) -> float | None:
    """Highest value of the dtype; for wide integers the power of two that the frame runs up against, if it does."""
    dtype = np.asarray(image).dtype
    if dtype.kind not in "iu":
        return None
    highest = int(np.asarray(image).max())
    if dtype.itemsize == 1:
        return float(np.iinfo(dtype.str).max)
    for bits in (10, 12, 14, 16):
        if highest == 2**bits - 1:
            return float(highest)
    return float(np.iinfo(dtype.str).max)


def _noise(frame: NDArray[np.float32], smooth: NDArray[np.float32], median: float) -> float:
    """Noise of the smoothed frame in its darker half, from differences of neighbours (no texture, no edge).

    Where it is dark is told some pixels away, so that the choice does not depend on the noise that it measures.
    """
    difference = frame[::2, 5::3] - frame[::2, 4:-1:3][:, : frame[::2, 5::3].shape[1]]
    difference = difference[smooth[::2, :-5:3][:, : difference.shape[1]] <= median + 1e-6]
    if difference.size == 0:
        return 1e-6
    bound = 5.0 * max(1.4826 * float(np.median(np.abs(difference))), 0.5 * float(np.std(difference)))
    spread = float(np.sqrt(np.mean(np.square(difference[np.abs(difference) <= bound])))) / math.sqrt(2.0)
    return max(spread / 3.0, 0.1 * float(np.abs(frame).max()) / 255.0, 1e-6)  # never below a tenth of a grey level


def _lit_all_over(frame: NDArray[np.float32], noise: float) -> bool:
    """Whether a frame without an edge has the unevenness of a beam, which a dark one has not."""
    height, width = (n // 16 * 16 for n in frame.shape)
    blocks = frame[:height, :width].reshape(height // 16, 16, width // 16, 16).mean((1, 3))
    return float(blocks.std()) > 1.4 * (3.0 * noise / 16.0)  # a dark frame: 1.0 +- 0.05


def _first_guess(
    smooth: NDArray[np.float32], floor: float, top: float, noise: float
) -> tuple[float, float, float, float] | None:
    """Return centre, radius and the share of the frame that is lit, from the largest bright region."""
    level = floor + max(0.2 * (top - floor), 5 * noise)
    lit = smooth[smooth > level][::3]
    plateau = float(np.median(lit)) if lit.size > 4 else top
    mask = smooth > floor + max(0.4 * (plateau - floor), 4 * noise)
    regions, count = label(mask)
    if count == 0:
        return None
    sizes = np.bincount(regions.ravel())[1:]
    mask = regions == 1 + int(sizes.argmax())
    area = int(mask.sum())
    if area < 5:
        return None
    filled = area / mask.size
    if area < math.pi * _SPOT_PX**2:
        y, x = np.nonzero(mask)
        return float(x.mean()), float(y.mean()), math.sqrt(area / math.pi), filled
    points = np.concatenate([_outline(mask), _outline(mask.T)[:, ::-1]])
    if len(points) < 6:
        return smooth.shape[1] / 2, smooth.shape[0] / 2, math.sqrt(area / math.pi), max(filled, 0.99)
    x, y, radius = _circle(points)[0]
    return float(x), float(y), float(radius), filled


def _outline(mask: NDArray[np.bool_]) -> Array:
    """First and last lit pixel of every row, as (x, y), without those at the frame's edge."""
    rows = np.nonzero(mask.any(1))[0]
    width = mask.shape[1]
    first, last = mask.argmax(1)[rows], width - 1 - mask[:, ::-1].argmax(1)[rows]
    points: Array = np.concatenate([np.c_[first - 0.5, rows], np.c_[last + 0.5, rows]])
    inside: Array = points[(points[:, 0] > 1.5) & (points[:, 0] < width - 2.5)]
    return inside


# ---------------------------------------------------------------------- circle
def _circle(points: Array, rounds: int = 5) -> tuple[Array, Array, Array]:
    """Robust circle: algebraic start (Kasa), then Gauss-Newton on the geometric distance with Cauchy weights.

    Returns (x, y, radius), residuals, weights.
    """
    x, y = points.T
    design = np.c_[2 * x, 2 * y, np.ones(len(x))]
    weights = np.ones(len(x))
    centre = np.array([x.mean(), y.mean(), 1.0])
    residuals = np.zeros(len(x))
    for turn in range(rounds):
        if turn < 2:
            root = np.sqrt(weights)
            a, b, c = np.linalg.lstsq(design * root[:, None], (x * x + y * y) * root, rcond=None)[0]
            centre = np.array([a, b, math.sqrt(max(c + a * a + b * b, 1e-6))])
        else:
            dx, dy = x - centre[0], y - centre[1]
            distance = np.maximum(np.hypot(dx, dy), 1e-6)
            jacobian = np.c_[dx / distance, dy / distance, np.ones(len(x))]
            normal = jacobian.T @ (jacobian * weights[:, None]) + 1e-9 * np.eye(3)
            step = np.linalg.solve(normal, jacobian.T @ (weights * (distance - centre[2])))
            centre = centre + np.clip(step, -0.5 * centre[2] - 1, 0.5 * centre[2] + 1)
            centre[2] = max(centre[2], 0.5)
        residuals = np.hypot(x - centre[0], y - centre[1]) - centre[2]
        scale = 1.4826 * float(np.median(np.abs(residuals))) + 0.1
        weights = 1.0 / (1.0 + (residuals / (2.0 * scale)) ** 2)
    return centre, residuals, weights


def _refined(
    smooth: NDArray[np.float32], floor: float, noise: float, x: float, y: float, radius: float
) -> tuple[Array, Array, float, float, Array] | None:
    """Read the edge along rays and fit the circle, twice; the second time from the first one's answer."""
    height, width = smooth.shape
    angles = np.asarray(np.arange(RAYS) * (2 * math.pi / RAYS), dtype=np.float64)
    result = None
    for _ in range(2):
        if radius > 400:  # a long arc: rays only towards the frame
            middle = math.atan2(height / 2 - y, width / 2 - x)
            share = np.linspace(-0.5, 0.5, RAYS)
            angles = np.asarray(middle + share * min(2 * math.pi, 2.4 * max(height, width) / radius), dtype=np.float64)
        points = _edge_points(smooth, floor, noise, x, y, radius, angles)
        if len(points) < 8:
            return result
        centre, residuals, weights = _circle(points)
        good = weights > 0.3
        if good.sum() < 6:
            return result
        dx, dy = points[:, 0] - centre[0], points[:, 1] - centre[1]
        distance = np.maximum(np.hypot(dx, dy), 1e-6)
        jacobian = np.c_[dx / distance, dy / distance, np.ones(len(points))]
        normal = jacobian.T @ (jacobian * weights[:, None])
        rms = float(np.sqrt(np.average(residuals**2, weights=weights)))
        # neighbouring rays share texture and fringes: about one in three is independent
        covariance = 3.0 * (rms**2 + 0.05**2) * np.linalg.pinv(normal)
        spacing = float(np.median(np.abs(np.diff(angles))))
        visible = min(float(good.sum()) * spacing / (2 * math.pi), 1.0)
        result = centre, covariance, rms, visible, points[good]
        x, y, radius = (float(v) for v in centre)
        if not (np.isfinite(centre).all() and 1.0 < radius < 20 * max(height, width)):
            return None
    return result


def _edge_points(
    smooth: NDArray[np.float32], floor: float, noise: float, x: float, y: float, radius: float, angles: Array
) -> Array:
    """Points (x, y) where the rays leave the disc, those inside the frame only."""
    height, width = smooth.shape
    reach = max(4.0, min(0.35 * radius, 24.0))
    offsets = np.arange(-reach, reach + 0.25, 0.5)
    distance = radius + offsets
    px = x + np.cos(angles)[:, None] * distance
    py = y + np.sin(angles)[:, None] * distance
    inside = (px > 1) & (px < width - 2) & (py > 1) & (py < height - 2)
    profile = map_coordinates(smooth, [py, px], order=1, mode="nearest")
    # the level inside: between 0.4 and 1 reach within the edge, where no fringe's first maximum dominates
    near = (offsets < -0.4 * reach) & (offsets > -reach)
    usable = inside[:, near].all(1)
    level = np.median(profile[:, near], axis=1)
    far = offsets > 0.6 * reach
    ghost = np.where(inside[:, far].any(1), np.min(np.where(inside[:, far], profile[:, far], np.inf), axis=1), floor)
    outside = np.maximum(ghost, floor)  # a ghost of another frame may lie beyond the edge
    rise = level - outside
    threshold = outside + EDGE_LEVEL * rise
    above = profile > threshold[:, None]
    last = above.shape[1] - 1 - above[:, ::-1].argmax(1)
    usable &= above.any(1) & (last < above.shape[1] - 1) & (rise > 5 * noise)
    rows = np.nonzero(usable)[0]
    i = last[rows]
    rows, i = rows[inside[rows, i + 1]], i[inside[rows, i + 1]]
    high, low = profile[rows, i], profile[rows, i + 1]
    share = np.clip((high - threshold[rows]) / np.maximum(high - low, 1e-6), 0.0, 1.0)
    at = distance[i] + 0.5 * share
    points: Array = np.c_[x + np.cos(angles[rows]) * at, y + np.sin(angles[rows]) * at]
    return points


def _spot(
    smooth: NDArray[np.float32], floor: float, x: float, y: float, radius: float, binning: int, signal: float
) -> Disc:
    """A disc too small to have an inside: centre of mass within a window, radius from its area."""
    height, width = smooth.shape
    half = math.ceil(max(3 * radius, 8))
    x0, x1 = max(int(x) - half, 0), min(int(x) + half + 1, width)
    y0, y1 = max(int(y) - half, 0), min(int(y) + half + 1, height)
    window = smooth[y0:y1, x0:x1] - floor
    if window.size == 0:
        return Disc(Beam.NONE, signal=signal)
    top = float(np.sort(window, axis=None)[-5:].mean())
    weight = np.clip(window - 0.2 * top, 0, None)
    total = float(weight.sum())
    if total <= 0:
        return Disc(Beam.NONE, signal=signal)
    yy, xx = np.mgrid[y0:y1, x0:x1]
    cx, cy = float((weight * xx).sum()) / total, float((weight * yy).sum()) / total
    size = math.sqrt(max(float((window > 0.5 * top).sum()) / math.pi, 0.25))
    at_edge = min(cx, cy, width - 1 - cx, height - 1 - cy) < 1.5 * size
    sigma = 0.25 if not at_edge else 2.0
    offset = (binning - 1) / 2
    covariance = np.diag([sigma**2, sigma**2, (0.5 * size + 0.5) ** 2]) * binning**2
    return Disc(
        Beam.SPOT, cx * binning + offset, cy * binning + offset, size * binning,
        tuple(tuple(float(v) for v in row) for row in covariance), 0.3 * binning, 0.5 if at_edge else 1.0, signal,
    )  # fmt: skip
