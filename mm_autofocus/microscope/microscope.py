"""The microscope as the autofocus sees it: knobs, one way to image, and a state that is always put back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mm_autofocus.errors import CancelledError, FocusError, HardwareError, SettingsError
from mm_autofocus.microscope.build import build_knob
from mm_autofocus.microscope.core import PortableCore, Roi
from mm_autofocus.microscope.knob import Knob
from mm_autofocus.settings import Settings
from mm_autofocus.strategy import Image
from mm_autofocus.workers import NoAnswerError, Workers

logger = logging.getLogger(__name__)

_WORKERS = Workers("mm-autofocus snap")

_Put = Callable[[str, Callable[[], bool], Callable[[], object]], None]
"""Puts one thing back: what it is, whether it is so already, how to make it so."""


@dataclass(frozen=True, slots=True)
class _CameraState:
    """What an autofocus may change of one camera."""

    exposure_ms: float
    roi: Roi
    binning: str | None


@dataclass(frozen=True, slots=True)
class _State:
    """What an autofocus may change and must put back."""

    camera: str
    cameras: dict[str, _CameraState]
    """State of every camera used since, read before its first use."""
    shutter: str
    shutter_open: bool
    auto_shutter: bool
    group: str
    preset: str
    """Current preset of the focusing channel's group; empty when the properties match none."""
    properties: tuple[tuple[str, str, str], ...]
    knobs: Mapping[str, float] = field(default_factory=dict)


class Microscope:
    """Facade over a Micro-Manager core.

    Parameters
    ----------
    core
        Any core, see `PortableCore`.
    settings
        Which knobs, camera, channel and exposure to use.
    clock
        Seconds, monotonic; a simulation passes its own.
    sleep
        Waits for settling; a simulation passes its own.

    Attributes
    ----------
    images, dose
        Frames taken and light spent so far through this facade (dose in ``settings.microscope.dose_unit``).
    cancel
        Set it to stop the present run at its next step.

    Raises
    ------
    SettingsError
        When a device, a channel or a limit is missing; nothing has moved.
    """

    def __init__(
        self,
        core: Any,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.core = PortableCore(core)
        self.settings = settings or Settings()
        self.clock = clock
        self.images = 0
        self.dose = 0.0
        self.cancel = threading.Event()
        self.knobs: dict[str, Knob] = {
            name: build_knob(self.core, name, knob, sleep) for name, knob in self.settings.knobs.items()
        }
        self._imaging = self.settings.microscope
        self._applied: dict[str, tuple[float, Roi]] = {}
        """Exposure and ROI that a Look without its own gets, by camera."""
        self._stuck: Future[Any] | None = None
        """A snap that has not come back: until it does, its camera must not be touched, or we hang with it."""
        self._state: _State | None = None
        """The innermost `preserved` state, where cameras used since are noted."""
        self._camera = self._imaging.camera or str(self.core.get_camera_device())
        self._check()

    def _check(self) -> None:
        if not self._camera:
            raise SettingsError("the configuration has no camera (Core, Camera), and [microscope] camera names none")
        self.core.require(self._camera, "[microscope] camera")
        if self._imaging.dose_property:
            device, prop = self._imaging.dose_property.split("/")
            self.core.require(device, "[microscope] dose_property")
            if not self.core.has_property(device, prop):
                raise SettingsError(f"[microscope] dose_property: device {device!r} has no property {prop!r}")
        if self._imaging.channel:
            group, preset = self._imaging.channel.split("/")
            if group not in self.core.config_groups() or preset not in self.core.presets(group):
                groups = {g: self.core.presets(g) for g in self.core.config_groups()}
                raise SettingsError(
                    f"[microscope] channel = {self._imaging.channel!r} does not exist; the configuration has {groups}"
                )

    # ------------------------------------------------------------------ optics
    @property
    def pixel_um(self) -> float | None:
        """Size of a pixel in the specimen in µm, None when the configuration has no pixel size."""
        size = float(self.core.get_pixel_size_um())
        return size if size > 0 else None

    @property
    def depth_of_field_um(self) -> float:
        """Depth of field in µm: set, or n λ / NA² + n e / NA with e the pixel size in the specimen (Inoué & Spring).

        Raises
        ------
        SettingsError
            When neither it nor the numerical aperture is set.
        """
        m = self._imaging
        if m.depth_of_field_um is not None:
            return m.depth_of_field_um
        if "z" not in self.settings.knobs and self.depths:
            return next(iter(self.depths.values()))  # no focus is turned: what counts is the knobs' own depth
        if m.na is None:
            raise SettingsError(
                "[microscope] needs depth_of_field_um, or na (and wavelength_um, immersion_index) to compute it: in "
                "focus means within half the depth of field"
            )
        return m.immersion_index * (m.wavelength_um / m.na**2 + (self.pixel_um or 0.0) / m.na)

    @property
    def depths(self) -> dict[str, float]:
        """Depth in focus of the knobs that have their own, in the knob's unit."""
        return {name: knob.depth for name, knob in self.settings.knobs.items() if knob.depth is not None}

    # ------------------------------------------------------------------ moving and imaging
    def knob(self, name: str) -> Knob:
        """Return a knob by name.

        Raises
        ------
        SettingsError
            When there is none of that name.
        """
        try:
            return self.knobs[name]
        except KeyError:
            raise SettingsError(
                f"there is no knob {name!r}; the settings have {', '.join(self.knobs)}. Add a section [knobs.{name}]."
            ) from None

    @property
    def moves(self) -> int:
        """Commands sent to all knobs so far."""
        return sum(knob.moves for knob in self.knobs.values())

    def check_cancel(self) -> None:
        """Raise `CancelledError` when someone has asked to stop."""
        if self.cancel.is_set():
            raise CancelledError("focusing was cancelled; the instrument is back where it was")

    def snap(
        self, *, camera: str | None = None, exposure_ms: float | None = None, roi: Roi | None = None
    ) -> tuple[Image, float]:
        """Take one image; return it, shape (height, width), with its exposure in ms.

        Call it inside `preserved` when camera, exposure or ROI are given: they stay as set.

        Raises
        ------
        HardwareError
            When the camera fails ``snap_retries`` + 1 times, or does not answer within ``snap_timeout_s``.
        """
        core = self.core
        camera = camera or self._camera
        self._check_stuck()
        self._use_camera(camera)
        base_exposure, base_roi = self._applied.get(camera, (None, None))
        exposure_ms = exposure_ms if exposure_ms is not None else base_exposure
        roi = roi if roi is not None else base_roi
        if exposure_ms is not None and core.get_exposure() != exposure_ms:
            core.set_exposure(float(exposure_ms))  # a Java core takes plain numbers only
        if roi is not None and core.roi() != tuple(roi):
            self._restore_roi(roi)
        exposure = float(core.get_exposure())
        attempts = self._imaging.snap_retries + 1
        for attempt in range(attempts):
            self.check_cancel()
            self.images += 1
            self.dose += self.dose_of(camera, exposure)
            try:
                with self._lamp(camera):
                    image = self._snap_within(self._imaging.snap_timeout_s + exposure / 1000, camera)
                return image, exposure
            except TimeoutError as error:
                raise HardwareError(str(error)) from None
            except Exception as error:
                if attempt + 1 == attempts:
                    raise HardwareError(
                        f"camera {camera!r} failed to take an image ({attempts} tries): {error}. Check the camera; "
                        "the stage is put back."
                    ) from error
                logger.warning("camera %r failed, trying again: %s", camera, error)
        raise AssertionError("unreachable")

    def dose_of(self, camera: str | None, exposure_ms: float) -> float:
        """Return what one exposure costs the specimen; nothing with a camera that images without the lamp."""
        m = self._imaging
        if (camera or self._camera) in m.dark_cameras:
            return 0.0
        if not m.dose_property:
            return exposure_ms * m.dose_per_ms
        device, prop = m.dose_property.split("/")
        present = float(self.core.get_exposure())  # the property tells the cost at the present exposure
        return float(self.core.get_property(device, prop)) * (exposure_ms / present if present > 0 else 1.0)

    @contextmanager
    def _lamp(self, camera: str) -> Iterator[None]:
        """Keep the shutter closed around a snap of a camera that does not need the lamp."""
        if camera not in self._imaging.dark_cameras or not self.core.get_auto_shutter():
            yield
            return
        self.core.set_auto_shutter(False)
        try:
            yield
        finally:
            if self._stuck is None:
                self.core.set_auto_shutter(True)

    def _snap_within(self, seconds: float, camera: str) -> Image:
        """Snap in another thread, since a hung driver cannot be interrupted."""
        if not self.core.camel:  # a Java bridge belongs to its thread; it has time-outs of its own
            return self._snap_now()
        worker = _WORKERS.borrow()
        try:
            return worker.call(self._snap_now, seconds)
        except NoAnswerError as error:
            self._stuck = error.late
            raise TimeoutError(
                f"camera {camera!r} has not delivered an image within {seconds:g} s; check it, or raise "
                "[microscope] snap_timeout_s"
            ) from None
        finally:
            worker.release()

    def _check_stuck(self) -> None:
        if self._stuck is not None and not self._stuck.done():
            raise HardwareError(
                f"camera {self._camera!r} still hangs in an earlier snap; nothing was done. Switch it off and on, and "
                "load the configuration again."
            )
        self._stuck = None

    def _snap_now(self) -> Image:
        self.core.snap_image()
        return self.core.image()

    # ------------------------------------------------------------------ state
    @contextmanager
    def preserved(self, *, knobs: bool = True) -> Iterator[None]:
        """Put camera, exposure, ROI, binning, channel and shutter back, whatever happens.

        On any exception (Ctrl-C too) every knob goes back as well, if ``knobs``. What cannot be put back is reported
        as a `HardwareError` naming it; everything else is still put back.
        """
        self._check_stuck()
        state = self._read_state(knobs)
        outer, self._state = self._state, state
        try:
            yield
        except BaseException as error:
            problems = self._restore(state, knobs=knobs)
            if problems:
                error.add_note("and the instrument could not be put back completely: " + "; ".join(problems))
                logger.error("after %r: %s", error, "; ".join(problems))
            raise
        finally:
            self._state = outer
            self._applied.clear()
        problems = self._restore(state, knobs=False)
        if problems:
            raise HardwareError("the instrument could not be put back completely: " + "; ".join(problems))

    def apply_imaging(self) -> None:
        """Set the camera, channel, binning, ROI and exposure that the settings want for focusing.

        Raises
        ------
        HardwareError
            When a device refuses.
        """
        m, core = self._imaging, self.core
        try:
            self._use_camera(self._camera)
            if m.channel:
                group, preset = m.channel.split("/")
                if core.get_current_config(group) != preset:
                    self.set_config(group, preset)
            if m.binning is not None and self._binning(self._camera) not in (None, str(m.binning)):
                core.set_property(self._camera, "Binning", str(m.binning))
            if m.roi is not None and core.roi() != m.roi:
                core.set_roi(*m.roi)
            if m.exposure_ms is not None and core.get_exposure() != m.exposure_ms:
                core.set_exposure(m.exposure_ms)
            self._applied[self._camera] = float(core.get_exposure()), core.roi()
        except FocusError:
            raise
        except Exception as error:
            raise HardwareError(f"the imaging settings for focusing were refused: {error}") from error

    def _use_camera(self, label: str) -> None:
        """Make a camera the core's, and remember how it was set before we touch it."""
        try:
            if self.core.get_camera_device() != label:
                self.core.set_camera_device(label)
        except Exception as error:
            raise HardwareError(f"camera {label!r} cannot be used: {error}. Is it in the configuration?") from error
        if self._state is not None and label not in self._state.cameras:
            was = self._state.cameras[label] = self._camera_state(label)
            self._applied.setdefault(label, (was.exposure_ms, was.roi))

    def _camera_state(self, label: str) -> _CameraState:
        return _CameraState(float(self.core.get_exposure()), self.core.roi(), self._binning(label))

    def _binning(self, camera: str) -> str | None:
        return str(self.core.get_property(camera, "Binning")) if self.core.has_property(camera, "Binning") else None

    def _read_state(self, knobs: bool) -> _State:
        core = self.core
        camera = str(core.get_camera_device())
        shutter = str(core.get_shutter_device())
        group = self._imaging.channel.partition("/")[0]
        return _State(
            camera=camera,
            cameras={camera: self._camera_state(camera)} if camera else {},
            shutter=shutter,
            shutter_open=bool(core.get_shutter_open()) if shutter else False,
            auto_shutter=bool(core.get_auto_shutter()),
            group=group,
            preset=str(core.get_current_config(group)) if group else "",
            properties=core.group_state(group) if group else (),
            knobs={name: knob.get() for name, knob in self.knobs.items()} if knobs else {},
        )

    def _restore(self, state: _State, *, knobs: bool) -> list[str]:
        """Put everything back that differs; return what could not be, in words."""
        core = self.core
        problems: list[str] = []

        def put(what: str, is_so: Callable[[], bool], make_so: Callable[[], object]) -> None:
            try:
                if not is_so():
                    make_so()
                    if not is_so():
                        problems.append(f"{what} did not take")
            except BaseException as error:  # a second Ctrl-C must not leave the rest undone
                problems.append(f"{what}: {error or type(error).__name__}")

        if knobs:
            for name, value in state.knobs.items():
                knob = self.knobs[name]
                try:
                    if abs(knob.get() - value) > min(1e-3, 0.1 * knob.tolerance):  # a lens counts in fractions
                        knob.set(knob.limits.clip(value))
                except BaseException as error:
                    problems.append(f"{name} to {value:g} {knob.unit}: {error or type(error).__name__}")
        if self._stuck is not None and not self._stuck.done():
            problems.append(f"camera {self._camera!r}, its shutter and channel: the camera hangs")
            return problems
        if state.preset:  # by its name, so that engines that remember the last preset are not deceived
            put(
                f"{state.group} to {state.preset}",
                lambda: core.get_current_config(state.group) == state.preset,
                lambda: self.set_config(state.group, state.preset),
            )
        for device, prop, was in state.properties:
            put(
                f"{device} {prop} to {was}",
                lambda d=device, p=prop, v=was: str(core.get_property(d, p)) == v,  # type: ignore[misc]
                lambda d=device, p=prop, v=was: self._set_property(d, p, v),  # type: ignore[misc]
            )
        for label in sorted(state.cameras, key=lambda name: name == state.camera):  # the core's own camera last
            self._restore_camera(label, state.cameras[label], put)
        if not state.camera:
            put("no camera", lambda: not core.get_camera_device(), lambda: core.set_camera_device(""))
        put(
            "auto-shutter",
            lambda: bool(core.get_auto_shutter()) == state.auto_shutter,
            lambda: core.set_auto_shutter(state.auto_shutter),
        )
        if state.shutter:
            put(
                "shutter",
                lambda: bool(core.get_shutter_open()) == state.shutter_open,
                lambda: core.set_shutter_open(state.shutter_open),
            )
        return problems

    def set_config(self, group: str, preset: str) -> None:
        """Set a preset and wait for it: the next image must not be taken through a moving filter wheel."""
        self.core.set_config(group, preset)
        self.core.wait_for_config(group, preset)

    def _set_property(self, device: str, prop: str, value: str) -> None:
        self.core.set_property(device, prop, value)
        self.core.wait_for_device(device)

    def _restore_camera(self, label: str, was: _CameraState, put: _Put) -> None:
        core = self.core
        put(
            f"camera to {label}",
            lambda: core.get_camera_device() == label,
            lambda: core.set_camera_device(label),
        )
        if was.binning is not None:
            put(
                f"{label} binning to {was.binning}",
                lambda: self._binning(label) == was.binning,
                lambda: core.set_property(label, "Binning", was.binning),
            )
        put(f"{label} ROI to {was.roi}", lambda: core.roi() == was.roi, lambda: self._restore_roi(was.roi))
        put(
            f"{label} exposure to {was.exposure_ms:g} ms",
            lambda: abs(core.get_exposure() - was.exposure_ms) < 1e-6,
            lambda: core.set_exposure(was.exposure_ms),
        )

    def _restore_roi(self, roi: Roi) -> None:
        self.core.clear_roi()
        if self.core.roi() != tuple(roi):
            self.core.set_roi(*(int(v) for v in roi))
