"""The facade does the same over every kind of core, counts what it spends, and puts back what it touched."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mm_test_adapters
import numpy as np
import pymmcore
import pytest
from mmpycorex.launcher import _create_pymmcore_instance as mmpycorex_core
from pymmcore_plus import CMMCorePlus

from mm_autofocus.errors import CancelledError, HardwareError, LimitError, SettingsError
from mm_autofocus.microscope import Microscope, PortableCore
from mm_autofocus.settings import Settings
from mm_autofocus_devices.core import AutofocusCore
from support import FakeCore

if (contracts := str(Path(__file__).parent.parent / "contracts")) not in sys.path:
    sys.path.append(contracts)
from java_core import JavaCore

DEVICES = {
    "Camera": "DCam", "Camera2": "DCam", "Z": "DStage", "XY": "DXYStage", "Shutter": "DShutter", "Wheel": "DWheel",
}  # fmt: skip
SHAPE = (48, 64)


def load(core: Any) -> Any:
    """Load DemoCamera with two cameras and two channels into a core with Micro-Manager's own names."""
    core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
    for label, device in DEVICES.items():
        core.loadDevice(label, "DemoCamera", device)
    core.initializeAllDevices()
    for role, label in (("Focus", "Z"), ("XYStage", "XY"), ("Shutter", "Shutter"), ("Camera", "Camera2")):
        core.setProperty("Core", role, label)
    for camera, exposure in (("Camera2", 4.0), ("Camera", 2.0)):
        core.setProperty("Core", "Camera", camera)
        core.setProperty(camera, "OnCameraCCDXSize", SHAPE[1])
        core.setProperty(camera, "OnCameraCCDYSize", SHAPE[0])
        core.setProperty(camera, "FastImage", 1)
        core.setExposure(exposure)
    for i, preset in enumerate(("DAPI", "FITC")):
        core.defineConfig("Channel", preset, "Wheel", "Label", f"State-{i}")
    core.setConfig("Channel", "DAPI")
    return core


def java() -> tuple[Any, Any]:
    core = load(pymmcore.CMMCore())
    return core, JavaCore(core)


CORES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "pymmcore": lambda: (core := load(pymmcore.CMMCore()), core),
    "pymmcore-plus": lambda: (core := load(CMMCorePlus()), core),
    "AutofocusCore": lambda: (core := load(AutofocusCore()), core),
    "mmpycorex": lambda: (core := load(mmpycorex_core()), core),
    "Java": java,
}
"""Kind -> a core with Micro-Manager's own names to look at, and the one to give to the facade."""


@pytest.fixture(params=CORES)
def cores(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    raw, given = CORES[request.param]()
    yield raw, given
    raw.unloadAllDevices()


@pytest.fixture
def raw() -> Iterator[Any]:
    core = load(pymmcore.CMMCore())
    yield core
    core.unloadAllDevices()


def settings(**microscope: Any) -> Settings:
    return Settings.parse({"microscope": {"depth_of_field_um": 2.0, **microscope}, "knobs": {"z": {"limits": [-9, 9]}}})


def state(core: Any) -> dict[str, Any]:
    """Everything that focusing may touch, of both cameras; the core's camera is put back."""
    found: dict[str, Any] = {
        "camera": core.getCameraDevice(), "channel": core.getCurrentConfig("Channel"),
        "shutter": core.getShutterDevice(), "open": core.getShutterOpen(), "auto": core.getAutoShutter(),
        "z": round(core.getPosition("Z"), 3),
    }  # fmt: skip
    for camera in ("Camera", "Camera2"):
        core.setCameraDevice(camera)
        found[camera] = core.getExposure(), tuple(core.getROI()), core.getProperty(camera, "Binning")
    core.setCameraDevice(found["camera"])
    return found


# ---------------------------------------------------------------- the same calls on every core
def test_snaps_moves_and_counts_on_every_core(cores: tuple[Any, Any]) -> None:
    raw, given = cores
    scope = Microscope(given, settings(dose_per_ms=3.0))
    image, exposure = scope.snap()
    assert (image.shape, image.dtype, exposure) == (SHAPE, np.uint8, 2.0)
    assert scope.knob("z").set(4.0) == pytest.approx(4.0)
    assert raw.getPosition("Z") == pytest.approx(4.0)
    with pytest.raises(LimitError):
        scope.knob("z").set(10.0)
    scope.snap()
    assert (scope.images, scope.dose, scope.moves) == (2, 12.0, 1)
    assert scope.pixel_um is None


def test_everything_is_put_back_on_every_core(cores: tuple[Any, Any]) -> None:
    raw, given = cores
    raw.setCameraDevice("Camera2")
    raw.setROI(2, 4, 20, 16)
    raw.setCameraDevice("Camera")
    raw.setROI(0, 0, 40, 30)
    scope = Microscope(given, settings(channel="Channel/FITC", binning=2, exposure_ms=7.0))
    before = state(raw)
    with scope.preserved():
        scope.apply_imaging()
        assert (raw.getCurrentConfig("Channel"), raw.getProperty("Camera", "Binning")) == ("FITC", "2")
        scope.snap()
        assert scope.snap(camera="Camera2", exposure_ms=9.0, roi=(0, 0, 10, 8))[0].shape == (8, 10)
        raw.setProperty("Camera2", "Binning", "2")
        raw.setAutoShutter(False)
        raw.setShutterOpen(True)
        scope.knob("z").set(3.0)
        assert state(raw) != before
    assert state(raw) == {**before, "z": 3.0}  # the end of a run that succeeded stays


@pytest.mark.parametrize("error", [ValueError("strategy"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_exception_puts_the_knobs_back_too(cores: tuple[Any, Any], error: BaseException) -> None:
    raw, given = cores
    scope = Microscope(given, settings())
    before = state(raw)
    with pytest.raises(type(error)), scope.preserved():  # noqa: PT012
        scope.knob("z").set(5.0)
        scope.snap(camera="Camera2", exposure_ms=9.0)
        raise error
    assert state(raw) == before


def test_roles_presets_and_roi_read_alike(cores: tuple[Any, Any]) -> None:
    core = PortableCore(cores[1])
    assert {*DEVICES, "Core"} == set(core.loaded_devices())
    assert core.presets(core.config_groups()[0]) == ("DAPI", "FITC")
    assert core.group_state("Channel") == (("Wheel", "Label", "State-0"),)
    assert core.roi() == (0, 0, SHAPE[1], SHAPE[0])
    assert core.get_focus_device() == "Z"
    assert core.get_x_position("XY") == 0.0
    with pytest.raises(AttributeError):
        core.wait_for_system()


def test_colour_is_refused_on_every_core(cores: tuple[Any, Any]) -> None:
    raw, given = cores
    raw.setProperty("Camera", "PixelType", "32bitRGB")
    with pytest.raises(HardwareError, match="Choose a grey pixel type"):
        Microscope(given, settings()).snap()


# ---------------------------------------------------------------- restoring, in particular
def test_pymmcore_plus_is_not_deceived_about_the_channel() -> None:
    core = load(CMMCorePlus())
    try:
        scope = Microscope(core, settings(channel="Channel/FITC"))
        with scope.preserved():
            scope.apply_imaging()
        assert core.getCurrentConfig("Channel") == "DAPI"
        assert core._last_config == ("Channel", "DAPI")  # its engine skips a channel that it believes to be set
    finally:
        core.unloadAllDevices()


def test_a_group_between_its_presets_is_put_back_by_its_properties(raw: Any) -> None:
    raw.setProperty("Wheel", "Label", "State-5")
    scope = Microscope(raw, settings(channel="Channel/FITC"))
    with scope.preserved():
        scope.apply_imaging()
        assert raw.getProperty("Wheel", "Label") == "State-1"
    assert raw.getProperty("Wheel", "Label") == "State-5"


def test_without_a_shutter_nothing_is_asked_of_it(raw: Any) -> None:
    raw.setShutterDevice("")
    scope = Microscope(raw, settings())
    with scope.preserved():
        assert scope.snap()[0].shape == SHAPE
    assert raw.getAutoShutter() is True


class LosesCamera(FakeCore):
    lost = False

    def setExposure(self, value: float) -> None:
        if self.lost:
            raise RuntimeError("camera lost")
        super().setExposure(value)


def test_what_cannot_be_put_back_is_named_and_the_rest_is_put_back() -> None:
    core = LosesCamera()
    scope = Microscope(core, settings())
    core.setROI(8, 8, 8, 8)
    with pytest.raises(HardwareError, match="exposure to 10 ms: camera lost"), scope.preserved():  # noqa: PT012
        scope.snap(exposure_ms=3.0, roi=(0, 0, 4, 4))
        core.setAutoShutter(False)
        core.lost = True
    assert core.roi == [8, 8, 8, 8]
    assert core.auto_shutter


def test_a_knob_outside_the_facade_moves_is_put_back_into_the_limits() -> None:
    core = FakeCore(low=-20, high=20)
    core.z = 9.5  # beyond the user's limit of 9, as a stage parked at the limit may read
    scope = Microscope(core, settings())
    with pytest.raises(ValueError, match="stop"), scope.preserved():  # noqa: PT012
        scope.knob("z").set(0.0)
        raise ValueError("stop")
    assert core.z == 9.0
    assert all(-9 <= command <= 9 for command in core.log)


def test_cancel_is_heard_before_the_next_exposure(raw: Any) -> None:
    scope = Microscope(raw, settings())
    scope.cancel.set()
    with pytest.raises(CancelledError):
        scope.snap()
    assert (scope.images, scope.dose) == (0, 0.0)


class Hangs(FakeCore):
    def getImage(self) -> Any:
        time.sleep(0.4)
        return super().getImage()


def test_a_camera_that_hangs_is_given_up() -> None:
    with pytest.raises(HardwareError, match=r"camera 'Camera' has not delivered an image within 0\.06 s"):
        Microscope(Hangs(), settings(snap_timeout_s=0.05)).snap()


def test_the_camera_that_hangs_is_named() -> None:
    with pytest.raises(HardwareError, match="camera 'Side'"):
        Microscope(Hangs(), settings(snap_timeout_s=0.05)).snap(camera="Side")


@pytest.mark.parametrize("refused", ["setROI", "setExposure", "setProperty"])
def test_an_imaging_setting_that_is_refused_is_a_hardware_error(refused: str) -> None:
    core = FakeCore()

    def refuse(*args: Any) -> None:
        raise RuntimeError("not now")

    setattr(core, refused, refuse)
    scope = Microscope(core, settings(roi=(0, 0, 8, 8), exposure_ms=3.0, binning=2))
    with pytest.raises(HardwareError, match="refused: not now"):
        scope.apply_imaging()


# ---------------------------------------------------------------- what cannot be used
def make_no_camera(core: Any) -> None:
    core.setCameraDevice("")


def make_no_focus(core: Any) -> None:
    core.setFocusDevice("")


def nothing(core: Any) -> None:
    pass


UNUSABLE: dict[str, tuple[Callable[[Any], None], dict[str, Any], str]] = {
    "no camera": (make_no_camera, {}, r"no camera \(Core, Camera\)"),
    "unknown camera": (nothing, {"microscope": {"camera": "Andor"}}, r"camera = 'Andor' is not loaded; loaded are:"),
    "camera without z": (make_no_focus, {}, r"no default focus stage \(Core, Focus\)"),
    "unknown stage": (nothing, {"knobs": {"z": {"device": "PZ", "limits": [0, 1]}}}, r"device = 'PZ' is not loaded"),
    "unknown group": (nothing, {"microscope": {"channel": "Colour/DAPI"}}, r"'Colour/DAPI' does not exist; .*FITC"),
    "unknown preset": (nothing, {"microscope": {"channel": "Channel/Cy5"}}, r"'Channel/Cy5' does not exist; .*FITC"),
    "no limits": (nothing, {"knobs": {"z": {}}}, r"does not say how far it may move.*\[knobs\.z\] limits"),
    "unknown property": (
        nothing, {"knobs": {"g": {"device": "Camera", "axis": "property", "property": "Gian"}}},
        r"'Camera' has no property 'Gian'",
    ),
    "beyond the device": (
        nothing, {"knobs": {"g": {"device": "Camera", "axis": "property", "property": "Gain", "limits": [-99, 1]}}},
        r"limits = \[-99, 1\] reach beyond those of device 'Camera', \[-5, 8\]",
    ),
    "property of nothing": (
        nothing, {"knobs": {"g": {"axis": "property", "property": "Gain"}}}, r"must say which device has it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_is_missing_is_said_before_anything_moves(raw: Any, case: str) -> None:
    prepare, changes, message = UNUSABLE[case]
    prepare(raw)
    before = state(raw)
    with pytest.raises(SettingsError, match=message):
        Microscope(raw, Settings.parse({"knobs": {"z": {"limits": [-9, 9]}}, **changes}))
    assert state(raw) == before


def test_a_core_is_recognized_or_refused() -> None:
    with pytest.raises(HardwareError, match="dict is not a Micro-Manager core"):
        PortableCore({})


def test_an_unknown_knob_names_those_there_are(raw: Any) -> None:
    with pytest.raises(SettingsError, match=r"no knob 'stigmator'; the settings have z\."):
        Microscope(raw, settings()).knob("stigmator")


# ---------------------------------------------------------------- other knobs
def test_xy_axes_and_properties_are_knobs(raw: Any) -> None:
    knobs = {
        "x": {"axis": "x", "limits": [-50, 50]},
        "y": {"axis": "y", "limits": [-50, 50]},
        "gain": {"device": "Camera", "axis": "property", "property": "Gain"},
    }
    scope = Microscope(raw, Settings.parse({"knobs": knobs}))
    scope.knob("y").set(7.005)
    scope.knob("x").set(-3.0)
    assert (raw.getXPosition(), raw.getYPosition()) == (pytest.approx(-3.0, abs=0.1), pytest.approx(7.0, abs=0.1))
    scope.knob("gain").set(3)
    assert float(raw.getProperty("Camera", "Gain")) == 3.0
    with pytest.raises(LimitError):
        scope.knob("gain").set(9)


# ---------------------------------------------------------------- optics
@pytest.mark.parametrize(
    ("optics", "pixel_um", "expected"),
    [
        ({"na": 0.75, "wavelength_um": 0.46}, 0.325, 0.46 / 0.5625 + 0.325 / 0.75),
        ({"na": 1.4, "wavelength_um": 0.52, "immersion_index": 1.515}, 0.0, 1.515 * 0.52 / 1.96),
        ({"na": 0.1, "wavelength_um": 0.5}, 6.5, 0.5 / 0.01 + 65.0),
        ({"na": 0.75, "depth_of_field_um": 3.5}, 0.325, 3.5),
    ],
)
def test_depth_of_field(raw: Any, optics: dict[str, float], pixel_um: float, expected: float) -> None:
    if pixel_um:
        raw.definePixelSizeConfig("res", "Core", "AutoShutter", "1")
        raw.setPixelSizeUm("res", pixel_um)
    scope = Microscope(raw, Settings.parse({"microscope": optics, "knobs": {"z": {"limits": [-9, 9]}}}))
    assert scope.depth_of_field_um == pytest.approx(expected)
    assert scope.pixel_um == (pixel_um or None)


def test_depth_of_field_needs_na_or_a_value(raw: Any) -> None:
    with pytest.raises(SettingsError, match="needs depth_of_field_um, or na"):
        _ = Microscope(raw, Settings.parse({"knobs": {"z": {"limits": [-9, 9]}}})).depth_of_field_um
