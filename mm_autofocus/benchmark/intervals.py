"""How far a rate or a median may be off by chance: intervals, and the test that tells a fall from noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom, hypergeom

from mm_autofocus.report.data import wilson

__all__ = ["fall_probability", "median_interval", "wilson"]


def fall_probability(hits: int, n: int, hits_before: int, n_before: int) -> float:
    """Return how probable a fall at least this large is when nothing has changed (one-sided p value).

    Fisher's exact test of two proportions (R. A. Fisher, J. R. Stat. Soc. 85 (1922) 87): given all hits of both runs,
    the number in the second is hypergeometric. It errs on the side of calling a fall noise.

    Parameters
    ----------
    hits, n
        Successes and cases now.
    hits_before, n_before
        The same in the baseline.

    Returns
    -------
    float
        1 when there are no cases.

    Raises
    ------
    ValueError
        When there are more hits than cases, or a number is negative.
    """
    for some, every in ((hits, n), (hits_before, n_before)):
        if not 0 <= some <= every:
            raise ValueError(f"{some} successes of {every} cases cannot be")
    if not n or not n_before:
        return 1.0
    return float(hypergeom.cdf(hits, n + n_before, hits + hits_before, n))


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the distribution-free interval of a median from order statistics; None for fewer than six values.

    Source: B. C. Arnold et al., A First Course in Order Statistics (1992), section 7.1.
    """
    n = len(values)
    rank = int(binom.ppf((1 - level) / 2, n, 0.5))
    if n < 6 or rank < 1:
        return None
    ordered = np.sort(np.asarray(values, dtype=float))
    return float(ordered[rank - 1]), float(ordered[n - rank])
