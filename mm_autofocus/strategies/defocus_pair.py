"""Focus and stigmators of a TEM's objective lens from a defocus pair: Thon rings, a known step, a confirming pair."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mm_autofocus.errors import BudgetError, HardwareError, StrategyError
from mm_autofocus.estimators.thon_rings import (
    RingEstimate,
    TransferOptics,
    TransferState,
    estimate_pair,
    estimate_single,
)
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.column_knobs import STIGMATORS, stigmators_of
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict

Matrix = tuple[tuple[float, float], tuple[float, float]]

SATURATED = 0.01
"""A frame with more than this fraction of its pixels at its highest value is saturated."""


class DefocusPairSettings(StrategySettings):
    """Settings of `DefocusPair`.

    Attributes
    ----------
    step_um, confirm_um
        The two frames of the first pair, and of each further one, lie so far on either side of the present defocus.
    range_um
        The focus is looked for so far on either side of the start.
    astigmatism_um
        Largest component of the astigmatism that is looked for.
    response
        Astigmatism (a, b) in µm for one unit of each stigmator, ``[[a_x, a_y], [b_x, b_y]]``, x and y along the image's
        columns and rows. None: measured in each run by a kick of each stigmator (two more frames).
    kick
        That kick, in the stigmators' unit.
    stigmate
        False to leave the stigmators alone.
    target_um
        Defocus to end at; overfocus is positive.
    max_rounds
        Most pairs of a run.
    min_significance, min_strength
        Rings that stand out by less, or fit worse, are not believed; see `RingEstimate`.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    pixel_nm, voltage_kv, cs_mm, amplitude_contrast, coarsest_nm, finest_nm
        See `TransferOptics`; ``pixel_nm`` None for the microscope's own.
    exposure_ms, camera
        Of each frame; None for the microscope's own.
    """

    step_um: float = Field(default=3.0, gt=0.2, le=10)
    confirm_um: float = Field(default=2.0, gt=0.2, le=10)
    range_um: float = Field(default=3.0, gt=0, le=8)
    astigmatism_um: float = Field(default=0.5, gt=0, le=0.8)
    response: Matrix | None = None
    kick: float = Field(default=0.25, gt=0)
    stigmate: bool = True
    target_um: float = 0.0
    max_rounds: int = Field(default=4, ge=2, le=10)
    min_significance: float = Field(default=2.7, gt=0)
    min_strength: float = Field(default=0.13, gt=0, lt=1)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    pixel_nm: float | None = Field(default=None, gt=0)
    voltage_kv: float = Field(default=200.0, gt=10, le=1500)
    cs_mm: float = Field(default=1.2, ge=-10, le=100)
    amplitude_contrast: float = Field(default=0.07, ge=0, le=0.9)
    coarsest_nm: float = Field(default=4.0, gt=0)
    finest_nm: float = Field(default=0.6, gt=0)
    exposure_ms: float | None = Field(default=None, gt=0)
    camera: str | None = None

    @field_validator("response")
    @classmethod
    def _can_be_inverted(cls, value: Matrix | None) -> Matrix | None:
        if value is not None and abs(np.linalg.det(np.array(value))) < 1e-6:
            raise ValueError("must be two rows of two numbers that are not multiples of each other")
        return value


class _Stop(Exception):
    """Ends a run early with a verdict."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two frames around a point, and what they say about it."""

    frames: tuple[Frame, Frame]
    steps: tuple[float, float]
    estimate: RingEstimate


class DefocusPair:
    """Corrects defocus and stigmators by the Thon rings of two frames at a known distance.

    It never ends without a second pair around its answer: one pair may be fooled by rings that belong to the specimen.
    The specimen must show rings: an amorphous film, ice, carbon. Others end as `Status.NO_SIGNAL`, at the start.

    Parameters
    ----------
    settings
        See `DefocusPairSettings`; None for the defaults.
    """

    name: ClassVar[str] = "defocus-pair"
    Settings: ClassVar[type[StrategySettings]] = DefocusPairSettings

    def __init__(self, settings: DefocusPairSettings | None = None) -> None:
        self.settings: DefocusPairSettings = settings or DefocusPairSettings()

    def score(self, frame: Frame) -> float:  # noqa: ARG002
        """Return 0: a weak phase object has least contrast in focus, and the confirming pair has judged already."""
        return 0.0

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Take pairs until one confirms the answer; see `mm_autofocus.strategy.Strategy`.

        Raises
        ------
        StrategyError
            When nobody says how large a pixel is, or the budget leaves no second pair.
        """
        run = _Run(self.settings, request)
        try:
            return (yield from run.search())
        except _Stop as stop:
            return Verdict({}, 0.0, stop.status, stop.reason, details=run.details())


class _Run:
    """What one run has seen so far."""

    def __init__(self, settings: DefocusPairSettings, request: FocusRequest) -> None:
        self._s, self._request = settings, request
        pixel = settings.pixel_nm or (request.pixel_um or 0.0) * 1e3
        if not pixel > 0:
            raise StrategyError(
                "the Thon rings need the size of a pixel: set [strategies.defocus-pair] pixel_nm, or calibrate the "
                "pixel size in the configuration"
            )
        self._optics = TransferOptics(
            pixel,
            settings.voltage_kv,
            settings.cs_mm,
            settings.amplitude_contrast,
            settings.coarsest_nm,
            settings.finest_nm,
        )
        self._stigmates = settings.stigmate and bool(stigmators_of(request))
        needed = 4 + 2 * (self._stigmates and settings.response is None)
        if request.budget.images is not None and request.budget.images < needed:
            raise StrategyError(f"an image budget of {request.budget.images} is too small; allow at least {needed}")
        self._response = None if settings.response is None else np.array(settings.response)
        self._pairs: list[_Pair] = []
        self._rounds: list[dict[str, Any]] = []

    def details(self) -> dict[str, Any]:
        """Return the rounds and the response of the stigmators, for the report."""
        response = None if self._response is None else np.round(self._response, 4).tolist()
        return {"rounds": self._rounds, "stigmator_response_um": response}

    # ------------------------------------------------------------------ the search
    def search(self) -> FocusGenerator:
        s, request = self._s, self._request
        at = {name: request.start[name] for name in (request.knob, *STIGMATORS) if name in request.start}
        at = at if self._stigmates else {request.knob: at[request.knob]}
        for turn in range(s.max_rounds):
            first = turn == 0
            try:
                pair = yield from self._pair(at, s.step_um if first else s.confirm_um, first)
                if self._stigmates and self._response is None:
                    yield from self._measure_response(at, pair)
            except BudgetError:
                if len(self._pairs) < 2:
                    raise
                break
            target, beyond = self._corrected(at, pair.estimate)
            settled = not first and self._within(at, target)
            at = target
            if beyond:
                raise _Stop(
                    Status.AT_LIMIT,
                    f"{' and '.join(beyond)} would have to leave the limits; widen them if that is safe. Nothing is "
                    "gained by going there",
                )
            if settled:
                return self._verdict(at, pair.estimate, settled=True)
        return self._verdict(at, self._pairs[-1].estimate, settled=False)

    def _pair(self, at: dict[str, float], step: float, first: bool) -> Generator[Look, Frame, _Pair]:
        """Take two frames around ``at`` and fit them."""
        knob, limits = self._request.knob, self._request.limits[self._request.knob]
        centre = at[knob]
        low, high = limits.clip(centre - step), limits.clip(centre + step)
        if high - low < step:
            raise _Stop(Status.AT_LIMIT, f"the limits of {knob!r} leave no room for a step of {step:g} µm; widen them")
        under = yield from self._look({**at, knob: low})
        over = yield from self._look({**at, knob: high})
        steps = float(under.knobs[knob]) - centre, float(over.knobs[knob]) - centre
        reach = self._s.range_um if first else min(self._s.range_um, 1.5)
        try:
            estimate = estimate_pair(
                (under.image, over.image),
                steps,
                self._optics,
                range_um=reach,
                astigmatism_um=self._s.astigmatism_um if self._stigmates or first else 0.3,
            )
        except HardwareError as error:
            raise _Stop(Status.NO_SIGNAL, str(error)) from error
        pair = _Pair((under, over), steps, estimate)
        self._pairs.append(pair)
        self._rounds.append(
            {
                "at": {name: round(value, 5) for name, value in at.items()},
                "steps_um": [round(v, 4) for v in steps],
                "defocus_um": round(estimate.state.defocus_um, 4),
                "astigmatism_um": [round(float(v), 4) for v in estimate.state.astigmatism],
                "sigma_um": round(min(estimate.sigma_um, 1e3), 5),
                "strength": round(estimate.strength, 4),
                "significance": round(estimate.significance, 2),
                "scale": round(estimate.scale, 4),
            }
        )
        weak = estimate.significance < self._s.min_significance or estimate.strength < self._s.min_strength
        if weak or estimate.at_edge:
            raise _Stop(
                Status.NO_SIGNAL,
                "no Thon rings that follow a known step of defocus (significance "
                f"{estimate.significance:.1f}, strength {estimate.strength:.2f}, apparent step {estimate.scale:.2f} of "
                "the true one): the film is crystalline or empty, the rings are the specimen's own structure, the "
                "focus is out of range, or the dose is too low. Go to bare film, or expose longer",
            )
        return pair

    def _measure_response(self, at: dict[str, float], pair: _Pair) -> Generator[Look, Frame, None]:
        """Kick each stigmator and see how the rings of the frame nearer to focus change."""
        knob, estimate = self._request.knob, pair.estimate
        i = int(np.argmin([abs(abs(estimate.state.defocus_um + step) - 2.0) for step in pair.steps]))
        z = at[knob] + pair.steps[i]
        near = TransferState(estimate.state.defocus_um + pair.steps[i], *estimate.state.astigmatism)
        # the same frame alone, so that what is odd in it cancels in the difference
        base = estimate_single(pair.frames[i].image, near, estimate.scale, self._optics).state.astigmatism
        columns: list[NDArray[np.float64]] = []
        for name in STIGMATORS:
            limits = self._request.limits[name]
            kick = self._s.kick if at[name] + self._s.kick in limits else -self._s.kick
            frame = yield from self._look({**at, knob: z, name: limits.clip(at[name] + kick)})
            made = float(frame.knobs[name]) - at[name]
            kicked = estimate_single(frame.image, near, estimate.scale, self._optics)
            if abs(made) < self._s.kick / 2 or kicked.significance < self._s.min_significance / 2:
                raise _Stop(
                    Status.NO_SIGNAL,
                    f"the rings are lost when {name} is turned by {made:g}; set [strategies.defocus-pair] response, or "
                    "a smaller kick",
                )
            columns.append((kicked.state.astigmatism - base) / made)
        response = np.stack(columns, axis=1)
        if np.linalg.svd(response, compute_uv=False)[-1] * self._s.kick < 0.02:
            raise _Stop(
                Status.NO_SIGNAL,
                f"the rings do not follow the stigmators (kicks of {self._s.kick:g} change the astigmatism by "
                f"{np.round(response * self._s.kick * 1e3).tolist()} nm): one ignores its commands, or both are one",
            )
        self._response = response

    def _look(self, targets: dict[str, float]) -> Generator[Look, Frame, Frame]:
        frame = yield Look(targets, camera=self._s.camera, exposure_ms=self._s.exposure_ms)
        image = np.asarray(frame.image)
        if image.size and np.mean(image == image.max()) > SATURATED:
            dark = "is constant: there is no beam" if image.max() == image.min() else "is saturated: lower the exposure"
            raise _Stop(Status.NO_SIGNAL, f"the image {dark}")
        missing = [name for name in targets if not math.isfinite(frame.knobs.get(name, math.nan))]
        if missing:
            raise StrategyError(f"a frame came back without the position of {missing}: {dict(frame.knobs)}")
        return frame

    # ------------------------------------------------------------------ the answer
    def _corrected(self, at: dict[str, float], estimate: RingEstimate) -> tuple[dict[str, float], list[str]]:
        """Return where the knobs should be, inside the limits, and which would have to leave them."""
        wanted = {self._request.knob: at[self._request.knob] - estimate.state.defocus_um + self._s.target_um}
        if self._stigmates and self._response is not None:
            change = np.linalg.solve(self._response, estimate.state.astigmatism)
            wanted |= {name: at[name] - float(change[i]) for i, name in enumerate(STIGMATORS)}
        limits = self._request.limits
        target = {name: limits[name].clip(value) for name, value in wanted.items()}
        beyond = [name for name in wanted if abs(target[name] - wanted[name]) > self._request.depth(name) / 2]
        return target, beyond

    def _within(self, at: dict[str, float], target: dict[str, float]) -> bool:
        return all(abs(target[name] - at[name]) <= self._request.depth(name) / 2 for name in target)

    def _verdict(self, at: dict[str, float], estimate: RingEstimate, *, settled: bool) -> Verdict:
        s = self._s
        tolerances = {self._request.knob: self._request.depth(self._request.knob) / 2}
        if self._stigmates and self._response is not None:
            unit = float(np.linalg.svd(self._response, compute_uv=False).mean())
            tolerances |= {name: self._request.depth(name) / 2 * unit for name in STIGMATORS}
        sigma = max(estimate.sigma_um, 1e-4)
        confidence = math.prod(math.erf(tolerance / sigma / math.sqrt(2)) for tolerance in tolerances.values())
        state = estimate.state
        reason = (
            f"the last pair was {state.defocus_um * 1e3:.0f} nm from focus, astigmatic by "
            f"({state.astigmatism_x_um * 1e3:.0f}, {state.astigmatism_y_um * 1e3:.0f}) nm, each to {sigma * 1e3:.0f} nm"
        )
        status = Status.CONVERGED
        if not settled:
            status, confidence = Status.LOW_CONFIDENCE, min(confidence, 0.3)
            reason += f"; the pairs did not settle in {len(self._pairs)} rounds"
        elif confidence < s.min_confidence:
            status = Status.LOW_CONFIDENCE
        return Verdict(dict(at), confidence, status, reason, details=self.details())
