"""A simulated COXEM SEM: its socket, its image folder, its slow stage, and what goes wrong with them.

It is as careless as facts allow: it answers before its image exists, writes files in pieces under their final name,
ends lines
with CR LF, never says when the stage has arrived, and serves whoever keeps the order of the greeting.
"""

from __future__ import annotations

import io
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mm_autofocus.simulation.sem_column import Column
from mm_autofocus_devices.sem.coxem_codec import PORT, CoxemCodec
from mm_autofocus_devices.sem.coxem_images import MAGNIFICATION_LINE, WORKING_DISTANCE_LINE
from mm_autofocus_devices.transport import Faults, Message, Server

logger = logging.getLogger(__name__)

MOVE_S = (4.0, 5.0)
"""How long the stage takes for a move of next to nothing, and for the longest."""
FULL_TRAVEL_UM = 20_000.0
_QUALITY = 95
_STOP_S = 10.0
_AGES_S = 3600.0


class FileFault(StrEnum):
    """What goes wrong with one image's files."""

    HALF_WRITTEN = "half-written"
    """The JPEG stops in its middle for a while, its text being there."""
    HALF_TEXT = "half-text"
    """The text stops within the number of the working distance for a while, the JPEG being there."""
    NEVER_COMPLETE = "never-complete"
    """The JPEG stops in its middle for good."""
    STALE_FIRST = "stale-first"
    """The pair of the frame before comes first, under its own name."""
    STALE_ONLY = "stale-only"
    """The pair of the frame before comes in place of this one."""
    OLD_FILE = "old-file"
    """A pair at the right settings, but an hour old, is copied there first; its image is black."""
    NO_IMAGE = "no-image"
    """Nothing comes."""
    NO_TEXT = "no-text"
    """The JPEG comes alone."""
    DAMAGED = "damaged"
    """The JPEG has its beginning and end but noise between them."""
    LATE = "late"
    """The pair comes late."""


class CoxemServer:
    """Serves a simulated column in the COXEM dialect.

    Parameters
    ----------
    column
        The instrument. A script that holds it may score with ``column.truth()``; no client can.
    folder
        Where images go; it is made if missing.
    host, port
        Where to listen; loopback, and a free port for 0.
    speed
        0: stage and files take no time; else their real time divided by this.
    faults, file_faults
        What shall go wrong on the line, and with the next images' files (one each).
    ignored, clamped
        Settings ("working_distance_um", "magnification") that the instrument pretends to take, or keeps within
        narrower limits.
    """

    def __init__(
        self,
        column: Column,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = PORT,
        *,
        speed: float = 0.0,
        faults: Faults | None = None,
        file_faults: list[FileFault] | None = None,
        ignored: set[str] | None = None,
        clamped: Mapping[str, tuple[float, float]] | None = None,
        message_s: float = 10.0,
    ) -> None:
        self.column, self.folder, self.speed = column, folder, speed
        self.ignored, self.clamped = set(ignored or ()), dict(clamped or {})
        self.file_faults: deque[FileFault] = deque(file_faults or ())
        self.written: list[str] = []
        """What was written, in order: "image", and the faults."""
        self.wait_s = 0.3
        """How long a half-written or late file takes, whatever the speed."""
        self._lock = threading.RLock()
        self._jobs: queue.Queue[bool] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()
        self._number = 0
        self._before: tuple[bytes, bytes] | None = None
        self._path = (column.x_um, column.y_um), (column.x_um, column.y_um)
        self._moving = -math.inf, -math.inf
        self.transport = Server(
            self._handle, CoxemCodec(), host, port, message_s=message_s, on_disconnect=self._client_left, faults=faults
        )

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.transport.host

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.transport.port

    @property
    def faults(self) -> Faults:
        """What goes wrong on the line; add some at any time."""
        return self.transport.faults

    def __enter__(self) -> CoxemServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Blank the beam and listen; raises OSError when the port is taken or the folder cannot be made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.column.blanked = True
        self._stopping.clear()
        self.transport.start()
        self._worker = threading.Thread(target=self._write_images, daemon=True, name="COXEM images")
        self._worker.start()

    def stop(self) -> None:
        """Finish the present image, close every connection, and blank the beam."""
        self.transport.stop()
        self._stopping.set()
        self._jobs.put(False)
        if self._worker is not None:
            self._worker.join(_STOP_S)
            self._worker = None
        self.column.blanked = True

    def idle(self) -> bool:
        """Tell whether every image that was asked for has been written."""
        return self._jobs.unfinished_tasks == 0

    def _client_left(self, left: int) -> None:
        logger.debug("a client left, %d remain", left)

    # ------------------------------------------------------------------ requests
    def _handle(self, request: Message) -> Message | None:
        if request.name == "WDMAG":
            return self._set(request)
        if request.name == "POSITION":
            unit_um = 1000.0
            self._send_stage(request.real("x") * unit_um, request.real("y") * unit_um)
        return None  # greeting, stage and FINISH are not answered

    def _set(self, request: Message) -> Message:
        wanted = {
            "working_distance_um": request.real("working_distance_mm") * 1e3,
            "magnification": request.real("magnification"),
        }
        with self._lock:
            if wanted["magnification"] <= 0 or wanted["working_distance_um"] <= 0:
                return request.reply(text="오류: 범위 초과")  # error: out of range; and no image comes
            for name, value in wanted.items():
                if name not in self.ignored:
                    low, high = self.clamped.get(name, (-math.inf, math.inf))
                    setattr(self.column, name, min(max(value, low), high))
        self._jobs.put(True)
        return request.reply(text="완료")  # done; the image is yet to come

    def _send_stage(self, x_um: float, y_um: float) -> None:
        with self._lock:
            self._arrive()
            start = self.column.x_um, self.column.y_um
            way = min(math.dist(start, (x_um, y_um)) / FULL_TRAVEL_UM, 1.0)
            seconds = MOVE_S[0] + (MOVE_S[1] - MOVE_S[0]) * way
            now = time.monotonic()
            self._path = start, (x_um, y_um)
            self._moving = now, now + (seconds / self.speed if self.speed > 0 else 0.0)
            self.column.advance(seconds)

    def _arrive(self) -> None:
        """Put the stage where it is by now."""
        began, ends = self._moving
        now = time.monotonic()
        part = 1.0 if now >= ends else (now - began) / (ends - began)
        (x, y), (to_x, to_y) = self._path
        self.column.x_um, self.column.y_um = x + part * (to_x - x), y + part * (to_y - y)

    # ------------------------------------------------------------------ images
    def _write_images(self) -> None:
        while True:
            wanted = self._jobs.get()
            try:
                if not wanted or self._stopping.is_set():
                    return
                self._write_image()
            except Exception:
                logger.exception("an image could not be written to %s", self.folder)
            finally:
                self._jobs.task_done()

    def _write_image(self) -> None:
        with self._lock:
            self._arrive()
            try:
                self.column.blanked = False
                image = self.column.scan()
            finally:
                self.column.blanked = True
            text = self._text()
            fault = self.file_faults.popleft() if self.file_faults else None
            self._number += 1
            number, before = self._number, self._before
        jpeg = _jpeg(image)
        self._before = jpeg, text
        if fault is FileFault.LATE:
            self._stopping.wait(self.wait_s)
        if fault in (FileFault.STALE_FIRST, FileFault.STALE_ONLY) and before is not None:
            self._write_pair(number - 1, *before)
            self._stopping.wait(self.wait_s)
        if fault is FileFault.OLD_FILE:
            self._copy_old(_jpeg(np.zeros_like(image)), text)
            self._stopping.wait(self.wait_s)
        if fault not in (FileFault.NO_IMAGE, FileFault.STALE_ONLY):
            self._write_pair(number, jpeg, text, fault)
        self.written.append("image" if fault is None else fault.value)

    def _write_pair(self, number: int, jpeg: bytes, text: bytes, fault: FileFault | None = None) -> None:
        """Write the text in two pieces, then the JPEG in two, each under its final name from the first byte."""
        name = f"image{number:06d}"
        pause_s = 0.02 / self.speed if self.speed > 0 else 0.0
        half = len(jpeg) // 2
        if fault is FileFault.DAMAGED:
            noise = np.random.default_rng(number).integers(0, 255, len(jpeg) - 4, dtype=np.uint8).tobytes()
            jpeg = jpeg[:2] + noise + jpeg[-2:]
        if fault is FileFault.HALF_TEXT:
            cut = len(text) - len(b"000 mm\r\n")
            self._write(f"{name}.jpg", jpeg)
            self._write(f"{name}.txt", text[:cut], text[cut:], pause_s=self.wait_s)
            return
        if fault is not FileFault.NO_TEXT:
            self._write(f"{name}.txt", text[:100], text[100:], pause_s=pause_s)
        if fault is FileFault.NEVER_COMPLETE:
            self._write(f"{name}.jpg", jpeg[:half])
        else:
            halting = self.wait_s if fault is FileFault.HALF_WRITTEN else pause_s
            self._write(f"{name}.jpg", jpeg[:half], jpeg[half:], pause_s=halting)

    def _write(self, name: str, *pieces: bytes, pause_s: float = 0.0) -> None:
        with (self.folder / name).open("wb") as file:
            for number, piece in enumerate(pieces):
                if number and pause_s:
                    self._stopping.wait(pause_s)
                file.write(piece)
                file.flush()

    def _copy_old(self, jpeg: bytes, text: bytes) -> None:
        """Put a pair of an hour ago there at once, as a copy that keeps its time does."""
        then = time.time() - _AGES_S
        for suffix, data in ((".txt", text), (".jpg", jpeg)):
            part = self.folder / f"copied{suffix}.part"
            part.write_bytes(data)
            os.utime(part, (then, then))
            part.replace(self.folder / f"copied{suffix}")

    def _text(self) -> bytes:
        """Return the text of a frame taken now."""
        lines = [f"{number:02d} =" for number in range(1, WORKING_DISTANCE_LINE + 1)]
        lines[0] = "SEM image"
        lines[MAGNIFICATION_LINE - 1] = f"Mag={self.column.magnification:.0f}"
        lines[WORKING_DISTANCE_LINE - 1] = f"WD={self.column.working_distance_um / 1e3:.3f} mm"
        return "".join(line + "\r\n" for line in lines).encode("ascii")


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=_QUALITY)
    return out.getvalue()
