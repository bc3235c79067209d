"""Finds the simulated plate microscope by name, so that several devices and a scoring script share one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from mm_autofocus_devices.plate.instrument import PlateInstrument


@dataclass(slots=True)
class _Entry:
    instrument: PlateInstrument
    devices: int = 0


_lock = threading.Lock()
_entries: dict[str, _Entry] = {}


def open_instrument(name: str = "plate", **overrides: Any) -> PlateInstrument:
    """Return the instrument of that name, made on the first call.

    It is forgotten when the last Micro-Manager device that uses it shuts down.

    Parameters
    ----------
    name
        The device property ``Instrument``.
    **overrides
        Fields of `PlateOptions` to change; possible until the instrument is first used.

    Raises
    ------
    ValueError
        For an unknown option, or a different value once the instrument is in use.
    """
    with _lock:
        return _open(name, overrides).instrument


def _open(name: str, overrides: dict[str, Any]) -> _Entry:
    entry = _entries.get(name) or _Entry(PlateInstrument())
    entry.instrument.configure(**overrides)
    _entries[name] = entry
    return entry


def attach(name: str, **overrides: Any) -> PlateInstrument:
    """Open the instrument for a device, which calls `detach` when it shuts down."""
    with _lock:
        entry = _open(name, overrides)
        entry.devices += 1
        return entry.instrument


def detach(name: str, instrument: PlateInstrument) -> None:
    """Release what `attach` returned; the instrument is forgotten with its last device."""
    with _lock:
        entry = _entries.get(name)
        if entry is None or entry.instrument is not instrument:
            return  # discarded in the meantime
        entry.devices -= 1
        if entry.devices <= 0:
            del _entries[name]


def discard_instrument(name: str = "plate") -> None:
    """Forget the instrument of that name; devices that hold it keep it, later ones get a new one."""
    with _lock:
        _entries.pop(name, None)
