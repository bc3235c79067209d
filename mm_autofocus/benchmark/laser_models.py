"""The images of `bench laser`, and the readouts that are trained on them, each kept in a file and used again.

The tested instrument, its window and its days are of no training set. Every draw has a seed of its own, so that a
readout does not depend on what was measured before it.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.readouts import Card, LaserModel, load_model
from mm_autofocus.readouts.features import of_images
from mm_autofocus.readouts.lookup import LookupReadout
from mm_autofocus.readouts.paper import rescale
from mm_autofocus.readouts.profile import ProfileReadout
from mm_autofocus.readouts.reading import Readout
from mm_autofocus.simulation.laser_day import Family, LaserDay, instrument, make_day
from mm_autofocus.simulation.laser_spot import LaserSpot
from mm_autofocus.training.laser import adapt
from mm_autofocus.training.laser_paper import fit_paper
from mm_autofocus.training.laser_synthetic import RANGES, Frames, synthetic_frames

Array = NDArray[np.float64]

UNIT, WINDOW, FIRST_DAY = 77_000_001, 777, 9000
"""The tested instrument, its camera window, and its first day; no training set uses these seeds."""
SHAPE = (192, 192)
METHODS = {"paper": "(a) paper", "lookup": "(b) look-up table", "ours": "(c) ours"}
TRAINED = ("1 day", "10 days")
KINDS = ("long", "short")
PAPER_SHARE = {"1 day": 0.15, "10 days": 0.35}
"""Of the paper's training time, for the network of each range."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is recorded and trained.

    Attributes
    ----------
    quick
        A few per cent of the images and of the training.
    paper_seconds
        Time for training the paper's networks, all together (3 h each on a GPU in the paper).
    """

    quick: bool = False
    paper_seconds: float = 480.0


@dataclass
class Recording:
    """Labelled images of one range: defocus, 96 x 96 images, features, and the stack's and the day's number."""

    defocus: Array
    small: NDArray[np.float32]
    features: NDArray[np.float32]
    stack: NDArray[np.int64]
    day: NDArray[np.int64]
    sweep: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    """The images of the first stack, for the look-up table."""

    def frames(self) -> Frames:
        """Our training set."""
        return Frames(self.defocus, self.features, self.day)


@lru_cache(maxsize=1)
def days() -> list[LaserDay]:
    """Return 15 days of the tested instrument: ten to train on, the last of which is "1 day", and five after them."""
    unit = instrument(UNIT)
    return [make_day(unit, FIRST_DAY + i, Family.HELD_OUT) for i in range(15)]


def knocked_day() -> LaserDay:
    """Return a day on which the instrument was knocked: three times its drift."""
    return make_day(instrument(UNIT), FIRST_DAY + 50, Family.HELD_OUT, scale=3.0)


def next_days(quick: bool) -> list[LaserDay]:
    """Return the days that are tested on."""
    return days()[10:12] if quick else days()[10:]


@lru_cache(maxsize=1)
def spot() -> LaserSpot:
    """Return the tested instrument's optics."""
    return LaserSpot(seed=WINDOW)


def rng_of(name: str) -> np.random.Generator:
    """Return the generator of one thing that is drawn, by its name."""
    return np.random.default_rng([2024, zlib.crc32(name.encode())])


def record(name: str, over: Sequence[LaserDay], kind: str, hours: tuple[float, ...], planes: int) -> Recording:
    """Record stacks at these hours of these days; ``name`` seeds their noise."""
    rng = rng_of(f"{name}, {kind}")
    z = np.linspace(-1, 1, planes) * RANGES[kind]
    small, features = [], []
    stacks: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    first: NDArray[np.uint16] | None = None
    for number, day in enumerate(over):
        for hour in hours:
            images = spot().images(z, day.state(hour), rng)
            first = images if first is None else first
            small.append(np.stack([rescale(image) for image in images]))
            features.append(of_images(images))
            stacks.append(np.full(planes, len(stacks)))
            numbers.append(np.full(planes, number))
    assert first is not None
    return Recording(
        np.tile(z, len(small)), np.concatenate(small), np.concatenate(features), np.concatenate(stacks),
        np.concatenate(numbers), first,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _training(trained: str, kind: str, quick: bool) -> Recording:
    planes = 41 if quick else 101
    if trained == "1 day":
        return record(trained, [days()[9]], kind, tuple(np.linspace(0, 4, 3 if quick else 10)), planes)
    return record(trained, days()[:10], kind, (0.0, 4.0) if quick else (0.0, 1.3, 2.7, 4.0), planes)


@lru_cache(maxsize=1)
def _synthetic(kind: str, quick: bool) -> Frames:
    return synthetic_frames(kind, 60 if quick else 800, 24, seed=11)


# ---------------------------------------------------------------------- readouts
def readout(folder: Path, method: str, trained: str, kind: str, effort: Effort) -> Readout:
    """Return a readout; it is trained when the folder does not hold it yet.

    Parameters
    ----------
    folder
        Where trained readouts are kept.
    method, trained, kind
        Of `METHODS`, `TRAINED` and `KINDS`.
    """
    seconds = effort.paper_seconds if method == "paper" else 0.0
    return _kept(folder, method, trained, kind, Effort(effort.quick, seconds))


@lru_cache(maxsize=12)
def _kept(folder: Path, method: str, trained: str, kind: str, effort: Effort) -> Readout:
    much = ("_quick" if effort.quick else "") + (f"_{effort.paper_seconds:.0f}s" if method == "paper" else "")
    path = folder / f"{method}_{trained.replace(' ', '')}_{kind}{much}.json"
    if not path.exists():
        _save(_train(method, trained, kind, effort), method, kind, path)
    model = load_model(path)
    return model.coarse


def _save(made: Readout, method: str, kind: str, path: Path) -> None:
    """Write a readout so that it is there wholly or not at all: its card comes last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    long, short = (made, None) if kind == "long" else (None, made)
    card = Card(
        readout="profile" if method == "ours" else method,  # type: ignore[arg-type]
        objective=load_model().card.objective, shape=SHAPE, long_um=long.range_um if long else None,
        short_um=short.range_um if short else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        written = LaserModel(card, long, short).save(Path(scratch) / path.name)
        for file in sorted(Path(scratch).iterdir(), key=lambda each: each == written):
            os.replace(file, path.parent / file.name)


def _train(method: str, trained: str, kind: str, effort: Effort) -> Readout:
    if method == "lookup":
        z = np.linspace(-1, 1, 201) * RANGES[kind]
        over = [days()[9]] if trained == "1 day" else days()[:10]
        tables = [record(f"sweep {i}", [day], kind, (0.0,), 201).sweep for i, day in enumerate(over)]
        return LookupReadout.fit(np.concatenate(tables), np.tile(z, len(tables)), RANGES[kind])
    own = _training(trained, kind, effort.quick)
    if method == "paper":
        # the paper's learning rate of 1e-4 needs hours
        return fit_paper(
            own.small, own.defocus, own.stack, RANGES[kind], SHAPE, learning_rate=1e-3,
            seconds=PAPER_SHARE[trained] * effort.paper_seconds,
        )  # fmt: skip
    shipped = load_model()
    base = shipped.long if kind == "long" else shipped.short
    assert isinstance(base, ProfileReadout)
    return adapt(base, own.frames(), _synthetic(kind, effort.quick), epochs=4 if effort.quick else 15)
