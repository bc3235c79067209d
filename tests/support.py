"""What several tests share: a core that keeps a log and can break, and strategies that misbehave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.settings import Settings
from mm_autofocus.strategy import Frame, Look, StrategySettings, Verdict


class FakeCore:
    """The part of pymmcore that the facade uses: one camera, one stage, one shutter, and every command in ``log``."""

    def __init__(self, focus: float = 3.0, low: float = -100.0, high: float = 100.0) -> None:
        self.focus = focus
        self.z = 0.0
        self.low, self.high = low, high
        self.camera, self.exposure, self.roi = "Camera", 10.0, [0, 0, 64, 48]
        self.binning = "1"
        self.auto_shutter, self.shutter_open = True, False
        self.log: list[float] = []
        self.snaps = 0
        self.snap_failures: Iterator[BaseException | None] | None = None
        self.set_failure: BaseException | None = None
        self.on_set: Callable[[float], float] = lambda z: z
        self.noise = 0.0

    # roles and devices
    def getLoadedDevices(self) -> list[str]:
        return ["Camera", "Z", "Shutter", "Core"]

    def getCameraDevice(self) -> str:
        return self.camera

    def setCameraDevice(self, label: str) -> None:
        self.camera = label

    def getFocusDevice(self) -> str:
        return "Z"

    def getXYStageDevice(self) -> str:
        return ""

    def getShutterDevice(self) -> str:
        return "Shutter"

    def getAvailableConfigGroups(self) -> list[str]:
        return []

    def getAvailableConfigs(self, group: str) -> list[str]:
        return []

    def hasProperty(self, device: str, name: str) -> bool:
        return (device, name) in (("Camera", "Binning"), ("Z", "Position"))

    def hasPropertyLimits(self, device: str, name: str) -> bool:
        return (device, name) == ("Z", "Position")

    def getPropertyLowerLimit(self, device: str, name: str) -> float:
        return self.low

    def getPropertyUpperLimit(self, device: str, name: str) -> float:
        return self.high

    def getProperty(self, device: str, name: str) -> str:
        return self.binning

    def setProperty(self, device: str, name: str, value: str) -> None:
        self.binning = value

    # camera and shutter
    def getExposure(self) -> float:
        return self.exposure

    def setExposure(self, value: float) -> None:
        self.exposure = value

    def getROI(self) -> list[int]:
        return list(self.roi)

    def setROI(self, x: int, y: int, w: int, h: int) -> None:
        self.roi = [x, y, w, h]

    def clearROI(self) -> None:
        self.roi = [0, 0, 64, 48]

    def getAutoShutter(self) -> bool:
        return self.auto_shutter

    def setAutoShutter(self, value: bool) -> None:
        self.auto_shutter = value

    def getShutterOpen(self) -> bool:
        return self.shutter_open

    def setShutterOpen(self, value: bool) -> None:
        self.shutter_open = value

    def getPixelSizeUm(self) -> float:
        return 0.325

    def getNumberOfComponents(self) -> int:
        return 1

    def snapImage(self) -> None:
        self.snaps += 1
        if self.snap_failures is not None and (error := next(self.snap_failures, None)) is not None:
            raise error

    def getImage(self) -> Any:
        sharpness = 1.0 / (1.0 + ((self.z - self.focus) / 4.0) ** 2)
        rng = np.random.default_rng(self.snaps)
        pattern = np.indices((self.roi[3], self.roi[2])).sum(axis=0) % 2
        image = 1000.0 + 500.0 * sharpness * pattern + self.noise * rng.standard_normal(pattern.shape)
        return image.astype(np.uint16)

    # stage
    def getPosition(self, device: str) -> float:
        return self.z

    def setPosition(self, device: str, value: float) -> None:
        self.log.append(value)
        if self.set_failure is not None:
            raise self.set_failure
        self.z = self.on_set(value)

    def waitForDevice(self, device: str) -> None:
        pass


def contrast(frame: Frame) -> float:
    image = np.asarray(frame.image, dtype=float)
    return float(np.square(np.diff(image, axis=1)).mean() / image.mean())


class Stack:
    """A minimal honest strategy: look at a few planes, answer with the sharpest."""

    name: ClassVar[str] = "test-stack"

    class Settings(StrategySettings):
        planes: tuple[float, ...] = (-8.0, -4.0, 0.0, 4.0, 8.0)
        range_um: float = 20.0

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings or self.Settings()

    def focus(self, request: FocusRequest) -> Any:
        scores, places = [], []
        for plane in self.settings.planes:
            frame = yield Look({"z": request.limits["z"].clip(request.start["z"] + plane)})
            scores.append(contrast(frame))
            places.append(frame.knobs["z"])
        best = int(np.argmax(scores))
        return Verdict({"z": places[best]}, 0.9, scores=tuple(scores))

    def score(self, frame: Frame) -> float:
        return contrast(frame)


class Scripted:
    """Plays back a list of steps: Looks, callables, exceptions, and at the end whatever it shall return."""

    name: ClassVar[str] = "scripted"

    class Settings(StrategySettings):
        pass

    def __init__(self, steps: list[Any], answer: Any = None, score: Callable[[Frame], float] = contrast) -> None:
        self.settings = self.Settings()
        self._steps, self._answer, self._score = steps, answer, score
        self.thrown: list[BaseException] = []
        self.catch = False

    def focus(self, request: FocusRequest) -> Any:
        for step in self._steps:
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                step = step(request)
            try:
                yield step
            except RuntimeError as error:
                self.thrown.append(error)
                if not self.catch:
                    raise
        return self._answer

    def score(self, frame: Frame) -> float:
        return self._score(frame)


def request(core: FakeCore, **changes: Any) -> FocusRequest:
    values: dict[str, Any] = {
        "event": Event(axes={"position": 0}, label="A1"),
        "start": {"z": core.z},
        "limits": {"z": Limits(core.low, core.high)},
        "depth_of_field_um": 2.0,
    }
    return FocusRequest(**{**values, **changes})


def settings(**changes: Any) -> Settings:
    return Settings.parse({"microscope": {"depth_of_field_um": 2.0}, **changes})


def state(core: FakeCore) -> tuple[Any, ...]:
    return (
        core.camera, core.exposure, tuple(core.roi), core.binning, core.auto_shutter, core.shutter_open,
        round(core.z, 6),
    )  # fmt: skip


def finite(value: float) -> bool:
    return math.isfinite(value)
