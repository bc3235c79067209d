"""Configuration files with Python devices: AutofocusCore loads and saves them, stock Micro-Manager ignores its part."""

from __future__ import annotations

from pathlib import Path

import pymmcore
import pytest
from contract_devices import Camera, Instrument, device, empty_core

from mm_autofocus.errors import HardwareError

CFG = """\
Property,Core,Initialize,0
Device,DCam,DemoCamera,DCam
Device,DZ,DemoCamera,DStage
#py pyDevice,Cam,contract_devices,Camera
#py pyDevice,Z,contract_devices,Stage
#py pyDevice,AF,contract_devices,Autofocus
#py pyDevice,Thing,contract_devices,Instrument
#py Property,Thing,Host,10.0.0.1
Property,Core,Initialize,1
#py FocusDirection,Z,1
ConfigGroup,Chan,A,DCam,Binning,2
#py ConfigGroup,Chan,A,Thing,Volts,1.5
#py ConfigGroup,Chan,A,Core,Camera,Cam
ConfigGroup,Chan,B,Core,Camera,DCam
Property,Core,Camera,DCam
Property,Core,Focus,DZ
#py Property,Core,Focus,Z
#py Property,Core,AutoFocus,AF
Property,Core,AutoShutter,1
"""


def test_configuration_round_trip(tmp_path: Path) -> None:
    first, second = tmp_path / "first.cfg", tmp_path / "second.cfg"
    first.write_text(CFG)
    core = empty_core()
    core.loadSystemConfiguration(first)
    core.saveSystemConfiguration(second)
    saved = second.read_text()
    for line in (
        "#py Property,Core,AutoFocus,AF",
        "#py Property,Core,Focus,Z",
        "#py Property,Thing,Host,10.0.0.1",
        "#py ConfigGroup,Chan,A,Core,Camera,Cam",
        "#py ConfigGroup,Chan,A,Thing,Volts,1.5",
        "#py FocusDirection,Z,1",
        "ConfigGroup,Chan,B,Core,Camera,DCam",
    ):
        assert line in saved.splitlines()

    again = empty_core()
    again.loadSystemConfiguration(second)
    assert (again.getAutoFocusDevice(), again.getFocusDevice(), again.getCameraDevice()) == ("AF", "Z", "DCam")
    assert again.getProperty("Thing", "Host") == "10.0.0.1"
    again.setConfig("Chan", "A")
    assert (again.getCameraDevice(), again.getProperty("Thing", "Volts")) == ("Cam", 1.5)
    again.setConfig("Chan", "B")
    assert again.getCameraDevice() == "DCam"
    again.fullFocus()
    assert device(again, "Z").moves == [5.0]

    stock = pymmcore.CMMCore()
    stock.setDeviceAdapterSearchPaths(core.getDeviceAdapterSearchPaths())
    stock.loadSystemConfiguration(str(second))
    assert set(stock.getLoadedDevices()) == {"DCam", "DZ", "Core"}
    stock.setConfig("Chan", "B")


def test_configuration_with_a_device_that_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "broken.cfg"
    path.write_text(CFG.replace("10.0.0.1", "nowhere"))
    core = empty_core()
    with pytest.raises(RuntimeError, match=r"'Thing' \(Instrument\): no answer from nowhere:4000; is the instrument"):
        core.loadSystemConfiguration(path)
    assert core.getLoadedDevices() == ("Core",)
    path.write_text(CFG)
    core.loadSystemConfiguration(path)


def test_configuration_that_forgets_to_initialize(tmp_path: Path) -> None:
    path = tmp_path / "forgot.cfg"
    path.write_text("Property,Core,Initialize,0\n#py pyDevice,Thing,contract_devices,Instrument\n")
    core = empty_core()
    with pytest.raises(HardwareError, match=r"initializeAllDevices\(\) was not called"):
        core.loadSystemConfiguration(path)
    assert core.getLoadedDevices() == ("Core",)


def test_initialize_device_raises_the_devices_message() -> None:
    core = empty_core()
    core.loadPyDevice("Cam", Camera())
    core.loadPyDevice("Thing", Instrument())
    core.setProperty("Thing", "Host", "nowhere")
    with pytest.raises(HardwareError, match="no answer from nowhere"):
        core.initializeDevice("Thing")
    with pytest.raises(HardwareError, match="no answer from nowhere"):
        core.initializeAllDevices()
