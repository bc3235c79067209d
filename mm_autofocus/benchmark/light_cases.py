"""The cases of ``bench light``: simulated plate fields, recorded z-stacks and recorded focus curves, read from files.

A file is TOML (or JSON of the same shape) with tables ``[[plate]]``, ``[[stack]]`` and ``[[curves]]``; each makes a
group of cases. `light_cases.toml` beside this module is the one that runs by default. To add a case of one's own, point
at a z-stack::

    [[stack]]
    name = "my cells"
    file = "cells.tif"          # beside this file; axes ZYX
    step_um = 0.5               # unless the TIFF says it itself
    focus_um = 12.5             # where an expert would focus; the measure's own peak when it is left out
    depth_of_field_um = 1.2
"""

from __future__ import annotations

import json
import tomllib
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mm_autofocus.benchmark.runner import Case, Method
from mm_autofocus.errors import SettingsError
from mm_autofocus.settings import validate
from mm_autofocus.simulation.optics import Family
from mm_autofocus.simulation.specimen import Kind

SHIPPED = Path(__file__).with_name("light_cases.toml")
FIRST_SEED = 7_400_000
"""No constant of a strategy was chosen on a plate with a seed from here on."""

Expected = Literal["focus", "nothing"]


class PlateCase(Case):
    """One field of a simulated plate; see `PlateGroup` for the physics.

    Attributes
    ----------
    seed
        Of the plate, the specimen and the noise.
    start_um
        Where the search starts, above the true focus.
    expected
        "nothing" where there is no focus to find in the window: saying so is the success.
    """

    kind: Literal["plate"] = "plate"
    start_um: float
    range_um: float
    expected: Expected = "focus"
    family: Family = "scalar"
    coverslip_error_um: float = 10.0
    specimen: Kind = "fluorescence"
    channel: str = "DAPI"
    exposure_ms: float = 20.0
    drift_um_per_h: float = 2.0
    blank: bool = False
    debris: bool = False
    depth_scale: float = 1.0


class StackCase(Case):
    """A window of a recorded z-stack.

    Attributes
    ----------
    low, high
        The window as fractions of the recording; moved so far that the focus lies well inside.
    focus_um
        The labelled focus; None: the peak of the measure on the noiseless planes, so that the search is judged.
    tolerance_um
        How far off the label itself may be; counts when it is more than half the depth of field.
    """

    kind: Literal["stack"] = "stack"
    file: str
    low: float
    high: float
    step_um: float | None = None
    positions: str | None = None
    focus_um: float | None = None
    tolerance_um: float | None = None
    depth_of_field_um: float | None = None
    measure: str = "laplacian_of_gaussian"


class CurveCase(Case):
    """A window of one of the slide scanner's recorded focus curves, in planes.

    Attributes
    ----------
    file
        The recorded curves.
    number
        The curve; odd ones are held out.
    measure
        Fine measure.
    range_fwhm
        Length of the window in widths of the peak.
    """

    kind: Literal["curve"] = "curve"
    file: str
    number: int
    measure: str
    range_fwhm: float


LightCase = PlateCase | StackCase | CurveCase


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    cases: int = Field(default=24, ge=1)
    quick: int = Field(default=3, ge=0)


class PlateGroup(_Group):
    """``[[plate]]``: fields of simulated plates under one kind of physics.

    Attributes
    ----------
    cases, quick
        How many fields, and how many with ``--quick``.
    range_um
        Length of the search, around the start.
    reach
        The starts lie within this fraction of half the range from the true focus, either side.
    miss_um
        Shortest and longest distance of the focus beyond the window, in place of ``reach``: there is nothing to find.
    family, coverslip_error_um
        How the blur is computed, and the spherical aberration; see `mm_autofocus.simulation.optics.Optics`.
    specimen, channel, exposure_ms, drift_um_per_h
        What is imaged, in which channel, how long (20 ms is the usual dose), and the drift.
    blank, debris
        An empty well; a well with dust above the cells.
    depth_scale
        The depth of field that the settings state, over the true one: a wrong calibration.
    """

    range_um: float = Field(default=60.0, gt=0)
    reach: float = Field(default=0.85, gt=0, le=1)
    miss_um: tuple[float, float] | None = None
    family: Family = "scalar"
    coverslip_error_um: float = 10.0
    specimen: Kind = "fluorescence"
    channel: str = "DAPI"
    exposure_ms: float = Field(default=20.0, gt=0)
    drift_um_per_h: float = 2.0
    blank: bool = False
    debris: bool = False
    depth_scale: float = Field(default=1.0, gt=0)

    def make(self, count: int, seed: int) -> list[LightCase]:
        """Draw the cases; the first ``count`` are the same whatever the count."""
        copied = {name: getattr(self, name) for name in PlateGroup.model_fields if name in PlateCase.model_fields}
        cases: list[LightCase] = []
        for number in range(count):
            rng = _generator(seed, self.name, number)
            sign = rng.choice([-1.0, 1.0])
            if self.miss_um is not None:
                start = sign * (self.range_um / 2 + rng.uniform(*self.miss_um))
            else:
                start = sign * rng.uniform(0.0, self.reach * self.range_um / 2)
            own = {
                "name": f"{self.name} {number + 1}",
                "group": self.name,
                "seed": FIRST_SEED + int(rng.integers(500_000)),
                "start_um": round(float(start), 3),
                "expected": "nothing" if self.blank or self.miss_um is not None else "focus",
            }
            cases.append(PlateCase.model_validate(copied | own))
        return cases


class StackGroup(_Group):
    """``[[stack]]``: windows of half to all of a recorded z-stack, each with the focus inside; see `StackCase`."""

    file: str
    step_um: float | None = Field(default=None, gt=0)
    positions: str | None = None
    focus_um: float | None = None
    tolerance_um: float | None = Field(default=None, gt=0)
    depth_of_field_um: float | None = Field(default=None, gt=0)
    measure: str = "laplacian_of_gaussian"
    group: str = ""

    def make(self, count: int, seed: int) -> list[LightCase]:
        """Draw the cases; where the focus lies in them is only known when the recording is opened."""
        fields = self.model_dump(exclude={"name", "cases", "quick", "group"})
        cases: list[LightCase] = []
        for number in range(count):
            rng = _generator(seed, self.name, number)
            width = rng.uniform(0.5, 1.0)
            low = rng.uniform(0.0, 1.0 - width)
            cases.append(
                StackCase(
                    **fields, name=f"{self.name} {number + 1}", group=self.group or self.name,
                    seed=int(rng.integers(2**31)), low=round(float(low), 4), high=round(float(low + width), 4),
                )
            )  # fmt: skip
        return cases


class CurvesGroup(_Group):
    """``[[curves]]``: the slide scanner's held-out focus curves; ``cases`` windows are spread over them."""

    file: str
    measures: tuple[str, ...] = ("brenner", "laplacian_of_gaussian")
    range_fwhm: float = Field(default=11.0, gt=0)

    def make(self, count: int, seed: int) -> list[LightCase]:
        """Take the odd curves in turn."""
        cases: list[LightCase] = []
        for number in range(count):
            rng = _generator(seed, self.name, number)
            cases.append(
                CurveCase(
                    name=f"{self.name} {number + 1}", group=self.name, seed=int(rng.integers(2**31)),
                    file=self.file, number=2 * (number % 25) + 1, measure=self.measures[number % len(self.measures)],
                    range_fwhm=self.range_fwhm,
                )
            )  # fmt: skip
        return cases


class CaseFile(BaseModel):
    """One file of cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plate: list[PlateGroup] = []
    stack: list[StackGroup] = []
    curves: list[CurvesGroup] = []


def read_cases(path: Path, *, data: Path | None = None, quick: bool = False, seed: int = 0) -> list[LightCase]:
    """Read a file of cases, or make a group of cases of one z-stack.

    Parameters
    ----------
    path
        ``.toml``, ``.json``, or a multi-page TIFF.
    data
        Folder of the real recordings, for groups whose file begins with ``data:``. Groups whose recording is absent
        are left out.
    quick
        The few cases that each group names for a quick run.
    seed
        Another seed draws other fields, starts and windows.

    Raises
    ------
    SettingsError
        When the file is absent or wrong; the message names the key.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        groups: list[PlateGroup | StackGroup | CurvesGroup] = [StackGroup(name=path.stem, file=path.name, cases=8)]
    else:
        found = _parse(path)
        groups = [*found.plate, *found.stack, *found.curves]
    cases: list[LightCase] = []
    for group in groups:
        group, present = _located(group, path.parent, data)
        count = min(group.quick, group.cases) if quick else group.cases
        if present:
            cases += group.make(count, seed)
    return cases


def absent_groups(path: Path, data: Path | None) -> list[str]:
    """Return the names of the groups whose recordings are not there."""
    if path.suffix.lower() in (".tif", ".tiff"):
        return []
    found = _parse(path)
    groups = [*found.plate, *found.stack, *found.curves]
    return [group.name for group in groups if not _located(group, path.parent, data)[1]]


DATA = "data:"
"""Begins a path below the folder of real recordings."""


def _located(group: Any, beside: Path, data: Path | None) -> tuple[Any, bool]:
    """Return the group with absolute paths, and whether its recording is there; a user's own must be."""
    for name in ("file", "positions"):
        value = getattr(group, name, None)
        if not value:
            continue
        optional = value.startswith(DATA)
        if optional and data is None:
            return group, False
        path = (data / value.removeprefix(DATA)) if optional and data is not None else (beside / value)
        if not path.exists():
            if optional:
                return group, False
            raise SettingsError(f"[[stack]] {group.name!r}: {name} {path} does not exist")
        group = group.model_copy(update={name: str(path.resolve())})
    return group, True


def _parse(path: Path) -> CaseFile:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the cases {path} cannot be read: {error}") from None
    except ValueError as error:
        raise SettingsError(f"the cases {path} are neither TOML nor JSON: {error}") from None
    return validate(CaseFile, data, str(path))


def _generator(seed: int, group: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(group.encode()), number])


class LightMethod(Method):
    """A search, with what it is told in depths of field, so that it can run on any case.

    Attributes
    ----------
    range_depths
        Length of its search; None: the whole range of the case.
    tolerance_depths
        Where it stops; None for a search that needs no tolerance.
    """

    range_depths: float | None = None
    tolerance_depths: float | None = None


def light_methods(*, quick: bool = False) -> list[LightMethod]:
    """Return what is compared: our searches, and the peers with their defaults and tuned."""
    brent = "oughtafocus-brent"
    methods = [
        LightMethod(name="sweep, fast", strategy="sweep"),
        LightMethod(name="sweep, safe", strategy="sweep", settings={"effort": "safe"}),
        LightMethod(name="full stack", strategy="full-stack"),
        # 10 µm and 1 µm, at the depth of field of a 20x/0.75
        LightMethod(name="OughtaFocus, default", strategy=brent, range_depths=8, tolerance_depths=0.8, peer=True),
        LightMethod(name="OughtaFocus, tuned", strategy=brent, tolerance_depths=0.25, peer=True),
        LightMethod(name="golden section", strategy="golden-section", tolerance_depths=0.25, peer=True),
        LightMethod(name="hill climb", strategy="hill-climb", tolerance_depths=0.25, peer=True),
    ]
    return [m for m in methods if not quick or m.name in ("sweep, fast", "full stack", "OughtaFocus, tuned")]
