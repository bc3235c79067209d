"""The caller for pycro-manager: hooks that work on its Python and its Java backend alike.

They keep the rules that both backends need: one argument, a dict or a list in and the same kind out, never None,
plain floats, everything caught and handed to ``acquisition.abort(error)``, state outside the event.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import FocusError
from mm_autofocus.events import from_pycromanager
from mm_autofocus.request import Event

logger = logging.getLogger(__name__)

PycroEvent = dict[str, Any] | list[dict[str, Any]]


def hooks(autofocus: Autofocus) -> dict[str, Any]:
    """Return the keyword arguments for ``pycromanager.Acquisition``; see `Autofocus.pycromanager_hooks`."""
    caller = PycromanagerCaller(autofocus)
    return {
        "pre_hardware_hook_fn": caller.pre_hardware,
        "post_hardware_hook_fn": caller.post_hardware,
        "notification_callback_fn": caller.notified,
    }


class PycromanagerCaller:
    """Places every event of an acquisition, and focuses where the schedule says so."""

    def __init__(self, autofocus: Autofocus) -> None:
        self._autofocus = autofocus
        self._events: list[Event] = []
        """What pre_hardware saw, with the nominal z, for the post_hardware that follows in the same thread."""
        self._dark: tuple[bool, bool] | None = None
        """Auto-shutter and shutter as they were before a skipped event."""
        self._approach = False
        """Whether the engine moves this event's z against the backlash."""
        self._checked = False
        """Whether this acquisition's focus drive was checked."""
        self._error: BaseException | None = None

    # ------------------------------------------------------------------ the hooks
    def pre_hardware(self, event: PycroEvent) -> PycroEvent | None:
        """Correct the z of the event (or of each event of a burst) before the engine moves there.

        None only after an abort on the Python backend: nothing moves any more.
        """
        try:
            self._light()
            if not self._checked:
                self._autofocus.check_focus_drive()
                self._checked = True
            several = event if isinstance(event, list) else [event]
            self._events = [from_pycromanager(one) for one in several]
            if len({one.z for one in self._events}) > 1 and self._autofocus.wants(self._events[0]):
                # a z sequence can only be edited before the hardware is set up: go there and focus now
                self._move_xy(self._events[0])
                self._set_imaging(several[0])
                self._focus(self._events[0])
            for one, ours in zip(several, self._events, strict=True):
                z = self._autofocus.where(ours).z
                if z is not None:
                    one["z"] = float(z)
            self._approach = self._wrong_way(several[0].get("z"))
        except BaseException as error:
            return self._abort(error, event)
        return event

    def post_hardware(self, event: PycroEvent) -> PycroEvent | None:
        """Focus if it is time, and go to where this event belongs; None as in `pre_hardware`."""
        try:
            if not self._events:
                raise FocusError("post_hardware came without pre_hardware; pass both hooks to the Acquisition")
            autofocus = self._autofocus
            first = self._events[0]
            before = event["z"] if isinstance(event, dict) and "z" in event else None
            if len({one.z for one in self._events}) > 1:  # the engine steps through z itself
                placement = autofocus.where(first)
            elif autofocus.wants(first):
                placement = self._focus(first)
            else:
                placement = autofocus.where(first)
                if placement.z is not None and (self._approach or not autofocus.microscope.core.camel):
                    # take up backlash; and the Java engine does not move to a z that equals its last one, wherever a
                    # hook has been in between
                    autofocus.microscope.knob("z").set(placement.z)
            if isinstance(event, dict) and placement.z is not None and placement.z != before:
                event["z"] = float(placement.z)
            if placement.skip:
                self._darken()
            for one in self._events:  # the slices of a burst each have a z of their own
                autofocus.tell_event(one, placement.z if len(self._events) == 1 else autofocus.where(one).z)
        except BaseException as error:
            return self._abort(error, event)
        return event

    def notified(self, notification: Any) -> None:
        """Hear that the acquisition has finished; must not raise, or pycro-manager hangs."""
        try:
            if getattr(notification, "milestone", None) == "acq_events_finished":
                self._light()
                self._autofocus.finish(self._error)
                self._error, self._checked = None, False
        except BaseException:
            logger.exception("finishing the autofocus failed")

    # ------------------------------------------------------------------ what they do
    def _focus(self, event: Event) -> Any:
        placement = self._autofocus.focus(event)
        if placement.z is not None and "z" in self._autofocus.settings.knobs:
            self._autofocus.microscope.knob("z").set(placement.z)
        return placement

    def _wrong_way(self, z: float | None) -> bool:
        """Whether the engine's own move to ``z`` will leave the stage's backlash in."""
        knob = self._autofocus.microscope.knobs.get("z")
        return z is not None and knob is not None and knob.backlash != 0 and (z - knob.get()) * knob.backlash < 0

    def _move_xy(self, event: Event) -> None:
        microscope = self._autofocus.microscope
        core = microscope.core
        for name, knob in microscope.knobs.items():
            axis = self._autofocus.settings.knobs[name].axis
            if axis in ("x", "y") and (value := getattr(event, axis)) is not None:
                knob.check(value)
        stage = str(core.get_xy_stage_device())
        if stage and event.x is not None and event.y is not None:
            core.set_xy_position(stage, float(event.x), float(event.y))
            core.wait_for_device(stage)

    def _set_imaging(self, event: dict[str, Any]) -> None:
        """Set the channel and exposure that the engine has yet to set: focusing may rely on them."""
        microscope = self._autofocus.microscope
        if group := event.get("config_group"):
            microscope.set_config(group[0], group[1])
        if (exposure := event.get("exposure")) is not None:
            microscope.core.set_exposure(float(exposure))

    def _darken(self) -> None:
        """Keep the light off for a skipped event: the dataset keeps its shape, the specimen is spared."""
        core = self._autofocus.microscope.core
        shutter = str(core.get_shutter_device())
        if not shutter:
            logger.warning("the configuration has no shutter: skipped positions are exposed all the same")
            return
        self._dark = bool(core.get_auto_shutter()), bool(core.get_shutter_open())
        core.set_auto_shutter(False)
        core.set_shutter_open(False)

    def _light(self) -> None:
        if self._dark is not None:
            auto, is_open = self._dark
            self._dark = None
            core = self._autofocus.microscope.core
            core.set_shutter_open(is_open)
            core.set_auto_shutter(auto)

    # ------------------------------------------------------------------ errors
    def _abort(self, error: BaseException, event: PycroEvent) -> PycroEvent | None:
        """End the acquisition with ``error``: raised when it is awaited, with every image so far kept.

        An exception that leaves a hook makes the Python backend end silently, and the Java backend raise.
        """
        if self._error is None:
            self._error = error
        acquisition = _acquisition()
        if acquisition is None:
            raise error
        logger.error("the acquisition ends: %s", error)
        acquisition.abort(self._error)
        return None if self._autofocus.microscope.core.camel else event


def _acquisition() -> Any:
    """Find the acquisition that runs this hook; pycro-manager hands hooks no reference to it."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("pycromanager."):
            found = frame.f_locals.get("acq")
            if found is not None and hasattr(found, "abort"):
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return None

