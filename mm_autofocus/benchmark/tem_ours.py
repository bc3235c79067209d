"""Measures disc geometry: on the paper's datasets, and in the loop on instruments, days and conditions held out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.tem_data import Recorded
from mm_autofocus.benchmark.tem_drive import drive, turn
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.response import ResponseMap, fit_response
from mm_autofocus.estimators.wobble_alignment import estimate_wobble
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.simulation.tem_day import APERTURES, TemDay
from mm_autofocus.strategies.aperture import Aperture, ApertureSettings

Array = NDArray[np.float64]

KNOBS = ("aperture_x", "aperture_y")
FIRST_UNIT, FIRST_DAY = 7000, 500
"""Instruments and days of the loops; nothing was tuned on them."""
HUMAN_STEPS = 20.0
"""An operator is content within 20 units (section 3.4)."""
TOLERANCE_STEPS = 5.0
SAMPLES = (3, 4, 5, 8, 12, 20, 40, 67)


# ---------------------------------------------------------------------- the paper's datasets
def percent(errors: Array) -> float:
    """Root mean square over both axes, per cent of 1000 steps."""
    return float(np.sqrt(np.mean(np.square(errors)))) / 10.0


def _fit(parts: list[tuple[Array, Array, Array]]) -> ResponseMap:
    shifts, vectors, covariances = (np.concatenate(each) for each in zip(*parts, strict=True))
    return fit_response(KNOBS, shifts, vectors, zero=True, covariances=list(covariances))


def _predict(response: ResponseMap, vectors: Array) -> Array:
    return np.array([response.offset(v) for v in vectors])


def on_datasets(sets: dict[str, Recorded], splits: int = 20) -> dict[str, Any]:
    """The rows of tables 2 and 3 and of figure 8 for a 2 x 3 linear map behind disc geometry."""
    table2 = {}
    for name in ("14", "13", "10", "6", "10/13", "10/13/14", "10/13/14/6"):
        parts = [sets[n] for n in name.split("/")]
        shifts = np.concatenate([part.shifts for part in parts])
        vectors = np.concatenate([part.vectors for part in parts])
        cov = np.concatenate([part.covariances for part in parts])
        errors = []
        for seed in range(splits):
            order = np.random.default_rng(seed).permutation(len(shifts))
            cut = int(0.8 * len(order))
            inside, outside = order[:cut], order[cut:]
            response = _fit([(shifts[inside], vectors[inside], cov[inside])])
            errors.append(percent(_known(_predict(response, vectors[outside]) - shifts[outside])))
        table2[name] = errors
    night = [sets["10"], sets["13"]]
    response = _fit([(each.shifts, each.vectors, each.covariances) for each in night])
    table3: dict[str, float] = {}
    figure11 = {}
    for name in ("14", "6"):
        left = _known(_predict(response, sets[name].vectors) - sets[name].shifts)
        table3[name] = round(percent(left), 3)
        table3[f"{name} centred"] = round(percent(left - left.mean(0)), 3)
        figure11[name] = {"shifts": np.round(sets[name].shifts, 2).tolist(), "errors": np.round(left, 2).tolist()}
    return {
        "table2": {name: round(float(np.median(each)), 3) for name, each in table2.items()},
        "table2_worst": {name: round(float(np.max(each)), 3) for name, each in table2.items()},
        "table3": table3,
        "figure8": _by_samples(sets["14"]),
        "figure11": figure11,
        "unread": {name: int(np.isnan(each.vectors[:, 0]).sum()) for name, each in sets.items()},
    }


def _known(errors: Array) -> Array:
    return errors[np.isfinite(errors).all(axis=1)]


def _by_samples(each: Recorded, draws: int = 30) -> dict[str, dict[str, float]]:
    """RMSE by the number of calibration samples; those few are drawn at random, as a network's would be."""
    outcome = {}
    for count in SAMPLES:
        errors = []
        for seed in range(draws):
            order = np.random.default_rng([seed, count]).permutation(len(each.shifts))
            inside, outside = order[:count], order[count:]
            if len(outside) < 5:
                break
            try:
                response = _fit([(each.shifts[inside], each.vectors[inside], each.covariances[inside])])
            except SettingsError:
                continue
            errors.append(percent(_known(_predict(response, each.vectors[outside]) - each.shifts[outside])))
        if errors:
            outcome[str(count)] = {
                "median": round(float(np.median(errors)), 3), "p90": round(float(np.percentile(errors, 90)), 3)
            }  # fmt: skip
    return outcome


# ---------------------------------------------------------------------- in the loop
@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the loop's table.

    Attributes
    ----------
    name
        For people.
    start
        Distance of the aperture from aligned, steps.
    aperture, magnification
        Of the day that is aligned; the calibration is of aperture 2 at 5000.
    told
        True when the size of the hole is told to the strategy.
    wobble, c1
        Amplitude, and the lens value about which it is wobbled.
    change
        Fields of the day's condition to replace.
    response
        Factor on the calibration (1.2: off by 20 %); 0: none is given, it calibrates itself.
    shift_um
        Length of a beam shift that takes the beam off the detector, µm.
    same_day
        True to align on the day of the calibration.
    """

    name: str
    start: float = 200.0
    aperture: int = 2
    magnification: float = 5000.0
    told: bool = True
    wobble: float = 0.03
    c1: float = 1.0
    change: tuple[tuple[str, Any], ...] = ()
    response: float = 1.0
    shift_um: float = 0.0
    same_day: bool = False


CONDITIONS = (
    Condition("same day", same_day=True),
    Condition("other days"),
    Condition("other days, no calibration (its own moves)", response=0.0),
    Condition("wobble 2 %, off crossover by 1.2 %", wobble=0.02, c1=1.012),
    Condition("magnification x 0.5", magnification=2500.0),
    Condition("magnification x 1.7", magnification=8500.0),
    Condition("hole of 100 instead of 170, told", aperture=1),
    Condition("hole of 300 instead of 170, told", aperture=3),
    Condition("hole of 300 instead of 170, not told", aperture=3, told=False),
    Condition("start at 400, cut off", start=400.0),
    Condition("start at 600, cut off", start=600.0),
    Condition("calibration off by 20 %", response=1.2),
    Condition("soft edge, no fringes", change=(("edge", "soft"),)),
    Condition("a quarter of the dose, 15 % late frames", change=(("electrons", 220.0), ("stale", 0.15))),
    Condition("beam drift of 1 px per root second", change=(("drift_px", 1.0),)),
)
LOST = (
    Condition("lost: aperture at 800-1000, lens off by 5 %", start=900.0, c1=1.05),
    Condition("lost: beam shift of 16 to 19 µm", start=100.0, shift_um=17.5),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One run: the error (steps, x and y) after each correction and at the end, what was claimed, and what it cost."""

    condition: str
    seed: int
    steps: tuple[tuple[float, float], ...]
    end: tuple[float, float]
    confidence: float
    status: str
    images: int
    lost: bool
    visible: bool
    exposure_s: float
    compute_seconds: float
    instrument_seconds: float

    @property
    def worst(self) -> float:
        """Larger of both axes' errors at the end, steps."""
        return max(abs(self.end[0]), abs(self.end[1]))


def unit_of(index: int) -> int:
    """Return the instrument of a run."""
    return FIRST_UNIT + index % 20


def calibration(unit: int, points: int = 5) -> ResponseMap:
    """Calibrate an instrument on its day 0 with aperture 2: ``points`` wobbles about the middle of the window."""
    column = TemColumn(unit, 0)
    positions = [(0.0, 0.0), (150.0, 0.0), (0.0, 150.0), (-150.0, 0.0), (0.0, -150.0)][:points]
    vectors = []
    for position in positions:
        turn(column, dict(zip(KNOBS, position, strict=True)))
        frames, lens = [], np.linspace(0.97, 1.03, 7)
        for value in lens:
            turn(column, {"c1": float(value)})
            frames.append(column.image())
        vectors.append(estimate_wobble(frames, list(lens)).v)
    return fit_response(KNOBS, np.array(positions), np.array(vectors))


def run_case(condition: Condition, index: int, response: ResponseMap | None) -> Case:
    """Run the strategy once on an instrument and day of its own."""
    unit = unit_of(index)
    rng = np.random.default_rng([index, len(condition.name), 83])
    day = 0 if condition.same_day else FIRST_DAY + index
    state = TemDay.make(unit, day, condition.aperture)
    column = TemColumn(
        unit, day, condition.aperture, condition.magnification, condition=replace(state, **dict(condition.change))
    )
    angle = rng.uniform(0, 2 * math.pi)
    start = condition.start * (rng.uniform(0.9, 1.1) if condition in LOST else 1.0)
    truth = column.truth()
    position = np.array([truth[k] for k in KNOBS]) + start * np.array([math.cos(angle), math.sin(angle)])
    knobs = dict(zip(KNOBS, np.clip(np.round(position), -1000, 1000).tolist(), strict=True))
    turn(column, {**knobs, "c1": condition.c1})
    settings = ApertureSettings(wobble=condition.wobble)
    if condition.shift_um:
        angle, length = rng.uniform(0, 2 * math.pi), condition.shift_um + rng.uniform(-1.5, 1.5)
        turn(column, {"beam_shift_x": length * math.cos(angle), "beam_shift_y": length * math.sin(angle)})
        shift_knobs = ("beam_shift_x", "beam_shift_y")
        settings = ApertureSettings(search_knobs=shift_knobs, search_step=14.0, search_radius=40.0)
    if response is not None:
        ratio = APERTURES[condition.aperture] / APERTURES[2] if condition.told else 1.0
        response = response.scaled(condition.response * ratio)
    outcome = drive(Aperture(settings, response), column)
    column.wait(5.0)
    centre = column.truth()
    zero = np.array([centre[k] for k in KNOBS])
    wobbles = outcome.verdict.details.get("wobbles", [])
    steps = [np.array(w["position"]) - zero for w in wobbles[1:]]
    end = np.array([column.get(k) for k in KNOBS]) - zero
    x, y, _ = column.geometry()
    return Case(
        condition.name, index, tuple((float(s[0]), float(s[1])) for s in steps), (float(end[0]), float(end[1])),
        outcome.verdict.confidence, outcome.verdict.status.value, column.images,
        bool(wobbles) and wobbles[0]["trouble"] in ("no_beam", "too_few"), 0 <= x < 256 and 0 <= y < 256,
        column.images * column.exposure_s, outcome.compute_seconds, outcome.instrument_seconds,
    )  # fmt: skip


def loop_table(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """One row for each condition: RMSE after 1, 2 and 3 corrections and at the end, shares, confidence."""
    rows = []
    for condition in (*CONDITIONS, *LOST):
        mine = [c for c in cases if c.condition == condition.name]
        if not mine:
            continue
        row: dict[str, Any] = {"condition": condition.name, "runs": len(mine)}
        if condition.response and condition not in LOST:  # with its own calibration the first moves are no corrections
            for turn_ in (1, 2, 3):
                errors = [c.steps[min(turn_, len(c.steps)) - 1] if c.steps else c.end for c in mine]
                row[f"after {turn_}"] = round(percent(np.array(errors)), 3)
        ends = np.array([c.end for c in mine])
        row["end"] = round(percent(ends), 3)
        row["worst steps"] = round(max(c.worst for c in mine), 1)
        row["within 0.5 %"] = round(float(np.mean([c.worst <= TOLERANCE_STEPS for c in mine])), 3)
        row["within 2 %"] = round(float(np.mean([c.worst <= HUMAN_STEPS for c in mine])), 3)
        row["converged"] = round(float(np.mean([c.status == "converged" for c in mine])), 3)
        row["images"] = round(float(np.median([c.images for c in mine])), 1)
        if condition in LOST:
            gone = [c for c in mine if c.lost]
            row["lost at the start"] = len(gone)
            row["found again"] = round(float(np.mean([c.worst <= HUMAN_STEPS for c in gone])), 3) if gone else None
        rows.append(row)
    return rows


def confidence(cases: Sequence[Case]) -> dict[str, Any]:
    """How often an answer given with confidence above 0.9 was wrong, and the reliability by bins of confidence."""
    sure = [c for c in cases if c.confidence > 0.9]
    bins = []
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 0.97), (0.97, 1.001)):
        inside = [c for c in cases if low <= c.confidence < high]
        if inside:
            bins.append({
                "from": low, "to": min(high, 1.0), "runs": len(inside),
                "stated": round(float(np.mean([c.confidence for c in inside])), 3),
                "within 0.5 %": round(float(np.mean([c.worst <= TOLERANCE_STEPS for c in inside])), 3),
            })  # fmt: skip
    return {
        "runs": len(cases), "sure": len(sure), "wrong by 0.5 %": sum(c.worst > TOLERANCE_STEPS for c in sure),
        "wrong by 2 %": sum(c.worst > HUMAN_STEPS for c in sure), "reliability": bins,
    }  # fmt: skip


def milliseconds(repeats: int = 20) -> dict[str, float]:
    """Processor time of one estimate (7 frames of 256 x 256), ms: median and slowest."""
    times = []
    for frames, lens in _series(repeats):
        estimate_wobble(frames, lens)
        began = time.process_time()
        estimate_wobble(frames, lens)
        times.append((time.process_time() - began) * 1e3)
    return {"median": round(float(np.median(times)), 1), "slowest": round(float(np.max(times)), 1)}


def _series(count: int) -> Iterator[tuple[list[Any], list[float]]]:
    for index in range(count):
        column = TemColumn(FIRST_UNIT + index, FIRST_DAY)
        turn(column, {"aperture_x": 100.0 - 10 * index, "aperture_y": 60.0})
        frames, lens = [], [float(v) for v in np.linspace(0.97, 1.03, 7)]
        for value in lens:
            turn(column, {"c1": value})
            frames.append(column.image())
        yield frames, lens
