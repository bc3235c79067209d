"""Figure 4 of DeepFocus: setup B, read by models that know setup A only, and by the same ones after recalibration."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.benchmark.sem_cases import (
    Case,
    Conditions,
    cases,
    knobs_of,
    location_cases,
    open_column,
    set_knobs,
    take_pair,
)
from mm_autofocus.benchmark.sem_methods import Method, Trajectory, deepscore_loop, pair_loop
from mm_autofocus.benchmark.sem_scoring import loop_row
from mm_autofocus.errors import FocusError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimator
from mm_autofocus.simulation.electron_probe import ProbeFamily
from mm_autofocus.simulation.sem_column import SETUP_B, Column
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.training.known_pairs import KnownPair, random_aberrations
from mm_autofocus.training.sem_calibration import STEPS, fit_calibration
from mm_autofocus.training.sem_recalibration import recalibrate_deepfocus

ON_B = Conditions(SETUP_B.electrons_per_pixel, setup=SETUP_B)
LABEL_SD = np.array([0.3, 0.1, 0.1])
"""Errors of an expert's focus by hand that the labels of the fine-tuning carry, µm and a.u."""
ROUGHLY = np.array([6.0, 1.5, 1.5])
"""How far from focus DeepScore begins at each place, half ranges, µm and a.u."""
LABEL_IMAGES = 75
FAMILY = ProbeFamily.WAVE
"""Of setup B's probe, the one instrument of this figure: what is labelled comes from it, at other places."""
PATCHES = 10
"""Patches of a pair that DeepFocus reads in this figure, as in the paper's."""
OF_A_PLACE = 10
"""Aberrations at each place."""


def measure_recalibration(
    methods: dict[str, Method], *, starts: int, iterations: int, labelled_pairs: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the closed loops on setup B by model, as `loop_row` makes them, with a ``note``.

    Parameters
    ----------
    methods
        "spectral" and "deepfocus" take part, where they are there.
    starts, iterations
        How many loops, and of how many pairs; starts and places as in figure 5.
    labelled_pairs
        Pairs for fine-tuning DeepFocus (100 in the paper); 0 leaves it out.
    say
        Told what goes on.
    """
    places = location_cases(starts)
    on_a = Conditions(84.0).calibration()
    made: dict[str, Any] = {}

    def loops(name: str, run: Callable[[Column], Any], note: str) -> None:
        made[name] = loop_row([run(open_column(case, ON_B)) for case in places], iterations) | {"note": note}

    if "spectral" in methods:
        ours = methods["spectral"]
        loops("ours, calibration of setup A", lambda c: ours.loop(c, on_a, iterations), "as it comes")
        assert ours.estimator is not None
        first = open_column(places[0], ON_B)
        fitted = fit_calibration(known_pairs(first, STEPS), ours.estimator, on_a)
        note = f"calibrated from {2 * len(STEPS)} frames at one place"
        loops("ours, calibrated", lambda c: ours.loop(c, fitted, iterations), note)
    if "deepfocus" in methods:
        from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator

        network = DeepFocusEstimator.load(patches=PATCHES)
        loops("StackedConv, trained on setup A", lambda c: pair_loop(c, network, on_a, iterations), "as it comes")
        for who, label in (("an expert", _by_hand), ("DeepScore", _by_deepscore)) if labelled_pairs else ():
            try:
                tuned, errors = _fine_tuned(labelled_pairs, label, say)
            except FocusError as error:
                say(f"DeepFocus was not recalibrated with labels of {who}: {error}")
                continue
            note = (
                f"last three layers, {labelled_pairs} pairs at {len(errors)} places labelled by {who}, median errors "
                f"of the labels {np.median(errors[:, 0]):.2f} µm, {np.median(errors[:, 1:]):.2f} a.u."
            )
            name = f"StackedConv, recalibrated by {who}"
            loops(name, partial(_with, tuned, on_a, iterations), note)
    return made


def _with(estimator: PairEstimator, calibration: ColumnCalibration, iterations: int, column: Column) -> Trajectory:
    return pair_loop(column, estimator, calibration, iterations)


def known_pairs(column: Column, offsets: Any) -> list[KnownPair]:
    """Take a pair at each offset (µm, a.u., a.u.) from where the column stands, as ``recalibrate sem`` does."""
    here, pairs = knobs_of(column), []
    for offset in offsets:
        set_knobs(column, here + np.array(offset))
        under, over, step_um = take_pair(column)
        at = Aberration(*(float(v) for v in knobs_of(column) - here))
        pairs.append(KnownPair(under, over, at, step_um, column.pixel_nm * 1e-3))
    set_knobs(column, here)
    return pairs


Label = Callable[[Column, np.random.Generator], None]
"""Focuses a column as well as it can, so that pairs around where it then stands are labelled by their distance."""


def _by_hand(column: Column, rng: np.random.Generator) -> None:
    """Focus as an expert does, to within `LABEL_SD`."""
    column.detune(Aberration(*(float(v) for v in rng.standard_normal(3) * LABEL_SD)))


def _by_deepscore(column: Column, rng: np.random.Generator) -> None:
    """Focus from where a user has roughly focused, by DeepScore and the downhill simplex (Recalibration procedure)."""
    column.detune(Aberration(*(float(v) for v in rng.uniform(-1, 1, 3) * ROUGHLY)))
    deepscore_loop(column, ON_B.calibration(), images=LABEL_IMAGES)


def _fine_tuned(count: int, label: Label, say: Callable[[str], None]) -> tuple[PairEstimator, NDArray[np.float64]]:
    """Return DeepFocus with its last layers trained on pairs of setup B at other places, and the labels' errors."""
    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator

    rng = np.random.default_rng(0x4F)
    pairs: list[KnownPair] = []
    errors = []
    aberrations = random_aberrations(count, 0)
    places = cases(-(-count // OF_A_PLACE), 8, (0.0, 0.0), tissue=True)
    for number, place in enumerate(places):
        case = Case(SpecimenKind.TISSUE, place.seed, Aberration(0.0), FAMILY, place.place_um)
        column = open_column(case, ON_B)
        label(column, rng)
        errors.append(np.abs(column.truth().vector()))
        pairs += known_pairs(column, aberrations[number * OF_A_PLACE : (number + 1) * OF_A_PLACE])
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "tuned.json"
        recalibrate_deepfocus(pairs, card, say=say)
        return DeepFocusEstimator.load(card, patches=PATCHES), np.array(errors)
