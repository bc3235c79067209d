"""The AutoFocus device of a configuration file: ``core.fullFocus()`` runs a strategy, safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymmcore_plus.experimental.unicore import pymm_property

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus_devices.autofocus_device import AutoFocusDevice
from mm_autofocus_devices.core import AutofocusCore

CONFIGS = Path(__file__).parent / "configs"


class StrategyAutofocus(AutoFocusDevice):
    """Micro-Manager's AutoFocus device over `mm_autofocus.Autofocus`.

    Pre-init properties: ``Settings`` (path of an autofocus.toml, looked for in the working directory and beside the
    configurations that come with mm-autofocus; empty for the defaults) and ``Strategy`` (overrides the file). A
    script that has made its own `Autofocus` hands it over with `use`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path = ""
        self._strategy = ""
        self._autofocus: Autofocus | None = None
        self._offset = 0.0
        self.last_result: FocusResult | None = None
        """What the last ``fullFocus()`` came to; None before the first."""

    @pymm_property(is_pre_init=True, name="Settings")
    def settings_path(self) -> str:
        """Path of an autofocus.toml; empty for the defaults."""
        return self._path

    @settings_path.setter  # type: ignore[no-redef]
    def settings_path(self, value: str) -> None:
        self._path = value
        self._autofocus = None

    @pymm_property(is_pre_init=True, name="Strategy")
    def strategy(self) -> str:
        """Name of the strategy; empty for that of the settings."""
        return self._strategy

    @strategy.setter  # type: ignore[no-redef]
    def strategy(self, value: str) -> None:
        self._strategy = value
        self._autofocus = None

    def initialize(self) -> None:
        """Check the settings file.

        Raises
        ------
        SettingsError
            When it cannot be used.
        """
        if self._path:
            Settings.load(_find(self._path))

    def use(self, autofocus: Autofocus) -> None:
        """Focus with this `Autofocus` from now on, plugins and results shared with the script that made it."""
        self._autofocus = autofocus

    @property
    def autofocus(self) -> Autofocus:
        """The `Autofocus` that this device runs, made on first use.

        Raises
        ------
        SettingsError
            When the settings do not fit the configuration.
        """
        if self._autofocus is None:
            arguments: dict[str, Any] = {"strategy": self._strategy} if self._strategy else {}
            settings = Settings.load(_find(self._path)) if self._path else None
            self._autofocus = Autofocus(self.mmcore, settings, **arguments)
        return self._autofocus

    def full_focus(self, core: AutofocusCore) -> None:  # noqa: ARG002
        """Focus where the stages stand and leave the focus drive there, plus the offset.

        Raises
        ------
        FocusError
            When no focus was found; the instrument is as it was.
        """
        placement = self.autofocus.focus()
        self.last_result = result = placement.result
        if result is None or not (result.ok or "accept" in result.action):
            reason = result.reason if result is not None else "there is no result"
            raise FocusError(f"autofocus ended with {result.status if result else 'nothing'}: {reason}")
        if self._offset:
            knob = self.autofocus.microscope.knob(result.knob)
            knob.set(result.end[result.knob] + self._offset)

    def get_last_score(self) -> float:
        """Return the score of the last verifying frame, 0 when there was none."""
        result = self.last_result
        return result.score if result is not None and result.score is not None else 0.0

    def get_current_score(self, core: AutofocusCore) -> float:  # noqa: ARG002
        """Take a frame where the stages stand and return its score; camera and shutter are put back."""
        from mm_autofocus.strategy import Frame

        autofocus = self.autofocus
        microscope = autofocus.microscope
        with microscope.preserved():
            microscope.apply_imaging()
            image, exposure = microscope.snap()
        knobs = {name: knob.get() for name, knob in microscope.knobs.items()}
        return next(iter(autofocus.strategies.values())).score(
            Frame(image, knobs, microscope.pixel_um, exposure_ms=exposure)
        )

    def get_offset(self) -> float:
        """Return the offset from the plane that is found to the plane that is gone to, in µm."""
        return self._offset

    def set_offset(self, offset: float) -> None:
        """Set the offset in µm.

        Raises
        ------
        SettingsError
            When it is not a finite number.
        """
        if not abs(offset) < float("inf"):
            raise SettingsError(f"autofocus offset {offset} is not a finite number of µm")
        self._offset = float(offset)


def _find(path: str) -> Path:
    """Look for a settings file in the working directory, then among those that come with the devices."""
    found = Path(path).expanduser()
    shipped = CONFIGS / path
    return shipped if not found.exists() and shipped.exists() else found
