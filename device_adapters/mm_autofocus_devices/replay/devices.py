"""Micro-Manager devices that replay a recorded z-stack: a camera and the stage that it hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from pymmcore_plus import Keyword
from pymmcore_plus.experimental.unicore import SimpleCameraDevice, StageDevice

from mm_autofocus_devices.replay.instrument import RecordedStack, no_recording

_open: dict[str, RecordedStack] = {}
"""Recordings by the name that camera and stage share."""


def publish(name: str, stack: RecordedStack) -> None:
    """Give a recording to the devices whose property ``Recording`` is ``name``, before they are initialized."""
    _open[name] = stack


class ReplayCamera(SimpleCameraDevice):
    """Shows the recording at the stage's z.

    Pre-init properties: ``File`` (a multi-page TIFF), ``StepUm`` (0: as the file says), ``Positions`` (a JSON file),
    ``Noise`` (SD as a fraction of the brightest pixel), ``Recording`` (name shared with the stage).
    """

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("File", ""), ("StepUm", 0.0), ("Positions", ""), ("Noise", 0.0), ("Recording", "replay")):
            self.register_property(name, default_value=value, is_pre_init=True)
        self._stack: RecordedStack | None = None

    def initialize(self) -> None:
        """Open the recording.

        Raises
        ------
        SettingsError
            When it cannot be read.
        """
        name, path = str(self.get_property_value("Recording")), str(self.get_property_value("File"))
        if path:
            publish(name, RecordedStack.open(
                path, step_um=float(self.get_property_value("StepUm")) or None,
                positions=str(self.get_property_value("Positions")) or None,
                noise=float(self.get_property_value("Noise")),
            ))  # fmt: skip
        if name not in _open:
            raise no_recording()
        self._stack = _open[name]

    def shutdown(self) -> None:
        """Forget the recording."""
        _open.pop(str(self.get_property_value("Recording")), None)
        self._stack = None

    def _recording(self) -> RecordedStack:
        if self._stack is None:
            raise no_recording()
        return self._stack

    def sensor_shape(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self._stack.shape if self._stack else (1, 1)

    def dtype(self) -> DTypeLike:
        """Return the recording's dtype."""
        return self._stack.dtype if self._stack else np.uint16

    def get_exposure(self) -> float:
        """Return the exposure in ms, which changes nothing here."""
        return self._stack.exposure_ms if self._stack else 0.0

    def set_exposure(self, exposure: float) -> None:
        """Remember the exposure in ms."""
        self._recording().exposure_ms = float(exposure)

    def snap(self, buffer: np.ndarray) -> Mapping[str, Any]:
        """Fill the buffer with the image at the stage's z."""
        buffer[:] = self._recording().snap()
        return {}


class ReplayStage(StageDevice):
    """Moves through the recording; its ends are the limits. Pre-init property: ``Recording``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_property("Recording", default_value="replay", is_pre_init=True)

    def _recording(self) -> RecordedStack:
        name = str(self.get_property_value("Recording"))
        if name not in _open:
            raise no_recording()
        return _open[name]

    def initialize(self) -> None:
        """Show the limits, when the recording is open already; the camera may be initialized later."""
        name = str(self.get_property_value("Recording"))
        if name in _open:
            z = _open[name].z_um
            self.register_property(
                Keyword.Position, getter=type(self).get_position_um, setter=type(self).set_position_um,
                limits=(float(z[0]), float(z[-1])), property_type=float,
            )  # fmt: skip

    def set_position_um(self, val: float) -> None:
        """Go to z; raises `LimitError` outside the recording, and nothing moves."""
        self._recording().z = float(val)

    def get_position_um(self) -> float:
        """Return z in µm."""
        return self._recording().z

    def busy(self) -> bool:
        """Return False: there is nothing to wait for."""
        return False

    def stop(self) -> None:
        """Do nothing: it stands."""

    def home(self) -> None:
        """Go to the middle of the recording."""
        stack = self._recording()
        stack.z = float(stack.z_um[len(stack.z_um) // 2])

    def set_origin(self) -> None:
        """Refuse: the positions are the recording's."""
        raise no_recording() if not _open else NotImplementedError("a recording keeps its own origin")
