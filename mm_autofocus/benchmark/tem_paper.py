"""Trains the networks of the aperture paper on the simulated datasets: figures 5 to 8 and A.23, tables 2 and 3.

Every training is written to a file as soon as it is done, so that a table that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.tem_data import Recorded, merged

Array = NDArray[np.float64]
Say = Callable[[str], None]

ARCHITECTURES = (
    "fully_connected", "cnn", "dropout", "batch_norm", "more_convolutions", "fewer_convolutions", "more_dense",
    "fewer_dense", "tanh", "sigmoid", "leaky_relu", "final",
)  # fmt: skip
OPTIMISERS = (
    "cnn", "adam_0.01", "adam_0.0001", "adadelta", "adamax", "adagrad", "sgd", "nadam", "rmsprop", "ftrl"
)  # fmt: skip
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


class Trainings:
    """Trains, or looks up what was trained before.

    Parameters
    ----------
    path
        The file of finished trainings (JSON lines).
    """

    def __init__(self, path: Path, effort: Effort, say: Say) -> None:
        self._path, self._effort, self._say = path, effort, say
        self._done: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a line that was cut off when the table was interrupted
                self._done[entry["key"]] = entry

    def run(
        self, name: str, variant: str, images: Any, shifts: Array, repeat: int, *, count: int | None = None,
        tests: dict[str, tuple[Any, Array]] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Train once on 80 per cent (or ``count`` series of them) and test on the rest, and on ``tests``."""
        from mm_autofocus.training.tem_training import rmse_percent, split, train

        e = self._effort
        key = f"{name} {variant} px{e.px} epochs{e.epochs} points{e.points:g} n{count or 0} repeat{repeat}" + (
            " days" if tests else ""
        )
        if key not in self._done:
            inside, outside = split(len(shifts), repeat)
            inside = inside[:count]
            outcome = train(
                images[inside], shifts[inside], variant, test=(images[outside], shifts[outside]), epochs=e.epochs,
                seed=repeat, threads=e.threads,
            )  # fmt: skip
            entry: dict[str, Any] = {
                "key": key, "data": name, "variant": variant, "repeat": repeat, "trained_on": len(inside),
                "rmse": round(outcome.rmse, 4), "training_rmse": round(outcome.training_rmse, 4),
                "curve": [round(v, 4) for v in outcome.curve], "seconds": round(outcome.seconds, 1),
            }  # fmt: skip
            for test, (small, labels) in (tests or {}).items():
                errors = outcome.model.shifts(small) - labels
                entry[f"rmse {test}"] = round(rmse_percent(errors), 4)
                entry[f"centred rmse {test}"] = round(rmse_percent(errors - errors.mean(0)), 4)
                entry[f"errors {test}"] = [[round(float(v), 2) for v in row] for row in errors]
                entry[f"shifts {test}"] = [[round(float(v), 2) for v in row] for row in labels]
            self._done[key] = entry
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self._say(f"{key}: {outcome.rmse:.2f} % in {outcome.seconds:.0f} s")
        return self._done[key]


def paper_tables(sets: dict[str, Recorded], effort: Effort, folder: Path, say: Say) -> dict[str, Any]:
    """Return the figures and tables as numbers: RMSE in per cent of 1000 units, every training, and the medians."""
    from mm_autofocus.training.tem_training import small_images

    small = {name: small_images(each.data.images, effort.px) for name, each in sets.items()}
    trainings = Trainings(folder / "trainings.jsonl", effort, say)
    chosen = effort.variants
    repeats, fewer = range(effort.repeats), range(effort.fewer)

    def many(name: str, variant: str, times: range, count: int | None = None) -> list[float]:
        images, shifts = merged(sets, tuple(name.split("/")), small)
        return [trainings.run(name, variant, images, shifts, r, count=count)["rmse"] for r in times]

    names = [v for v in ARCHITECTURES if chosen is None or v in chosen]
    figure5 = {variant: many("14", variant, repeats) for variant in names}
    figure6 = {f"{v} {n}": many(n, v, repeats) for v in ("cnn", "final") for n in ("14", "13")}
    table2 = {n: many(n, "final", repeats if "/" not in n else fewer) for n in PAPER["table2"]}
    images, shifts = merged(sets, ("10", "13"), small)
    days = trainings.run(
        "10/13", "final", images, shifts, 0, tests={n: (small[n], sets[n].shifts) for n in ("14", "6")}
    )
    total = sum(len(sets[n].shifts) for n in ("10", "13", "14"))
    figure8 = {
        str(count): many("10/13/14", "final", fewer, count)
        for count in sorted({max(int(total * 0.8 * share), 4) for share in (0.1, 0.25, 0.5, 1.0)})
    }
    optimisers = {} if chosen is not None else {v: many("14", v, fewer) for v in OPTIMISERS}
    return {
        "figure5": figure5, "optimisers": optimisers, "figure6": figure6, "table2": table2, "figure8": figure8,
        "table3": {
            "10/13": days["rmse"], "14": days["rmse 14"], "6": days["rmse 6"],
            "14 centred": days["centred rmse 14"], "6 centred": days["centred rmse 6"],
        },
        "figure11": {n: {"shifts": days[f"shifts {n}"], "errors": days[f"errors {n}"]} for n in ("14", "6")},
        "medians": {
            "figure5": _medians(figure5), "optimisers": _medians(optimisers), "figure6": _medians(figure6),
            "table2": _medians(table2), "figure8": _medians(figure8),
        },
    }  # fmt: skip


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(each), 3) for name, each in values.items()}
