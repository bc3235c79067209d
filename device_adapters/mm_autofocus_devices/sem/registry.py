"""Finds the client of an SEM by its address, so that the devices of one instrument share one connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mm_autofocus_devices.sem.instrument import Sem, SemClient

Make = Callable[[str, int, float, float], Sem]
"""Makes the client of a dialect from host, port, time-out and time to keep trying, both in seconds."""
Key = tuple[str, str, int]
"""Dialect, host, port."""

DIALECTS: dict[str, Make] = {"native": SemClient}


@dataclass(slots=True)
class _Entry:
    sem: Sem
    devices: int = 0


_lock = threading.Lock()
_entries: dict[Key, _Entry] = {}


def attach(key: Key, timeout_s: float, retry_s: float) -> Sem:
    """Return the client for this dialect and address; each device calls `detach` in the end.

    The first device that calls makes it, with its times.
    """
    dialect, host, port = key
    with _lock:
        if key not in _entries:
            _entries[key] = _Entry(DIALECTS[dialect](host, port, timeout_s, retry_s))
        _entries[key].devices += 1
        return _entries[key].sem


def detach(key: Key, sem: Sem) -> None:
    """Release what `attach` returned; the connection is closed with the last device."""
    with _lock:
        entry = _entries.get(key)
        if entry is None or entry.sem is not sem:
            return
        entry.devices -= 1
        if entry.devices > 0:
            return
        del _entries[key]
    sem.close()
