"""The client of a TEM over TCP: plain Python, shared by the Micro-Manager devices of one instrument."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.tem.protocol import CONTROLS, DEFAULT_PORT, VERSION, Ask, Capture
from mm_autofocus_devices.transport import Client, Message, ProtocolError
from mm_autofocus_devices.transport.message import Value

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class TemImage:
    """One frame and when it was taken.

    Attributes
    ----------
    pixels
        Shape (height, width), uint8 (captured screen) or uint16 (detector).
    number, clock_s
        Running number, and the instrument's clock.
    """

    pixels: NDArray[Any]
    number: int
    clock_s: float


class TemClient:
    """One microscope. All methods may be called from any thread.

    Parameters
    ----------
    host, port
        Where the server listens.
    timeout_s
        For each request; it is repeated over new connections for four times as long.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = DEFAULT_PORT, *, timeout_s: float = TIMEOUT_S) -> None:
        self.host, self.port = host, port
        self._client = Client(host, port, timeout_s=timeout_s, on_restart=self._restarted)
        self._lock = threading.RLock()
        self._shape: tuple[int, int] | None = None
        self._last = 0

    def connect(self) -> None:
        """Connect and check that this is a TEM.

        Raises
        ------
        HardwareError
            When the server does not answer, or is something else.
        """
        reply = self._ask(Ask.IDENTIFY, idempotent=True)
        if reply.whole("version") != VERSION:
            raise HardwareError(
                f"the TEM server at {self._client.address} speaks version {reply.fields['version']}, not {VERSION}"
            )

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._client.close()

    def _restarted(self) -> None:
        """Begin to count images anew; no lock, since the client that calls this holds its own."""
        logger.warning(
            "the TEM server at %s was restarted: it counts images anew, and what was set there may be lost",
            self._client.address,
        )
        self._last, self._shape = 0, None

    def _ask(self, ask: Ask, *, idempotent: bool = False, extra_s: float = 0.0, **fields: Value) -> Message:
        return self._client.request(ask.value, payload=b"", idempotent=idempotent, extra_s=extra_s, **fields)

    # ------------------------------------------------------------------ settings
    def get(self, control: str) -> float:
        """Return a setting as the instrument reports it; see `CONTROLS`."""
        return self._ask(Ask.GET, idempotent=True, controls=[control]).real(control)

    def get_pair(self, first: str, second: str) -> tuple[float, float]:
        """Return two settings as they are at one time."""
        reply = self._ask(Ask.GET, idempotent=True, controls=[first, second])
        return reply.real(first), reply.real(second)

    def set(self, **values: float) -> None:
        """Set one or more controls, all or none of them; the aperture starts to travel, see `busy`.

        Raises
        ------
        HardwareError
            When the instrument refuses (a limit, with nothing moved), does not answer, or, for a lens or coil, reads
            back something else: it does not respond.
        """
        values = {name: float(round(v) if CONTROLS[name].whole else v) for name, v in values.items()}
        reply = self._ask(Ask.SET, idempotent=True, **values)  # absolute values: twice is as once
        for name, value in values.items():
            if name in ("aperture_x", "aperture_y"):
                continue
            now = reply.real(name)
            if abs(now - value) > 1e-6 * max(abs(value), 1.0):
                raise HardwareError(
                    f"{name} was set to {value:g} {CONTROLS[name].unit} but reads {now:g}: it does not respond. Check "
                    "its power supply"
                )

    @property
    def capture(self) -> Capture:
        """Where images come from."""
        return Capture(self._ask(Ask.GET, idempotent=True, controls=["screen"]).text("capture"))

    @capture.setter
    def capture(self, value: Capture) -> None:
        self._ask(Ask.SET, idempotent=True, capture=Capture(value).value)
        with self._lock:
            self._shape = None

    def busy(self, control: str) -> bool:
        """Return True while a control travels or settles."""
        return self._ask(Ask.BUSY, idempotent=True, control=control).truth("busy")

    def stop(self) -> None:
        """Halt the aperture."""
        self._ask(Ask.STOP, idempotent=True)

    def wait(self, seconds: float) -> None:
        """Let time pass on the instrument's clock."""
        self._ask(Ask.WAIT, idempotent=True, extra_s=seconds, seconds=float(seconds))

    @property
    def clock_s(self) -> float:
        """The instrument's clock, s."""
        return self._ask(Ask.IDENTIFY, idempotent=True).real("clock_s")

    # ------------------------------------------------------------------ images
    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the images, from the last one; the first question takes one."""
        with self._lock:
            if self._shape is None:
                self.image()
            assert self._shape is not None
            return self._shape

    def image(self) -> TemImage:
        """Take a frame.

        Raises
        ------
        HardwareError
            When the server does not answer, or delivers something that is no image, or an old one.
        """
        exposure_s = self.get("exposure_ms") / 1e3
        reply = self._ask(Ask.IMAGE, extra_s=exposure_s)
        height, width, bits = reply.whole("height"), reply.whole("width"), reply.whole("bits")
        if bits not in (8, 16) or height <= 0 or width <= 0 or len(reply.payload) != height * width * bits // 8:
            raise ProtocolError(
                f"the image has {len(reply.payload)} bytes, which is not {height} x {width} pixels of {bits} bits"
            )
        dtype: Any = np.uint8 if bits == 8 else np.dtype("<u2")
        pixels = np.frombuffer(reply.payload, dtype).reshape(height, width)
        number = reply.whole("number")
        with self._lock:
            if 0 < number <= self._last and number > self._last - 1000:
                raise HardwareError(f"image number {number} came again after {self._last}; the camera stands still")
            self._last, self._shape = number, (height, width)
        return TemImage(pixels.astype(np.uint8 if bits == 8 else np.uint16), number, reply.real("clock_s"))


_lock = threading.Lock()
_open: dict[tuple[str, int], tuple[TemClient, int]] = {}


def open_tem(host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> TemClient:
    """Return the client of that address, made on the first call; each call must be met by one of `discard_tem`."""
    with _lock:
        client, users = _open.get((host, port), (None, 0))
        client = client or TemClient(host, port, timeout_s=TIMEOUT_S)
        _open[host, port] = client, users + 1
        return client


def discard_tem(host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> None:
    """Let go of the client of that address; the last to do so closes its connection."""
    with _lock:
        client, users = _open.get((host, port), (None, 0))
        if client is None:
            return
        if users > 1:
            _open[host, port] = client, users - 1
            return
        del _open[host, port]
    client.close()
