"""The simulated plate microscope through a real Micro-Manager core and plate.cfg."""

import math
import time
from pathlib import Path

import numpy as np
import pymmcore
import pytest
from pymmcore_plus import DeviceInitializationState

import mm_autofocus_devices
from mm_autofocus.errors import LimitError
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.plate import discard_instrument, open_instrument

CONFIG = Path(mm_autofocus_devices.__path__[0]) / "configs" / "plate.cfg"


@pytest.fixture
def core():
    discard_instrument()
    core = AutofocusCore()
    core.loadSystemConfiguration(CONFIG)
    yield core
    core.unloadAllDevices()
    discard_instrument()


def focused(core):
    scope = open_instrument()
    core.setPosition(scope.true_focus_um() - 1)
    core.waitForDevice("Z")
    core.setPosition(scope.true_focus_um())
    core.waitForDevice("Z")
    return scope


def snap(core):
    core.snapImage()
    return core.getImage()


def test_configuration_gives_every_device_its_role(core):
    for label in ("Camera", "Z", "XY", "Filter", "Shutter"):
        assert core.getDeviceInitializationState(label) is DeviceInitializationState.InitializedSuccessfully
    assert core.getCameraDevice() == "Camera"
    assert core.getFocusDevice() == "Z"
    assert core.getXYStageDevice() == "XY"
    assert core.getShutterDevice() == "Shutter"
    assert core.getAutoShutter()
    assert core.getChannelGroup() == "Channel"
    assert set(core.getAvailableConfigs("Channel")) == {"DAPI", "FITC", "Brightfield"}
    assert core.getPixelSizeUm() == pytest.approx(0.325)
    assert core.getExposure() == 50


def test_stock_core_loads_the_file():
    core = pymmcore.CMMCore()
    core.loadSystemConfiguration(str(CONFIG))
    assert tuple(core.getLoadedDevices()) == ("Core",)


def test_configuration_survives_saving(core, tmp_path):
    core.saveSystemConfiguration(tmp_path / "saved.cfg")
    core.loadSystemConfiguration(tmp_path / "saved.cfg")
    assert core.getFocusDevice() == "Z"
    assert core.getPixelSizeUm() == pytest.approx(0.325)
    assert set(core.getAvailableConfigs("Channel")) == {"DAPI", "FITC", "Brightfield"}


def test_channels_are_different_images_of_one_place(core):
    scope = focused(core)
    images = {}
    for name in ("DAPI", "FITC", "Brightfield"):
        core.setConfig("Channel", name)
        assert core.getCurrentConfig("Channel") == name
        images[name] = snap(core)
        assert scope.channel == name
    assert all(image.shape == (512, 512) and image.dtype == np.uint16 for image in images.values())
    assert images["Brightfield"].mean() > 5 * images["DAPI"].mean()


def test_focus_sharpens_the_image(core):
    scope = focused(core)
    sharp = np.var(np.diff(snap(core).astype(float), axis=0))
    core.setPosition(scope.true_focus_um() + 10)
    core.waitForDevice("Z")
    assert np.var(np.diff(snap(core).astype(float), axis=0)) < 0.5 * sharp


def test_binning_and_roi(core):
    focused(core)
    for text_or_number, side in ((2, 256), ("4", 128), (1, 512)):
        core.setProperty("Camera", "Binning", text_or_number)
        assert snap(core).shape == (side, side)
        assert core.getPixelSizeUm() == pytest.approx(0.325 * 512 / side)
    core.setROI(100, 50, 256, 128)
    assert list(core.getROI()) == [100, 50, 256, 128]
    assert snap(core).shape == (128, 256)
    core.clearROI()
    assert snap(core).shape == (512, 512)
    with pytest.raises(ValueError, match="Binning"):
        core.setProperty("Camera", "Binning", 3)


def test_sequence_acquisition(core):
    focused(core)
    core.setAutoShutter(False)
    core.setShutterOpen("Shutter", True)
    core.startSequenceAcquisition(4, 0, True)
    deadline = time.monotonic() + 20
    while core.isSequenceRunning() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert core.getRemainingImageCount() == 4
    assert core.popNextImage().mean() > 110


def test_limits_are_visible_and_hold(core):
    assert core.getPropertyLowerLimit("Z", "Position") == -250
    assert core.getPropertyUpperLimit("Z", "Position") == 250
    for bad in (250.1, -1e9, math.nan, math.inf):
        with pytest.raises(LimitError):
            core.setPosition(bad)
        with pytest.raises(ValueError, match="Position"):
            core.setProperty("Z", "Position", bad)
        with pytest.raises(LimitError):
            core.setXYPosition(bad * 1e6, 0.0)
    assert core.getPosition() == 0
    assert core.getXYPosition() == (0, 0)
    core.setProperty("Z", "Position", 5)
    core.waitForDevice("Z")
    assert core.getPosition() == 5
    assert float(core.getProperty("Z", "Position")) == 5


def test_xy_moves_to_other_cells(core):
    focused(core)
    here = snap(core).astype(float)
    core.setXYPosition(9000.0, -9000.0)
    core.waitForDevice("XY")
    assert core.getXYPosition() == (9000.0, -9000.0)
    assert np.corrcoef(here.ravel(), snap(core).astype(float).ravel())[0, 1] < 0.5


def test_shutter_decides_over_light(core):
    scope = focused(core)
    lit = snap(core).mean()
    assert not core.getShutterOpen("Shutter")  # opened for the exposure only
    assert scope.exposures[-1].light_ms == core.getExposure()
    core.setAutoShutter(False)
    core.setShutterOpen("Shutter", False)
    assert not core.getShutterOpen("Shutter")
    assert snap(core).mean() < lit - 50
    core.setProperty("Shutter", "State", "1")
    assert core.getShutterOpen("Shutter")
    assert scope.exposures[-1].light_ms == 0


def test_truth_is_not_to_be_found_in_properties_or_metadata(core):
    scope = focused(core)
    core.setPosition(scope.true_focus_um() + 7)
    core.waitForDevice("Z")
    image, metadata = core.snap(), dict(core.getTags()) if hasattr(core, "getTags") else {}
    assert image.any()
    truth = scope.exposures[-1]
    visible = [core.getProperty(d, p) for d in ("Camera", "Z", "XY", "Filter", "Shutter")
               for p in core.getDevicePropertyNames(d)]  # fmt: skip
    for value in [*visible, *metadata.values()]:
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        assert abs(number - truth.focus_z_um) > 1e-3
        assert abs(number - truth.defocus_um) > 1e-3 or number == 7


def test_options_come_from_properties(tmp_path):
    text = CONFIG.read_text()
    for line, other in (
        ("Seed,0", "Seed,5"), ("Wells,96", "Wells,24"), ("HeightSpanUm,100", "HeightSpanUm,250"),
        ("DriftUmPerHour,2", "DriftUmPerHour,0"), ("Specimen,fluorescence", "Specimen,beads"),
        ("BlankWells,", "BlankWells,C5;D6"),
    ):  # fmt: skip
        assert line in text
        text = text.replace(line, other)
    path = tmp_path / "other.cfg"
    path.write_text(text)
    discard_instrument()
    core = AutofocusCore()
    core.loadSystemConfiguration(path)
    options = open_instrument().options
    assert (options.seed, options.wells, options.height_span_um, options.drift_um_per_h) == (5, "24", 250.0, 0.0)
    assert (options.specimen, options.blank_wells) == ("beads", ("C5", "D6"))
    core.unloadAllDevices()


def test_the_instrument_lives_as_long_as_its_devices(core):
    first = open_instrument()
    core.unloadDevice("Shutter")
    assert open_instrument() is first
    core.unloadAllDevices()
    assert open_instrument() is not first


def test_script_options_hold_when_the_configuration_leaves_them_alone():
    discard_instrument()
    scope = open_instrument(seed=11, field_px=128)
    core = AutofocusCore()
    core.loadSystemConfiguration(CONFIG)
    assert open_instrument() is scope
    assert snap(core).shape == (128, 128)
    assert scope.options.seed == 11
    core.unloadAllDevices()


def test_faults_reach_the_core(core):
    scope = focused(core)
    scope.fail_next_snaps(1)
    with pytest.raises(RuntimeError, match="no image"):
        core.snapImage()
    core.snapImage()
    scope.stage_error()
    with pytest.raises(RuntimeError, match="has not moved"):
        core.setPosition(1.0)


def test_auto_shutter_opens_for_a_sequence_and_closes_after_it(core):
    core.setExposure(5)
    core.setAutoShutter(True)
    core.startSequenceAcquisition(3, 0, True)
    while core.isSequenceRunning() or core.getRemainingImageCount() < 3:
        time.sleep(0.005)
    until = time.monotonic() + 10
    while core.getShutterOpen() and time.monotonic() < until:
        time.sleep(0.005)
    assert not core.getShutterOpen()
    assert [e.light_ms > 0 for e in open_instrument().exposures] == [True] * 3
