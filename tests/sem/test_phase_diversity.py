"""The logic of phase_diversity on frames that carry their own aberration: it converges, or says why it does not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from column_double import SHAPE, Answers, CodedColumn, CodedCore, CodedEstimator
from mm_autofocus.errors import BudgetError, HardwareError, StrategyError
from mm_autofocus.estimators.aberration import Aberration, PairEstimate
from mm_autofocus.request import Budget, Limits
from mm_autofocus.result import Status
from mm_autofocus.strategies.column_care import ColumnCare
from mm_autofocus.strategies.column_fit import ColumnFit, angle_power
from mm_autofocus.strategies.phase_diversity import PhaseDiversity, PhaseDiversitySettings
from mm_autofocus.strategy import Frame

TRUE = {"convergence_mrad": 8.7, "stigmator_um": 6.0, "stigmator_rotation_deg": 3.0}


KNOWN = 0.1
"""Error of a calibration that was measured (``recalibrate sem``): what is not so well known is looked at once more."""


def strategy(estimator=None, **changes) -> PhaseDiversity:
    return PhaseDiversity(PhaseDiversitySettings(**{**TRUE, **changes}), estimator or CodedEstimator())


@pytest.mark.parametrize(
    ("away", "frames"),
    [
        ((0.0, 0.0, 0.0), 4),
        ((8.0, -3.0, 2.0), 4),
        ((-20.0, 5.0, -5.0), 4),
        ((30.0, 6.0, -6.0), 6),  # its first pair lies 35 µm from focus, beyond what estimators are trusted with
        ((-30.0, -6.0, 6.0), 6),
    ],
)
def test_two_iterations_suffice_with_a_good_calibration(away, frames):
    column = CodedColumn()
    verdict = column.focus(strategy(calibration_sd=KNOWN), column.request(away))
    assert verdict.status is Status.CONVERGED
    assert np.all(np.abs(column.residual(verdict)) < [0.4, 0.1, 0.1])
    assert verdict.confidence > 0.9
    assert len(column.looks) == len(verdict.scores) <= frames
    assert column.looks[0] == dict(column.request(away).start)  # the start's frame serves the verification too
    json.dumps(verdict.details)


@pytest.mark.parametrize("convergence", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("stigmator", [0.8, 1.2])
@pytest.mark.parametrize("rotation", [-4.0, 4.0])
@pytest.mark.parametrize("step_ratio", [False, True])
def test_a_wrong_calibration_is_found_on_the_way(convergence, stigmator, rotation, step_ratio):
    column = CodedColumn()
    wrong = {
        "convergence_mrad": 8.7 * convergence,
        "stigmator_um": 6.0 * stigmator,
        "stigmator_rotation_deg": 3.0 + rotation,
    }
    estimator = CodedEstimator(step_ratio=step_ratio)
    verdict = column.focus(strategy(estimator, **wrong), column.request((20.0, 5.0, -5.0)))
    assert verdict.status is Status.CONVERGED
    assert np.all(np.abs(column.residual(verdict)) < [0.6, 0.15, 0.15])
    assert len(column.looks) <= 8
    found = verdict.details["calibration"]
    angle = wrong["convergence_mrad"] if step_ratio else 8.7  # one that measures the perturbation needs no other angle
    assert found["convergence_mrad"] == pytest.approx(angle, rel=0.25)
    assert found["stigmator_um"] == pytest.approx(6.0, rel=0.12)
    assert found["stigmator_rotation_deg"] == pytest.approx(3.0, abs=1.5)


def test_a_reading_that_levels_off_far_away_still_converges():
    column = CodedColumn()
    verdict = column.focus(strategy(CodedEstimator(saturation=16.0)), column.request((40.0, 6.0, -6.0)))
    assert verdict.status is Status.CONVERGED
    assert np.all(np.abs(column.residual(verdict)) < [0.6, 0.15, 0.15])


def test_without_stigmators_in_the_request_it_focuses_alone():
    column = CodedColumn()
    request = column.request((9.0, 0.0, 0.0))
    request = column.request(start={"z": request.start["z"]}, limits={"z": request.limits["z"]})
    verdict = column.focus(strategy(), request)
    assert verdict.status is Status.CONVERGED
    assert verdict.target.keys() == {"z"}
    assert verdict.target["z"] == pytest.approx(4500.0, abs=0.4)


def test_stigmators_can_be_left_alone():
    column = CodedColumn()
    verdict = column.focus(strategy(stigmate=False), column.request((9.0, 3.0, 0.0)))
    assert verdict.status is Status.CONVERGED
    assert verdict.target.keys() == {"z"}


@pytest.mark.parametrize("knob", ["stig_x", "stig_y"])
def test_a_stigmator_that_only_says_it_moved_is_noticed(knob):
    column = CodedColumn(ignores=(knob,))
    away = (10.0, 4.0, 4.0)
    verdict = column.focus(strategy(), column.request(away))
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}
    assert f"do not follow {knob}" in verdict.reason


def test_swapped_stigmators_are_noticed():
    column = CodedColumn()
    estimator = CodedEstimator()
    estimate = estimator.estimate

    def swapped(*args):
        found = estimate(*args)
        turned = Aberration(found.aberration.defocus_um, -found.aberration.stig_y, found.aberration.stig_x)
        return PairEstimate(turned, found.sigma)

    estimator.estimate = swapped
    verdict = column.focus(strategy(estimator), column.request((5.0, 4.0, -4.0)))
    assert not verdict.status.ok


@pytest.mark.parametrize("step_ratio", [False, True])
def test_a_working_distance_that_only_says_it_moved_is_noticed(step_ratio):
    column = CodedColumn(ignores=("z",))
    verdict = column.focus(strategy(CodedEstimator(step_ratio=step_ratio)), column.request((12.0, 1.0, 0.0)))
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}


def test_a_working_distance_that_does_not_move_at_all_is_an_error():
    column = CodedColumn(clamps={"z": (4512.0, 4512.0)})
    with pytest.raises(HardwareError, match="clamps or ignores"):
        column.focus(strategy(), column.request((12.0, 1.0, 0.0)))


def test_a_camera_that_delivers_the_same_frame_again_is_an_error():
    first = []
    column = CodedColumn(change=lambda image, n: (first.append(image), first[0])[1])
    with pytest.raises(HardwareError, match="delivers old images"):
        column.focus(strategy(), column.request((5.0, 0.0, 0.0)))


def test_a_stigmator_that_the_instrument_clamps_is_at_limit():
    column = CodedColumn(clamps={"stig_x": (3.0, 30.0)})
    verdict = column.focus(strategy(), column.request((4.0, 5.0, 1.0)))
    assert verdict.status is Status.AT_LIMIT
    assert verdict.target["stig_x"] == pytest.approx(3.0, abs=0.01)
    assert verdict.confidence <= 0.3
    assert "the instrument itself goes no further" in verdict.reason
    assert "stig_x" in verdict.details["clamped"]


def test_a_focus_beyond_the_limits_is_at_limit():
    column = CodedColumn(low={"z": 4506.0, "stig_x": -30.0, "stig_y": -30.0})
    verdict = column.focus(strategy(), column.request((14.0, 1.0, -1.0)))
    assert verdict.status is Status.AT_LIMIT
    assert verdict.target["z"] == 4506.0
    assert min(look["z"] for look in column.looks) >= 4506.0


def test_a_window_is_not_left_by_the_answer():
    column = CodedColumn()
    request = column.request((14.0, 0.0, 0.0), window=Limits(4508.0, 4520.0))
    verdict = column.focus(strategy(), request)
    assert verdict.status is Status.AT_LIMIT
    assert verdict.target["z"] == 4508.0


@pytest.mark.parametrize(
    ("estimator", "word"),
    [
        (Answers([(1.0, 0.0, 0.0)], signal=0.0), "no specimen"),
        (Answers([(1.0, 0.0, 0.0)], step_ratio=0.05), "stands still"),
    ],
)
def test_without_signal_nothing_moves(estimator, word):
    column = CodedColumn()
    verdict = column.focus(strategy(estimator), column.request((5.0, 0.0, 0.0)))
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}
    assert verdict.confidence == 0.0
    assert word in verdict.reason
    assert len(column.looks) == 2


@pytest.mark.parametrize(
    ("sigma", "word", "frames"),
    [((2.0, 0.5, 0.5), "look alike", 10), ((9.0, 1.5, 1.5), "no better than 9 µm", 4)],
    ids=["the working distance stands still", "noise alone"],
)
def test_frames_that_never_differ_are_no_signal(sigma, word, frames):
    column = CodedColumn()
    verdict = column.focus(strategy(Answers([(0.5, 0.0, 0.0)], sigma)), column.request((8.0, 0.0, 0.0)))
    assert verdict.status is Status.NO_SIGNAL
    assert word in verdict.reason
    assert len(column.looks) == frames
    middles = np.mean([[look["z"] for look in column.looks[i : i + 2]] for i in range(0, frames, 2)], axis=1)
    assert np.ptp(middles) >= 1.5  # it looked from elsewhere too


def test_frames_of_one_grey_value_are_no_signal():
    column = CodedColumn(change=lambda image, n: np.zeros_like(image))
    verdict = column.focus(strategy(), column.request())
    assert verdict.status is Status.NO_SIGNAL
    assert "blanked" in verdict.reason


@pytest.mark.parametrize(
    ("value", "sigma"),
    [
        ((math.nan, 0, 0), (1, 1, 1)),
        ((0, math.inf, 0), (1, 1, 1)),
        ((0, 0, 0), (1, math.nan, 1)),
        ((0, 0, 0), (-1, 1, 1)),
    ],
)
def test_nonsense_from_a_model_is_an_error(value, sigma):
    column = CodedColumn()
    with pytest.raises(StrategyError, match="estimator answered"):
        column.focus(strategy(Answers([value], sigma)), column.request())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda image, n: image[:40] if n == 3 else image, "size changed"),
        (lambda image, n: np.stack([image] * 3, axis=-1), "grey images"),
        (lambda image, n: image[:4, :4], "at least 32 x 32"),
        (lambda image, n: np.where(image > 0, np.nan, image), "NaN"),
    ],
)
def test_a_frame_that_cannot_be_used_is_an_error(change, word):
    column = CodedColumn(change=change)
    with pytest.raises(HardwareError, match=word):
        column.focus(strategy(), column.request((9.0, 1.0, 0.0)))


def test_an_unknown_pixel_size_is_an_error():
    column = CodedColumn(pixel_um=None)
    with pytest.raises(StrategyError, match="pixel size"):
        column.focus(strategy(), column.request())
    assert column.focus(strategy(pixel_um=0.01), column.request()).status is Status.CONVERGED


def test_an_unsure_estimator_gives_low_confidence_after_all_iterations():
    column = CodedColumn()
    estimator = CodedEstimator(sigma=(5.0, 2.0, 2.0))
    verdict = column.focus(strategy(estimator), column.request((3.0, 1.0, 0.0)))
    assert verdict.status is Status.LOW_CONFIDENCE
    assert verdict.confidence < 0.7
    assert len(column.looks) == 10


def test_pairs_that_contradict_each_other_lower_the_confidence():
    column = CodedColumn()
    erratic = Answers([(6.0, 2.0, 0.0), (-7.0, -2.0, 1.0), (5.0, 2.0, 1.0)], (0.1, 0.02, 0.02))
    verdict = column.focus(strategy(erratic), column.request((5.0, 0.0, 0.0)))
    assert not verdict.status.ok


def test_the_budget_of_images_is_kept_and_a_refused_look_ends_the_search():
    column = CodedColumn()
    verdict = column.focus(strategy(), column.request((20.0, 5.0, 5.0), budget=Budget(images=3)))
    assert len(column.looks) == 2
    assert verdict.confidence < 0.95
    with pytest.raises(StrategyError, match="image budget of 2"):
        column.focus(strategy(), column.request(budget=Budget(images=2)))
    generator = strategy().focus(column.request((20.0, 5.0, 5.0)))
    look = next(generator)
    for _ in range(2):
        look = generator.send(column.frame(dict(look.targets)))
    with pytest.raises(StopIteration) as stop:
        generator.throw(BudgetError("spent"))
    assert stop.value.value.target["z"] == pytest.approx(4500.0, abs=6.0)
    generator = strategy().focus(column.request())
    next(generator)
    with pytest.raises(BudgetError):
        generator.throw(BudgetError("spent"))


def test_confidence_is_the_share_that_is_right():
    told, right = [], []
    for seed in range(60):
        column = CodedColumn()
        rng = np.random.default_rng(seed)
        estimator = CodedEstimator(sigma=(0.5, 0.1, 0.1), share=0.05, seed=seed)
        away = tuple(rng.uniform(-1, 1, 3) * [20, 5, 5])
        verdict = column.focus(strategy(estimator, max_iterations=2), column.request(away))
        told.append(verdict.confidence)
        right.append(bool(np.all(np.abs(column.residual(verdict)) <= [1.0, 0.25, 0.25])))
    assert abs(np.mean(told) - np.mean(right)) < 0.12


answers = st.tuples(*[st.floats(allow_nan=True, allow_infinity=True)] * 3)
sigmas = st.tuples(*[st.floats(min_value=0.0, allow_nan=False, allow_infinity=True)] * 3)


@given(
    values=st.lists(answers, min_size=1, max_size=6),
    sigma=sigmas,
    away=st.tuples(st.floats(-400, 400), st.floats(-25, 25), st.floats(-25, 25)),
    ratio=st.floats(0.0, 1e6) | st.just(math.nan),
)
@example_settings(max_examples=150, deadline=None)
def test_no_answer_of_an_estimator_leads_outside_the_limits(values, sigma, away, ratio):
    column = CodedColumn(best=(4500.0, 0.0, 0.0))
    refused = False
    try:
        verdict = column.focus(strategy(Answers(values, sigma, step_ratio=ratio)), column.request(away))
        assert 0.0 <= verdict.confidence <= 1.0
    except StrategyError:
        refused = True
    assert not refused or not np.all(np.isfinite(values))
    assert len(column.looks) <= 10
    for look in column.looks:
        assert abs(look["stig_x"] - away[1]) <= 10.0 + 1e-6
        assert abs(look["z"] - 4500.0 - away[0]) <= 60.0 + 1e-6


def test_the_same_frames_give_the_same_answer():
    verdicts = []
    for _ in range(2):
        column = CodedColumn()
        verdicts.append(column.focus(strategy(), column.request((7.0, 2.0, -1.0))))
    assert verdicts[0] == verdicts[1]


def test_the_score_falls_with_defocus_and_not_with_noise():
    def frame(blur: float, noise: float, seed: int) -> Frame:
        rng = np.random.default_rng(seed)
        specimen = np.random.default_rng(7).normal(size=(256, 256))
        fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]
        radius = np.hypot(fx, fy)
        spectrum = np.fft.rfft2(specimen) / np.maximum(radius, 0.01) * np.exp(-0.5 * (6.3 * blur * radius) ** 2)
        return Frame(np.fft.irfft2(spectrum) + noise * rng.normal(size=(256, 256)) + 500.0, {})

    s = strategy()
    for noise in (0.0, 5.0, 20.0):
        scores = [s.score(frame(blur, noise, i)) for i, blur in enumerate((1.0, 2.0, 4.0, 8.0))]
        assert scores == sorted(scores, reverse=True)
    assert s.score(frame(1.0, 20.0, 5)) == pytest.approx(s.score(frame(1.0, 0.0, 6)), rel=0.1)
    noise_only = np.random.default_rng(0).normal(100, 20, (256, 256))
    assert s.score(Frame(noise_only, {})) < 0.05 * s.score(frame(1.0, 0.0, 6))


def test_the_fit_tells_the_calibration_from_the_best_knobs():
    fit = ColumnFit(np.zeros(3), np.array([20.0, 5.0, 5.0]), 6.0, 0.3, 10.0)
    best, c, s, turn = np.array([3.0, -1.0, 2.0]), 1.2, 0.9, math.radians(10.0)
    rotate = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    for knobs in np.array([[10.0, 2.0, -3.0], [-4.0, -3.0, 3.0], [1.0, 0.0, 1.0]]):
        away = knobs - best
        stretch = c ** float(angle_power(np.linalg.norm(away * [1.0, 6.0, 6.0]), 5.0))
        seen = stretch * np.concatenate([[away[0]], s * rotate @ away[1:]])
        fit.add(knobs, PairEstimate(Aberration(*seen), Aberration(0.02, 0.01, 0.01)))
    belief = fit.belief()
    assert belief.best == pytest.approx(best, abs=0.1)
    assert belief.change.convergence == pytest.approx(c, rel=0.05)
    assert belief.change.stigmator == pytest.approx(s, rel=0.05)
    assert belief.change.rotation_deg == pytest.approx(5.0, abs=0.5)
    assert fit.unfollowed() == ()


def test_a_run_costs_two_pairs_and_a_verifying_frame():
    core = CodedCore(CodedColumn(), (18.0, 4.0, -3.0))
    result = core.run(strategy(calibration_sd=KNOWN))
    assert result.status is Status.CONVERGED
    assert result.images == 5
    assert [sample.purpose for sample in result.samples] == ["search"] * 4 + ["verify"]
    assert result.score > result.start_score
    assert core.knobs() == pytest.approx({"z": 4500.0, "stig_x": 1.0, "stig_y": -2.0}, abs=0.3)


@pytest.mark.parametrize(
    ("column", "estimator", "status"),
    [
        (CodedColumn(ignores=("stig_x",)), None, Status.NO_SIGNAL),
        (CodedColumn(), Answers([(math.nan, 0.0, 0.0)]), Status.FAILED),
        (CodedColumn(), Answers([(5.0, 1.0, 1.0)], signal=0.0), Status.NO_SIGNAL),
        (CodedColumn(change=lambda image, n: image[:40] if n == 3 else image), None, Status.FAILED),
        # an estimator that is sure of the wrong place: the verifying frame sends the run back
        (CodedColumn(), Answers([(-9.0, -2.0, 2.0), (0.0, 0.0, 0.0)]), Status.LOW_CONFIDENCE),
    ],
    ids=["ignored", "NaN", "blank", "another size", "wrong"],
)
def test_a_run_that_fails_puts_every_knob_back(column, estimator, status):
    core = CodedCore(column, (10.0, 4.0, -3.0))
    before = core.knobs()
    result = core.run(strategy(estimator))
    assert result.status is status
    assert core.knobs() == before == result.end


def test_column_care_carries_the_calibration_from_run_to_run():
    wrong = strategy(convergence_mrad=8.7 * 1.2, stigmator_um=5.0)

    class Orchestrator:
        strategies = {"phase-diversity": wrong}  # noqa: RUF012

    care = ColumnCare()
    care.mmaf_start(Orchestrator())
    frames = []
    for i in range(4):
        column = CodedColumn()
        request = column.request((15.0 - 8 * i, 4.0, -3.0))
        verdict = column.focus(wrong, request)
        frames.append(len(column.looks))

        class Result:
            strategy, ok, details = "phase-diversity", verdict.status.ok, verdict.details

        care.mmaf_focused(Result())
    assert wrong.calibration.convergence_mrad == pytest.approx(8.7, rel=0.08)
    assert wrong.calibration.stigmator_um == pytest.approx(6.0, rel=0.08)
    assert frames[-1] == 4
    care.mmaf_start(Orchestrator())
    assert wrong.calibration.convergence_mrad == pytest.approx(8.7 * 1.2)


def test_frames_have_the_shape_that_the_double_says():
    assert CodedColumn().frame({"z": 4500.0}).image.shape == SHAPE
