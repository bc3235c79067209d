"""Names every private or experimental thing of pymmcore-plus and pycro-manager that we use: an upgrade fails here."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

import pytest
from contract_devices import Camera, Stage, device

UNICORE = "pymmcore_plus.experimental.unicore.core._unicore"

ATTRIBUTES = [
    ("pymmcore_plus.experimental.unicore", "UniMMCore", "loadPyDevice isPyDevice load_py_device"),
    (
        UNICORE,
        "UniMMCore",
        "_set_current_if_pydevice _do_snap_image _do_shutter_open _current_image_buffer _reset_python "
        "_do_start_sequence_acquisition _do_start_continuous_sequence_acquisition",
    ),
    (UNICORE, "_CoreDevice", "set_current current"),
    ("pymmcore_plus.experimental.unicore._device_manager", "PyDeviceManager", "get_initialization_state __iter__"),
    ("pymmcore_plus.experimental.unicore", "Device", "_TYPE initialize get_label type locked register_property"),
    ("pymmcore_plus.mda", "MDAEngine", "_execute_autofocus _set_event_z setup_sequenced_event event_iterator mmcore"),
    ("pymmcore_plus.core._sequencing", "SequencedEvent", "model_copy"),
    ("pymmcore", "CMMCore", "registerCallback"),
    ("mmpycorex.launcher", "_PYMMCORES", "insert"),
    ("pycromanager.acquisition.acq_eng_py.internal.engine", "Engine", "get_instance shutdown"),
    ("pycromanager.acquisition.acq_eng_py.main.AcqEngPy_Acquisition", "Acquisition", "abort get_before_z_hooks"),
]


@pytest.mark.parametrize(("module", "owner", "names"), ATTRIBUTES)
def test_attributes(module: str, owner: str, names: str) -> None:
    thing = getattr(import_module(module), owner)
    assert [name for name in names.split() if not hasattr(thing, name)] == []


SIGNATURES = [
    (UNICORE, "UniMMCore._set_current_if_pydevice", "self keyword label"),
    (UNICORE, "UniMMCore._do_snap_image", "self"),
    (
        UNICORE,
        "UniMMCore._do_start_sequence_acquisition",
        "self cameraLabel numImages intervalMs stopOnOverflow",
    ),
    (UNICORE, "UniMMCore._do_start_continuous_sequence_acquisition", "self intervalMs"),
    (UNICORE, "UniMMCore._do_shutter_open", "self shutterLabel state"),
    (UNICORE, "UniMMCore.setProperty", "self label propName propValue"),
    (UNICORE, "UniMMCore.defineConfig", "self groupName configName deviceLabel propName value"),
    (UNICORE, "UniMMCore.deleteConfig", "self groupName configName deviceLabel propName"),
    (UNICORE, "UniMMCore.saveSystemConfiguration", "self filename prefix_py_devices"),
    (UNICORE, "UniMMCore.getImage", "self numChannel fix"),
    (UNICORE, "UniMMCore.popNextImageMD", "self args"),
    ("pymmcore_plus.mda", "MDAEngine._execute_autofocus", "self action"),
    ("pymmcore_plus.mda", "MDAEngine._set_event_z", "self event"),
    ("pymmcore_plus.mda", "MDAEngine.setup_sequenced_event", "self event"),
    ("pycromanager.acquisition.acq_eng_py.internal.engine", "Engine", "core"),
    ("pycromanager.acquisition.acq_eng_py.main.AcqEngPy_Acquisition", "Acquisition.abort", "self e"),
]


@pytest.mark.parametrize(("module", "path", "parameters"), SIGNATURES)
def test_signatures(module: str, path: str, parameters: str) -> None:
    thing: Any = import_module(module)
    for name in path.split("."):
        thing = getattr(thing, name)
    assert list(signature(thing).parameters) == parameters.split()


def test_attributes_of_instances(core: Any) -> None:
    assert core._pycore.current("Camera") == "Cam"
    assert "Cam" in core._pydevices
    assert next(iter(core._pydevices)) == "Cam"
    assert core._py_config_groups == {}
    assert core._pydevices["Cam"]._initialized_ is True
    assert isinstance(core.mda.engine._z_correction, dict)
    assert core._acquisition_thread is None


def test_mmpycorex_names_like_we_do() -> None:
    from mmpycorex.launcher import _camel_to_snake
    from pymmcore_plus.experimental.unicore import UniMMCore

    from mm_autofocus_devices.snake_case import camel_to_snake

    for name in dir(UniMMCore):
        assert camel_to_snake(name) == _camel_to_snake(name)


# ------------------------------------------------ the faults of UniMMCore that AutofocusCore is there to cure


@pytest.fixture
def stock() -> Any:
    import mm_test_adapters
    from pymmcore_plus.experimental.unicore import UniMMCore

    core = UniMMCore(adapter_paths=[mm_test_adapters.device_adapter_path()])
    core.loadPyDevice("Cam", Camera())
    core.loadPyDevice("Cam2", Camera())
    core.loadPyDevice("Z", Stage())
    core.loadDevice("DCam", "DemoCamera", "DCam")
    core.loadDevice("DZ", "DemoCamera", "DStage")
    core.initializeAllDevices()
    core.setCameraDevice("Cam")
    core.setFocusDevice("Z")
    return core


def test_stock_keeps_python_roles(stock: Any) -> None:
    stock.setCameraDevice("DCam")
    stock.setFocusDevice("DZ")
    assert (stock.getCameraDevice(), stock.getFocusDevice()) == ("Cam", "Z")


def test_stock_refuses_python_roles_as_properties(stock: Any) -> None:
    with pytest.raises(ValueError, match="Cam2"):
        stock.setProperty("Core", "Camera", "Cam2")


def test_stock_knows_no_python_autofocus(stock: Any) -> None:
    from contract_devices import Autofocus

    stock.loadPyDevice("AF", Autofocus())
    with pytest.raises(ValueError, match="AutoFocus to invalid value"):
        stock.setAutoFocusDevice("AF")


def test_stock_hands_out_another_cameras_image(stock: Any) -> None:
    device(stock, "Cam2").value = 9
    stock.snapImage()
    stock.setCameraDevice("Cam2")
    assert stock.getImage().max() == 1


def test_stock_does_not_open_the_shutter_for_a_python_camera(stock: Any) -> None:
    stock.loadDevice("DShutter", "DemoCamera", "DShutter")
    stock.initializeDevice("DShutter")
    stock.setShutterDevice("DShutter")
    stock.setAutoShutter(True)
    seen: list[bool] = []
    device(stock, "Cam").on_snap = lambda: seen.append(stock.getShutterOpen())
    stock.snapImage()
    assert seen == [False]


def test_stock_run_without_a_shutter_fails(stock: Any) -> None:
    import useq

    stock.setShutterDevice("")
    stock.setAutoShutter(True)
    with pytest.raises(RuntimeError, match='No device with label ""'):
        stock.mda.run([useq.MDAEvent()])


def test_stock_swallows_a_failed_initialization(stock: Any) -> None:
    from contract_devices import Instrument

    stock.loadPyDevice("Thing", Instrument())
    stock.setProperty("Thing", "Host", "nowhere")
    stock.initializeDevice("Thing")
    assert stock.getDeviceInitializationState("Thing").name == "InitializationFailed"


def test_device_lock_is_not_reentrant(stock: Any) -> None:
    with device(stock, "Cam") as camera:
        assert not camera.lock(blocking=False)
