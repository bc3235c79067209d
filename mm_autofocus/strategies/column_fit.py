"""Where the best working distance and stigmators are, and how well the calibration fits, from all pairs of one run.

Every estimate should be the present knobs minus the best ones. A convergence angle, a stigmator scale or a rotation
that differs from the calibration stretches and turns it:

    e_z = c^p (z - z0),    (e_x, e_y) = c^p s R(φ) (x - x0, y - y0)

where c is the true over the assumed convergence angle. Near focus two frames at ± δ show α² δ z, a blur in pixels
squared, and the estimator divides by the assumed α² δ: p = 2. Far from it they show the ratio of their blurs, which
knows no angle: p falls to 0 beyond a few δ (`angle_power`).

The knob moves of the run are known, so pairs at different knobs tell c, s and φ apart from the best knobs. This is the
maximum a posteriori of (z0, x0, y0, ln c, ln s, φ) and its Gaussian (Laplace) approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from mm_autofocus.estimators.aberration import ColumnCalibration, PairEstimate, Vector

SIGMA_SCALE = 0.8
"""Standard deviations of the estimators are multiplied by this; from validation runs, as the three below."""

SIGMA_FLOOR = np.array([0.03, 0.015, 0.015])
"""An estimate is never trusted better than this, in µm and a.u.: specimen height over the field, drift."""

PROPORTIONAL = 0.05
"""Error of an estimate as a fraction of the aberration that it says: networks shrink what is far away."""

CROSS = 0.01
"""Error of a component as a fraction of the aberration in the others (in µm of astigmatic defocus)."""

LEVELS_OFF_UM = 100.0
"""Estimators level off: at a distance of d µm from focus they err by about d² over this."""

POWER_REACH = 1.8
"""Half steps of a pair at whose distance from focus a wrong angle stretches half as much (in the logarithm) as near it;
from pairs of training kinds of specimens, 0.7 to 18 µm off, read with angles 20 % too large and too small."""

FOLLOWS = 0.4
"""A reading that changes by less than this fraction of a known move does not follow the knob."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationChange:
    """How the true calibration differs from the assumed one.

    Attributes
    ----------
    convergence, stigmator
        True over assumed convergence angle, and stigmator scale.
    rotation_deg
        True minus assumed rotation of the stigmators.
    convergence_sd, stigmator_sd, rotation_sd_deg
        Standard deviations (of the logarithms, and in degrees).
    """

    convergence: float
    stigmator: float
    rotation_deg: float
    convergence_sd: float
    stigmator_sd: float
    rotation_sd_deg: float

    def of(self, calibration: ColumnCalibration) -> ColumnCalibration:
        """Return the calibration with this change applied."""
        changed = calibration.scaled(self.convergence, self.stigmator)
        return ColumnCalibration(
            changed.convergence_mrad,
            changed.stigmator_um,
            calibration.stigmator_rotation_deg + self.rotation_deg,
            calibration.shift_um_per_um,
        )


@dataclass(frozen=True, slots=True)
class Belief:
    """What all pairs together say.

    Attributes
    ----------
    best
        Best knobs (working distance, stig_x, stig_y), shape (3,).
    sd
        Their standard deviations, shape (3,).
    change
        The calibration.
    misfit
        Chi-squared per degree of freedom of the pairs; well above 1 when they contradict each other.
    """

    best: Vector
    sd: Vector
    change: CalibrationChange
    misfit: float

    def within(self, half_depths: Vector, at: Vector) -> Vector:
        """Return the probability that each best knob lies within ``half_depths`` of ``at``, for Laplace errors."""
        scale = np.maximum(self.sd, 1e-9) / math.sqrt(2.0)
        away = at - self.best
        upper, lower = (half_depths + away) / scale, (half_depths - away) / scale
        return np.clip(_laplace_cdf(lower) - _laplace_cdf(-upper), 0.0, 1.0)


@dataclass
class ColumnFit:
    """Collects the estimates of one run.

    Attributes
    ----------
    start
        Knobs at the start, shape (3,).
    reach
        Prior standard deviation of the best knobs around the start, shape (3,).
    stigmator_um
        Astigmatic defocus of one a.u., to compare the components.
    calibration_sd
        Prior standard deviation of ln c and ln s.
    rotation_sd_deg
        Prior standard deviation of the stigmators' rotation.
    half_step_um
        The frames of a pair lie so far on either side of its midpoint.
    """

    start: Vector
    reach: Vector
    stigmator_um: float
    calibration_sd: float
    rotation_sd_deg: float
    half_step_um: float = 5.0
    _knobs: list[Vector] = field(default_factory=list)
    _seen: list[Vector] = field(default_factory=list)
    _sigma: list[Vector] = field(default_factory=list)

    def add(self, middle: Vector, estimate: PairEstimate) -> None:
        """Add what one pair says about its midpoint."""
        seen = np.clip(estimate.aberration.vector(), -1e4, 1e4)
        sigma = np.minimum(estimate.sigma.vector(), 1e6) * SIGMA_SCALE
        per_unit = np.array([1.0, self.stigmator_um, self.stigmator_um])
        size = np.abs(seen) * per_unit
        others = CROSS * float(np.linalg.norm(size)) / per_unit
        self._knobs.append(np.asarray(middle, dtype=float))
        self._seen.append(seen)
        self._sigma.append(np.sqrt(sigma**2 + SIGMA_FLOOR**2 + (PROPORTIONAL * seen) ** 2 + others**2))

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self._knobs)

    def belief(self) -> Belief:
        """Return the maximum a posteriori; at least one pair must have been added."""
        knobs, seen = np.array(self._knobs), np.array(self._seen)
        away_now = knobs - (knobs[-1] - seen[-1])  # seen from where the last pair says the best is
        sigma, power = self._sigmas(away_now), self._powers(away_now)
        turn_sd = 2.0 * math.radians(self.rotation_sd_deg)

        def residuals(p: Matrix) -> Matrix:
            away = knobs - p[:3]
            c = np.exp(power * p[3])
            s = c * math.exp(p[4])
            cos, sin = math.cos(p[5]), math.sin(p[5])
            model = np.stack(
                [c * away[:, 0], s * (cos * away[:, 1] - sin * away[:, 2]), s * (sin * away[:, 1] + cos * away[:, 2])],
                axis=1,
            )
            prior = [p[3] / self.calibration_sd, p[4] / self.calibration_sd, p[5] / turn_sd]
            return np.concatenate([((model - seen) / sigma).ravel(), (p[:3] - self.start) / self.reach, prior])

        first = np.concatenate([knobs[-1] - seen[-1], np.zeros(3)])
        first[:3] = np.clip(first[:3], self.start - 5 * self.reach, self.start + 5 * self.reach)
        found = scipy.optimize.least_squares(residuals, first, method="trf", x_scale=[1, 0.2, 0.2, 0.1, 0.1, 0.1])
        p = found.x
        free = 3 * self.pairs - 3
        misfit = 2.0 * float(found.cost) / free if free > 0 else 1.0
        covariance = np.linalg.pinv(found.jac.T @ found.jac) * max(misfit, 1.0)
        sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        change = CalibrationChange(
            math.exp(p[3]), math.exp(p[4]), math.degrees(p[5]) / 2, float(sd[3]), float(sd[4]), math.degrees(sd[5]) / 2
        )
        return Belief(p[:3].copy(), sd[:3].copy(), change, misfit)

    def _sigmas(self, away: Matrix) -> Matrix:
        """Return the errors of all estimates, shape (pairs, 3), if their pairs were ``away`` from focus."""
        astigmatism = self.stigmator_um * np.hypot(away[:, 1], away[:, 2])
        off = (away[:, 0] ** 2 + 0.1 * astigmatism**2) / LEVELS_OFF_UM
        per_unit = np.array([1.0, 2.5 * self.stigmator_um, 2.5 * self.stigmator_um])
        return np.asarray(np.hypot(np.array(self._sigma), off[:, None] / per_unit))

    def _powers(self, away: Matrix) -> Matrix:
        """Return by which power of the angle's error estimates are stretched ``away`` from focus, shape (pairs,)."""
        per_unit = np.array([1.0, self.stigmator_um, self.stigmator_um])
        return angle_power(np.linalg.norm(away * per_unit, axis=1), self.half_step_um)

    def differs(self) -> bool:
        """Return True when the two frames of some pair differ for certain, so that the working distance did move.

        The frames of a pair on either side of focus look alike; so do those of a working distance that stands still.
        """
        return any(abs(seen[0]) > 3.0 * sigma[0] for seen, sigma in zip(self._seen, self._sigma, strict=True))

    def unfollowed(self) -> tuple[int, ...]:
        """Return the indices of the knobs that moved while their readings did not follow (or followed backwards)."""
        if self.pairs < 2:
            return ()
        lost = []
        sigma = self._sigmas(np.array(self._seen))
        for i in range(3):
            knobs = np.array([k[i] for k in self._knobs])
            seen = np.array([e[i] for e in self._seen])
            weight = sigma[:, i] ** -2.0
            away = knobs - np.average(knobs, weights=weight)
            spread = float(np.sum(weight * away**2))
            if spread < 9.0:  # moved less than the readings can show
                continue
            slope, error = float(np.sum(weight * away * seen)) / spread, spread**-0.5
            if slope + 2.0 * error < FOLLOWS:
                lost.append(i)
        return tuple(lost)


def angle_power(distance_um: Matrix, half_step_um: float) -> Matrix:
    """Return p: an estimate made so far from focus is too large by the p-th power of true over assumed angle."""
    return np.asarray(2.0 / (1.0 + (distance_um / (POWER_REACH * half_step_um)) ** 2))


def _laplace_cdf(x: Vector) -> Vector:
    return np.asarray(np.where(x < 0, 0.5 * np.exp(np.minimum(x, 0.0)), 1.0 - 0.5 * np.exp(-np.maximum(x, 0.0))))
