"""Finds the client of an SEM by its address, so that the devices of one instrument share one connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.sem.instrument import Sem, SemClient

Make = Callable[[str, int, float, float, str], Sem]
"""Makes the client of a dialect from host, port, time-out and time to keep trying, both in seconds, and its options."""
Key = tuple[str, str, int]
"""Dialect, host, port."""


def _native(host: str, port: int, timeout_s: float, retry_s: float, options: str) -> Sem:
    if options:
        raise HardwareError(f"the native dialect of the SEM has no options; leave Options empty, not {options!r}")
    return SemClient(host, port, timeout_s, retry_s)


def _coxem(host: str, port: int, timeout_s: float, retry_s: float, options: str) -> Sem:
    from mm_autofocus_devices.sem import coxem  # reads JPEGs, which only this dialect needs

    return coxem.connect(host, port, timeout_s, retry_s, options)


DIALECTS: dict[str, Make] = {"native": _native, "coxem": _coxem}


@dataclass(slots=True)
class _Entry:
    sem: Sem
    options: str
    devices: int = 0


_lock = threading.Lock()
_entries: dict[Key, _Entry] = {}


def attach(key: Key, timeout_s: float, retry_s: float, options: str = "") -> Sem:
    """Return the client for this dialect and address; each device calls `detach` in the end.

    The first device that calls makes it, with its times.

    Raises
    ------
    HardwareError
        The dialect does not understand the options, or they differ from those of the first device.
    """
    dialect, host, port = key
    with _lock:
        if key not in _entries:
            _entries[key] = _Entry(DIALECTS[dialect](host, port, timeout_s, retry_s, options), options)
        elif _entries[key].options != options:
            raise HardwareError(
                f"two devices of the SEM at {host}:{port} have different Options, {_entries[key].options!r} and "
                f"{options!r}; "
                "give all devices of an instrument the same"
            )
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
