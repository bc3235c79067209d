"""Focusing by scores of single images: it arrives, in few frames, never leaves the limits, and says when it has not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from column_double import CodedColumn, CodedCore
from mm_autofocus.errors import BudgetError, HardwareError, SettingsError, StrategyError
from mm_autofocus.estimators.focus_score import ScoreReading, score_of_blur
from mm_autofocus.request import Budget, Limits
from mm_autofocus.result import Status
from mm_autofocus.strategies.dual_network import DualNetwork, DualNetworkSettings, sensitive_action_um
from mm_autofocus.strategies.focus_belief import FocusBelief, depth_um, reach_um
from mm_autofocus.strategy import Frame

ALPHA = 8.7e-3
PIXEL_UM = 0.1
COLUMN = {"low": {"z": 2000.0, "stig_x": -30.0, "stig_y": -30.0}, "high": {"z": 9000.0, "stig_x": 30.0, "stig_y": 30.0}}


@dataclass
class CodedScorer:
    """Scores the defocus that a `CodedColumn` wrote into its frame, as a network would; at most ``top``."""

    angle: float = ALPHA
    noise: float = 0.0
    sigma: float = 0.2
    top: float = 10.0
    calls: int = 0
    lean: float = 0.0
    """By how much blurred frames score more on one side of the focus than on the other, share of the points lost."""

    def read(self, image, pixel_um):
        self.calls += 1
        signed = float(image[0, 0])
        score = score_of_blur(self.angle * abs(signed) / math.sqrt(2.0), pixel_um) * self.top / 10.0
        score += math.copysign(self.lean, signed) * (10.0 - score)
        score += self.noise * float(np.random.default_rng(self.calls).normal())
        return ScoreReading(min(max(score, 0.0), 10.0), self.sigma)


@dataclass
class Homing:
    """A controller that knows the scores' shape: what a well trained ACNet would do, without a network."""

    share: float = 0.5
    states: list = field(default_factory=list)

    def action(self, state):
        self.states.append(state)
        moved, gained = float(state[18]), float(state[37])
        if moved == 0.0:
            return self.share
        way = math.copysign(1.0, moved * gained) if gained else 0.0
        return way * self.share * max(0.02, 1.0 - float(state[76]))


class Fixed:
    """A scorer or controller that answers whatever it is told."""

    def __init__(self, values, sigma=0.3) -> None:
        self.values, self.sigma, self.calls = list(values), sigma, 0

    def _next(self):
        value = self.values[self.calls % len(self.values)]
        self.calls += 1
        return value

    def read(self, image, pixel_um):
        return ScoreReading(self._next(), self.sigma)

    def action(self, state):
        return self._next()


def column(**changes) -> CodedColumn:
    return CodedColumn(**{"pixel_um": PIXEL_UM, **COLUMN, **changes})


def ours(scorer=None, **settings) -> DualNetwork:
    return DualNetwork(DualNetworkSettings(**settings), scorer=scorer or CodedScorer())


def paper(controller, scorer=None, **settings) -> DualNetwork:
    return DualNetwork(DualNetworkSettings(controller="acnet", **settings), scorer or CodedScorer(), controller)


# ---------------------------------------------------------------------- our controller
@pytest.mark.parametrize("away", [0.0, 3.0, -12.0, 60.0, -150.0, 250.0, -380.0])
def test_it_arrives_from_anywhere_in_few_frames(away):
    instrument = column()
    verdict = instrument.focus(ours(), instrument.request((away, 0.0, 0.0)))
    assert verdict.status is Status.CONVERGED
    assert abs(verdict.target["z"] - 4500.0) <= depth_um(PIXEL_UM, 8.7) / 2
    assert len(instrument.looks) <= 10
    assert verdict.confidence >= 0.8
    assert len(verdict.scores) == len(instrument.looks) == verdict.details["frames"]


def test_it_arrives_with_noise_a_wrong_angle_and_a_ceiling():
    errors, frames = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        instrument = column()
        scorer = CodedScorer(
            ALPHA * float(rng.choice([0.75, 1.3])), 0.25, 0.3, float(rng.uniform(7.0, 10.0)), 100 * seed
        )
        verdict = instrument.focus(ours(scorer), instrument.request((float(rng.uniform(-350, 350)), 0, 0), seed=seed))
        errors.append(abs(verdict.target["z"] - 4500.0) / depth_um(PIXEL_UM, 8.7))
        frames.append(len(instrument.looks))
    assert np.median(errors) < 0.5
    assert max(errors) < 1.5
    assert np.mean(frames) < 12


def test_frames_near_the_focus_count_for_more_than_what_a_network_says_of_far_ones():
    errors = []
    for seed in range(12):
        rng = np.random.default_rng([1, seed])
        instrument = column()
        scorer = CodedScorer(noise=0.1, calls=100 * seed, lean=float(rng.choice([-0.12, 0.12])))
        verdict = instrument.focus(ours(scorer), instrument.request((float(rng.uniform(-350, 350)), 0, 0), seed=seed))
        errors.append(abs(verdict.target["z"] - 4500.0) / depth_um(PIXEL_UM, 8.7))
    assert max(errors) < 0.6
    assert np.mean(errors) < 0.3


def test_only_the_working_distance_is_turned():
    instrument = column()
    instrument.focus(ours(), instrument.request((60.0, 1.0, -1.0)))
    assert all(set(look) == {"z", "stig_x", "stig_y"} for look in instrument.looks)
    assert {(look["stig_x"], look["stig_y"]) for look in instrument.looks} == {(2.0, -3.0)}


def test_no_specimen_is_no_signal_and_nothing_is_gained_by_staying_away():
    instrument = column()
    verdict = instrument.focus(ours(Fixed([0.0]), retries=1), instrument.request())
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}
    assert "below 3" in verdict.reason
    assert verdict.details["attempts"] == 2
    assert len(instrument.looks) <= 41


def test_a_black_frame_ends_the_run_before_anything_moves():
    instrument = column(change=lambda image, n: np.zeros_like(image))
    verdict = instrument.focus(ours(), instrument.request((50.0, 0.0, 0.0)))
    assert verdict.status is Status.NO_SIGNAL
    assert "one grey value" in verdict.reason
    assert [look["z"] for look in instrument.looks] == [4550.0]


def test_a_peak_beyond_the_limits_is_told():
    instrument = column(high={"z": 4460.0, "stig_x": 30.0, "stig_y": 30.0})
    request = instrument.request((-150.0, 0.0, 0.0))
    verdict = instrument.focus(ours(), request)
    assert verdict.status in (Status.AT_LIMIT, Status.LOW_CONFIDENCE)
    assert verdict.target["z"] <= 4460.0
    assert verdict.confidence < 0.7


def test_a_window_of_the_request_is_kept():
    instrument = column()
    window = Limits(4480.0, 4530.0)
    verdict = instrument.focus(ours(), instrument.request((20.0, 0.0, 0.0), window=window))
    assert all(4480.0 <= look["z"] <= 4530.0 for look in instrument.looks)
    assert abs(verdict.target["z"] - 4500.0) < 5.0


def test_the_window_follows_the_magnification():
    looked = []
    for pixel_um in (0.02, 0.5):
        instrument = column(pixel_um=pixel_um)
        instrument.focus(ours(Fixed([0.0]), retries=0), instrument.request())
        looked.append(max(abs(look["z"] - 4500.0) for look in instrument.looks))
    assert looked[1] > 5 * looked[0]


def test_an_image_budget_ends_the_search_with_what_there_is():
    core = CodedCore(column(), (200.0, 0.0, 0.0))
    result = core.run(ours(), budget=Budget(images=5))
    assert result.images <= 5
    assert result.status in (Status.CONVERGED, Status.LOW_CONFIDENCE, Status.NO_SIGNAL, Status.TIMED_OUT)


def test_a_run_moves_the_column_and_verifies():
    core = CodedCore(column(), (200.0, 0.0, 0.0))
    result = core.run(ours())
    assert result.ok, result.reason
    assert abs(core.z - 4500.0) <= depth_um(PIXEL_UM, 8.7) / 2
    assert result.score > result.start_score
    assert result.images <= 12


# ---------------------------------------------------------------------- what must never happen
@example_settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    st.floats(0.0, 1e3),
    st.floats(-60.0, 60.0),
    st.sampled_from(["ours", "acnet"]),
    st.integers(0, 3),
)
def test_no_answer_of_a_network_leads_outside_the_limits(values, sigma, away, controller, seed):
    instrument = column(
        low={"z": 4440.0, "stig_x": -30.0, "stig_y": -30.0}, high={"z": 4560.0, "stig_x": 30.0, "stig_y": 30.0}
    )
    strategy = DualNetwork(
        DualNetworkSettings(controller=controller, max_frames=8), Fixed(values, sigma), Fixed(values)
    )
    # CodedColumn.focus asserts that every Look and the target lie within the limits
    verdict = instrument.focus(strategy, instrument.request((away, 0.0, 0.0), seed=seed))
    assert 0.0 <= verdict.confidence <= 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_network_that_answers_nan_is_an_error_and_the_column_goes_back(value):
    instrument = column()
    with pytest.raises(StrategyError, match="score network answered"):
        instrument.focus(ours(Fixed([5.0, value])), instrument.request())
    core = CodedCore(column(), (40.0, 0.0, 0.0))
    result = core.run(ours(Fixed([5.0, 6.0, value])))
    assert result.status is Status.FAILED
    assert core.z == pytest.approx(4540.0)
    with pytest.raises(StrategyError, match="control network answered"):
        instrument.focus(paper(Fixed([value]), Fixed([5.0])), instrument.request())


def test_nan_pixels_colour_and_small_frames_are_refused_by_the_network_that_is_shipped():
    frames = {
        "NaN": np.full((240, 320), np.nan, np.float32),
        "grey": np.zeros((240, 320, 3), np.uint8),
        "320 x 240": np.zeros((120, 160), np.uint8) + np.arange(160, dtype=np.uint8),
    }
    for words, image in frames.items():
        instrument = column(change=lambda _, n, image=image: image)
        with pytest.raises(HardwareError, match=words):
            instrument.focus(DualNetwork(), instrument.request())
        assert len(instrument.looks) == 1


def test_an_unknown_pixel_size_or_one_out_of_range_is_refused():
    instrument = column(pixel_um=None)
    with pytest.raises(StrategyError, match="pixel size"):
        instrument.focus(ours(), instrument.request())
    with pytest.raises(StrategyError, match="pixel size"):
        ours().score(Frame(np.zeros((240, 320)), {"z": 0.0}))
    noise = np.random.default_rng(0).integers(0, 255, (240, 320)).astype(np.uint8)
    instrument = column(pixel_um=50.0, change=lambda _, n: noise)
    with pytest.raises(HardwareError, match="magnification"):
        instrument.focus(DualNetwork(), instrument.request())


def test_the_magnification_must_not_change_during_a_run():
    instrument = column()
    looks = iter([0.1, 0.05, 0.05])

    class Zooming(CodedColumn):
        def frame(self, knobs):
            made = super().frame(knobs)
            return Frame(made.image, made.knobs, next(looks))

    instrument = Zooming(**COLUMN)
    with pytest.raises(StrategyError, match="pixel size changed"):
        instrument.focus(ours(), instrument.request((60.0, 0.0, 0.0)))


def test_a_budget_without_a_frame_is_an_error():
    generator = ours().focus(column().request())
    next(generator)
    with pytest.raises(BudgetError):
        generator.throw(BudgetError("none left"))


# ---------------------------------------------------------------------- the paper's controller
def test_acnet_searches_until_something_is_seen_then_stops_at_the_score():
    instrument = column()
    controller = Homing()
    verdict = instrument.focus(paper(controller), instrument.request((-420.0, 0.0, 0.0)))
    stride = sensitive_action_um(PIXEL_UM, 8.7) / 3
    first = [look["z"] for look in instrument.looks]
    seen = next(i for i, score in enumerate(verdict.scores) if score > 2.0)
    assert seen > 1
    assert np.allclose(np.diff(first[: seen + 1]), stride)
    assert len(controller.states) == len(verdict.scores) - seen - 1
    assert verdict.target["z"] == pytest.approx(first[int(np.argmax(verdict.scores))])
    assert all(score < 9.0 for score in verdict.scores[:-1])


def test_acnet_turns_round_at_the_end_of_the_window():
    instrument = column()
    verdict = instrument.focus(paper(Homing()), instrument.request((420.0, 0.0, 0.0)))
    z = [look["z"] for look in instrument.looks]
    assert max(z) > 4920.0
    assert min(z) < 4800.0
    assert max(verdict.scores) > 2.0


def test_acnet_stops_after_five_frames_without_gain_and_after_twenty_at_most():
    instrument = column()
    verdict = instrument.focus(paper(Fixed([0.1, -0.1]), Fixed([5.0, 6.0, 5.9])), instrument.request())
    assert len(verdict.scores) == 7  # the second is the best, and five more
    rising = [3.0 + 0.1 * i for i in range(60)]
    instrument = column()
    verdict = instrument.focus(paper(Fixed([0.001]), Fixed(rising), retries=0), instrument.request())
    assert len(verdict.scores) == 21


def test_acnet_tries_once_more_and_then_says_that_it_failed():
    instrument = column()
    verdict = instrument.focus(paper(Fixed([0.1]), Fixed([2.5])), instrument.request())
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.details["attempts"] == 2
    assert len(verdict.scores) == 12  # a start and five frames without gain, twice


def test_a_large_action_is_cut_off_at_the_largest():
    instrument = column()
    instrument.focus(paper(Fixed([50.0, -50.0]), Fixed([5.0, 6.0])), instrument.request())
    steps = np.abs(np.diff([look["z"] for look in instrument.looks]))
    assert steps.max() <= sensitive_action_um(PIXEL_UM, 8.7) + 1e-6
    instrument = column()
    instrument.focus(paper(Fixed([50.0, -50.0]), Fixed([5.0, 6.0]), action_limit="equation_5"), instrument.request())
    steps = np.abs(np.diff([look["z"] for look in instrument.looks]))
    assert 400.0 < steps.max() <= 1200.0


# ---------------------------------------------------------------------- belief, settings
def test_the_belief_knows_that_one_score_leaves_two_places():
    reach = reach_um(PIXEL_UM, 8.7)
    belief = FocusBelief(-2 * reach, 2 * reach, PIXEL_UM, 8.7, convergence_sd=0.05)
    belief.add(0.0, 5.0, 0.2)
    places = np.linspace(-2 * reach, 2 * reach, len(belief.weights))
    away = reach_um(PIXEL_UM, 8.7, 5.0)
    for side in (-1, 1):
        assert belief.weights[np.abs(places - side * away) < 0.6 * away].sum() == pytest.approx(0.5, abs=0.12)
    assert belief.best(depth_um(PIXEL_UM, 8.7) / 2)[1] < 0.5
    belief.add(away, 9.9, 0.2)
    target, sure = belief.best(depth_um(PIXEL_UM, 8.7) / 2)
    assert target == pytest.approx(away, abs=0.25 * away)
    assert sure > 0.4
    assert belief.sd_um < 0.3 * away


def test_settings_are_checked():
    with pytest.raises(ValueError, match="score_network"):
        DualNetworkSettings(score_network="vgg")
    with pytest.raises(SettingsError, match="can't be read"):
        DualNetwork(DualNetworkSettings(score_model="nowhere.json"))
