"""Devices that hang or dawdle: we give up in time, and no image is taken through a moving filter wheel."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import mm_test_adapters
import numpy as np
import pytest
from pymmcore_plus import CMMCorePlus
from pymmcore_plus.experimental.unicore import SimpleCameraDevice

from mm_autofocus.errors import HardwareError
from mm_autofocus.microscope import Microscope
from mm_autofocus.result import Status
from mm_autofocus.run import FocusRun
from mm_autofocus.strategy import Look, Verdict
from mm_autofocus_devices.core import AutofocusCore
from support import FakeCore, Scripted, Stack, request, settings


class HangingCamera(SimpleCameraDevice):
    """Holds its device lock while it hangs, as drivers do."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.hangs = False
        self.exposure = 1.0

    def sensor_shape(self) -> tuple[int, int]:
        return 32, 32

    def dtype(self) -> Any:
        return np.uint16

    def get_exposure(self) -> float:
        return self.exposure

    def set_exposure(self, exposure: float) -> None:
        self.exposure = exposure

    def snap(self, buffer: np.ndarray) -> Mapping[str, Any]:
        if self.hangs:
            self.release.wait(60)
        buffer[:] = np.indices((32, 32)).sum(axis=0) % 2
        return {}


def test_a_camera_that_hangs_with_its_lock_held_does_not_hang_us() -> None:
    core = AutofocusCore()
    camera = HangingCamera()
    core.setDeviceAdapterSearchPaths([str(mm_test_adapters.device_adapter_path())])
    core.loadPyDevice("Camera", camera)
    core.loadDevice("Z", "DemoCamera", "DStage")
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setFocusDevice("Z")
    wanted = settings(
        knobs={"z": {"limits": [-50, 50]}}, microscope={"depth_of_field_um": 2.0, "snap_timeout_s": 0.1}
    )  # fmt: skip
    scope = Microscope(core, wanted)
    camera.hangs = True
    fake = FakeCore(low=-50, high=50)
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(FocusRun(scope, Stack(), request(fake))()), daemon=True)
    thread.start()
    thread.join(20)
    try:
        assert done
        assert done[0].status is Status.FAILED
        assert "has not delivered an image" in done[0].reason
        assert core.getPosition("Z") == pytest.approx(0.0)
        with pytest.raises(HardwareError, match="still hangs"):
            scope.snap()
    finally:
        camera.release.set()
    camera.hangs = False
    for _ in range(100):
        try:
            scope.snap()
            break
        except HardwareError:  # the late snap has yet to come back
            threading.Event().wait(0.05)
    else:
        pytest.fail("the camera came back and was not used again")
    core.unloadAllDevices()


def test_the_channel_is_back_and_at_rest_when_the_run_ends() -> None:
    core = CMMCorePlus()
    core.setDeviceAdapterSearchPaths([str(mm_test_adapters.device_adapter_path())])
    for label, name in (("Camera", "DCam"), ("Z", "DStage"), ("Wheel", "DWheel")):
        core.loadDevice(label, "DemoCamera", name)
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setFocusDevice("Z")
    core.setDeviceDelayMs("Wheel", 150)
    for preset, label in (("DAPI", "State-1"), ("FITC", "State-2")):
        core.defineConfig("Channel", preset, "Wheel", "Label", label)
    core.setConfig("Channel", "FITC")
    core.waitForDevice("Wheel")
    imaging = {"depth_of_field_um": 2.0, "channel": "Channel/DAPI"}
    scope = Microscope(core, settings(microscope=imaging, knobs={"z": {"limits": [-50, 50]}}))
    with scope.preserved():
        scope.apply_imaging()
        assert core.getCurrentConfig("Channel") == "DAPI"
        assert not core.deviceBusy("Wheel")
    assert core.getCurrentConfig("Channel") == "FITC"
    assert not core.deviceBusy("Wheel")
    core.unloadAllDevices()


def test_a_look_without_its_own_exposure_and_roi_does_not_inherit_those_of_the_look_before() -> None:
    core = FakeCore(focus=5.0)
    seen: list[tuple[float, list[int]]] = []
    core.snapImage = lambda: seen.append((core.exposure, list(core.roi)))  # type: ignore[method-assign]
    looks = [Look({"z": 5.0}, exposure_ms=99.0, roi=(8, 8, 16, 16)), Look({"z": 0.0})]
    scope = Microscope(core, settings(microscope={"depth_of_field_um": 2.0, "exposure_ms": 20.0}))
    FocusRun(scope, Scripted(looks, Verdict({"z": 5.0}, 0.9)), request(core))()
    assert seen[:2] == [(99.0, [8, 8, 16, 16]), (20.0, [0, 0, 64, 48])]


def test_the_lamp_stays_off_for_a_camera_that_does_not_need_it() -> None:
    core = FakeCore()
    seen: list[tuple[str, bool]] = []
    core.snapImage = lambda: seen.append((core.camera, core.auto_shutter))  # type: ignore[method-assign]
    core.getLoadedDevices = lambda: ["Camera", "Laser", "Z", "Shutter", "Core"]  # type: ignore[method-assign]
    scope = Microscope(core, settings(microscope={"depth_of_field_um": 2.0, "dark_cameras": ["Laser"]}))
    with scope.preserved():
        scope.snap(camera="Laser")
        assert scope.dose == 0.0
        scope.snap()
    assert seen == [("Laser", False), ("Camera", True)]
    assert scope.dose == 10.0
    assert (core.camera, core.auto_shutter) == ("Camera", True)
