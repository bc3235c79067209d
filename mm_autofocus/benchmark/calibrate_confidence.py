"""Fits the logistic model that turns the end of a search into a confidence, on even curves and made-up ones only.

    python -m mm_autofocus.benchmark.calibrate_confidence --data ../shared/data

writes ``mm_autofocus/strategies/sweep_confidence.json``; with ``--check`` it writes nothing and measures the
present coefficients on the held-out, odd curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from mm_autofocus.benchmark.curves import DATA, STRATEGIES, run_cases, run_curves
from mm_autofocus.benchmark.replay import synthetic_recordings, windows
from mm_autofocus.measures.curve import Array
from mm_autofocus.strategies import sweep_confidence
from mm_autofocus.strategies.sweep_confidence import confidence, design_matrix

RANGES = (6.0, 11.0, 18.0, 28.0, 40.0, 50.0)
PENALTY = 10.0
"""Chosen by cross-validation over the even curves (8 folds, by curve)."""


def training_records(
    data: Path, effort: str, repeats: int, seed: int, half: str = "tuning", synthetic: int = 120
) -> list[dict[str, Any]]:
    """Replay searches whose peaks are inside, and some whose focus is just outside; only those that saw a peak."""
    strategies = {effort: STRATEGIES[f"sweep, {effort}"]}
    common: dict[str, Any] = {"half": half, "seed": seed, "strategies": strategies}
    records = run_curves(data, ranges=RANGES, repeats=repeats, **common)
    records += run_curves(data, ranges=RANGES[:4], repeats=repeats, outside=True, **common)
    made_up = synthetic_recordings(synthetic, seed)
    records += run_cases(windows(made_up, RANGES[1::2], 1, seed), strategies)
    records += run_cases(windows(made_up, RANGES[1:3], 1, seed, outside=True), strategies)
    return [record for record in records if record["status"] in ("converged", "low_confidence")]


def fit_logistic(design: Array, right: Array, penalty: float = PENALTY) -> Array:
    """Return the coefficients of a ridge logistic regression; columns are scaled, the first is not penalised.

    Parameters
    ----------
    design
        Shape (rows, regressors), the first column 1.
    right
        1 where the answer was right, else 0, shape (rows,).
    penalty
        Of the squared coefficients of the scaled columns.
    """
    mean, scale = design.mean(axis=0), design.std(axis=0)
    constant = scale < 1e-9
    mean[0], scale[constant] = 0.0, 1.0
    scaled = np.where(constant, 0.0, (design - mean) / scale)
    scaled[:, 0] = 1.0
    weights = np.append(0.0, np.full(design.shape[1] - 1, penalty))

    def objective(beta: Array) -> tuple[float, Array]:
        x = scaled @ beta
        loss = np.logaddexp(0.0, x).sum() - right @ x + (weights * beta**2).sum() / 2
        return float(loss), np.asarray(scaled.T @ (1 / (1 + np.exp(-x)) - right) + weights * beta)

    beta = minimize(objective, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B").x / scale
    beta[0] -= (beta[1:] * mean[1:]).sum()
    return np.asarray(beta)


def calibration(said: Array, right: Array, bins: int = 10) -> dict[str, float | None]:
    """Return the expected calibration error over equal bins, and how often answers of P >= 0.95 and 0.98 are right."""
    error = 0.0
    index = np.minimum((said * bins).astype(int), bins - 1)
    for i in range(bins):
        chosen = index == i
        if chosen.any():
            error += chosen.mean() * abs(said[chosen].mean() - right[chosen].mean())
    rates = {f"right_of_{p}": float(right[said >= p].mean()) if (said >= p).any() else None for p in (0.95, 0.98)}
    shares = {f"share_of_{p}": float((said >= p).mean()) for p in (0.95, 0.98)}
    return (
        {"runs": float(len(said)), "said": float(said.mean()), "right": float(right.mean()), "ece": error}
        | rates
        | shares
    )


def measure(records: list[dict[str, Any]], effort: str) -> dict[str, dict[str, float | None]]:
    """Return the calibration of the present coefficients, over all records and per range."""
    said = np.array([confidence(record["features"], effort) for record in records])
    right = np.array([float(record["error"] <= 1.0) for record in records])
    ranges = np.array([record["range_fwhm"] for record in records])
    table = {"all": calibration(said, right)}
    for value in np.unique(ranges):
        table[f"{value:g} FWHM"] = calibration(said[ranges == value], right[ranges == value])
    return table


def _fit_effort(data: Path, repeats: int, seed: int, effort: str) -> tuple[dict[str, float], dict[str, float | None]]:
    """Coefficients of one effort by name, and how well they fit what they were fitted to."""
    records = training_records(data, effort, repeats, seed)
    names, design = design_matrix([record["features"] for record in records])
    right = np.array([float(record["error"] <= 1.0) for record in records])
    beta = fit_logistic(design, right)
    coefficients = {name: round(float(value), 5) for name, value in zip(names, beta, strict=True)}
    return coefficients, calibration(1 / (1 + np.exp(-design @ beta)), right)


def main(arguments: list[str] | None = None) -> int:
    """Run the calibration from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the recordings")
    parser.add_argument("--check", action="store_true", help="measure on the held-out curves instead")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(arguments)
    efforts = ("fast", "safe")
    try:
        if options.check:
            for effort in efforts:
                held_out = training_records(options.data, effort, options.repeats, options.seed, "held-out", 0)
                print(json.dumps({effort: measure(held_out, effort)}, indent=1))
            return 0
        with ProcessPoolExecutor(len(efforts)) as pool:
            work = partial(_fit_effort, options.data, options.repeats, options.seed)
            fits = dict(zip(efforts, pool.map(work, efforts), strict=True))
    except FileNotFoundError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 2
    card = {
        "what": "logistic model of the confidence of the strategy 'sweep': probability within one depth of field",
        "command": "python -m mm_autofocus.benchmark.calibrate_confidence "
        f"--repeats {options.repeats} --seed {options.seed}",
        "trained_on": "even-numbered slide-scanner curves (hezhujun/autofocus-rnn, MIT) and made-up ones; windows that "
        "hold the focus, and some that just miss it",
        "fit": {effort: fit for effort, (_, fit) in fits.items()},
        "coefficients": {effort: coefficients for effort, (coefficients, _) in fits.items()},
    }
    path = Path(sweep_confidence.__file__).with_name(sweep_confidence.CARD)
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(card["fit"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
