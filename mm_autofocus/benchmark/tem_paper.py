"""Trains the networks of the aperture paper on the simulated datasets: figures 5 to 8 and A.23, tables 2 and 3."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.tem_data import Recorded, merged, series_of

Array = NDArray[np.float64]

ARCHITECTURES = (
    "fully_connected", "cnn", "dropout", "batch_norm", "more_convolutions", "fewer_convolutions", "more_dense",
    "fewer_dense", "tanh", "sigmoid", "leaky_relu", "final",
)  # fmt: skip
OPTIMISERS = (
    "cnn", "adam_0.01", "adam_0.0001", "adadelta", "adamax", "adagrad", "sgd", "nadam", "rmsprop", "ftrl"
)  # fmt: skip
OTHER_DAYS = ("14", "6")
"""Datasets of other nights than 10/13."""
PAPER: dict[str, dict[str, float]] = {
    "table2": {"14": 1.37, "13": 1.94, "10": 2.64, "6": 1.53, "10/13": 1.93, "10/13/14": 2.75, "10/13/14/6": 2.72},
    "table3": {"10/13": 2.15, "14": 0.51, "6": 2.90},
    "figure5": {"cnn": 2.5},
    "figure6": {"cnn 14": 2.2, "cnn 13": 2.7},
}
"""What the paper measured, RMSE in per cent of the 1000-unit range."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is trained.

    Attributes
    ----------
    px
        Edge of the images; 256 in the paper.
    epochs
        Of each training; 200 in the paper.
    repeats
        Trainings of each architecture and dataset; 30 and 20 in the paper. Optimisers and merged datasets are trained
        a third as often, at least once.
    points
        Share of the paper's numbers of series.
    variants
        The architectures to compare; None for all, the optimisers too.
    """

    px: int = 32
    epochs: int = 100
    repeats: int = 3
    points: float = 1.0
    variants: tuple[str, ...] | None = None
    threads: int = 1

    @property
    def fewer(self) -> int:
        """Repeats of what is trained less often."""
        return max(self.repeats // 3, 1)


@dataclass(frozen=True, slots=True)
class Training:
    """One training.

    Attributes
    ----------
    data
        Names of its datasets, "10/13".
    variant
        The network.
    repeat
        Which of several: seeds the split and the weights.
    count
        How many series to train on; 0 for four fifths of all.
    days
        Test it on the other days' datasets too (table 3, figure 11).
    """

    data: str
    variant: str
    repeat: int = 0
    count: int = 0
    days: bool = False


def trained(sets: dict[str, Recorded], training: Training, effort: Effort) -> dict[str, Any]:
    """Train once on 80 per cent (or ``count`` series of them) and test on the rest, and on other days."""
    from mm_autofocus.training.tem_training import rmse_percent, small_images, split, train

    names = tuple(training.data.split("/"))
    wanted = {*names, *(OTHER_DAYS if training.days else ())}
    small = {name: small_images(sets[name].data.images, effort.px) for name in sets if name in wanted}
    images, shifts = merged(sets, names, small)
    inside, outside = split(len(shifts), training.repeat)
    inside = inside[: training.count or None]
    outcome = train(
        images[inside], shifts[inside], training.variant, test=(images[outside], shifts[outside]),
        epochs=effort.epochs, seed=training.repeat, threads=effort.threads,
    )  # fmt: skip
    entry: dict[str, Any] = {
        "trained_on": len(inside), "rmse": round(outcome.rmse, 4), "training_rmse": round(outcome.training_rmse, 4),
        "curve": [round(v, 4) for v in outcome.curve], "seconds": round(outcome.seconds, 1),
    }  # fmt: skip
    for test in OTHER_DAYS if training.days else ():
        labels = sets[test].shifts
        errors = outcome.model.shifts(small[test]) - labels
        entry[f"rmse {test}"] = round(rmse_percent(errors), 4)
        entry[f"centred rmse {test}"] = round(rmse_percent(errors - errors.mean(0)), 4)
        entry[f"errors {test}"] = [[round(float(v), 2) for v in row] for row in errors]
        entry[f"shifts {test}"] = [[round(float(v), 2) for v in row] for row in labels]
    return entry


Figure = dict[str, list[Training]]


def trainings(effort: Effort) -> dict[str, Figure]:
    """Return the trainings of every figure and table, by its rows; some are in several."""
    chosen = effort.variants
    repeats, fewer = range(effort.repeats), range(effort.fewer)
    names = [v for v in ARCHITECTURES if chosen is None or v in chosen]
    total = sum(series_of(name, effort.points) for name in ("10", "13", "14"))
    counts = sorted({max(int(total * 0.8 * share), 4) for share in (0.1, 0.25, 0.5, 1.0)})
    return {
        "figure5": {v: [Training("14", v, r) for r in repeats] for v in names},
        "optimisers": {} if chosen is not None else {v: [Training("14", v, r) for r in fewer] for v in OPTIMISERS},
        "figure6": {f"{v} {n}": [Training(n, v, r) for r in repeats] for v in ("cnn", "final") for n in ("14", "13")},
        "table2": {n: [Training(n, "final", r) for r in (fewer if "/" in n else repeats)] for n in PAPER["table2"]},
        "figure8": {str(c): [Training("10/13/14", "final", r, c) for r in fewer] for c in counts},
        "table3": {"days": [Training("10/13", "final", days=True)]},
    }


def paper_tables(effort: Effort, done: Mapping[Training, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures and tables as numbers: RMSE in per cent of 1000 units, every training, and the medians.

    Parameters
    ----------
    done
        What `trained` returned, for all `trainings`.
    """
    figures = {
        figure: {row: [done[each]["rmse"] for each in several] for row, several in rows.items()}
        for figure, rows in trainings(effort).items() if figure != "table3"
    }  # fmt: skip
    days = done[Training("10/13", "final", days=True)]
    return {
        **figures,
        "table3": {
            "10/13": days["rmse"], "14": days["rmse 14"], "6": days["rmse 6"],
            "14 centred": days["centred rmse 14"], "6 centred": days["centred rmse 6"],
        },
        "figure11": {n: {"shifts": days[f"shifts {n}"], "errors": days[f"errors {n}"]} for n in OTHER_DAYS},
        "medians": {figure: _medians(rows) for figure, rows in figures.items()},
    }  # fmt: skip


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(each), 3) for name, each in values.items()}
