"""The DE-Server and DE-TEM-Channel devices against de-twin, which nobody here wrote, and against bad servers."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from mm_autofocus import Autofocus
from mm_autofocus.errors import HardwareError, LimitError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus.strategies.beam_centring import BeamCentring
from mm_autofocus.strategies.defocus_pair import DefocusPair
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.de import discard_de, open_de
from mm_autofocus_devices.de.instrument import DeCamera
from mm_autofocus_devices.de.launcher import Twin, TwinAddress
from mm_autofocus_devices.de.soap import TemChannel

INSTALLED = all(importlib.util.find_spec(name) for name in ("de_twin", "deapi"))
needs_twin = pytest.mark.skipif(not INSTALLED, reason="the extra detwin is not installed")


class Strategies:
    @hookimpl
    def mmaf_strategies(self) -> tuple[type[DefocusPair], type[BeamCentring]]:
        return DefocusPair, BeamCentring


@pytest.fixture(scope="module")
def twin() -> Iterator[TwinAddress]:
    with Twin("--seed", "4") as started:
        yield started.address


def configuration(address: TwinAddress) -> str:
    lines = []
    for line in (CONFIGS / "de.cfg").read_text(encoding="utf-8").splitlines():
        if ",DeapiPort," in line or ",SoapPort," in line:
            continue
        lines.append(line.replace("FramesPerSecond,0", "FramesPerSecond,5"))
        parts = line.split(",")
        if parts[0] == "#py pyDevice" and parts[2].startswith("mm_autofocus_devices.de."):
            lines.append(f"#py Property,{parts[1]},DeapiPort,{address.deapi_port}")
            lines.append(f"#py Property,{parts[1]},SoapPort,{address.soap_port}")
            if parts[1] == "Camera":  # a twin that was just installed compiles itself for half a minute at first
                lines.append("#py Property,Camera,Timeout,150")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def core(twin: TwinAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutofocusCore]:
    path = tmp_path_factory.mktemp("de") / "de.cfg"
    path.write_text(configuration(twin), encoding="utf-8")
    loaded = AutofocusCore()
    loaded.loadSystemConfiguration(path)
    yield loaded
    loaded.unloadAllDevices()
    discard_de("127.0.0.1", twin.deapi_port, twin.soap_port)


def focus(core: AutofocusCore, settings: str) -> FocusResult:
    autofocus = Autofocus(core, Settings.load(CONFIGS / settings), plugins=[Strategies()])
    result = autofocus.focus().result
    autofocus.finish()
    assert result is not None
    return result


@needs_twin
@pytest.mark.timeout(420)
def test_settings_are_made_and_read_back(core: AutofocusCore) -> None:
    core.setPosition("Defocus", -1.25)
    core.setPosition("Intensity", 0.4)
    core.setXYPosition("Stigmators", 0.2, -0.3)
    core.setXYPosition("BeamShift", 0.15, -0.05)
    core.setXYPosition("BeamTilt", 0.01, 0.02)
    core.setProperty("Column", "Magnification", 50000)
    assert core.getPosition("Defocus") == pytest.approx(-1.25, abs=1e-3)
    assert core.getPosition("Intensity") == pytest.approx(0.4, abs=1e-4)
    assert core.getXYPosition("Stigmators") == pytest.approx((0.2, -0.3), abs=1e-4)
    assert core.getXYPosition("BeamShift") == pytest.approx((0.15, -0.05), abs=1e-4)
    assert core.getXYPosition("BeamTilt") == pytest.approx((0.01, 0.02), abs=1e-4)
    assert float(core.getProperty("Column", "Magnification")) == pytest.approx(50000, rel=0.2)  # a ladder of its own
    assert float(core.getProperty("Column", "HighTensionKv")) == pytest.approx(200)
    with pytest.raises(LimitError):
        core.setXYPosition("Stigmators", 1.5, 0.0)
    core.setXYPosition("BeamShift", 0.0, 0.0)
    core.setXYPosition("BeamTilt", 0.0, 0.0)
    core.setXYPosition("Stigmators", 0.0, 0.0)


@needs_twin
@pytest.mark.timeout(420)
def test_images_come_in_16_and_in_32_bits_and_a_blanked_beam_is_dark(core: AutofocusCore) -> None:
    core.setExposure(400.0)
    assert core.getExposure() == pytest.approx(400.0)
    core.snapImage()
    lit = core.getImage()
    core.setProperty("Camera", "PixelType", "32bit")
    core.snapImage()
    deep = core.getImage()
    core.setProperty("Camera", "PixelType", "16bit")
    core.setAutoShutter(False)
    core.setShutterOpen(False)
    core.snapImage()
    dark = core.getImage()
    core.setAutoShutter(True)
    assert (lit.dtype, deep.dtype) == (np.uint16, np.float32)
    assert lit.shape == deep.shape == (1024, 1024)
    assert deep.mean() == pytest.approx(lit.mean(), rel=0.05)
    assert dark.mean() < 0.05 * lit.mean()


@needs_twin
@pytest.mark.timeout(420)
def test_a_wrong_argument_name_is_accepted_as_zero_so_everything_is_read_back(twin: TwinAddress) -> None:
    column = TemChannel(port=twin.soap_port)
    column.set("defocus", 1.5)
    assert column.call("setDefocus", defocus="3.0") == {"success": "1"}
    assert column.get("defocus") == (0.0,)


@needs_twin
@pytest.mark.timeout(600)
def test_focus_and_stigmators_from_two_micrometres(core: AutofocusCore, twin: TwinAddress) -> None:
    core.setProperty("Column", "Magnification", 60000)
    core.setPosition("Intensity", 0.3504)
    core.setXYPosition("Stigmators", 0.0, 0.0)
    core.setPosition("Defocus", 2.0 - twin.defocus_offset_um)
    result = focus(core, "de.toml")
    assert result.status is Status.CONVERGED, result.reason
    assert core.getPosition("Defocus") == pytest.approx(-twin.defocus_offset_um, abs=0.03)
    assert core.getXYPosition("Stigmators") == pytest.approx(twin.stigmator_zero, abs=0.03)
    assert result.confidence > 0.9


@needs_twin
@pytest.mark.timeout(600)
def test_the_beam_is_centred_and_one_larger_than_the_frame_is_said_to_be_unmeasurable(core: AutofocusCore) -> None:
    core.setProperty("Column", "Magnification", 4000)
    core.setPosition("Intensity", 0.36)  # a disc of 137 pixels radius
    core.setXYPosition("BeamShift", 0.25, -0.15)
    result = focus(core, "de_centring.toml")
    assert result.status is Status.CONVERGED, result.reason
    width = core.getImageWidth()
    core.snapImage()
    yy, xx = np.mgrid[:width, :width]
    image = core.getImage().astype(float)
    inside = image > 0.4 * np.percentile(image, 99)  # the illuminated disc, measured in another way
    assert xx[inside].mean() == pytest.approx((width - 1) / 2, abs=2.0)  # 2 % of the field would be 20 pixels
    assert yy[inside].mean() == pytest.approx((width - 1) / 2, abs=2.0)
    core.setPosition("Intensity", 0.7)
    before = core.getXYPosition("BeamShift")
    wide = focus(core, "de_centring.toml")
    assert wide.status is Status.NO_SIGNAL
    assert core.getXYPosition("BeamShift") == pytest.approx(before, abs=1e-3)


@needs_twin
@pytest.mark.timeout(420)
def test_a_blanked_beam_ends_where_it_began(core: AutofocusCore) -> None:
    core.setAutoShutter(False)
    core.setShutterOpen(False)
    core.setPosition("Defocus", 0.5)
    try:
        result = focus(core, "de.toml")
    finally:
        core.setAutoShutter(True)
    assert result.status in (Status.NO_SIGNAL, Status.FAILED)
    assert core.getPosition("Defocus") == pytest.approx(0.5, abs=1e-3)


# ---------------------------------------------------------------------- servers that misbehave; no twin needed
@contextmanager
def channel(answer: Callable[[str], bytes]) -> Iterator[TemChannel]:
    """A SOAP server that answers as it is told, given the request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield TemChannel(port=server.server_address[1], timeout_s=2.0)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def envelope(inner: str) -> bytes:
    return f'<e:Envelope xmlns:e="x"><e:Body><n:r xmlns:n="y">{inner}</n:r></e:Body></e:Envelope>'.encode()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "not XML"),
        (b"<html>404</html>", "no body"),
        (envelope("<floatResult>far</floatResult>"), "without a number"),
        (envelope("<floatResult>nan</floatResult>"), "nan"),
        (envelope(""), "without a number"),
        (b'<!DOCTYPE x [<!ENTITY a "a">]><x>&a;</x>', "not one that is read"),
        (b"<x>" + b" " * (1 << 20) + b"</x>", "not one that is read"),
        (b'<e:E xmlns:e="x"><e:Body><e:Fault><faultstring>no</faultstring></e:Fault></e:Body></e:E>', "refused"),
    ],
)
def test_an_answer_that_is_none(answer: bytes, words: str) -> None:
    with channel(lambda _: answer) as column, pytest.raises(HardwareError, match=words):
        column.get("defocus")


def test_a_channel_that_says_success_and_does_nothing() -> None:
    def answer(request: str) -> bytes:
        return envelope("<success>1</success>" if "setDefocus" in request else "<floatResult>0</floatResult>")

    with channel(answer) as column:
        with pytest.raises(HardwareError, match="defocus reads 0"):
            column.set("defocus", 1.0)
        with pytest.raises(LimitError, match="nothing has moved"):
            column.set("defocus", 1e6)
        with pytest.raises(LimitError):
            column.set("defocus", float("nan"))


def test_a_channel_that_refuses() -> None:
    def answer(request: str) -> bytes:
        pair = "<floatone>0.1</floatone><floattwo>0</floattwo>"
        return envelope("<success>0</success>" if "setObjectiveStig" in request else pair)

    with channel(answer) as column, pytest.raises(HardwareError, match="refused"):
        column.set("objective_stigmator", 0.1, 0.0)


def test_servers_that_are_not_there() -> None:
    with pytest.raises(HardwareError, match=r"127\.0\.0\.1:1 did not answer"):
        TemChannel(port=1, timeout_s=1.0).get("defocus")
    if INSTALLED:
        with pytest.raises(HardwareError, match=r"127\.0\.0\.1:1 does not answer"):
            DeCamera(port=1).connect()


def test_devices_of_one_address_share_the_instrument(tmp_path: Path) -> None:
    assert open_de("127.0.0.1", 2, 3) is open_de("127.0.0.1", 2, 3)
    discard_de("127.0.0.1", 2, 3)
