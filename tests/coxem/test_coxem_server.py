"""The simulated COXEM instrument as a client of the paper's own order meets it, with plain sockets and files."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_autofocus.cli import serve
from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus_devices.sem import coxem_images
from mm_autofocus_devices.sem.coxem_images import ImageFolder, Reading, decoded
from mm_autofocus_devices.sem.coxem_server import CoxemServer, FileFault
from sem_rig import make_column, until


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CoxemServer]:
    column = make_column()
    column.frame = (320, 240)
    with CoxemServer(column, tmp_path / "images", port=0) as server:
        yield server


def greeted(server: CoxemServer) -> socket.socket:
    connection = socket.create_connection((server.host, server.port), timeout=10)
    for word in (b"Connected.", b"COMM.START.", b"READY"):
        connection.sendall(word)
        time.sleep(0.005)
    return connection


def files(server: CoxemServer, suffix: str) -> list[Path]:
    return sorted(server.folder.glob(f"*{suffix}"))


def image_and_text(server: CoxemServer) -> tuple[Any, list[str]]:
    """Read the pair as a careless client does once the server has finished: text mode, lines with their newline."""
    until(server.idle)
    (picture,), (text,) = files(server, ".jpg"), files(server, ".txt")
    with Image.open(picture) as opened:
        image = np.array(opened)
    with text.open(encoding="euc-kr") as lines:
        read = lines.readlines()
    picture.unlink()
    text.unlink()
    return image, read


def test_the_order_of_the_papers_own_client(server: CoxemServer) -> None:
    """Contract: connect, start, ready, WDMAG, read image, FINISH, from the description alone."""
    with greeted(server) as connection:
        connection.sendall(b"WDMAG,4.512,2000")
        reply = connection.recv(1024).decode("euc-kr")
        assert reply == "완료"
        image, lines = image_and_text(server)
        assert image.shape == (240, 320)
        assert image.std() > 5
        assert float(lines[8][4:]) == 2000
        assert float(lines[20][3:-4]) == 4.512
        assert server.column.working_distance_um == pytest.approx(4512)
        assert server.column.magnification == pytest.approx(2000)
        connection.sendall(b"WDMAG,4.498,2000")
        assert connection.recv(1024).decode("euc-kr") == "완료"
        _, lines = image_and_text(server)
        assert float(lines[20][3:-4]) == 4.498
        connection.sendall(b"FINISH")
    until(lambda: server.transport.clients == 0)
    assert server.column.blanked
    assert server.column.frames == 2


def test_coalesced_and_split_requests(server: CoxemServer) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(b"Connected.COMM.START.READYWDMAG,4.5,2000WDM")
        assert connection.recv(1024).decode("euc-kr") == "완료"
        connection.sendall(b"AG,4.6,30")
        connection.sendall(b"00FINISH")
        assert connection.recv(1024).decode("euc-kr") == "완료"
        until(server.idle)
        assert (server.column.working_distance_um, round(server.column.magnification)) == (4600, 3000)
        assert len(files(server, ".jpg")) == 2


def test_the_order_is_minded(server: CoxemServer) -> None:
    for wrong in (b"WDMAG,4.5,2000FINISH", b"READY", b"Connected.COMM.START.READYFINISHWDMAG,4.5,2000F"):
        with socket.create_connection((server.host, server.port), timeout=10) as connection:
            connection.sendall(wrong)
            assert connection.recv(1024) == b""
    assert server.column.frames == 0


def test_the_text_has_cr_lf_and_21_lines(server: CoxemServer) -> None:
    with greeted(server) as connection:
        connection.sendall(b"WDMAG,4.5,2000")
        connection.recv(1024)
        until(server.idle)
        data = files(server, ".txt")[0].read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == 21
    assert data.split(b"\r\n")[8] == b"Mag=2000"
    assert data.split(b"\r\n")[20] == b"WD=4.500 mm"


def test_out_of_range_is_answered_and_no_image_comes(server: CoxemServer) -> None:
    with greeted(server) as connection:
        connection.sendall(b"WDMAG,-4.5,2000")
        assert connection.recv(1024).decode("euc-kr") == "오류: 범위 초과"
    assert server.idle()
    assert not files(server, ".jpg")


def test_the_stage_takes_its_time_and_says_nothing(tmp_path: Path) -> None:
    column = make_column()
    column.frame = (320, 240)
    with CoxemServer(column, tmp_path, port=0, speed=10) as server, greeted(server) as connection:
        connection.sendall(b"POSITION,0.1,-0.2WDMAG,4.5,2000")
        assert connection.recv(1024).decode("euc-kr") == "완료"
        until(server.idle)
        assert 0 <= column.x_um < 100  # the image was taken on the way
        assert -200 < column.y_um <= 0
        time.sleep(0.55)
        connection.sendall(b"WDMAG,4.5,2000")
        assert connection.recv(1024).decode("euc-kr") == "완료"
        until(server.idle)
        assert (column.x_um, column.y_um) == (100.0, -200.0)
        assert column.clock_s > 4.0


def test_a_half_written_image_can_be_seen(server: CoxemServer) -> None:
    server.file_faults.append(FileFault.HALF_WRITTEN)
    with greeted(server) as connection:
        connection.sendall(b"WDMAG,4.5,2000")
        connection.recv(1024)
        until(lambda: bool(files(server, ".jpg") and files(server, ".jpg")[0].stat().st_size))
        half = files(server, ".jpg")[0].read_bytes()
        assert decoded(half) is None
        until(server.idle)
        whole = files(server, ".jpg")[0].read_bytes()
    assert whole.startswith(half)
    image = decoded(whole)
    assert image is not None
    assert image.shape == (240, 320)


# ---------------------------------------------------------------- the folder, read


LINES = ["SEM image", *(f"{n:02d} =" for n in range(2, 22))]
LINES[8], LINES[20] = "Mag=1500", "WD=10.123 mm"


def text(end: str = "\r\n", **lines: str) -> bytes:
    changed = [lines.get(f"line{n}", line) for n, line in enumerate(LINES, 1)]
    return "".join(line + end for line in changed).encode("ascii")


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_both_ends_of_lines_are_read(end: str) -> None:
    assert Reading.parse(text(end)) == Reading(10.123, 1500.0, 0.001, 1.0)
    assert Reading.parse(text(end).removesuffix(end.encode())) == Reading(10.123, 1500.0, 0.001, 1.0)


def test_no_part_of_a_text_is_taken_for_the_whole() -> None:
    whole = text()
    complete = whole.index(b"10.123 mm") + len(b"10.123 mm")
    for length in range(complete):
        assert Reading.parse(whole[:length]) is None, whole[:length][-20:]


@pytest.mark.parametrize(
    "lines",
    [
        {"line21": "WD=10.123mm"}, {"line21": "WD=ten point one mm"}, {"line21": "WD=-1.000 mm"}, {"line9": "Mag="},
        {"line9": "Mag=1.5k"}, {"line9": "Mag=nan"}, {"line21": "WD=1e3.0 mm"}, {"line21": f"WD={'1' * 40} mm"},
    ],
)  # fmt: skip
def test_another_layout_is_not_guessed_at(lines: dict[str, str]) -> None:
    assert Reading.parse(text(**lines)) is None


@pytest.mark.parametrize(("asked", "same"), [(10.1234, True), (10.1236, False), (10.1225, True), (10.1224, False)])
def test_agreement_is_to_the_last_digit(asked: float, same: bool) -> None:
    reading = Reading.parse(text())
    assert reading is not None
    assert reading.agrees(asked, 1500.0) is same
    assert not reading.agrees(10.123, 1501.0)


class Folder:
    """A folder with a clock that ends every wait at once after one look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = ImageFolder(path, sleep=lambda seconds: None)

    def look(self) -> bool:
        return self.folder.wait(0.0) is not None

    def put(self, name: str, data: bytes) -> Path:
        (self.path / name).write_bytes(data)
        return self.path / name


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def jpeg() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)).save(out, "JPEG")
    return out.getvalue()


def test_a_pair_counts_when_it_is_complete_and_new_and_is_then_removed(folder: Folder, jpeg: bytes) -> None:
    stale = folder.put("a.jpg", jpeg), folder.put("a.txt", text())
    foreign = folder.put("notes.txt", b"not ours"), folder.put("holiday.jpg", jpeg)
    folder.folder.forget()
    assert not folder.look()
    new = folder.put("b.JPG", jpeg[:-50])
    assert not folder.look()
    assert "without its new .txt" in folder.folder.seen
    told = folder.put("b.txt", text()[:-12])
    assert not folder.look()
    assert "b.txt is not complete" in folder.folder.seen
    folder.put("b.txt", text())
    assert not folder.look()
    assert "b.JPG is not complete" in folder.folder.seen
    folder.put("b.JPG", jpeg + bytes(100))
    assert folder.look()
    assert not new.exists()
    assert not told.exists()
    assert all(path.exists() for path in (*stale, *foreign))


def test_an_overwritten_pair_is_new_only_when_both_files_are(folder: Folder, jpeg: bytes) -> None:
    folder.put("a.jpg", jpeg)
    folder.put("a.txt", text())
    folder.folder.forget()
    folder.put("a.jpg", jpeg + b"\0")
    assert not folder.look()
    folder.put("a.txt", text("\n"))
    assert folder.look()


def test_a_colour_image_is_read_as_grey(folder: Folder) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 10, 10)).save(out, "JPEG")
    grey = decoded(out.getvalue())
    assert grey is not None
    assert grey.shape == (48, 64)


def test_a_file_that_cannot_be_removed_is_not_read_again(
    folder: Folder, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, f"{path.name} is open elsewhere", missing_ok)

    monkeypatch.setattr(Path, "unlink", locked)
    monkeypatch.setattr(coxem_images, "_KEEPS_S", 0.0)
    folder.folder.forget()
    folder.put("a.jpg", jpeg)
    folder.put("a.txt", text())
    assert folder.look()
    assert "cannot be removed" in caplog.text
    assert not folder.look()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"does not exist.*Create it"):
        ImageFolder(tmp_path / "nowhere")
    (tmp_path / "gone").mkdir()
    folder = ImageFolder(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(HardwareError, match="cannot be read"):
        folder.forget()


# ---------------------------------------------------------------- the command


def serving(folder: Path, while_it_serves: Callable[[dict[str, Any]], None], **changes: Any) -> dict[str, Any]:
    stop = threading.Event()

    def started(where: dict[str, Any]) -> None:
        while_it_serves(where)
        stop.set()

    options: dict[str, Any] = {
        "host": "127.0.0.1", "port": free_port(), "folder": folder, "setup": "a", "specimen": "tin", "frame": "320x240",
        "seed": 3, "speed": 0.0, "drift_um_per_min": 0.0, **changes,
    }  # fmt: skip
    return serve.serve_coxem(**options, started=started, stop=stop)


def test_serve_coxem(tmp_path: Path) -> None:
    def ask(where: dict[str, Any]) -> None:
        json.dumps(where)
        with socket.create_connection((where["host"], where["port"]), timeout=10) as connection:
            connection.sendall(b"Connected.COMM.START.READYWDMAG,4.5,1000FINISH")
            assert connection.recv(1024).decode("euc-kr") == "완료"
            until(lambda: any(decoded(path.read_bytes()) is not None for path in (tmp_path / "new").glob("*.jpg")))

    outcome = serving(tmp_path / "new", ask)
    assert outcome["frames"] == 1
    assert outcome["beam_blanked"]


def test_serve_coxem_refuses(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no frames of '1x1'"):
        serving(tmp_path, lambda where: None, frame="1x1")
    (tmp_path / "file").write_text("")
    with pytest.raises(HardwareError):
        serving(tmp_path / "file", lambda where: None)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HardwareError, match="Choose another port"):
        serving(tmp_path, lambda where: None, port=taken.getsockname()[1])
