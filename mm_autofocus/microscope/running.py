"""Finds the Micro-Manager core that runs in this process."""

from __future__ import annotations

import sys
from typing import Any

from mm_autofocus.errors import SettingsError


def running_core() -> Any:
    """Return the core of pycro-manager or of pymmcore-plus, whichever runs.

    Raises
    ------
    SettingsError
        When none does.
    """
    launcher = sys.modules.get("mmpycorex.launcher")
    cores = getattr(launcher, "_PYMMCORES", None)
    if cores:
        return cores[0]  # the one that pycromanager.Core() returns
    if getattr(launcher, "_JAVA_HEADLESS_SUBPROCESSES", None) and "pycromanager" in sys.modules:
        return sys.modules["pycromanager"].Core()
    if "pymmcore_plus" in sys.modules:
        core = sys.modules["pymmcore_plus"].CMMCorePlus.instance()
        if len(core.getLoadedDevices()) > 1:
            return core
    raise SettingsError(
        "no Micro-Manager core with a configuration runs in this process; pass one: Autofocus(core), with a pymmcore, "
        "pymmcore-plus or pycro-manager core"
    )
