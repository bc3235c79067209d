"""Where the focal plane lies: the height of a multiwell plate's bottom over x and y, and how it drifts with time.

The centre of well A1 is the origin; columns run along +x and rows along -y, as in useq-schema's plates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

_ROWS = (*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "AA", "AB", "AC", "AD", "AE", "AF")
"""Names of the rows of a 1536-well plate; smaller plates use the first of them."""


@dataclass(frozen=True, slots=True)
class PlateFormat:
    """Rows, columns, distance between wells and size of a well (µm), and whether wells are round."""

    rows: int
    columns: int
    pitch_um: float
    well_um: float
    round_wells: bool = True


PLATE_FORMATS = MappingProxyType(
    {
        "6": PlateFormat(2, 3, 39_120.0, 34_800.0),
        "24": PlateFormat(4, 6, 19_300.0, 15_600.0),
        "96": PlateFormat(8, 12, 9_000.0, 6_400.0),
        "384": PlateFormat(16, 24, 4_500.0, 3_400.0, round_wells=False),
        "1536": PlateFormat(32, 48, 2_250.0, 1_500.0, round_wells=False),
    }
)
"""Plates by their number of wells (ANSI/SLAS 4-2004 spacing for 96, 384 and 1536)."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How the focal plane wanders as the instrument warms up.

    Attributes
    ----------
    rate_um_per_h
        Steady drift.
    warmup_um, warmup_h
        Size and time constant of the exponential warm-up.
    walk_um_per_sqrt_h
        Standard deviation of the random walk after one hour.
    """

    rate_um_per_h: float = 0.0
    warmup_um: float = 0.0
    warmup_h: float = 0.75
    walk_um_per_sqrt_h: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup_h > 0:
            raise ValueError(f"warmup_h={self.warmup_h} must be above 0.")
        if not self.walk_um_per_sqrt_h >= 0:
            raise ValueError(f"walk_um_per_sqrt_h={self.walk_um_per_sqrt_h} must not be negative.")

    @classmethod
    def of_rate(cls, um_per_h: float) -> Drift:
        """Return a typical drift: this steady rate, a warm-up of the same size, and a random walk a tenth of it."""
        return cls(rate_um_per_h=um_per_h, warmup_um=um_per_h, walk_um_per_sqrt_h=abs(um_per_h) / 10)


class Plate:
    """A multiwell plate with an uneven bottom.

    Parameters
    ----------
    wells
        Number of wells: "6", "24", "96", "384" or "1536".
    height_span_um
        Highest minus lowest focal plane over all wells at time 0, µm (250 is ±125).
    height_um
        Middle of that span, in stage coordinates, µm.
    drift
        Change with time.
    blank_wells
        Names of the wells that hold no specimen.
    seed
        Fixes tilt, bow, well-to-well steps, roughness and random walk.

    Raises
    ------
    ValueError
        For an unknown plate or well, or a negative span.
    """

    _STEP_SHARE = 0.06  # well-to-well steps and roughness, as a share of the span ...
    _STEP_MAX_UM = 3.0  # ... but not more than real plates have
    _ROUGHNESS_SHARE = 0.03
    _ROUGHNESS_MAX_UM = 1.5
    _WALK_STEP_S = 60.0

    def __init__(
        self,
        wells: str = "96",
        height_span_um: float = 100.0,
        height_um: float = 0.0,
        drift: Drift | None = None,
        blank_wells: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        if wells not in PLATE_FORMATS:
            raise ValueError(f"There is no plate of {wells!r} wells; choose one of {', '.join(PLATE_FORMATS)}.")
        if not 0 <= height_span_um < np.inf:
            raise ValueError(f"height_span_um={height_span_um} must be a finite number, 0 or more.")
        self.format = PLATE_FORMATS[wells]
        self.height_span_um = float(height_span_um)
        self.height_um = float(height_um)
        self.drift = drift or Drift()
        self.seed = int(seed)
        self.blank_wells = frozenset(self._checked(name) for name in blank_wells)

        rng = np.random.default_rng([self.seed, 1])
        angle = rng.uniform(0, 2 * np.pi)
        self._tilt = np.array([np.cos(angle), np.sin(angle)])
        self._bow = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)
        self._bow_centre = rng.uniform(-0.2, 0.2, 2)
        shape = (self.format.rows, self.format.columns)
        step = min(self._STEP_SHARE * height_span_um, self._STEP_MAX_UM)
        self._steps = np.clip(rng.normal(0, step / 2, shape), -step, step)
        wave_um = rng.uniform(600.0, 2500.0, 6)
        direction = rng.uniform(0, 2 * np.pi, 6)
        self._waves = 2 * np.pi / wave_um * np.stack([np.cos(direction), np.sin(direction)])
        self._wave_phase = rng.uniform(0, 2 * np.pi, 6)
        self._roughness = min(self._ROUGHNESS_SHARE * height_span_um, self._ROUGHNESS_MAX_UM) / np.sqrt(6)
        self._walk = [0.0]
        self._walk_rng = np.random.default_rng([self.seed, 2])

    # -- wells ---------------------------------------------------------------------------------------------------

    def _checked(self, name: str) -> str:
        self._indices(name)
        return name.strip().upper()

    def _indices(self, name: str) -> tuple[int, int]:
        text = name.strip().upper()
        letters = text.rstrip("0123456789")
        row, column = (_ROWS.index(letters) if letters in _ROWS else -1), text[len(letters) :]
        if not text or row not in range(self.format.rows) or not column.isdecimal():
            known = False
        else:
            known = 1 <= int(column) <= self.format.columns
        if not known:
            last = f"{_ROWS[self.format.rows - 1]}{self.format.columns}"
            raise ValueError(f"The plate has no well {name!r}; its wells are A1 to {last}.")
        return row, int(column) - 1

    def well_names(self) -> list[str]:
        """Return the names of all wells, row by row."""
        return [f"{_ROWS[r]}{c + 1}" for r in range(self.format.rows) for c in range(self.format.columns)]

    def well_centre(self, name: str) -> tuple[float, float]:
        """Return (x, y) of a well's centre, µm.

        Raises
        ------
        ValueError
            When the plate has no such well.
        """
        row, column = self._indices(name)
        return column * self.format.pitch_um, 0.0 - row * self.format.pitch_um

    def _nearest(self, x: float, y: float) -> tuple[int, int]:
        column = int(np.clip(round(x / self.format.pitch_um), 0, self.format.columns - 1))
        row = int(np.clip(round(-y / self.format.pitch_um), 0, self.format.rows - 1))
        return row, column

    def well_at(self, x: float, y: float) -> str | None:
        """Return the name of the well that holds (x, y), or None on the plastic between wells."""
        row, column = self._nearest(x, y)
        dx, dy = x - column * self.format.pitch_um, y + row * self.format.pitch_um
        half = self.format.well_um / 2
        inside = np.hypot(dx, dy) <= half if self.format.round_wells else max(abs(dx), abs(dy)) <= half
        return f"{_ROWS[row]}{column + 1}" if inside else None

    def holds_specimen(self, x: float, y: float) -> bool:
        """Return True where specimens may grow: in a well that is not blank."""
        well = self.well_at(x, y)
        return well is not None and well not in self.blank_wells

    # -- height --------------------------------------------------------------------------------------------------

    def _shape(self, x: float, y: float) -> float:
        """Tilt and bow, in units that `_scale` turns into µm."""
        half_x = self.format.pitch_um * (self.format.columns - 1) / 2
        half_y = self.format.pitch_um * (self.format.rows - 1) / 2
        u = np.array([x / half_x - 1, (y / half_y + 1) * half_y / half_x])
        return float(self._tilt @ u - self._bow * np.sum((u - self._bow_centre) ** 2))

    def _details(self, x: float, y: float) -> float:
        """Well-to-well step and roughness, µm."""
        waves = np.sin(self._waves.T @ np.array([x, y]) + self._wave_phase)
        return float(self._steps[self._nearest(x, y)] + self._roughness * waves.sum())

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """(factor, offset) of the smooth shape that gives the whole surface its span and its middle."""
        points = []
        half = self.format.well_um / 2 * 0.7
        for name in self.well_names():
            cx, cy = self.well_centre(name)
            points += [(cx, cy), *((cx + i * half, cy + j * half) for i in (-1, 1) for j in (-1, 1))]
        shape = np.array([self._shape(*p) for p in points])
        details = np.array([self._details(*p) for p in points])
        factor = self.height_span_um / np.ptp(shape)
        for _ in range(30):  # the span depends on the factor almost linearly
            factor *= self.height_span_um / max(np.ptp(factor * shape + details), 1e-12)
        surface = factor * shape + details
        return float(factor), float(self.height_um - (surface.max() + surface.min()) / 2)

    def height_at(self, x: float, y: float) -> float:
        """Return the height of the focal plane at time 0, µm in stage coordinates."""
        factor, offset = self._scale
        return factor * self._shape(x, y) + self._details(x, y) + offset

    def drift_at(self, seconds: float) -> float:
        """Return how far the focal plane has drifted since time 0, µm.

        Raises
        ------
        ValueError
            For a time before 0.
        """
        if not 0 <= seconds < np.inf:
            raise ValueError(f"The drift is defined from time 0 on, not at {seconds} s.")
        hours = seconds / 3600
        d = self.drift
        steady = d.rate_um_per_h * hours + d.warmup_um * (1 - np.exp(-hours / d.warmup_h))
        return float(steady + (self._walk_at(seconds) if d.walk_um_per_sqrt_h else 0.0))

    def _walk_at(self, seconds: float) -> float:
        place = seconds / self._WALK_STEP_S
        i = int(place)
        scale = self.drift.walk_um_per_sqrt_h * np.sqrt(self._WALK_STEP_S / 3600)
        while len(self._walk) < i + 2:
            self._walk.append(self._walk[-1] + scale * float(self._walk_rng.standard_normal()))
        return self._walk[i] + (place - i) * (self._walk[i + 1] - self._walk[i])

    def focus_um(self, x: float, y: float, seconds: float = 0.0) -> float:
        """Return the height of the focal plane at (x, y) and time, µm in stage coordinates."""
        return self.height_at(x, y) + self.drift_at(seconds)
