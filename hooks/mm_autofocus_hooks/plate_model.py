"""The numbers of the focus map: a Kalman filter over plate shape, wells, fields and drift, at constant cost per result.

The model of one focus result at (x, y), in a well and a field, at time t is

    z = c0 + c1 X + c2 Y + c3 X² + c4 XY + c5 Y² + drift(t) + well + field + noise,

X and Y in cm from the first result. The drift is linear between knots in time, and its mean rates between knots have
the covariance of an Ornstein-Uhlenbeck process of one hour.

A covariance of every well and field with every other would grow with the square of their number. It is not needed:
given the few *shared* variables (coefficients and drift knots) the wells are independent of one another, and given its
well so are the fields. The filter keeps just that tree, each level as a linear regression on the one above:

    h ~ N(mean, covariance)    well | h ~ N(a + B·h, C)    field | h, well ~ N(a + B·h + b well, C)

which stays exact under measurements. Only old drift knots have to be dropped to keep h short. The knot dropped is the
one that the others know best; every variance stays right, and what is lost is a correlation between wells.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
T = TypeVar("T", bound=np.generic)

UM_PER_CM = 1e4
SECONDS_PER_HOUR = 3600.0
RATE_TIME_S = 3600.0
"""Correlation time of the drift rate: rooms and incubators change over about an hour."""
KNOT_S = 600.0
"""Longest piece over which the drift counts as linear."""
HEIGHT_SD_UM = 1000.0
"""Prior SD of the plate's height around the first result: it says nothing."""
FIRST_KNOT_SD_UM = 1e-3
"""The drift counts from the first result, where the height already stands for it."""
COEFFICIENTS = 6
BUMP_LEVER_CM = 5.0
"""A bump that lifts the plate by J µm tilts it by about J over half a plate."""


@dataclass(frozen=True, slots=True)
class PlatePriors:
    """What is believed before the first result: SDs in µm, see `mm_autofocus.settings.MapSettings`."""

    tilt_um_per_mm: float = 2.0
    bow_um_per_cm2: float = 5.0
    well_um: float = 4.0
    field_um: float = 1.0
    drift_um_per_hour: float = 3.0
    measurement_um: float = 0.125


@dataclass(frozen=True, slots=True)
class Site:
    """A place of the specimen: stage coordinates in µm, and the names of its well and of its field."""

    x: float
    y: float
    well: Hashable
    field: Hashable


@dataclass(frozen=True, slots=True)
class Estimate:
    """The height of a site: mean and variance in µm and µm², without the noise of a measurement."""

    mean: float
    variance: float


class PlateModel:
    """Kalman filter of the plate; see the module for the model.

    Parameters
    ----------
    priors
        What is believed before the first result.
    capacity
        How many shared variables are kept at most: 6 coefficients and the drift knots. An update costs of the order
        of ``capacity``² operations and the memory is ``capacity`` numbers for each well and field.
    """

    def __init__(self, priors: PlatePriors, capacity: int = 40) -> None:
        if capacity < COEFFICIENTS + 5:
            raise ValueError(f"capacity is {capacity}; the map needs at least {COEFFICIENTS + 5} shared variables")
        self.priors = priors
        self.capacity = capacity
        self._rate_sd = max(priors.drift_um_per_hour, 1e-3) / SECONDS_PER_HOUR
        self._mean = np.zeros(capacity)
        self._cov = np.zeros((capacity, capacity))
        self._coefficients = list(range(COEFFICIENTS))
        self._knots: list[tuple[float, int]] = []
        """(time, slot) of each drift knot that is still kept, by time."""
        self._retired: set[int] = set()
        """Slots that no measurement of today depends on, only what was learnt earlier."""
        self._free = list(range(capacity - 1, COEFFICIENTS - 1, -1))
        self._origin: tuple[float, float] | None = None
        self._wells: dict[Hashable, int] = {}
        self._fields: dict[Hashable, int] = {}
        self._well = _Level(capacity)
        self._field = _Level(capacity + 1)  # the last column: its own well
        self._well_of = np.zeros(0, dtype=np.intp)

    # ------------------------------------------------------------------ sizes
    @property
    def empty(self) -> bool:
        """True before the first result."""
        return self._origin is None

    @property
    def shared(self) -> int:
        """Number of shared variables in use."""
        return self.capacity - len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory of the filter's arrays in bytes."""
        return self._cov.nbytes + self._mean.nbytes + self._well.nbytes + self._field.nbytes + self._well_of.nbytes

    def knows_well(self, well: Hashable) -> bool:
        """True when the well has been measured."""
        return well in self._wells

    def knows_field(self, field: Hashable) -> bool:
        """True when the field has been measured."""
        return field in self._fields

    # ------------------------------------------------------------------ estimate and update
    def estimate(self, site: Site, time: float) -> Estimate:
        """Return the height of a site at a time (s); changes nothing."""
        row, variance = self._row(site, time)
        field, well = self._fields.get(site.field), self._wells.get(site.well)
        on_well, constant = 1.0, 0.0
        if field is None:
            variance += self.priors.field_um**2
        else:
            row = row + self._field.slope[field, :-1]
            on_well += float(self._field.slope[field, -1])
            constant += float(self._field.constant[field])
            variance += float(self._field.variance[field])
        if well is None:
            variance += (on_well * self.priors.well_um) ** 2
        else:
            row = row + on_well * self._well.slope[well]
            constant += on_well * float(self._well.constant[well])
            variance += on_well**2 * float(self._well.variance[well])
        return Estimate(float(row @ self._mean) + constant, variance + float(row @ self._cov @ row))

    def update(self, site: Site, time: float, z: float) -> None:
        """Learn that the focal plane of ``site`` was at ``z`` (µm) at ``time`` (s); three nested scalar updates."""
        if self._origin is None:
            self._begin(site, z)
        self._extend_drift(time)
        row, extra = self._row(site, time)
        noise = self.priors.measurement_um**2 + extra
        well, field = self._well_index(site), self._field_index(site)

        on = np.append(row, 1.0) + self._field.slope[field]
        value = z - float(self._field.constant[field])
        noise += self._field.learn(field, np.append(row, 1.0), z, noise)

        on_well, row = float(on[-1]), on[:-1]
        spread = float(self._well.variance[well])
        total = on_well**2 * spread + noise
        gain = spread * on_well / total
        slope = self._well.slope[well].copy()
        value_shared = value - on_well * float(self._well.constant[well])
        self._well.constant[well] += gain * value_shared
        self._well.slope[well] -= gain * (row + on_well * slope)
        self._well.variance[well] = spread * noise / total

        row = row + on_well * slope
        cross = self._cov @ row
        total += float(row @ cross)
        self._mean += cross * ((value_shared - float(row @ self._mean)) / total)
        self._cov -= np.outer(cross, cross / total)

    def bump(self, size_um: float) -> None:
        """Forget height and tilt to within ``size_um``: the plate was moved. Bow, wells and fields stay known."""
        for index, sd in enumerate((size_um, size_um / BUMP_LEVER_CM, size_um / BUMP_LEVER_CM)):
            slot = self._take_slot()
            old = self._coefficients[index]
            weights = np.zeros(self.capacity)
            weights[old] = 1.0
            self._define(slot, weights, sd**2)
            self._retired.add(old)
            self._coefficients[index] = slot

    # ------------------------------------------------------------------ shared variables
    def _begin(self, site: Site, z: float) -> None:
        self._origin = (site.x, site.y)
        tilt, bow = self.priors.tilt_um_per_mm * 10.0, self.priors.bow_um_per_cm2
        self._mean[0] = z
        for slot, sd in enumerate((HEIGHT_SD_UM, tilt, tilt, bow, bow, bow)):
            self._cov[slot, slot] = sd**2

    def _row(self, site: Site, time: float) -> tuple[Array, float]:
        """Design row of the shared variables, and the variance of the drift since the last knot."""
        row = np.zeros(self.capacity)
        x0, y0 = self._origin or (site.x, site.y)
        x, y = (site.x - x0) / UM_PER_CM, (site.y - y0) / UM_PER_CM
        row[self._coefficients] = 1.0, x, y, x * x, x * y, y * y
        if not self._knots:
            return row, 0.0
        after = bisect_right(self._knots, time, key=lambda knot: knot[0])
        if after == 0:
            row[self._knots[0][1]] += 1.0
            return row, 0.0
        if after == len(self._knots):
            weights, variance = self._extrapolate(time)
            return row + weights, variance
        (start, first), (stop, second) = self._knots[after - 1], self._knots[after]
        part = (time - start) / (stop - start)
        row[first] += 1.0 - part
        row[second] += part
        return row, 0.0

    def _extrapolate(self, time: float) -> tuple[Array, float]:
        """Drift at a time after the last knot: weights of the shared variables, and variance."""
        weights = np.zeros(self.capacity)
        (start, first), (stop, second) = self._knots[-2:]
        past, ahead = stop - start, time - stop
        weights[second] = 1.0
        if ahead <= 0.0:
            return weights, 0.0
        known = _mean_rate_variance(past)
        shared = _mean_rate_covariance(past, ahead)
        slope = shared / known * ahead / past
        weights[second] += slope
        weights[first] -= slope
        variance = _mean_rate_variance(ahead) - shared**2 / known
        return weights, max(variance, 0.0) * (self._rate_sd * ahead) ** 2

    def _extend_drift(self, time: float) -> None:
        if not self._knots:
            first = self._take_slot()
            self._define(first, np.zeros(self.capacity), FIRST_KNOT_SD_UM**2)
            second = self._take_slot()
            weights = np.zeros(self.capacity)
            weights[first] = 1.0
            self._define(second, weights, (self._rate_sd * KNOT_S) ** 2 * _mean_rate_variance(KNOT_S))
            self._knots = [(time, first), (time + KNOT_S, second)]
            return
        if time > self._knots[-1][0] + KNOT_S:
            self._append_knot(time)
        if time >= self._knots[-1][0]:
            self._append_knot(self._knots[-1][0] + KNOT_S)

    def _append_knot(self, time: float) -> None:
        slot = self._take_slot()
        self._define(slot, *self._extrapolate(time))
        self._knots.append((time, slot))
        self._retired.add(self._knots[-3][1])

    def _define(self, slot: int, weights: Array, variance: float) -> None:
        """Fill a free slot with weights·h + N(0, variance)."""
        cross = self._cov @ weights
        self._mean[slot] = float(weights @ self._mean)
        self._cov[slot, :] = cross
        self._cov[:, slot] = cross
        self._cov[slot, slot] = float(weights @ cross) + variance

    def _take_slot(self) -> int:
        if not self._free:
            self._drop_best_known()
        return self._free.pop()

    def _drop_best_known(self) -> None:
        """Drop the retired variable whose value the others tell best, and refer what depended on it to them."""
        used = np.setdiff1d(np.arange(self.capacity), self._free)
        scale = np.sqrt(np.maximum(np.diag(self._cov)[used], 1e-18))
        correlation = self._cov[np.ix_(used, used)] / np.outer(scale, scale)
        precision = np.linalg.inv(correlation + 1e-10 * np.eye(used.size))
        left = scale**2 / np.diag(precision)  # variance given all the others
        slots = sorted(self._retired)
        slot = min(slots, key=lambda candidate: float(left[np.searchsorted(used, candidate)]))
        index = int(np.searchsorted(used, slot))
        slope = np.zeros(self.capacity)
        slope[used] = -precision[index] / precision[index, index] * scale[index] / scale
        slope[slot] = 0.0
        constant = float(self._mean[slot] - slope @ self._mean)
        self._refer(slot, slope, constant, float(left[index]))
        self._mean[slot] = 0.0
        self._cov[slot, :] = 0.0
        self._cov[:, slot] = 0.0
        self._knots = [knot for knot in self._knots if knot[1] != slot]
        self._retired.discard(slot)
        self._free.append(slot)

    def _refer(self, slot: int, slope: Array, constant: float, left: float) -> None:
        """Replace h[slot] by constant + slope·h + N(0, left) in every well and field."""
        well, field = self._well, self._field
        n = len(self._wells)
        on = well.slope[:n, slot].copy()
        spread = well.variance[:n].copy()
        well.constant[:n] += on * constant
        well.slope[:n, slot] = 0.0
        well.slope[:n] += np.outer(on, slope)
        well.variance[:n] += on**2 * left
        # A field also sees its well, and the well tells something of h[slot] beyond what the other variables tell.
        total = np.where(well.variance[:n] > 0.0, well.variance[:n], 1.0)
        regression = left * on / total
        rest = left * spread / total
        k = len(self._fields)
        of = self._well_of[:k]
        on_field = field.slope[:k, slot].copy()
        field.slope[:k, slot] = 0.0
        field.slope[:k, :-1] += on_field[:, None] * (slope - regression[of, None] * well.slope[of])
        field.slope[:k, -1] += on_field * regression[of]
        field.constant[:k] += on_field * (constant - regression[of] * well.constant[of])
        field.variance[:k] += on_field**2 * rest[of]

    # ------------------------------------------------------------------ wells and fields
    def _well_index(self, site: Site) -> int:
        index = self._wells.get(site.well)
        if index is None:
            index = self._wells[site.well] = len(self._wells)
            self._well.add(index, self.priors.well_um**2)
        return index

    def _field_index(self, site: Site) -> int:
        index = self._fields.get(site.field)
        if index is None:
            index = self._fields[site.field] = len(self._fields)
            self._field.add(index, self.priors.field_um**2)
            if index >= self._well_of.size:
                self._well_of = _grown(self._well_of, index + 1)
            self._well_of[index] = self._wells[site.well]
        return index


class _Level:
    """Regressions of one level of the tree on the levels above: constant, slopes, residual variance of each member."""

    def __init__(self, width: int) -> None:
        self.slope: Array = np.zeros((0, width))
        self.constant: Array = np.zeros(0)
        self.variance: Array = np.zeros(0)

    @property
    def nbytes(self) -> int:
        return self.slope.nbytes + self.constant.nbytes + self.variance.nbytes

    def add(self, index: int, variance: float) -> None:
        if index >= self.variance.size:
            self.slope = _grown(self.slope, index + 1)
            self.constant = _grown(self.constant, index + 1)
            self.variance = _grown(self.variance, index + 1)
        self.variance[index] = variance

    def learn(self, index: int, row: Array, z: float, noise: float) -> float:
        """Condition member ``index`` on z = row·above + member + N(0, noise); return its variance before."""
        spread = float(self.variance[index])
        gain = spread / (spread + noise)
        self.constant[index] += gain * (z - self.constant[index])
        self.slope[index] -= gain * (row + self.slope[index])
        self.variance[index] = spread * noise / (spread + noise)
        return spread


def _grown(array: NDArray[T], least: int) -> NDArray[T]:
    """Copy into an array of at least ``least`` rows, doubled so that adding n rows copies O(n)."""
    rows = max(least, 16, 2 * array.shape[0])
    larger = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    larger[: array.shape[0]] = array
    return larger


def _mean_rate_variance(length_s: float) -> float:
    """Variance of the mean over ``length_s`` of an Ornstein-Uhlenbeck process of variance 1."""
    u = length_s / RATE_TIME_S
    return 1.0 - u / 3.0 if u < 1e-4 else 2.0 * (u - 1.0 + math.exp(-u)) / u**2


def _mean_rate_covariance(first_s: float, second_s: float) -> float:
    """Covariance of the means over two adjacent intervals of an Ornstein-Uhlenbeck process of variance 1."""
    u, v = first_s / RATE_TIME_S, second_s / RATE_TIME_S
    return math.expm1(-u) * math.expm1(-v) / (u * v)
