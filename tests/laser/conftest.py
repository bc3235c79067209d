"""What the laser tests share: one simulated spot, one day of an instrument that no model was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.readouts import load_model
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.settings import Settings
from mm_autofocus.simulation.laser_day import Family, LaserDay, instrument, make_day
from mm_autofocus.simulation.laser_spot import LaserSpot, Shot
from mm_autofocus.strategies.laser import Laser, LaserSettings
from mm_autofocus.strategy import Frame, Verdict
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.laser import discard_laser
from mm_autofocus_devices.plate import discard_instrument, open_instrument


class Brings:
    """A plugin that brings the strategy, whether or not an entry point does."""

    @hookimpl
    def mmaf_strategies(self) -> Any:
        return (Laser,)


class Bench:
    """A stage over a coverslip, and the laser's camera: drives one strategy without a core."""

    def __init__(self, spot: LaserSpot, day: LaserDay, surface: float = 0.0) -> None:
        self.spot, self.state, self.surface = spot, day.state(1.0), surface
        self.rng = np.random.default_rng(5)
        self.shot: Callable[[int], Shot] = lambda frame: Shot()
        self.change: Callable[[np.ndarray], np.ndarray] = lambda image: image
        self.frozen = False
        self.visited: list[float] = []

    def focus(self, laser: Laser, start: float, low: float = -240.0, high: float = 240.0) -> Verdict:
        request = FocusRequest(Event(), {"z": start}, {"z": Limits(low, high)}, depth_of_field_um=0.6)
        generator = laser.focus(request)
        look = next(generator)
        while True:
            z = look.targets["z"]
            assert low <= z <= high
            self.visited.append(z)
            image = self.image(start if self.frozen else z)
            try:
                look = generator.send(Frame(image, {"z": z}))
            except StopIteration as stop:
                return stop.value

    def image(self, z: float) -> np.ndarray:
        shot = self.shot(len(self.visited))
        return self.change(self.spot.images(z - self.surface, self.state, self.rng, shot)[0])


@pytest.fixture(scope="session")
def spot() -> LaserSpot:
    return LaserSpot(seed=4321)


@pytest.fixture(scope="session")
def day() -> LaserDay:
    return make_day(instrument(88_000_001), 7100, Family.HELD_OUT)


@pytest.fixture
def bench(spot: LaserSpot, day: LaserDay) -> Bench:
    return Bench(spot, day)


@pytest.fixture(scope="session")
def model() -> Any:
    return load_model()


@pytest.fixture
def laser() -> Laser:
    return Laser(LaserSettings())


@pytest.fixture
def core() -> Iterator[AutofocusCore]:
    discard_instrument()
    discard_laser()
    core = AutofocusCore()
    core.loadSystemConfiguration(CONFIGS / "plate_laser.cfg")
    device(core).use(orchestrator(core))
    yield core
    core.unloadAllDevices()
    discard_instrument()
    discard_laser()


def device(core: AutofocusCore) -> Any:
    return core._pydevices["Autofocus"]


def settings(**changes: Any) -> Settings:
    data = Settings.load(CONFIGS / "plate_laser.toml").model_dump(exclude_unset=True)
    return Settings.parse({**data, **changes})


def orchestrator(core: AutofocusCore, **changes: Any) -> Autofocus:
    scope = open_instrument()
    return Autofocus(
        core, settings(**changes), plugins=[Brings()], clock=lambda: scope.clock_s, sleep=scope.advance
    )  # fmt: skip


@pytest.fixture
def tools() -> Any:
    """The functions above, for tests that need them by name."""

    class Tools:
        pass

    tools = Tools()
    tools.device, tools.settings, tools.orchestrator, tools.brings = device, settings, orchestrator, Brings
    return tools
