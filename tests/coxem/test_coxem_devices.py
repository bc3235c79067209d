"""The SEM devices in the COXEM dialect: what it has works as natively, what it has not is absent or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pymmcore
import pytest
import useq

from mm_autofocus import Autofocus, Settings, Status, hookimpl
from mm_autofocus.errors import AcquisitionAborted, HardwareError
from mm_autofocus.request import Event
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.sem import coxem, registry
from mm_autofocus_devices.sem.coxem import CoxemClient, connect
from mm_autofocus_devices.sem.coxem_options import CoxemOptions
from mm_autofocus_devices.sem.coxem_server import CoxemServer, FileFault
from mm_autofocus_devices.transport import Fault, FaultKind
from sem_rig import BEST, CONFIGS, load, make_column, until

MAGNIFICATION = 35000
PIXEL_UM = 114.3e3 / MAGNIFICATION / 320
START_UM = BEST[0] + 5.0
POSITIONS = 2
LINE_FAULTS = [kind for kind in FaultKind if kind not in (FaultKind.WRONG_LENGTH, FaultKind.HUGE_LENGTH)]
"""Those two falsify lengths, and this dialect has none."""


def quick_column(seed: int = 1) -> Column:
    """A column at its best stigmators, which this dialect cannot reach."""
    column = make_column(seed=seed)
    column.frame = (320, 240)
    column.stig_x, column.stig_y = BEST[1:]
    return column


def options(images: Path, **changes: object) -> str:
    values = {
        "folder": images, "working_distance_mm": START_UM / 1e3, "magnification": MAGNIFICATION, "x_um": 0, "y_um": 0,
        "move_s": 0, **changes,
    }  # fmt: skip
    return "; ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def configuration(server: CoxemServer, times: tuple[float, float] = (2.0, 20.0), **changes: object) -> Path:
    """Write sem_coxem.cfg for this server, small frames, and a stage that is not waited for."""
    lines = []
    for line in (CONFIGS / "sem_coxem.cfg").read_text(encoding="utf-8").splitlines():
        if ",Port," in line:
            head = line.rpartition(",Port,")[0]
            lines += [f"{head},Port,{server.port}", f"{head},Timeout,{times[0]}", f"{head},RetryFor,{times[1]}"]
        elif ",Options," in line:
            lines.append(line.partition(",Options,")[0] + ",Options," + options(server.folder, **changes))
        elif "PixelSize" not in line:
            lines.append(line)
    lines += [f"#py ConfigPixelSize,now,Column,Magnification,{MAGNIFICATION}", f"#py PixelSize_um,now,{PIXEL_UM:.12g}"]
    path = server.folder.parent / "coxem.cfg"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def coxem_settings(**changes: Any) -> Settings:
    values = Settings.load(CONFIGS / "sem_coxem.toml").model_dump(exclude_unset=True)
    policy = dict.fromkeys(("failed", "timed_out", "no_signal", "low_confidence", "at_limit"), "stay")
    microscope = {**values["microscope"], "depth_of_field_um": 2.0}
    knobs = {"z": {**values["knobs"]["z"], "limits": (4400, 4600), "depth": 2.0}}
    chosen: dict[str, Any] = {
        **values, "microscope": microscope, "knobs": knobs, "map": {"enabled": False}, "failure": policy,
        "strategies": {"sweep": {"range_um": 30}}, **changes,
    }  # fmt: skip
    return Settings.parse(chosen)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CoxemServer]:
    with CoxemServer(quick_column(), tmp_path / "images", port=0) as server:
        yield server


@pytest.fixture
def client(server: CoxemServer) -> Iterator[CoxemClient]:
    with connect("127.0.0.1", server.port, 1.0, 10.0, options(server.folder)) as client:
        client.state()
        yield client


@pytest.fixture
def core(server: CoxemServer) -> Iterator[AutofocusCore]:
    core = load(configuration(server))
    yield core
    core.unloadAllDevices()


# ---------------------------------------------------------------- the devices


def test_the_devices_know_what_the_dialect_knows(core: AutofocusCore, server: CoxemServer) -> None:
    assert (core.getCameraDevice(), core.getFocusDevice(), core.getXYStageDevice()) == (
        "Camera", "WorkingDistance", "XY",
    )  # fmt: skip
    assert server.transport.clients == 1
    assert server.column.frames == 1  # the one that confirms what the options say
    assert core.getPosition() == START_UM == pytest.approx(server.column.working_distance_um)
    assert core.getProperty("Column", "Magnification") == MAGNIFICATION
    assert core.getPixelSizeUm() == pytest.approx(PIXEL_UM)
    assert core.getProperty("Camera", "FrameSize") == "320x240"
    core.setPosition(4498.76)
    assert core.getPosition() == 4498.76
    assert server.column.working_distance_um == pytest.approx(4498.76)
    core.setProperty("Column", "Magnification", 20000)
    core.setProperty("Column", "PixelSizeNm", 20)
    assert server.column.pixel_nm == pytest.approx(20)
    assert core.getProperty("Column", "Magnification") == pytest.approx(114.3e6 / 320 / 20)
    core.setXYPosition(30.0, -40.0)
    assert tuple(core.getXYPosition()) == (30.0, -40.0)
    core.snapImage()
    assert core.getImage().shape == (240, 320)
    assert (server.column.x_um, server.column.y_um) == (30.0, -40.0)
    assert server.column.blanked


def test_what_the_dialect_has_not_is_absent_or_refused(core: AutofocusCore, server: CoxemServer) -> None:
    frames = server.column.frames
    assert {"Magnification", "PixelSizeNm", "Frames"} <= set(core.getDevicePropertyNames("Column"))
    for name in ("Brightness", "Contrast", "ScanRotation", "BeamBlank", "FrameDose", "DoseElectronsPerNm2"):
        assert not core.hasProperty("Column", name)
    assert not core.hasProperty("Camera", "DwellTimeNs")
    assert core.getExposure() == 0.0
    core.setExposure(core.getExposure())
    for refused, why in (
        (lambda: core.setExposure(10.0), "cannot set the frame time"),
        (lambda: core.setPosition(5e6), "exceeds|outside|not in|limits"),
        (lambda: core.setXYPosition(1e9, 0.0), "outside"),
        (lambda: core.setProperty("Camera", "FrameSize", "1024x768"), "not in|allowed"),
        (lambda: core.setProperty("Column", "Magnification", -1), "outside"),
        (lambda: core.setPosition(float("nan")), "finite|limits|outside|exceeds"),
    ):
        with pytest.raises((HardwareError, ValueError), match=why):
            refused()
    assert server.column.frames == frames


def test_stigmators_and_an_unknown_stage_are_refused_when_loaded(server: CoxemServer) -> None:
    from mm_autofocus_devices.sem.devices import SemStigmators, SemXYStage

    for device, changes, why in (
        (SemStigmators, {}, "stig_x and stig_y can neither be told nor set"),
        (SemXYStage, {"x_um": None, "y_um": None}, "x_um and y_um can neither"),
        (SemXYStage, {"folder": "/no/such/folder"}, "does not exist"),
    ):
        core = AutofocusCore()
        core.loadPyDevice("It", device())
        for name, value in (
            ("Port", server.port),
            ("Dialect", "coxem"),
            ("Options", options(server.folder, **changes)),
        ):
            core.setProperty("It", name, value)
        with pytest.raises(HardwareError, match=re.sub(" ", r"\\s+", why)):
            core.initializeDevice("It")
        core.unloadAllDevices()
    assert not registry._entries


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "folder is missing; working_distance_mm is missing; magnification is missing"),
        ("folder=a; working_distance_mm=x; magnification=500", "working_distance_mm=x must be a number from 1 to 100"),
        ("folder=a; working_distance_mm=10; magnification=nan", "magnification=nan must be"),
        ("folder=a; working_distance_mm=10; magnification=500; mga=3", "'mga' is unknown"),
        ("folder=a; working_distance_mm=10; magnification=500; nonsense", "'nonsense' is unknown"),
        ("folder=a; working_distance_mm=10; magnification=500; x_um=3", "x_um and y_um belong together"),
    ],
)
def test_options_that_cannot_be_used(text: str, why: str) -> None:
    with pytest.raises(HardwareError, match=why):
        CoxemOptions.parse(text)


def test_options_belong_to_the_dialect_and_are_the_same_for_all_devices(server: CoxemServer) -> None:
    with pytest.raises(HardwareError, match="native dialect of the SEM has no options"):
        registry.attach(("native", "127.0.0.1", server.port), 1.0, 1.0, "folder=a")
    key = ("coxem", "127.0.0.1", server.port)
    sem = registry.attach(key, 1.0, 1.0, options(server.folder))
    with pytest.raises(HardwareError, match="different Options"):
        registry.attach(key, 1.0, 1.0, options(server.folder, move_s=3))
    registry.detach(key, sem)
    assert not registry._entries


def test_stock_micro_manager_loads_the_file() -> None:
    core = pymmcore.CMMCore()
    core.loadSystemConfiguration(str(CONFIGS / "sem_coxem.cfg"))
    assert tuple(core.getLoadedDevices()) == ("Core",)


def test_no_server_is_said_when_the_configuration_is_loaded(server: CoxemServer) -> None:
    path = configuration(server, (0.3, 0.5))
    server.stop()
    core = AutofocusCore()
    with pytest.raises(RuntimeError, match=r"Is\s+it running"):
        core.loadSystemConfiguration(path)
    assert not registry._entries


# ---------------------------------------------------------------- the client


def test_a_working_distance_costs_one_frame_and_a_second_image_another(
    client: CoxemClient, server: CoxemServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coxem, "REUSED_S", 60.0)
    frames = server.column.frames
    client.set(working_distance_um=4510.0)
    first = client.scan()
    assert server.column.frames == frames + 1
    assert not np.array_equal(first, client.scan())
    assert server.column.frames == frames + 2
    assert client.scan((10, 20, 30, 40)).shape == (40, 30)
    assert client.state().frames == server.column.frames
    client.set(working_distance_um=4511.0)
    client.set(x_um=3.0, y_um=0.0)
    client.scan()  # of another place: it gets a frame of its own
    assert server.column.frames == frames + 5
    monkeypatch.setattr(coxem, "REUSED_S", 0.0)
    client.set(working_distance_um=4512.0)
    client.scan()  # too long ago: likewise
    assert server.column.frames == frames + 7
    with pytest.raises(HardwareError, match="does not lie in the frame"):
        client.scan((300, 0, 30, 30))
    assert not list(server.folder.iterdir())


def test_what_cannot_be_said_is_refused_before_anything_is_sent(client: CoxemClient, server: CoxemServer) -> None:
    requests = server.transport.requests
    for values in (
        {"stig_x": 1.0}, {"brightness": 40.0}, {"blanked": True}, {"dwell_ns": 100.0}, {"width": 64, "height": 48},
        {"working_distance_um": 4510.0, "contrast": 3.0}, {"scan_rotation_deg": 0.0}, {"working_distance_um": 1e9},
    ):  # fmt: skip
        with pytest.raises(HardwareError):
            client.set(**values)
    assert server.transport.requests == requests
    assert client.set(width=320, height=240).width == 320  # as it is


@pytest.mark.parametrize("kind", LINE_FAULTS)
def test_a_fault_of_the_line_costs_frames_but_no_image(
    client: CoxemClient, server: CoxemServer, kind: FaultKind
) -> None:
    server.faults.add(Fault(kind, "WDMAG", times=2))
    assert client.set(working_distance_um=4512.0).working_distance_um == 4512.0
    assert client.scan().shape == (240, 320)
    assert server.column.working_distance_um == pytest.approx(4512.0)
    assert client.set(working_distance_um=4501.5).working_distance_um == 4501.5
    assert server.faults.struck == [("WDMAG", kind)] * 2  # half a reply is a reply: the second may strike later
    until(server.idle)
    client.scan()
    assert server.column.frames <= 8


@pytest.mark.parametrize("fault", list(FileFault))
def test_a_fault_of_the_files_costs_frames_but_no_image(server: CoxemServer, fault: FileFault) -> None:
    with connect("127.0.0.1", server.port, 1.0, 10.0, options(server.folder, image_s=0.6)) as client:
        client.set(working_distance_um=4560.0)
        far = client.scan()
        server.file_faults.append(fault)
        assert client.set(working_distance_um=4500.0).working_distance_um == 4500.0
        near = client.scan()
        assert near.std() > 1.5 * far.std()  # it is the image of the present working distance, not the one before
        assert server.written.count(fault.value) == 1
        again = fault in (
            FileFault.STALE_ONLY, FileFault.NO_IMAGE, FileFault.NO_TEXT, FileFault.NEVER_COMPLETE, FileFault.DAMAGED,
        )  # fmt: skip
        assert server.column.frames == 3 + again


def test_an_image_that_comes_after_its_time_is_not_taken_for_that_of_another_place(server: CoxemServer) -> None:
    with connect("127.0.0.1", server.port, 1.0, 1.0, options(server.folder, image_s=0.25)) as client:
        client.retry_s = 0.1
        client.scan()
        here = client.scan().astype(float)
        server.wait_s = 0.7
        server.file_faults.append(FileFault.LATE)
        with pytest.raises(HardwareError, match=r"none\s+came to .* no file appeared"):
            client.scan()
        until(server.idle)  # now it lies there, with the settings that are asked for next
        client.set(x_um=1.0, y_um=0.7)
        there = client.scan().astype(float)
        assert np.corrcoef(here.ravel(), there.ravel())[0, 1] < 0.5
        assert (client.state().x_um, client.state().y_um) == (1.0, 0.7)


def test_a_stage_move_is_sent_again_when_the_connection_breaks_under_it(
    client: CoxemClient, server: CoxemServer
) -> None:
    server.faults.add(Fault(FaultKind.CLOSE_BEFORE, "POSITION"))
    object.__setattr__(client.options, "move_s", 0.2)
    assert client.set(x_um=7.0, y_um=8.0).x_um == 7.0
    client.scan()
    assert (server.column.x_um, server.column.y_um) == (7.0, 8.0)
    assert server.faults.struck == [("POSITION", FaultKind.CLOSE_BEFORE)]


def test_the_stage_is_waited_for(server: CoxemServer) -> None:
    server.speed = 10.0
    with connect("127.0.0.1", server.port, 1.0, 10.0, options(server.folder, move_s=0.55)) as client:
        client.set(x_um=500.0, y_um=0.0)
        client.scan()
        assert (server.column.x_um, server.column.y_um) == (500.0, 0.0)


@pytest.mark.parametrize(
    ("mode", "asked", "kept"), [("ignored", 4520.0, 4505.0), ("clamped", 4520.0, 4507.0), ("clamped", 4506.5, 4506.5)]
)
def test_a_working_distance_that_is_ignored_or_clamped_is_told(
    client: CoxemClient, server: CoxemServer, mode: str, asked: float, kept: float
) -> None:
    if mode == "ignored":
        server.ignored.add("working_distance_um")
    else:
        server.clamped["working_distance_um"] = (4503.0, 4507.0)
    assert client.set(working_distance_um=asked).working_distance_um == pytest.approx(kept)
    assert client.scan().shape == (240, 320)
    server.ignored.clear()
    server.clamped.clear()
    assert client.set(working_distance_um=asked).working_distance_um == asked


def test_another_size_of_image_is_refused(client: CoxemClient, server: CoxemServer) -> None:
    server.column.frame = (512, 384)
    with pytest.raises(HardwareError, match="512x384 pixels where 320x240"):
        client.set(working_distance_um=4510.0)


# ---------------------------------------------------------------- focusing and acquisitions


@dataclass
class Outcome:
    """What an acquisition left."""

    images: list[tuple[int, ...]] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    errors_um: list[float] = field(default_factory=list)
    ended_by: BaseException | None = None


def acquire(
    core: AutofocusCore,
    server: CoxemServer,
    *plugins: Any,
    at_image: Callable[[int], None] = lambda number: None,
    **changes: Any,
) -> Outcome:
    """Focus and take one image at each position, with pymmcore-plus's engine."""
    autofocus = Autofocus(core, coxem_settings(**changes), plugins=list(plugins))
    outcome = Outcome()

    def frame_ready(image: Any, event: useq.MDAEvent, meta: Any) -> None:
        del meta
        assert image.shape == (240, 320)
        outcome.images.append(tuple(event.index.values()))
        outcome.errors_um.append(server.column.truth().defocus_um)
        at_image(len(outcome.images))

    core.mda.set_engine(autofocus.mda_engine())
    core.mda.events.frameReady.connect(frame_ready)
    plan = useq.MDASequence(stage_positions=[{"x": 5.0 * p, "y": 0.0, "z": START_UM} for p in range(POSITIONS)])
    try:
        core.mda.run(plan)
        outcome.ended_by = autofocus.ended_by
    except Exception as error:
        outcome.ended_by = error
    outcome.statuses = [result.status for result in autofocus.results]
    return outcome


def assert_complete(outcome: Outcome) -> None:
    assert outcome.ended_by is None
    assert outcome.images == [(p,) for p in range(POSITIONS)]
    assert outcome.statuses == [Status.CONVERGED] * POSITIONS
    assert max(abs(error) for error in outcome.errors_um) < 1.0


def test_an_acquisition_focuses_with_one_frame_a_look(core: AutofocusCore, server: CoxemServer) -> None:
    frames = server.column.frames
    outcome = acquire(core, server)
    assert_complete(outcome)
    assert server.column.frames - frames <= 40
    assert server.column.blanked
    assert not list(server.folder.iterdir())


def test_an_acquisition_goes_on_with_faults_of_the_line_and_of_the_files(server: CoxemServer) -> None:
    core = load(configuration(server, (0.5, 20.0), image_s=0.6))
    for number, kind in enumerate(LINE_FAULTS):
        server.faults.add(Fault(kind, "WDMAG", skip=3 * number))
    server.file_faults.extend([FileFault.STALE_FIRST, FileFault.NO_IMAGE, FileFault.HALF_WRITTEN, FileFault.LATE])
    assert_complete(acquire(core, server))
    assert len(server.faults.struck) >= 5
    assert not server.file_faults
    core.unloadAllDevices()


def test_a_restarted_server_is_greeted_and_set_again(core: AutofocusCore, server: CoxemServer) -> None:
    fresh = CoxemServer(quick_column(seed=2), server.folder, port=server.port)

    def restart(number: int) -> None:
        if number == 1:
            server.stop()
            fresh.start()
            server.column = fresh.column  # whose truth counts from now on

    try:
        outcome = acquire(core, server, at_image=restart)
        assert_complete(outcome)
        assert fresh.column.frames > 5
    finally:
        fresh.stop()


@pytest.mark.parametrize(("policy", "images"), [("stay", POSITIONS), ("abort", 0)])
def test_images_that_stay_away_while_focusing_are_left_to_the_policy(
    server: CoxemServer, policy: str, images: int
) -> None:
    core = load(configuration(server, (1.0, 0.3), image_s=0.3))

    class OnlyWhileFocusing:
        @hookimpl(wrapper=True)
        def mmaf_frame(self, request: Any, frame: Any, purpose: str) -> Any:
            del request, frame, purpose
            server.file_faults.extend([FileFault.NO_IMAGE] * 2)
            return (yield)

        @hookimpl(wrapper=True)
        def mmaf_focus(self, request: Any, run: Any) -> Any:
            del request, run
            try:
                return (yield)
            finally:
                server.file_faults.clear()

    outcome = acquire(core, server, OnlyWhileFocusing(), failure={"failed": policy})
    assert outcome.statuses == [Status.FAILED] * max(images, 1)
    assert len(outcome.images) == images
    assert policy == "stay" or isinstance(outcome.ended_by, AcquisitionAborted)
    assert core.getPosition() == START_UM
    assert server.column.working_distance_um == pytest.approx(START_UM)
    core.unloadAllDevices()


def test_a_server_that_never_comes_back_ends_the_acquisition_in_bounded_time(server: CoxemServer) -> None:
    core = load(configuration(server, (0.5, 1.0)))
    outcome = acquire(core, server, at_image=lambda number: server.stop() if number == 1 else None)
    assert outcome.images == [(0,)]
    assert outcome.statuses[0] is Status.CONVERGED
    assert outcome.ended_by is not None
    assert abs(server.column.truth().defocus_um) < 1.0
    core.unloadAllDevices()


@pytest.mark.parametrize("mode", ["ignored", "clamped"])
def test_focusing_with_such_a_working_distance_is_not_called_converged(
    core: AutofocusCore, server: CoxemServer, mode: str
) -> None:
    if mode == "ignored":
        server.ignored.add("working_distance_um")
    else:
        server.clamped["working_distance_um"] = (START_UM - 1, START_UM + 1)
    result = Autofocus(core, coxem_settings()).at(Event(axes={"p": 0})).result
    assert result is not None
    assert result.status is Status.FAILED
    assert re.search(r"clamped or\s+ignores", result.reason)
    assert core.getPosition() == START_UM
    assert server.column.working_distance_um == pytest.approx(START_UM)
