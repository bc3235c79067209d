"""Training: repeatable, joint with synthetic days, and the paper's network with its frozen layers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mm_autofocus.networks.mobilenet_v2 import MobileNetV2, freeze, keras_layers  # noqa: E402
from mm_autofocus.readouts import load_model  # noqa: E402
from mm_autofocus.readouts.paper import PaperReadout, prepare  # noqa: E402
from mm_autofocus.simulation.laser_day import Family, instrument, make_day  # noqa: E402
from mm_autofocus.simulation.laser_spot import LaserSpot, LaserState  # noqa: E402
from mm_autofocus.training.laser import adapt, fit_profile, learn_curves  # noqa: E402
from mm_autofocus.training.laser_paper import fit_paper, transfer_paper  # noqa: E402
from mm_autofocus.training.laser_synthetic import join, labelled, synthetic_frames  # noqa: E402


@pytest.fixture(scope="module")
def frames():
    return synthetic_frames("short", 24, 12, seed=3)


def test_same_seed_same_weights(frames):
    first, second = (fit_profile(frames, 10.0, epochs=2, seed=1) for _ in range(2))
    for name, value in first.weights.items():
        np.testing.assert_array_equal(value, second.weights[name])
    other = fit_profile(frames, 10.0, epochs=2, seed=2)
    assert np.abs(np.asarray(other.weights["w0"]) - np.asarray(first.weights["w0"])).max() > 0


def test_training_lowers_the_error(frames):
    errors = []
    for epochs in (1, 12):
        readout = fit_profile(frames, 10.0, epochs=epochs, seed=1)
        errors.append(np.median(np.abs(readout.predict_features(frames.features)[0] - frames.defocus)))
    assert errors[1] < 0.6 * errors[0]
    curves = learn_curves(readout, synthetic_frames("short", 6, 20, seed=4))
    assert curves.weights["curve_basis"].shape[0] == 41


def test_joint_training_keeps_the_curves_and_fits_ones_own_day(frames):
    base = load_model().short
    knocked = make_day(instrument(99_000_001), 5, Family.HELD_OUT, scale=3.0)
    rng, spot = np.random.default_rng(0), LaserSpot(seed=99)
    z = np.linspace(-10, 10, 41)
    own = join([labelled(spot.images(z, knocked.state(hour), rng), z) for hour in (0.0, 0.7, 1.4, 2.0)])
    test = labelled(spot.images(z, knocked.state(3.0), rng), z)
    after = adapt(base, own, frames, epochs=10, learning_rate=1e-3)
    error = [np.sqrt(np.mean((r.predict_features(test.features)[0] - test.defocus) ** 2)) for r in (base, after)]
    assert error[1] < 0.8 * error[0]
    assert "curve_basis" in after.weights


def test_keras_counts_157_layers_and_100_end_in_the_eleventh_block():
    net = MobileNetV2()
    layers = list(keras_layers(net))
    assert len(layers) == 157
    frozen = freeze(net, 100)
    trainable = [name for name, p in net.named_parameters() if p.requires_grad]
    assert not any(name.startswith(("stem", "blocks.0.", "blocks.10.")) for name in trainable)
    assert any(name.startswith("blocks.11.") for name in trainable)
    assert any(name.startswith("head") for name in trainable)
    assert len(frozen) > 60


def test_the_papers_images_have_unit_norm_whatever_the_power(spot):
    rng = np.random.default_rng(0)
    images = np.concatenate([spot.images(5.0, LaserState(power=p), rng) for p in (0.5, 1.0)])
    small = prepare(images)
    assert small.shape == (2, 96, 96)
    assert np.linalg.norm(small.reshape(2, -1), axis=1) == pytest.approx([96.0, 96.0], rel=1e-5)


def test_the_papers_network_trains_transfers_and_survives(spot, tmp_path):
    z = np.tile(np.linspace(-10, 10, 16), 4)
    images = spot.images(z, LaserState(), np.random.default_rng(0))
    small = np.stack([image.reshape(96, 2, 96, 2).mean((1, 3)) for image in images]).astype(np.float32)
    stack = np.repeat(np.arange(4), 16)
    base = fit_paper(small, z, stack, 10.0, (192, 192), seconds=60.0, epochs=1, learning_rate=1e-3)
    assert isinstance(base, PaperReadout)
    found, sigma = base.predict(images[:3])
    assert found.shape == sigma.shape == (3,)
    moved = transfer_paper(base, small, z, stack, seconds=60.0, epochs=1)
    first, head = "stem.0.weight", "head.weight"
    np.testing.assert_array_equal(moved.weights[first], base.weights[first])
    np.testing.assert_array_equal(moved.weights["stem.1.running_mean"], base.weights["stem.1.running_mean"])
    assert np.abs(np.asarray(moved.weights[head]) - np.asarray(base.weights[head])).max() >= 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_in_short(tmp_path):
    from mm_autofocus.cli.laser import table

    outcome = table(tmp_path, quick=True)
    rows = outcome["rows"]
    assert (tmp_path / "laser_table.md").exists()
    assert rows["short range, trained on 10 days, next days"]["ours"]["rms"] < 0.2
    assert rows["two steps from ±100 µm, next days"]["ours"]["sd"] < 0.15
    assert rows["long range, trained on 1 day, same day"]["ours"]["rms"] < 1.0
    again = table(tmp_path, quick=True)
    assert again["resumed"] == again["units"]
    assert again["rows"] == rows
