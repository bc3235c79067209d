"""An autofocus under test: ours or a vendor's, driven without trusting it, on an instrument that is put back after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import HardwareError, LimitError, SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings

logger = logging.getLogger(__name__)

STAY = dict.fromkeys(("no_signal", "at_limit", "low_confidence", "timed_out", "failed"), "stay")
"""No second chances: one run is what is measured."""


class Focuser(Protocol):
    """The autofocus under test: focuses where the stage stands."""

    name: str

    def focus(self) -> tuple[bool, str, FocusResult | None]:
        """Focus; return whether it says that it found the focus, what it says, and its result where it has one."""
        ...


class DeviceFocuser:
    """Micro-Manager's AutoFocus device, ours or a vendor's: ``core.fullFocus()``.

    Parameters
    ----------
    microscope
        Whose core.
    result_of
        Returns the device's last result; None for a device that has none.

    Raises
    ------
    SettingsError
        When the configuration has no AutoFocus device.
    """

    def __init__(self, microscope: Microscope, result_of: Callable[[], FocusResult | None] | None = None) -> None:
        self._core = microscope.core
        self._knob = microscope.knob("z")
        self._result_of = result_of
        label = str(self._core.get_auto_focus_device())
        if not label:
            raise SettingsError("the configuration has no AutoFocus device (Core, AutoFocus); use --use strategy")
        self.name = label

    def focus(self) -> tuple[bool, str, FocusResult | None]:
        """See `Focuser`."""
        try:
            self._core.full_focus()
            self._core.wait_for_device(self._knob.device)
        except RuntimeError as error:
            return False, str(error), self._result()
        return True, "", self._result()

    def _result(self) -> FocusResult | None:
        return self._result_of() if self._result_of is not None else None


class StrategyFocuser:
    """The strategy of the settings, without an AutoFocus device: each run by itself, without map or second chances."""

    def __init__(self, core: Any, settings: Settings, **arguments: Any) -> None:
        data = settings.model_dump(exclude_unset=True)
        data |= {"map": {"enabled": False}, "recorder": {}, "failure": STAY}
        self._autofocus = Autofocus(core, Settings.parse(data), **arguments)
        self.name = ", ".join(settings.strategy)

    @property
    def microscope(self) -> Microscope:
        """What the strategy drives."""
        return self._autofocus.microscope

    def focus(self) -> tuple[bool, str, FocusResult | None]:
        """See `Focuser`."""
        result = self._autofocus.focus().result
        if result is None:
            return False, "there is no result", None
        return result.ok, result.reason, result


def inside_limits(microscope: Microscope, name: str, back: float) -> float:
    """Return where the stage stands after a run of an autofocus that does not know our limits.

    Raises
    ------
    LimitError
        When it has left them; the stage is sent back to ``back`` first.
    """
    knob = microscope.knob("z")
    z = knob.get()
    if not knob.limits.low - knob.tolerance <= z <= knob.limits.high + knob.tolerance:
        # the knob refuses to move from outside, and rightly so; this is the way back in
        microscope.core.set_position(knob.device, back)
        microscope.core.wait_for_device(knob.device)
        raise LimitError(
            f"autofocus {name!r} went to {z:g} µm, outside the limits [{knob.limits.low:g}, {knob.limits.high:g}]; the "
            f"stage was sent back to {back:g}. Bound the device's own search range before characterising it."
        )
    return z


@contextmanager
def put_back(microscope: Microscope) -> Iterator[None]:
    """Put camera, channel, XY stage, focus drive and continuous focus back, whatever happens inside.

    Continuous focus is switched off meanwhile: it would pull the stage back from every known offset.

    Raises
    ------
    HardwareError
        When something cannot be put back; everything else still is.
    """
    core, knob = microscope.core, microscope.knob("z")
    stage = str(core.get_xy_stage_device())
    z = knob.get()
    xy = (float(core.get_x_position(stage)), float(core.get_y_position(stage))) if stage else None
    device = str(core.get_auto_focus_device())
    held = bool(device) and bool(core.is_continuous_focus_enabled())
    with microscope.preserved(knobs=False):
        if held:
            core.enable_continuous_focus(False)
        steps: list[tuple[str, Callable[[], object]]] = []
        if xy is not None:
            steps.append(("the XY stage", lambda: _move_xy(core, stage, *xy)))
        steps.append(("the focus drive", lambda: knob.set(knob.limits.clip(z))))
        if held:
            steps.append(("continuous focus", lambda: core.enable_continuous_focus(True)))
        try:
            yield
        except BaseException as error:
            if problems := _do(steps):
                error.add_note("and the instrument could not be put back completely: " + "; ".join(problems))
            raise
        if problems := _do(steps):
            raise HardwareError("the instrument could not be put back completely: " + "; ".join(problems))


def _do(steps: list[tuple[str, Callable[[], object]]]) -> list[str]:
    """Do every step, and return what went wrong."""
    problems = []
    for what, step in steps:
        try:
            step()
        except Exception as error:
            problems.append(f"{what}: {error}")
            logger.error("%s could not be put back: %s", what, error)
    return problems


def _move_xy(core: Any, stage: str, x: float, y: float) -> None:
    if abs(core.get_x_position(stage) - x) > 0.01 or abs(core.get_y_position(stage) - y) > 0.01:
        core.set_xy_position(stage, x, y)
        core.wait_for_device(stage)
