"""Makes `contract_devices` importable, here and in subprocesses, and gives each test its own core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.append(str(_HERE))


def _run(script: str, timeout: float = 90) -> Any:
    """Run a script of this folder in a process of its own and return the JSON of the last line it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, str(_HERE / script)], env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def run_script() -> Callable[..., Any]:
    return _run


@pytest.fixture
def core() -> Iterator[Any]:
    from contract_devices import make_core

    core = make_core()
    yield core
    core.unloadAllDevices()
