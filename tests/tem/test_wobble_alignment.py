"""The wobble's vector is the aperture's offset in units of its radius, whatever else changes; trouble has a name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.beam_disc import Beam, Disc
from mm_autofocus.estimators.response import ResponseMap, fit_response
from mm_autofocus.estimators.wobble_alignment import Trouble, estimate_wobble, from_discs
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.simulation.tem_day import TemDay

KNOBS = ("aperture_x", "aperture_y")


def column_at(dx: float, dy: float, seed: int = 4, day: int = 2, **arguments: Any) -> TemColumn:
    column = TemColumn(seed, day, **arguments)
    truth = column.truth()
    column.aperture_x, column.aperture_y = round(truth["aperture_x"] + dx), round(truth["aperture_y"] + dy)
    column.wait_aperture()
    column.wait(2.0)
    return column


def wobble(column: TemColumn, half: float = 0.03, middle: float = 1.0, count: int = 7) -> tuple[list[Any], list[float]]:
    lens = [float(v) for v in middle * (1 + np.linspace(-half, half, count))]
    frames = []
    for value in lens:
        column.c1 = value
        column.wait(2.0)
        frames.append(column.image())
    return frames, lens


def expected(column: TemColumn) -> np.ndarray:
    (x0, y0, r0), (x1, y1, r1) = column.geometry(0.98), column.geometry(1.02)
    return np.array([x1 - x0, y1 - y0]) / (r1 - r0)


@pytest.mark.parametrize(
    ("arguments", "half", "middle"),
    [({}, 0.03, 1.0), ({}, 0.02, 1.012), ({"magnification": 2500.0}, 0.03, 1.0), ({"aperture": 3}, 0.03, 1.0),
     ({"capture": "camera"}, 0.03, 1.0), ({"size": 512}, 0.03, 1.0), ({"size": 64}, 0.03, 1.0)],
    ids=["paper", "2 % off crossover", "half magnification", "larger hole", "camera", "512 px", "64 px"],
)  # fmt: skip
def test_the_vector_is_the_movement_per_signed_radius(arguments: dict[str, Any], half: float, middle: float) -> None:
    column = column_at(120, -70, **arguments)
    estimate = estimate_wobble(*wobble(column, half, middle))
    assert estimate.good
    wanted = expected(column)
    assert np.hypot(*(estimate.v - wanted)) < 0.05 * np.hypot(*wanted) + 0.01


def test_a_centred_aperture_gives_zero_within_its_stated_error() -> None:
    estimate = estimate_wobble(*wobble(column_at(0, 0)))
    assert np.hypot(*estimate.v) < 5 * math.sqrt(np.trace(estimate.cov)) + 0.005
    assert np.sign(estimate.radii[0]) != np.sign(estimate.radii[-1])


def test_late_frames_do_not_pull_the_vector() -> None:
    clean = estimate_wobble(*wobble(column_at(100, 60, condition=dataclasses.replace(TemDay.make(4, 2, 2), stale=0.0))))
    for seed in range(3):
        late = column_at(100, 60, condition=dataclasses.replace(TemDay.make(4, 2, 2), stale=0.3))
        late._rng = np.random.default_rng(seed)
        estimate = estimate_wobble(*wobble(late))
        assert np.hypot(*(estimate.v - clean.v)) < 0.04


def test_an_old_image_is_named() -> None:
    frames, lens = wobble(column_at(50, 50, condition=dataclasses.replace(TemDay.make(4, 2, 2), stale=0.0)))
    frames[5] = frames[4]
    estimate = estimate_wobble(frames, lens)
    assert estimate.repeated == (5,)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ("valve", Trouble.NO_BEAM),
        ("lens", Trouble.SILENT),
        ("exposure", Trouble.SATURATED),
        ("zoom", Trouble.TOO_LARGE),
    ],
)
def test_what_cannot_be_read_has_a_name_and_no_number(change: str, trouble: Trouble) -> None:
    column = column_at(0, 0, capture="camera", condition=dataclasses.replace(TemDay.make(4, 2, 2), drift_px=0.02))
    middle = 1.0
    if change == "valve":
        column.beam_on = False
    elif change == "lens":
        column.c1 = 1.02
        column.lens_responds = False
    elif change == "exposure":
        column.exposure_s, middle = 50.0, 1.04
    else:
        column.magnification, middle = 15_000.0, 1.05
    estimate = estimate_wobble(*wobble(column, 0.01, middle))
    assert estimate.trouble is trouble
    assert not estimate.good
    assert math.isnan(estimate.vector[0])


# ---------------------------------------------------------------------- geometry alone
def line_of_discs(vx: float, vy: float, radii: list[float], noise: float = 0.0, seed: int = 0) -> list[Disc]:
    rng = np.random.default_rng(seed)
    discs = []
    for rho in radii:
        x, y = 128 + rho * vx + noise * rng.normal(), 128 + rho * vy + noise * rng.normal()
        angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        edge = np.c_[x + abs(rho) * np.cos(angle), y + abs(rho) * np.sin(angle)]
        cov = ((0.01, 0.0, 0.0), (0.0, 0.01, 0.0), (0.0, 0.0, 0.01))
        discs.append(Disc(Beam.DISC, x, y, abs(rho), cov, 0.2, 1.0, 50.0, 0.0, edge))
    return discs


@settings(deadline=None, max_examples=25)
@given(
    vx=st.floats(-2, 2), vy=st.floats(-2, 2), first=st.floats(-90, -15), step=st.floats(10, 30), seed=st.integers(0, 99)
)
def test_the_side_of_crossover_is_told_from_the_others(
    vx: float, vy: float, first: float, step: float, seed: int
) -> None:
    radii = [first + i * step for i in range(7)]
    if min(abs(r) for r in radii) < 3:
        return
    estimate = from_discs(line_of_discs(vx, vy, radii, 0.1, seed), list(range(7)))
    assert estimate.v == pytest.approx([vx, vy], abs=0.03)


def test_a_wobble_on_one_side_of_crossover_is_enough() -> None:
    estimate = from_discs(line_of_discs(0.4, -0.3, [20.0, 30.0, 40.0, 50.0, 60.0]), list(range(5)))
    assert estimate.v == pytest.approx([0.4, -0.3], abs=0.02)
    other = from_discs(line_of_discs(0.4, -0.3, [-60.0, -50.0, -40.0, -30.0, -20.0]), list(range(5)))
    assert other.v == pytest.approx([0.4, -0.3], abs=0.02)


def test_one_mixed_frame_is_left_out_and_named() -> None:
    discs = line_of_discs(0.3, 0.1, [-60.0, -40.0, -20.0, 5.0, 20.0, 40.0, 60.0], 0.1)
    wrong = line_of_discs(0.3, 0.1, [40.0])[0]
    discs[5] = dataclasses.replace(wrong, x=wrong.x + 25, y=wrong.y - 20, edge=wrong.edge + np.array([25, -20]))
    estimate = from_discs(discs, list(range(7)))
    assert estimate.v == pytest.approx([0.3, 0.1], abs=0.03)
    assert estimate.strange == (5,)


def test_the_numbers_of_frames_and_values_must_agree() -> None:
    with pytest.raises(ValueError, match="lens values"):
        estimate_wobble([np.zeros((64, 64))] * 3, [1.0, 2.0])


# ---------------------------------------------------------------------- the response
@settings(deadline=None, max_examples=40)
@given(
    scale=st.floats(0.01, 500), turn=st.floats(0, 6.28), mirror=st.sampled_from([-1, 1]), zero=st.floats(-1, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_linear_response_is_recovered_from_three_samples(
    scale: float, turn: float, mirror: int, zero: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = scale * np.array([[np.cos(turn), -mirror * np.sin(turn)], [np.sin(turn), mirror * np.cos(turn)]])
    positions = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]]) + rng.uniform(-20, 20, (3, 2))
    measured = np.array([np.linalg.solve(matrix, p) for p in positions]) + zero / scale
    response = fit_response(KNOBS, positions, measured, zero=True)
    for point in rng.uniform(-300, 300, (5, 2)):
        assert response.offset(np.linalg.solve(matrix, point) + zero / scale) == pytest.approx(point, abs=1e-5 * 300)


@pytest.mark.parametrize(
    "positions",
    [[[0, 0], [1, 0]], [[0, 0], [1, 0], [2, 0]], [[0, 0], [np.nan, 1], [1, 0]]],
    ids=["two", "a line", "nan"],
)
def test_samples_that_cannot_tell_are_refused(positions: list[list[float]]) -> None:
    with pytest.raises(SettingsError, match="aperture_x"):
        fit_response(KNOBS, np.array(positions, float), np.array(positions, float))


def test_a_move_corrects_a_map_that_is_off_in_scale_and_turn() -> None:
    true = ResponseMap(KNOBS, ((170.0, 20.0), (-20.0, 170.0)))
    turned = np.array([[0.9, -0.4], [0.4, 0.9]]) * 1.3 @ true.m
    wrong = ResponseMap(KNOBS, tuple(tuple(row) for row in turned.tolist()))  # type: ignore[arg-type]
    moved = np.array([120.0, -60.0])
    learnt = wrong.updated(moved, np.linalg.solve(true.m, moved))
    assert learnt.m == pytest.approx(true.m, abs=1e-6)


def test_a_map_is_kept_and_read_again(tmp_path: Any) -> None:
    response = ResponseMap(KNOBS, ((170.0, 20.0), (-20.0, 170.0)), (0.1, -0.2), 0.04, 5, {"day": 3})
    response.save(tmp_path / "map.json")
    assert ResponseMap.load(tmp_path / "map.json") == response


@pytest.mark.parametrize("text", ["", "{}", '{"knobs": ["a", "b"], "matrix": [[1, 2], [2, 4]]}', "[1]"])
def test_a_broken_map_is_refused_with_its_name(tmp_path: Any, text: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"map\.json"):
        ResponseMap.load(path)
