"""A simulated SEM on a server, and a Micro-Manager core that is connected to it: what the device tests share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import mm_autofocus_devices
from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus_devices.core import AutofocusCore

CONFIGS = Path(mm_autofocus_devices.__path__[0]) / "configs"
BEST = (4500.0, 0.25, -0.5)
"""Working distance and stigmators that are best for the columns made here."""


class Texture:
    """A specimen that is quick to draw: the same random grain everywhere, flat."""

    def __init__(self, seed: int = 0) -> None:
        grain = gaussian_filter(np.random.default_rng(seed).standard_normal((1024, 1024)), 1.5, mode="wrap")
        self._grain = np.clip(0.5 + 0.25 * grain / grain.std(), 0, 1).astype(np.float32)

    def view(
        self, x_um: float, y_um: float, pixel_um: float, shape: tuple[int, int], rotation_deg: float = 0.0
    ) -> NDArray[np.float32]:
        del rotation_deg
        rows = (round(y_um / pixel_um) - shape[0] // 2 + np.arange(shape[0])) % 1024
        columns = (round(x_um / pixel_um) - shape[1] // 2 + np.arange(shape[1])) % 1024
        return self._grain[np.ix_(rows, columns)]

    def height_um(self, x_um: float, y_um: float) -> float:
        del x_um, y_um
        return 0.0


def make_column(setup: str = "A", seed: int = 1, **options: Any) -> Column:
    """A column whose best settings are `BEST` (setup B: 6000 µm), over a specimen that costs no time."""
    specimen: Any = Texture(seed)
    return Column(setup, "tin", seed, specimen=specimen, zero_error=Aberration(0.0, -BEST[1], -BEST[2]), **options)


def configuration(
    folder: Path, port: int, *, name: str = "sem", timeout_s: float = 2.0, retry_s: float = 20.0, frame: str = "320x240"
) -> Path:
    """Write sem.cfg for another port, quicker time-outs, small frames, and focusing by "sweep"."""
    text = (CONFIGS / f"{name}.cfg").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if ",Port," in line:
            head = line.rpartition(",Port,")[0]
            lines += [f"{head},Port,{port}", f"{head},Timeout,{timeout_s}", f"{head},RetryFor,{retry_s}"]
        elif ",FrameSize," in line:
            lines.append(line.rpartition(",")[0] + f",{frame}")
        elif ",Settings," in line:
            lines += [line, line.rpartition(",Settings,")[0] + ",Strategy,sweep"]
        else:
            lines.append(line)
    path = folder / f"{name}-{port}.cfg"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> AutofocusCore:
    """Load a configuration into a new core."""
    core = AutofocusCore()
    core.loadSystemConfiguration(path)
    return core


def knobs(core: Any) -> tuple[float, float, float]:
    """Working distance and stigmators, as the core reads them."""
    return (core.getPosition("WorkingDistance"), core.getXPosition("Stigmators"), core.getYPosition("Stigmators"))


def until(true: Callable[[], bool], what: str = "it never happened", seconds: float = 20.0) -> None:
    """Wait for something that must happen soon."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
