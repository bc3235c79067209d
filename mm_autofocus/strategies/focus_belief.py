"""Where the best working distance may be, given scores whose shape over working distance is known.

Score against working distance has one shape at every magnification (`mm_autofocus.estimators.focus_score`); unknown are
where its peak lies, how fast the column goes out of focus, and how sharp the place can get at all (astigmatism, or a
specimen that a network scores low). All combinations are weighed by Bayes' rule; the next frame is the one that
promises to tell most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.focus_score import BEND, LARGEST_SCORE, STEPS, blur_of_score, resolvable_um

Vector = NDArray[np.float64]

RATE_FACTORS = np.exp(np.linspace(-0.5, 0.5, 9))
"""How much faster than the settings say the column may go out of focus."""

BLURS_LEFT = np.array([0.0, 0.8, 1.6, 2.6, 4.0])
"""Rms blur that may be left in focus, resolvable lengths; scores of 10 down to 6.2."""

_BLUR_WEIGHTS = np.array([0.4, 0.25, 0.17, 0.12, 0.06])
_POINTS_PER_LENGTH, _MOST_POINTS = 3.0, 1501
_TAIL = 4.0
_LEAST_SIGMA = 0.22
"""What a score is uncertain by beyond what its network says: errors of one place are alike in all its frames."""

_SLOPE_SIGMA = 0.15
"""And by this for each point below 10: on specimens of other kinds a network is off by more where there is more blur.

What far frames say of the peak's place is then coarse, and frames on either side of it decide. Chosen on kinds that the
network in use had not been trained on (grid, tissue), among 0, 0.1, 0.15 and 0.2."""

_BEYOND_SCORE = 4.0
"""Peaks are considered as far outside the window as they are seen with this score at its end."""

_PARTICLES, _CANDIDATES, _BINS = 500, 121, 50
_TRAVEL_COST = 0.15
"""Nats that a move over the whole window has to be worth."""

_NEAR_PEAK = 0.985
"""A frame with this share of the best score counts as in focus: a difference of 0.15 points."""


def depth_um(pixel_um: float, convergence_mrad: float) -> float:
    """Return the full width of working distance, µm, over which no score falls by more than 0.15."""
    reach = math.sqrt(2.0) * blur_of_score(_NEAR_PEAK * LARGEST_SCORE, pixel_um)
    return 2.0 * reach / (convergence_mrad * 1e-3)


def reach_um(pixel_um: float, convergence_mrad: float, score: float = 0.5) -> float:
    """Return how far from focus, µm, a frame still scores this much."""
    return math.sqrt(2.0) * blur_of_score(score, pixel_um) / (convergence_mrad * 1e-3)


@dataclass
class FocusBelief:
    """Weights of all hypotheses.

    Parameters
    ----------
    low, high
        The window of working distance, µm.
    pixel_um, convergence_mrad
        Of the frames, and of the column by its settings.
    convergence_sd
        How well that is known, standard deviation of its logarithm.
    seed
        Of the hypotheses drawn to choose the next frame.
    """

    low: float
    high: float
    pixel_um: float
    convergence_mrad: float
    convergence_sd: float = 0.2
    seed: int = 0
    scores: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        length = resolvable_um(self.pixel_um) / (self.convergence_mrad * 1e-3)
        # The peak may lie outside the window, and is then to be recognised as one that does.
        beyond = reach_um(self.pixel_um, self.convergence_mrad, _BEYOND_SCORE)
        width = self.high - self.low + 2.0 * beyond
        count = int(np.clip(_POINTS_PER_LENGTH * width / length, 51, _MOST_POINTS))
        self._centres = np.linspace(self.low - beyond, self.high + beyond, count)
        self._rates = RATE_FACTORS * self.convergence_mrad * 1e-3 / math.sqrt(2.0) / resolvable_um(self.pixel_um)
        rate = -0.5 * (np.log(RATE_FACTORS) / max(self.convergence_sd, 0.02)) ** 2
        self._log = np.broadcast_to(
            rate[None, :, None] + np.log(_BLUR_WEIGHTS)[None, None, :], (count, len(self._rates), len(BLURS_LEFT))
        ).copy()
        self._rng = np.random.default_rng([0xBE1, self.seed])

    def add(self, at_um: float, score: float, sigma: float) -> None:
        """Weigh every hypothesis by a frame's score and the standard deviation that its network gives."""
        self.scores.append((at_um, score))
        doubt = _SLOPE_SIGMA * (LARGEST_SCORE - score)
        spread = math.hypot(sigma if math.isfinite(sigma) else 0.5, _LEAST_SIGMA, doubt)
        away = (self._predicted(at_um, self._centres[:, None, None]) - score) / spread
        # Long tails: a network is sometimes wrong, and one frame must not decide all.
        self._log -= 0.5 * (_TAIL + 1.0) * np.log1p(away**2 / _TAIL)
        self._log -= self._log.max()

    def _predicted(self, at_um: float, centres: Vector) -> Vector:
        away = (at_um - centres) * self._rates[None, :, None]
        return _score(away**2 + BLURS_LEFT[None, None, :] ** 2)

    @property
    def weights(self) -> Vector:
        """Probability of each place of the peak, shape (places,)."""
        weights = np.exp(self._log).sum((1, 2))
        return np.asarray(weights / weights.sum())

    def best(self, half_um: float) -> tuple[float, float]:
        """Return the place with most probability within ``half_um`` on either side, refined, and that probability."""
        weights = self.weights
        step = self._centres[1] - self._centres[0]
        wide = max(1, round(half_um / step))
        near = np.convolve(weights, np.ones(2 * wide + 1), mode="same")
        peak = int(np.argmax(near))
        part = slice(max(0, peak - 3 * wide), peak + 3 * wide + 1)
        mean = float(np.average(self._centres[part], weights=weights[part] + 1e-300))
        inside = np.abs(self._centres - mean) <= half_um + step / 2
        return mean, float(weights[inside].sum())

    @property
    def sd_um(self) -> float:
        """Standard deviation of the place of the peak, µm."""
        weights = self.weights
        mean = float(weights @ self._centres)
        return math.sqrt(float(weights @ (self._centres - mean) ** 2))

    def next(self, now_um: float) -> float:
        """Return where a frame promises to tell most about the place of the peak, less the cost of going there."""
        flat = np.exp(self._log).ravel()
        drawn = self._rng.choice(flat.size, _PARTICLES, p=flat / flat.sum())
        centre, rate, left = np.unravel_index(drawn, self._log.shape)
        spread = float(np.std(self._centres[centre]))
        middle = float(np.mean(self._centres[centre]))
        far = reach_um(self.pixel_um, self.convergence_mrad)
        around = np.linspace(middle - 3.0 * spread - 0.5 * far, middle + 3.0 * spread + 0.5 * far, _CANDIDATES)
        candidates = np.unique(np.clip(np.append(around, middle), self.low, self.high))
        away = (candidates[:, None] - self._centres[centre][None, :]) * self._rates[rate][None, :]
        scores = _score(away**2 + BLURS_LEFT[left][None, :] ** 2)
        doubt = _SLOPE_SIGMA * (LARGEST_SCORE - scores)
        read = np.clip(scores + doubt * self._rng.standard_normal(scores.shape), 0.0, LARGEST_SCORE)
        noise = np.mean(np.log(np.hypot(2.0 * _LEAST_SIGMA, doubt)), axis=1)
        told = _entropy(read) - noise - _TRAVEL_COST * np.abs(candidates - now_um) / (self.high - self.low)
        return float(candidates[int(np.argmax(told))])


def _score(squared: Vector) -> Vector:
    """Return scores of squared rms blur in resolvable lengths: `score_of_blur` for arrays."""
    return np.asarray(LARGEST_SCORE * np.maximum(0.0, 1.0 - np.log1p(squared / BEND**2) / STEPS))


def _entropy(scores: Vector) -> Vector:
    """Return the entropy of what would be read, nats, for each row of predicted scores: what a frame there may tell.

    The entropy of the noise, which tells nothing, is for the caller to take off.
    """
    width = 2.0 * _LEAST_SIGMA
    rows, _ = scores.shape
    bins = np.clip((scores / width).astype(int), 0, _BINS - 1) + _BINS * np.arange(rows)[:, None]
    share = np.bincount(bins.ravel(), minlength=rows * _BINS).reshape(rows, _BINS) / scores.shape[1]
    padded = np.pad(share, ((0, 0), (1, 1)))
    smooth = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    return np.asarray(-np.sum(smooth * np.log(smooth + 1e-12), axis=1))
