"""Reads an alignment out of a wobble: how far the beam wanders per change of its size, and how sure that is.

While a lens is wobbled, the disc's centre moves on a line: ``centre = s + rho v`` with rho the *signed* radius, which
changes sign at crossover. ``v = d(centre)/d(rho)`` is zero when the beam pulses on itself and is the aperture's offset
in units of its radius, whatever the magnification, the size of the wobble and where it is centred. Frames that are late
still are valid pairs of centre and radius; only which side of crossover they belong to must be told from the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.beam_disc import Beam, Disc, fit_disc
from mm_autofocus.strategy import Image

Array = NDArray[np.float64]

MIN_FRAMES = 3
JITTER_PX = 0.4
"""Standard deviation of the beam's movement between frames, per axis."""
_ELLIPTICITY_SD = 0.04
_TURN_SD = 0.1
"""Rotation (radians) of the image over a wobble to the largest radius."""
_SILENT_PX = 0.7
"""A lens that answers changes the disc's size or place by more than this."""


class Trouble(StrEnum):
    """Why a wobble says nothing."""

    NO_BEAM = "no_beam"
    SATURATED = "saturated"
    TOO_LARGE = "too_large"
    SILENT = "silent"
    TOO_FEW = "too_few"


@dataclass(frozen=True, slots=True)
class WobbleEstimate:
    """What one wobble says.

    Attributes
    ----------
    vector
        (vx, vy): movement of the centre per signed radius, without unit; NaN with a trouble.
    covariance
        Of the vector, shape (2, 2).
    crossing
        Where the crossover falls on the detector (x, y), px.
    radii
        Signed radius of each frame, px; NaN where a frame was not usable.
    discs
        What was seen in each frame.
    strange
        Frames off the common line: mixed, or of another time.
    repeated
        Frames that show the disc of the one before in spite of the step between them.
    reach
        Spread of the signed radius over the wobble, px.
    ambiguity
        How much worse the second-best assignment of signs fits, in units of log-likelihood; small is doubtful.
    trouble
        None when there is an answer.
    """

    vector: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]
    crossing: tuple[float, float]
    radii: tuple[float, ...]
    discs: tuple[Disc, ...]
    strange: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    reach: float = 0.0
    ambiguity: float = math.inf
    trouble: Trouble | None = None

    @property
    def good(self) -> bool:
        """True when there is an answer."""
        return self.trouble is None

    @property
    def v(self) -> Array:
        """The vector, shape (2,)."""
        return np.array(self.vector)

    @property
    def cov(self) -> Array:
        """The covariance, shape (2, 2)."""
        return np.array(self.covariance)

    @property
    def visible(self) -> int:
        """Number of frames that show a disc."""
        return sum(disc.beam.usable for disc in self.discs)


def estimate_wobble(frames: Sequence[Image], lens: Sequence[float]) -> WobbleEstimate:
    """Estimate from frames taken at several values of the wobbled lens.

    Parameters
    ----------
    frames
        Images of equal shape (height, width), three or more.
    lens
        The value of the wobbled knob at each, in any unit.

    Raises
    ------
    HardwareError
        When a frame is no grey image of at least 16 x 16 pixels, or holds NaN.
    ValueError
        When the numbers of frames and values differ.
    """
    if len(frames) != len(lens):
        raise ValueError(f"{len(frames)} frames but {len(lens)} lens values")
    return from_discs([fit_disc(frame) for frame in frames], lens)


def from_discs(discs: Sequence[Disc], lens: Sequence[float]) -> WobbleEstimate:
    """Estimate from the discs of the frames; see `estimate_wobble`."""
    values = np.asarray(lens, float)
    repeated = _repeats(discs, values)
    usable = [i for i, disc in enumerate(discs) if disc.beam.usable]
    trouble = _trouble(discs, usable, values)
    if trouble is not None:
        return _nothing(discs, trouble, repeated)
    seen = [discs[i] for i in usable]
    signs, ambiguity = _signs(seen, values[usable])
    keep = _plausible(values[usable], signs * np.array([disc.radius for disc in seen]))
    if not keep.all():
        usable = [i for i, kept in zip(usable, keep, strict=True) if kept]
        seen, signs = [discs[i] for i in usable], signs[keep]
    fit = _joint(seen, signs)
    # A beam that wanders between frames shows it in what the line leaves over. A random walk moves the line's slope by
    # 1.5 frames times more variance than white noise of the same remainder; `TAILS` of the strategies covers a half.
    wander = float(np.median(fit.jitter**2)) / (2 * math.log(2)) / JITTER_PX**2
    unrest = max(1.0, 4.0 * wander * len(seen) / max(len(seen) - 2, 1))
    radii = np.full(len(discs), np.nan)
    radii[usable] = fit.radii
    reach = float(np.ptp(fit.radii))
    cov = fit.covariance * unrest
    return WobbleEstimate(
        vector=(float(fit.vector[0]), float(fit.vector[1])),
        covariance=((float(cov[0, 0]), float(cov[0, 1])), (float(cov[1, 0]), float(cov[1, 1]))),
        crossing=(float(fit.crossing[0]), float(fit.crossing[1])),
        radii=tuple(float(r) for r in radii),
        discs=tuple(discs),
        strange=tuple(usable[i] for i in np.nonzero(fit.jitter > 3.0)[0]),
        repeated=repeated,
        reach=reach,
        ambiguity=ambiguity,
    )


def _nothing(discs: Sequence[Disc], trouble: Trouble, repeated: tuple[int, ...]) -> WobbleEstimate:
    nan = math.nan
    return WobbleEstimate(
        (nan, nan), ((math.inf, 0.0), (0.0, math.inf)), (nan, nan), (nan,) * len(discs), tuple(discs),
        repeated=repeated, trouble=trouble,
    )  # fmt: skip


def _trouble(discs: Sequence[Disc], usable: list[int], lens: Array) -> Trouble | None:
    kinds = [disc.beam for disc in discs]
    seen = [discs[i] for i in usable]
    hot = sum(disc.saturated > 0.5 for disc in seen) + kinds.count(Beam.SATURATED)
    if hot > len(discs) / 2:
        return Trouble.SATURATED
    if len(usable) < MIN_FRAMES:
        for kind, trouble in ((Beam.TOO_LARGE, Trouble.TOO_LARGE), (Beam.SATURATED, Trouble.SATURATED)):
            if kinds.count(kind) >= max(len(discs) - len(usable) - 1, 1):
                return trouble
        return Trouble.NO_BEAM if not usable else Trouble.TOO_FEW
    if np.ptp(lens) > 0:
        x, y, r = (np.array([getattr(disc, name) for disc in seen]) for name in ("x", "y", "radius"))
        if max(np.ptp(x), np.ptp(y), np.ptp(r)) < _SILENT_PX:
            return Trouble.SILENT
    return None


def _repeats(discs: Sequence[Disc], lens: Array) -> tuple[int, ...]:
    """Frames whose disc is that of the frame before although the lens was changed, and other frames did follow it."""
    radii = np.array([disc.radius for disc in discs])
    steps = np.abs(np.diff(radii))
    if np.isfinite(steps).sum() < MIN_FRAMES or float(np.nanmedian(steps)) < 3 * _SILENT_PX:
        return ()
    return tuple(i for i in range(1, len(discs)) if lens[i] != lens[i - 1] and same_disc(discs[i - 1], discs[i]))


def same_disc(first: Disc, second: Disc) -> bool:
    """Whether two frames show the same disc: the camera gave an old image, or nothing has changed."""
    if first.beam is not Beam.DISC or second.beam is not Beam.DISC:
        return False
    away = (first.x - second.x, first.y - second.y, first.radius - second.radius)
    return max(abs(value) for value in away) < _SILENT_PX


# ---------------------------------------------------------------------- which side of crossover
def _signs(discs: Sequence[Disc], lens: Array) -> tuple[Array, float]:
    """Choose where the radius changes sign: the signed radius is a line of the lens, the centre one of the radius.

    The signed radius is counted as rising with the lens, or a wobble on one side of crossover could not tell v from -v.
    """
    order = np.argsort(lens, kind="stable")
    k = lens[order]
    centres = np.array([disc.centre for disc in discs])[order]
    sizes = np.array([disc.radius for disc in discs])[order]
    sigma = np.array([max(disc.sigma, 0.2) for disc in discs])[order]
    costs, candidates = [], []
    for flip in range(len(k) + 1):
        sign = np.where(np.arange(len(k)) < flip, -1.0, 1.0)
        cost = _radius_cost(k, sign * sizes) + _centre_cost(sign * sizes, centres, sigma)
        costs.append(cost)
        candidates.append(sign)
    best = int(np.argmin(costs))
    signs = np.empty(len(k))
    signs[order] = candidates[best]
    # flipping the sign of a frame at crossover changes nothing, so only assignments that move the answer are rivals
    own = _slope(candidates[best] * sizes, centres, sigma)
    rivals = [
        cost for cost, sign in zip(costs, candidates, strict=True)
        if float(np.hypot(*(_slope(sign * sizes, centres, sigma) - own))) > 0.05
    ]  # fmt: skip
    return signs, min(rivals) - costs[best] if rivals else math.inf


def _radius_cost(k: Array, rho: Array) -> float:
    """Robust misfit of rho against a rising line of the lens (Theil and Sen)."""
    i, j = np.triu_indices(len(k), 1)
    apart = k[j] != k[i]
    if not apart.any():
        return 0.0
    slope = float(np.median((rho[j] - rho[i])[apart] / (k[j] - k[i])[apart]))
    if slope <= 0:
        return 1e3
    rest = rho - slope * k
    rest = rest - np.median(rest)
    scale = 0.05 * abs(slope) * float(np.ptp(k)) / 2 + 1.5
    return float(np.log1p((rest / scale) ** 2).sum())


def _plausible(k: Array, rho: Array) -> NDArray[np.bool_]:
    """Frames whose radius is not absurd; a late frame has that of a neighbour, which is kept."""
    i, j = np.triu_indices(len(k), 1)
    apart = k[j] != k[i]
    if len(k) < MIN_FRAMES + 1 or not apart.any():
        return np.ones(len(k), bool)
    slope = float(np.median((rho[j] - rho[i])[apart] / (k[j] - k[i])[apart]))
    rest = rho - slope * k
    step = abs(slope) * float(np.ptp(k)) / (len(k) - 1)
    keep = np.abs(rest - np.median(rest)) < 3.0 * step + 8.0
    return keep if keep.sum() >= MIN_FRAMES else np.ones(len(k), bool)


def _centre_cost(rho: Array, centres: Array, sigma: Array) -> float:
    slope = _slope(rho, centres, sigma)
    rest = centres - rho[:, None] * slope
    rest = rest - np.median(rest, axis=0)
    return float(np.log1p((np.hypot(*rest.T) / (1.0 + sigma)) ** 2).sum())


def _slope(rho: Array, centres: Array, sigma: Array) -> Array:
    """Robust line: weighted by the discs' errors, Cauchy weights on the distance."""
    base = 1.0 / (JITTER_PX**2 + sigma**2)
    weights = base.copy()
    design = np.c_[np.ones(len(rho)), rho]
    slope = np.zeros(2)
    for _ in range(5):
        normal = design.T @ (design * weights[:, None]) + np.diag([1e-9, 1e-6])
        solution = np.linalg.solve(normal, design.T @ (centres * weights[:, None]))
        rest = np.hypot(*(centres - design @ solution).T)
        weights = base / (1.0 + (rest / (2.0 * (JITTER_PX + sigma))) ** 2)
        slope = solution[1]
    return slope


# ---------------------------------------------------------------------- the joint fit
@dataclass(frozen=True, slots=True)
class _Joint:
    vector: Array
    covariance: Array
    crossing: Array
    radii: Array
    jitter: Array


def _joint(discs: Sequence[Disc], signs: Array, rounds: int = 8) -> _Joint:
    """Fit all edges at once: discs of one elliptic shape whose centres lie on one line of the signed radius.

    An arc that is cut off by the frame cannot tell its ellipticity from its centre; the other frames can. Unknowns: s,
    v, the turn of the image with the radius, the ellipse (e, f), the signed radii, and a small jitter of every centre
    with a heavy-tailed prior.
    """
    count = len(discs)
    rho = signs * np.array([disc.radius for disc in discs])
    centres = np.array([disc.centre for disc in discs])
    sigma = np.array([max(disc.sigma, 0.2) for disc in discs])
    vector = _slope(rho, centres, sigma)
    weights = 1.0 / (JITTER_PX**2 + sigma**2)
    crossing = np.average(centres - rho[:, None] * vector, axis=0, weights=weights)
    jitter = np.zeros((count, 2))
    turn, shape = 0.0, np.zeros(2)
    largest = max(float(np.abs(rho).max()), 1.0)
    n = 7 + 3 * count
    covariance = np.eye(2)
    frames = np.concatenate([np.full(len(_points(disc)), i) for i, disc in enumerate(discs)])
    points = np.concatenate([_points(disc) for disc in discs])
    thickness = np.array([max(disc.edge_rms, 0.2) for disc in discs])[frames]
    share = 1.0 / np.bincount(frames, minlength=count)[frames]
    per_frame = np.minimum(30.0, np.bincount(frames, minlength=count)[frames] / 3.0)  # independent edge points
    spots = np.array([disc.beam is Beam.SPOT for disc in discs])[frames]
    for step in range(rounds):
        bend = np.array([[0.0, -1.0], [1.0, 0.0]]) @ vector
        middle = crossing + rho[:, None] * vector + (turn / largest * rho**2)[:, None] * bend + jitter
        d = points - middle[frames]
        distance = np.maximum(np.hypot(*d.T), 1e-6)
        u = d / distance[:, None]
        c2, s2 = u[:, 0] ** 2 - u[:, 1] ** 2, 2 * u[:, 0] * u[:, 1]
        size = np.abs(rho)[frames]
        residual = distance - size * (1 + shape[0] * c2 + shape[1] * s2)
        residual[spots] = 0.0
        weight = per_frame * share / thickness**2 / (1.0 + (residual / (2.5 * thickness)) ** 2)
        weight[spots] = 0.0
        r, sign = rho[frames], np.where(rho[frames] < 0, -1.0, 1.0)
        rows = np.arange(len(points))
        jacobian = np.zeros((len(points), n))  # of the modelled distance, to first order
        jacobian[:, 0:2] = u
        jacobian[:, 2:4] = u * r[:, None]
        jacobian[:, 4] = (u @ bend) * r**2 / largest
        jacobian[:, 5], jacobian[:, 6] = size * c2, size * s2
        along = u @ vector + 2 * turn / largest * r * (u @ bend)
        jacobian[rows, 7 + frames] = sign + along
        jacobian[rows, 7 + count + 2 * frames] = u[:, 0]
        jacobian[rows, 8 + count + 2 * frames] = u[:, 1]
        normal = jacobian.T @ (jacobian * weight[:, None])
        gradient = jacobian.T @ (weight * residual)
        prior = np.zeros(n)
        state = np.zeros(n)
        prior[4], state[4] = 1 / _TURN_SD**2, turn
        prior[5:7], state[5:7] = 1 / _ELLIPTICITY_SD**2, shape
        for i, disc in enumerate(discs):
            spread = JITTER_PX
            away = float(np.hypot(*jitter[i]))
            prior[7 + count + 2 * i : 9 + count + 2 * i] = 1 / spread**2 / (1 + (away / (3 * spread)) ** 2)
            state[7 + count + 2 * i : 9 + count + 2 * i] = jitter[i]
            if disc.beam is Beam.SPOT:  # centre measured directly, its radius hardly
                block = [0, 1, 2, 3, 7 + i, 7 + count + 2 * i, 8 + count + 2 * i]
                a = np.zeros((3, 7))
                a[0, [0, 2, 5]], a[1, [1, 3, 6]] = [1, rho[i], 1], [1, rho[i], 1]
                a[0, 4], a[1, 4], a[2, 4] = vector[0], vector[1], 1.0
                w = np.array([1 / disc.sigma**2, 1 / disc.sigma**2, 1 / max(disc.radius_sigma, 0.5) ** 2])
                rest = np.r_[disc.centre - middle[i], signs[i] * disc.radius - rho[i]]
                normal[np.ix_(block, block)] += a.T @ (a * w[:, None])
                gradient[block] += a.T @ (w * rest)
        normal[np.diag_indices(n)] += prior + 1e-9
        change = np.linalg.solve(normal, gradient - prior * state)
        change *= min(1.0, 0.5 * largest / max(float(np.abs(change[7:]).max()), 1e-9))
        crossing = crossing + change[:2]
        vector = vector + change[2:4]
        turn += float(change[4])
        shape = shape + change[5:7]
        rho = rho + change[7 : 7 + count]
        jitter = jitter + change[7 + count :].reshape(count, 2)
        covariance = np.linalg.inv(normal)[2:4, 2:4]
        if step > 2 and float(np.abs(change[2:4]).max()) < 1e-5:
            break
    return _Joint(vector, covariance, crossing, rho, np.hypot(*jitter.T))


def _points(disc: Disc) -> Array:
    return disc.edge if disc.beam is Beam.DISC else disc.centre[None, :]
