"""The cases of `bench sem`: specimens, seeds, probe families and calibrations that no network was trained with.

Truth (`Column.truth`) puts a column where a case begins, and scores; the methods get frames and knobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration
from mm_autofocus.request import Limits
from mm_autofocus.simulation.electron_probe import ProbeFamily
from mm_autofocus.simulation.sem_column import SETUP_A, Column, ColumnSetup
from mm_autofocus.simulation.sem_specimen import Specimen, SpecimenKind
from mm_autofocus.strategy import Image

Vector = NDArray[np.float64]

UNSEEN = (
    SpecimenKind.TISSUE, SpecimenKind.WING, SpecimenKind.FABRIC, SpecimenKind.FIBRES, SpecimenKind.POWDER,
)  # fmt: skip
"""In turn; tissue with seeds that no training uses, the others are of kinds that no training uses."""
FAMILIES = (ProbeFamily.WAVE, ProbeFamily.POLYGON)
"""In turn; the networks are trained with round discs, mixed with Gaussians."""
FIRST_SEED = 70_000

HALF_STEP_UM = 5.0
PIXEL_NM = 10.0
FRAME = (1024, 768)
WD_DEPTH_UM, STIG_DEPTH = 2.0, 0.5
WIDE, NARROW = (20.0, 5.0), (20.0, 0.5)
"""Ranges of the starts: µm of working distance and a.u. of each stigmator."""
DEPTHS = {"z": WD_DEPTH_UM, "stig_x": STIG_DEPTH, "stig_y": STIG_DEPTH}
LIMITS = {"z": Limits(2000.0, 20000.0), "stig_x": Limits(-30.0, 30.0), "stig_y": Limits(-30.0, 30.0)}


@dataclass(frozen=True, slots=True)
class Case:
    """One start: a specimen of a seed, a place on it (µm), a probe family, and the aberration to begin with."""

    kind: SpecimenKind
    seed: int
    start: Aberration
    family: ProbeFamily
    place_um: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of an instrument.

    Attributes
    ----------
    electrons
        Detected of a pixel of yield 1, in one frame.
    angle
        Its true convergence angle over the one that everybody believes.
    setup
        The instrument; its probe family is the case's.
    """

    electrons: float = 20.0
    angle: float = 1.0
    setup: ColumnSetup = SETUP_A

    def calibration(self) -> ColumnCalibration:
        """Return what is believed of it: right but for the angle."""
        made = Column(self.setup, SpecimenKind.TIN, 0).calibration()
        return replace(made, convergence_mrad=self.setup.probe.convergence_mrad)


def cases(
    count: int, series: int, reach: tuple[float, float], *, at: tuple[float, float, float] | None = None,
    tissue: bool = False,
) -> list[Case]:  # fmt: skip
    """Return so many cases; the first n of a series are always the same.

    Parameters
    ----------
    count
        How many.
    series
        Cases of different series share no specimen.
    reach
        Half ranges of the starts, µm of working distance and a.u. of each stigmator; uniform.
    at
        A start for all instead, (µm, a.u., a.u.).
    tissue
        Only tissue.
    """
    rng = np.random.default_rng([0x5E3, series])
    made = []
    for i in range(count):
        drawn = rng.uniform(-1, 1, 3) * np.array([reach[0], reach[1], reach[1]])
        place = rng.uniform(-30, 30, 2)
        start = Aberration(*(float(v) for v in (drawn if at is None else at)))
        kind = SpecimenKind.TISSUE if tissue else UNSEEN[i % len(UNSEEN)]
        seed = FIRST_SEED + 1000 * series + i
        made.append(Case(kind, seed, start, FAMILIES[i % len(FAMILIES)], (float(place[0]), float(place[1]))))
    return made


def location_cases(count: int) -> list[Case]:
    """Return the places of figure 5: a grid of 80 µm on tissue, 8-12 µm, -4 to -2 and 2 to 4 a.u. off."""
    rng = np.random.default_rng(0x5E4)
    side = int(np.ceil(np.sqrt(count)))
    ticks = np.linspace(-40.0, 40.0, side) if side > 1 else np.zeros(1)
    places = [(float(x), float(y)) for y in ticks for x in ticks][:count]
    made = []
    for place in places:
        start = Aberration(float(rng.uniform(8, 12)), float(rng.uniform(-4, -2)), float(rng.uniform(2, 4)))
        made.append(Case(SpecimenKind.TISSUE, FIRST_SEED + 9000, start, ProbeFamily.WAVE, place))
    return made


def open_column(case: Case, conditions: Conditions, *, blank_fraction: float = 0.0) -> Column:
    """Return a column with the case's specimen, standing at its place and its start."""
    setup = conditions.setup
    probe = replace(
        setup.probe, family=case.family, seed=case.seed,
        convergence_mrad=setup.probe.convergence_mrad * conditions.angle,
    )  # fmt: skip
    setup = replace(setup, probe=probe, electrons_per_pixel=conditions.electrons)
    specimen = _specimen(case.kind, case.seed, blank_fraction)
    column = Column(setup, case.kind, case.seed, specimen=specimen)
    column.frame, column.pixel_nm, column.dwell_ns = FRAME, PIXEL_NM, 200.0
    column.x_um, column.y_um = case.place_um
    column.detune(case.start)
    return column


@lru_cache(maxsize=32)
def _specimen(kind: SpecimenKind, seed: int, blank_fraction: float) -> Specimen:
    """Return a specimen, kept with what has been drawn of it: all methods look at the same places."""
    return Specimen(kind, seed, blank_fraction)


def vessel_column(case: Case, conditions: Conditions) -> Column:
    """Return a column that stands where a blood vessel fills half to three quarters of the frame."""
    column = open_column(case, conditions, blank_fraction=0.3)
    width, height = FRAME
    for x, y in _spiral(case.place_um):
        empty = column.specimen.blank_map(x, y, PIXEL_NM * 8e-3, (height // 8, width // 8)).mean()
        if 0.5 <= empty <= 0.75:
            column.x_um, column.y_um = x, y
            column.detune(case.start)
            return column
    raise AssertionError(f"no vessel near {case.place_um} on specimen {case.seed}")


def take_pair(column: Column, half_step_um: float = HALF_STEP_UM) -> tuple[Image, Image, float]:
    """Scan under and over the present working distance and go back; return both frames and their distance in µm."""
    here = column.working_distance_um
    frames: list[Image] = []
    for side in (-half_step_um, half_step_um):
        column.working_distance_um = here + side
        frames.append(column.scan())
    column.working_distance_um = here
    return frames[0], frames[1], 2 * half_step_um


def knobs_of(column: Column) -> Vector:
    """Return (working distance µm, stig x, stig y), shape (3,)."""
    return np.array([column.working_distance_um, column.stig_x, column.stig_y])


def set_knobs(column: Column, knobs: Vector) -> None:
    """Turn the knobs; the column clamps them to its ranges."""
    column.working_distance_um, column.stig_x, column.stig_y = (float(v) for v in knobs)


def _spiral(centre: tuple[float, float], pitch_um: float = 2.0) -> Iterator[tuple[float, float]]:
    for k in range(4000):
        angle, radius = 2.4 * k, pitch_um * np.sqrt(k)
        yield centre[0] + radius * float(np.cos(angle)), centre[1] + radius * float(np.sin(angle))
