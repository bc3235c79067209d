"""Focus runs by single images on a simulated column at any magnification: the cases, and what drives them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.focus_score import score_of_blur
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.simulation.electron_probe import Probe, ProbeFamily
from mm_autofocus.simulation.sem_column import Column, ColumnSetup
from mm_autofocus.simulation.sem_specimen import Specimen
from mm_autofocus.strategies.dual_network import DualNetwork
from mm_autofocus.strategies.focus_belief import depth_um, reach_um
from mm_autofocus.strategy import Frame, Look, Verdict
from mm_autofocus.training.score_data import MAGNIFICATIONS, SEEN, TABLETOP, UNSEEN

FRAME = (320, 240)
DWELL_NS = 50.0
"""The fast mode: 21 electrons of a pixel of yield 1."""

CASE_SEED = 40_000
START_SCORE = 0.0
"""Starts lie as far out as the blur of this score, evenly: beyond it nothing is to be recognised."""

_PLACE_UM = 700.0


@dataclass(frozen=True, slots=True)
class FocusCase:
    """One start.

    Attributes
    ----------
    kind, seed, magnification
        Specimen, and how it is looked at.
    place_um
        Where, (x, y).
    start_um
        Working distance less the best one.
    convergence
        The column's angle over what the settings say.
    family
        Shape of the probe.
    """

    kind: str
    seed: int
    magnification: float
    place_um: tuple[float, float]
    start_um: float
    convergence: float = 1.0
    family: ProbeFamily = ProbeFamily.SOFT

    @property
    def setup(self) -> ColumnSetup:
        """The instrument."""
        probe = TABLETOP.probe
        made = Probe(
            probe.convergence_mrad * self.convergence, probe.core_nm, probe.softness, self.family, probe.voltage_kv,
            seed=self.seed,
        )  # fmt: skip
        return replace(TABLETOP, probe=made)


@dataclass(frozen=True, slots=True)
class FocusOutcome:
    """How a run ended.

    Attributes
    ----------
    case, status, confidence, frames
        What it was, and what the strategy says; frames until its verdict.
    seconds, instrument_s
        In the strategy's code, and on the column's clock.
    dose
        Electrons that landed until its verdict, per nm².
    final_um
        Working distance less the best one at the end.
    final, best
        True score there, and the best in the range.
    read_final, read_best
        What the score network says of both places.
    trajectory, scores
        Working distance less the best one, and score, of each frame.
    depth_um
        Working distance over which the score falls by less than 0.15.
    """

    case: FocusCase
    status: str
    confidence: float
    frames: int
    seconds: float
    final_um: float
    final: float
    best: float
    read_final: float
    read_best: float
    depth_um: float
    dose: float
    instrument_s: float
    trajectory: tuple[float, ...] = field(default=())
    scores: tuple[float, ...] = field(default=())


def cases(kinds: Sequence[str], count: int, *, seed: int = CASE_SEED, untrained: bool = False) -> Iterator[FocusCase]:
    """Yield starts; magnifications go through each sample's range.

    Parameters
    ----------
    kinds
        Samples.
    count
        Starts of each.
    seed
        Of the first specimen.
    untrained
        With probes of shapes that were not trained on, and angles 20 % off.
    """
    for kind in kinds:
        low, high = MAGNIFICATIONS[kind]
        for i in range(count):
            rng = np.random.default_rng([0x5CA, seed, i, (*SEEN, *UNSEEN).index(kind)])
            magnification = low * (high / low) ** ((i + 0.5) / count)
            convergence = float(rng.choice([0.8, 1.2])) if untrained else 1.0
            family = (ProbeFamily.POLYGON, ProbeFamily.WAVE)[i % 2] if untrained else ProbeFamily.SOFT
            pixel_um = 114.3e3 / magnification / FRAME[0]
            reach = reach_um(pixel_um, TABLETOP.probe.convergence_mrad * convergence, START_SCORE)
            start = float(rng.uniform(-reach, reach))
            place = float(rng.uniform(-_PLACE_UM, _PLACE_UM)), float(rng.uniform(-_PLACE_UM, _PLACE_UM))
            yield FocusCase(kind, seed + i, magnification, place, start, convergence, family)


def column_of(case: FocusCase) -> Column:
    """Return a column as the case has it, at its start, over a place with something to see."""
    specimen = Specimen(case.kind, case.seed)
    column = Column(case.setup, case.kind, case.seed, specimen=specimen)
    column.frame, column.dwell_ns = FRAME, DWELL_NS
    column.magnification = case.magnification
    rng = np.random.default_rng([0x5CB, case.seed])
    for attempt in range(6):
        place = case.place_um if attempt == 0 else rng.uniform(-_PLACE_UM, _PLACE_UM, 2)
        column.x_um, column.y_um = float(place[0]), float(place[1])
        if specimen.view(column.x_um, column.y_um, column.pixel_nm * 1e-3, (240, 320)).std() > 0.05:
            break
    column.working_distance_um += case.start_um - column.truth().defocus_um
    return column


def true_score(column: Column) -> float:
    """Return the label of what the column shows now."""
    pixel_um = column.pixel_nm * 1e-3
    blur = np.asarray(column.calibration().to_blur(column.truth(), pixel_um))
    return score_of_blur(float(np.sqrt(np.sum(blur**2) / 2.0)) * pixel_um, pixel_um)


def run(case: FocusCase, strategy: DualNetwork) -> FocusOutcome:
    """Focus once and score how it ended by truth."""
    column = column_of(case)
    start = column.working_distance_um
    pixel_um = column.pixel_nm * 1e-3
    zero = start - column.truth().defocus_um
    request = FocusRequest(
        Event(axes={"position": 0}), {"z": start}, {"z": Limits(2000.0, 20000.0)}, pixel_um=pixel_um, seed=case.seed,
        depth_of_field_um=depth_um(pixel_um, TABLETOP.probe.convergence_mrad),
    )  # fmt: skip
    verdict, frames, seconds = drive(column, strategy, request)
    dose, instrument_s = column.dose, column.clock_s
    column.working_distance_um = verdict.target.get("z", start)
    final, final_um = true_score(column), column.truth().defocus_um
    read_final = strategy.read(column.scan(), pixel_um).score
    column.working_distance_um -= column.truth().defocus_um
    best, read_best = true_score(column), strategy.read(column.scan(), pixel_um).score
    return FocusOutcome(
        case, str(verdict.status), verdict.confidence, frames, seconds, final_um, final, best, read_final, read_best,
        depth_um(pixel_um, case.setup.probe.convergence_mrad), dose, instrument_s,
        tuple(float(at) - zero for at in verdict.details.get("trajectory", ())), tuple(verdict.scores),
    )  # fmt: skip


def drive(column: Column, strategy: DualNetwork, request: FocusRequest) -> tuple[Verdict, int, float]:
    """Return the verdict, the number of frames, and the processor's seconds spent in the strategy."""
    generator = strategy.focus(request)
    frames, spent = 0, 0.0
    begin = time.process_time()
    look: Look = next(generator)
    while True:
        spent += time.process_time() - begin
        column.working_distance_um = look.targets["z"]
        image: NDArray[Any] = column.scan()
        frames += 1
        frame = Frame(image, {"z": column.working_distance_um}, column.pixel_nm * 1e-3)
        begin = time.process_time()
        try:
            look = generator.send(frame)
        except StopIteration as stop:
            return stop.value, frames, spent + time.process_time() - begin
