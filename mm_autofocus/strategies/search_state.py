"""What a search knows: its task, its samples, and the focus curves that fit them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm_autofocus.measures.curve import (
    FINE,
    GUIDE,
    Array,
    CurveData,
    CurveFit,
    MeasurePrior,
    add_peak,
    fit_peaks,
    log_height,
    no_peak_cost,
    starting_points,
)


@dataclass(frozen=True, slots=True)
class SearchSample:
    """One measured position.

    Attributes
    ----------
    z
        Where the frame was really taken, µm.
    asked
        Where the search had asked for it, µm.
    log_scores
        Natural logarithm of the score of each measure; the first one decides.
    noise
        SD of each of them from image noise.
    purpose
        The question it was to answer (the `Step` that asked).
    """

    z: float
    asked: float
    log_scores: tuple[float, ...]
    noise: tuple[float, ...]
    purpose: str = "plan"


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What is to be searched. All lengths in µm.

    Attributes
    ----------
    low, high
        The window.
    fwhm
        Expected full width at half maximum of the fine measure's peak; sets every step.
    start
        Imaged first when it lies in the window; None not to.
    prior_mean, prior_sd
        Where the peak is expected, or None.
    max_images
        The search concludes with what it has when it has this many samples.
    priors
        Shape of the curve of each measure.
    """

    low: float
    high: float
    fwhm: float
    start: float | None = None
    prior_mean: float | None = None
    prior_sd: float = 0.0
    max_images: int = 60
    priors: tuple[MeasurePrior, ...] = (FINE, GUIDE)

    coarse_step: float = 8.0
    """Largest step of the first sweep, in FWHM."""
    detection: float = 12.0
    """A peak counts as seen when it lowers the cost of the fit by this much."""
    rival_cost: float = 1.5
    """A peak as high as the winner counts as possible where it raises the cost by less than this."""
    plausible_cost: float = 4.0
    """A fit counts as plausible while it costs at most this much more than the best one."""
    promise: float = 0.1
    """A fitted peak is visited when its height plus this part of its elevation exceeds the best image."""
    fresh: float = 0.35
    """A fitted peak is as good as visited within this many FWHM of an image."""
    max_rivals: int = 2
    bracket: float = 2.2
    """The best needs a neighbour within this many FWHM on either side."""

    def clip(self, z: float) -> float:
        """Return the nearest position inside the window."""
        return min(max(z, self.low), self.high)


class SearchState:
    """The samples as arrays, and the fits to them."""

    def __init__(self, samples: Sequence[SearchSample], task: SearchTask) -> None:
        self.task, self.f = task, task.fwhm
        self.samples = samples
        z = np.array([sample.z for sample in samples])
        y = np.array([sample.log_scores for sample in samples]).T
        y = np.maximum(y, y.max(axis=1, keepdims=True) - 14.0)  # a black frame has no logarithm
        noise = np.array([sample.noise for sample in samples]).T
        reach = 3.0 * self.f
        low, high = min(task.low, z.min()), max(task.high, z.max())
        self.data = CurveData(z, y, noise, self.f, (task.low + task.high) / 2, low - reach, high + reach, task.priors)
        self.z, self.fine = z, y[0]
        self.best = int(self.fine.argmax())
        self.order = np.argsort(z, kind="stable")
        self.fits = self._fit()
        self.gain = no_peak_cost(self.data) - self.singles[0].cost
        self.detected = self.gain >= task.detection
        self.rivals: list[tuple[float, float]] | None = None

    @property
    def winner(self) -> CurveFit:
        """The cheapest fit."""
        return self.fits[0]

    def _fit(self) -> list[CurveFit]:
        """Return the best fits of one and of two peaks, cheapest first; a second peak costs 3.5."""
        starts = self._starts()
        batch = self._fit_batch(starts[:, None])
        self.singles = batch
        main = float(batch[0].positions[0])
        others = [q for q in starts if abs(q - main) > 2.5 * self.f]
        others += [float(fit.positions[0]) for fit in batch[1:4] if abs(fit.positions[0] - main) > 2.5 * self.f]
        best = [batch[0]]
        if others:
            pairs = self._fit_batch(np.array([[main, q] for q in others]))
            apart = [fit for fit in pairs if abs(fit.positions[0] - fit.positions[1]) > 1.5 * self.f]
            best += [CurveFit(fit.theta, fit.cost + 3.5, fit.information, 2) for fit in apart[:2]]
        return sorted(best, key=lambda fit: fit.cost)

    def _fit_batch(self, positions: Array) -> list[CurveFit]:
        mean = sd = None
        if self.task.prior_mean is not None:
            mean, sd = positions.copy(), np.full_like(positions, np.inf)
            mean[:, 0], sd[:, 0] = self.task.prior_mean, 1.5 * self.task.prior_sd + 1e-9
        fits = fit_peaks(
            self.data,
            starting_points(self.data, positions),
            positions.shape[1],
            position_mean=mean,
            position_sd=sd,
        )
        return [fits.take(int(i)) for i in np.argsort(fits.cost, kind="stable")]

    def _starts(self) -> Array:
        """Candidate positions: the three highest samples of each measure over its drift, and the gaps beside them."""
        z = self.z[self.order]
        candidates = set()
        for y in self.data.y[:, self.order]:
            if len(z) > 3 and z[-1] > z[0]:
                weights = np.exp(-(y - y.min()) / (y.std() + 1e-9))
                x = (z - z.mean()) / (z[-1] - z[0])
                y = y - np.polyval(np.polyfit(x, y, 1, w=weights), x)
            for i in np.argsort(-y, kind="stable")[:3]:
                candidates.add(float(z[i]))
                candidates.update(float((z[i] + z[j]) / 2) for j in (i - 1, i + 1) if 0 <= j < len(z))
        kept: list[float] = []
        for q in sorted(candidates):
            if not kept or q - kept[-1] > 0.5 * self.f:
                kept.append(q)
        return np.array(kept)

    def distance(self, z: float) -> float:
        """Distance to the nearest position imaged or asked for, µm."""
        return min(min(abs(sample.z - z), abs(sample.asked - z)) for sample in self.samples)

    def best_peak(self) -> float:
        """Fitted position of the peak that the best sample stands on, or that sample's own."""
        best = self.z[self.best]
        positions = self.winner.positions
        nearest = float(positions[np.abs(positions - best).argmin()])
        return nearest if abs(nearest - best) < 0.6 * self.f else float(best)

    def best_elevation(self) -> float:
        """How far the best sample stands over the fitted background, in log score."""
        return float(self.fine[self.best] - self.winner.background(self.z[self.best], self.data))

    def find_rivals(self) -> list[tuple[float, float]]:
        """Return (cost rise, position) of an extra peak as high as the winner, in each gap and beyond the edges.

        Sorted by cost rise. Positions outside the window stand for a peak that the window does not hold.
        """
        if self.rivals is None:
            self.rivals = self._find_rivals()
        return self.rivals

    def _find_rivals(self) -> list[tuple[float, float]]:
        f, task = self.f, self.task
        at, elevation = self.best_peak(), self.best_elevation()
        edges = np.unique(np.concatenate([[task.low], np.clip(self.z, task.low, task.high), [task.high]]))
        places = []
        for a, b in itertools.pairwise(edges.tolist()):
            if b - a >= 0.8 * f:
                inside = [(a + b) / 2] if b - a < 2 * f else [a + 0.25 * (b - a), b - 0.25 * (b - a)]
                places += [(float(q), (b - a) / 3) for q in inside]
        places += [(task.low - 1.5 * f, 0.75 * f), (task.high + 1.5 * f, 0.75 * f)]
        places = [(q, reach) for q, reach in places if abs(q - at) >= 1.5 * f]
        if not places:
            return []
        positions = np.array([q for q, _ in places])
        fit = self.winner
        mean = np.tile(np.append(fit.positions, 0.0), (len(places), 1))
        sd = np.full_like(mean, np.inf)
        mean[:, -1], sd[:, -1] = positions, [reach for _, reach in places]
        fits = fit_peaks(
            self.data,
            add_peak(fit, self.data, positions, elevation),
            fit.peaks + 1,
            position_mean=mean,
            position_sd=sd,
            least_log_height=log_height(elevation),
            iterations=12,
        )
        plain = fit_peaks(self.data, fit.theta[None], fit.peaks).cost[0]
        rise = fits.cost - plain
        if task.prior_mean is not None:
            spread = 1.5 * task.prior_sd + 1e-9
            rise = rise + ((positions - task.prior_mean) / spread) ** 2 - ((at - task.prior_mean) / spread) ** 2
        return sorted((float(cost), float(q)) for cost, q in zip(rise, positions, strict=True))
