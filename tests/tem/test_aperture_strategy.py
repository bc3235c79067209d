"""The strategy on the simulated column: it centres, confirms, finds a lost beam, and refuses to move blindly."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mm_autofocus.benchmark.tem_drive import Drive, drive, request_for, turn
from mm_autofocus.errors import SettingsError, StrategyError
from mm_autofocus.estimators.response import ResponseMap
from mm_autofocus.request import Budget, Limits
from mm_autofocus.result import Status
from mm_autofocus.simulation.tem_column import RANGES, TemColumn
from mm_autofocus.simulation.tem_day import TemDay
from mm_autofocus.strategies.alignment import chance_inside, spiral
from mm_autofocus.strategies.aperture import Aperture, ApertureSettings
from mm_autofocus.strategies.beam_centring import BeamCentring, BeamCentringSettings
from mm_autofocus.strategy import Frame

KNOBS = ("aperture_x", "aperture_y")


def off(dx: float, dy: float, seed: int = 21, day: int = 7, **arguments: Any) -> TemColumn:
    column = TemColumn(seed, day, **arguments)
    truth = column.truth()
    turn(column, {"aperture_x": round(truth["aperture_x"] + dx), "aperture_y": round(truth["aperture_y"] + dy)})
    return column


def error(column: TemColumn) -> float:
    truth = column.truth()
    return max(abs(column.get(name) - truth[name]) for name in KNOBS)


def put_back(column: TemColumn, outcome: Drive, before: dict[str, float]) -> bool:
    del outcome
    return all(column.get(name) == pytest.approx(value, abs=1.01) for name, value in before.items())


@pytest.mark.parametrize(
    ("dx", "dy"),
    [(0, 0), (150, -120), (-240, 60), (420, 0), (-380, 420)],
    ids=["centred", "near", "far", "cut", "away"],
)
def test_it_centres_the_aperture_without_a_calibration(dx: float, dy: float) -> None:
    column = off(dx, dy)
    outcome = drive(Aperture(), column)
    assert outcome.verdict.status is Status.CONVERGED
    assert error(column) < 5
    assert column.c1 == 1.0
    assert outcome.verdict.confidence > 0.7
    assert len(outcome.verdict.scores) == len(outcome.path)


def test_with_a_calibration_one_correction_and_one_confirming_wobble_are_enough() -> None:
    first = off(0, 0, day=1)
    fitted = drive(Aperture(ApertureSettings(calibration_points=5)), first).verdict.details["response"]
    response = ResponseMap(KNOBS, tuple(tuple(row) for row in fitted))  # type: ignore[arg-type]
    column = off(150, 100, day=9)
    outcome = drive(Aperture(response=response), column)
    assert outcome.verdict.status is Status.CONVERGED
    assert error(column) < 5
    assert len(outcome.path) <= 7 * 2 + 2 + 7  # two wobbles, late frames again, at most a third
    assert len(outcome.verdict.details["wobbles"]) >= 2


def test_a_calibration_of_another_hole_is_corrected_on_the_way() -> None:
    fitted = drive(Aperture(), off(0, 0, day=1)).verdict.details["response"]
    response = ResponseMap(KNOBS, tuple(tuple(row) for row in fitted))  # type: ignore[arg-type]
    column = off(200, 50, aperture=3)
    assert drive(Aperture(response=response), column).verdict.status is Status.CONVERGED
    assert error(column) < 5


@pytest.mark.parametrize("wobble_knob", ["c2", "intensity"])
def test_another_lens_can_be_wobbled(wobble_knob: str) -> None:
    column = off(120, -40)
    request_limits = {name: Limits(*RANGES.get(name, (-1000, 1000))) for name in (*KNOBS, wobble_knob)}
    outcome = drive(
        Aperture(ApertureSettings(wobble_knob=wobble_knob, wobble=0.01)), column,
        start={name: column.get(name) for name in request_limits}, limits=request_limits,
    )  # fmt: skip
    assert outcome.verdict.status is Status.CONVERGED
    assert error(column) < 6


# ---------------------------------------------------------------------- what must not be moved blindly
@pytest.mark.parametrize(
    ("fault", "word"),
    [("valve", "no beam"), ("lens", "not respond"), ("saturated", "saturated"), ("large", "larger than the frame")],
)
def test_nothing_is_moved_blindly_and_everything_goes_back(fault: str, word: str) -> None:
    column = off(60, 30, capture="camera", condition=dataclasses.replace(TemDay.make(21, 7, 2), drift_px=0.02))
    settings = ApertureSettings(search_step=0.0)
    if fault == "valve":
        column.beam_on = False
    elif fault == "lens":
        turn(column, {"c1": 1.02})
        column.lens_responds = False
    elif fault == "saturated":
        turn(column, {"c1": 1.05})
        column.exposure_s, settings = 60.0, ApertureSettings(search_step=0.0, wobble=0.01)
    else:
        turn(column, {"c1": 1.05})
        column.magnification, settings = 15_000.0, ApertureSettings(search_step=0.0, wobble=0.01)
    before = {name: column.get(name) for name in (*KNOBS, "c1")}
    outcome = drive(Aperture(settings), column)
    assert outcome.verdict.status is Status.NO_SIGNAL
    assert word in outcome.verdict.reason
    assert outcome.verdict.target == {}
    assert set(outcome.path) == {(before["aperture_x"], before["aperture_y"])}
    assert put_back(column, outcome, before)


def test_a_jammed_drive_is_noticed() -> None:
    fitted = drive(Aperture(), off(0, 0, day=1)).verdict.details["response"]
    response = ResponseMap(KNOBS, tuple(tuple(row) for row in fitted))  # type: ignore[arg-type]
    column = off(180, 90)
    column.aperture_responds = False
    outcome = drive(Aperture(response=response), column)
    assert outcome.verdict.status is Status.NO_SIGNAL
    assert "did not follow" in outcome.verdict.reason


def test_an_end_stop_is_told_and_nothing_gained() -> None:
    column = off(200, 0)
    limits = dict(request_for(column).limits)
    low = column.get("aperture_x") - 150
    limits["aperture_x"] = Limits(low, low + 400)
    before = {name: column.get(name) for name in (*KNOBS, "c1")}
    outcome = drive(Aperture(), column, limits=limits)
    assert outcome.verdict.status is Status.AT_LIMIT
    assert "aperture_x" in outcome.verdict.reason
    assert put_back(column, outcome, before)


def test_a_lens_without_room_for_its_wobble_is_told() -> None:
    column = off(50, 0)
    limits = {**request_for(column).limits, "c1": Limits(0.999, 1.001)}
    outcome = drive(Aperture(), column, limits=limits)
    assert outcome.verdict.status is Status.AT_LIMIT
    assert "no room" in outcome.verdict.reason


def test_a_lens_at_zero_needs_an_absolute_wobble() -> None:
    request = request_for(TemColumn(1, 0))
    with pytest.raises(StopIteration) as stopped:
        next(Aperture().focus(dataclasses.replace(request, start={**request.start, "c1": 0.0})))
    assert stopped.value.value.status is Status.NO_SIGNAL
    assert "wobble_absolute" in stopped.value.value.reason


# ---------------------------------------------------------------------- a lost beam
def test_a_beam_lost_by_the_aperture_is_found_again() -> None:
    column = off(650, -700)
    turn(column, {"c1": 1.05})
    outcome = drive(Aperture(), column)
    assert outcome.verdict.details["searched"] >= 1
    assert error(column) < 8


def test_a_beam_lost_by_its_shift_is_found_again() -> None:
    column = off(80, 40)
    turn(column, {"beam_shift_x": -14.0, "beam_shift_y": 11.0})
    settings = ApertureSettings(search_knobs=("beam_shift_x", "beam_shift_y"), search_step=14.0, search_radius=40.0)
    outcome = drive(Aperture(settings), column)
    assert outcome.verdict.status is Status.CONVERGED
    assert error(column) < 8
    x, y, _ = column.geometry()
    assert 40 < x < 216
    assert 40 < y < 216


def test_a_search_without_a_beam_ends_and_goes_back() -> None:
    column = off(0, 0)
    column.beam_on = False
    before = {name: column.get(name) for name in (*KNOBS, "c1")}
    outcome = drive(Aperture(), column, budget=Budget(images=120, seconds=None))
    assert outcome.verdict.status is Status.NO_SIGNAL
    assert "search" in outcome.verdict.reason
    assert len(outcome.path) <= 120
    assert put_back(column, outcome, before)


def test_the_spiral_covers_its_disc_and_makes_short_ways() -> None:
    points = np.array(list(spiral(np.zeros(2), 200.0, 900.0)))
    ways = np.hypot(*np.diff(points, axis=0).T)
    assert ways.max() < 330
    grid = np.random.default_rng(0).uniform(-850, 850, (2000, 2))
    grid = grid[np.hypot(*grid.T) < 850]
    nearest = np.hypot(*(grid[:, None] - points[None]).transpose(2, 0, 1)).min(axis=1)
    assert nearest.max() < 200


# ---------------------------------------------------------------------- settings and scores
@pytest.mark.parametrize(
    "bad",
    [{"wobble": 0.9}, {"wobble_knob": "aperture_x"}, {"target_knobs": ("a", "a")}, {"model": "m", "calibration": "c"}],
)
def test_settings_that_contradict_themselves_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"wobble|target_knobs|calibration"):
        ApertureSettings(**bad)


def test_a_calibration_of_other_knobs_and_a_missing_knob_are_refused() -> None:
    with pytest.raises(SettingsError, match="beam_tilt_x"):
        Aperture(response=ResponseMap(("beam_tilt_x", "beam_tilt_y"), ((1.0, 0.0), (0.0, 1.0))))
    column = off(0, 0)
    request = request_for(column, start={"aperture_x": 0.0})
    with pytest.raises(StrategyError, match="aperture_y"):
        next(Aperture().focus(request))


def test_the_score_falls_to_zero_when_the_beam_leaves_the_detector() -> None:
    column = off(0, 0)
    turn(column, {"c1": 1.02})
    assert Aperture().score(Frame(column.image(), {})) == 1.0
    turn(column, {"beam_shift_x": 20.0})
    assert Aperture().score(Frame(column.image(), {})) == 0.0


def test_the_odds_fall_with_offset_and_error() -> None:
    sure = chance_inside(np.zeros(2), np.eye(2), 5.0)
    assert sure > 0.99
    assert chance_inside(np.array([4.0, 0.0]), np.eye(2), 5.0) < sure
    assert chance_inside(np.zeros(2), 25 * np.eye(2), 5.0) < 0.5
    assert chance_inside(np.array([50.0, 0.0]), np.eye(2), 5.0) < 1e-9


# ---------------------------------------------------------------------- beam shift
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_beam_is_centred_by_its_shift(seed: int) -> None:
    column = TemColumn(seed, 1)
    turn(column, {"c1": 1.02, "beam_shift_x": 4.0, "beam_shift_y": -5.0})
    outcome = drive(BeamCentring(), column)
    assert outcome.verdict.status is Status.CONVERGED
    x, y, _ = column.geometry()
    assert np.hypot(x - 127.5, y - 127.5) < 0.02 * 256
    assert len(outcome.path) <= 12


def test_a_disc_larger_than_the_frame_is_not_measurable() -> None:
    column = off(0, 0, magnification=15_000.0)
    turn(column, {"c1": 1.05})
    outcome = drive(BeamCentring(), column)
    assert outcome.verdict.status is Status.NO_SIGNAL
    assert "cannot be measured" in outcome.verdict.reason


def test_a_lost_beam_is_searched_only_when_asked() -> None:
    column = TemColumn(1, 1)
    turn(column, {"c1": 1.02, "beam_shift_x": 19.0})
    assert drive(BeamCentring(), column).verdict.status is Status.NO_SIGNAL
    found = drive(BeamCentring(BeamCentringSettings(search_step=12.0, search_radius=40.0)), column)
    assert found.verdict.status is Status.CONVERGED
