"""The laser autofocus as Micro-Manager devices, on the simulated plate, through a real core."""

from __future__ import annotations

import time
from typing import Any

import pymmcore
import pytest

from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.readouts import load_model
from mm_autofocus.request import Limits
from mm_autofocus.result import Status
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.laser import open_laser
from mm_autofocus_devices.laser.continuous import ContinuousFocus
from mm_autofocus_devices.plate import open_instrument

STAY = dict.fromkeys(("no_signal", "at_limit", "low_confidence", "timed_out", "failed"), "stay")


def go(core: Any, well: str, defocus: float) -> float:
    """Go to a well, so far from its focal plane; return where the stage stands."""
    scope = open_instrument()
    core.setXYPosition(*scope.plate.well_centre(well))
    core.waitForDevice("XY")
    for below in (2.0, 0.0):
        core.setPosition(scope.true_focus_um(channel="DAPI") + defocus - below)
        core.waitForDevice("Z")
    return core.getPosition()


def error(core: Any) -> float:
    return core.getPosition() - open_instrument().true_focus_um(channel="DAPI")


def only_laser(core: Any, tools: Any, **changes: Any) -> Any:
    autofocus = tools.orchestrator(core, strategy="laser", failure=STAY, **changes)
    tools.device(core).use(autofocus)
    return autofocus


def test_stock_core_loads_the_file():
    core = pymmcore.CMMCore()
    core.loadSystemConfiguration(str(CONFIGS / "plate_laser.cfg"))
    assert tuple(core.getLoadedDevices()) == ("Core",)


@pytest.mark.parametrize(("well", "defocus"), [("A1", 95.0), ("D6", -40.0), ("H12", 3.0)])
def test_full_focus_finds_the_plane_to_image(core, tools, well, defocus):
    go(core, well, defocus)
    core.fullFocus()
    result = tools.device(core).last_result
    assert result.strategy == "laser"
    assert result.status is Status.CONVERGED
    assert error(core) == pytest.approx(0.0, abs=0.2)
    assert result.score > 0.9
    assert core.getCameraDevice() == "Camera"


def test_the_offset_of_micro_manager_is_in_micrometres(core):
    go(core, "C3", 10.0)
    core.setAutoFocusOffset(5.0)
    assert core.getAutoFocusOffset() == 5.0
    core.fullFocus()
    assert error(core) == pytest.approx(5.0, abs=0.25)


def test_the_laser_spares_the_specimen(core):
    go(core, "C3", 10.0)
    before = len(open_instrument().exposures)
    core.fullFocus()
    assert len(open_instrument().exposures) == before


@pytest.mark.parametrize("break_it", ["off", "dark", "saturated", "foreign", "frozen"])
def test_without_its_reflection_the_laser_does_not_move_the_stage(core, tools, break_it):
    only_laser(core, tools)
    start = go(core, "B2", 12.0)
    laser = open_laser(open_instrument())
    if break_it == "foreign":
        laser.foreign = True
    elif break_it == "frozen":
        open_instrument().freeze_stage()
    else:
        prop, value = {"off": ("State", 0), "dark": ("Power", 0.0), "saturated": ("Power", 80.0)}[break_it]
        core.setProperty("Laser", prop, value)
    with pytest.raises(FocusError):
        core.fullFocus()
    open_instrument().clear_faults()
    assert core.getPosition() == pytest.approx(start, abs=1e-6)
    assert tools.device(core).last_result is not None
    assert tools.device(core).last_result.status in (Status.NO_SIGNAL, Status.FAILED)


def test_a_well_without_reflection_is_left_to_the_image_sweep(core, tools):
    laser = open_laser(open_instrument(), lost_wells=("B3",))
    go(core, "B2", 4.0)
    core.fullFocus()
    assert tools.device(core).last_result.strategy == "laser"
    go(core, "B3", 4.0)
    core.fullFocus()
    result = tools.device(core).last_result
    assert result.strategy == "sweep"
    assert [each["status"] for each in result.details["cascade"]] == ["no_signal", "converged"]
    assert abs(error(core)) < 1.0
    assert laser.options.lost_wells == ("B3",)


def test_a_model_of_another_objective_is_refused_before_anything_moves(core, tools):
    start = core.getPosition()
    with pytest.raises(SettingsError, match="objective"):
        only_laser(core, tools, strategies={"laser": {"objective": "60x"}})
    assert core.getPosition() == start


def test_the_laser_camera_has_neither_roi_nor_binning(core):
    core.setCameraDevice("LaserCamera")
    core.snapImage()
    assert core.getImage().shape == (192, 192)
    assert core.getImageBitDepth() == 16
    with pytest.raises(ValueError, match="region of interest"):
        core.setROI(0, 0, 64, 64)
    core.clearROI()


def test_continuous_focus_holds_the_plane_while_the_plate_drifts(core, tools):
    scope = open_instrument()
    go(core, "D4", 5.0)
    core.fullFocus()
    model = load_model()
    hold = ContinuousFocus(open_laser(scope), model, Limits(-240.0, 240.0))
    hold.lock()
    for _ in range(60):  # 200 frames of 50 ms and some minutes between, an hour in all
        scope.advance(60.0)
        lock = hold.step()
        assert lock.locked
    assert lock.quality > 0.5
    assert hold.corrections > 5
    assert abs(error(core)) < 0.45
    assert abs(scope.plate.drift_at(scope.clock_s)) > 1.5


def test_continuous_focus_lets_go_without_light_and_never_moves_then(core):
    scope = open_instrument()
    go(core, "D4", 2.0)
    core.fullFocus()
    hold = ContinuousFocus(open_laser(scope), load_model(), Limits(-240.0, 240.0))
    hold.lock()
    before = core.getPosition()
    core.setProperty("Laser", "State", 0)
    locks = [hold.step().locked for _ in range(5)]
    assert locks == [True, True, False, False, False]
    assert core.getPosition() == before
    with pytest.raises(FocusError, match="cannot lock"):
        hold.lock()


def test_continuous_focus_lets_go_of_a_jump(core):
    scope = open_instrument()
    go(core, "D4", 2.0)
    core.fullFocus()
    hold = ContinuousFocus(open_laser(scope), load_model(), Limits(-240.0, 240.0))
    hold.lock()
    scope.move_z(core.getPosition() + 30.0)
    core.waitForDevice("Z")
    before = core.getPosition()
    assert [hold.step().locked for _ in range(3)] == [True, True, False]
    assert core.getPosition() == before


def test_continuous_focus_through_the_core(core, tools):
    go(core, "D4", 5.0)
    assert not core.isContinuousFocusEnabled()
    core.setProperty("Laser", "State", 0)
    with pytest.raises(FocusError, match="cannot lock"):
        core.enableContinuousFocus(True)
    core.setProperty("Laser", "State", 1)
    core.fullFocus()
    core.enableContinuousFocus(True)
    assert core.isContinuousFocusEnabled()
    assert core.isContinuousFocusLocked()
    assert float(core.getProperty("Autofocus", "LockQuality")) > 0.5
    scope = open_instrument()
    scope.advance(1200.0)
    hold = tools.device(core)._continuous
    deadline = time.monotonic() + 20
    while hold.corrections == 0 and time.monotonic() < deadline:
        core.snapImage()  # a correction is due after every image of the main camera
        time.sleep(0.03)
    assert hold.corrections > 0
    core.fullFocus()  # pauses and goes on
    assert core.isContinuousFocusLocked()
    core.enableContinuousFocus(False)
    assert not core.isContinuousFocusEnabled()
    assert not core.isContinuousFocusLocked()
