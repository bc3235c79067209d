"""A plugin for mm-autofocus: hill climbing on the normalized variance, and a log line for every run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from mm_autofocus import (
    FocusRequest,
    FocusResult,
    Frame,
    Look,
    Status,
    Strategy,
    StrategySettings,
    Verdict,
    hookimpl,
)
from mm_autofocus.strategy import FocusGenerator

logger = logging.getLogger(__name__)


class VarianceClimbSettings(StrategySettings):
    """Settings of `VarianceClimb`, the keys of ``[strategies.variance-climb]``.

    Attributes
    ----------
    step_um
        First step, µm. It should be about as long as the depth of field, and is halved at every turn.
    range_um
        Whole length of the search around the start, µm.
    min_gain
        The best image must be this fraction sharper than the least sharp one, or there is nothing to focus on.
    """

    step_um: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    range_um: float = Field(default=40.0, gt=0, allow_inf_nan=False)
    min_gain: float = Field(default=0.25, ge=0)


class VarianceClimb:
    """Climb until the image gets worse, turn round with half the step, and stop at a quarter of the depth of field.

    It knows one peak only: a second one, or dust on the cover slip, catches it, which is why its confidence is modest.
    """

    name: ClassVar[str] = "variance-climb"
    Settings: ClassVar[type[StrategySettings]] = VarianceClimbSettings

    def __init__(self, settings: VarianceClimbSettings) -> None:
        self.settings: StrategySettings = settings
        self._settings = settings

    def score(self, frame: Frame) -> float:
        """Variance over mean of the grey values (Groen et al., Cytometry 6, 81, 1985); higher is sharper."""
        image = np.asarray(frame.image, dtype=np.float64)
        mean = float(image.mean())
        return float(image.var()) / mean if mean > 0 else 0.0

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Yield Looks, receive Frames, return the Verdict."""
        s, knob = self._settings, request.knob
        window = request.search_window(s.range_um)  # inside the limits, and around the map's prediction if there is one
        z = window.clip(request.start[knob])
        best_z, best = z, self.score((yield Look({knob: z})))
        scores = [best]
        step = s.step_um
        while abs(step) > request.depth_of_field_um / 4:
            target = window.clip(best_z + step)
            if target == best_z:  # at the end of the range
                step = -step / 2
                continue
            score = self.score((yield Look({knob: target})))
            scores.append(score)
            if score > best:
                best_z, best = target, score
            else:
                step = -step / 2
        return self._verdict(request, best_z, scores)

    def _verdict(self, request: FocusRequest, z: float, scores: list[float]) -> Verdict:
        window = request.search_window(self._settings.range_um)
        if max(scores) <= min(scores) * (1 + self._settings.min_gain):
            return Verdict({}, 0.0, Status.NO_SIGNAL, "the images are all equally sharp", tuple(scores))
        if z in (window.low, window.high):
            return Verdict({request.knob: z}, 0.3, Status.AT_LIMIT, "sharpest at the end of the range", tuple(scores))
        return Verdict({request.knob: z}, 0.8, Status.CONVERGED, f"climbed to {z:.2f} µm", tuple(scores))


@hookimpl
def mmaf_strategies() -> Sequence[type[Strategy]]:
    """Bring the strategy."""
    return (VarianceClimb,)


@hookimpl
def mmaf_focused(result: FocusResult) -> None:  # any subset of the arguments in hookspecs.py
    """Log every run, whichever strategy made it."""
    logger.info("%s: %s after %d images (%s)", result.label or "here", result.status, result.images, result.reason)
