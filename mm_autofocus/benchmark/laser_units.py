"""What one unit of `bench laser` is, and how it is measured: a training, a set of stacks, one focus run, or a plate.

A unit knows everything that it depends on, so that any process can measure it, now or when a killed run goes on. The
trained readouts come from a folder; a worker that does not share it trains what it needs again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.laser_models import (
    SHAPE,
    Effort,
    days,
    knocked_day,
    next_days,
    readout,
    record,
    rng_of,
    spot,
)
from mm_autofocus.benchmark.runner import MEASURED, Case, Measure, Method, Outcome
from mm_autofocus.readouts import Card, LaserModel, load_model
from mm_autofocus.readouts.lookup import LookupReadout
from mm_autofocus.readouts.paper import PaperReadout
from mm_autofocus.readouts.profile import ProfileReadout
from mm_autofocus.readouts.reading import Readout
from mm_autofocus.readouts.zero import find_zero
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.result import Status
from mm_autofocus.simulation.laser_day import LaserDay
from mm_autofocus.simulation.plate import Drift, Plate
from mm_autofocus.strategies.laser import Laser, LaserSettings
from mm_autofocus.strategies.laser_care import KNOWN_UM
from mm_autofocus.strategy import Frame
from mm_autofocus.training.laser import adapt
from mm_autofocus.training.laser_paper import transfer_paper
from mm_autofocus.training.laser_synthetic import RANGES, synthetic_frames

Array = NDArray[np.float64]
Labelled = tuple[Array, NDArray[np.uint16]]
"""Defocus in µm, shape (planes,), and images of shape (planes, height, width)."""
Part = Literal["training", "stacks", "recalibration", "starts", "plates", "zero", "knocked"]

SECONDS_PER_WELL = 75.0
DEPTH_UM = 0.6
"""Depth of field of the paper's objective."""


class LaserCase(Case):
    """One thing to measure.

    Attributes
    ----------
    part
        What of the bench it is.
    kind, trained, when
        Range, days of the training, and days of the test, where they matter.
    start_um, index
        Of a focus run: where it begins, and which of them it is.
    snake, steps
        Of a plate.
    effort
        How much is recorded and trained.
    """

    part: Part
    kind: str = ""
    trained: str = ""
    when: str = ""
    start_um: float = 0.0
    index: int = 0
    snake: str = ""
    steps: str = "two"
    effort: Effort


def measurer(folder: Path) -> Measure[LaserCase, Method]:
    """Return what measures a unit, with the trained readouts in a folder."""
    return partial(measure_laser, folder)


def measure_laser(folder: Path, case: LaserCase, method: Method) -> Outcome:
    """Measure one unit; the truth is used to begin where the case says, and to score."""
    if case.part == "starts":
        return _start(folder, case, method.strategy)
    began = time.process_time()
    details = _PARTS[case.part](folder, case, method.strategy)
    return Outcome(status=MEASURED, success=True, compute_seconds=time.process_time() - began, details=details)


def spread(errors: list[Array], kind: str) -> dict[str, Any]:
    """Return RMS, median and 95 % of the absolute error, and the share within 1 µm (long range) or 0.2 µm."""
    e = np.concatenate(errors)
    tolerance = 1.0 if kind == "long" else 0.2
    return {
        "rms": rounded(np.sqrt((e**2).mean())),
        "median": rounded(np.median(np.abs(e))),
        "p95": rounded(np.percentile(np.abs(e), 95)),
        f"within {tolerance:g} µm": f"{100 * float((np.abs(e) < tolerance).mean()):.0f} %",
    }


def rounded(value: Any) -> float:
    """Return a number for JSON."""
    return round(float(value), 3)


def _listed(values: Any) -> list[Any]:
    made: list[Any] = np.round(np.asarray(values), 3).tolist()
    return made


# ---------------------------------------------------------------------- stacks
def _train(folder: Path, case: LaserCase, method: str) -> dict[str, Any]:
    readout(folder, method, case.trained, case.kind, case.effort)
    return {}


@lru_cache(maxsize=1)
def _test(kind: str, when: str, quick: bool) -> list[Labelled]:
    """Return the test stacks of a range: the same ones for every method."""
    rng = rng_of(f"{kind}, {when}")
    over, hours = ([days()[9]], (5.0, 6.0, 7.0)) if when == "same day" else (next_days(quick), (1.0, 4.0))
    return [labelled for day in over for labelled in _stacks_of(day, kind, hours, quick, rng)]


def _stacks_of(
    day: LaserDay, kind: str, hours: tuple[float, ...], quick: bool, rng: np.random.Generator
) -> list[Labelled]:
    z = np.linspace(-1, 1, 41 if quick else 81) * RANGES[kind]
    return [(z, spot().images(z, day.state(hour), rng)) for hour in hours]


def _stacks(folder: Path, case: LaserCase, method: str) -> dict[str, Any]:
    read = readout(folder, method, case.trained, case.kind, case.effort)
    stacks = _test(case.kind, case.when, case.effort.quick)
    errors = [read.predict(images)[0] - z for z, images in stacks]
    return {"row": spread(errors, case.kind), "z": _listed(stacks[0][0]), "errors": _listed(errors)}


def _recalibration(folder: Path, case: LaserCase, method: str) -> dict[str, Any]:
    """Trained on one day, next days, recalibrated from ten frames (ours), or from a fresh sweep (look-up table)."""
    known, rng = np.array(KNOWN_UM), rng_of(case.name)
    errors: list[Array] = []
    spent: list[float] = []
    for day in next_days(case.effort.quick):
        frames = spot().images(known, day.state(0.5), rng)
        z = np.linspace(-1, 1, 201) * RANGES[case.kind]
        sweep = spot().images(z, day.state(0.5), rng)
        today: Readout
        if method == "ours":
            own = readout(folder, method, "1 day", case.kind, case.effort)
            assert isinstance(own, ProfileReadout)
            began = time.process_time()
            today = own.recalibrated(frames, known)
            spent.append(time.process_time() - began)
        else:
            today = LookupReadout.fit(sweep, z, RANGES[case.kind])
        for where, images in _stacks_of(day, case.kind, (1.0, 4.0), case.effort.quick, rng):
            errors.append(today.predict(images)[0] - where)
    note = "10 frames" if method == "ours" else "fresh sweep of 201 frames"
    return {"row": {**spread(errors, case.kind), "note": note}, "seconds": float(np.median(spent)) if spent else 0.0}


def _zero(folder: Path, case: LaserCase, method: str) -> dict[str, Any]:  # noqa: ARG001
    """How well the paper's zero criterion repeats."""
    zeros, signs, rng = [], set(), rng_of(case.name)
    for day in next_days(case.effort.quick):
        one = []
        for hour in (1.0, 1.01, 1.02):
            z = np.linspace(-4, 4, 81)
            found = find_zero(z, spot().images(z, day.state(hour), rng))
            one.append(found.z_um)
            signs.add(found.sign)
        zeros.append(one)
    table = np.array(zeros)
    return {
        "row": {
            "bias": rounded(table.mean()), "sd within a day": rounded(table.std(1, ddof=1).mean()),
            "sd between days": rounded(table.mean(1).std()), "sign": "/".join(sorted(signs)),
        }
    }  # fmt: skip


def _knocked(folder: Path, case: LaserCase, method: str) -> dict[str, Any]:
    """An instrument that was knocked (3 x the drift): transfer learning against joint training, with 10 stacks."""
    day, kind = knocked_day(), case.kind
    tests = _stacks_of(day, kind, (3.0, 5.0), case.effort.quick, rng_of(f"knocked, {kind}"))
    base = readout(folder, method, "10 days", kind, case.effort)
    rows = {"as it was": spread([base.predict(images)[0] - z for z, images in tests], kind)}
    spent = 0.0
    if method != "lookup":
        own = record("knocked", [day], kind, tuple(np.linspace(0, 2, 10)), 41)
        began = time.process_time()
        after: Readout
        if method == "paper":
            assert isinstance(base, PaperReadout)
            seconds = 0.05 * case.effort.paper_seconds
            after = transfer_paper(base, own.small, own.defocus, own.stack, seconds=seconds)
        else:
            assert isinstance(base, ProfileReadout)
            after = adapt(base, own.frames(), synthetic_frames(kind, 120, 24, seed=12), epochs=15)
        spent = time.process_time() - began
        rows["after 10 stacks"] = spread([after.predict(images)[0] - z for z, images in tests], kind)
    return {"rows": rows, "seconds": spent}


# ---------------------------------------------------------------------- focusing
@dataclass(frozen=True, slots=True)
class _End:
    """Final defocus, how it ended, and what it cost."""

    defocus_um: float
    status: Status
    confidence: float | None
    found: bool
    images: int
    seconds: float


def _start(folder: Path, case: LaserCase, method: str) -> Outcome:
    """Focus from anywhere in ±100 µm on the next days, with the readouts of ten days."""
    over = next_days(case.effort.quick)
    day = over[case.index % len(over)]
    model = _model(folder, method, case.effort)
    end = _focus(method, model, day, 1.0 + case.index % 4, case.start_um, 0.0, "two", rng_of(case.name))
    return Outcome(
        status=end.status.value, success=end.status.ok and abs(end.defocus_um) <= DEPTH_UM / 2, error=end.defocus_um,
        depth=DEPTH_UM, confidence=end.confidence, images=end.images, compute_seconds=end.seconds,
        details={"start": rounded(case.start_um), "found": end.found},
    )  # fmt: skip


def _plate(folder: Path, case: LaserCase, method: str) -> dict[str, Any]:
    """96 wells of ±125 µm in 2 h, each begun where the last one ended."""
    plate = Plate("96", 250.0, drift=Drift.of_rate(2.0), seed=77)
    names = np.array(plate.well_names()).reshape(8, 12)
    lines = names if case.snake == "horizontal" else names.T
    wells = [str(w) for i, line in enumerate(lines) for w in (line if i % 2 == 0 else line[::-1])]
    wells = wells[:24] if case.effort.quick else wells
    day, model, rng = next_days(case.effort.quick)[0], _model(folder, method, case.effort), rng_of(case.name)
    ends: dict[str, float] = {}
    z = plate.focus_um(*plate.well_centre(wells[0]), 0.0)
    for i, well in enumerate(wells):
        seconds = i * SECONDS_PER_WELL
        surface = plate.focus_um(*plate.well_centre(well), seconds)
        end = _focus(method, model, day, 1.0 + seconds / 3600, z - surface, surface, case.steps, rng)
        z = end.defocus_um + surface
        ends[well] = rounded(end.defocus_um)
    return {"wells": ends}


@lru_cache(maxsize=3)
def _model(folder: Path, method: str, effort: Effort) -> LaserModel:
    long, short = (readout(folder, method, "10 days", kind, effort) for kind in ("long", "short"))
    card = Card(
        readout="profile" if method == "ours" else method,  # type: ignore[arg-type]
        objective=load_model().card.objective, shape=SHAPE, long_um=long.range_um, short_um=short.range_um,
    )  # fmt: skip
    return LaserModel(card, long, short)


def _focus(
    method: str, model: LaserModel, day: LaserDay, hours: float, start: float, surface: float, steps: str,
    rng: np.random.Generator,
) -> _End:  # fmt: skip
    """Focus once: ours as the strategy that an acquisition runs, the others by one image for each step."""
    state, spent, images = day.state(hours), 0.0, 0
    if method == "ours":
        laser = Laser(LaserSettings(steps=steps), model)  # type: ignore[arg-type]
        request = FocusRequest(
            Event(), {"z": start + surface}, {"z": Limits(-240.0, 240.0)}, depth_of_field_um=DEPTH_UM
        )  # fmt: skip
        generator = laser.focus(request)
        began = time.process_time()
        look = next(generator)
        while True:
            spent += time.process_time() - began
            z = look.targets["z"]
            image = spot().images(z - surface, state, rng)[0]
            images += 1
            began = time.process_time()
            try:
                look = generator.send(Frame(image, {"z": z}))
            except StopIteration as stop:
                spent += time.process_time() - began
                verdict = stop.value
                end = verdict.target.get("z", start + surface) - surface
                return _End(end, verdict.status, verdict.confidence, bool(verdict.target), images, spent)
    defocus = start
    for read in {"two": (model.long, model.short), "long": (model.long,), "short": (model.short,)}[steps]:
        assert read is not None
        frame = spot().images(defocus, state, rng)
        began = time.process_time()
        defocus -= float(read.predict(frame)[0][0])
        spent += time.process_time() - began
        images += 1
    return _End(defocus, Status.CONVERGED, None, True, images, spent)


_PARTS: dict[Part, Callable[[Path, LaserCase, str], dict[str, Any]]] = {
    "training": _train, "stacks": _stacks, "recalibration": _recalibration, "plates": _plate, "zero": _zero,
    "knocked": _knocked,
}  # fmt: skip
