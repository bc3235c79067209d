"""A server that misbehaves on purpose: how a bad network, a crash or a foreign program looks to the client."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mm_autofocus_devices.transport.framing import PREFIX
from mm_autofocus_devices.transport.message import Message


class FaultKind(StrEnum):
    """What happens to a request or to its reply."""

    CLOSE_BEFORE = "close-before"
    """The connection closes and the request is not applied."""
    CLOSE_AFTER = "close-after"
    """The request is applied, its reply is lost."""
    CLOSE_MID_FRAME = "close-mid-frame"
    """Half of the reply, then the connection closes."""
    HALF_A_FRAME = "half-a-frame"
    """Half of the reply, then silence."""
    GARBAGE = "garbage"
    """Noise in place of the reply."""
    SLOW = "slow"
    """The reply in small pieces with pauses."""
    SILENT = "silent"
    """No reply at all."""
    WRONG_LENGTH = "wrong-length"
    """The reply announces one byte of payload too few."""
    HUGE_LENGTH = "huge-length"
    """The reply announces a payload of 10 GB."""


CLOSE: Final = None
"""A step that closes the connection."""
Step = bytes | float | None
"""Bytes to send, seconds to pause, or `CLOSE`."""

_TEN_GB = 10 * 10**9
_SILENCE_S = 3600.0


@dataclass(slots=True)
class Fault:
    """What shall go wrong, when.

    Attributes
    ----------
    kind
        What.
    request
        Name of the requests it strikes; "" for any.
    skip, times
        How many of those pass before, and how many it strikes.
    pause_s
        Pause between pieces of a slow reply, which come in 16.
    """

    kind: FaultKind
    request: str = ""
    skip: int = 0
    times: int = 1
    pause_s: float = 0.01


class Faults:
    """The faults of a server; add some at any time. Each request meets the first one that is due."""

    def __init__(self, *faults: Fault) -> None:
        self._pending = list(faults)
        self._lock = threading.Lock()
        self.struck: list[tuple[str, FaultKind]] = []
        """Name of the request and kind, for every fault that has happened."""

    def add(self, fault: Fault) -> None:
        """Let something go wrong from now on."""
        with self._lock:
            self._pending.append(fault)

    def clear(self) -> None:
        """Let nothing go wrong from now on."""
        with self._lock:
            self._pending.clear()

    def due(self, request: Message) -> Fault | None:
        """Return what happens to this request, and count it."""
        with self._lock:
            for fault in self._pending:
                if fault.times <= 0 or fault.request not in ("", request.name):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                self.struck.append((request.name, fault.kind))
                return fault
        return None


def steps(fault: Fault | None, data: bytes) -> Iterator[Step]:
    """Yield what to do in place of sending ``data``, an encoded reply."""
    half = data[: len(data) // 2]
    match fault.kind if fault is not None else None:
        case None | FaultKind.CLOSE_BEFORE:
            yield data
        case FaultKind.CLOSE_AFTER:
            yield CLOSE
        case FaultKind.CLOSE_MID_FRAME:
            yield half
            yield CLOSE
        case FaultKind.HALF_A_FRAME:
            yield half
            yield _SILENCE_S
        case FaultKind.SILENT:
            yield _SILENCE_S
        case FaultKind.GARBAGE:
            yield bytes((7 * i + 13) % 251 for i in range(997))
        case FaultKind.SLOW:
            piece = max(len(data) // 16, 1)
            for start in range(0, len(data), piece):
                yield data[start : start + piece]
                yield fault.pause_s if fault is not None else 0.0
        case FaultKind.WRONG_LENGTH:
            yield _with_payload_length(data, -1)
        case FaultKind.HUGE_LENGTH:
            yield _with_payload_length(data, _TEN_GB)


def _with_payload_length(data: bytes, change: int) -> bytes:
    """Return a native frame that announces another length of payload (of header, when it has no payload)."""
    *head, header, payload, session, number = PREFIX.unpack_from(data)
    if change < 0 and payload == 0:
        header += change
    else:
        payload += change
    try:
        return PREFIX.pack(*head, header, payload, session, number) + data[PREFIX.size :]
    except struct.error:
        return data[: PREFIX.size]
