"""Lets an acquisition begin only when the autofocus recovers a known defocus: a check before the first event."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mm_autofocus.errors import AcquisitionAborted, FocusError, SettingsError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.request import Event, FocusRequest
from mm_autofocus.result import FocusResult
from mm_autofocus.run import start_values
from mm_autofocus.settings import Section, Settings

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.benchmark.check_focus import Check

logger = logging.getLogger(__name__)

SECTION = "require_check"


class RequireCheckSettings(Section):
    """``[plugins.require_check]``: without this section nothing is checked.

    Attributes
    ----------
    enabled
        False to leave the section in the file and skip the check.
    injected_um
        Offsets to inject, µm; empty: 5 depths of field to either side.
    repeats, threshold, reference, focus_um
        As in `mm_autofocus.benchmark.check_focus.check_focus`.
    """

    enabled: bool = True
    injected_um: tuple[float, ...] = ()
    repeats: int = Field(default=1, ge=1)
    threshold: float = Field(default=0.9, ge=0, le=1)
    reference: Literal["image", "self"] = "image"
    focus_um: float | None = None


class RequireCheck:
    """Before the first event, inject a known defocus where the stages stand, and end the acquisition when it stays.

    Put the specimen under the objective, near focus, before starting. The stages stand there again afterwards.

    Parameters
    ----------
    settings
        Section ``[plugins.require_check]``; see `RequireCheckSettings`.
    """

    def __init__(self, settings: Settings) -> None:
        section = settings.plugins.get(SECTION)
        self._settings = None if section is None else RequireCheckSettings.model_validate(section)
        self.check: Check | None = None
        """What the last check came to; None before the first."""

    @hookimpl
    def mmaf_settings(self) -> dict[str, Any]:
        """Bring the section."""
        return {SECTION: RequireCheckSettings}

    @hookimpl(trylast=True)
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Check.

        Raises
        ------
        AcquisitionAborted
            When too little is recovered, or the check itself fails; nothing has been acquired.
        """
        wanted = self._settings
        if wanted is None or not wanted.enabled:
            return
        from mm_autofocus.benchmark.check_focus import check_focus

        try:
            self.check = check_focus(
                autofocus.microscope, _Configured(autofocus), injected_um=wanted.injected_um, repeats=wanted.repeats,
                threshold=wanted.threshold, reference=wanted.reference, focus_um=wanted.focus_um,
            )  # fmt: skip
        except FocusError as error:
            raise AcquisitionAborted(
                f"the check before the acquisition failed, so nothing was acquired: {error} ([plugins.{SECTION}])"
            ) from error
        logger.info("%s", self.check.sentence)
        if not self.check.passed:
            raise AcquisitionAborted(
                f"{self.check.sentence}; nothing was acquired. Recalibrate, or lower [plugins.{SECTION}] threshold"
            )


class _Configured:
    """The strategies of the settings, as an acquisition runs them, without its schedule, ledger and failure policy."""

    def __init__(self, autofocus: Autofocus) -> None:
        self._autofocus = autofocus
        self.name = ", ".join(autofocus.settings.strategy)

    def focus(self) -> tuple[bool, str, FocusResult | None]:
        """Focus where the stages stand."""
        microscope, settings = self._autofocus.microscope, self._autofocus.settings
        if "z" not in microscope.knobs:
            raise SettingsError("the settings have no knob z, so no defocus can be injected; remove this section")
        result = self._autofocus.run(
            FocusRequest(
                event=Event(),
                start=start_values(microscope, tuple(microscope.knobs)),
                limits={name: knob.limits for name, knob in microscope.knobs.items()},
                knob="z",
                budget=settings.budget.budget(),
                depth_of_field_um=microscope.depth_of_field_um,
                depths=microscope.depths,
                pixel_um=microscope.pixel_um,
                seed=settings.seed,
            )
        )
        return result.ok, result.reason, result
