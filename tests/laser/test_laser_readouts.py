"""Readouts: what they read, what they reject, how they are recalibrated, saved and loaded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mm_autofocus.errors import FocusError, HardwareError, SettingsError
from mm_autofocus.readouts import Card, LaserModel, Signal, load_model
from mm_autofocus.readouts.features import of_images
from mm_autofocus.readouts.lookup import LookupReadout
from mm_autofocus.readouts.model import SHIPPED
from mm_autofocus.readouts.profile import ProfileReadout
from mm_autofocus.readouts.zero import criterion, find_zero
from mm_autofocus.simulation.laser_spot import LaserOptics, LaserSpot, LaserState, Shot

KNOWN = np.array([-75.0, -30.0, -10.0, -5.0, -1.5, 1.5, 5.0, 10.0, 30.0, 75.0])


@pytest.mark.parametrize(("kind", "worst"), [("long", 2.0), ("short", 0.25)])
def test_the_shipped_model_reads_a_day_it_never_saw(model, spot, day, kind, worst):
    readout = getattr(model, kind)
    z = np.linspace(-1, 1, 31) * readout.range_um
    found, sigma = readout.predict(spot.images(z, day.state(1.0), np.random.default_rng(1)))
    assert np.sqrt(np.mean((found - z) ** 2)) < worst
    assert np.all(sigma > 0)


def test_features_know_neither_power_nor_place(spot):
    rng = np.random.default_rng(2)
    base, moved = (spot.images(12.0, LaserState(shift_short_um=s), rng) for s in (0.0, 1.5))
    dim = spot.images(12.0, LaserState(power=0.7), rng)
    other = spot.images(20.0, LaserState(), rng)
    away = np.abs(of_images(other) - of_images(base)).mean()
    assert np.abs(of_images(moved) - of_images(base)).mean() < 0.5 * away
    assert np.abs(of_images(dim) - of_images(base)).mean() < 0.5 * away


@pytest.mark.parametrize(
    ("shot", "state", "expected"),
    [
        (Shot(), {}, Signal.GOOD),
        (Shot(laser_on=False), {}, Signal.MISSING),
        (Shot(reflection=0.0), {}, Signal.MISSING),
        (Shot(exposure_ms=60.0), {}, Signal.SATURATED),
        (Shot(), {"rotation_deg": 40.0, "axis_offset_um": -12.0}, Signal.FOREIGN),
        (Shot(), {"axis_offset_um": 60.0}, Signal.FOREIGN),
    ],
    ids=["good", "laser off", "no coverslip", "saturated", "rotated", "another surface"],
)
@pytest.mark.parametrize("defocus", [0.0, 3.0, -10.0])
def test_only_the_coverslips_reflection_is_good(model, spot, shot, state, expected, defocus):
    image = spot.images(defocus, LaserState(**state), np.random.default_rng(3), shot)[0]
    assert model.read(image).signal is expected


def test_the_whole_range_has_a_signal(model, spot, day):
    z = np.linspace(-100, 100, 21)
    for image in spot.images(z, day.state(0.0), np.random.default_rng(4)):
        assert model.read(image).signal is Signal.GOOD


def test_an_image_of_another_size_is_refused(model):
    with pytest.raises(HardwareError, match=r"64 x 64 .* 192 x 192"):
        model.read(np.zeros((64, 64), np.uint16))


def test_ten_frames_recalibrate_a_wrong_scale(model, spot, day):
    rng = np.random.default_rng(6)
    state = day.state(0.5)
    stretched = 1.08  # a stage or an objective whose µm are not the model's
    today = model.recalibrated(spot.images(KNOWN * stretched, state, rng), KNOWN)
    z = np.linspace(-9, 9, 25)
    images = spot.images(z * stretched, state, rng)
    before, after = (np.sqrt(np.mean((m.short.predict(images)[0] - z) ** 2)) for m in (model, today))
    assert after < 0.6 * before


def test_recalibration_says_what_it_needs(model, spot, day):
    images = spot.images([0.0, 1.0], day.state(0.0), np.random.default_rng(0))
    with pytest.raises(SettingsError, match="3 frames"):
        model.recalibrated(images, np.array([0.0, 1.0]))
    table = LookupReadout.fit(spot.images(np.linspace(-10, 10, 21), day.state(0.0), np.random.default_rng(0)),
                              np.linspace(-10, 10, 21), 10.0)  # fmt: skip
    card = Card(readout="lookup", objective="x", shape=(192, 192), short_um=10.0)
    with pytest.raises(SettingsError, match="lookup"):
        LaserModel(card, None, table).recalibrated(images, np.array([0.0, 1.0]))


def test_the_lookup_table_reads_its_own_day(spot, day):
    rng, state = np.random.default_rng(7), day.state(0.0)
    z = np.linspace(-10, 10, 101)
    table = LookupReadout.fit(spot.images(z, state, rng), z, 10.0)
    found, _ = table.predict(spot.images(z, state, rng))
    assert np.median(np.abs(found - z)) < 0.2
    with pytest.raises(SettingsError, match="5 planes"):
        LookupReadout.fit(spot.images(z[:3], state, rng), z[:3], 10.0)


@pytest.mark.parametrize("direction", [1, -1])
def test_zero_defocus_repeats_and_does_not_follow_the_power(day, direction):
    spot, rng, z = LaserSpot(LaserOptics(peak=0.6), seed=9), np.random.default_rng(8), np.linspace(-4, 4, 81)
    state = day.state(0.0)
    found = [
        find_zero(5.0 + z[::direction], spot.images(z[::direction], state, rng, Shot(power_noise=0.05)))
        for _ in range(3)
    ]
    assert {zero.sign for zero in found} == {"maximum"}
    assert np.ptp([zero.z_um for zero in found]) < 0.15
    assert abs(np.mean([zero.z_um for zero in found]) - 5.0) < 1.2


def test_a_saturated_spot_has_its_zero_at_a_minimum(spot):
    ideal = LaserState(decentre_short=0.0, tilt_short=0.0, spherical=0.0, coma_short=0.0, axis_offset_um=0.0)
    z = np.linspace(-4, 4, 81)
    images = spot.images(z, ideal, np.random.default_rng(1), Shot(exposure_ms=8.0))
    zero = find_zero(z, images, normalise=False)
    assert zero.sign == "minimum"
    assert abs(zero.z_um) < 1.0
    assert find_zero(z, images, normalise=True).sign == "maximum"
    assert zero.criterion == pytest.approx(criterion(images, normalise=False))


def test_zero_defocus_must_lie_inside_the_stack(spot):
    z = np.linspace(3, 9, 31)
    with pytest.raises(FocusError, match="inside the stack"):
        find_zero(z, spot.images(z, LaserState(), np.random.default_rng(0)), sign="maximum")


def test_a_model_survives_saving_today_included(model, spot, day, tmp_path):
    rng = np.random.default_rng(9)
    today = model.recalibrated(spot.images(KNOWN, day.state(0.0), rng), KNOWN)
    again = load_model(today.save(tmp_path / "today.json"), objective=model.card.objective)
    image = spot.images(3.0, day.state(0.0), rng)[0]
    assert again.read(image).defocus_um == pytest.approx(today.read(image).defocus_um, abs=1e-5)
    assert again.card == model.card


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "laser_short.safetensors").unlink(), "lacks its file laser_short.safetensors"),
        (lambda folder: (folder / "laser_long.safetensors").write_bytes(b"nonsense"), "cannot be used"),
        (lambda folder: (folder / "laser.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "laser.json").write_text(json.dumps({"objective": "x"})), "shape"),
        (lambda folder: (folder / "laser.json").unlink(), "there is no laser model"),
    ],
    ids=["file missing", "file broken", "card broken", "card incomplete", "card missing"],
)
def test_a_broken_model_says_so(tmp_path, break_it, message):
    for path in SHIPPED.parent.glob("laser*"):
        shutil.copy(path, tmp_path)
    break_it(tmp_path)
    with pytest.raises(SettingsError, match=message):
        load_model(tmp_path / "laser.json")


def test_a_model_of_another_objective_is_refused():
    with pytest.raises(SettingsError, match=r"simulated-100x.*60x"):
        load_model(objective="60x")


def test_the_shipped_files_are_small():
    assert all(path.stat().st_size < 1_000_000 for path in SHIPPED.parent.glob("laser*"))


def test_training_and_reading_are_the_same_network(model):
    torch = pytest.importorskip("torch")
    from torch import nn

    from mm_autofocus.training.laser import HIDDEN, _load

    readout = model.short
    assert isinstance(readout, ProfileReadout)
    size = readout.weights["mean"].shape[0]
    net = nn.Sequential(
        nn.Linear(size, HIDDEN), nn.GELU(approximate="tanh"), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, HIDDEN),
        nn.GELU(approximate="tanh"), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 2),
    )  # fmt: skip
    _load(net, readout)
    x = np.random.default_rng(0).standard_normal((5, size)).astype(np.float32)
    seen = x * readout.weights["scale"] + readout.weights["mean"]
    expected = net(torch.from_numpy(x))[:, 0].detach().numpy() * readout.range_um
    assert readout.predict_features(seen)[0] == pytest.approx(expected, abs=1e-3)
