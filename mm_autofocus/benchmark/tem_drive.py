"""Drives a strategy on the simulated column alone, without Micro-Manager: for the tables, where time is simulated."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mm_autofocus.errors import LimitError
from mm_autofocus.request import Budget, Event, FocusRequest, Limits
from mm_autofocus.simulation.tem_column import RANGES, TemColumn
from mm_autofocus.strategy import Frame, Strategy, Verdict

SETTLE_S = 2.0
"""Wait after a change, as in the paper."""
KNOBS = ("aperture_x", "aperture_y", "c1", "beam_shift_x", "beam_shift_y")
WINDOW = Limits(-1000.0, 1000.0)
DEPTH_STEPS = 10.0
"""Full width within which the aperture counts as centred: +-0.5 % of the 1000-unit range."""


@dataclass
class Drive:
    """The outcome of one run on the column.

    Attributes
    ----------
    verdict
        What the strategy answered.
    path
        Aperture position after each look.
    frames
        Every frame, where they were asked for.
    compute_seconds, instrument_seconds
        The processor's time in the strategy, and time on the column's clock.
    """

    verdict: Verdict
    path: list[tuple[float, float]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    compute_seconds: float = 0.0
    instrument_seconds: float = 0.0


def request_for(column: TemColumn, **changes: Any) -> FocusRequest:
    """Return the request that a run on this column would get; ``changes`` replace its fields."""
    limits = {name: WINDOW if name.startswith("aperture") else Limits(*RANGES[name]) for name in KNOBS}
    depths = dict.fromkeys(("aperture_x", "aperture_y"), DEPTH_STEPS)
    depths |= {"c1": 0.002, "beam_shift_x": 0.2, "beam_shift_y": 0.2}
    values: dict[str, Any] = {
        "event": Event(), "start": {name: column.get(name) for name in KNOBS}, "limits": limits, "knob": "aperture_x",
        "budget": Budget(images=300, seconds=None), "depths": depths,
    }  # fmt: skip
    return FocusRequest(**{**values, **changes})


def turn(column: TemColumn, targets: Mapping[str, float]) -> None:
    """Set knobs and let the column settle."""
    for name, value in targets.items():
        column.set(name, value)
    column.wait_aperture()
    if targets:
        column.wait(SETTLE_S)


def drive(strategy: Strategy, column: TemColumn, *, keep: bool = False, **changes: Any) -> Drive:
    """Run the strategy; the column ends where the verdict says, everything else where it was.

    Raises
    ------
    LimitError
        When the strategy asks for a value outside the request's limits.
    """
    request = request_for(column, **changes)
    generator = strategy.focus(request)
    path: list[tuple[float, float]] = []
    frames: list[Frame] = []
    spent, clock = 0.0, column.clock_s
    began = time.process_time()
    try:
        look = next(generator)
        while True:
            spent += time.process_time() - began
            for name, value in look.targets.items():
                if value not in request.limits[name]:
                    raise LimitError(f"{name} = {value:g} is outside its limits")
            turn(column, look.targets)
            image = column.image()
            frame = Frame(image, {name: column.get(name) for name in KNOBS}, seconds=column.clock_s)
            path.append((column.get("aperture_x"), column.get("aperture_y")))
            if keep:
                frames.append(frame)
            began = time.process_time()
            look = generator.send(frame)
    except StopIteration as stop:
        spent += time.process_time() - began
        verdict: Verdict = stop.value
    turn(column, {**request.start, **verdict.target})
    return Drive(verdict, path, frames, spent, column.clock_s - clock)
