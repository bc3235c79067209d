"""A Micro-Manager core that knows Python AutoFocus devices, for pymmcore-plus and for pycro-manager alike."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pymmcore
from pymmcore_plus.core import DeviceInitializationState, DeviceType, Keyword
from pymmcore_plus.experimental.unicore import Device, UniMMCore

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.autofocus_device import AutoFocusDevice
from mm_autofocus_devices.pixel_size import PythonPixelSizes
from mm_autofocus_devices.snake_case import SnakeCaseNames, TaggedImage

if TYPE_CHECKING:
    from pymmcore import ConfigPresetName, DeviceLabel

_ROLES: Mapping[str, tuple[str, str, DeviceType]] = {
    Keyword.CoreCamera.value: ("setCameraDevice", "getCameraDevice", DeviceType.Camera),
    Keyword.CoreShutter.value: ("setShutterDevice", "getShutterDevice", DeviceType.Shutter),
    Keyword.CoreFocus.value: ("setFocusDevice", "getFocusDevice", DeviceType.Stage),
    Keyword.CoreXYStage.value: ("setXYStageDevice", "getXYStageDevice", DeviceType.XYStage),
    Keyword.CoreAutoFocus.value: ("setAutoFocusDevice", "getAutoFocusDevice", DeviceType.AutoFocus),
    Keyword.CoreSLM.value: ("setSLMDevice", "getSLMDevice", DeviceType.SLM),
}
"""Properties of the device "Core" that hold a device label: setter, getter, type of the device."""

_CORE = Keyword.CoreDevice.value


def _release_callback(core_ref: weakref.ref[AutofocusCore]) -> None:
    """Unhook a core that outlives the interpreter: a C++ callback into a dying interpreter aborts the process."""
    if (core := core_ref()) is not None:
        pymmcore.CMMCore.registerCallback(core, None)


class AutofocusCore(SnakeCaseNames, PythonPixelSizes):
    """`UniMMCore` with AutoFocus devices, roles that change hands correctly, and pycro-manager's names.

    What it adds to `UniMMCore`:

    - A Python `AutoFocusDevice` can hold the AutoFocus role; ``fullFocus()`` and its sisters then call it, without its
      lock held. With a native autofocus device they do what Micro-Manager does.
    - A role given to a native device, or to none, is taken from the Python device that held it. Roles can be set with
      ``setProperty("Core", "Camera", label)`` and in configuration presets.
    - An image belongs to the camera that was snapped; a Python camera takes part in auto-shutter.
    - Python devices that fail to initialize raise.
    - Pixel-size presets may hang on properties of Python devices.
    - Every public method is there in snake_case too, which makes it a core for pycro-manager's Python backend
      (`mm_autofocus_devices.pycromanager_backend`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._focusing = threading.Lock()
        self._snapped_camera = ""
        super().__init__(*args, **kwargs)
        weakref.finalize(self, _release_callback, weakref.ref(self))

    # ---------------------------------------------------------------- devices and configurations

    def loadPyDevice(self, label: str, device: Device) -> None:
        """Load a Python device; an autofocus device is also given (weakly) this core."""
        super().loadPyDevice(label, device)
        if isinstance(device, AutoFocusDevice):
            device.attach(self)

    def initializeDevice(self, label: str) -> None:
        """Initialize one device.

        Raises
        ------
        HardwareError
            A Python device failed to; the message is the device's own.
        """
        super().initializeDevice(label)
        if label in self._pydevices:
            self._check_initialized(label)

    def initializeAllDevices(self) -> None:
        """Initialize all devices, native ones first.

        Raises
        ------
        HardwareError
            A Python device failed to; the message is the device's own.
        """
        super().initializeAllDevices()
        self._check_initialized(*self._pydevices)

    def loadSystemConfiguration(self, fileName: str | Path = "MMConfig_demo.cfg") -> None:
        """Load a configuration file, the lines that begin with ``#py`` included.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        RuntimeError
            A line cannot be executed, or a Python device did not initialize; all devices are unloaded again.
        """
        super().loadSystemConfiguration(fileName)
        try:
            self._check_initialized(*self._pydevices)
        except HardwareError:
            with suppress(Exception):  # the first failure is the one to report
                self.unloadAllDevices()
            raise

    def saveSystemConfiguration(self, filename: str | Path, *, prefix_py_devices: bool = True) -> None:
        """Save devices, properties, presets and roles; stock Micro-Manager ignores the lines of Python devices."""
        super().saveSystemConfiguration(filename, prefix_py_devices=prefix_py_devices)
        if prefix_py_devices:
            path = Path(filename).expanduser().resolve()
            lines = path.read_text().splitlines()
            path.write_text("".join(("#py " if self._is_py_role_preset(line) else "") + line + "\n" for line in lines))

    def _is_py_role_preset(self, line: str) -> bool:
        match line.split(","):
            case ["ConfigGroup", _, _, device, role, label]:
                return device == _CORE and role in _ROLES and label in self._pydevices
        return False

    def _check_initialized(self, *labels: str) -> None:
        failed = [
            f"{label!r} ({type(device).__name__}): {device._initialized_ or 'initializeAllDevices() was not called'}"
            for label, device in ((label, self._pydevices[label]) for label in labels)
            if self.getDeviceInitializationState(label) != DeviceInitializationState.InitializedSuccessfully
        ]
        if failed:
            raise HardwareError(
                f"Python devices did not initialize: {'; '.join(failed)}. Correct the cause, then load again."
            )

    # ---------------------------------------------------------------- roles

    def _set_current_if_pydevice(self, keyword: Keyword, label: str) -> str:
        """Give the role to a Python device and return "", or take it from one and return the native label."""
        wanted = _ROLES[keyword.value][2]
        if label in self._pydevices:
            if (actual := self.getDeviceType(label)) != wanted:
                raise HardwareError(
                    f"{label!r} cannot be the core's {keyword.value}: it is a device of type {actual.name}, "
                    f"not {wanted.name}. Choose another device."
                )
            self._pycore.set_current(keyword, label)
            return ""
        if not label or self.getDeviceType(label) == wanted:  # else the native setter refuses it
            self._pycore.set_current(keyword, None)
        return label

    def setFocusDevice(self, focusLabel: str) -> None:
        """Set the focus drive: a Python or native stage, or "" for none."""
        label = self._set_current_if_pydevice(Keyword.CoreFocus, focusLabel)
        super(UniMMCore, self).setFocusDevice(label)  # UniMMCore's own one keeps the Python device

    def setAutoFocusDevice(self, autofocusLabel: str) -> None:
        """Set the autofocus device: a Python or native one, or "" for none."""
        label = self._set_current_if_pydevice(Keyword.CoreAutoFocus, autofocusLabel)
        super().setAutoFocusDevice(label)

    def getAutoFocusDevice(self) -> DeviceLabel | Literal[""]:
        """Return the label of the autofocus device, or ""."""
        return self._pycore.current(Keyword.CoreAutoFocus) or super().getAutoFocusDevice()

    def setProperty(self, label: str, propName: str, propValue: bool | float | int | str) -> None:
        """Set a device property; ``setProperty("Core", "Camera", label)`` takes Python devices too."""
        if label == _CORE and propName in _ROLES:
            getattr(self, _ROLES[propName][0])(str(propValue))
        else:
            super().setProperty(label, propName, propValue)

    def getProperty(self, label: str, propName: str) -> Any:
        """Return a device property; the roles of "Core" name Python devices too."""
        if label == _CORE and propName in _ROLES:
            return getattr(self, _ROLES[propName][1])()
        return super().getProperty(label, propName)

    def getPropertyFromCache(self, deviceLabel: str, propName: str) -> Any:
        """Return a cached device property; the roles of "Core" are always up to date."""
        if deviceLabel == _CORE and propName in _ROLES:
            return self.getProperty(deviceLabel, propName)
        return super().getPropertyFromCache(deviceLabel, propName)

    def defineConfig(
        self,
        groupName: str,
        configName: str,
        deviceLabel: str | None = None,
        propName: str | None = None,
        value: Any | None = None,
    ) -> None:
        """Define a preset, or one of its settings.

        A role of "Core" is kept on the Python side, whoever holds it: applied by the native core it could neither
        name a Python device nor take the role from one.
        """
        if deviceLabel is None or propName is None or value is None:
            super().defineConfig(groupName, configName)
            return
        if deviceLabel != _CORE or propName not in _ROLES:
            super().defineConfig(groupName, configName, deviceLabel, propName, value)
            return
        if not self.isConfigDefined(groupName, configName):
            super().defineConfig(groupName, configName)
        presets = self._py_config_groups.setdefault(groupName, {})
        presets.setdefault(cast("ConfigPresetName", configName), {})[deviceLabel, propName] = str(value)
        self.events.configDefined.emit(groupName, configName, deviceLabel, propName, str(value))

    def deleteConfig(
        self, groupName: str, configName: str, deviceLabel: str | None = None, propName: str | None = None
    ) -> None:
        """Delete a preset, or one of its settings."""
        presets = self._py_config_groups.get(groupName, {})
        preset = presets.get(cast("ConfigPresetName", configName), {})
        if deviceLabel is None or propName is None:
            super().deleteConfig(groupName, configName)
        elif deviceLabel == _CORE and (deviceLabel, propName) in preset:
            del preset[deviceLabel, propName]
            self.events.configDeleted.emit(groupName, configName)
        else:
            super().deleteConfig(groupName, configName, deviceLabel, propName)

    # ---------------------------------------------------------------- autofocus

    def _py_autofocus(self) -> AutoFocusDevice | None:
        """Return the Python device that holds the AutoFocus role, or None when a native one or nobody does."""
        if (label := self._pycore.current(Keyword.CoreAutoFocus)) is None:
            return None
        self._check_initialized(label)
        return cast("AutoFocusDevice", self._pydevices[label])  # _set_current_if_pydevice checked its type

    def _focus(self, run: Callable[[AutofocusCore], None]) -> None:
        label = self.getAutoFocusDevice()
        if not self._focusing.acquire(blocking=False):
            raise HardwareError(f"Autofocus device {label!r} is focusing already: wait until it has finished.")
        try:
            run(self)
        except RuntimeError:
            raise
        except Exception as error:
            raise HardwareError(f"Autofocus device {label!r} failed: {type(error).__name__}: {error}") from error
        finally:
            self._focusing.release()

    def fullFocus(self) -> None:
        """Focus with the autofocus device.

        Raises
        ------
        RuntimeError
            The focus was not found; nothing else is ever raised by a Python device.
        """
        device = self._py_autofocus()
        super().fullFocus() if device is None else self._focus(device.full_focus)

    def incrementalFocus(self) -> None:
        """Refine the focus with the autofocus device; raises what `fullFocus` raises."""
        device = self._py_autofocus()
        super().incrementalFocus() if device is None else self._focus(device.incremental_focus)

    def getLastFocusScore(self) -> float:
        """Return the score of the last focus run."""
        device = self._py_autofocus()
        return super().getLastFocusScore() if device is None else device.get_last_score()

    def getCurrentFocusScore(self) -> float:
        """Return the score where the microscope stands now."""
        device = self._py_autofocus()
        return super().getCurrentFocusScore() if device is None else device.get_current_score(self)

    def setAutoFocusOffset(self, offset: float) -> None:
        """Set the offset of the autofocus device, in µm."""
        if (device := self._py_autofocus()) is None:
            super().setAutoFocusOffset(offset)
        else:
            device.set_offset(offset)

    def getAutoFocusOffset(self) -> float:
        """Return the offset of the autofocus device, in µm."""
        device = self._py_autofocus()
        return super().getAutoFocusOffset() if device is None else device.get_offset()

    def enableContinuousFocus(self, enable: bool) -> None:
        """Switch continuous focus on or off."""
        if (device := self._py_autofocus()) is None:
            super().enableContinuousFocus(enable)
        else:
            device.set_continuous_focus(enable)

    def isContinuousFocusEnabled(self) -> bool:
        """Return True while continuous focus is switched on."""
        device = self._py_autofocus()
        return super().isContinuousFocusEnabled() if device is None else device.get_continuous_focus()

    def isContinuousFocusLocked(self) -> bool:
        """Return True while continuous focus holds the focal plane."""
        device = self._py_autofocus()
        return super().isContinuousFocusLocked() if device is None else device.is_continuous_focus_locked()

    # ---------------------------------------------------------------- images

    def getAutoShutter(self) -> bool:
        """Return True when a shutter is there and opens by itself; without a shutter there is nothing to open."""
        return super().getAutoShutter() and bool(self.getShutterDevice())

    def _do_snap_image(self) -> None:
        self._snapped_camera = ""
        self._current_image_buffer = None  # else a camera that yields nothing passes off the image before as its own
        camera = self.getCameraDevice()
        with self._auto_shutter(camera):
            super()._do_snap_image()
        if camera in self._pydevices and self._current_image_buffer is None:
            raise HardwareError(f"Camera {camera!r} was snapped but gave no image: check the camera, then snap again.")
        self._snapped_camera = camera

    def _do_start_sequence_acquisition(
        self, cameraLabel: str, numImages: int, intervalMs: float, stopOnOverflow: bool
    ) -> None:
        with self._auto_shutter_until_done(cameraLabel):
            super()._do_start_sequence_acquisition(cameraLabel, numImages, intervalMs, stopOnOverflow)

    def _do_start_continuous_sequence_acquisition(self, intervalMs: float = 0) -> None:
        with self._auto_shutter_until_done(self.getCameraDevice()):
            super()._do_start_continuous_sequence_acquisition(intervalMs)

    @contextmanager
    def _auto_shutter_until_done(self, camera: str) -> Iterator[None]:
        """Open the shutter for a sequence of a Python camera, and close it when its thread has ended."""
        shutter = self.getShutterDevice()
        if camera not in self._pydevices or not self.getAutoShutter():
            yield  # the native core does it
            return
        self._do_shutter_open(shutter, True)
        try:
            self.waitForDevice(shutter)
            yield
        except BaseException:
            self._do_shutter_open(shutter, False)
            raise
        sequence = self._acquisition_thread

        def close() -> None:
            if sequence is not None:
                sequence.join()
            self._do_shutter_open(shutter, False)

        threading.Thread(target=close, daemon=True, name="mm-autofocus shutter").start()

    @contextmanager
    def _auto_shutter(self, camera: str) -> Iterator[None]:
        """Open the shutter around a snap when camera or shutter is a Python device; the native core does the rest."""
        shutter = self.getShutterDevice()
        if not self.getAutoShutter() or (camera not in self._pydevices and shutter not in self._pydevices):
            yield
            return
        self._do_shutter_open(shutter, True)
        try:
            self.waitForDevice(shutter)
            yield
        finally:
            self._do_shutter_open(shutter, False)

    def getImage(self, numChannel: int | None = None, *, fix: bool = True) -> np.ndarray:
        """Return the image of the last snap.

        Raises
        ------
        HardwareError
            The current camera is not the one that was snapped last: call ``snapImage()`` first.
        """
        if self._snapped_camera != (camera := self.getCameraDevice()):
            raise HardwareError(
                f"There is no image of camera {camera!r}: the last snap was of "
                f"{repr(self._snapped_camera) if self._snapped_camera else 'no camera'}. Call snapImage() first."
            )
        return super().getImage(fix=fix) if numChannel is None else super().getImage(numChannel, fix=fix)

    def get_tagged_image(
        self,
        cam_index: int = 0,
        camera: str | None = None,  # noqa: ARG002
        height: int | None = None,  # noqa: ARG002
        width: int | None = None,  # noqa: ARG002
        binning: int | None = None,
        pixel_type: str | None = None,
        roi_x_start: int | None = None,
        roi_y_start: int | None = None,
    ) -> TaggedImage:
        """Return the image of the last snap with pycro-manager's tags.

        It is the image of the camera that was snapped, also when another is current by now, and the tags say which:
        pycro-manager's engine snaps ``event["camera"]``, switches back, and asks afterwards. ``camera``, ``height``
        and ``width`` are what the caller believes; the tags say what is.
        """
        current = self.getCameraDevice()
        snapped = self._snapped_camera or current
        if snapped != current:
            self.setCameraDevice(snapped)
        try:
            pix = self.getImage(cam_index)
        finally:
            if snapped != current:
                self.setCameraDevice(current)
        optional = {"Binning": binning, "ROI-X-start": roi_x_start, "ROI-Y-start": roi_y_start}
        tags = {
            "Camera": snapped,
            "Height": pix.shape[0],
            "Width": pix.shape[1],
            "PixelType": pixel_type,
            "CameraChannelIndex": cam_index,
        }
        return TaggedImage(tags | {name: value for name, value in optional.items() if value is not None}, pix)

    def pop_next_tagged_image(self) -> TaggedImage:
        """Take the oldest image of a running sequence out of the buffer, with its tags."""
        metadata = pymmcore.Metadata()
        pix = self.popNextImageMD(0, 0, metadata)
        return TaggedImage({key: metadata.GetSingleTag(key).GetValue() for key in metadata.GetKeys()}, pix)
