"""Centres the beam on the detector with its shift coils: a five-point response, one move, a confirming frame."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.beam_disc import Beam, Disc, fit_disc
from mm_autofocus.estimators.response import ResponseMap, fit_response
from mm_autofocus.estimators.wobble_alignment import same_disc
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.alignment import Array, Stop, Walk, chance_inside, failed, spiral
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict

_ADVICE = {
    Beam.NONE: "no beam on the detector",
    Beam.SATURATED: "the detector is saturated; shorten the exposure or spread the beam",
    Beam.TOO_LARGE: "the disc is larger than the frame, so that its centre cannot be measured; lower the magnification "
    "or converge the beam",
}
_JITTER_PX = 0.5


class BeamCentringSettings(StrategySettings):
    """Settings of `BeamCentring`.

    Attributes
    ----------
    camera, exposure_ms
        What to image with; None for the core's.
    target_knobs
        The two knobs that move the beam.
    goal
        Where the beam belongs, as a fraction (x, y) of the frame.
    step
        Length of the moves that measure the response, in the knobs' unit. It is halved while the beam leaves the frame.
    calibration
        Path of a `ResponseMap` from the beam's place (fraction of the frame's width) to the knobs; empty: five points.
    tolerance
        Centred means within this fraction of the frame's width.
    rounds
        Corrections before it gives up.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    search_step, search_radius
        Spacing and reach of the spiral that looks for a lost beam, in the knobs' unit; step 0: no search.
    """

    camera: str | None = None
    exposure_ms: float | None = Field(default=None, gt=0)
    target_knobs: tuple[str, str] = ("beam_shift_x", "beam_shift_y")
    goal: tuple[float, float] = (0.5, 0.5)
    step: float = Field(default=1.0, gt=0)
    calibration: str = ""
    tolerance: float = Field(default=0.02, gt=0, lt=0.5)
    rounds: int = Field(default=4, ge=1, le=20)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    search_step: float = Field(default=0.0, ge=0)
    search_radius: float = Field(default=20.0, gt=0)


Seeing = Generator[Look, Frame, tuple[Disc, Array]]


class BeamCentring:
    """Beam-shift centring: where the disc is against where it belongs, through the measured response of the coils.

    Parameters
    ----------
    settings
        See `BeamCentringSettings`; None for the defaults.
    response
        The response; None for the one that the settings name, or five points.

    Raises
    ------
    SettingsError
        When the calibration cannot be used, or belongs to other knobs.
    """

    name: ClassVar[str] = "beam-centring"
    Settings: ClassVar[type[StrategySettings]] = BeamCentringSettings

    def __init__(self, settings: BeamCentringSettings | None = None, response: ResponseMap | None = None) -> None:
        self.settings: BeamCentringSettings = settings or BeamCentringSettings()
        if response is None and self.settings.calibration:
            response = ResponseMap.load(self.settings.calibration)
        if response is not None and response.knobs != self.settings.target_knobs:
            raise SettingsError(
                f"the calibration is of the knobs {response.knobs}, not of target_knobs = {self.settings.target_knobs}"
            )
        self.response = response

    def score(self, frame: Frame) -> float:
        """1 with the beam at its goal, falling to a half at the tolerance, 0 without a disc."""
        disc = fit_disc(frame.image)
        if not disc.beam.usable:
            return 0.0
        away = float(np.hypot(*place(disc, frame, self.settings.goal)))
        return 1.0 / (1.0 + (away / self.settings.tolerance) ** 2)

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Centre; see `mm_autofocus.strategy.Strategy`."""
        s = self.settings
        walk = Walk(self.name, request, s.target_knobs, {"camera": s.camera, "exposure_ms": s.exposure_ms})
        run = Centring(walk, s, self.response)
        try:
            disc, at = yield from run.see({})
            if not disc.beam.usable:
                disc, at = yield from run.search(disc)
            chance = yield from run.centre(at)
        except Stop as stop:
            return failed(walk, stop, run.details)
        target = {name: walk.at[name] for name in s.target_knobs}
        if chance < s.min_confidence:
            reason = f"the chance of the beam being within {s.tolerance:g} of the frame from its goal is {chance:.2f}"
            return Verdict(target, chance, Status.LOW_CONFIDENCE, reason, tuple(run.scores), run.details)
        reason = f"the beam is {run.away:.4f} of the frame from its goal"
        return Verdict(target, chance, Status.CONVERGED, reason, tuple(run.scores), run.details)


class Centring:
    """One centring; `Aperture` uses it too, when its beam has to be brought back first."""

    def __init__(self, walk: Walk, settings: BeamCentringSettings, response: ResponseMap | None = None) -> None:
        self._walk, self._s = walk, settings
        self._map = response
        self.scores: list[float] = []
        self.away = math.inf
        self._last: Disc | None = None
        self._side = 256.0
        self.details: dict[str, Any] = {"path": [], "searched": 0}

    def see(self, targets: dict[str, float]) -> Seeing:
        """Go there, take a frame and return its disc and its place."""
        frame = yield from self._walk.look(targets)
        disc = fit_disc(frame.image)
        if self._last is not None and targets and same_disc(self._last, disc):
            frame = yield from self._walk.look({})  # late: the picture of before the move
            disc = fit_disc(frame.image)
        self._last = disc
        at = place(disc, frame, self._s.goal)
        self._side = float(frame.image.shape[1])
        away = float(np.hypot(*at)) if disc.beam.usable else math.inf
        self.scores.append(1.0 / (1.0 + (away / self._s.tolerance) ** 2))
        if disc.beam.usable:
            self.away = away
            self.details["path"].append([round(float(v), 5) for v in at])
        return disc, at

    def search(self, disc: Disc) -> Seeing:
        """Look for a lost beam along a spiral; what is in the way of a measurement ends the run."""
        s = self._s
        if disc.beam is not Beam.NONE or s.search_step == 0:
            raise Stop(Status.NO_SIGNAL, _ADVICE[disc.beam])
        limits = [self._walk.request.limits[name] for name in s.target_knobs]
        for point in spiral(self._walk.position(s.target_knobs), s.search_step, s.search_radius):
            if not all(v in each for v, each in zip(point, limits, strict=True)):
                continue
            if self._walk.images_left() < 10:
                break
            disc, at = yield from self.see(dict(zip(s.target_knobs, (float(v) for v in point), strict=True)))
            self.details["searched"] += 1
            if disc.beam.usable:
                return disc, at
        raise Stop(Status.NO_SIGNAL, f"{_ADVICE[Beam.NONE]} after a search of {self.details['searched']} positions")

    def centre(self, at: Array) -> Generator[Look, Frame, float]:
        """Bring the beam to its goal; return the chance that it is there."""
        s = self._s
        if self._map is None:
            at = yield from self._measure(at)
        assert self._map is not None
        chance = 0.0
        for turn in range(s.rounds + 1):
            covariance = (_JITTER_PX / self._side) ** 2 * np.eye(2)
            chance = chance_inside(at, covariance, s.tolerance)
            if (turn and chance > 0.95) or turn == s.rounds or self._walk.images_left() < 1:
                break
            target = self._walk.position(s.target_knobs) - self._map.offset(at)
            for name, value in zip(s.target_knobs, target, strict=True):
                limits = self._walk.request.limits[name]
                if value not in limits:
                    raise Stop(
                        Status.AT_LIMIT,
                        f"the beam is centred with {name} at about {value:.3g}, outside its limits [{limits.low:g}, "
                        f"{limits.high:g}]; align what comes before it first",
                    )
            before, position = at, self._walk.position(s.target_knobs)
            disc, at = yield from self.see(dict(zip(s.target_knobs, (float(v) for v in target), strict=True)))
            if not disc.beam.usable:
                raise Stop(Status.NO_SIGNAL, f"after a move to where the beam should be centred: {_ADVICE[disc.beam]}")
            moved = self._walk.position(s.target_knobs) - position
            expected = float(np.hypot(*before))
            seen = float(np.hypot(*(at - before)))
            if expected > 6 * _JITTER_PX / self._side and seen < 0.1 * expected:
                raise Stop(Status.NO_SIGNAL, "the beam does not follow its coils; check that they are the right knobs")
            if float(np.hypot(*(at - before))) > 10 * _JITTER_PX / self._side:
                self._map = self._map.updated(moved, at - before, weight=0.5)
        return chance

    def _measure(self, at: Array) -> Generator[Look, Frame, Array]:
        """Five points: here and a step either way along both knobs; back at the start, its place is measured again."""
        s = self._s
        origin = self._walk.position(s.target_knobs)
        positions, places = [origin], [at]
        for axis in (0, 1):
            step = s.step
            for sign in (1.0, -1.0):
                for _ in range(4):
                    point = origin.copy()
                    point[axis] += sign * step
                    clipped = [self._walk.clip(n, float(v)) for n, v in zip(s.target_knobs, point, strict=True)]
                    disc, seen = yield from self.see(dict(zip(s.target_knobs, clipped, strict=True)))
                    if disc.beam.usable and disc.visible > 0.2:
                        positions.append(self._walk.position(s.target_knobs))
                        places.append(seen)
                        break
                    step /= 2
        _, here = yield from self.see(dict(zip(s.target_knobs, (float(v) for v in origin), strict=True)))
        try:
            self._map = fit_response(s.target_knobs, np.array(positions), np.array(places))
        except SettingsError as error:
            raise Stop(Status.NO_SIGNAL, f"the response of the coils could not be measured: {error}") from error
        return here if np.isfinite(here).all() else at


def place(disc: Disc, frame: Frame, goal: tuple[float, float]) -> Array:
    """Return the disc's place from the goal, as fractions of the frame's width, shape (2,); NaN without a disc."""
    height, width = frame.image.shape
    return np.asarray([disc.x - (goal[0] * width - 0.5), disc.y - (goal[1] * height - 0.5)], float) / float(width)
