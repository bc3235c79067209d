"""AutofocusCore on a real core: roles, focusing, presets, images, configuration files."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pymmcore
import pytest
from contract_devices import Autofocus, ImagelessCamera, PlainAutofocus, device, empty_core

from mm_autofocus.errors import FocusError, HardwareError
from mm_autofocus_devices.core import AutofocusCore

ROLES = [
    ("Camera", "Cam", "DCam"),
    ("Focus", "Z", "DZ"),
    ("AutoFocus", "AF", "DAF"),
    ("Shutter", "Shutter", "DShutter"),
]


@pytest.mark.parametrize(("role", "python", "native"), ROLES)
@pytest.mark.parametrize("by", ["setter", "property", "preset"])
def test_role_changes_hands(core: AutofocusCore, role: str, python: str, native: str, by: str) -> None:
    for label in (python, native):
        core.defineConfig("Roles", label, "Core", role, label)

    def give(label: str) -> None:
        if by == "setter" or not label:
            getattr(core, f"set{role}Device")(label)
        elif by == "property":
            core.setProperty("Core", role, label)
        else:
            core.setConfig("Roles", label)

    for label in (python, native, python, "", native, python):
        give(label)
        assert getattr(core, f"get{role}Device")() == label
        assert core.getProperty("Core", role) == label
        assert core.getPropertyFromCache("Core", role) == label
        assert core.getCurrentConfig("Roles") == label


@pytest.mark.parametrize(("role", "python", "native"), ROLES)
def test_wrong_device_is_refused_and_the_role_kept(core: AutofocusCore, role: str, python: str, native: str) -> None:
    core.setProperty("Core", role, python)
    for wrong in ("Thing", "nope", "DCam" if role != "Camera" else "DZ"):
        with pytest.raises((RuntimeError, ValueError)):
            core.setProperty("Core", role, wrong)
        assert core.getProperty("Core", role) == python


def test_preset_settings_of_core_roles(core: AutofocusCore) -> None:
    core.defineConfig("Channel", "A", "Core", "Camera", "Cam2")
    core.defineConfig("Channel", "A", "Thing", "Volts", 2)
    core.defineConfig("Channel", "A", "DCam", "Binning", "2")
    assert {tuple(setting) for setting in core.getConfigData("Channel", "A")} == {
        ("Core", "Camera", "Cam2"),
        ("Thing", "Volts", "2"),
        ("DCam", "Binning", "2"),
    }
    core.deleteConfig("Channel", "A", "Core", "Camera")
    core.deleteConfig("Channel", "A", "DCam", "Binning")
    assert [tuple(setting) for setting in core.getConfigData("Channel", "A")] == [("Thing", "Volts", "2")]
    core.deleteConfig("Channel", "A")
    assert core.getAvailableConfigs("Channel") == ()


def test_python_autofocus_device(core: AutofocusCore) -> None:
    autofocus: Autofocus = device(core, "AF")
    assert autofocus.mmcore is core
    core.fullFocus()
    assert core.getPosition() == 5
    core.full_focus()
    core.incrementalFocus()
    assert core.getPosition() == 11
    assert autofocus.seen_locked == [False, False]
    assert (core.getLastFocusScore(), core.getCurrentFocusScore()) == (0.7, 11)
    core.setAutoFocusOffset(2.5)
    assert core.getAutoFocusOffset() == 2.5
    core.enableContinuousFocus(True)
    assert core.isContinuousFocusEnabled()
    assert core.isContinuousFocusLocked()
    assert core.isContinuousFocusDrive("Z") is False


def test_native_autofocus_device(core: AutofocusCore) -> None:
    core.setAutoFocusDevice("DAF")
    core.fullFocus()
    core.incrementalFocus()
    core.setAutoFocusOffset(0)
    core.enableContinuousFocus(False)
    assert device(core, "AF").runs == 0
    assert (core.getLastFocusScore(), core.getCurrentFocusScore(), core.getAutoFocusOffset()) == (0, 1, 0)
    assert not core.isContinuousFocusEnabled()
    assert not core.isContinuousFocusLocked()


def test_device_with_full_focus_only(core: AutofocusCore) -> None:
    core.loadPyDevice("Plain", PlainAutofocus())
    core.initializeDevice("Plain")
    core.setAutoFocusDevice("Plain")
    core.enableContinuousFocus(False)
    core.setAutoFocusOffset(0)
    assert core.getLastFocusScore() == core.getAutoFocusOffset() == 0
    assert not core.isContinuousFocusEnabled()
    assert not core.isContinuousFocusLocked()
    for call in (
        core.incrementalFocus,
        core.getCurrentFocusScore,
        lambda: core.setAutoFocusOffset(1),
        lambda: core.enableContinuousFocus(True),
    ):
        with pytest.raises(HardwareError, match="'Plain'"):
            call()
    with pytest.raises(FocusError, match="check the lamp"):
        core.fullFocus()


def test_full_focus_raises_runtime_errors_only(core: AutofocusCore) -> None:
    device(core, "AF").failures = [ValueError("bad fit"), KeyError("z")]
    with pytest.raises(HardwareError, match="'AF' failed: ValueError: bad fit"):
        core.fullFocus()
    with pytest.raises(HardwareError, match="'AF' failed: KeyError"):
        core.fullFocus()
    core.fullFocus()


def test_a_focusing_device_may_use_the_whole_core(core: AutofocusCore) -> None:
    def use(core: AutofocusCore) -> None:
        core.waitForSystem()
        core.snapImage()
        core.getProperty("AF", "Gain")
        core.setProperty("AF", "Gain", 3)
        with pytest.raises(HardwareError, match="focusing already"):
            core.fullFocus()

    device(core, "AF").register_property("Gain", default_value=1)
    device(core, "AF").on_focus = use
    core.fullFocus()
    assert core.getPosition() == 5


def test_only_one_thread_focuses(core: AutofocusCore) -> None:
    begun, go = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        begun.set()
        assert go.wait(20)

    device(core, "AF").on_focus = wait
    thread = threading.Thread(target=core.fullFocus)
    thread.start()
    assert begun.wait(20)
    with pytest.raises(HardwareError, match="focusing already"):
        core.fullFocus()
    assert core.getLastFocusScore() == 0.7  # a user interface can ask meanwhile
    go.set()
    thread.join(20)
    assert device(core, "AF").runs == 1


def test_uninitialized_autofocus_device(core: AutofocusCore) -> None:
    core.loadPyDevice("New", Autofocus())
    core.setAutoFocusDevice("New")
    with pytest.raises(HardwareError, match=r"'New' \(Autofocus\): initializeAllDevices\(\) was not called"):
        core.fullFocus()


def test_device_outlives_its_core(caplog: pytest.LogCaptureFixture) -> None:
    autofocus = Autofocus()
    with pytest.raises(HardwareError, match="loadPyDevice"):
        _ = autofocus.mmcore
    caplog.set_level(logging.CRITICAL, "pymmcore-plus")  # its log records keep the core
    core = empty_core()
    core.loadPyDevice("AF", autofocus)
    dead = weakref.ref(core)
    del core
    gc.collect()
    assert dead() is None
    with pytest.raises(HardwareError, match="keep the core"):
        _ = autofocus.mmcore


def test_unloading_frees_the_role(core: AutofocusCore) -> None:
    core.unloadDevice("AF")
    assert core.getAutoFocusDevice() == ""


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("snapped", "current"), [("Cam", "Cam2"), ("Cam", "DCam"), ("DCam", "Cam")])
def test_image_of_a_camera_that_was_not_snapped(core: AutofocusCore, snapped: str, current: str) -> None:
    core.setCameraDevice(snapped)
    core.snapImage()
    shape = core.getImage().shape
    core.setCameraDevice(current)
    with pytest.raises(HardwareError, match=f"no image of camera '{current}': the last snap was of '{snapped}'"):
        core.getImage()
    tagged = core.get_tagged_image()  # pycro-manager asks after switching back: the image and whose it is
    assert (tagged.pix.shape, tagged.tags["Camera"], core.getCameraDevice()) == (shape, snapped, current)
    core.setCameraDevice(snapped)
    assert core.getImage().shape == shape


def test_image_before_any_snap(core: AutofocusCore) -> None:
    with pytest.raises(HardwareError, match="no camera"):
        core.getImage()


def test_failed_snap_leaves_no_old_image(core: AutofocusCore) -> None:
    core.snapImage()
    device(core, "Cam").failures = [RuntimeError("cooler off")]
    with pytest.raises(RuntimeError, match="cooler off"):
        core.snapImage()
    with pytest.raises(HardwareError):
        core.getImage()


def test_camera_that_gives_no_image(core: AutofocusCore) -> None:
    core.loadPyDevice("Blind", ImagelessCamera())
    core.initializeDevice("Blind")
    core.snapImage()
    core.setCameraDevice("Blind")
    with pytest.raises(HardwareError, match="'Blind' was snapped but gave no image"):
        core.snapImage()


def test_auto_shutter_needs_a_shutter(core: AutofocusCore) -> None:
    core.setShutterDevice("")
    core.setAutoShutter(True)
    assert core.getAutoShutter() is False
    core.setShutterDevice("Shutter")
    assert core.getAutoShutter() is True


@pytest.mark.parametrize(("camera", "shutter"), [("Cam", "Shutter"), ("Cam", "DShutter")])
@pytest.mark.parametrize("auto", [True, False])
def test_auto_shutter_opens_for_python_devices(core: AutofocusCore, camera: str, shutter: str, auto: bool) -> None:
    core.setAutoShutter(auto)
    core.setShutterDevice(shutter)
    seen: list[bool] = []
    device(core, camera).on_snap = lambda: seen.append(core.getShutterOpen(shutter))
    core.snapImage()
    assert (seen, core.getShutterOpen(shutter)) == ([auto], False)
    device(core, camera).failures = [RuntimeError("cooler off")]
    with pytest.raises(RuntimeError):
        core.snapImage()
    assert core.getShutterOpen(shutter) is False


def test_auto_shutter_of_a_native_camera_with_a_python_shutter(core: AutofocusCore) -> None:
    core.setCameraDevice("DCam")
    core.setShutterDevice("Shutter")
    states: list[bool] = []
    shutter = device(core, "Shutter")
    shutter.set_open = states.append
    core.snapImage()
    assert states == [True, False]


# ------------------------------------------------------------------------------------------- snake_case


def test_every_public_method_has_a_snake_case_name() -> None:
    from mmpycorex.launcher import _camel_to_snake

    names = [name for name in dir(pymmcore.CMMCore) if not name.startswith(("_", "this"))]
    assert len(names) > 200
    missing = [name for name in names if not callable(getattr(AutofocusCore, _camel_to_snake(name), None))]
    assert missing == []


def test_snake_case_reaches_the_override(core: AutofocusCore) -> None:
    class Loud(AutofocusCore):
        def getPosition(self, *args: Any) -> float:  # type: ignore[override]
            return 42.0

    assert Loud().get_position() == 42
    core.load_py_device("AF2", second := Autofocus())
    assert second.mmcore is core
    core.set_auto_focus_device("AF")
    core.set_position("Z", 3.0)
    core.snap_image()
    assert core.get_auto_focus_device() == "AF"
    assert core.get_position("Z") == core.getPosition() == 3
    assert np.array_equal(core.get_image(), core.get_tagged_image(0, "Cam", 4, 6).pix)


def test_tagged_images(core: AutofocusCore) -> None:
    core.snap_image()
    tagged = core.get_tagged_image(0, "Cam", 4, 6, 1, "GRAY8", 0, 0)
    assert tagged.tags == {
        "Camera": "Cam",
        "Height": 4,
        "Width": 6,
        "PixelType": "GRAY8",
        "CameraChannelIndex": 0,
        "Binning": 1,
        "ROI-X-start": 0,
        "ROI-Y-start": 0,
    }
    core.start_sequence_acquisition(2, 0, True)
    core._acquisition_thread.join(20)
    popped = core.pop_next_tagged_image()
    assert popped.pix.shape == (4, 6)
    assert popped.tags["Camera"] == "Cam"


def test_exit_with_a_live_core_is_clean() -> None:
    code = (
        "import contract_devices\n"
        "core = contract_devices.make_core()\n"
        "core.events.propertyChanged.connect(lambda *_: None)\n"
        "core.setCameraDevice('DCam')\n"
        "core.startContinuousSequenceAcquisition(0)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
