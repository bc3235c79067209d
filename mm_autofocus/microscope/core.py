"""One snake_case view over any Micro-Manager core: pymmcore, pymmcore-plus, ours, pycro-manager's local or remote."""

from __future__ import annotations

from typing import Any

import numpy as np

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.strategy import Image

Roi = tuple[int, int, int, int]

_ACRONYMS = {"xy": "XY", "roi": "ROI"}


def _camel(snake: str) -> str:
    first, *rest = snake.split("_")
    return first + "".join(_ACRONYMS.get(part, part.capitalize()) for part in rest)


class PortableCore:
    """Call any core by pycro-manager's names.

    ``portable.get_position("Z")`` reaches ``getPosition`` of a pymmcore core, or ``get_position`` of pycro-manager's.
    `waitForSystem` is refused: it blocks for devices that have nothing to do with the focus, and for ever when one
    of them is broken; use ``wait_for_device``.
    """

    def __init__(self, core: Any) -> None:
        if isinstance(core, PortableCore):
            core = core.raw
        self.raw: Any = core
        self.camel = hasattr(core, "snapImage")
        if not self.camel and not hasattr(core, "snap_image"):
            raise HardwareError(
                f"{type(core).__name__} is not a Micro-Manager core: it has neither snapImage nor snap_image. Pass a "
                "pymmcore, pymmcore-plus or pycro-manager core."
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "wait_for_system":
            raise AttributeError(name)
        method = getattr(self.raw, _camel(name) if self.camel else name)
        self.__dict__[name] = method  # the next call finds it without this detour
        return method

    # The calls below differ between the cores in more than their name.
    def loaded_devices(self) -> tuple[str, ...]:
        """Return the labels of the loaded devices."""
        return strings(self.get_loaded_devices())

    def require(self, label: str, setting: str) -> None:
        """Raise `SettingsError` when the device that a setting names ("[microscope] camera") is not loaded."""
        loaded = self.loaded_devices()
        if label not in loaded:
            known = ", ".join(device for device in loaded if device != "Core")
            raise SettingsError(f"{setting} = {label!r} is not loaded; loaded are: {known or 'none'}")

    def config_groups(self) -> tuple[str, ...]:
        """Return the names of the config groups."""
        return strings(self.get_available_config_groups())

    def presets(self, group: str) -> tuple[str, ...]:
        """Return the names of a group's presets."""
        return strings(self.get_available_configs(group))

    def roi(self) -> Roi:
        """Return the camera's ROI as (x, y, width, height) in pixels."""
        roi = self.get_roi()
        if hasattr(roi, "width"):  # java.awt.Rectangle
            return int(roi.x), int(roi.y), int(roi.width), int(roi.height)
        x, y, width, height = (int(v) for v in roi)
        return x, y, width, height

    def group_state(self, group: str) -> tuple[tuple[str, str, str], ...]:
        """Return (device, property, value) of every property that a config group sets, as it is now."""
        state = self.get_config_group_state(group)
        settings = (
            [state.getSetting(i) for i in range(state.size())]
            if hasattr(state, "getSetting")
            else [state.get_setting(i) for i in range(state.size())]
        )
        return tuple(
            (s.getDeviceLabel(), s.getPropertyName(), s.getPropertyValue())
            if hasattr(s, "getDeviceLabel")
            else (s.get_device_label(), s.get_property_name(), s.get_property_value())
            for s in settings
        )

    def image(self) -> Image:
        """Return the image of the last snap, shape (height, width).

        Raises
        ------
        HardwareError
            When the camera delivers colour or nothing.
        """
        if int(self.get_number_of_components()) > 1:  # some cores pack the colours into one plane of 32 bits
            raise HardwareError(
                f"camera {self.get_camera_device()!r} delivers colour; autofocus needs one grey plane. Choose a grey "
                "pixel type (8bit or 16bit) in the camera's properties."
            )
        if self.camel:
            image = np.asarray(self.raw.getImage())
        else:
            try:
                tagged = self.raw.get_tagged_image()
            except TypeError:  # pycro-manager's Python core wants what the Java core finds out by itself
                image = np.asarray(self.raw.get_image())
            else:
                image = np.asarray(tagged.pix)
                if image.ndim == 1:
                    image = image.reshape(int(tagged.tags["Height"]), int(tagged.tags["Width"]))
        if image.ndim != 2 or image.size == 0:
            raise HardwareError(
                f"camera {self.get_camera_device()!r} delivered an image of shape {image.shape}; autofocus needs one "
                "grey plane. Choose a grey pixel type (8bit or 16bit) in the camera's properties."
            )
        return image


def strings(values: Any) -> tuple[str, ...]:
    """Turn a StrVector of either binding into a tuple of strings."""
    if hasattr(values, "size") and hasattr(values, "get") and not isinstance(values, dict):
        return tuple(str(values.get(i)) for i in range(values.size()))
    return tuple(str(v) for v in values)
