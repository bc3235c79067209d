from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.benchmark.intervals import fall_probability, median_interval, wilson


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        ((3, 10), (9, 10), 0.0099),  # by hand: sum over k <= 3 of C(12, k) C(8, 10 - k) / C(20, 10)
        ((10, 10), (10, 10), 1.0),
        ((0, 4), (4, 4), 1 / 70),
    ],
)
def test_fisher_by_hand(now: tuple[int, int], before: tuple[int, int], expected: float) -> None:
    assert fall_probability(*now, *before) == pytest.approx(expected, rel=0.02)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
def test_a_probability_that_falls_with_the_hits(a: int, b: int, n: int, m: int) -> None:
    a, b = min(a, n), min(b, m)
    p = fall_probability(a, n, b, m)
    assert 0 < p <= 1
    if a:
        assert fall_probability(a - 1, n, b, m) <= p + 1e-12


def test_no_change_is_rarely_called_a_fall() -> None:
    rng = np.random.default_rng(1)
    falls = [
        fall_probability(*(int(rng.binomial(44, 0.9)), 44) * 1, int(rng.binomial(44, 0.9)), 44) for _ in range(800)
    ]
    assert np.mean(np.array(falls) < 0.01) <= 0.015


def test_counts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="5 successes of 4 cases"):
        fall_probability(5, 4, 1, 2)
    assert fall_probability(0, 0, 3, 3) == 1.0


def test_wilson_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    for rate in (0.5, 0.9, 0.97):
        hits = rng.binomial(60, rate, 2000)
        covered = [low <= rate <= high for low, high in (wilson(int(h), 60) for h in hits)]
        assert 0.92 <= np.mean(covered) <= 0.985


def test_the_median_interval_is_of_order_statistics() -> None:
    assert median_interval([1.0, 2.0, 3.0]) is None
    values = list(range(1, 11))
    assert median_interval([float(v) for v in values]) == (2.0, 9.0)  # Arnold et al.: n = 10, ranks 2 and 9
    rng = np.random.default_rng(3)
    hits = [
        low <= 0.0 <= high
        for low, high in (median_interval(list(rng.normal(size=31))) or (1.0, 0.0) for _ in range(500))
    ]
    assert np.mean(hits) >= 0.93
