"""Run pycro-manager's Python backend on an `AutofocusCore`: ``Acquisition`` and ``Core()`` then use that core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_autofocus_devices.core import AutofocusCore

_started: list[AutofocusCore] = []


def start(core: AutofocusCore) -> None:
    """Make pycro-manager use `core`, in the place of ``pycromanager.start_headless(python_backend=True)``.

    ``pycromanager.Core()`` returns this core from now on and ``pycromanager.Acquisition`` runs on it. Starting with
    another core replaces the one before; starting twice with the same one changes nothing. The core's devices stay
    the caller's: `stop` does not unload them.

    Raises
    ------
    ImportError
        pycro-manager is not installed: ``pip install pycromanager``.
    """
    from mmpycorex.launcher import _PYMMCORES
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    if any(started is core for started in _started):
        return
    stop()
    _shut_down_engine()  # one that start_headless() left behind drives a core that is gone
    _PYMMCORES.insert(0, core)  # Core() returns the first
    Engine(core)
    _started.append(core)


def stop() -> None:
    """Undo `start`; does nothing when nothing was started."""
    from mmpycorex.launcher import _PYMMCORES

    if not _started:
        return
    _shut_down_engine()
    core = _started.pop()
    _PYMMCORES[:] = [other for other in _PYMMCORES if other is not core]


@contextmanager
def pycromanager_core(core: AutofocusCore) -> Iterator[AutofocusCore]:
    """Run pycro-manager on `core` within a ``with`` block.

    Raises
    ------
    ImportError
        pycro-manager is not installed: ``pip install pycromanager``.
    """
    start(core)
    try:
        yield core
    finally:
        stop()


def _shut_down_engine() -> None:
    """Shut down pycro-manager's engine, if there is one; ``Engine`` keeps the first one made for ever otherwise."""
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    engine = Engine.get_instance()
    if engine is not None:
        engine.shutdown()
        del Engine.singleton
