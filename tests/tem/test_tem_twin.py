"""The simulated column: the optics are those of the lens equation, time passes as on an instrument, limits hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.simulation.tem_column import APERTURE_LIMIT, LATENCY_S, RANGES, TemColumn
from mm_autofocus.simulation.tem_day import APERTURES, TemDay, TemOptics


def at(column: TemColumn, **knobs: float) -> TemColumn:
    for name, value in knobs.items():
        column.set(name, value)
    column.wait_aperture()
    column.wait(3.0)
    return column


@given(c1=st.floats(0.9, 1.1), c2=st.floats(0.9, 1.1), height=st.floats(-1.0, 1.0))
def test_the_scale_is_what_tracing_one_ray_gives(c1: float, c2: float, height: float) -> None:
    optics = TemOptics()
    f1, f2 = optics.f1 / c1**2, optics.f2 / c2**2
    angle = 1e-3  # from the crossover on axis, aimed so that it passes C2 at any height: linear, so one ray is enough
    x = angle * optics.source_to_c1
    slope = angle - x / f1
    x = x + slope * optics.c1_to_c2
    scale_height = height / x if x else 0.0
    slope = (slope - x / f2) * scale_height
    assert height + slope * optics.c2_to_specimen == pytest.approx(optics.scale(c1, c2) * height, rel=1e-9, abs=1e-12)


def test_crossover_is_at_nominal_current_and_the_disc_turns_inside_out() -> None:
    optics = TemOptics()
    assert optics.scale(1.0) == pytest.approx(0.0, abs=1e-12)
    assert optics.scale(0.97) * optics.scale(1.03) < 0


def test_the_disc_is_where_the_geometry_says_and_as_large() -> None:
    column = at(TemColumn(5, 2, capture="camera"), c1=1.025, aperture_x=90, aperture_y=-40)
    image = column.image().astype(float)
    x, y, radius = column.geometry()
    lit = image > 0.35 * np.percentile(image, 99)
    rows, columns = np.nonzero(lit)
    assert columns.mean() == pytest.approx(x, abs=1.5)
    assert rows.mean() == pytest.approx(y, abs=1.5)
    assert np.sqrt(lit.sum() / np.pi) == pytest.approx(abs(radius), rel=0.05)


def test_an_aligned_aperture_pulses_on_itself_and_another_does_not() -> None:
    column = TemColumn(3, 1)
    truth = column.truth()
    at(column, **{name: round(value) for name, value in truth.items()})
    low, high = np.array(column.geometry(0.97)[:2]), np.array(column.geometry(1.03)[:2])
    assert np.hypot(*(high - low)) < 1.5
    at(column, aperture_x=round(truth["aperture_x"]) + 150)
    low, high = np.array(column.geometry(0.97)[:2]), np.array(column.geometry(1.03)[:2])
    assert np.hypot(*(high - low)) > 60


def test_a_larger_hole_makes_a_larger_disc_and_magnification_scales_it() -> None:
    radii = [abs(TemColumn(1, 0, hole).geometry(1.03)[2]) for hole in sorted(APERTURES)]
    assert radii == sorted(radii)
    small, large = (abs(TemColumn(1, 0, magnification=m).geometry(1.03)[2]) for m in (2500.0, 5000.0))
    assert large == pytest.approx(2 * small, rel=1e-6)


def test_a_frame_shows_the_column_of_half_a_second_ago() -> None:
    column = at(TemColumn(1, 0), c1=0.97)
    before = column.image()
    column.c1 = 1.03
    early = column.image()
    assert np.mean(np.abs(early.astype(float) - before)) < 6
    column.wait(LATENCY_S + 3.0)
    late = column.image()
    assert np.mean(np.abs(late.astype(float) - before)) > 10


def test_some_frames_are_late_in_spite_of_the_wait() -> None:
    from dataclasses import replace

    day = replace(TemDay.make(1, 0, 2), stale=1.0, drift_px=0.0)
    column = at(TemColumn(1, 0, condition=day), c1=0.97)
    column.c1 = 1.03
    column.wait(2.0)
    blended = column.image().astype(float)
    column.wait(20.0)
    assert np.mean(np.abs(column.image().astype(float) - blended)) > 3


def test_the_aperture_travels_slowly_and_in_whole_steps() -> None:
    column = TemColumn(2, 0)
    column.aperture_x = 400
    assert column.busy
    column.wait(0.5)
    assert 150 <= column.aperture_x <= 250
    column.wait_aperture()
    assert not column.busy
    assert column.aperture_x == pytest.approx(400, abs=1)
    assert column.aperture_x == int(column.aperture_x)


@pytest.mark.parametrize(
    ("name", "value"),
    [("c1", 2.0), ("c1", float("nan")), ("aperture_x", APERTURE_LIMIT), ("aperture_y", -1e9), ("beam_shift_x", 21.0)],
)
def test_what_is_out_of_range_is_refused_and_nothing_moves(name: str, value: float) -> None:
    column = TemColumn(1, 0)
    before = column.get(name)
    with pytest.raises(ValueError, match=name):
        column.set(name, value)
    column.wait(5.0)
    assert column.get(name) == before


def test_every_range_is_reachable_at_both_ends() -> None:
    column = TemColumn(1, 0)
    for name, (low, high) in RANGES.items():
        for value in (low, high):
            column.set(name, value)
            assert column.get(name) == value
    column.image()


def test_the_camera_saturates_and_the_screen_does_not_show_it() -> None:
    column = at(TemColumn(1, 0, capture="camera"), c1=1.03)
    column.exposure_s = 20.0
    frame = column.image()
    assert frame.dtype == np.uint16
    assert (frame == 65535).mean() > 0.1
    assert TemColumn(1, 0).image().dtype == np.uint8


def test_without_beam_or_behind_the_screen_frames_are_dark() -> None:
    for change in ("valve", "screen"):
        column = TemColumn(1, 0, capture="camera")
        if change == "valve":
            column.beam_on = False
        else:
            column.screen = True
        column.wait(3.0)
        assert column.image().max() < 300


def test_a_flash_brings_the_current_back_and_moves_the_source_a_little() -> None:
    column = at(TemColumn(1, 0, capture="camera"), c1=1.02)
    column.wait(3 * 3600.0)
    faded = float(column.image().mean())
    before = column.truth()
    column.flash()
    column.wait(1.0)
    assert float(column.image().mean()) > 1.1 * faded
    moved = np.hypot(*(column.truth()[k] - before[k] for k in before))
    assert 0 < moved < 15


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), day=st.integers(-5, 1000))
def test_the_same_seeds_give_the_same_frames_and_other_days_others(seed: int, day: int) -> None:
    first, again, other = TemColumn(seed, day), TemColumn(seed, day), TemColumn(seed, day + 1)
    assert np.array_equal(first.image(), again.image())
    assert first.truth() == again.truth()
    assert first.truth() != other.truth()


@pytest.mark.parametrize("bad", [{"aperture": 9}, {"size": 4}, {"magnification": 0.0}, {"capture": "film"}])
def test_a_column_that_cannot_be_built_says_why(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        TemColumn(1, 0, **bad)  # type: ignore[arg-type]
