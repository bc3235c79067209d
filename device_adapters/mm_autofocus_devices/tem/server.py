"""The simulated TEM behind a TCP port: serves a `TemColumn`, and puts its lenses back when a client is lost."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

import numpy as np

from mm_autofocus.errors import LimitError
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus_devices.tem.protocol import CONTROLS, VERSION, Ask, Capture, Control
from mm_autofocus_devices.transport import Faults, Message, RemoteError, Server
from mm_autofocus_devices.transport.message import Value

logger = logging.getLogger(__name__)

REST_S = 20.0
"""A lens is at rest where it has stood for this long, by the instrument's clock (and where it stood at the start)."""
GRACE_S = 5.0
"""A client that lost its connection has this long to come back before the lenses are put at rest, s."""
SETTLE_S = 1.0
"""A lens or coil counts as busy for this long after a change: a captured frame is half a second late, and blended for
another third."""
POLL_S = 0.5
"""With ``speed`` 0 the simulated clock advances by this with each question whether something is busy."""
_CAPTURES = {Capture.DETECTOR: "camera", Capture.SCREEN: "screen"}


class TemServer:
    """Serves one simulated microscope to several clients; a context manager.

    Parameters
    ----------
    column
        The simulated microscope. Only the requests of the protocol reach it: nothing tells a client where the aperture
        belongs.
    host, port
        Where to listen; port 0 takes a free one.
    speed
        Simulated seconds for each second; 0 lets time pass only while something is waited for or exposed.
    window_steps
        The aperture's mechanical end stops: commands beyond are refused.
    grace_s
        See `GRACE_S`.
    faults
        What shall go wrong on purpose; for tests.
    """

    def __init__(
        self,
        column: TemColumn,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        speed: float = 1.0,
        window_steps: int = 1000,
        grace_s: float = GRACE_S,
        faults: Faults | None = None,
    ) -> None:
        if not 0 <= speed <= 1e6:
            raise ValueError(f"speed = {speed} must be from 0 to 1000000")
        self.column = column
        self.speed, self.window_steps, self.grace_s = speed, window_steps, grace_s
        self._lock = threading.RLock()
        self._server = Server(self._handle, host=host, port=port, on_disconnect=self._left, faults=faults)
        self._seen = time.monotonic()
        self._changed = dict.fromkeys(CONTROLS, -math.inf)
        self._rest = {name: float(column.get(name)) for name, control in CONTROLS.items() if control.lens}
        self._since = dict.fromkeys(self._rest, column.clock_s)
        self._asked: dict[Ask, Callable[[Message], Message]] = {
            Ask.IDENTIFY: self._identify,
            Ask.GET: self._get,
            Ask.SET: self._set,
            Ask.BUSY: self._busy,
            Ask.STOP: self._stop,
            Ask.IMAGE: self._image,
            Ask.WAIT: self._wait,
        }

    # ------------------------------------------------------------------ running
    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def faults(self) -> Faults:
        """What shall go wrong on purpose."""
        return self._server.faults

    def start(self) -> None:
        """Listen, in threads of its own; see `mm_autofocus_devices.transport.Server.start`."""
        self._seen = time.monotonic()
        self._to_rest()  # what the clients of an earlier run have left
        self._server.start()

    def stop(self) -> None:
        """Close the port and every connection; the column keeps its state."""
        self._server.stop()

    def __enter__(self) -> TemServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ a client is lost
    def _left(self, left: int) -> None:
        with self._lock:  # now: a lens that only stands until the grace is over has not been left there for long
            self._pass_time()
            self._note_rest()
        if left == 0:
            timer = threading.Timer(self.grace_s, self._to_rest)
            timer.daemon = True
            timer.start()

    def _to_rest(self) -> None:
        """Put every lens back where it was at rest, unless a client is there to do so."""
        with self._lock:
            if self._server.clients:
                return
            self._pass_time()
            for name, value in self._rest.items():
                now = float(self.column.get(name))
                if now != value:
                    self.column.set(name, value)
                    self._touched(name)
                    logger.warning(
                        "the last client was lost while %s stood at %g; it is back at %g, where it was at rest",
                        name, now, value,
                    )  # fmt: skip

    def _note_rest(self) -> None:
        for name in self._rest:
            if self.column.clock_s - self._since[name] >= REST_S:
                self._rest[name] = float(self.column.get(name))

    # ------------------------------------------------------------------ time
    def _pass_time(self, simulated_s: float = 0.0) -> None:
        """Let the simulated clock follow the real one, or advance it when nothing else does."""
        now = time.monotonic()
        elapsed, self._seen = now - self._seen, now
        self.column.wait(elapsed * self.speed if self.speed > 0 else simulated_s)

    def _sleep(self, simulated_s: float) -> None:
        """Let time pass, without holding others up for it."""
        if self.speed > 0:
            end = time.monotonic() + simulated_s / self.speed
            while (left := end - time.monotonic()) > 0:
                time.sleep(left)
        with self._lock:
            self._pass_time(simulated_s)

    # ------------------------------------------------------------------ requests
    def _handle(self, message: Message) -> Message:
        try:
            asked = self._asked[Ask(message.name)]
        except ValueError:
            raise RemoteError(
                f"unknown request {message.name!r}; there are {', '.join(Ask)} and hello", "unknown"
            ) from None
        if asked == self._wait:
            return asked(message)
        with self._lock:
            self._pass_time()
            self._note_rest()
            return asked(message)

    def _identify(self, message: Message) -> Message:
        return message.reply(
            instrument="mm-autofocus simulated TEM",
            version=VERSION,
            controls=list(CONTROLS),
            speed=self.speed,
            clock_s=self.column.clock_s,
        )

    def _get(self, message: Message) -> Message:
        names = message.fields.get("controls")
        asked = [str(name) for name in names] if isinstance(names, list) and names else list(CONTROLS)
        fields: dict[str, Value] = {name: self._value(name) for name in asked}
        return message.reply(payload=b"", **fields, clock_s=self.column.clock_s, capture=self._capture())

    def _set(self, message: Message) -> Message:
        """Apply all or nothing: every value is checked before the first is set."""
        values = {name: message.real(name) for name in message.fields if name != "capture"}
        for name, value in values.items():
            self._check(name, value)
        if "capture" in message.fields:
            self._choose_capture(message.text("capture"))
        for name, value in values.items():
            self._apply(name, value)
        fields: dict[str, Value] = {name: self._value(name) for name in values}
        return message.reply(payload=b"", **fields)

    def _busy(self, message: Message) -> Message:
        control = message.text("control")
        self._known(control)
        if self.speed == 0:
            self._pass_time(POLL_S)
        since = self.column.clock_s - self._changed[control]
        busy = since < SETTLE_S
        if control.startswith("aperture_"):
            busy = busy or self.column.busy
        return message.reply(busy=bool(busy))

    def _stop(self, message: Message) -> Message:
        for name in ("aperture_x", "aperture_y"):
            self.column.set(name, self.column.get(name))
        return message.reply()

    def _image(self, message: Message) -> Message:
        if self.speed > 0:
            time.sleep(self.column.exposure_s / self.speed)
            self._seen = time.monotonic()  # `TemColumn.image` lets the exposure pass by itself
        image = self.column.image()
        height, width = image.shape
        return message.reply(
            payload=np.ascontiguousarray(image.astype(image.dtype.newbyteorder("<"))).tobytes(),
            height=height,
            width=width,
            bits=int(image.dtype.itemsize * 8),
            number=self.column.images,
            clock_s=self.column.clock_s,
        )

    def _wait(self, message: Message) -> Message:
        seconds = message.real("seconds")
        if not 0 <= seconds <= 3600:
            raise RemoteError(f"a wait of {seconds:g} s is outside 0 to 3600 s", "limit")
        self._sleep(seconds)
        return message.reply(clock_s=self.column.clock_s)

    # ------------------------------------------------------------------ settings
    def _known(self, name: str) -> Control:
        if name not in CONTROLS:
            raise RemoteError(f"unknown control {name!r}; there are {', '.join(CONTROLS)}", "unknown")
        return CONTROLS[name]

    def _check(self, name: str, value: float) -> None:
        control = self._known(name)
        low, high = control.low, control.high
        if name in ("aperture_x", "aperture_y"):
            low, high = max(low, -self.window_steps), min(high, self.window_steps)
        if not low <= value <= high:
            raise LimitError(
                f"{name} = {value:g} {control.unit} is outside [{low:g}, {high:g}]"
                + (", the end stops of the aperture's drive" if low != control.low else "")
                + "; nothing has moved"
            )
        if control.whole and value != round(value):
            raise RemoteError(
                f"{name} = {value:g} must be a whole number of {control.unit}; nothing has moved", "invalid"
            )

    def _value(self, name: str) -> float:
        self._known(name)
        if name == "exposure_ms":
            return self.column.exposure_s * 1e3
        if name in ("magnification", "aperture"):
            return float(getattr(self.column, name))
        return float(self.column.get(name))

    def _apply(self, name: str, value: float) -> None:
        if self._value(name) == value and not name.startswith("aperture_"):
            return
        if name == "exposure_ms":
            self.column.exposure_s = value / 1e3
            return
        if name == "magnification":
            self.column.magnification = value
        elif name == "aperture":
            self.column.aperture = int(value)
        else:
            self.column.set(name, value)
        self._touched(name)

    def _touched(self, name: str) -> None:
        self._changed[name] = self.column.clock_s
        if name in self._since:
            self._since[name] = self.column.clock_s

    def _capture(self) -> str:
        return next(word for word, known in _CAPTURES.items() if known == self.column.capture)

    def _choose_capture(self, word: str) -> None:
        if word not in set(Capture):
            raise RemoteError(f"capture = {word!r} must be one of {', '.join(Capture)}", "invalid")
        self.column.capture = "screen" if word == Capture.SCREEN else "camera"
