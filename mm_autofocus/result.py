"""What one focus run came to: frozen, saved as one JSON line, replayable offline."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer

from mm_autofocus.request import Event


class Status(StrEnum):
    """How a focus run ended."""

    CONVERGED = "converged"
    AT_LIMIT = "at_limit"
    LOW_CONFIDENCE = "low_confidence"
    NO_SIGNAL = "no_signal"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ok(self) -> bool:
        """True when the result can be used as it is."""
        return self is Status.CONVERGED


class Sample(BaseModel):
    """One frame of a run: where it was taken and how sharp it was."""

    model_config = ConfigDict(frozen=True)

    knobs: dict[str, float]
    score: float | None = None
    seconds: float = 0.0
    purpose: str = "search"
    """"search", "start" (the reference of the verification) or "verify"."""


class FocusResult(BaseModel):
    """The outcome of one focus run.

    Attributes
    ----------
    status
        How it ended.
    strategy
        Name of the strategy that answered.
    knob
        The knob that was focused ("z").
    start, end
        Knob values before and after the run, in the knob's unit; equal when nothing was gained.
    target
        Where the strategy wanted to go; differs from ``end`` when the verification sent it back.
    confidence
        Probability that ``end`` is within the depth of field.
    score, start_score
        Sharpness of the verifying frame and of the start, None where they were not measured.
    samples
        Every frame with its knob values and score.
    images, dose, seconds, moves
        What the run cost; dose in the microscope's unit, seconds by the microscope's clock.
    compute_seconds
        Time spent in the strategy's own code.
    reason
        One sentence for the user.
    depths
        Full width of each knob, in its unit, within which the image counted as in focus.
    action
        What the failure policy did about it, in order ("widen", "use_map" ...); empty on success.
    final
        Where the policy put the knob when it differs from ``end``; None otherwise.
    """

    model_config = ConfigDict(frozen=True, cache_strings="keys")  # else names and reasons read from JSON stay in memory

    status: Status
    strategy: str
    knob: str = "z"
    start: dict[str, float]
    end: dict[str, float]
    target: dict[str, float] = {}
    confidence: float = 0.0
    score: float | None = None
    start_score: float | None = None
    samples: tuple[Sample, ...] = ()
    images: int = 0
    dose: float = 0.0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    moves: int = 0
    reason: str = ""
    depths: dict[str, float] = {}
    attempt: int = 0
    action: tuple[str, ...] = ()
    final: float | None = None
    prior_mean: float | None = None
    prior_sd: float | None = None
    axes: dict[str, int | str] = {}
    label: str | None = None
    x: float | None = None
    y: float | None = None
    time: float = 0.0
    details: dict[str, Any] = {}

    @property
    def correction(self) -> dict[str, float]:
        """End minus start of every knob."""
        return {name: self.end[name] - self.start[name] for name in self.end if name in self.start}

    @property
    def ok(self) -> bool:
        """True when the run converged."""
        return self.status.ok

    @property
    def well(self) -> str | None:
        """Name of the well, when the position's label says one."""
        return Event(axes=self.axes, label=self.label).well

    @field_serializer("confidence", "score", "start_score")
    def _finite(self, value: float | None) -> float | None:
        return value if value is None or math.isfinite(value) else None
