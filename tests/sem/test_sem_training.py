"""Training: the sampler tells the truth, losses fall, calibration and fine-tuning recover another column."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate
from mm_autofocus.simulation.electron_probe import Probe, otf
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.training.known_pairs import KnownPair, random_aberrations
from mm_autofocus.training.sem_calibration import STEPS, fit_calibration
from mm_autofocus.training.sem_evaluation import Conditions, evaluate, score_order, simulate_pair
from mm_autofocus.training.sem_pairs import (
    TEST_KINDS,
    TRAINING_KINDS,
    PairSampler,
    Ranges,
    fast_otf,
    render_views,
)

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def views() -> list[np.ndarray]:
    return render_views((SpecimenKind.TIN,), 2, 700, size=720, pixels_um=(0.01, 0.02))


# ---------------------------------------------------------------------------------------------------- the sampler
def test_training_validation_and_test_share_no_specimen() -> None:
    assert not set(TRAINING_KINDS) & set(TEST_KINDS)
    assert set(TRAINING_KINDS) | set(TEST_KINDS) == set(SpecimenKind)


def test_the_fast_transfer_function_is_the_simulator_s() -> None:
    probe = Probe(10.0, 6.0, softness=0.3)
    exact = otf((128, 96), 0.01, 5.0, 3.0, -4.0, probe, (1.0, 2.0))
    np.testing.assert_allclose(fast_otf((128, 96), 5.0, 3.0, -4.0, 0.6, 0.3, (1.0, 2.0)), exact, atol=3e-5)


def test_same_seed_same_pairs(views) -> None:
    one, two = (PairSampler(views, 3).draw((128, 160)) for _ in range(2))
    other = PairSampler(views, 4).draw((128, 160))
    np.testing.assert_array_equal(one[0].under, two[0].under)
    assert (one[0].under != other[0].under).any()
    assert one[0].under.shape == (128, 160)
    assert one[0].under.min() >= 0
    assert one[0].under.max() <= 255


def test_draws_cover_the_paper_s_range(views) -> None:
    sampler = PairSampler(views, 0)
    drawn = np.array([sampler.aberration(2.0) for _ in range(3000)])
    assert np.abs(drawn[:, 0]).max() > 6.0  # 30 µm at a step of ±5 µm
    assert np.abs(drawn[:, 1:]).max() > 7.2  # 6 a.u. of 6 µm
    assert (np.abs(drawn).max(1) < 0.5).mean() > 0.05  # and close to focus
    far = np.array([sampler.aberration(6.5) for _ in range(500)])
    assert ((np.abs(far[:, 0]) + 1 + np.hypot(far[:, 1], far[:, 2])) * 6.5).max() <= 92.0


def test_the_blurrier_frame_is_the_one_further_from_focus(views) -> None:
    ranges = Ranges(
        delta_px=(3.0, 3.0), astigmatism=0.2, wide_share=0.0, electrons=(300.0, 300.0), empty_share=0.0,
        blank_share=0.0, small_share=0.0, softness=0.0,
    )  # fmt: skip
    sampler = PairSampler(views, 1, ranges)
    right = []
    for _ in range(16):
        for pair in sampler.draw((192, 192)):
            if abs(pair.aberration[0]) > 0.7:
                energy = [np.square(np.diff(gaussian_filter(f, 1.5), axis=1)).mean() for f in (pair.under, pair.over)]
                right.append((energy[0] > energy[1]) == (pair.aberration[0] > 0))
    assert len(right) > 15
    assert np.mean(right) > 0.85  # noise hides some


# ---------------------------------------------------------------------------------------------- training and measures
def spectral_samples(views, seed: int, pairs: int):
    from mm_autofocus.training.sem_spectral import spectral_set

    easy = Ranges(delta_px=(3.0, 5.0), wide_share=0.0, miscalibration=0.05, electrons=(60.0, 200.0), blank_share=0.0,
                  empty_share=0.0, softness=0.1)  # fmt: skip
    return spectral_set(PairSampler(views, seed, easy), pairs=pairs)


def test_spectral_training_repeats_and_its_error_falls(views) -> None:
    from mm_autofocus.training.sem_spectral import fit_spectral, join_sets, spectral_error, spectral_set

    sets = [spectral_samples(views, seed, 40) for seed in (1, 2)]
    samples = join_sets(sets)
    assert len(samples) == len(sets[0]) + len(sets[1])
    for one, two in zip(*(fit_spectral(samples, epochs=1, seed=0).parameters() for _ in range(2)), strict=True):
        assert torch.equal(one, two)
    short, longer = (fit_spectral(samples, epochs=n, seed=0, learning_rate=4e-3) for n in (1, 14))
    assert spectral_error(longer, samples)["z"] < spectral_error(short, samples)["z"]
    with pytest.raises(ValueError, match="neither"):
        spectral_set(PairSampler(views, 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_spectral_training_learns_the_sign(views) -> None:
    from mm_autofocus.estimators.pair_spectra import features
    from mm_autofocus.training.sem_spectral import fit_spectral

    net = fit_spectral(spectral_samples(views, 1, 600), epochs=20, seed=0)
    unseen = spectral_samples(views, 3, 60)
    with torch.inference_mode():
        out = net(torch.from_numpy(features(unseen.stats, unseen.covered)), torch.from_numpy(unseen.extras)).numpy()
    assert np.corrcoef(out[:, 0], unseen.target[:, 0])[0, 1] > 0.5


def test_quarter_turns_are_those_of_the_blur(views) -> None:
    """A turned picture of a blurred point is the picture of the turned blur."""
    from scipy import fft

    from mm_autofocus.training.sem_augmentation import turn_pair

    def spot(z: float, a: float, b: float) -> np.ndarray:
        return fft.fftshift(fft.irfft2(fast_otf((65, 65), z, a, b, 0.8), (65, 65)))

    truth = np.array([4.0, 2.0, -1.5])
    picture = spot(*truth)[None]
    for turns in range(4):
        for mirrored in (False, True):
            moved, expected = turn_pair(picture, truth, turns, mirrored)
            np.testing.assert_allclose(moved[0], spot(*expected), atol=1e-4)


def test_augmentations_are_the_paper_s() -> None:
    from mm_autofocus.training.sem_augmentation import Augmentation

    rng = np.random.default_rng(0)
    pair = np.zeros((2, 64, 64), np.float32)
    noisy = np.array([Augmentation(gamma=0.0, contrast=0.0, brightness=0.0)(pair, rng).std() for _ in range(300)])
    assert (noisy > 0.1).mean() == pytest.approx(0.75, abs=0.08)
    assert noisy[noisy > 0.1].mean() == pytest.approx(0.2, abs=0.01)
    both = Augmentation(noise=0.0)(np.stack([pair[0], pair[0]]), rng)
    np.testing.assert_array_equal(both[0], both[1])  # the two images of a pair are changed alike


def test_convolutional_trainings_run_and_repeat(views) -> None:
    from mm_autofocus.training.sem_convolutional import fit_pair_net
    from mm_autofocus.training.sem_deepfocus import fit_deepfocus
    from mm_autofocus.training.sem_deepscore import fit_deepscore

    for fit, arguments in (
        (fit_pair_net, {"pairs": 6, "edge": 96, "batch": 3}),
        (fit_deepfocus, {"pairs": 2, "edge": 128, "batch": 2}),
        (fit_deepfocus, {"pairs": 2, "edge": 128, "batch": 2, "variant": "patch-scores"}),
        (fit_deepscore, {"images": 4, "batch": 4}),
    ):
        one, two = (fit(PairSampler(views, 0), **arguments) for _ in range(2))  # type: ignore[operator]
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.isfinite(a).all()
            assert torch.equal(a, b)
        assert not one.training


class Oracle:
    """Answers with the truth, stretched and turned as a wrong calibration makes it; measures the step or does not."""

    def __init__(self, true: ColumnCalibration, measures_step: bool = True, noise: float = 0.0) -> None:
        self.true, self.measures_step = true, measures_step
        self.best = Aberration(3.0, 0.7, -0.4)
        self.rng, self.noise = np.random.default_rng(0), noise

    def estimate(self, under, over, step_um, pixel_um, calibration):
        knobs = Aberration(*(float(v) for v in under[0, :3]))
        blur = self.true.to_blur(knobs + -self.best, pixel_um)
        ratio = self.true.convergence_mrad / calibration.convergence_mrad
        if self.measures_step:
            blur = blur / ratio
        seen = calibration.from_blur(blur, pixel_um).vector() + self.noise * self.rng.standard_normal(3)
        shift = tuple(step_um * s / pixel_um for s in self.true.shift_um_per_um)
        return PairEstimate(
            Aberration(*(float(v) for v in seen)),
            Aberration(0.3, 0.1, 0.1),
            shift_px=shift,
            step_ratio=ratio if self.measures_step else math.nan,
        )


def known(offsets) -> list[KnownPair]:
    frames = [np.array([[*offset]], float) for offset in offsets]
    return [
        KnownPair(f, f, Aberration(*(float(v) for v in o)), 10.0, 0.01) for f, o in zip(frames, offsets, strict=True)
    ]


def test_calibration_from_seven_pairs() -> None:
    true = ColumnCalibration(6.2, 4.3, -14.0, (-0.006, 0.011))
    found = fit_calibration(known(STEPS), Oracle(true, measures_step=False), ColumnCalibration(8.7, 6.0, 3.0))
    assert found.convergence_mrad == pytest.approx(6.2, rel=0.02)
    assert found.stigmator_um == pytest.approx(4.3, rel=0.02)
    assert found.stigmator_rotation_deg == pytest.approx(-14.0, abs=0.2)
    assert found.shift_um_per_um == pytest.approx((-0.006, 0.011))


def test_calibration_tells_what_is_missing() -> None:
    true = ColumnCalibration()
    with pytest.raises(FocusError, match="different settings"):
        fit_calibration(known([(0.0, 1.0, 1.0)] * 5), Oracle(true))
    with pytest.raises(FocusError, match="2 of 2"):
        fit_calibration(known(STEPS[:2]), Oracle(true))
    with pytest.raises(FocusError, match="does not follow"):
        fit_calibration(known(STEPS), Oracle(ColumnCalibration(stigmator_um=0.001), noise=0.5))


def test_fine_tuning_recovers_another_column(tmp_path: Path) -> None:
    """Fig. 4 in small: the last three layers learn another column's labels, the convolutions stay."""
    from safetensors.numpy import load_file

    from mm_autofocus.estimators.cards import SemCard, save_card
    from mm_autofocus.networks.deepfocus import DeepFocus
    from mm_autofocus.training.sem_recalibration import recalibrate_deepfocus

    torch.manual_seed(0)
    base = DeepFocus(128).train()
    with torch.inference_mode():
        for _ in range(30):  # batch statistics of such pictures
            base(torch.rand(4, 2, 128, 128) - 0.5 + torch.randn(4, 2, 1, 1) / 2)
    base.eval()
    card = SemCard(model="deepfocus", what="base", weights="base.safetensors",
                   parameters={"edge": 128, "scales": [5.0, 1.5, 1.5], "convergence_mrad": 8.7})  # fmt: skip
    save_card(tmp_path / "base.json", card, {k: v.contiguous().numpy() for k, v in base.state_dict().items()})
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(20):  # brightness stands for the aberration: what matters is that labels are learnt
        label = rng.uniform(-1, 1, 3) * [20, 5, 5]
        under = np.clip(127 + 5 * label[0] + 20 * rng.standard_normal((128, 140)), 0, 255).astype(np.uint8)
        over = np.clip(127 - 5 * label[0] + 20 * rng.standard_normal((128, 140)), 0, 255).astype(np.uint8)
        pairs.append(KnownPair(under, over, Aberration(*(float(v) for v in label)), 10.0, 0.012))
    new = recalibrate_deepfocus(pairs, tmp_path / "new.json", base=tmp_path / "base.json", steps=400, seed=1)
    assert new.measured["held_out_after"][0] < 0.8 * new.measured["held_out_before"][0]
    assert "convergence_mrad" not in new.parameters
    one, two = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "new.safetensors")
    for name in one:
        same = np.array_equal(one[name], two[name])
        assert same == name.startswith("convolutions")
    with pytest.raises(FocusError, match="too few"):
        recalibrate_deepfocus(pairs[:9], tmp_path / "x.json", base=tmp_path / "base.json")


@pytest.mark.parametrize("narrow", [1, 8])
def test_a_specimen_is_given_a_direction(narrow: int) -> None:
    from mm_autofocus.training.sem_pairs import _directed

    tint = _directed((64, 96), math.radians(90), 1.5, narrow)  # more power in vertical frequencies
    assert tint.shape == (64, 49)
    assert tint[0, 0] == 1.0
    assert math.log(tint[16, 0] / tint[0, 24]) == pytest.approx(1.5, abs=0.01)
    assert math.log(tint[16, 24] / tint[0, 24]) == pytest.approx(1.5 * 0.5**narrow, abs=0.01)
    views = [(255 * np.random.default_rng(5).random((400, 400))).astype(np.uint8)]
    plain, directed = (PairSampler(views, 7, Ranges(directed_share=share)) for share in (0.0, 1.0))
    assert not np.array_equal(plain.draw((128, 128), 1)[0].under, directed.draw((128, 128), 1)[0].under)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_turning_and_swapping_a_pair_does_to_its_label(turns: int, swapped: bool) -> None:
    from mm_autofocus.training.sem_recalibration import _symmetric

    specimen = np.random.default_rng(3).random((127, 127)).astype(np.float32)

    def pair(of: np.ndarray, z: float, a: float, b: float) -> np.ndarray:
        spectrum = np.fft.rfft2(of)
        return np.stack([np.fft.irfft2(spectrum * fast_otf(of.shape, z + d, a, b, 0.5), of.shape) for d in (-4.0, 4.0)])

    label = np.array([3.0, 1.2, -2.1])
    got, signs = _symmetric(pair(specimen, *label).astype(np.float32), turns, swapped)
    assert np.allclose(got, pair(np.rot90(specimen, turns), *(signs * label)), atol=1e-4)
    assert not np.allclose(got, pair(np.rot90(specimen, turns), *(signs * label * [1, -1, -1])), atol=1e-2)


def test_aberrations_to_label() -> None:
    drawn = np.array(random_aberrations(200, 1))
    assert np.abs(drawn).max(0) == pytest.approx([20, 5, 5], rel=0.05)
    near = (np.abs(drawn) <= [2, 0.5, 0.5]).all(1)
    assert 0.1 < near.mean() < 0.33  # of even draws one in a thousand would be
    assert len(random_aberrations(2, 1)) == 2
    assert random_aberrations(3, 2) == random_aberrations(3, 2)


class Perfect:
    """An estimator that was told the truth, and one score that is the distance from focus."""

    def __init__(self, truths) -> None:
        self.truths = iter(truths)

    def estimate(self, under, over, step_um, pixel_um, calibration):
        return PairEstimate(next(self.truths), Aberration(1.0, 1.0, 1.0), step_ratio=1.0)


def test_evaluation_measures_errors(views) -> None:
    conditions = Conditions(shape=(256, 256))
    rng = np.random.default_rng([0xE7, 5])
    truths = []
    for i in range(4):
        truth = Aberration(*(rng.uniform(-1, 1, 3) * [20, 5, 5]))
        simulate_pair(views[i % len(views)], truth, conditions, rng)
        truths.append(truth)
    shifted = [t + Aberration(0.5, 0.1, -0.1) for t in truths]
    found = evaluate(Perfect(shifted), views, conditions, pairs=4, seed=5)
    assert found["wd_um"] == pytest.approx(0.5)
    assert found["stig_au"] == pytest.approx(0.1)
    assert found["bias_wd_um"] == pytest.approx(0.5)
    assert found["within"] == 1.0
    assert found["wd_scale"] == pytest.approx(0.5 * math.sqrt(2), abs=0.01)


def test_score_order_ranks_a_stack(views) -> None:
    class Gradient:
        def total(self, image: np.ndarray) -> float:
            smooth = gaussian_filter(image.astype(float), 1.5)
            return -float(np.square(np.diff(smooth, axis=1)).mean() + np.square(np.diff(smooth, axis=0)).mean())

    found = score_order(Gradient(), views[:1], replace(Conditions(electrons=84.0), shape=(256, 256)))
    assert found["wd_spearman"] > 0.8
    assert found["wd_miss_um"] < 4.0


# ------------------------------------------------------------------------------------------------------------ command
@pytest.fixture(scope="module")
def app() -> typer.Typer:
    from mm_autofocus.cli.app_sem_training import register

    made = typer.Typer()
    register(Groups.make(made))
    return made


def test_models_lists_every_card(app: typer.Typer, tmp_path: Path) -> None:
    from mm_autofocus.cli.sem_training import WEIGHTS, models

    entries = models()
    assert {e["name"] for e in entries} == {p.stem for p in WEIGHTS.glob("*.json")}
    for entry in entries:
        assert entry["weights"], entry["name"]
        assert entry["bytes"] > 10_000
        assert entry["what"]
        assert entry["trained_on"]
        assert entry["command"].startswith("mm-autofocus train ")
    assert sum(e["bytes"] for e in entries if e["name"].startswith("sem_")) < 12e6
    shown = CliRunner().invoke(app, ["models"])
    assert shown.exit_code == 0
    assert "laser" in shown.stdout
    assert "sem_spectral" in shown.stdout
    as_json = CliRunner().invoke(app, ["models", "--json"])
    assert json.loads(as_json.stdout) == json.loads(json.dumps(entries))
    (tmp_path / "broken.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(SettingsError, match="broken"):
        models([tmp_path / "broken.json"])


def test_models_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from mm_autofocus.cli.sem_training import headline, models\n"
        "import mm_autofocus.cli.app_sem_training, mm_autofocus.estimators.spectral\n"
        "[headline(e) for e in models()]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_train_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    from mm_autofocus.cli.sem_recalibrate import recalibrate
    from mm_autofocus.cli.sem_training import train

    with pytest.raises(SettingsError, match="no model"):
        train("resnet", tmp_path / "a.json")
    with pytest.raises(SettingsError, match=r"\.json"):
        train("spectral", tmp_path / "a.safetensors")
    with pytest.raises(SettingsError, match="no method"):
        recalibrate(None, None, tmp_path / "a.toml", method="magic")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["spectral", "convolutional", "deepfocus", "deepscore"])
@pytest.mark.timeout(900)
def test_training_command(app: typer.Typer, tmp_path: Path, model: str) -> None:
    out = tmp_path / f"{model}.json"
    result = CliRunner().invoke(
        app, ["train", "sem", "--model", model, "--out", str(out), "--minutes", "0.05", "--no-measure"]
    )
    assert result.exit_code == 0, result.output
    card = json.loads(out.read_text(encoding="utf-8"))
    assert card["model"] == model
    assert (tmp_path / card["weights"]).stat().st_size > 100_000
