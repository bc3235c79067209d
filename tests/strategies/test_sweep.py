"""Sweep as a strategy: contract, verdicts, and recorded data."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from focus_curves import ScoresAt, noisy, peaks, replayed, request, sweep
from mm_autofocus.errors import StrategyError
from mm_autofocus.request import Limits, Prior
from mm_autofocus.result import Status
from mm_autofocus.strategies.sweep import Sweep, SweepSettings
from mm_autofocus.strategy import Frame, Strategy

EFFORTS = ["fast", "safe"]


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("at", [-15.0, 0.3, 6.3])
def test_a_clear_peak_converges_with_confidence(effort: str, at: float) -> None:
    verdict, looks = replayed(sweep(effort=effort), request(), noisy(peaks((at, 20.0)), 1))
    assert verdict.status is Status.CONVERGED
    assert verdict.target["z"] == pytest.approx(at, abs=0.5)
    assert verdict.confidence > 0.8
    assert looks[0] == 0.0  # the start is the verification's reference
    assert len(verdict.scores) == len(looks)
    assert verdict.details["fwhm_um"] == pytest.approx(1.8, rel=0.5)
    json.dumps(dict(verdict.details))


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_blank_field_has_no_signal(effort: str, seed: int) -> None:
    verdict, looks = replayed(sweep(effort=effort), request(), noisy(peaks(), seed))
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}
    assert verdict.confidence == 0.0
    assert len(looks) <= 59


@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0])
def test_constant_scores_have_no_signal(value: float) -> None:
    verdict, _ = replayed(sweep(), request(), lambda z: (value, value))
    assert verdict.status is Status.NO_SIGNAL


@pytest.mark.parametrize("at", [-20.8, 21.0])
def test_an_edge_is_at_limit_without_confidence(at: float) -> None:
    verdict, _ = replayed(sweep(), request(), noisy(peaks((at, 20.0)), 2))
    assert verdict.status is Status.AT_LIMIT
    assert verdict.target["z"] == pytest.approx(math.copysign(20.0, at))
    assert verdict.confidence <= 0.5


def test_a_tie_is_reported_with_both_places() -> None:
    verdict, _ = replayed(sweep(effort="safe"), request(), peaks((-8.0, 10.0), (8.0, 9.5)))
    assert sorted([verdict.target["z"], verdict.details["tie"]["z"]]) == pytest.approx([-8.0, 8.0], abs=0.9)
    assert "two peaks within 20 %" in verdict.reason
    clear, _ = replayed(sweep(effort="safe"), request(), peaks((-8.0, 10.0)))
    assert verdict.confidence < clear.confidence


def test_a_prior_saves_images() -> None:
    scores = noisy(peaks((6.0, 20.0)), 3)
    verdict, looks = replayed(sweep(), request(start=5.0, prior=Prior(5.0, 2.0)), scores)
    assert verdict.target["z"] == pytest.approx(6.0, abs=0.5)
    assert len(looks) < len(replayed(sweep(), request(), scores)[1])


def test_the_budget_leaves_one_image_to_verify() -> None:
    for images in (2, 3, 5, 8):
        _, looks = replayed(sweep(), request(images=images), noisy(peaks((6.0, 20.0)), 4))
        assert len(looks) <= images - 1
    with pytest.raises(StrategyError, match="at least 2"):
        replayed(sweep(), request(images=1), peaks())


def test_the_limits_cut_the_window() -> None:
    verdict, looks = replayed(sweep(), request(limits=Limits(-5.0, 5.0)), peaks((12.0, 20.0)))
    assert max(looks) <= 5.0
    assert verdict.status is not Status.CONVERGED
    with pytest.raises(StrategyError, match="nothing to search"):
        replayed(sweep(), request(limits=Limits(50.0, 60.0)), peaks())


ODD = st.sampled_from([0.0, 1e-300, 1e300, -5.0, 1.0, math.nan, math.inf])


@pytest.mark.parametrize("effort", EFFORTS)
@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.tuples(ODD | st.floats(0.0, 1e6), ODD | st.floats(0.0, 1e6)), min_size=1, max_size=8),
    start=st.floats(-60.0, 60.0),
    low=st.floats(-50.0, 0.0),
    width=st.floats(0.5, 60.0),
    images=st.integers(2, 25),
    prior=st.none() | st.builds(Prior, st.floats(-80, 80), st.floats(0.0, 30.0)),
)
def test_adversarial_scores_stay_inside_and_end(
    effort: str,
    values: list[tuple[float, float]],
    start: float,
    low: float,
    width: float,
    images: int,
    prior: Prior | None,
) -> None:
    count = iter(range(10_000))

    def scores(z: float) -> tuple[float, float]:
        return values[next(count) % len(values)]

    asked = request(low, low + width, start, prior, images)
    try:
        verdict, looks = replayed(sweep(effort=effort), asked, scores)
    except StrategyError:
        assert not all(math.isfinite(value) for pair in values for value in pair)
        return
    assert len(looks) <= images - 1
    assert 0.0 <= verdict.confidence <= 1.0
    assert all(z in asked.limits["z"] for z in verdict.target.values())
    json.dumps(dict(verdict.details))


def specimen(z: float, seed: int = 0) -> np.ndarray:
    """An image of beads in focus at 4 µm, blurred by the distance, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    sigma = math.hypot(1.2, 0.8 * (z - 4.0))
    image = sum(
        np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * sigma**2)) / sigma**2 for a, b in rng.uniform(10, 86, (12, 2))
    )
    noise = np.random.default_rng(round(1000 * z) % 2**32).normal(0, 3, image.shape)
    return np.clip(200 + 4000 * image + noise, 0, 65535).astype(np.uint16)


def drive(strategy: Strategy, image_at: object, **changes: object) -> tuple[object, int]:
    generator, count = strategy.focus(request(-15.0, 15.0, **changes)), 0  # type: ignore[arg-type]
    look = next(generator)
    while True:
        z, count = look.targets["z"], count + 1
        try:
            look = generator.send(Frame(image_at(z), {"z": z}))  # type: ignore[operator]
        except StopIteration as stop:
            return stop.value, count


def test_images_are_focused() -> None:
    verdict, count = drive(Sweep(), specimen)
    assert verdict.target["z"] == pytest.approx(4.0, abs=0.5)
    assert verdict.status is Status.CONVERGED
    assert count < 20
    strategy = Sweep()
    assert strategy.score(Frame(specimen(4.0), {"z": 4.0})) > strategy.score(Frame(specimen(9.0), {"z": 9.0}))
    assert isinstance(strategy, Strategy)


BLANKS: list[tuple[str, object]] = [
    ("black", lambda z: np.zeros((64, 64), np.uint16)),
    ("saturated", lambda z: np.full((64, 64), 65535, np.uint16)),
    ("noise", lambda z: np.random.default_rng(round(1000 * z) % 2**32).poisson(20, (96, 96)).astype(np.uint16)),
    ("drifting lamp", lambda z: np.random.default_rng(round(999 * z) % 2**32).poisson(200 + 3 * z, (96, 96))),
]


@pytest.mark.parametrize(("name", "image_at"), BLANKS, ids=[name for name, _ in BLANKS])
def test_blank_images_have_no_signal(name: str, image_at: object) -> None:
    verdict, _ = drive(Sweep(), image_at)
    assert verdict.status is Status.NO_SIGNAL


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((64, 64), np.nan), "finite"),
        (np.zeros((64, 64, 3), np.uint8), "grey"),
        (np.zeros((4, 4), np.uint8), "at least"),
    ],
)
def test_frames_that_cannot_be_measured_are_a_strategy_error(image: np.ndarray, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        drive(Sweep(), lambda z: image)


def test_a_frame_without_its_position_is_a_strategy_error() -> None:
    generator = Sweep().focus(request())
    next(generator)
    with pytest.raises(StrategyError, match="position"):
        generator.send(Frame(specimen(0.0), {}))


@pytest.mark.parametrize(
    "settings_", [{"measure": "sharpness"}, {"range_um": -1}, {"crop": 0}, {"effort": "x"}, {"typo": 1}]
)
def test_bad_settings_are_refused(settings_: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SweepSettings.model_validate(settings_)


def test_a_wrong_width_is_forgiven() -> None:
    scores: ScoresAt = noisy(peaks((6.3, 20.0)), 5)
    for fwhm in (0.9, 1.8, 3.6):
        verdict, _ = replayed(sweep(fwhm_um=fwhm), request(), scores)
        assert verdict.target["z"] == pytest.approx(6.3, abs=0.5)
