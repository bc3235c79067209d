"""Disc fitting: centre and radius to a fraction of a pixel where there is a disc, and the right word where not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.errors import HardwareError
from mm_autofocus.estimators.beam_disc import Beam, fit_disc


def disc(
    x: float, y: float, radius: float, *, size: int = 256, noise: float = 4.0, seed: int = 0, tilt: float = 0.0
) -> np.ndarray:
    yy, xx = np.mgrid[:size, :size].astype(float)
    rr = np.hypot(xx - x, yy - y)
    light = 200.0 / (1 + np.exp((rr - radius) / 0.6)) * (1 + tilt * (xx - x) / max(radius, 1))
    image = light + 10 + noise * np.random.default_rng(seed).standard_normal(light.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=40)
@given(x=st.floats(80, 176), y=st.floats(80, 176), radius=st.floats(9, 70), seed=st.integers(0, 99))
def test_a_whole_disc_is_found_to_a_fraction_of_a_pixel(x: float, y: float, radius: float, seed: int) -> None:
    found = fit_disc(disc(x, y, radius, seed=seed))
    assert found.beam is Beam.DISC
    assert found.x == pytest.approx(x, abs=0.3)
    assert found.y == pytest.approx(y, abs=0.3)
    assert found.radius == pytest.approx(radius, abs=1.5)
    assert found.visible > 0.9


@settings(deadline=None, max_examples=25)
@given(x=st.floats(-30, 20), y=st.floats(60, 200), radius=st.floats(45, 90))
def test_a_disc_cut_off_by_the_frame_is_found_from_its_arc(x: float, y: float, radius: float) -> None:
    found = fit_disc(disc(x, y, radius))
    if found.beam is Beam.DISC and found.visible > 0.25:
        assert np.hypot(found.x - x, found.y - y) < 1.0 + 4 * found.sigma
        assert found.visible < 0.95


def test_uneven_illumination_does_not_pull_the_centre() -> None:
    found = fit_disc(disc(120.0, 130.0, 60.0, tilt=0.35))
    assert np.hypot(found.x - 120.0, found.y - 130.0) < 0.6


def test_the_error_that_it_states_is_the_error_that_it_makes() -> None:
    pulls = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(100, 150, 2)
        found = fit_disc(disc(x, y, rng.uniform(20, 60), noise=15.0, seed=seed))
        pulls += [(found.x - x) / found.sigma, (found.y - y) / found.sigma]
    assert 0.2 < float(np.sqrt(np.mean(np.square(pulls)))) < 2.0


def test_a_spot_at_crossover_has_a_centre_and_hardly_a_radius() -> None:
    found = fit_disc(disc(100.3, 90.7, 2.5))
    assert found.beam is Beam.SPOT
    assert np.hypot(found.x - 100.3, found.y - 90.7) < 0.5
    assert found.radius_sigma > 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_any_dtype_and_any_size(dtype: type) -> None:
    for size in (64, 256, 700):
        s = size / 256
        image = disc(120 * s, 140 * s, 50 * s, size=size).astype(dtype)
        found = fit_disc(image)
        assert found.beam is Beam.DISC
        assert found.x == pytest.approx(120 * s, abs=0.5 * max(s, 1))
        assert found.y == pytest.approx(140 * s, abs=0.5 * max(s, 1))


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_is_no_beam(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert fit_disc(rng.normal(20, 5, (256, 256)).clip(0, 255).astype(np.uint8)).beam is Beam.NONE
    assert fit_disc(rng.poisson(3.0, (256, 256)).astype(np.uint16)).beam is Beam.NONE


@pytest.mark.parametrize("level", [0, 7])
def test_a_flat_frame_is_no_beam(level: int) -> None:
    assert fit_disc(np.full((128, 128), level, np.uint8)).beam is Beam.NONE


def test_a_frame_at_its_ceiling_is_saturated_and_a_full_one_too_large() -> None:
    assert fit_disc(np.full((128, 128), 255, np.uint8)).beam is Beam.SATURATED
    assert fit_disc(np.full((128, 128), 4095, np.uint16)).beam is Beam.SATURATED
    full = fit_disc(disc(128, 128, 400.0))
    assert not full.beam.usable


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8)), np.zeros((64, 64, 3)), np.full((64, 64), np.nan)], ids=["tiny", "colour", "nan"]
)
def test_what_is_no_frame_is_an_error(bad: np.ndarray) -> None:
    with pytest.raises(HardwareError):
        fit_disc(bad)
