"""What a point of the score means, what an image must be, and that our network reads it on places it has not seen."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.estimators.blur_features import LENGTH, blur_features
from mm_autofocus.estimators.cards import SemCard, save_card
from mm_autofocus.estimators.focus_score import (
    FRAME,
    blur_of_score,
    checked_image,
    load_scorer,
    magnification_of,
    normalised,
    pixel_um_of,
    resolvable_um,
    score_of_blur,
    windows,
)
from mm_autofocus.simulation.electron_probe import Probe
from mm_autofocus.training.score_data import TEST_SEED, Conditions, ScoreSampler, render_views

STILL = Conditions(
    electrons=(60.0, 60.0), softness=(0.2, 0.2), core_nm=(6.0, 6.0), gamma=(1.0, 1.0), contrast=(0.8, 0.8),
    brightness=(0.0, 0.0), row_noise=(1.0, 1.0), astigmatic=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def view():
    return render_views(("tin",), 1, TEST_SEED + 7, magnifications=(2000.0,), fine=0.0)[0]


@given(st.floats(0.0, 10.0), st.floats(0.005, 0.8))
def test_blur_and_score_are_inverse(score, pixel_um):
    assert score_of_blur(blur_of_score(score, pixel_um), pixel_um) == pytest.approx(score, abs=1e-6)


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.005, 0.8))
def test_more_blur_never_scores_more(one, other, pixel_um):
    low, high = sorted((one, other))
    assert score_of_blur(high, pixel_um) <= score_of_blur(low, pixel_um)
    assert 0.0 <= score_of_blur(high, pixel_um) <= 10.0


def test_the_scale():
    pixel = 0.3
    assert score_of_blur(0.0, pixel) == 10.0
    assert score_of_blur(1.3 * resolvable_um(pixel), pixel) == pytest.approx(9.0, abs=0.05)
    assert score_of_blur(25.0 * resolvable_um(pixel), pixel) == pytest.approx(0.0, abs=1e-9)
    # The same blur is worse at a higher magnification, the same number of pixels is not.
    assert score_of_blur(0.5, pixel_um_of(500)) > score_of_blur(0.5, pixel_um_of(5000)) + 3
    assert resolvable_um(0.3) == pytest.approx(0.3, rel=1e-2)
    assert magnification_of(pixel_um_of(10_000)) == pytest.approx(10_000)


@pytest.mark.parametrize(
    ("image", "pixel_um", "words"),
    [
        (np.zeros((240, 320, 3), np.uint8), 0.1, "not a grey image"),
        (np.zeros((239, 320), np.uint8), 0.1, "below the 320 x 240"),
        (np.zeros((240, 319), np.uint8), 0.1, "below the 320 x 240"),
        (np.full((240, 320), np.nan), 0.1, "NaN"),
        (np.full((240, 320), np.inf), 0.1, "infinity"),
        (np.zeros((240, 320), complex), 0.1, "type complex128"),
        (np.zeros((240, 320), np.uint8), 0.0, "magnification"),
        (np.zeros((240, 320), np.uint8), math.nan, "magnification"),
        (np.zeros((240, 320), np.uint8), 5.0, "magnification 71x"),
        (np.zeros((240, 320), np.uint8), 0.0005, "magnification 714,375x"),
    ],
)
def test_an_image_that_cannot_be_scored_is_refused(image, pixel_um, words):
    with pytest.raises(HardwareError, match=words):
        checked_image(image, pixel_um)
    with pytest.raises(HardwareError, match=words):
        load_scorer().read(image, pixel_um)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_image_of_one_grey_value_scores_nothing(grey):
    assert load_scorer().read(np.full(FRAME, grey, np.uint8), 0.1).score == 0.0


def test_windows_cover_an_image_evenly():
    assert [w.shape for w in windows(np.zeros(FRAME))] == [FRAME]
    large = np.arange(768 * 1024).reshape(768, 1024)
    parts = list(windows(large))
    assert len(parts) == 9
    assert all(part.shape == FRAME for part in parts)
    assert parts[0][0, 0] == 0
    assert parts[-1][-1, -1] == large[-1, -1]
    assert len(list(windows(np.zeros((480, 640))))) == 4


@example_settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["noise", "few", "line", "huge", "tiny"]))
def test_features_are_finite_whatever_the_image(seed, sort):
    rng = np.random.default_rng(seed)
    image = {
        "noise": lambda: rng.integers(0, 256, FRAME).astype(np.uint8),
        "few": lambda: np.where(rng.random(FRAME) < 1e-4, 255, 0).astype(np.uint8),
        "line": lambda: (np.arange(320) == 100)[None].repeat(240, 0).astype(np.uint8),
        "huge": lambda: rng.normal(1e9, 1e8, FRAME),
        "tiny": lambda: rng.normal(0, 1e-6, FRAME),
    }[sort]()
    features = blur_features(image, 0.1)
    assert features.shape == (LENGTH,)
    assert np.all(np.isfinite(features))


def test_features_ignore_brightness_and_contrast(view):
    image = next(iter(ScoreSampler((view,), 3, STILL).of(view, score=7.0))).image.astype(np.float32)
    plain, changed = blur_features(image, 0.1), blur_features(0.37 * image + 55.0, 0.1)
    assert np.allclose(plain, changed, atol=0.02)


def test_our_network_is_small():
    arrays = load_scorer().arrays
    assert sum(v.size for v in arrays.values()) < 1_000_000


def test_scores_follow_blur_on_a_place_never_seen(view):
    sampler = ScoreSampler((view,), 5, STILL)
    wanted = np.linspace(0.5, 9.9, 12)
    scorer = load_scorer()
    read = [scorer.read((image := next(iter(sampler.of(view, score=w)))).image, image.pixel_um) for w in wanted]
    scores = np.array([r.score for r in read])
    assert np.corrcoef(scores, wanted)[0, 1] > 0.97
    assert np.abs(scores - wanted).mean() < 0.8
    assert all(r.sigma > 0 for r in read)


def test_scores_stay_put_under_brightness_contrast_and_gamma(view):
    sampler = ScoreSampler((view,), 6, STILL)
    sharp = next(iter(sampler.of(view, score=9.5))).image
    soft = next(iter(sampler.of(view, score=4.0))).image
    table = (255.0 * (np.arange(256) / 255.0) ** 1.3).astype(np.uint8)
    scorer = load_scorer()
    for image in (sharp, soft):
        changed = [
            image,
            cv2.LUT(image, table),
            np.clip(image.astype(float) * 0.6 + 30, 0, 255).astype(np.uint8),
            np.clip(image.astype(float) - 20, 0, 255).astype(np.uint8),
        ]
        scores = [scorer.read(c, view.pixel_um).score for c in changed]
        assert np.ptp(scores) < 1.2


def test_a_larger_image_scores_the_median_of_its_windows(view):
    sampler = ScoreSampler((view,), 8, STILL)
    one = next(iter(sampler.of(view, score=8.0))).image
    scorer = load_scorer()
    alone = scorer.read(one, view.pixel_um).score
    assert scorer.read(np.tile(one, (2, 2)), view.pixel_um).score == pytest.approx(alone, abs=1e-3)
    # Windows without anything in them do not count.
    dark = np.zeros((480, 640), np.uint8)
    dark[:240, :320] = one
    assert scorer.read(dark, view.pixel_um).score == pytest.approx(alone, abs=1e-3)


def test_normalisation_has_mean_0_and_deviation_1(view):
    image = next(iter(ScoreSampler((view,), 9, STILL).of(view))).image
    out = normalised(image)
    assert out.dtype == np.float32
    assert abs(float(out.mean())) < 1e-3
    assert float(out.std()) == pytest.approx(1.0, abs=1e-3)
    speck = np.zeros(FRAME, np.uint8)
    speck[100, 100] = 255
    assert np.ptp(normalised(speck)) == 0.0  # the median filter takes it out


def test_unknown_networks_and_broken_cards_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="unknown"):
        load_scorer("vgg")
    with pytest.raises(SettingsError, match="can't be read"):
        load_scorer("ours", tmp_path / "none.json")
    card = SemCard(model="aenet", what="", weights="a.safetensors", parameters={"width": 4})
    save_card(tmp_path / "a.json", card, {"score.weight": np.zeros(3, np.float32)})
    with pytest.raises(SettingsError, match="card of a aenet"):
        load_scorer("ours", tmp_path / "a.json")
    with pytest.raises(SettingsError, match="do not fit"):
        load_scorer("aenet", tmp_path / "a.json")


def test_a_column_out_of_focus_blurs_as_the_label_says(view):
    sampler = ScoreSampler((view,), 4, STILL)
    probe = Probe(8.7, 6.0)
    radius = blur_of_score(5.0, view.pixel_um) * math.sqrt(2.0) / 8.7e-3
    sharp = sampler.cut(view)
    soft = sampler.blur(sharp, view.pixel_um, radius, 0.0, 0.0, probe)
    # It resembles a Gaussian of the label's second moment more than much narrower and wider ones.
    sigma = blur_of_score(5.0, view.pixel_um) / math.sqrt(2.0) / view.pixel_um
    alike = [
        np.corrcoef(soft.ravel(), cv2.GaussianBlur(sharp, (0, 0), sigma * f)[44:-44, 44:-44].ravel())[0, 1]
        for f in (0.6, 0.8, 1.0, 1.25, 1.6)
    ]
    assert int(np.argmax(alike)) in (2, 3)  # a disc's middle frequencies fall a little faster
    assert alike[2] > 0.97
