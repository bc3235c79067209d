"""The TEM over real sockets: its requests, its Micro-Manager devices, and what happens when something is wrong."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mm_autofocus.errors import HardwareError
from mm_autofocus.result import Status
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.simulation.tem_day import TemDay
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.tem import TemClient, instrument
from mm_autofocus_devices.tem.protocol import CONTROLS, Capture
from mm_autofocus_devices.tem.server import REST_S, TemServer
from mm_autofocus_devices.transport import Client, Fault, FaultKind, RemoteError, TransportError
from tem_microscope import AtFrame, Bench, microscope

pytestmark = pytest.mark.timeout(90)


def column(**changes: object) -> TemColumn:
    return TemColumn(1, capture="camera", size=128, condition=replace(TemDay.make(1, 0, 2), stale=0.0, **changes))


@pytest.fixture
def tem() -> Iterator[tuple[TemServer, TemClient]]:
    with TemServer(column(), speed=0, grace_s=0.2) as server:
        client = TemClient(port=server.port, timeout_s=2.0)
        client.connect()
        yield server, client
        client.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(instrument, "TIMEOUT_S", 0.5)
    with microscope(tmp_path, column(), grace_s=0.2) as loaded:
        yield loaded


# ---------------------------------------------------------------------- requests
def test_every_control_is_set_and_read_back(tem: tuple[TemServer, TemClient]) -> None:
    _, client = tem
    wanted = {"c1": 1.02, "c2": 0.98, "objective": 1.01, "intensity": 0.9, "beam_shift_x": 1.5, "beam_shift_y": -2.0,
              "beam_tilt_x": 3.0, "beam_tilt_y": -4.0, "stig_x": 0.2, "stig_y": -0.3, "screen": 1.0,
              "magnification": 8000.0, "aperture": 3.0, "exposure_ms": 250.0}  # fmt: skip
    assert wanted.keys() | {"aperture_x", "aperture_y"} == CONTROLS.keys()
    client.set(**wanted)
    assert {name: client.get(name) for name in wanted} == pytest.approx(wanted)


def test_the_aperture_travels_in_whole_steps_and_says_when_it_has_arrived(tem: tuple[TemServer, TemClient]) -> None:
    _, client = tem
    client.set(aperture_x=400.4, aperture_y=-200.0)
    assert client.busy("aperture_x")
    assert abs(client.get("aperture_x")) < 400
    while client.busy("aperture_x"):
        pass
    assert client.get_pair("aperture_x", "aperture_y") == pytest.approx((400, -200), abs=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"aperture_x": 1001.0}, "end stops"),
        ({"c1": 1.6}, "outside"),
        ({"magnification": 1.0}, "outside"),
        ({"exposure_ms": 1e9}, "outside"),
    ],
)
def test_what_is_outside_is_refused_and_nothing_moves(
    tem: tuple[TemServer, TemClient], values: dict[str, float], words: str
) -> None:
    _, client = tem
    with pytest.raises(RemoteError, match=words) as caught:
        client.set(beam_shift_x=1.0, **values)
    assert caught.value.code == "limit"
    assert client.get("beam_shift_x") == 0.0  # all or nothing


def test_a_request_that_is_no_request(tem: tuple[TemServer, TemClient]) -> None:
    server, _ = tem
    with Client("127.0.0.1", server.port, timeout_s=2) as raw:
        for name, fields, words in (
            ("truth", {}, "unknown request"),
            ("set", {"c9": 1.0}, "unknown control"),
            ("set", {"c1": "strong"}, "finite number"),
            ("set", {"aperture_x": 0.5}, "whole number"),
            ("set", {"capture": "eye"}, "must be one of"),
            ("get", {"controls": ["aperture_z"]}, "unknown control"),
            ("wait", {"seconds": -1.0}, "outside"),
            ("busy", {}, "no field"),
        ):
            with pytest.raises(RemoteError, match=words):
                raw.request(name, **fields)  # type: ignore[arg-type]


def test_a_detector_has_16_bits_and_a_captured_screen_8_with_stretched_contrast(
    tem: tuple[TemServer, TemClient],
) -> None:
    _, client = tem
    client.wait(5.0)
    counts = client.image().pixels
    client.capture = Capture.SCREEN
    shown = client.image().pixels
    assert (counts.dtype, shown.dtype) == (np.uint16, np.uint8)
    assert counts.shape == shown.shape == (128, 128)
    assert shown.max() > 200


def test_a_captured_frame_is_late_until_the_lens_has_settled(tem: tuple[TemServer, TemClient]) -> None:
    _, client = tem
    client.wait(10.0)
    before = client.image().pixels.astype(float)
    client.set(c1=1.03)
    at_once = client.image().pixels.astype(float)
    while client.busy("c1"):
        pass
    after = client.image().pixels.astype(float)
    assert np.abs(at_once - before).mean() < 0.3 * np.abs(after - before).mean()


def test_real_time_passes_by_itself() -> None:
    with TemServer(column(), speed=50.0) as server:
        client = TemClient(port=server.port)
        began = client.clock_s
        time.sleep(0.1)
        assert client.clock_s - began > 2.0
        client.close()


# ---------------------------------------------------------------------- devices
def test_devices_show_the_instrument(bench: Bench) -> None:
    core = bench.core
    core.setPosition("C1", 1.01)
    core.waitForDevice("C1")
    core.setXYPosition("Aperture", 50, -60)
    core.waitForDevice("Aperture")
    core.setXYPosition("BeamShift", 0.5, 0.25)
    core.setXYPosition("Stigmators", 0.1, -0.1)
    core.setXYPosition("BeamTilt", 1.0, 2.0)
    core.setExposure(50.0)
    assert core.getPosition("C1") == pytest.approx(1.01)
    assert core.getXYPosition("Aperture") == pytest.approx((50, -60), abs=1)
    assert core.getXYPosition("BeamShift") == pytest.approx((0.5, 0.25))
    assert core.getXYPosition("Stigmators") == pytest.approx((0.1, -0.1))
    assert core.getXYPosition("BeamTilt") == pytest.approx((1.0, 2.0))
    assert bench.column.exposure_s == pytest.approx(0.05)
    assert core.getPropertyUpperLimit("C1", "Position") == pytest.approx(1.5)
    core.snapImage()
    lit = core.getImage()
    core.setProperty("Screen", "Position", "down")
    core.snapImage()
    core.snapImage()
    assert lit.dtype == np.uint16
    core.setProperty("Camera", "Capture", "screen")
    core.snapImage()
    assert core.getImage().dtype == np.uint8


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    from mm_autofocus_devices.tem.devices import TemC1

    device = TemC1()
    device.set_property_value("Port", 1)
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
        device.initialize()
    with pytest.raises(HardwareError, match="not initialized"):
        _ = device.tem


# ---------------------------------------------------------------------- alignment, and what can be wrong
def test_the_aperture_is_aligned_through_micro_manager(bench: Bench) -> None:
    truth = bench.column.truth()
    bench.core.setXYPosition("Aperture", round(truth["aperture_x"] + 110), round(truth["aperture_y"] - 70))
    bench.core.waitForDevice("Aperture")
    result = bench.align()
    assert result.status is Status.CONVERGED
    assert np.hypot(*bench.error()) < 20  # a human's 2 %
    assert bench.core.getPosition("C1") == 1.0


def no_beam(column: TemColumn) -> None:
    column.beam_on = False


def saturated(column: TemColumn) -> None:
    column.exposure_s = 20.0


def lens_dead(column: TemColumn) -> None:
    column.lens_responds = False


def aperture_jammed(column: TemColumn) -> None:
    column.aperture_responds = False


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (no_beam, Status.NO_SIGNAL, "no beam"),
        (saturated, Status.NO_SIGNAL, "saturated"),
        (lens_dead, Status.FAILED, "c1 .*does not respond"),
        (aperture_jammed, Status.FAILED, "aperture_[xy].*(blocked|clamped)"),
    ],
)
def test_bad_input_is_named_and_everything_is_put_back(
    bench: Bench, fault: Callable[[TemColumn], None], status: Status, words: str
) -> None:
    fault(bench.column)
    result = bench.align(budget={"images": 80, "seconds": 3000})
    assert result.status is status
    assert re.search(words, result.reason), result.reason
    assert bench.core.getPosition("C1") == 1.0
    assert bench.core.getXYPosition("Aperture") == pytest.approx((0, 0), abs=1.5)


def test_an_aperture_whose_place_is_beyond_its_end_stop(tmp_path: Path) -> None:
    away = column(centre=(1090.0, 0.0))
    with microscope(tmp_path, away) as bench:
        bench.core.setXYPosition("Aperture", 940, 0)
        bench.core.waitForDevice("Aperture")
        result = bench.align()
        assert result.status is Status.AT_LIMIT
        assert "limits" in result.reason
        assert bench.core.getXYPosition("Aperture") == pytest.approx((940, 0), abs=1.5)
        assert bench.core.getPosition("C1") == 1.0


def test_end_stops_that_are_nearer_than_the_settings_say(tmp_path: Path) -> None:
    with microscope(tmp_path, column(centre=(0.0, 0.0)), window_steps=160) as bench:
        bench.core.setXYPosition("Aperture", 150, 0)
        bench.core.waitForDevice("Aperture")
        result = bench.align()
        assert result.status is Status.FAILED
        assert "end stops" in result.reason
        assert bench.core.getXYPosition("Aperture") == pytest.approx((150, 0), abs=1.5)
        assert bench.core.getPosition("C1") == 1.0


def test_a_server_that_goes_and_comes_back_in_the_middle_of_a_wobble(bench: Bench) -> None:
    def restart() -> None:
        bench.server.stop()
        bench.server.start()

    result = bench.align(AtFrame(3, restart))
    assert result.status in (Status.CONVERGED, Status.FAILED), result.reason
    assert bench.core.getPosition("C1") == 1.0


def test_a_server_that_stays_away_leaves_a_clear_error_and_puts_the_lens_back_itself(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    where: list[float] = []

    def away() -> None:
        where.append(bench.column.get("c1"))
        bench.server.stop()

    result = bench.align(AtFrame(3, away))
    assert where[0] != 1.0  # it was in the middle of the wobble
    assert result.status is Status.FAILED
    assert "Is it running" in result.reason
    assert "could not be put back" in result.reason
    assert "c1 to 1 of nominal" in result.reason
    with caplog.at_level(logging.WARNING):
        bench.server.start()
    assert bench.column.get("c1") == 1.0
    assert "back at 1" in caplog.text
    assert bench.core.getPosition("C1") == 1.0  # the devices work again


def test_a_client_that_is_lost_in_the_middle_of_a_wobble_leaves_no_wobbled_lens() -> None:
    wobbled = column()
    with TemServer(wobbled, speed=0, grace_s=0.05) as server:
        client = TemClient(port=server.port)
        client.set(c1=1.03)
        client.wait(1.0)
        client.close()
        assert eventually(lambda: wobbled.get("c1") == 1.0)


def test_a_lens_that_was_left_elsewhere_for_long_is_at_rest_there() -> None:
    set_by_hand = column()
    with TemServer(set_by_hand, speed=0, grace_s=0.05) as server:
        client = TemClient(port=server.port)
        client.set(c1=1.1)
        client.wait(REST_S + 1)
        client.set(c1=1.13)
        client.close()
        assert eventually(lambda: set_by_hand.get("c1") == 1.1)


def test_a_lens_that_stood_elsewhere_only_while_its_client_was_away_is_not_at_rest_there() -> None:
    wobbled = column()
    with TemServer(wobbled, speed=200.0, grace_s=0.3) as server:  # a grace of a minute, on the instrument's clock
        client = TemClient(port=server.port)
        client.set(c1=1.03)
        client.close()
        assert eventually(lambda: wobbled.get("c1") == 1.0)


def test_another_instrument_at_the_same_port_may_count_its_images_anew(caplog: pytest.LogCaptureFixture) -> None:
    with TemServer(column(), speed=0) as server:
        client = TemClient(port=server.port, timeout_s=2.0)
        numbers = [client.image().number for _ in range(3)]
    with TemServer(column(), port=server.port, speed=0), caplog.at_level(logging.WARNING):
        assert client.get("c1") == 1.0
        again = [client.image().number for _ in range(2)]
        client.close()
    assert (numbers, again) == ([1, 2, 3], [1, 2])
    assert "was restarted" in caplog.text


def test_the_exposure_is_asked_for_since_another_program_may_change_it(bench: Bench) -> None:
    bench.core.setExposure(100.0)
    bench.column.exposure_s = 0.25
    assert bench.core.getExposure() == pytest.approx(250.0)


@pytest.mark.parametrize(
    "kind", [FaultKind.CLOSE_BEFORE, FaultKind.CLOSE_AFTER, FaultKind.CLOSE_MID_FRAME, FaultKind.GARBAGE]
)
def test_a_connection_that_breaks_once_costs_nothing(bench: Bench, kind: FaultKind) -> None:
    bench.server.faults.add(Fault(kind, "image", skip=4))
    result = bench.align()
    assert result.status is Status.CONVERGED
    assert bench.core.getPosition("C1") == 1.0


def test_the_configuration_loads_from_its_file(tmp_path: Path) -> None:
    with microscope(tmp_path) as bench:
        assert isinstance(bench.core, AutofocusCore)
        assert bench.core.getAutoFocusDevice() == "Autofocus"
        assert not bench.core.getXYStageDevice()  # a plan's x and y must not move the aperture


def eventually(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False
