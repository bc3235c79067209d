"""What alignments share: looking while remembering where the knobs are, a spiral, and the odds of being aligned."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mm_autofocus.errors import StrategyError
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategy import Frame, Look, Verdict

Array = NDArray[np.float64]
Looking = Generator[Look, Frame, Frame]

TAILS = 1.5
"""Errors of an estimate are wider than their formal covariance by this factor (measured on the simulated column)."""


class Stop(Exception):
    """Ends an alignment early."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Walk:
    """One run: where the knobs were sent, and what it may do.

    A knob is named in a Look only when it has to move, since every move waits for the knob to settle.

    Raises
    ------
    StrategyError
        When the request lacks one of the knobs.
    """

    def __init__(self, name: str, request: FocusRequest, knobs: tuple[str, ...], imaging: Mapping[str, Any]) -> None:
        missing = [knob for knob in knobs if knob not in request.start]
        if missing:
            raise StrategyError(
                f"strategy {name!r} turns the knobs {', '.join(knobs)}, but [knobs] has no {', '.join(missing)}; add "
                f"[knobs.{missing[0]}] with its device, axis and limits"
            )
        self.request = request
        self.at: dict[str, float] = {knob: float(request.start[knob]) for knob in knobs}
        self.images = 0
        self._imaging = imaging

    def look(self, targets: Mapping[str, float]) -> Looking:
        """Go to these values and return the frame; values beyond the limits are clipped to them."""
        moves = {}
        for name, value in targets.items():
            value = self.clip(name, float(value))
            if value != self.at[name]:
                moves[name] = value
        frame = yield Look(moves, **self._imaging)
        self.at |= moves
        self.images += 1
        return frame

    def clip(self, name: str, value: float) -> float:
        """Return the nearest value that the knob may take."""
        return self.request.limits[name].clip(value)

    def position(self, knobs: tuple[str, str]) -> Array:
        """Where two knobs were sent, shape (2,)."""
        return np.array([self.at[knobs[0]], self.at[knobs[1]]])

    def images_left(self) -> float:
        """Images that the budget still allows, two kept back for the verification."""
        budget = self.request.budget.images
        return math.inf if budget is None else budget - self.images - 2


def chance_inside(offset: Array, covariance: Array, tolerance: float) -> float:
    """Probability that both components of an offset lie within the tolerance, its errors being Gaussian."""
    chance = 1.0
    for mean, variance in zip(offset, np.diag(covariance), strict=True):
        sd = TAILS * math.sqrt(max(float(variance), 1e-12))
        chance *= float(ndtr((tolerance - mean) / sd) - ndtr((-tolerance - mean) / sd))
    return min(max(chance, 0.0), 1.0)


def spiral(centre: Array, step: float, radius: float) -> Iterator[Array]:
    """Yield points (x, y) along an Archimedean spiral: arms and points ``step`` apart, from the centre to ``radius``.

    Neighbouring points are near each other, since the drive may be slow.
    """
    angle = 0.0
    while True:
        distance = step * angle / (2 * math.pi)
        if distance > radius:
            return
        yield centre + distance * np.array([math.cos(angle), math.sin(angle)])
        angle += min(step / max(distance, step / 2), math.pi / 2)


def failed(walk: Walk | None, stop: Stop, details: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a run that stopped early: nothing is moved, everything goes back."""
    return Verdict({}, 0.0, stop.status, stop.reason, details={**details, "images": walk.images if walk else 0})
