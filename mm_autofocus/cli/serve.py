"""Runs a simulated instrument's server until somebody stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mm_autofocus.errors import HardwareError


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
        if stop is not None:
            stop.wait()
        else:
            with _stop_signals() as signalled:
                while not signalled.wait(0.2):  # short waits: elsewhere than on POSIX a longer one delays Ctrl-C
                    pass
    finally:
        server.stop()
    return {
        "requests": server.transport.requests,
        "frames": column.frames,
        "dose_e_per_nm2": column.dose,
        "beam_blanked": column.blanked,
    }
