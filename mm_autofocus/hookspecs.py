"""Everything that varies: the hooks that a plugin may implement. This file is the project's table of contents.

A plugin is a module or an object with functions of these names, decorated with `mm_autofocus.hookimpl`. It registers
through the entry-point group ``mm_autofocus``, or with ``Autofocus(..., plugins=[plugin])``. A hook takes any subset of
the arguments named here; a wrong name fails at registration, with the plugin's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.ledger import Ledger
    from mm_autofocus.policy import Action
    from mm_autofocus.request import Event, FocusRequest, Prior
    from mm_autofocus.result import FocusResult
    from mm_autofocus.strategy import Frame, Strategy

PROJECT = "mm_autofocus"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mmaf_strategies() -> Sequence[type[Strategy]]:
    """Register strategies: return their classes."""
    raise NotImplementedError


@hookspec
def mmaf_start(autofocus: Autofocus) -> None:
    """An acquisition, or a script, is about to use this autofocus: open files, reset state."""


@hookspec(firstresult=True)
def mmaf_should_focus(event: Event, ledger: Ledger) -> bool | None:
    """Decide whether to focus at this event. The first True or False wins; None leaves it to the next plugin."""


@hookspec(firstresult=True)
def mmaf_predict(event: Event, ledger: Ledger) -> Prior | None:
    """Predict the focal plane at this event (absolute µm) from what is known; the first that is not None wins."""


@hookspec(firstresult=True)
def mmaf_focus(request: FocusRequest, run: Callable[[Strategy, FocusRequest], FocusResult]) -> FocusResult | None:
    """Focus: call ``run(strategy, request)``, once or, as a cascade, until the confidence suffices.

    ``run`` is the only way to the hardware. The default implementation runs the configured strategies in turn.
    """


@hookspec(firstresult=True)
def mmaf_focus_failed(request: FocusRequest, result: FocusResult, ledger: Ledger) -> Action | None:
    """Decide what to do about a run that did not converge; called again after each action that fails in turn."""


@hookspec
def mmaf_focused(request: FocusRequest, result: FocusResult) -> None:
    """Observe a finished run, failed ones too, after the policy acted: recorder, focus map, report, progress."""


@hookspec
def mmaf_frame(request: FocusRequest, frame: Frame, purpose: str) -> None:
    """Observe every frame of a run; ``purpose`` is "search", "start" or "verify". Must be fast."""


@hookspec
def mmaf_event(event: Event, z: float | None) -> None:
    """Observe every event with the z it is acquired at (absolute µm); must be fast."""


@hookspec
def mmaf_finish(autofocus: Autofocus, error: BaseException | None) -> None:
    """The acquisition has ended, with the error that ended it or None: close files, write reports."""


@hookspec
def mmaf_settings() -> dict[str, Any]:
    """Extend autofocus.toml: return ``{"section": PydanticModelClass}`` for the plugin's own section."""
    raise NotImplementedError
