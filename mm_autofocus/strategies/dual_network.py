"""Focusing the working distance of an SEM by single images: one network scores them, a controller turns the knob.

Lee et al. 2021 (AENet and ACNet) is one choice of both; ours is a score from blur features, and a controller that knows
the score's shape.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mm_autofocus.errors import BudgetError, StrategyError
from mm_autofocus.estimators.focus_score import (
    FocusScorer,
    ScoreReading,
    load_scorer,
    magnification_of,
)
from mm_autofocus.networks.acnet import image_entropy, image_variance, largest_action_um, state_vector
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.column_knobs import ColumnKnobs, Shot, flat
from mm_autofocus.strategies.focus_belief import FocusBelief, depth_um, reach_um
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict

_WIDE_UM = 1e9
"""A window wider than any column: the true one is known only when a frame has told the magnification."""

_WINDOW_REACHES = 2.0
"""The window reaches this many times as far to either side as a specimen can be recognised."""

_SEARCH_STRIDE = 1 / 3
"""Of the largest action: 400 of 1200 µm, 12 of 36 (Online performance test)."""

_END_SHARE = 0.25
"""ACNet's best so close to an end of the window, in halves of the depth of field, may lie beyond it."""

_REACHED_CONFIDENCE, _BEST_CONFIDENCE = 0.75, 0.6
"""Of ACNet, which knows no errors: when it stopped at the score wanted, and the most when it did not."""


class Controller(Protocol):
    """What turns scores into the next change of working distance, of -1 to 1 of the largest action."""

    def action(self, state: NDArray[np.float32]) -> float:
        """Return the action for a state of `mm_autofocus.networks.acnet.state_vector`."""
        ...


class DualNetworkSettings(StrategySettings):
    """Settings of `DualNetwork`.

    Attributes
    ----------
    score_network
        "ours", "aenet" or "resnet18".
    score_model
        Path of its card (.json); empty for the one that comes with mm-autofocus.
    controller
        "ours": where the score's known shape puts the focus, by Bayes' rule. "acnet": the paper's network.
    controller_model
        Path of ACNet's card; empty for the one that comes with mm-autofocus.
    action_limit
        Largest change by ACNet: "equation_5" of the paper's instrument, or "sensitivity", the width of the score's peak
        by ``convergence_mrad``. The network must have been trained with the same.
    range_um
        Whole length of the search around the start when the request has no window; None: twice as far as a specimen can
        be recognised at this magnification.
    convergence_mrad, convergence_sd
        Half-angle of the beam, and the standard deviation of its logarithm: it says how fast scores fall.
    max_frames
        Frames of an attempt (ACNet: after the specimen was found).
    stop_score, patience
        ACNet stops at this score, or after so many frames without gain.
    found_score
        ACNet begins where a frame scores more than this.
    failure_score
        Below it an attempt has failed.
    retries
        Attempts after the first that failed.
    stop_confidence, min_confidence
        Ours stops when it is so sure; below the second the verdict is `Status.LOW_CONFIDENCE`.
    exposure_ms, camera
        What to image with; None for the microscope's own.
    pixel_um
        Pixel size to believe in place of the microscope's.
    """

    score_network: Literal["ours", "aenet", "resnet18"] = "ours"
    score_model: str = ""
    controller: Literal["ours", "acnet"] = "ours"
    controller_model: str = ""
    action_limit: Literal["equation_5", "sensitivity"] = "sensitivity"
    range_um: float | None = Field(default=None, gt=0)
    convergence_mrad: float = Field(default=8.7, gt=0.1, le=100)
    convergence_sd: float = Field(default=0.2, gt=0, le=1)
    max_frames: int = Field(default=20, ge=4, le=200)
    stop_score: float = Field(default=9.0, gt=0, le=10)
    patience: int = Field(default=5, ge=1)
    found_score: float = Field(default=2.0, ge=0, lt=10)
    failure_score: float = Field(default=3.0, ge=0, lt=10)
    retries: int = Field(default=1, ge=0, le=5)
    stop_confidence: float = Field(default=0.8, ge=0.5, lt=1)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    exposure_ms: float | None = Field(default=None, gt=0)
    camera: str | None = None
    pixel_um: float | None = Field(default=None, gt=0)


class DualNetwork:
    """Focuses the working distance by scores of single images, at any magnification.

    Parameters
    ----------
    settings
        See `DualNetworkSettings`; None for the defaults.
    scorer
        What scores an image; None for the network that the settings name.
    controller
        What decides for the controller "acnet"; None for the network that the settings name.

    Raises
    ------
    SettingsError
        When a network cannot be used.
    """

    name: ClassVar[str] = "dual-network"
    Settings: ClassVar[type[StrategySettings]] = DualNetworkSettings

    def __init__(
        self,
        settings: DualNetworkSettings | None = None,
        scorer: FocusScorer | None = None,
        controller: Controller | None = None,
    ) -> None:
        self.settings: DualNetworkSettings = settings or DualNetworkSettings()
        self.scorer: FocusScorer = scorer or load_scorer(self.settings.score_network, self.settings.score_model)
        self.controller: Controller | None = controller
        if self.controller is None and self.settings.controller == "acnet":
            from mm_autofocus.estimators.acnet_controller import AcnetController

            self.controller = AcnetController.load(self.settings.controller_model, self.settings.action_limit)

    def score(self, frame: Frame) -> float:
        """Score of `read`, 0 to 10."""
        pixel_um = self.settings.pixel_um or frame.pixel_um
        if pixel_um is None:
            raise StrategyError(
                "the pixel size is unknown, and with it the magnification; calibrate it, or set pixel_um"
            )
        return self.read(frame.image, pixel_um).score

    def read(self, image: NDArray[np.generic], pixel_um: float) -> ScoreReading:
        """Score one image.

        Raises
        ------
        StrategyError
            When the network answers NaN.
        HardwareError
            When the image cannot be scored.
        """
        reading = self.scorer.read(image, pixel_um)
        if not math.isfinite(reading.score):
            raise StrategyError(
                f"the score network answered {reading.score}; the column is put back. Its file is damaged, or it does "
                "not fit these images"
            )
        return reading

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Search; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When a network answers nonsense, or a frame lacks what is needed.
        HardwareError
            When a frame is not what was asked for.
        """
        return (yield from _Run(self, request).search())


class _Stop(Exception):
    """Ends a run early: there is nothing to be seen."""


class _Run:
    """What one run has seen so far."""

    def __init__(self, strategy: DualNetwork, request: FocusRequest) -> None:
        s = self._s = strategy.settings
        self._strategy, self._request = strategy, request
        self._knobs = ColumnKnobs(
            request,
            range_um=s.range_um or _WIDE_UM,
            stigmate=False,
            camera=s.camera,
            exposure_ms=s.exposure_ms,
            pixel_um=s.pixel_um,
        )
        self._at: list[float] = []
        self._readings: list[ScoreReading] = []
        self._variances: list[float] = []
        self._entropies: list[float] = []
        self._began = 0
        """Number of the first frame of this attempt."""
        self._blind = True
        self._pixel_um = math.nan
        self._attempts = 0
        self._belief: FocusBelief | None = None
        self._reason = ""

    # ------------------------------------------------------------------ the search
    def search(self) -> FocusGenerator:
        attempt = self._by_belief if self._s.controller == "ours" else self._by_network
        try:
            yield from self._look(float(self._knobs.start[0]))
            self._narrow()
            for attempt_number in range(1, self._s.retries + 2):
                self._attempts = attempt_number
                yield from attempt()
                if self._best_score >= self._s.failure_score:
                    break
                self._began = len(self._at)
        except BudgetError as error:
            if not self._at:
                raise
            self._reason = f"stopped early: {error}"
        except _Stop as stop:
            return Verdict({}, 0.0, Status.NO_SIGNAL, str(stop), self._scores, self._details())
        return self._verdict()

    def _look(self, at_um: float) -> Generator[Look, Frame, Shot]:
        """Image at a working distance inside the window, and score what comes."""
        knobs = self._knobs.start.copy()
        knobs[0] = at_um
        shot: Shot = yield from self._knobs.take(self._knobs.inside(knobs))
        if math.isfinite(self._pixel_um) and abs(shot.pixel_um - self._pixel_um) > 0.01 * self._pixel_um:
            raise StrategyError(
                f"the pixel size changed from {self._pixel_um:g} to {shot.pixel_um:g} µm during the run; keep the "
                "magnification while focusing"
            )
        self._pixel_um = shot.pixel_um
        reading = self._strategy.read(shot.image, shot.pixel_um)
        if flat(shot.image) and self._blind:
            raise _Stop("the frame has one grey value: the beam is blanked, or brightness and contrast are off")
        self._blind = False
        self._at.append(float(shot.knobs[0]))
        self._readings.append(reading)
        self._variances.append(image_variance(shot.image))
        self._entropies.append(image_entropy(shot.image))
        return shot

    def _narrow(self) -> None:
        """Narrow the window to what this magnification needs, where neither settings nor request have one."""
        if self._s.range_um is None and self._request.window is None:
            reach = _WINDOW_REACHES * reach_um(self._pixel_um, self._s.convergence_mrad, 0.0)
            window = self._request.search_window(2.0 * reach)
            knobs = self._knobs
            knobs.low[0], knobs.high[0] = max(knobs.low[0], window.low), min(knobs.high[0], window.high)

    # ------------------------------------------------------------------ our controller
    def _by_belief(self) -> Generator[Look, Frame, None]:
        """Look where a frame tells most, until the peak is known; then look there."""
        s, knobs = self._s, self._knobs
        low, high = float(knobs.low[0]), float(knobs.high[0])
        if not high > low:
            return
        belief = self._belief = FocusBelief(
            low, high, self._pixel_um, s.convergence_mrad, s.convergence_sd, seed=self._request.seed + self._attempts
        )
        if self._attempts == 1:
            self._learn(belief)
        confirmed = False
        while len(self._at) - self._began < s.max_frames:
            peak, sure = belief.best(self._half_um)
            target = min(max(peak, low), high)
            if sure >= s.stop_confidence and len(self._at) - self._began >= 2:
                if confirmed or abs(target - self._at[-1]) <= self._half_um:
                    return
                confirmed = True
                yield from self._look(target)
            else:
                confirmed = False
                yield from self._look(belief.next(self._at[-1]))
            self._learn(belief)

    def _learn(self, belief: FocusBelief) -> None:
        reading = self._readings[-1]
        belief.add(self._at[-1], reading.score, reading.sigma)

    @property
    def _half_um(self) -> float:
        """Half of the depth of field: the request's, or what the score can see if that is more."""
        depth = max(self._request.depth(self._request.knob), depth_um(self._pixel_um, self._s.convergence_mrad))
        return depth / 2.0

    # ------------------------------------------------------------------ the paper's controller
    def _by_network(self) -> Generator[Look, Frame, None]:
        """Search in strides until the specimen is found, then follow ACNet."""
        s, knobs = self._s, self._knobs
        action = self._largest_action
        towards = -1.0 if self._attempts == 2 else 1.0
        origin = float(knobs.start[0])
        here = origin
        if self._attempts > 1:
            yield from self._look(origin)
        turned = False
        while self._readings[-1].score <= s.found_score:
            here += towards * _SEARCH_STRIDE * action
            if not knobs.low[0] <= here <= knobs.high[0]:
                if turned:
                    return
                turned, towards = True, -towards
                here = origin + towards * _SEARCH_STRIDE * action
            yield from self._look(here)
        first = len(self._at) - 1
        assert self._strategy.controller is not None
        while len(self._at) - first < s.max_frames + 1:
            scores = [r.score for r in self._readings[first:]]
            best = int(np.argmax(scores))
            if scores[-1] >= s.stop_score or len(scores) - 1 - best >= s.patience:
                return
            state = state_vector(
                self._at[first:], scores, self._variances[first:], self._entropies[first:],
                magnification_of(self._pixel_um), action,
            )  # fmt: skip
            step = self._strategy.controller.action(state)
            if not math.isfinite(step):
                raise StrategyError(f"the control network answered {step}; the column is put back. Its file is damaged")
            yield from self._look(self._at[-1] + min(max(step, -1.0), 1.0) * action)

    @property
    def _largest_action(self) -> float:
        if self._s.action_limit == "equation_5":
            return largest_action_um(magnification_of(self._pixel_um))
        return sensitive_action_um(self._pixel_um, self._s.convergence_mrad)

    # ------------------------------------------------------------------ the answer
    @property
    def _scores(self) -> tuple[float, ...]:
        return tuple(reading.score for reading in self._readings)

    @property
    def _best_score(self) -> float:
        return max(self._scores)

    def _verdict(self) -> Verdict:
        s, knobs = self._s, self._knobs
        best = int(np.argmax(self._scores))
        score, target = self._scores[best], self._at[best]
        if score < s.failure_score:
            reason = (
                f"best score {score:.1f} of {len(self._at)} frames, below {s.failure_score:g}: no specimen was found "
                f"from {knobs.low[0]:.6g} to {knobs.high[0]:.6g} µm; widen the range, or move to where there is some"
            )
            return Verdict({}, 0.0, Status.NO_SIGNAL, reason, self._scores, self._details())
        confidence = _REACHED_CONFIDENCE if score >= s.stop_score else _BEST_CONFIDENCE * score / s.stop_score
        if self._belief is not None:
            target, confidence = self._belief.best(self._half_um)
        confidence = min(max(confidence, 0.0), 1.0)
        peak, target = target, float(knobs.inside(np.array([target, *knobs.start[1:]]))[0])
        reason = f"best score {score:.1f} of {len(self._at)} frames at {magnification_of(self._pixel_um):,.0f}x"
        reason += f"; {self._reason}" if self._reason else ""
        status = Status.CONVERGED
        at_end = min(target - knobs.low[0], knobs.high[0] - target) <= _END_SHARE * self._half_um
        if abs(peak - target) > self._half_um or (self._belief is None and at_end):
            status, confidence = Status.AT_LIMIT, min(confidence, 0.3)
            reason += "; it stands at the end of what is allowed: widen it if that is safe"
            reason += "".join(f" ({told})" for told in knobs.clamped.values())
        elif confidence < s.min_confidence:
            status = Status.LOW_CONFIDENCE
            reason += "; the scores do not agree on where the focus is: expose longer, or allow more frames"
        return Verdict({self._request.knob: target}, confidence, status, reason, self._scores, self._details())

    def _details(self) -> dict[str, Any]:
        known = math.isfinite(self._pixel_um)
        sigma = [r.sigma for r in self._readings if math.isfinite(r.sigma)]
        top = max(self._scores, default=0.0)
        return {
            "trajectory": [round(at, 4) for at in self._at],
            "score_sigma": [round(r.sigma, 3) if math.isfinite(r.sigma) else None for r in self._readings],
            "magnification": round(magnification_of(self._pixel_um), 1) if known else None,
            "frames": len(self._at),
            "attempts": self._attempts,
            "score_network": self._s.score_network,
            "controller": self._s.controller,
            "score_noise": min(0.5, float(np.median(sigma)) / top) if sigma and top > 0 else 0.0,
            "clamped": dict(self._knobs.clamped),
        }


def sensitive_action_um(pixel_um: float, convergence_mrad: float) -> float:
    """Return the full width at half maximum of the score over working distance, µm: what equation 5 was fitted to."""
    return 2.0 * reach_um(pixel_um, convergence_mrad, 5.0)


__all__ = ["Controller", "DualNetwork", "DualNetworkSettings", "sensitive_action_um"]
