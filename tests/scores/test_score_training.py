"""Data and training: labels that mean what they say, the same seed the same weights, a controller that learns."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mm_autofocus.benchmark.score_cases import cases, column_of, drive, run, true_score
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.focus_score import ScoreReading, score_of_blur
from mm_autofocus.networks.acnet import STATE, state_vector
from mm_autofocus.strategies.dual_network import DualNetwork
from mm_autofocus.training.control_training import BATCH, Curve, Episodes, fit_acnet, smoothed, train_control
from mm_autofocus.training.score_data import (
    MAGNIFICATIONS,
    TEST_SEED,
    TRAINING_SEED,
    VALIDATION_SEED,
    VIEW,
    ScoreSampler,
    ScoreView,
    by_experts,
    focus_series,
    render_views,
)
from mm_autofocus.training.score_training import FeatureSet, compare, feature_set, fit_blur_nets, train_score


@pytest.fixture(scope="module")
def views():
    return render_views(("tin",), 2, TRAINING_SEED)


@pytest.fixture(scope="module")
def grain():
    """A view that costs no time."""
    picture = np.random.default_rng(0).random(VIEW).astype(np.float16)
    return ScoreView("tin", 0, 2000.0, 0.1786, picture)


def test_views_are_of_their_specimens(views):
    low, high = MAGNIFICATIONS["tin"]
    assert all(low / 1.2 <= v.magnification <= high * 1.2 for v in views)
    assert all(v.image.shape == VIEW and v.image.min() >= 0 and v.image.max() <= 1 for v in views)
    assert {v.seed for v in views} == {TRAINING_SEED, TRAINING_SEED + 1}
    again = render_views(("tin",), 1, TRAINING_SEED, magnifications=(views[0].magnification,), fine=0.0)[0]
    assert again.pixel_um == pytest.approx(114_300 / (320 * views[0].magnification))


def test_training_validation_and_test_specimens_differ():
    seeds = [set(range(s, s + 200)) for s in (TRAINING_SEED, VALIDATION_SEED, TEST_SEED)]
    assert len(set.union(*seeds)) == 600


def test_samples_repeat_and_cover_the_scale(grain):
    first, second = (list(ScoreSampler((grain,), 7).samples(60)) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) and a.score == b.score for a, b in zip(first, second, strict=True))
    scores = [s.score for s in first]
    assert min(scores) == 0.0
    assert max(scores) > 9.5
    assert np.histogram(scores, bins=5, range=(0, 10))[0].min() >= 4
    assert all(s.image.shape == (240, 320) and s.image.dtype == np.uint8 for s in first)


def test_repeats_differ_in_noise_and_not_in_label(grain):
    one, other = ScoreSampler((grain,), 8).of(grain, score=6.0, repeats=2)
    assert one.score == other.score
    assert not np.array_equal(one.image, other.image)


def test_images_of_nothing_have_no_points(grain):
    nothing = list(ScoreSampler((grain,), 9, empty=1.0).samples(30))
    assert all(s.score == 0.0 and math.isnan(s.defocus_um) for s in nothing)
    means = [s.image.mean() for s in nothing]
    assert min(means) < 40
    assert max(means) > 200


def test_blur_takes_detail_away(grain):
    sampler = ScoreSampler((grain,), 10)
    detail = []
    for score in (10.0, 7.0, 4.0, 1.0):
        signal = next(iter(sampler.of(grain, score=score))).image.astype(float)
        detail.append(np.abs(np.diff(signal, axis=1)).mean() / signal.std())
    assert detail[0] > detail[1]


def test_experts_round_and_scatter():
    rng = np.random.default_rng(0)
    labels = [by_experts(6.3, rng) for _ in range(400)]
    assert all(label == round(label) for label in labels)
    assert np.mean(labels) == pytest.approx(6.3, abs=0.1)
    assert 0.3 < np.std(labels) < 0.8
    assert by_experts(10.0, rng, spread=5.0) <= 10.0


def test_a_focus_series_peaks_where_it_is_in_focus(grain):
    series = focus_series(grain, 3, frames=25)
    assert series.images.shape == (25, 240, 320)
    assert np.all(np.diff(series.defocus_um) > 0)
    assert abs(series.defocus_um[int(np.argmax(series.score))]) <= 1.01 * np.diff(series.defocus_um)[0]
    assert series.score[0] < 3.0
    assert series.score[-1] < 3.0


def test_errors_are_those_of_the_papers(grain):
    images = list(ScoreSampler((grain,), 11, empty=0.0).samples(20))
    labels = np.array([i.score for i in images])
    found = compare(labels + 0.5, images)
    assert found["rmse"] == pytest.approx(0.5)
    assert found["within_1"] == 1.0
    assert found["correlation"] == pytest.approx(1.0)
    assert found["precision"] == pytest.approx(0.95)


# ---------------------------------------------------------------------- training
def linear_features(count, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 12)).astype(np.float32)
    scores = np.clip(5.0 + 2.0 * features[:, 0] + 0.3 * rng.normal(size=count), 0, 10)
    return FeatureSet(features, scores.astype(np.float32))


def test_our_network_learns_and_knows_its_error():
    pytest.importorskip("torch")
    loss: list[float] = []
    arrays, parameters = fit_blur_nets(linear_features(600, 0), linear_features(200, 1), epochs=12, loss=loss)
    again, _ = fit_blur_nets(linear_features(600, 0), linear_features(200, 1), epochs=12)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert loss[-1] < 0.3 * loss[0]
    from mm_autofocus.estimators.cards import SemCard
    from mm_autofocus.estimators.focus_score import BlurScorer

    held = linear_features(300, 2)
    scorer = BlurScorer(SemCard(model="score", what="", weights="", parameters=parameters), arrays)
    score, sigma = scorer.scores(held.features)
    error = score - held.scores
    assert np.sqrt(np.mean(error**2)) < 0.5 * held.scores.std()
    z = error / (sigma * parameters["sigma_scale"])
    assert 0.6 < np.sqrt(np.mean(z**2)) < 1.6


@pytest.mark.parametrize("network", ["ours", "aenet"])
def test_training_writes_a_card_that_can_be_used(tmp_path, grain, network, monkeypatch):
    pytest.importorskip("torch")
    from mm_autofocus.estimators.focus_score import load_scorer
    from mm_autofocus.training import score_training

    monkeypatch.setattr(score_training, "EPOCHS", 2)
    monkeypatch.setattr(score_training, "AENET_WIDTH", 2)
    path = tmp_path / "score.json"
    card = train_score(network, path, images=64, views=[grain], measure=False, expert_noise=True, say=lambda _: None)
    assert "--images 64" in card.command
    assert json.loads(path.read_text())["measured"]["threads"] == 1
    image = next(iter(ScoreSampler((grain,), 1).of(grain))).image
    assert 0.0 <= load_scorer(network, path).read(image, grain.pixel_um).score <= 10.0


def test_too_little_to_train_on_is_refused(tmp_path, grain):
    with pytest.raises(SettingsError, match="too few"):
        train_score("ours", tmp_path / "a.json", images=10, views=[grain])
    with pytest.raises(SettingsError, match="too few"):
        train_control(tmp_path / "a.json", series=1, curves=[])


def test_features_of_images_without_anything_are_left_out(grain):
    images = list(ScoreSampler((grain,), 12, empty=0.0).samples(3))
    black = images[0].__class__(np.zeros((240, 320), np.uint8), 0.1, 1000.0, "tin", 0.0, math.nan)
    assert len(feature_set([*images, black]).scores) == 3


# ---------------------------------------------------------------------- the controller
def bell(width: float, best: float = 0.0) -> Curve:
    at = np.linspace(-1000.0, 1000.0, 1500)
    score = np.array([score_of_blur(abs(z - best) / width, 1.0) for z in at])
    return Curve("tin", 2000.0, 400.0, -1000.0, 1000.0, best, np.stack([score, 0.2 + 0.02 * score, 5 + 0.1 * score], 1))


def test_episodes_say_what_the_strategy_says():
    episodes = Episodes([bell(40.0)], 3, seed=1)
    for share in (0.3, -0.2, 0.1):
        episodes.move(np.full(3, share, np.float32))
    told = episodes.states()
    assert told.shape == (3, STATE)
    for i in range(3):
        columns = [episodes.history[i, -4:, k].tolist() for k in range(4)]
        # the strategy pads with the first frame, as the episodes begin
        assert np.allclose(told[i], state_vector(*columns, 2000.0, 400.0), atol=1e-6)
    assert np.allclose(episodes.targets(), np.clip(-episodes.at / 400.0, -1, 1))


def test_splines_take_the_noise_out(grain):
    series = focus_series(grain, 4, frames=40)
    noise = np.random.default_rng(0).normal(0, 0.3, 40)
    rows = np.stack([series.score + noise, 0.3 + 0.0 * noise, 6.0 + 0.0 * noise], 1)
    curve = smoothed(series, rows, "sensitivity")
    assert abs(curve.best_um) < 0.15 * (series.defocus_um[-1] - series.defocus_um[0])
    assert smoothed(series, rows, "equation_5").action_um == pytest.approx(1200.0, rel=1e-3)


def test_acnet_learns_where_to_go():
    pytest.importorskip("torch")
    curves = [bell(width, best) for width in (30.0, 50.0) for best in (-200.0, 100.0)]
    arrays, measured = fit_acnet(curves, epochs=60, seed=0)
    again, _ = fit_acnet(curves, epochs=60, seed=0)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert np.mean(measured["loss"][-3:]) < 0.8 * measured["loss"][0]
    assert arrays["0.weight"].shape[1] == STATE
    assert BATCH == 90


# ---------------------------------------------------------------------- the simulated column
def test_the_label_of_a_column_is_that_of_its_truth():
    case = next(iter(cases(("tin",), 1)))
    column = column_of(case)
    assert column.truth().defocus_um == pytest.approx(case.start_um)
    assert column.magnification == pytest.approx(case.magnification)
    blurred = true_score(column)
    column.working_distance_um -= column.truth().defocus_um
    sharp = true_score(column)
    assert sharp > blurred
    assert sharp > 7.0  # what is left is astigmatism


def test_cases_repeat_and_differ_from_those_of_training():
    first = list(cases(("grid", "wing"), 3))
    assert first == list(cases(("grid", "wing"), 3))
    assert min(c.seed for c in first) >= TEST_SEED + 1000
    assert len({c.magnification for c in first}) == 3
    assert {c.convergence for c in cases(("tin",), 6, untrained=True)} <= {0.8, 1.2}


def test_single_images_focus_a_simulated_column():
    case = next(iter(cases(("tin",), 1)))
    outcome = run(case, DualNetwork())
    assert outcome.status == "converged"
    assert outcome.best - outcome.final < 0.5
    assert outcome.frames <= 14
    assert len(outcome.trajectory) == len(outcome.scores) == outcome.frames
    assert outcome.trajectory[0] == pytest.approx(case.start_um, abs=1.0)


def test_drive_counts_every_frame():
    class Still:
        def read(self, image, pixel_um):
            return ScoreReading(0.0, 0.2)

    case = next(iter(cases(("tin",), 1)))
    column = column_of(case)
    from mm_autofocus.request import Event, FocusRequest, Limits

    start = column.working_distance_um
    request = FocusRequest(Event(axes={"position": 0}), {"z": start}, {"z": Limits(2000.0, 20000.0)}, pixel_um=0.1)
    verdict, frames, seconds = drive(column, DualNetwork(scorer=Still()), request)
    assert verdict.status == "no_signal"
    assert frames == column.frames
    assert seconds > 0
