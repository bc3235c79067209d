"""The base class of Python autofocus devices: what Micro-Manager's C++ ``MM::AutoFocus`` is to an adapter library."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pymmcore_plus.core import DeviceType
from pymmcore_plus.experimental.unicore import Device

from mm_autofocus.errors import HardwareError

if TYPE_CHECKING:
    from mm_autofocus_devices.core import AutofocusCore


class AutoFocusDevice(Device):
    """A device that can hold the AutoFocus role of an `AutofocusCore`.

    A subclass needs `full_focus` only. It must be constructible without arguments, because a configuration file does
    so; open connections in `initialize`.

    The core calls none of these methods with the device's lock held, so a focusing device may use the whole core,
    its own properties included. Failures are `RuntimeError` (best a `FocusError`); anything else that leaves
    `full_focus` or `incremental_focus` is turned into a `HardwareError` by the core.
    """

    _TYPE: ClassVar[Literal[DeviceType.AutoFocus]] = DeviceType.AutoFocus

    def __init__(self) -> None:
        super().__init__()
        self._mmcore_ref: weakref.ref[AutofocusCore] | None = None

    def attach(self, core: AutofocusCore) -> None:
        """Remember, weakly, the core that loaded this device; the core calls it."""
        self._mmcore_ref = weakref.ref(core)

    @property
    def mmcore(self) -> AutofocusCore:
        """The whole core that loaded this device (``self.core`` is unicore's proxy, which only has events).

        Raises
        ------
        HardwareError
            The device was never loaded, or its core is gone: load it with ``core.loadPyDevice(label, device)``.
        """
        core = self._mmcore_ref() if self._mmcore_ref is not None else None
        if core is None:
            raise HardwareError(
                f"{type(self).__name__} has no core: load it with core.loadPyDevice(label, device) and keep the core."
            )
        return core

    @abstractmethod
    def full_focus(self, core: AutofocusCore) -> None:
        """Find the focal plane and leave the focus drive there (``core.fullFocus()``)."""

    def incremental_focus(self, core: AutofocusCore) -> None:  # noqa: ARG002
        """Refine the focus from close by (``core.incrementalFocus()``); unsupported unless overridden.

        Raises
        ------
        HardwareError
            The device has no incremental focus: call ``fullFocus()``.
        """
        raise HardwareError(f"Autofocus device {self.get_label()!r} has no incremental focus: call fullFocus().")

    def get_last_score(self) -> float:
        """Return the score of the last focus run, higher is sharper; 0 before the first."""
        return 0.0

    def get_current_score(self, core: AutofocusCore) -> float:  # noqa: ARG002
        """Measure and return the score where the microscope stands now; unsupported unless overridden.

        Raises
        ------
        HardwareError
            The device cannot score a single position: call ``getLastFocusScore()`` after a run.
        """
        raise HardwareError(
            f"Autofocus device {self.get_label()!r} cannot score the present position: run fullFocus() and call "
            "getLastFocusScore()."
        )

    def get_offset(self) -> float:
        """Return the offset from the plane that the device finds to the plane it goes to, in µm."""
        return 0.0

    def set_offset(self, offset: float) -> None:
        """Set the offset in µm; unsupported unless overridden.

        Raises
        ------
        HardwareError
            The device has no offset and `offset` is not 0.
        """
        if offset != 0:
            raise HardwareError(
                f"Autofocus device {self.get_label()!r} has no offset; {offset} µm was asked for. Set 0 or None."
            )

    def set_continuous_focus(self, enabled: bool) -> None:
        """Switch continuous focus; the base class accepts False (acquisition engines send it before every run).

        Raises
        ------
        HardwareError
            The device has no continuous focus and `enabled` is True.
        """
        if enabled:
            raise HardwareError(f"Autofocus device {self.get_label()!r} has no continuous focus: call fullFocus().")

    def get_continuous_focus(self) -> bool:
        """Return True while continuous focus is switched on."""
        return False

    def is_continuous_focus_locked(self) -> bool:
        """Return True while continuous focus is on and holds the focal plane."""
        return False
