"""Estimators: right on simulated pairs, silent about what shows nothing, and clear about what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PairEstimator
from mm_autofocus.estimators.cards import SemCard, load_card, save_card
from mm_autofocus.estimators.pair_spectra import ANGULAR, RADIAL, features, pair_spectra
from mm_autofocus.estimators.patches import grid_corners, random_corners
from mm_autofocus.estimators.spectral import SpectralEstimator
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.training.sem_evaluation import NOMINAL, Conditions, simulate_pair
from mm_autofocus.training.sem_pairs import TEST_SEED, render_views

CONDITIONS = Conditions(shape=(512, 512), electrons=40.0)


@pytest.fixture(scope="module")
def views() -> list[np.ndarray]:
    return render_views((SpecimenKind.TISSUE, SpecimenKind.FIBRES), 1, TEST_SEED, size=704, pixels_um=(0.01, 0.02))


@pytest.fixture(scope="module")
def spectral() -> SpectralEstimator:
    return SpectralEstimator.load()


def estimate(estimator: PairEstimator, under: np.ndarray, over: np.ndarray, **changes: float) -> PairEstimate:
    arguments = {"step_um": 10.0, "pixel_um": 0.01} | changes
    return estimator.estimate(under, over, arguments["step_um"], arguments["pixel_um"], NOMINAL)


@pytest.mark.parametrize(
    "truth",
    [
        Aberration(0.0), Aberration(8.0), Aberration(-12.0, 1.0, -2.0), Aberration(2.0, -3.0, 0.5),
        Aberration(15.0, 2.0, 3.0),
    ],
)  # fmt: skip
def test_spectral_estimator_finds_the_aberration(spectral: SpectralEstimator, views, truth: Aberration) -> None:
    rng = np.random.default_rng(1)
    found = [estimate(spectral, *simulate_pair(view, truth, CONDITIONS, rng)) for view in views]
    errors = np.array([(f.aberration + -truth).vector() for f in found])
    assert np.abs(errors[:, 0]).max() < 4.0
    assert np.abs(errors[:, 1:]).max() < 1.2
    for one in found:
        assert np.isfinite(one.sigma.vector()).all()
        assert one.signal > 1.0
        assert 0.5 < one.step_ratio < 2.0
        assert sum(p.weight for p in one.patches) == pytest.approx(1.0)
        assert len(one.patches) > 4
        assert all(p.x + p.size <= 512 and p.y + p.size <= 512 for p in one.patches)
        json.dumps(dict(one.details))


def test_swapping_the_frames_negates_the_answer(spectral: SpectralEstimator, views) -> None:
    under, over = simulate_pair(views[0], Aberration(6.0, 1.0, 1.0), CONDITIONS, np.random.default_rng(2))
    one, two = estimate(spectral, under, over), estimate(spectral, over, under)
    np.testing.assert_allclose(one.aberration.vector(), -two.aberration.vector(), atol=0.35)
    assert one.shift_px == pytest.approx([-s for s in two.shift_px], abs=0.5)


def test_turned_specimen_turns_the_astigmatism(spectral: SpectralEstimator, views) -> None:
    flat = replace(CONDITIONS, shift_px_per_um=0.0)
    pair = simulate_pair(views[0], Aberration(3.0, 2.5, 0.0), flat, np.random.default_rng(3))
    one = estimate(spectral, *pair)
    two = estimate(spectral, *(np.rot90(frame) for frame in pair))
    assert two.aberration.defocus_um == pytest.approx(one.aberration.defocus_um, abs=0.6)
    # A quarter turn of the image: both astigmatisms change their sign.
    assert two.aberration.stig_x == pytest.approx(-one.aberration.stig_x, abs=0.3)


def test_contrast_and_brightness_do_not_matter(spectral: SpectralEstimator, views) -> None:
    under, over = simulate_pair(views[0], Aberration(7.0, 1.0, 0.0), CONDITIONS, np.random.default_rng(4))
    one = estimate(spectral, under, over)
    two = estimate(spectral, 40.0 * under + 1000.0, 40.0 * over + 1000.0)
    np.testing.assert_allclose(two.aberration.vector(), one.aberration.vector(), atol=0.05)
    dark = estimate(spectral, 255 - under, 255 - over)
    np.testing.assert_allclose(dark.aberration.vector(), one.aberration.vector(), atol=0.05)


def test_the_answer_is_in_units_of_the_step(spectral: SpectralEstimator, views) -> None:
    """A convergence angle that is believed 20 % wrong changes the defocus by less than twice that."""
    truth = Aberration(12.0, 0.0, 0.0)
    right, wrong = [], []
    for seed in range(3):
        under, over = simulate_pair(views[0], truth, CONDITIONS, np.random.default_rng(seed))
        right.append(spectral.estimate(under, over, 10.0, 0.01, NOMINAL).aberration.defocus_um)
        wrong.append(spectral.estimate(under, over, 10.0, 0.01, NOMINAL.scaled(0.8)).aberration.defocus_um)
    assert abs(np.mean(wrong) / np.mean(right) - 1.0) < 0.4


@pytest.mark.parametrize("shape", [(256, 256), (257, 401), (300, 263), (384, 512), (769, 1023)])
def test_any_frame_from_256_pixels(spectral: SpectralEstimator, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 255, (2, *shape)).astype(np.uint16)
    found = estimate(spectral, frames[0], frames[1])
    assert np.isfinite(found.aberration.vector()).all()


@pytest.mark.parametrize("pixel_um", [0.002, 0.005, 0.02, 0.05, 0.3])
def test_any_pixel_size(spectral: SpectralEstimator, views, pixel_um: float) -> None:
    under, over = simulate_pair(views[0], Aberration(1.0), CONDITIONS, np.random.default_rng(5))
    assert np.isfinite(estimate(spectral, under, over, pixel_um=pixel_um).aberration.vector()).all()


Blank = Callable[[np.random.Generator], np.ndarray]
BLANKS: dict[str, Blank] = {
    "noise": lambda rng: rng.poisson(20, (2, 512, 512)).astype(np.uint8),
    "rows": lambda rng: 100 + 3 * rng.standard_normal((2, 512, 1)) + 5 * rng.standard_normal((2, 512, 512)),
    "constant": lambda rng: np.full((2, 512, 512), 80, np.uint8),
    "black": lambda rng: np.zeros((2, 512, 512), np.uint8),
    "white": lambda rng: np.full((2, 512, 512), 255, np.uint8),
    "saturated": lambda rng: np.where(rng.random((2, 512, 512)) < 0.03, 254, 255).astype(np.uint8),
}


@pytest.mark.parametrize("blank", BLANKS.values(), ids=BLANKS)
def test_blank_frames_are_not_believed(spectral: SpectralEstimator, blank: Blank) -> None:
    for seed in range(3):
        found = estimate(spectral, *blank(np.random.default_rng(seed)))
        assert np.isinf(found.sigma.vector()).all()
        assert found.signal < 0.5
        assert math.isnan(found.step_ratio)
        assert np.isfinite(found.aberration.vector()).all()


def test_a_blank_half_gets_no_weight(spectral: SpectralEstimator, views) -> None:
    truth = Aberration(8.0, 1.0, 1.0)
    still = replace(CONDITIONS, shift_px_per_um=0.0)
    under, over = simulate_pair(views[0], truth, still, np.random.default_rng(6))
    rng = np.random.default_rng(7)
    halves = []
    for frame in (under, over):
        resin = np.clip(rng.normal(120, 12, frame.shape), 0, 255).astype(np.uint8)
        halves.append(np.concatenate([frame, resin], axis=1))
    found = estimate(spectral, *halves)
    on_resin = sum(p.weight for p in found.patches if p.x >= 512)
    assert on_resin < 0.1
    assert found.aberration.defocus_um == pytest.approx(8.0, abs=3.0)


@pytest.mark.parametrize(
    ("under", "over", "message"),
    [
        (np.zeros((256, 256)), np.zeros((256, 300)), "differ"),
        (np.zeros((255, 300)), np.zeros((255, 300)), "300 x 255"),
        (np.full((256, 256), np.nan), np.zeros((256, 256)), "NaN"),
        (np.full((256, 256), np.inf), np.zeros((256, 256)), "infinity"),
        (np.zeros((256, 256, 3)), np.zeros((256, 256, 3)), "grey"),
    ],
)
def test_refuses_what_can_not_be_read(spectral: SpectralEstimator, under, over, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        estimate(spectral, under, over)


@pytest.mark.parametrize(("step", "pixel"), [(0.0, 0.01), (-5.0, 0.01), (10.0, 0.0), (math.nan, 0.01)])
def test_refuses_a_pair_without_a_step(spectral: SpectralEstimator, step: float, pixel: float) -> None:
    frames = np.random.default_rng(0).random((2, 256, 256))
    with pytest.raises(HardwareError, match="above 0"):
        spectral.estimate(frames[0], frames[1], step, pixel, NOMINAL)


def test_knob_units_are_the_calibration_s(spectral: SpectralEstimator, views) -> None:
    under, over = simulate_pair(views[0], Aberration(4.0, 2.0, -1.0), CONDITIONS, np.random.default_rng(8))
    one = spectral.estimate(under, over, 10.0, 0.01, ColumnCalibration(8.7, 6.0, 0.0)).aberration
    half = spectral.estimate(under, over, 10.0, 0.01, ColumnCalibration(8.7, 3.0, 0.0)).aberration
    turned = spectral.estimate(under, over, 10.0, 0.01, ColumnCalibration(8.7, 6.0, 90.0)).aberration
    assert half.stig_x == pytest.approx(2 * one.stig_x)
    assert turned.stig_y == pytest.approx(-one.stig_y)
    assert half.defocus_um == pytest.approx(one.defocus_um)


def test_spectra_are_the_same_at_every_pixel_size() -> None:
    """The bins run over frequency times perturbation: a finer scan of the same blur fills the same bins alike."""
    rng = np.random.default_rng(9)
    from scipy.ndimage import gaussian_filter

    fine = gaussian_filter(rng.standard_normal((1024, 1024)), 6).astype(np.float32)
    coarse = fine.reshape(512, 2, 512, 2).mean((1, 3))
    one, two = pair_spectra(fine, fine, 8.7), pair_spectra(coarse, coarse, 4.35)
    assert one.block == 2
    assert two.block == 1
    assert one.delta_px == pytest.approx(two.delta_px)
    np.testing.assert_allclose(one.stats, two.stats, rtol=1e-3, atol=1e-5)
    assert features(one.stats, np.broadcast_to(one.covered, one.stats.shape[:-1])).shape[1:] == (5, RADIAL, ANGULAR)


def test_patch_places() -> None:
    corners = grid_corners((768, 1024), 384)
    assert corners.tolist() == [[0, 0], [320, 0], [640, 0], [0, 384], [320, 384], [640, 384]]
    one, two = random_corners((768, 1024), 256, 5, 3), random_corners((768, 1024), 256, 5, 3)
    np.testing.assert_array_equal(one, two)
    assert (one >= 0).all()
    assert (one[:, 0] <= 768).all()
    assert (one[:, 1] <= 512).all()


def test_cards(tmp_path: Path) -> None:
    card = SemCard(model="deepscore", what="test", weights="a.safetensors", precision="float16")
    save_card(tmp_path / "a.json", card, {"w": np.array([1.0, 2.5], np.float32), "n": np.array(3)})
    read, arrays = load_card(tmp_path / "a.json", "deepscore")
    assert read == card
    assert arrays["w"].dtype == np.float32
    assert arrays["n"] == 3
    with pytest.raises(SettingsError, match="deepscore"):
        load_card(tmp_path / "a.json", "spectral")
    with pytest.raises(SettingsError, match="can't be read"):
        load_card(tmp_path / "b.json", "spectral")
    (tmp_path / "a.safetensors").write_bytes(b"not weights")
    with pytest.raises(SettingsError, match=r"a\.safetensors"):
        load_card(tmp_path / "a.json", "deepscore")
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SettingsError, match="not a card"):
        load_card(tmp_path / "a.json", "deepscore")
    evil = card.model_dump() | {"weights": "../a.safetensors"}
    (tmp_path / "a.json").write_text(json.dumps(evil), encoding="utf-8")
    with pytest.raises(SettingsError, match="elsewhere"):
        load_card(tmp_path / "a.json", "deepscore")


def saved(tmp_path: Path, model: str) -> Path:
    """A card with random weights: for what does not depend on training."""
    torch = pytest.importorskip("torch")
    from mm_autofocus.networks.deepfocus import DeepFocus
    from mm_autofocus.networks.deepscore import DeepScore
    from mm_autofocus.networks.pair_net import PairNet

    torch.manual_seed(0)
    torch.set_num_threads(1)
    nets = {"convolutional": PairNet, "deepfocus": lambda: DeepFocus(256), "deepscore": DeepScore}
    parameters = {"deepfocus": {"edge": 256, "scales": [5.0, 1.5, 1.5]}, "deepscore": {"scales": [5.0, 3.0]}}
    card = SemCard(
        model=model, what="random", weights=f"{model}.safetensors", parameters=parameters.get(model, {}),  # type: ignore[arg-type]
    )  # fmt: skip
    arrays = {k: v.contiguous().numpy() for k, v in nets[model]().state_dict().items()}
    save_card(tmp_path / f"{model}.json", card, arrays)
    return tmp_path / f"{model}.json"


def test_convolutional_estimator(tmp_path: Path, views) -> None:
    from mm_autofocus.estimators.convolutional import ConvolutionalEstimator

    path = saved(tmp_path, "convolutional")
    estimator = ConvolutionalEstimator.load(path)
    still = replace(CONDITIONS, shift_px_per_um=0.0)
    under, over = simulate_pair(views[0], Aberration(5.0), still, np.random.default_rng(1))
    one, two = estimate(estimator, under, over), estimate(estimator, over, under)
    assert one.aberration.defocus_um == pytest.approx(-two.aberration.defocus_um, abs=0.05)
    assert np.isfinite(one.sigma.vector()).all()
    assert sum(p.weight for p in one.patches) == pytest.approx(1.0)
    for blank in ("noise", "constant", "white"):
        nothing = estimate(estimator, *BLANKS[blank](np.random.default_rng(0)))
        assert np.isinf(nothing.sigma.vector()).all()
        assert np.isfinite(nothing.aberration.vector()).all()
    small = np.random.default_rng(0).random((2, 256, 259))
    assert np.isfinite(estimate(estimator, *small).aberration.vector()).all()
    with pytest.raises(HardwareError, match="differ"):
        estimate(estimator, under, over[1:])


def test_deepfocus_estimator(tmp_path: Path, views) -> None:
    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator

    estimator = DeepFocusEstimator.load(saved(tmp_path, "deepfocus"), patches=4, seed=1)
    under, over = simulate_pair(views[0], Aberration(5.0), CONDITIONS, np.random.default_rng(1))
    one, two = estimate(estimator, under, over), estimate(estimator, under, over)
    assert one == two  # seeded patches
    each = np.array([p.aberration.vector() for p in one.patches])
    np.testing.assert_allclose(one.aberration.vector(), each.mean(0), rtol=1e-6)
    assert len(one.patches) == 4
    assert math.isnan(one.step_ratio)
    flat = np.full((300, 300), 7, np.uint8)
    assert np.isinf(estimate(estimator, flat, flat).sigma.vector()).all()
    with pytest.raises(HardwareError, match="below 256"):
        estimate(estimator, flat[:200], flat[:200])


def test_deepscore_estimator(tmp_path: Path, views) -> None:
    from mm_autofocus.estimators.deepscore_estimator import DeepScoreEstimator

    estimator = DeepScoreEstimator.load(saved(tmp_path, "deepscore"), patches=3)
    frame, _ = simulate_pair(views[0], Aberration(5.0), replace(CONDITIONS, shape=(540, 560)), np.random.default_rng(1))
    wd, stig = estimator.score(frame)
    assert estimator.total(frame) == pytest.approx(wd + stig)
    assert estimator.score(frame) == (wd, stig)
    with pytest.raises(HardwareError, match="beam"):
        estimator.score(np.full((512, 512), 9, np.uint8))
    with pytest.raises(HardwareError, match="NaN"):
        estimator.score(np.full((512, 512), np.nan))
    with pytest.raises(HardwareError, match="below 512"):
        estimator.score(np.zeros((400, 512), np.uint8))


def test_the_answers_of_several_spectral_networks_are_averaged() -> None:
    both = SpectralEstimator.load()
    assert len(both.members) == 2
    assert {name.split(".")[0] for name in both.arrays} == {"0", "1"}
    alone = [SpectralEstimator(both.card, member) for member in both.members]
    assert [len(one.members) for one in alone] == [1, 1]
    frames = np.random.default_rng(3).integers(0, 256, (2, 320, 320)).astype(np.uint8)
    frames[1] = frames[0] // 2 + frames[1] // 2
    asked = (*frames, 10.0, 0.01, ColumnCalibration())
    told = [estimator.estimate(*asked).aberration.vector() for estimator in (both, *alone)]
    assert told[0] == pytest.approx((told[1] + told[2]) / 2, abs=1e-5)
    assert not np.allclose(told[1], told[2], atol=1e-3)
