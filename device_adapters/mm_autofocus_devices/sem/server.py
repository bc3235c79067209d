"""The simulated SEM as a server: one column, several clients, and no beam on the specimen but during a frame."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mm_autofocus.errors import LimitError
from mm_autofocus.simulation.sem_column import DWELLS_NS, FRAMES, PIXEL_NM, STIGMATOR, WORKING_DISTANCE_UM, Column
from mm_autofocus_devices.sem.protocol import CODEC, Description, State, checked
from mm_autofocus_devices.transport import Faults, Message, RemoteError, Server

logger = logging.getLogger(__name__)

XY_UM = (-50_000.0, 50_000.0)
"""Travel of the stage."""
PERCENT = (0.0, 100.0)
TURN_DEG = (-360.0, 360.0)
BEAM_ON_S = 10.0
"""A beam that a client has unblanked by hand is blanked again after this time without a request."""


class SemServer:
    """Serves a simulated column.

    The beam is blanked from the start, after every frame, whenever a client leaves, after every error, `BEAM_ON_S`
    after it was unblanked by hand, and when the server stops.

    Parameters
    ----------
    column
        The instrument. A script that holds it may score with ``column.truth()``; no client can.
    host, port
        Where to listen; loopback and a free port by default.
    faults
        What shall go wrong on the way.
    ignored
        Names of settings that the instrument pretends to take.
    clamped
        Settings that the instrument keeps within narrower limits than it says, by name.
    """

    def __init__(
        self,
        column: Column,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        faults: Faults | None = None,
        ignored: set[str] | None = None,
        clamped: Mapping[str, tuple[float, float]] | None = None,
        message_s: float = 10.0,
    ) -> None:
        self.column = column
        self.ignored = set(ignored or ())
        self.clamped = dict(clamped or {})
        self._lock = threading.RLock()
        self._beam_timer: threading.Timer | None = None
        self._requests: dict[str, Callable[[Message], Message]] = {
            "describe": lambda request: request.reply(**self._describe().fields()),
            "state": lambda request: request.reply(**self._state().fields()),
            "set": self._set,
            "scan": self._scan,
        }
        self.transport = Server(
            self._handle, CODEC, host, port, message_s=message_s, on_disconnect=self._client_left, faults=faults
        )

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.transport.host

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.transport.port

    @property
    def faults(self) -> Faults:
        """What goes wrong on the way; add to it at any time."""
        return self.transport.faults

    def __enter__(self) -> SemServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Blank the beam and listen; raises OSError when the port is taken."""
        self.blank()
        self.transport.start()

    def stop(self) -> None:
        """Finish the present frame, close every connection, and blank the beam."""
        self.transport.stop()
        self.blank()

    def blank(self) -> None:
        """Take the beam off the specimen."""
        with self._lock:
            if self._beam_timer is not None:
                self._beam_timer.cancel()
                self._beam_timer = None
            self.column.blanked = True

    def _client_left(self, left: int) -> None:
        logger.debug("a client left, %d remain; the beam is blanked", left)
        self.blank()

    def _handle(self, request: Message) -> Message:
        if request.name not in self._requests:
            raise RemoteError(
                f"the SEM knows no request {request.name!r}; it knows {', '.join(self._requests)}", "unknown"
            )
        with self._lock:
            try:
                return self._requests[request.name](request)
            except BaseException:
                self.blank()
                raise

    def _describe(self) -> Description:
        return Description(
            f"simulated SEM, setup {self.column.setup.name}",
            WORKING_DISTANCE_UM,
            STIGMATOR,
            PIXEL_NM,
            XY_UM,
            FRAMES,
            DWELLS_NS,
        )

    def _state(self) -> State:
        c = self.column
        width, height = c.frame
        return State(
            c.working_distance_um, c.stig_x, c.stig_y, c.pixel_nm, c.magnification, c.scan_rotation_deg, c.brightness,
            c.contrast, c.blanked, c.x_um, c.y_um, c.dwell_ns, width, height, c.dose, c.frame_dose(), c.frames,
        )  # fmt: skip

    def _set(self, request: Message) -> Message:
        values: dict[str, Any] = checked(request.fields)
        for name, limits in (
            ("x_um", XY_UM), ("y_um", XY_UM), ("brightness", PERCENT), ("contrast", PERCENT),
            ("scan_rotation_deg", TURN_DEG),
        ):  # fmt: skip
            if name in values and not limits[0] <= values[name] <= limits[1]:
                raise LimitError(f"{name}={values[name]:g} is outside {limits[0]:g} to {limits[1]:g}; nothing was set")
        for name in ("magnification", "dwell_ns"):
            if name in values and not values[name] > 0:
                raise LimitError(f"{name}={values[name]:g} must be above 0; nothing was set")
        frame: tuple[Any, Any] = values.pop("width", None), values.pop("height", None)
        if frame[0] is not None and frame not in FRAMES:
            raise LimitError(
                f"there are no frames of {frame[0]}x{frame[1]}, only {', '.join(f'{w}x{h}' for w, h in FRAMES)}; "
                "nothing was set"
            )
        # From here on nothing is refused: a request is applied completely or not at all.
        if frame[0] is not None and "frame" not in self.ignored:
            self.column.frame = frame
        for name, value in values.items():
            if name in self.ignored:
                continue
            low, high = self.clamped.get(name, (float("-inf"), float("inf")))
            setattr(self.column, name, min(max(value, low), high) if name != "blanked" else value)
        if "blanked" in values:
            self._watch_beam()
        return request.reply(**self._state().fields())

    def _watch_beam(self) -> None:
        beam_on = not self.column.blanked
        if self._beam_timer is not None:
            self._beam_timer.cancel()
            self._beam_timer = None
        if beam_on:
            self._beam_timer = threading.Timer(BEAM_ON_S, self.blank)
            self._beam_timer.daemon = True
            self._beam_timer.start()

    def _scan(self, request: Message) -> Message:
        roi = None
        if request.fields.get("roi") is not None:
            x, y, width, height = request.wholes("roi", 4)
            full_width, full_height = self.column.frame
            if not (x >= 0 and y >= 0 and width > 0 and height > 0) or (
                x + width > full_width or y + height > full_height
            ):
                raise LimitError(
                    f"roi {[x, y, width, height]} does not lie in the frame of {full_width}x{full_height} pixels; "
                    "nothing was scanned"
                )
            roi = x, y, width, height
        try:
            self.column.blanked = False
            image = self.column.scan(roi)
        finally:
            self.blank()
        height, width = image.shape
        scanned: dict[str, Any] = self._state().fields() | {"scanned_width": width, "scanned_height": height}
        return request.reply(payload=image.tobytes(), **scanned)
