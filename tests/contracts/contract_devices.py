"""Python devices for the contract tests: small, instant, and countable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mm_test_adapters
import numpy as np
from pymmcore_plus.core import DeviceType, FocusDirection
from pymmcore_plus.experimental.unicore import (
    GenericDevice,
    ShutterDevice,
    SimpleCameraDevice,
    StageDevice,
    XYStageDevice,
    pymm_property,
)

from mm_autofocus.errors import FocusError
from mm_autofocus_devices.autofocus_device import AutoFocusDevice
from mm_autofocus_devices.core import AutofocusCore

FORBIDDEN_Z = 12345.0


class Camera(SimpleCameraDevice):
    """Images of one constant value."""

    value = 1
    shape_ = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.exposure = 10.0
        self.snapped_with: list[float] = []
        self.failures: list[Exception] = []
        self.on_snap = lambda: None

    def get_exposure(self) -> float:
        return self.exposure

    def set_exposure(self, exposure: float) -> None:
        self.exposure = exposure

    def sensor_shape(self) -> tuple[int, int]:
        return self.shape_

    def dtype(self) -> Any:
        return np.uint8

    def snap(self, buffer: np.ndarray) -> Mapping[str, Any]:
        self.on_snap()
        if self.failures:
            raise self.failures.pop(0)
        self.snapped_with.append(self.exposure)
        buffer[:] = self.value
        return {}


class OtherCamera(Camera):
    value = 2
    shape_ = (3, 5)


class ImagelessCamera(Camera):
    def start_sequence(self, n: int | None, get_buffer: Any) -> Any:
        return iter(())


class Stage(StageDevice):
    """A focus drive with an end switch at `FORBIDDEN_Z`."""

    def __init__(self) -> None:
        super().__init__()
        self.z = 0.0
        self.moves: list[float] = []
        self.direction = FocusDirection.Unknown

    def home(self) -> None: ...
    def stop(self) -> None: ...
    def set_origin(self) -> None: ...

    def set_position_um(self, val: float) -> None:
        if val == FORBIDDEN_Z:
            raise RuntimeError("the stage hit its end switch")
        self.z = val
        self.moves.append(val)

    def get_position_um(self) -> float:
        return self.z

    def get_focus_direction(self) -> FocusDirection:
        return self.direction

    def set_focus_direction(self, sign: int) -> None:
        self.direction = FocusDirection(sign)


class SequenceableStage(Stage):
    def __init__(self) -> None:
        super().__init__()
        self.sequences: list[tuple[float, ...]] = []

    def get_sequence_max_length(self) -> int:
        return 100

    def send_sequence(self, sequence: tuple[float, ...]) -> None:
        self.sequences.append(sequence)

    def start_sequence(self) -> None: ...
    def stop_sequence(self) -> None: ...


class XYStage(XYStageDevice):
    def __init__(self) -> None:
        super().__init__()
        self.xy = (0.0, 0.0)
        self.moves: list[tuple[float, float]] = []

    def home(self) -> None: ...
    def stop(self) -> None: ...
    def set_origin_x(self) -> None: ...
    def set_origin_y(self) -> None: ...

    def set_position_um(self, x: float, y: float) -> None:
        self.xy = (x, y)
        self.moves.append((x, y))

    def get_position_um(self) -> tuple[float, float]:
        return self.xy


class Shutter(ShutterDevice):
    def __init__(self) -> None:
        super().__init__()
        self.open = False

    def get_open(self) -> bool:
        return self.open

    def set_open(self, open: bool) -> None:
        self.open = open


class Instrument(GenericDevice):
    """A device that opens its connection in initialize()."""

    _host = "localhost"
    _volts = 0.0

    @pymm_property(is_pre_init=True, name="Host")
    def host(self) -> str:
        return self._host

    @host.setter
    def _set_host(self, value: str) -> None:
        self._host = value

    @pymm_property(limits=(0, 5), name="Volts")
    def volts(self) -> float:
        return self._volts

    @volts.setter
    def _set_volts(self, value: float) -> None:
        self._volts = value

    def initialize(self) -> None:
        if self._host == "nowhere":
            raise ConnectionError("no answer from nowhere:4000; is the instrument switched on?")


class Autofocus(AutoFocusDevice):
    """Moves by `step`, or raises what `failures` holds."""

    step = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.runs = 0
        self.offset = 0.0
        self.continuous = False
        self.seen_locked: list[bool] = []
        self.on_focus = lambda core: None

    def full_focus(self, core: AutofocusCore) -> None:
        self.runs += 1
        self.seen_locked.append(self.locked())
        self.on_focus(core)
        if self.failures:
            raise self.failures.pop(0)
        core.setPosition(core.getPosition() + self.step)

    def incremental_focus(self, core: AutofocusCore) -> None:
        core.setPosition(core.getPosition() + 1)

    def get_last_score(self) -> float:
        return 0.7

    def get_current_score(self, core: AutofocusCore) -> float:
        return core.getPosition()

    def get_offset(self) -> float:
        return self.offset

    def set_offset(self, offset: float) -> None:
        self.offset = offset

    def set_continuous_focus(self, enabled: bool) -> None:
        self.continuous = enabled

    def get_continuous_focus(self) -> bool:
        return self.continuous

    def is_continuous_focus_locked(self) -> bool:
        return self.continuous


class PlainAutofocus(AutoFocusDevice):
    """Only what the base class demands."""

    _TYPE: ClassVar[Any] = DeviceType.AutoFocus

    def full_focus(self, core: AutofocusCore) -> None:
        raise FocusError("no signal at well A1; check the lamp")


def empty_core() -> AutofocusCore:
    return AutofocusCore(adapter_paths=[mm_test_adapters.device_adapter_path()])


def make_core(stage: type[Stage] = Stage) -> AutofocusCore:
    """A core with Python devices in every role but Shutter, and DemoCamera's DCam, DZ, DAF and DShutter beside them."""
    core = empty_core()
    for label, device in {
        "Cam": Camera(),
        "Cam2": OtherCamera(),
        "Z": stage(),
        "XY": XYStage(),
        "AF": Autofocus(),
        "Thing": Instrument(),
        "Shutter": Shutter(),
    }.items():
        core.loadPyDevice(label, device)
    for label, name in {"DCam": "DCam", "DZ": "DStage", "DAF": "DAutoFocus", "DShutter": "DShutter"}.items():
        core.loadDevice(label, "DemoCamera", name)
    core.initializeAllDevices()
    core.setProperty("DCam", "FastImage", 1)
    core.setCameraDevice("Cam")
    core.setFocusDevice("Z")
    core.setXYStageDevice("XY")
    core.setAutoFocusDevice("AF")
    return core


def device(core: AutofocusCore, label: str) -> Any:
    return core._pydevices[label]
