"""Characterises any autofocus on any microscope: known offsets, repeats, and a plate, each scored by images.

The method of Lightley et al. (J. Microsc. 2021, figures 7, S4 and S5), which asks nothing of the autofocus: start from
a range of defocus positions and repeat; then visit a plate along a horizontal and a vertical snake, and see how far
each well's images are from focus.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mm_autofocus.benchmark.intervals import wilson
from mm_autofocus.benchmark.truth import TruthSweep, interpolated
from mm_autofocus.benchmark.under_test import Focuser, inside_limits, put_back
from mm_autofocus.errors import CancelledError, FocusError, HardwareError, LimitError, SettingsError
from mm_autofocus.microscope import Microscope

logger = logging.getLogger(__name__)

Snake = Literal["horizontal", "vertical"]


class Characterize(BaseModel):
    """What to do.

    Attributes
    ----------
    reach_um, offsets
        The starts: so many of them, evenly from ``-reach_um`` to ``+reach_um`` of the plane in focus.
    repeats
        Runs from each start.
    measure, truth_um
        Sharpness measure of the image sweeps that say where the focus is, and how far they reach to either side (None:
        four depths of field).
    focus_um
        Where the focus is about; None: where the stage stands.
    snakes
        In which directions to visit the plate's positions.
    seed
        Of the order of the starts: shuffled, so that drift does not pass for an effect of the offset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reach_um: float = Field(default=10.0, gt=0)
    offsets: int = Field(default=9, ge=2, le=1001)
    repeats: int = Field(default=3, ge=1, le=1000)
    measure: str = "laplacian_of_gaussian"
    truth_um: float | None = Field(default=None, gt=0)
    focus_um: float | None = None
    snakes: tuple[Snake, ...] = ("horizontal", "vertical")
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """One position of a plate: its name and where it is, µm."""

    name: str
    x: float
    y: float


class Attempt(BaseModel):
    """One run of the autofocus.

    Attributes
    ----------
    offset_um
        Start minus plane in focus; None on a plate, where the run starts where the last one ended.
    start_z, end_z, truth_z
        µm; the truth is None where the images show no focus (an empty well).
    ok, reason
        Whether the autofocus said that it had found the focus, and what it said.
    seconds
        By the clock on the wall, moves included.
    confidence, images
        None for a device that does not tell.
    """

    model_config = ConfigDict(frozen=True)

    place: str = ""
    x: float | None = None
    y: float | None = None
    snake: Snake | None = None
    offset_um: float | None = None
    repeat: int = 0
    start_z: float
    end_z: float
    truth_z: float | None
    ok: bool
    reason: str = ""
    seconds: float
    confidence: float | None = None
    images: int | None = None

    @property
    def error_um(self) -> float | None:
        """End minus plane in focus, µm; None where the images show none."""
        return None if self.truth_z is None else self.end_z - self.truth_z


class Characterization(BaseModel):
    """What was found; grows as the runs go, so that what was measured before an interruption is there.

    Attributes
    ----------
    device
        The autofocus under test.
    depth_of_field_um, limits
        Of the microscope, µm.
    attempts
        From known offsets.
    plate
        On the positions of a plan.
    left_out_um
        Offsets that would have left the limits.
    truth_images
        Images of the sweeps that said where the focus is.
    complete
        False when it was interrupted.
    """

    device: str
    depth_of_field_um: float
    limits: tuple[float, float]
    attempts: list[Attempt] = []
    plate: list[Attempt] = []
    left_out_um: list[float] = []
    truth_images: int = 0
    complete: bool = False

    def in_focus(self, attempt: Attempt) -> bool:
        """Whether a run said that it was in focus, and was."""
        return attempt.ok and attempt.error_um is not None and abs(attempt.error_um) <= self.depth_of_field_um / 2

    def summary(self) -> dict[str, Any]:
        """Return the numbers: success, bias, repeatability, capture range, time; and the plate's by snake."""
        known = [a for a in self.attempts if a.error_um is not None]
        found = [a for a in known if a.ok]
        errors = np.array([a.error_um for a in found], dtype=float)
        seconds = np.array([a.seconds for a in self.attempts])
        hits = sum(self.in_focus(a) for a in known)
        return {
            "device": self.device,
            "within_um": self.depth_of_field_um / 2,
            "runs": len(known),
            "in_focus": hits,
            "interval": wilson(hits, len(known)),
            "gave_up": sum(not a.ok for a in known),
            "wrong": sum(a.ok and not self.in_focus(a) for a in known),
            "bias_um": _number(np.median, errors),
            "repeatability_um": self._repeatability(found),
            "error_95_um": _number(lambda e: np.quantile(np.abs(e), 0.95), errors),
            "worst_um": _number(lambda e: np.abs(e).max(), errors),
            "capture_um": self._capture(known),
            "seconds_median": _number(np.median, seconds),
            "seconds_95": _number(lambda s: np.quantile(s, 0.95), seconds),
            "images_mean": _number(np.mean, np.array([a.images for a in found if a.images is not None], dtype=float)),
            "left_out_um": self.left_out_um,
            "truth_images": self.truth_images,
            "complete": self.complete,
            "plate": {snake: self._plate(snake) for snake in dict.fromkeys(a.snake for a in self.plate if a.snake)},
        }

    def by_offset(self) -> list[dict[str, Any]]:
        """Return, for each known offset, its runs, how many ended in focus, and mean and SD of the error."""
        rows = []
        for offset in sorted({a.offset_um for a in self.attempts if a.offset_um is not None}):
            runs = [a for a in self.attempts if a.offset_um == offset]
            errors = np.array([a.error_um for a in runs if a.ok and a.error_um is not None], dtype=float)
            rows.append(
                {
                    "offset_um": offset,
                    "runs": len(runs),
                    "in_focus": sum(self.in_focus(a) for a in runs),
                    "gave_up": sum(not a.ok for a in runs),
                    "mean_um": _number(np.mean, errors),
                    "sd_um": float(errors.std(ddof=1)) if errors.size > 1 else None,
                    "seconds": float(np.median([a.seconds for a in runs])),
                }
            )
        return rows

    def _repeatability(self, found: Sequence[Attempt]) -> float | None:
        """SD of repeats from the same start, pooled over the starts, µm; runs far out of focus are not repeats."""
        squares, freedom = 0.0, 0
        for offset in {a.offset_um for a in found}:
            errors = np.array(
                [a.error_um for a in found if a.offset_um == offset and abs(a.error_um or 0) < self.depth_of_field_um]
            )
            if errors.size > 1:
                squares += float(((errors - errors.mean()) ** 2).sum())
                freedom += errors.size - 1
        return math.sqrt(squares / freedom) if freedom else None

    def _capture(self, known: Sequence[Attempt]) -> tuple[float, float] | None:
        """The interval of offsets round 0 in which every run ended in focus; None when not even the nearest did."""
        good: dict[float, bool] = {}
        for attempt in known:
            if attempt.offset_um is not None:
                good[attempt.offset_um] = good.get(attempt.offset_um, True) and self.in_focus(attempt)
        ends = []
        for side in (-1, 1):
            reached = None
            for offset in sorted((o for o in good if o * side >= 0), key=abs):
                if not good[offset]:
                    break
                reached = offset
            ends.append(reached)
        inner = [end for end in ends if end is not None]
        return (min(inner), max(inner)) if inner else None

    def _plate(self, snake: Snake) -> dict[str, Any]:
        runs = [a for a in self.plate if a.snake == snake]
        known = [a for a in runs if a.error_um is not None]
        errors = np.array([a.error_um for a in known if a.ok], dtype=float)
        hits = sum(self.in_focus(a) for a in known)
        return {
            "positions": len(runs),
            "without_truth": len(runs) - len(known),
            "in_focus": hits,
            "interval": wilson(hits, len(known)),
            "gave_up": sum(not a.ok for a in known),
            "mean_um": _number(np.mean, errors),
            "sd_um": float(errors.std(ddof=1)) if errors.size > 1 else None,
            "worst_um": _number(lambda e: np.abs(e).max(), errors),
            "seconds_median": _number(np.median, np.array([a.seconds for a in runs])),
        }


def _number(reduce: Callable[[Any], Any], values: Any) -> float | None:
    return float(reduce(values)) if values.size else None


class Characterizer:
    """Runs the autofocus under test and scores it by images; the instrument is put back in the end, whatever happens.

    Parameters
    ----------
    microscope
        Limits, imaging and the knob "z".
    focuser
        The autofocus under test.
    plan
        What to do.
    say
        Told what goes on.
    """

    def __init__(
        self, microscope: Microscope, focuser: Focuser, plan: Characterize, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._microscope = microscope
        self._focuser = focuser
        self._plan = plan
        self._say = say
        self._knob = microscope.knob("z")
        self._truth = TruthSweep(microscope, measure=plan.measure, half_um=plan.truth_um)
        limits = self._knob.limits
        self.found = Characterization(
            device=focuser.name,
            depth_of_field_um=microscope.depth_of_field_um,
            limits=(limits.low, limits.high),
        )
        """What was found so far."""

    def run(self, places: Sequence[Place] = ()) -> Characterization:
        """Do it all; with ``places`` the plate too.

        Raises
        ------
        FocusError
            When no plane in focus is found to begin with.
        LimitError
            When the autofocus under test has left the limits; the stage was brought back.
        """
        with put_back(self._microscope):
            self._starts()
            if places:
                self._snakes(places)
        self.found.complete = True
        return self.found

    # ------------------------------------------------------------------ known offsets
    def _starts(self) -> None:
        plan, found = self._plan, self.found
        truth = self._truth.locate(plan.focus_um if plan.focus_um is not None else self._knob.get())
        self._say(f"in focus at z = {truth:.3f} µm, by images")
        offsets = np.linspace(-plan.reach_um, plan.reach_um, plan.offsets)
        inside = [float(o) for o in offsets if truth + o in self._knob.limits]
        found.left_out_um = [float(o) for o in offsets if truth + o not in self._knob.limits]
        if not inside:
            raise SettingsError(
                f"no start within ±{plan.reach_um:g} µm of focus at {truth:.6g} µm lies inside the limits "
                f"{found.limits}; make --reach smaller or [knobs.z] limits wider"
            )
        if found.left_out_um:
            self._say(f"left out, since they lie outside the limits: {', '.join(f'{o:g}' for o in found.left_out_um)}")
        order = np.random.default_rng(plan.seed).permutation(len(inside))
        times, truths = [time.monotonic()], [truth]
        waiting: list[tuple[Attempt, float]] = []
        for count, index in enumerate(order, start=1):
            offset = inside[index]
            for repeat in range(plan.repeats):
                target = self._knob.limits.clip(truths[-1] + offset)
                waiting.append((self._attempt(target, offset_um=offset, repeat=repeat), time.monotonic()))
            truths.append(self._find(truths[-1]))
            times.append(time.monotonic())
            for attempt, at in waiting:
                truth_then = interpolated(times, truths, at)
                found.attempts.append(attempt.model_copy(update={"truth_z": truth_then}))
            waiting.clear()
            hits = sum(found.in_focus(a) for a in found.attempts)
            self._say(f"{count} of {len(inside)} starts, {hits} of {len(found.attempts)} runs in focus")

    # ------------------------------------------------------------------ the plate
    def _snakes(self, places: Sequence[Place]) -> None:
        core = self._microscope.core
        stage = str(core.get_xy_stage_device())
        if not stage:
            raise SettingsError("the configuration has no XY stage, so no plate can be visited")
        begin = self._knob.get()
        for snake in self._plan.snakes:
            good = begin
            for count, place in enumerate(in_snake(places, snake), start=1):
                core.set_xy_position(stage, place.x, place.y)
                core.wait_for_device(stage)
                attempt = self._attempt(good, place=place.name, x=place.x, y=place.y, snake=snake)
                truth: float | None = None
                try:
                    truth = self._find(attempt.end_z)
                except (LimitError, CancelledError, HardwareError):
                    raise
                except FocusError as error:
                    logger.info("%s: %s", place.name, error)
                attempt = attempt.model_copy(update={"truth_z": truth})
                self.found.plate.append(attempt)
                good = attempt.end_z if attempt.ok else good
                error_um = attempt.error_um
                words = "no focus in the images" if error_um is None else f"{error_um:+.3f} µm"
                self._say(f"{snake} snake, {count} of {len(places)}, {place.name}: {words}")

    # ------------------------------------------------------------------ one run
    def _find(self, centre: float) -> float:
        truth = self._truth.find(centre)
        self.found.truth_images = self._truth.images
        return truth

    def _attempt(self, start: float, **of: Any) -> Attempt:
        start = self._knob.set(start)
        began = time.perf_counter()
        ok, reason, result = self._focuser.focus()
        seconds = time.perf_counter() - began
        end = inside_limits(self._microscope, self._focuser.name, start)
        return Attempt(
            **of,
            start_z=start,
            end_z=end,
            truth_z=None,
            ok=ok,
            reason=reason,
            seconds=seconds,
            confidence=result.confidence if result is not None else None,
            images=result.images if result is not None else None,
        )


def in_snake(places: Sequence[Place], snake: Snake) -> list[Place]:
    """Return the places along a snake: row by row (horizontal) or column by column, every second one backwards.

    Places belong to one row when their y differ by less than a fifth of the largest gap: the fields of a well stay
    together.
    """
    across, along = (_y, _x) if snake == "horizontal" else (_x, _y)
    sign = -1.0 if snake == "horizontal" else 1.0  # rows from the top: y falls, A1 is at the origin
    ordered = sorted(places, key=lambda p: sign * across(p))
    gaps = [abs(across(b) - across(a)) for a, b in pairwise(ordered)]
    step = max(gaps, default=0.0) / 5
    lines: list[list[Place]] = []
    for place in ordered:
        if lines and abs(across(place) - across(lines[-1][-1])) <= step:
            lines[-1].append(place)
        else:
            lines.append([place])
    path: list[Place] = []
    for number, line in enumerate(lines):
        forward = sorted(line, key=along if snake == "horizontal" else lambda p: -_y(p))
        path += forward if number % 2 == 0 else forward[::-1]
    return path


def _x(place: Place) -> float:
    return place.x


def _y(place: Place) -> float:
    return place.y
