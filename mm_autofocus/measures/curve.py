"""The shape of a focus curve, and its maximum a posteriori fit to a handful of scores.

In the logarithm, the score of measure m over the position z is modelled as

    y_m(z) = c_m + d_m (z - z_c) / (10 f) + ln(1 + t_m(z)),
    t_m(z) = sum_k kappa_mk (1 + ((z - z_k) / w_m)^2)^-p_m,      w_m = FWHM_m / (2 sqrt(2^(1/p_m) - 1)),

one or more peaks of generalised Lorentzian (Pearson VII) shape on a background that drifts. All measures share the peak
positions z_k, so a coarse measure with wide tails guides where a fine one is still flat. The variance of a score is
``noise^2 + s0^2 + (alpha ln(1 + t))^2``: image noise, what the model never fits, and what it fits worse near a peak.
Fits are batched: many starts run through one Levenberg-Marquardt loop as stacked arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LOG_SHAPE_RANGE = (-1.3, 1.5)
_LOG_HEIGHT_RANGE = (-12.0, 12.0)


@dataclass(frozen=True, slots=True)
class MeasurePrior:
    """What is known about the curve of one measure before anything is measured (normal distributions).

    Attributes
    ----------
    width_factor
        Median FWHM of the peak of the score, in units of the FWHM that the search is told.
    log_width_sd
        SD of the natural logarithm of the FWHM.
    log_shape, log_shape_sd
        Natural logarithm of the exponent p.
    log_height, log_height_sd
        Natural logarithm of kappa, the height of a peak over its background.
    slope_sd
        SD of the drift of the background, in log score over ten FWHM.
    mismatch
        alpha, the misfit in proportion to the elevation ``ln(1 + t)``.
    floor
        s0, the misfit anywhere, in log score.
    """

    width_factor: float
    log_width_sd: float
    log_shape: float
    log_shape_sd: float
    slope_sd: float
    mismatch: float
    floor: float
    log_height: float = 1.3
    log_height_sd: float = 1.6


FINE = MeasurePrior(1.0, 0.45, 0.1, 0.35, slope_sd=0.05, mismatch=0.06, floor=0.01)
"""A gradient or Laplacian measure, fitted to recorded slide-scanner curves."""
GUIDE = MeasurePrior(2.3, 0.8, -0.7, 0.4, slope_sd=0.6, mismatch=0.08, floor=0.02)
"""A coarse measure (normalized variance, gradient of 4 x 4 bins): wider, with heavier tails."""


@dataclass(frozen=True)
class CurveData:
    """The scores to fit.

    Attributes
    ----------
    z
        Positions, shape (n,), µm.
    y
        Natural logarithm of the scores, shape (m, n).
    noise
        SD of ``y`` from image noise, shape (m, n).
    fwhm
        Expected FWHM of the fine peak, µm.
    centre
        z_c, where the drift of the background is counted from, µm.
    low, high
        The interval that peaks may lie in, µm.
    priors
        One per measure, shape (m,).
    """

    z: Array
    y: Array
    noise: Array
    fwhm: float
    centre: float
    low: float
    high: float
    priors: tuple[MeasurePrior, ...]

    @property
    def measures(self) -> int:
        """Number of measures."""
        return len(self.priors)

    @cached_property
    def tilt(self) -> Array:
        """The regressor of the drift, ``(z - z_c) / (10 f)``, shape (n,)."""
        return (self.z - self.centre) / (10.0 * self.fwhm)

    @cached_property
    def base_variance(self) -> Array:
        """Variance of the scores away from any peak, shape (m, n)."""
        floors = np.array([prior.floor for prior in self.priors])[:, None]
        return np.asarray(self.noise**2 + floors**2)


@dataclass(frozen=True)
class CurveFits:
    """A batch of b fits of k peaks to m measures.

    Attributes
    ----------
    theta
        Parameters, shape (b, k + m (4 + k)): the k positions, then per measure ln FWHM, ln p, c, d and k ln kappa.
    cost
        Minus twice the log posterior up to a constant, shape (b,).
    information
        Half the Hessian of the cost (Gauss-Newton), shape (b, parameters, parameters).
    peaks
        k.
    """

    theta: Array
    cost: Array
    information: Array
    peaks: int

    def take(self, index: int) -> CurveFit:
        """Return one fit of the batch."""
        return CurveFit(self.theta[index], float(self.cost[index]), self.information[index], self.peaks)


@dataclass(frozen=True)
class CurveFit:
    """One fit; see `CurveFits`. Measure 0 is the fine one that decides."""

    theta: Array
    cost: float
    information: Array
    peaks: int

    @property
    def positions(self) -> Array:
        """Peak positions, shape (k,), µm."""
        return self.theta[: self.peaks]

    @property
    def positions_sd(self) -> Array:
        """SD of the positions from the curvature of the cost, shape (k,), µm; infinite where it is singular."""
        try:
            variance = np.diag(np.linalg.inv(self.information))[: self.peaks]
        except np.linalg.LinAlgError:
            return np.full(self.peaks, np.inf)
        return np.asarray(np.sqrt(np.where(variance > 0, variance, np.inf)))

    @property
    def fwhm(self) -> float:
        """Fitted FWHM of the fine measure, µm."""
        return float(np.exp(self.theta[self.peaks]))

    @property
    def elevations(self) -> Array:
        """``ln(1 + kappa_k)`` of the fine measure: how far each peak stands over the background, shape (k,)."""
        first = self.peaks + 4
        return np.asarray(np.log1p(np.exp(self.theta[first : first + self.peaks])))

    def background(self, z: float | Array, data: CurveData) -> Array:
        """Log score of the fine measure without its peaks, at ``z``."""
        offset, slope = self.theta[self.peaks + 2], self.theta[self.peaks + 3]
        return np.asarray(offset + slope * (np.asarray(z) - data.centre) / (10.0 * data.fwhm))


def no_peak_cost(data: CurveData) -> float:
    """Cost of the model without any peak, comparable with `CurveFits.cost` (weighted ridge regression per measure)."""
    cost = 0.0
    design = np.stack([np.ones_like(data.z), data.tilt], axis=1)
    for y, variance, prior in zip(data.y, data.base_variance, data.priors, strict=True):
        weighted = design / variance[:, None]
        normal = design.T @ weighted + np.diag([1e-12, prior.slope_sd**-2])
        solution = np.linalg.solve(normal, weighted.T @ y)
        residual = y - design @ solution
        cost += float((residual**2 / variance).sum() + (solution[1] / prior.slope_sd) ** 2 + np.log(variance).sum())
    return cost


def starting_points(data: CurveData, positions: Array) -> Array:
    """Build starts for `fit_peaks`, with the prior's shapes and heights read off the scores nearest to each peak.

    Parameters
    ----------
    data
        The scores.
    positions
        Peak positions of each start, shape (b, k), µm.

    Returns
    -------
    Array
        Shape (b, k + m (4 + k)).
    """
    batch, peaks = positions.shape
    theta = np.zeros((batch, peaks + data.measures * (4 + peaks)))
    theta[:, :peaks] = positions
    nearest = np.abs(data.z[None, None, :] - positions[:, :, None]).argmin(axis=2)
    distance = np.abs(data.z[nearest] - positions)
    for m, (y, prior) in enumerate(zip(data.y, data.priors, strict=True)):
        o = peaks + m * (4 + peaks)
        width = data.fwhm * prior.width_factor
        offset = float(np.quantile(y, 0.2))
        height = np.maximum(y[nearest] - offset, 0.05)
        decay = np.exp(prior.log_shape) * np.log1p(0.8 * (2.0 * distance / width) ** 2)
        theta[:, o] = np.log(width)
        theta[:, o + 1] = prior.log_shape
        theta[:, o + 2] = offset
        theta[:, o + 4 : o + 4 + peaks] = np.minimum(np.log(np.expm1(np.minimum(height, 20.0))) + decay, 3.0)
    return theta


def add_peak(fit: CurveFit, data: CurveData, positions: Array, elevation: float) -> Array:
    """Build starts that add to a fit one more peak each, of the given elevation in the fine measure.

    Returns shape (b, (k + 1) + m (5 + k)) for ``positions`` of shape (b,).
    """
    k, batch = fit.peaks, len(positions)
    theta = np.zeros((batch, k + 1 + data.measures * (5 + k)))
    theta[:, :k] = fit.positions
    theta[:, k] = positions
    for m in range(data.measures):
        old, new = k + m * (4 + k), k + 1 + m * (5 + k)
        theta[:, new : new + 4 + k] = fit.theta[old : old + 4 + k]
        theta[:, new + 4 + k] = log_height(elevation) if m == 0 else fit.theta[old + 4]
    return theta


def log_height(elevation: float) -> float:
    """Return ln kappa of a peak that stands ``elevation`` over the background in the logarithm."""
    return float(np.log(np.expm1(min(max(elevation, 0.05), 20.0))))


def fit_peaks(
    data: CurveData,
    theta: Array,
    peaks: int,
    *,
    position_mean: Array | None = None,
    position_sd: Array | None = None,
    least_log_height: float | None = None,
    iterations: int = 25,
    tolerance: float = 1e-2,
) -> CurveFits:
    """Fit curves of ``peaks`` peaks from a batch of starts by Levenberg-Marquardt.

    Parameters
    ----------
    data
        The scores.
    theta
        Starts, shape (b, peaks + m (4 + peaks)).
    peaks
        Number of peaks.
    position_mean, position_sd
        Normal prior of the positions, each shape (b, peaks) in µm; None for none.
    least_log_height
        Lower bound of ln kappa of the last peak in the fine measure; None for none.
    iterations
        Most iterations of any start.
    tolerance
        A start is done when an accepted step lowers its cost by less than this.

    Returns
    -------
    CurveFits
        In the order of the starts.
    """
    theta = theta.copy()
    batch = len(theta)
    if position_mean is None or position_sd is None:
        position_mean, position_sd = theta[:, :peaks], np.full((batch, peaks), np.inf)
    centre, precision = _prior(data, batch, peaks)
    centre[:, :peaks], precision[:, :peaks] = position_mean, position_sd**-2.0
    bounded = _Bounds(data, peaks, least_log_height)
    theta = bounded.clip(theta)
    cost, gradient, information = _evaluate(data, theta, peaks, centre, precision)
    damping = np.full(batch, 1e-2)
    active = np.arange(batch)
    diagonal = np.arange(theta.shape[1])
    for _ in range(iterations):
        hessian = information[active]
        hessian[:, diagonal, diagonal] *= 1.0 + damping[active, None]
        hessian[:, diagonal, diagonal] += 1e-9
        step = np.linalg.solve(hessian, -gradient[active][..., None])[..., 0]
        longest = np.abs(step[:, :peaks]).max(axis=1) / data.fwhm
        trial = bounded.clip(theta[active] + step / np.maximum(longest, 1.0)[:, None])
        cost_t, gradient_t, information_t = _evaluate(data, trial, peaks, centre[active], precision[active])
        drop = cost[active] - cost_t
        better = drop > 0
        chosen = active[better]
        theta[chosen], cost[chosen] = trial[better], cost_t[better]
        gradient[chosen], information[chosen] = gradient_t[better], information_t[better]
        damping[active] = np.where(better, np.maximum(damping[active] * 0.2, 1e-6), damping[active] * 5.0)
        active = active[~((better & (drop < tolerance)) | (damping[active] > 1e4))]
        if not active.size:
            break
    return CurveFits(theta, cost, information, peaks)


class _Bounds:
    """Bounds of every parameter, shape (parameters,)."""

    def __init__(self, data: CurveData, peaks: int, least_log_height: float | None) -> None:
        self.low = np.full(peaks + data.measures * (4 + peaks), -np.inf)
        self.high = -self.low
        self.low[:peaks], self.high[:peaks] = data.low, data.high
        for per_measure, shape, height in (
            (self.low[peaks:].reshape(data.measures, -1), _LOG_SHAPE_RANGE[0], _LOG_HEIGHT_RANGE[0]),
            (self.high[peaks:].reshape(data.measures, -1), _LOG_SHAPE_RANGE[1], _LOG_HEIGHT_RANGE[1]),
        ):
            per_measure[:, 1], per_measure[:, 4:] = shape, height
        if least_log_height is not None:
            self.low[2 * peaks + 3] = least_log_height

    def clip(self, theta: Array) -> Array:
        return np.asarray(np.minimum(np.maximum(theta, self.low), self.high))


def _prior(data: CurveData, batch: int, peaks: int) -> tuple[Array, Array]:
    """Mean and precision of every parameter, each shape (batch, parameters); none for the positions and offsets."""
    mean = np.zeros((batch, peaks + data.measures * (4 + peaks)))
    precision = np.zeros_like(mean)
    for m, prior in enumerate(data.priors):
        o = peaks + m * (4 + peaks)
        mean[:, o] = np.log(data.fwhm * prior.width_factor)
        mean[:, o + 1], mean[:, o + 4 : o + 4 + peaks] = prior.log_shape, prior.log_height
        precision[:, o], precision[:, o + 1] = prior.log_width_sd**-2, prior.log_shape_sd**-2
        precision[:, o + 3], precision[:, o + 4 : o + 4 + peaks] = prior.slope_sd**-2, prior.log_height_sd**-2
    return mean, precision


def _evaluate(data: CurveData, theta: Array, peaks: int, mean: Array, precision: Array) -> tuple[Array, Array, Array]:
    """Cost, half its gradient, and its Gauss-Newton information; the variance is held while differentiating."""
    batch, parameters = theta.shape
    m, n, k = data.measures, len(data.z), peaks
    shape = theta[:, k:].reshape(batch, m, 4 + k)
    exponent = np.exp(shape[..., 1])
    q = np.exp2(1.0 / exponent) - 1.0
    inverse_width = 4.0 * q * np.exp(-2.0 * shape[..., 0])  # 1 / w^2
    x = data.z[None, :, None] - theta[:, None, :k]  # (b, n, k)
    u = (x**2)[:, None] * inverse_width[:, :, None, None]  # (b, m, n, k)
    log_a = np.log1p(u)
    p = exponent[:, :, None, None]
    peak = np.exp(shape[:, :, None, 4:] - p * log_a)
    total = peak.sum(axis=3)
    elevation = np.log1p(total)
    mismatch = np.array([prior.mismatch for prior in data.priors])
    variance = data.base_variance + (mismatch[:, None] * elevation) ** 2
    weight = 1.0 / np.sqrt(variance)
    tilt = data.tilt
    residual = (data.y - elevation - shape[..., 2:3] - shape[..., 3:4] * tilt) * weight
    # Jacobian of the residuals, shape (b, m, n, parameters)
    jacobian = np.zeros((batch, m, n, parameters))
    share = peak * (weight / (1.0 + total))[..., None]
    ratio = share * (p * u / (1.0 + u))  # share * p * u / (1 + u)
    dlogq = (-(q + 1.0) * np.log(2.0) / (exponent * q))[:, :, None, None]
    safe_x = np.where(x == 0.0, 1.0, x)
    jacobian[..., :k] = -2.0 * ratio / safe_x[:, None]
    for i in range(m):
        o = k + i * (4 + k)
        block = jacobian[:, i]
        block[..., o] = -2.0 * ratio[:, i].sum(axis=2)
        block[..., o + 1] = (share[:, i] * p[:, i] * log_a[:, i] + ratio[:, i] * dlogq[:, i]).sum(axis=2)
        block[..., o + 2] = -weight[:, i]
        block[..., o + 3] = -weight[:, i] * tilt
        block[..., o + 4 : o + 4 + k] = -share[:, i]
    flat = jacobian.reshape(batch, m * n, parameters)
    transposed = flat.transpose(0, 2, 1)
    offset = theta - mean
    gradient = (transposed @ residual.reshape(batch, m * n, 1))[..., 0] + offset * precision
    information = transposed @ flat
    index = np.arange(parameters)
    information[:, index, index] += precision
    cost = (residual**2).sum(axis=(1, 2)) + np.log(variance).sum(axis=(1, 2)) + (offset**2 * precision).sum(axis=1)
    return cost, gradient, information
