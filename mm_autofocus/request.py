"""What an acquisition asks of the autofocus: the event it stands at, where it starts, and what it may spend."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

AxisValue = int | str
"""An index along an axis; pycro-manager also allows names ("A1")."""


class Key(NamedTuple):
    """The place and time that one focus correction belongs to."""

    time: Hashable
    position: Hashable
    grid: Hashable


_WELL = re.compile(r"^((?:A[A-F]|[A-Z])\d{1,2})(?![0-9])")
"""A1 to AF48: the wells of plates up to 1536."""


@dataclass(frozen=True, slots=True)
class Event:
    """One acquisition event, whoever sent it (pycro-manager, useq, Micro-Manager's AutoFocus device, a script).

    Attributes
    ----------
    axes
        Index along each axis, for instance ``{"time": 0, "position": 3, "grid": 0, "z": 1, "channel": "DAPI"}``.
    label
        Name of the position ("A1_0000"), or None.
    x, y, z
        Nominal stage coordinates in µm, None where the plan does not set them.
    channel
        Name of the channel preset, or None.
    exposure_ms
        Exposure in ms, or None.
    """

    axes: Mapping[str, AxisValue] = field(default_factory=dict)
    label: str | None = None
    x: float | None = None
    y: float | None = None
    z: float | None = None
    channel: str | None = None
    exposure_ms: float | None = None

    @property
    def key(self) -> Key:
        """Place and time of this event, whatever its slice and channel; tiles have a grid index, or row and column."""
        get = self.axes.get
        grid: Hashable = get("grid", 0)
        if "row" in self.axes or "column" in self.axes:
            grid = grid, get("row", 0), get("column", 0)
        return Key(get("time", 0), get("position", 0), grid)

    @property
    def name(self) -> str:
        """What to call this place in a message: its label, its well, its axes."""
        return self.label or self.well or (str(dict(self.axes)) if self.axes else "this position")

    @property
    def well(self) -> str | None:
        """Name of the well ("B7") when the label or the position axis begins with one, else None."""
        well = self.axes.get("well")
        if well is not None:
            return str(well)
        for text in (self.label, self.axes.get("position")):
            if isinstance(text, str) and (match := _WELL.match(text)):
                return match.group(1)
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """The closed interval that a knob may never leave."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return bool(self.low <= value <= self.high)  # False for NaN

    def clip(self, value: float) -> float:
        """Return the nearest allowed value; NaN stays NaN, for the knob to refuse."""
        return min(max(value, self.low), self.high) if value == value else value

    @property
    def width(self) -> float:
        """Length of the interval."""
        return self.high - self.low

    def intersect(self, other: Limits) -> Limits:
        """Return the part that both allow (empty, low > high, when there is none)."""
        return Limits(max(self.low, other.low), min(self.high, other.high))


@dataclass(frozen=True, slots=True)
class Prior:
    """Where the focus map expects the focal plane: mean and standard deviation, both in µm."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Budget:
    """What one focus run may spend; None means no limit.

    ``images`` counts the verifying frame too. ``dose`` is in the microscope's dose unit (ms of light by default).
    """

    images: int | None = 60
    seconds: float | None = 60.0
    dose: float | None = None


@dataclass(frozen=True, slots=True)
class FocusRequest:
    """Everything a strategy may know before it looks.

    Attributes
    ----------
    event
        The acquisition event.
    start
        Value of every knob the strategy may turn, by name ("z"), in the knob's unit.
    limits
        Absolute limits of each of those knobs. A Look outside them is refused, so strategies clip to them.
    knob
        The knob to focus with.
    prior
        Where the focus map expects the focal plane, or None.
    window
        The interval of ``knob`` to search, already inside the limits. None: the strategy's own range setting
        around the start.
    budget
        What the run may spend.
    depth_of_field_um
        The microscope's depth of field; in focus means within half of it.
    depths
        The same for each knob that has a depth of its own, in its unit; see `depth`.
    pixel_um
        Size of one pixel in the specimen, or None when Micro-Manager has no calibration.
    attempt
        0 for the first try; the failure policies count up.
    seed
        For strategies that draw random numbers.
    extra
        Whatever a plugin wants to hand to its own strategy.
    """

    event: Event
    start: Mapping[str, float]
    limits: Mapping[str, Limits]
    knob: str = "z"
    prior: Prior | None = None
    window: Limits | None = None
    budget: Budget = Budget()
    depth_of_field_um: float = 1.0
    depths: Mapping[str, float] = field(default_factory=dict)
    pixel_um: float | None = None
    attempt: int = 0
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def depth(self, knob: str) -> float:
        """Full width, in the knob's unit, within which the image counts as in focus."""
        return self.depths.get(knob, self.depth_of_field_um)

    def search_window(self, range_um: float) -> Limits:
        """Return the interval to search, inside the limits.

        It is ``window`` when the request has one. Else it is ``range_um`` around the start; or, with a prior, 4.5 SD on
        either side of its mean (at least 5 depths of field, at most ``range_um`` unless 3 SD reach further).
        """
        limits = self.limits[self.knob]
        if self.window is not None:
            return self.window.intersect(limits)
        centre, half = self.start[self.knob], range_um / 2
        if self.prior is not None:
            sd = self.prior.sd
            centre = self.prior.mean
            half = max(min(max(4.5 * sd, 5.0 * self.depth_of_field_um), half), 3.0 * sd)
        centre = limits.clip(centre)
        return Limits(centre - half, centre + half).intersect(limits)
