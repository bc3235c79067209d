"""Wobble series with known aperture shifts: the paper's spiral, acquired on a column or a microscope, kept on disk.

- ``<dataset>/dataset.json``: knobs, wobble, spiral, where "aligned" was;
- ``<dataset>/0000.tif`` and so on: the images of one wobble (TIFF, one page for each lens value), with the positions
  that were read back in its description.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mm_autofocus.errors import LimitError, SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.strategy import Image

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called after each series with (series done, series in all)."""


class Spiral(BaseModel):
    """Section 3.2 of the paper: shifts on a spiral, so that a slow drive moves little from one to the next.

    Attributes
    ----------
    points
        Number of shifts, the aligned position included.
    revolutions
        Turns of the spiral.
    reach
        Largest shift, in the drive's unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: int = Field(default=127, ge=3)
    revolutions: float = Field(default=6.0, gt=0)
    reach: float = Field(default=240.0, gt=0)

    def shifts(self) -> Array:
        """Return the shifts (x, y), shape (points, 2); the first is zero."""
        share = np.arange(self.points) / self.points
        phase = share * 2 * math.pi * self.revolutions
        return np.asarray(self.reach * share[:, None] * np.stack([np.cos(phase), np.sin(phase)], axis=1))

    @property
    def proximity(self) -> float:
        """Longest way between successive points, in the drive's unit."""
        return float(np.hypot(*np.diff(self.shifts(), axis=0).T).max())

    @property
    def coverage(self) -> float:
        """Radius of the largest gap: how far a place within the reach can be from the nearest point."""
        points = self.shifts()
        axis = np.linspace(-self.reach, self.reach, 61)
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        grid = grid[np.hypot(*grid.T) <= self.reach]
        return float(np.hypot(*(grid[:, None] - points[None]).transpose(2, 0, 1)).min(axis=1).max())


class WobbleCard(BaseModel):
    """What belongs to every series of a dataset.

    Attributes
    ----------
    spiral
        The shifts.
    aligned
        Position of the target knobs that an operator called aligned; the shifts count from there.
    knobs, wobble_knob
        The target knobs, and the wobbled one.
    wobble
        Amplitude as a fraction of the lens value.
    middle
        Lens value in the middle of the wobble.
    count
        Images of a wobble.
    about
        Microscope, day, aperture: for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spiral: Spiral
    aligned: tuple[float, float]
    knobs: tuple[str, str] = ("aperture_x", "aperture_y")
    wobble_knob: str = "c1"
    wobble: float = Field(default=0.03, gt=0, le=0.5)
    middle: float = 1.0
    count: int = Field(default=7, ge=3)
    about: dict[str, Any] = {}

    def lens(self) -> Array:
        """Return the lens values of a wobble, ascending."""
        return self.middle * (1 + np.linspace(-self.wobble, self.wobble, self.count))


@dataclass(frozen=True, slots=True)
class WobbleData:
    """Series in memory: images (series, frames, height, width), shifts (series, 2), lens values (series, frames)."""

    images: NDArray[np.generic]
    shifts: Array
    lens: Array
    card: WobbleCard

    def __len__(self) -> int:
        return len(self.shifts)


class Source(Protocol):
    """What a dataset is acquired from; each call waits until the instrument has settled."""

    def turn(self, targets: Mapping[str, float]) -> None:
        """Set knobs."""

    def where(self, knob: str) -> float:
        """Return where a knob stands."""

    def image(self) -> Image:
        """Take one image."""


class ColumnSource:
    """A simulated column, without Micro-Manager; waits ``settle_s`` of simulated time, as the paper waits 2 s."""

    def __init__(self, column: TemColumn, settle_s: float = 2.0) -> None:
        self._column, self._settle_s = column, settle_s

    def turn(self, targets: Mapping[str, float]) -> None:
        """Set knobs."""
        for name, value in targets.items():
            self._column.set(name, value)
        self._column.wait_aperture()
        self._column.wait(self._settle_s)

    def where(self, knob: str) -> float:
        """Return where a knob stands."""
        return self._column.get(knob)

    def image(self) -> Image:
        """Take one image."""
        return self._column.image()


class MicroscopeSource:
    """Any microscope; the knobs' own settle times hold."""

    def __init__(self, microscope: Microscope, camera: str | None = None, exposure_ms: float | None = None) -> None:
        self._microscope, self._camera, self._exposure_ms = microscope, camera, exposure_ms

    def turn(self, targets: Mapping[str, float]) -> None:
        """Set knobs."""
        for name, value in targets.items():
            self._microscope.knob(name).set(value)

    def where(self, knob: str) -> float:
        """Return where a knob stands."""
        return self._microscope.knob(knob).get()

    def image(self) -> Image:
        """Take one image."""
        return self._microscope.snap(camera=self._camera, exposure_ms=self._exposure_ms)[0]


@contextmanager
def _put_back(source: Source, knobs: tuple[str, ...]) -> Iterator[None]:
    before = {name: source.where(name) for name in knobs}
    try:
        yield
    finally:
        source.turn(before)


def acquire(
    source: Source, folder: Path, card: WobbleCard, *, limits: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Acquire a dataset, or go on with one that was interrupted; return the number of series taken now.

    The knobs go back to where they were, whatever happens.

    Raises
    ------
    LimitError
        When a shift lies outside the limits. Nothing has moved.
    SettingsError
        When the folder holds a dataset made in another way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.json"
    if path.exists() and _card(folder) != card:
        raise SettingsError(
            f"dataset {folder} was begun with other settings (spiral, wobble, knobs or aligned position); name another "
            "folder, or repeat the settings in its dataset.json"
        )
    positions = np.array(card.aligned) + card.spiral.shifts()
    for axis, name in enumerate(card.knobs):
        low, high = (limits or {}).get(name, (-math.inf, math.inf))
        if positions[:, axis].min() < low or positions[:, axis].max() > high:
            raise LimitError(
                f"the spiral takes {name} to [{positions[:, axis].min():.0f}, {positions[:, axis].max():.0f}], outside "
                f"its limits [{low:g}, {high:g}]; nothing has moved. Shorten its reach"
            )
    path.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    taken = 0
    with _put_back(source, (card.wobble_knob, *card.knobs)):
        for index, position in enumerate(positions):
            file = folder / f"{index:04d}.tif"
            if not file.exists():
                _one(source, file, card, position)
                taken += 1
            if progress is not None:
                progress(index + 1, len(positions))
    return taken


def _one(source: Source, file: Path, card: WobbleCard, position: Array) -> None:
    source.turn(dict(zip(card.knobs, (float(round(p)) for p in position), strict=True)))
    images = []
    for value in card.lens():
        source.turn({card.wobble_knob: float(value)})
        images.append(np.asarray(source.image()))
    about = {"position": [source.where(name) for name in card.knobs], "lens": [float(v) for v in card.lens()]}
    part = file.with_suffix(".part")
    tifffile.imwrite(part, np.stack(images), description=json.dumps(about), metadata=None)
    os.replace(part, file)


def _card(folder: Path) -> WobbleCard:
    try:
        return WobbleCard.model_validate_json((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise SettingsError(
            f"{folder} is no dataset of wobbles: {error}; make one with `mm-autofocus calibrate tem`"
        ) from error


def load(folder: Path) -> WobbleData:
    """Read a dataset, complete or not.

    Raises
    ------
    SettingsError
        When there is none, it holds fewer than three series, or a file cannot be read.
    """
    card = _card(folder)
    images, shifts, lens = [], [], []
    for file in sorted(folder.glob("[0-9][0-9][0-9][0-9].tif")):
        try:
            with tifffile.TiffFile(file) as tiff:
                about = json.loads(tiff.pages.first.description)
                images.append(tiff.asarray())
            shifts.append(np.array(about["position"], float) - np.array(card.aligned))
            lens.append(about["lens"])
        except (OSError, ValueError, KeyError, tifffile.TiffFileError) as error:
            raise SettingsError(f"{file} cannot be read: {error}; delete it and acquire again") from error
    if len(images) < 3:
        raise SettingsError(f"dataset {folder} holds {len(images)} series; at least 3 are needed")
    return WobbleData(np.stack(images), np.array(shifts), np.array(lens, float), card)


def simulate(column: TemColumn, card: WobbleCard) -> WobbleData:
    """Acquire a dataset on a simulated column into memory; the column ends as it was."""
    source = ColumnSource(column)
    images, shifts = [], []
    with _put_back(source, (card.wobble_knob, *card.knobs)):
        for position in np.array(card.aligned) + card.spiral.shifts():
            source.turn(dict(zip(card.knobs, (float(round(p)) for p in position), strict=True)))
            series = []
            for value in card.lens():
                source.turn({card.wobble_knob: float(value)})
                series.append(np.asarray(source.image()))
            images.append(np.stack(series))
            at = np.array([source.where(name) for name in card.knobs])
            shifts.append(at - np.array(card.aligned))
    lens = np.tile(card.lens(), (len(images), 1))
    return WobbleData(np.stack(images), np.array(shifts), lens, card)
