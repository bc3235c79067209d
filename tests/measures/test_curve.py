from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mm_autofocus.measures.curve import (
    FINE,
    GUIDE,
    CurveData,
    _evaluate,
    _prior,
    fit_peaks,
    no_peak_cost,
    starting_points,
)


def pearson(z: np.ndarray, at: float, fwhm: float, shape: float, height: float) -> np.ndarray:
    width = fwhm / 2 / np.sqrt(2 ** (1 / shape) - 1)
    return height * (1 + ((z - at) / width) ** 2) ** -shape


def data(peaks: list[tuple[float, float]], count: int = 18, seed: int = 0, noise: float = 0.01) -> CurveData:
    rng = np.random.default_rng(seed)
    z = np.sort(rng.uniform(-10, 10, count))
    z = np.sort(np.append(z, [at + d for at, _ in peaks for d in (-0.5, 0.2, 0.7)]))
    fine = np.log1p(sum((pearson(z, at, 1.0, 1.1, height) for at, height in peaks), np.zeros_like(z)))
    guide = np.log1p(sum((pearson(z, at, 2.3, 0.5, height / 4) for at, height in peaks), np.zeros_like(z)))
    y = np.stack([3 + fine, 1 + guide]) + rng.normal(0, noise, (2, len(z)))
    return CurveData(z, y, np.full_like(y, noise), 1.0, 0.0, -13.0, 13.0, (FINE, GUIDE))


@pytest.mark.parametrize("at", [-8.0, -0.3, 3.3, 9.0])
def test_a_peak_is_found_with_its_width_and_an_honest_error(at: float) -> None:
    d = data([(at, 20.0)])
    starts = np.linspace(-10, 10, 12)[:, None]
    fits = fit_peaks(d, starting_points(d, starts), 1)
    best = fits.take(int(fits.cost.argmin()))
    assert best.positions[0] == pytest.approx(at, abs=0.1)
    assert 0 < best.positions_sd[0] < 0.2
    assert best.fwhm == pytest.approx(1.0, rel=0.3)
    assert no_peak_cost(d) - best.cost > 100


def test_two_peaks_are_told_apart() -> None:
    d = data([(-4.0, 20.0), (5.0, 12.0)])
    fits = fit_peaks(d, starting_points(d, np.array([[-3.8, 4.6], [0.0, 5.0]])), 2)
    best = fits.take(int(fits.cost.argmin()))
    assert sorted(best.positions) == pytest.approx([-4.0, 5.0], abs=0.1)


def test_without_a_peak_the_plain_model_is_as_good() -> None:
    d = data([])
    fits = fit_peaks(d, starting_points(d, np.linspace(-10, 10, 9)[:, None]), 1)
    assert no_peak_cost(d) - fits.cost.min() < 12


def test_the_gradient_is_that_of_the_cost() -> None:
    d = data([(-4.0, 20.0), (5.0, 12.0)])
    d = replace(d, priors=tuple(replace(prior, mismatch=0.0) for prior in d.priors))  # a variance that stays
    theta = starting_points(d, np.array([[-3.0, 4.0]]))
    theta += np.random.default_rng(3).normal(0, 0.1, theta.shape)
    mean, precision = _prior(d, 1, 2)
    _, gradient, information = _evaluate(d, theta, 2, mean, precision)
    numeric = np.empty_like(gradient)
    for j in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, j] = 1e-5
        up, down = (_evaluate(d, theta + sign * step, 2, mean, precision)[0] for sign in (1, -1))
        numeric[0, j] = (up - down)[0] / 2e-5 / 2
    assert gradient == pytest.approx(numeric, rel=1e-5, abs=1e-5)
    assert np.linalg.eigvalsh(information[0]).min() > -1e-6


def test_a_batch_gives_what_each_start_gives_alone() -> None:
    d = data([(2.0, 10.0)])
    starts = starting_points(d, np.array([[-5.0], [1.0], [2.5], [8.0]]))
    together = fit_peaks(d, starts, 1)
    for i in range(len(starts)):
        assert fit_peaks(d, starts[i : i + 1], 1).cost[0] == pytest.approx(together.cost[i], rel=1e-6)


def test_bounds_hold() -> None:
    d = data([(2.0, 10.0)])
    fits = fit_peaks(d, starting_points(d, np.array([[2.0, -7.0]])), 2, least_log_height=2.0)
    assert fits.theta[0, 2 * 2 + 3] >= 2.0
    assert (np.abs(fits.theta[:, :2]) <= 13.0).all()
