"""The SEM behind TCP through a real Micro-Manager core: sem.cfg, its roles, units, limits, dose and blanked beam."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pymmcore
import pytest

from mm_autofocus import Autofocus, Settings, Status
from mm_autofocus.errors import HardwareError, LimitError
from mm_autofocus.microscope import Microscope
from mm_autofocus.request import Event
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.sem import protocol, registry
from mm_autofocus_devices.sem import server as sem_server
from mm_autofocus_devices.sem.instrument import SemClient
from mm_autofocus_devices.sem.server import SemServer
from mm_autofocus_devices.transport import Fault, FaultKind, ProtocolError, RemoteError
from sem_rig import CONFIGS, configuration, knobs, load, make_column, until


@pytest.fixture
def server() -> Iterator[SemServer]:
    with SemServer(make_column()) as server:
        yield server


@pytest.fixture
def core(server: SemServer, tmp_path: Path) -> Iterator[AutofocusCore]:
    core = load(configuration(tmp_path, server.port))
    yield core
    core.unloadAllDevices()


def snap(core: AutofocusCore) -> Any:
    core.snapImage()
    return core.getImage()


def sem_settings(**changes: Any) -> Settings:
    values = Settings.load(CONFIGS / "sem.toml").model_dump(exclude_unset=True)
    return Settings.parse({**values, "strategy": "sweep", "map": {"enabled": False}, **changes})


def test_the_configuration_gives_every_device_its_role(core: AutofocusCore, server: SemServer) -> None:
    assert core.getCameraDevice() == "Camera"
    assert core.getFocusDevice() == "WorkingDistance"
    assert core.getXYStageDevice() == "XY"
    assert core.getAutoFocusDevice() == "Autofocus"
    assert knobs(core) == (4500.0, 0.0, 0.0)
    assert core.getPropertyLowerLimit("WorkingDistance", "Position") == 2000
    assert core.getPropertyUpperLimit("WorkingDistance", "Position") == 20000
    assert server.transport.clients == 1  # five devices share one connection


@pytest.mark.parametrize(("name", "distance"), [("sem", 4500.0), ("sem_b", 6000.0)])
def test_the_shipped_files_fit_each_other(name: str, distance: float, tmp_path: Path) -> None:
    with SemServer(make_column("B" if name == "sem_b" else "A")) as server:
        core = load(configuration(tmp_path, server.port, name=name))
        values = Settings.load(CONFIGS / f"{name}.toml").model_dump(exclude_unset=True)
        scope = Microscope(core, Settings.parse({**values, "strategy": "sweep"}))
        assert list(scope.knobs) == ["z", "stig_x", "stig_y"]
        assert scope.knob("z").get() == distance
        assert scope.depths == {"z": 2.0, "stig_x": 0.5, "stig_y": 0.5}
        assert f"Settings,{name}.toml" in (CONFIGS / f"{name}.cfg").read_text(encoding="utf-8")
        core.unloadAllDevices()


@pytest.mark.parametrize("name", ["sem", "sem_b"])
def test_stock_micro_manager_loads_the_file(name: str) -> None:
    core = pymmcore.CMMCore()
    core.loadSystemConfiguration(str(CONFIGS / f"{name}.cfg"))
    assert tuple(core.getLoadedDevices()) == ("Core",)


def test_the_configuration_survives_saving(core: AutofocusCore, tmp_path: Path) -> None:
    core.saveSystemConfiguration(tmp_path / "saved.cfg")
    core.unloadAllDevices()
    core.loadSystemConfiguration(tmp_path / "saved.cfg")
    assert core.getFocusDevice() == "WorkingDistance"
    assert core.getPixelSizeUm() == pytest.approx(0.010)
    core.setProperty("Column", "PixelSizeNm", 50)
    assert core.getPixelSizeUm() == pytest.approx(0.050)


def test_the_pixel_size_follows_the_column(core: AutofocusCore, server: SemServer) -> None:
    presets = core.getAvailablePixelSizeConfigs()
    assert len(presets) > 15
    for preset in presets:
        nanometres = float(preset.removesuffix(" nm"))
        core.setProperty("Column", "PixelSizeNm", nanometres)
        assert core.getCurrentPixelSizeConfig() == preset
        assert core.getPixelSizeUm() == pytest.approx(nanometres / 1000)
        assert core.getPixelSizeUm(True) == pytest.approx(nanometres / 1000)
        assert core.get_pixel_size_um() == pytest.approx(nanometres / 1000)
    core.setProperty("Column", "Magnification", 114.3e6 / (320 * 20))
    assert core.getPixelSizeUm() == pytest.approx(0.020)
    assert tuple(core.getPixelSizeAffine()) == tuple(core.getPixelSizeAffineByID("20 nm"))
    core.setProperty("Column", "PixelSizeNm", 7.7)
    assert core.getPixelSizeUm() == 0
    assert server.column.pixel_nm == 7.7


def test_frames_dwell_and_exposure(core: AutofocusCore, server: SemServer) -> None:
    for frame, (width, height) in (("320x240", (320, 240)), ("512x384", (512, 384))):
        core.setProperty("Camera", "FrameSize", frame)
        assert core.getProperty("Camera", "FrameSize") == frame
        assert snap(core).shape == (height, width)
        for dwell in (50, 100, 200.0, "400", 800):
            core.setProperty("Camera", "DwellTimeNs", dwell)
            assert core.getExposure() == pytest.approx(float(dwell) * 1e-6 * width * height)
            exposure = core.getExposure()
            core.setExposure(exposure)
            assert core.getExposure() == exposure  # what is read can be written back exactly
    core.setExposure(13.0)
    assert core.getProperty("Camera", "DwellTimeNs") == 50
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(HardwareError, match="above 0"):
            core.setExposure(wrong)
    for name, value in (("DwellTimeNs", 300), ("FrameSize", "640x480"), ("Binning", 2)):
        with pytest.raises((HardwareError, ValueError)):
            core.setProperty("Camera", name, value)
    assert server.column.frame == (512, 384)


def test_a_region_of_interest_is_a_reduced_scan(core: AutofocusCore, server: SemServer) -> None:
    whole = snap(core).astype(float)
    exposure, clock = core.getExposure(), server.column.clock_s
    core.setROI(64, 32, 128, 96)
    assert list(core.getROI()) == [64, 32, 128, 96]
    assert core.getExposure() == exposure
    part = snap(core).astype(float)
    assert part.shape == (96, 128)
    assert server.column.clock_s - clock == pytest.approx(exposure / 1000 * 1.08 * 128 * 96 / (320 * 240))
    assert np.corrcoef(part.ravel(), whole[32:128, 64:192].ravel())[0, 1] > 0.8
    with pytest.raises(HardwareError, match="does not lie in the frame"):
        core.setROI(300, 0, 64, 64)
    assert list(core.getROI()) == [64, 32, 128, 96]
    core.setProperty("Camera", "FrameSize", "512x384")
    assert list(core.getROI()) == [0, 0, 512, 384]


def test_all_settings_reach_the_column(core: AutofocusCore, server: SemServer) -> None:
    core.setPosition(4512.5)
    core.setXYPosition("Stigmators", 1.5, -2.25)
    core.setXYPosition(30.0, -40.0)
    for name, value in (("ScanRotation", 90), ("Brightness", 40), ("Contrast", 60)):
        core.setProperty("Column", name, value)
        assert core.getProperty("Column", name) == value
    column = server.column
    assert (column.working_distance_um, column.stig_x, column.stig_y) == (4512.5, 1.5, -2.25) == knobs(core)
    assert (column.x_um, column.y_um) == (30.0, -40.0) == tuple(core.getXYPosition())
    assert (column.scan_rotation_deg, column.brightness, column.contrast) == (90, 40, 60)
    for what in (
        lambda: core.setPosition(float("nan")),
        lambda: core.setXYPosition(1e9, 0.0),
        lambda: core.setProperty("Column", "Magnification", -1),
        lambda: core.setProperty("Column", "PixelSizeNm", 5000),
        lambda: core.setProperty("Column", "Brightness", 400),
        lambda: core.home("WorkingDistance"),
        lambda: core.setOrigin("WorkingDistance"),
        lambda: core.setOriginXY("XY"),
    ):
        with pytest.raises((HardwareError, ValueError)):
            what()
    assert knobs(core) == (4512.5, 1.5, -2.25)
    assert not column.frames


def test_the_beam_is_blanked_but_during_a_frame_and_dose_is_counted(core: AutofocusCore, server: SemServer) -> None:
    column = server.column
    seen: list[bool] = []
    scan = column.scan
    column.scan = lambda roi=None: (seen.append(column.blanked), scan(roi))[1]  # type: ignore[method-assign, func-returns-value]
    assert column.blanked
    assert core.getProperty("Column", "BeamBlank") == 1
    cost = core.getProperty("Column", "FrameDose")
    assert cost == pytest.approx(column.frame_dose())
    core.setProperty("Camera", "DwellTimeNs", 400)
    assert core.getProperty("Column", "FrameDose") == pytest.approx(2 * cost)
    core.setProperty("Column", "PixelSizeNm", 20)
    assert core.getProperty("Column", "FrameDose") == pytest.approx(cost / 2)
    snap(core)
    snap(core)
    assert seen == [False, False]
    assert column.blanked
    assert core.getProperty("Column", "DoseElectronsPerNm2") == pytest.approx(cost) == column.dose
    core.setProperty("Column", "BeamBlank", 0)
    assert not column.blanked
    snap(core)
    assert column.blanked
    core.setProperty("Column", "BeamBlank", 0)
    core.unloadAllDevices()
    until(lambda: column.blanked, "the client left and the beam stayed on")


def test_a_beam_left_on_by_hand_goes_off(
    core: AutofocusCore, server: SemServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sem_server, "BEAM_ON_S", 0.05)
    core.setProperty("Column", "BeamBlank", "0")
    until(lambda: server.column.blanked, "the beam stayed on")


def test_the_beam_is_off_after_an_error_in_a_frame(core: AutofocusCore, server: SemServer) -> None:
    column = server.column

    def broken(roi: Any = None) -> Any:
        raise HardwareError(f"the detector is off (roi {roi})")

    scan, column.scan = column.scan, broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the detector is off"):
        core.snapImage()
    assert column.blanked
    column.scan = scan  # type: ignore[method-assign]
    assert snap(core).shape == (240, 320)


def test_a_sequence(core: AutofocusCore) -> None:
    core.startSequenceAcquisition(3, 0, True)
    deadline = time.monotonic() + 30
    while core.isSequenceRunning() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert core.getRemainingImageCount() == 3
    assert core.popNextImage().shape == (240, 320)


def test_focusing_costs_its_dose_and_puts_the_imaging_back(core: AutofocusCore, server: SemServer) -> None:
    core.setPosition(4506.0)
    core.setXYPosition("Stigmators", 0.25, -0.5)
    core.setROI(0, 0, 256, 192)
    before = (core.getExposure(), list(core.getROI()), core.getProperty("Camera", "FrameSize"))
    settings = sem_settings(strategies={"sweep": {"range_um": 40, "exposure_ms": 31.0}})
    autofocus = Autofocus(core, settings)
    result = autofocus.at(Event(axes={"p": 0})).result
    assert result is not None
    assert result.status is Status.CONVERGED, result
    assert abs(server.column.truth().defocus_um) < 1.0
    assert (core.getExposure(), list(core.getROI()), core.getProperty("Camera", "FrameSize")) == before
    assert knobs(core)[1:] == (0.25, -0.5)
    assert result.dose == pytest.approx(server.column.dose)
    assert server.column.blanked


@pytest.mark.parametrize(
    ("mode", "name", "knob", "by"),
    [
        ("ignored", "working_distance_um", "z", 5.0),
        ("ignored", "stig_x", "stig_x", 1.0),
        ("clamped", "working_distance_um", "z", 5.0),
        ("clamped", "stig_y", "stig_y", 1.0),
    ],
)
def test_a_knob_that_the_server_ignores_or_clamps_is_noticed(
    core: AutofocusCore, server: SemServer, mode: str, name: str, knob: str, by: float
) -> None:
    scope = Microscope(core, sem_settings())
    start = scope.knob(knob).get()
    if mode == "ignored":
        server.ignored.add(name)
    else:
        server.clamped[name] = (start - by / 10, start + by / 10)
    with pytest.raises(HardwareError, match=r"clamped or\s+ignores") as caught:
        scope.knob(knob).set(start + by)
    assert f"knob {knob!r}" in str(caught.value)
    assert abs(scope.knob(knob).get() - start) <= by / 10


@pytest.mark.parametrize("mode", ["ignored", "clamped"])
def test_focusing_with_such_a_knob_is_not_called_converged(core: AutofocusCore, server: SemServer, mode: str) -> None:
    core.setPosition(4506.0)
    if mode == "ignored":
        server.ignored.add("working_distance_um")
    else:
        server.clamped["working_distance_um"] = (4505.0, 4507.0)
    autofocus = Autofocus(core, sem_settings(failure={"failed": "stay"}))
    result = autofocus.at(Event(axes={"p": 0})).result
    assert result is not None
    assert result.status is Status.FAILED
    assert re.search(r"clamped or\s+ignores", result.reason)
    assert knobs(core) == (4506.0, 0.0, 0.0)
    assert server.column.blanked


def test_the_knobs_limits_hold_on_this_side(core: AutofocusCore, server: SemServer) -> None:
    scope = Microscope(core, sem_settings())
    requests = server.transport.requests
    with pytest.raises(LimitError, match="outside its limits"):
        scope.knob("z").set(4700.0)
    assert server.transport.requests == requests
    assert server.column.working_distance_um == 4500.0


def test_no_server_is_said_when_the_configuration_is_loaded(tmp_path: Path) -> None:
    with SemServer(make_column()) as server:
        port = server.port
    core = AutofocusCore()
    with pytest.raises(RuntimeError, match=rf"127.0.0.1:{port}.*Is\s+it running"):
        core.loadSystemConfiguration(configuration(tmp_path, port))
    assert list(core.getLoadedDevices()) == ["Core"]
    assert not registry._entries


def test_a_device_before_initialization_says_so() -> None:
    from mm_autofocus_devices.sem.devices import SemCamera, SemColumn

    core = AutofocusCore()
    core.loadPyDevice("Camera", SemCamera())
    core.loadPyDevice("Column", SemColumn())
    with pytest.raises(HardwareError, match="not initialized"):
        core.getProperty("Column", "FrameDose")
    core.unloadAllDevices()


# ---------------------------------------------------------------- the client and the server, without Micro-Manager


def test_a_request_is_applied_completely_or_not_at_all(server: SemServer) -> None:
    with SemClient(server.host, server.port) as sem:
        for wrong in (
            {"stig_x": 1.0, "brightness": 400.0},
            {"stig_x": 1.0, "x_um": 1e9},
            {"stig_x": 1.0, "magnification": 0.0},
            {"stig_x": 1.0, "dwell_ns": -1.0},
            {"stig_x": 1.0, "width": 640, "height": 480},
        ):
            with pytest.raises(RemoteError, match="nothing was set") as caught:
                sem.set(**wrong)
            assert caught.value.code == "limit"
        for contradictory in ({"width": 320}, {"pixel_nm": 5.0, "magnification": 5.0}, {"nonsense": 1.0}):
            with pytest.raises(ProtocolError):
                sem.set(**contradictory)
            with pytest.raises(RemoteError) as caught:  # and the server does not rely on the client's check
                sem.client.request("set", **contradictory)
            assert caught.value.code == "invalid"
        assert sem.state().stig_x == 0.0
        assert sem.set(stig_x=1.0, width=320, height=240).width == 320
        with pytest.raises(RemoteError, match="does not lie in the frame"):
            sem.scan((300, 0, 100, 100))
        with pytest.raises(RemoteError, match="knows no request"):
            sem.client.request("fly")


def test_a_restarted_server_is_given_its_settings_back() -> None:
    with SemServer(make_column()) as first:
        port = first.port
        sem = SemClient("127.0.0.1", port, timeout_s=5.0)
        before = sem.set(working_distance_um=4511.0, stig_y=-1.5, pixel_nm=25.0, dwell_ns=400.0, width=512, height=384)
        sem.set(blanked=False)
    with SemServer(make_column(), port=port) as second:
        image = sem.scan()
        assert image.shape == (384, 512)
        after = sem.state()
        for name in protocol.RESTORED:
            assert getattr(after, name) == getattr(before, name), name
        assert second.column.blanked
        sem.close()


def test_a_restarted_server_that_does_not_take_them_back_is_an_error() -> None:
    with SemServer(make_column()) as first:
        port = first.port
        sem = SemClient("127.0.0.1", port, timeout_s=5.0)
        sem.set(working_distance_um=4511.0)
    with SemServer(make_column(), port=port, ignored={"working_distance_um"}):
        for _ in range(2):  # it does not wear off
            with pytest.raises(HardwareError, match=r"working_distance_um is 4500\.0, not 4511\.0"):
                sem.scan()
        sem.close()


def test_a_lost_frame_is_not_scanned_again(server: SemServer) -> None:
    with SemClient(server.host, server.port) as sem:
        server.faults.add(Fault(FaultKind.CLOSE_AFTER, "scan"))
        sem.scan()
        assert server.column.frames == 1


def test_a_frame_of_another_size_is_refused(server: SemServer) -> None:
    with SemClient(server.host, server.port) as sem:
        server.column.scan = lambda roi=None: np.zeros((10, 10), np.uint8)  # type: ignore[method-assign]
        with pytest.raises(ProtocolError, match="10x10 pixels where 1024x768 were asked for"):
            sem.scan()
