"""The contract of a strategy: a generator that yields where to look, receives the frame, and returns its verdict.

A strategy touches no hardware and holds no state between runs, so it can be replayed from recorded frames. It cannot
reach simulated truth: all it ever sees is a `FocusRequest` and `Frame`s.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status

Image = NDArray[np.generic]
"""One camera image, shape (height, width), any integer or float dtype."""


class StrategySettings(BaseModel):
    """Base of every strategy's settings: frozen; a misspelt key, an infinity or NaN is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Look:
    """Where to look next.

    Attributes
    ----------
    targets
        Knob values by name, for instance ``{"z": 12.5}``.
    relative
        True when the targets count from the start of the run, False (the default) when they are absolute.
    camera, exposure_ms, roi
        What to image with when it is not the default; ``roi`` is (x, y, width, height) in pixels.
    """

    targets: Mapping[str, float]
    relative: bool = False
    camera: str | None = None
    exposure_ms: float | None = None
    roi: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """What a Look brought back.

    Attributes
    ----------
    image
        Shape (height, width).
    knobs
        Where the knobs really are (read back), by name.
    pixel_um
        Size of a pixel in the specimen, or None.
    exposure_ms
        Exposure of this frame.
    seconds
        Time since the run began, when the frame was taken.
    """

    image: Image
    knobs: Mapping[str, float]
    pixel_um: float | None = None
    exposure_ms: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a strategy concludes.

    Attributes
    ----------
    target
        Where the knobs should go (absolute); empty to stay at the start.
    confidence
        Probability that the target is within the depth of field, 0 to 1.
    status
        `Status.CONVERGED`, `AT_LIMIT`, `LOW_CONFIDENCE` or `NO_SIGNAL`; the run adds the others.
    reason
        One sentence for the user.
    scores
        The score of each frame in the order of the Looks, where the strategy has one; drawn as the focus curve.
    details
        Numbers worth keeping with the result (fitted width, rival peaks ...), JSON-serialisable.
    """

    target: Mapping[str, float]
    confidence: float
    status: Status = Status.CONVERGED
    reason: str = ""
    scores: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


FocusGenerator = Generator[Look, Frame, Verdict]


@runtime_checkable
class Strategy(Protocol):
    """What a class must have to be a strategy; constructed as ``Class(settings)``."""

    name: ClassVar[str]
    Settings: ClassVar[type[StrategySettings]]

    def __init__(self, settings: Any) -> None: ...

    @property
    def settings(self) -> StrategySettings:
        """The settings that it was made with."""
        ...

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Yield Looks, receive Frames, return the Verdict."""
        ...

    def score(self, frame: Frame) -> float:
        """Sharpness of one frame, higher is sharper; `FocusRun` compares start and end with it."""
        ...
