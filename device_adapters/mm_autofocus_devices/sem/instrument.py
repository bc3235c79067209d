"""The SEM as plain Python over TCP: what Micro-Manager devices, scripts and calibration use."""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.sem.protocol import CODEC, RESTORED, Description, State, checked
from mm_autofocus_devices.transport import Client, ProtocolError

logger = logging.getLogger(__name__)

Roi = tuple[int, int, int, int]
RETRY_S = 25.0
"""How long a request keeps trying while the server is away: less than the 30 s that a snap may take."""


class Sem(Protocol):
    """What the devices need of an SEM, whatever dialect it speaks; see `SemClient`."""

    def describe(self) -> Description:
        """Return what the instrument is and can do."""
        ...

    def state(self) -> State:
        """Return where everything stands."""
        ...

    def set(self, **values: float | bool) -> State:
        """Change settings and return what the instrument made of them."""
        ...

    def scan(self, roi: Roi | None = None) -> NDArray[np.uint8]:
        """Scan one frame, or the part ``roi`` of it."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class SemClient:
    """An SEM behind TCP, in the native dialect; usable from several threads.

    Every request is absolute, or harmless when repeated (a frame costs its dose again), so a request whose answer was
    lost is repeated. When the server was restarted and has lost its settings, the last known ones are put back before
    anything else; the beam stays blanked.

    Parameters
    ----------
    host, port
        The server.
    timeout_s
        Longest wait for one answer, beyond a frame's own time.
    retry_s
        How long a request keeps trying while the server is away.
    """

    def __init__(self, host: str, port: int, timeout_s: float = 5.0, retry_s: float = RETRY_S) -> None:
        self.client = Client(
            host, port, CODEC, timeout_s=timeout_s, request_s=max(retry_s, timeout_s), on_restart=self._restore
        )
        self._known: State | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> SemClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, upon which the server blanks the beam; the next request opens a new one."""
        self.client.close()

    def describe(self) -> Description:
        """Return what the instrument is and can do.

        Raises
        ------
        HardwareError
            The server cannot be reached, or does not answer as an SEM.
        """
        with self._lock:  # always before the client's own: a restart makes the client ask for our settings
            return Description.of(self.client.request("describe", idempotent=True))

    def state(self) -> State:
        """Return where everything stands; raises what `describe` raises."""
        with self._lock:
            self._known = State.of(self.client.request("state", idempotent=True))
            return self._known

    def set(self, **values: float | bool) -> State:
        """Change settings (`mm_autofocus_devices.sem.protocol.WRITABLE`), all or none.

        Returns
        -------
        State
            What the instrument reports afterwards: it clamps some values to its ranges, so compare.

        Raises
        ------
        HardwareError
            It refuses a value (then nothing was set), or cannot be reached.
        """
        wanted = checked(values)
        with self._lock:
            self._known = State.of(self.client.request("set", idempotent=True, **wanted))
            return self._known

    def scan(self, roi: Roi | None = None) -> NDArray[np.uint8]:
        """Scan one frame; the beam is blanked before and after.

        Parameters
        ----------
        roi
            (x, y, width, height) of the part to scan, pixels of the frame; the whole frame if None.

        Returns
        -------
        array
            Shape (height, width), 8 bits.

        Raises
        ------
        HardwareError
            The part is not in the frame, or the server cannot be reached or sends something else.
        """
        with self._lock:
            known = self._known or self.state()
            reply = self.client.request(
                "scan", idempotent=True, extra_s=known.scan_s(roi), roi=list(roi) if roi is not None else None
            )
            self._known = State.of(reply)
            shape = reply.whole("scanned_height"), reply.whole("scanned_width")
            wanted = (self._known.height, self._known.width) if roi is None else (roi[3], roi[2])
            if shape != wanted or len(reply.payload) != shape[0] * shape[1]:
                raise ProtocolError(
                    f"the SEM sent {len(reply.payload)} bytes as {shape[1]}x{shape[0]} pixels where "
                    f"{wanted[1]}x{wanted[0]} were asked for; the frame is refused"
                )
            return np.frombuffer(reply.payload, np.uint8).reshape(shape)

    def _restore(self) -> None:
        """Give a restarted server the settings that it had."""
        with self._lock:
            if (known := self._known) is None:
                return
            present = State.of(self.client.request("state", idempotent=True))
            lost = {name: getattr(known, name) for name in RESTORED if getattr(present, name) != getattr(known, name)}
            if "width" in lost or "height" in lost:
                lost |= {"width": known.width, "height": known.height}
            if not lost:
                return
            logger.warning("the SEM at %s was restarted and is given back its settings: %s", self.client.address, lost)
            now = State.of(self.client.request("set", idempotent=True, **lost))
            kept = {name: getattr(now, name) for name in lost if not _near(getattr(now, name), getattr(known, name))}
            if kept:
                raise HardwareError(
                    f"the SEM at {self.client.address} was restarted and does not take its settings back: "
                    f"{', '.join(f'{name} is {value}, not {getattr(known, name)}' for name, value in kept.items())}. "
                    "Check the instrument, and set them by hand."
                )
            self._known = dataclasses.replace(now)


def _near(present: float, wanted: float) -> bool:
    return abs(present - wanted) <= 1e-6 * max(abs(wanted), 1.0)
