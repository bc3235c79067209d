"""A simulated TEM behind a real socket, loaded into a real AutofocusCore, for the tests of its devices and demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_autofocus import Autofocus
from mm_autofocus.cli.demo_tem import configuration
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.strategies.aperture import Aperture
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.tem.server import TemServer


class AtFrame:
    """Brings the strategy, and calls something when a certain frame of a run has been taken."""

    def __init__(self, number: int = 0, do: Callable[[], None] = lambda: None) -> None:
        self.number, self.do, self.seen = number, do, 0

    @hookimpl
    def mmaf_strategies(self) -> tuple[type[Aperture]]:
        return (Aperture,)

    @hookimpl
    def mmaf_frame(self) -> None:
        self.seen += 1
        if self.seen == self.number:
            self.do()


@dataclass
class Bench:
    """The loaded microscope."""

    column: TemColumn
    server: TemServer
    core: AutofocusCore

    def align(self, hook: AtFrame | None = None, **changes: Any) -> FocusResult:
        autofocus = Autofocus(
            self.core,
            Settings.load(CONFIGS / "tem.toml"),
            plugins=[hook or AtFrame()],
            clock=lambda: self.column.clock_s,
            sleep=lambda _: None,
            **changes,
        )
        result = autofocus.focus().result
        autofocus.finish()
        assert result is not None
        return result

    def error(self) -> tuple[float, float]:
        truth = self.column.truth()
        x, y = self.core.getXYPosition("Aperture")
        return x - truth["aperture_x"], y - truth["aperture_y"]


@contextmanager
def microscope(folder: Path, column: TemColumn | None = None, **server: Any) -> Iterator[Bench]:
    column = column or TemColumn(1, capture="camera", size=128)
    with TemServer(column, **{"speed": 0.0, **server}) as served:
        path = folder / "tem.cfg"
        path.write_text(configuration(served.port), encoding="utf-8")
        core = AutofocusCore()
        try:
            core.loadSystemConfiguration(path)
            yield Bench(column, served, core)
        finally:
            core.unloadAllDevices()
