"""Runs a simulated instrument's server until somebody stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_autofocus.errors import HardwareError, SettingsError

if TYPE_CHECKING:
    from mm_autofocus.simulation.sem_column import Column


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; the handlers that were there come back."""
    stop = threading.Event()
    names = [name for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), lambda *_: stop.set()) for name in names}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def serve_sem(
    *,
    host: str,
    port: int,
    setup: str,
    specimen: str,
    seed: int,
    speed: float,
    drift_um_per_min: float,
    charging: float,
    blank_fraction: float,
    started: Callable[[dict[str, Any]], None],
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Serve a simulated SEM until Ctrl-C, SIGTERM or ``stop``; return what it did.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes that of the setup.
    setup, specimen, seed, speed, drift_um_per_min, charging, blank_fraction
        See `mm_autofocus.simulation.sem_column.Column`.
    started
        Called with host, port, setup and specimen when it listens.
    stop
        Ends it from another thread, without any signal handlers.

    Raises
    ------
    HardwareError
        It cannot listen there.
    """
    from mm_autofocus.simulation.sem_column import Column
    from mm_autofocus_devices.sem.protocol import PORT
    from mm_autofocus_devices.sem.server import SemServer

    column = Column(
        setup.upper(), specimen, seed, drift_um_per_min=drift_um_per_min, charging=charging,
        blank_fraction=blank_fraction, speed=speed,
    )  # fmt: skip
    server = SemServer(column, host, port or PORT + "AB".index(setup.upper()))
    try:
        server.start()
    except OSError as error:
        raise HardwareError(str(error)) from None
    try:
        started({"host": server.host, "port": server.port, "setup": setup, "specimen": specimen})
        _wait(stop)
    finally:
        server.stop()
    return _outcome(server.transport.requests, column)


def serve_coxem(
    *,
    host: str,
    port: int,
    folder: Path,
    setup: str,
    specimen: str,
    frame: str,
    seed: int,
    speed: float,
    drift_um_per_min: float,
    started: Callable[[dict[str, Any]], None],
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Serve a simulated SEM in the COXEM dialect until Ctrl-C, SIGTERM or ``stop``; return what it did.

    Parameters
    ----------
    host, port
        Where to listen.
    folder
        Where images go; made if missing.
    setup, specimen, seed, drift_um_per_min
        See `mm_autofocus.simulation.sem_column.Column`.
    frame
        Size of the images, "1024x768".
    speed
        0: frames and stage moves take no time; else their real time divided by this.
    started
        Called with host, port, folder, setup and specimen when it listens.
    stop
        Ends it from another thread, without any signal handlers.

    Raises
    ------
    HardwareError
        It cannot listen there, or cannot make the folder.
    SettingsError
        There are no frames of this size.
    """
    from mm_autofocus.simulation.sem_column import FRAMES, Column
    from mm_autofocus_devices.sem.coxem_server import CoxemServer

    sizes = {f"{width}x{height}": (width, height) for width, height in FRAMES}
    if frame not in sizes:
        raise SettingsError(f"There are no frames of {frame!r}; choose one of {', '.join(sizes)}.")
    column = Column(setup.upper(), specimen, seed, drift_um_per_min=drift_um_per_min, speed=speed)
    column.frame = sizes[frame]
    server = CoxemServer(column, folder, host, port, speed=speed)
    try:
        server.start()
    except OSError as error:
        raise HardwareError(str(error)) from None
    try:
        where = {"host": server.host, "port": server.port, "folder": str(folder), "setup": setup, "specimen": specimen}
        started(where)
        _wait(stop)
    finally:
        server.stop()
    return _outcome(server.transport.requests, column)


def _wait(stop: threading.Event | None) -> None:
    if stop is not None:
        stop.wait()
        return
    with _stop_signals() as signalled:
        while not signalled.wait(0.2):  # short waits: elsewhere than on POSIX a longer one delays Ctrl-C
            pass


def _outcome(requests: int, column: Column) -> dict[str, Any]:
    return {
        "requests": requests,
        "frames": column.frames,
        "dose_e_per_nm2": column.dose,
        "beam_blanked": column.blanked,
    }
