"""How sure a search may be: a logistic model of what it knows at its end.

The coefficients lie in ``sweep_confidence.json`` with the command that made them and what it was measured on; see
`mm_autofocus.benchmark.calibrate_confidence`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

CARD = "sweep_confidence.json"


def feature_vector(features: Mapping[str, float]) -> dict[str, float]:
    """Return the regressors of the logistic model, bounded, by name, from `Conclusion.features`.

    The range enters by itself and multiplied with the evidence, so that confidence is calibrated at each range.
    """
    get = features.__getitem__
    log_range = math.log(min(max(get("range"), 3.0), 120.0) / 25.0)
    margin = min(max(get("margin"), -0.2), 1.0)
    inside = min(max(get("rival_inside"), -2.0), 15.0) / 5.0
    outside = min(max(get("rival_outside"), -2.0), 15.0) / 5.0
    position = math.log(min(max(get("position_sd"), 0.005), 1.0))
    return {
        "one": 1.0,
        "range": log_range,
        "elevation": math.log(min(max(get("elevation"), 0.02), 4.0)),
        "gain": math.log(min(max(get("gain"), 1.0), 3e3)),
        "margin": margin,
        "low_margin": max(0.25 - margin, 0.0),
        "margin_range": margin * log_range,
        "rival_inside": inside,
        "rival_inside_range": inside * log_range,
        "rival_outside": outside,
        "rival_sum": min(get("rival_sum"), 4.0),
        "misfit": min(max(get("misfit"), 0.0), 6.0),
        "position_sd": position,
        "nearest": min(get("nearest"), 1.0),
        "bracketed": get("bracketed"),
        "rim_guide": min(max(get("rim_guide"), -1.0), 1.0),
        "rim_fine": min(max(get("rim_fine"), -1.0), 1.0),
        "guide_agrees": get("guide_agrees"),
        "guide_agrees_range": get("guide_agrees") * log_range,
        "edge_distance": math.exp(-max(get("edge_distance"), 0.0) / 2.0),
        "wide": max(get("width"), 0.0),
        "narrow": max(-get("width"), 0.0),
        "two_peaks": get("two_peaks"),
        "spent": get("spent"),
    }


def confidence(features: Mapping[str, float], effort: str = "fast") -> float:
    """Probability, 0 to 1, that the answer of a search is within one depth of field of the focus.

    Parameters
    ----------
    features
        `Conclusion.features` of a search that found a peak.
    effort
        "fast" or "safe"; each has coefficients of its own.
    """
    coefficients = _coefficients()[effort]
    vector = feature_vector(features)
    return logistic(sum(coefficients[name] * value for name, value in vector.items()))


def logistic(x: float) -> float:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return 1.0 / (1.0 + math.exp(-min(max(x, -40.0), 40.0)))


def design_matrix(rows: list[Mapping[str, float]]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the names of the regressors and their values, shape (rows, regressors)."""
    vectors = [feature_vector(row) for row in rows]
    names = tuple(vectors[0])
    return names, np.array([[vector[name] for name in names] for vector in vectors])


@lru_cache(maxsize=1)
def _coefficients() -> dict[str, dict[str, float]]:
    card = json.loads(files("mm_autofocus.strategies").joinpath(CARD).read_text(encoding="utf-8"))
    coefficients: dict[str, dict[str, float]] = card["coefficients"]
    return coefficients
