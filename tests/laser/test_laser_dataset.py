"""Days of labelled stacks: acquired through the core, resumed, read back, and what is wrong with them said."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from mm_autofocus.cli import laser as commands
from mm_autofocus.errors import FocusError, LimitError, SettingsError
from mm_autofocus.readouts import load_model
from mm_autofocus.simulation.laser_spot import LaserState
from mm_autofocus.training.laser_dataset import Day, days, frames_of, read_stack, stacks_of, write_stack
from mm_autofocus_devices.laser import open_laser
from mm_autofocus_devices.plate import open_instrument

COARSE = {"long": 25.0, "short": 2.5}
DAY = Day(objective="simulated-100x", camera="LaserCamera", shape=(192, 192), exposure_ms=1.0, focus_um=5.0)


def make(folder, name="2024-05-01", **changes):
    day = DAY.model_copy(update=changes)
    (folder / name).mkdir(parents=True)
    (folder / name / "day.json").write_text(day.model_dump_json())
    return folder / name


def without_second_z(path):
    write_stack(path, np.zeros((2, 192, 192), np.uint16), np.array([1.0, 7.25]))
    return path.read_bytes().replace(b'PositionZ="7.25"', b'PositionY="7.25"')


def test_a_stack_keeps_its_z(tmp_path, spot):
    z = np.array([1.0, 1.5, 2.5])
    images = spot.images(z, LaserState(), np.random.default_rng(0))
    write_stack(tmp_path / "short_000.ome.tif", images, z)
    stack = read_stack(tmp_path / "short_000.ome.tif")
    np.testing.assert_array_equal(stack.images, images)
    assert stack.z_um == pytest.approx(z)
    assert [p.name for p in tmp_path.iterdir()] == ["short_000.ome.tif"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: tifffile.imwrite(p, np.zeros((3, 192, 192), np.uint16)), "0 z positions .* 3 images"),
        (lambda p: tifffile.imwrite(p, np.zeros((3, 192, 192), np.uint16), ome=True, metadata={"axes": "ZYX"}), "0 z"),
        (lambda p: p.write_bytes(without_second_z(p)), "1 z positions .* 2 images"),
        (lambda p: p.write_bytes(b"not a tiff"), "cannot be read"),
        (lambda p: write_stack(p, np.zeros((2, 96, 96), np.uint16), np.array([1.0, 2.0])), r"\(96, 96\)"),
    ],
    ids=["plain TIFF", "OME without z", "a z missing", "no TIFF", "another size"],
)
def test_a_stack_that_cannot_be_used_says_why(tmp_path, write, message):
    folder = make(tmp_path)
    write(folder / "short_000.ome.tif")
    with pytest.raises(SettingsError, match=message):
        list(stacks_of(folder, "short"))


def test_a_dataset_is_of_one_objective(tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b", objective="60x")
    with pytest.raises(SettingsError, match="60x"):
        days(tmp_path)
    with pytest.raises(SettingsError, match="holds no days"):
        days(tmp_path / "nowhere")


def test_calibrate_acquires_and_resumes(core, tools, tmp_path):
    plugins = [tools.brings()]
    said: list[str] = []
    surface = open_laser(open_instrument()).surface_um()
    arguments = {"name": "today", "stacks": 2, "steps_um": COARSE, "plugins": plugins, "say": said.append}
    before = core.getPosition()
    first = commands.calibrate(core, tools.settings(), tmp_path, focus_um=surface, **arguments)
    assert first["stacks"] == 4
    assert abs(core.getPosition() - before) < 60
    (tmp_path / "today" / "short_001.ome.tif").unlink()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "today").glob("*.tif")}
    commands.calibrate(core, tools.settings(), tmp_path, **arguments)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    stack, defocus = next(stacks_of(tmp_path / "today", "short"))
    assert defocus == pytest.approx(np.linspace(-10, 10, 9), abs=0.05)
    assert load_model().short.predict(stack.images)[0] == pytest.approx(defocus, abs=0.6)
    assert frames_of(days(tmp_path), "long").features.shape == (18, 296)
    with pytest.raises(SettingsError, match="was begun with"):
        commands.calibrate(
            core, tools.settings(strategies={"laser": {"exposure_ms": 2.0}}), tmp_path, focus_um=surface, **arguments
        )


def test_calibrate_finds_the_focus_by_image(core, tools, tmp_path):
    scope = open_instrument()
    core.setPosition(scope.true_focus_um() + 5)
    said: list[str] = []
    commands.calibrate(
        core, tools.settings(), tmp_path, name="d", stacks=1, steps_um=COARSE, plugins=[tools.brings()],
        say=said.append,
    )  # fmt: skip
    found = Day.model_validate_json((tmp_path / "d" / "day.json").read_text()).focus_um
    assert found == pytest.approx(open_laser(scope).surface_um(), abs=0.8)
    assert any("by image" in line for line in said)


def test_a_stack_beyond_the_limits_never_begins(core, tools, tmp_path):
    before = core.getPosition()
    with pytest.raises(LimitError, match="nothing has moved"):
        commands.calibrate(
            core, tools.settings(), tmp_path, name="d", focus_um=200.0, plugins=[tools.brings()], say=lambda text: None
        )
    assert core.getPosition() == before


def test_recalibrate_from_ten_frames(core, tools, tmp_path):
    surface = open_laser(open_instrument()).surface_um()
    before = core.getPosition()
    outcome = commands.recalibrate(
        core, tools.settings(), tmp_path / "today.json", focus_um=surface, plugins=[tools.brings()]
    )
    assert outcome["frames"] == 10
    assert core.getPosition() == pytest.approx(before, abs=0.01)
    assert load_model(tmp_path / "today.json").short.curve is not None


def test_check_passes_a_good_laser_and_refuses_a_wrong_offset(core, tools):
    truth = open_instrument().true_focus_um(channel="DAPI")
    arguments = {"starts": 6, "focus_um": truth, "plugins": [tools.brings()]}
    good = commands.check(core, tools.settings(), **arguments)
    assert good["recovered"] == 1.0
    assert core.getPosition() == pytest.approx(truth, abs=0.01)
    wrong = {"laser": {"offset_um": 6.0, "objective": "simulated-100x"}}
    with pytest.raises(FocusError, match=r"do not acquire.*median error \+[34]"):
        commands.check(core, tools.settings(strategies=wrong), **arguments)


def test_training_needs_enough_days(tmp_path):
    with pytest.raises(SettingsError, match="too few"):
        commands.train(None, tmp_path / "m.json", synthetic_days=3)
