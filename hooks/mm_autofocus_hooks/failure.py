"""The failure policy: what to do when a focus run did not converge, from the chains of actions in the settings."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.ledger import Ledger
from mm_autofocus.policy import Action, ActionName
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus

RETRIES = frozenset({"widen", "pause"})
"""Actions after which the run is repeated; every other one settles the event."""

LOST_AFTER = 3
"""After this many failures in a row a field without signal is searched widely, map or no map."""


class FailurePolicy:
    """Follow the chain of the result's status, leaving out what was done for this event already and what cannot be.

    What was done is read from ``result.action``, so the policy keeps no state for an event, and a status that changes
    from one try to the next takes up the other chain without repeating an action. At the end of a chain the knob
    stays where the run left it. ``abort_after`` failures in a row end the acquisition; a retry is still tried first,
    and an accepted result that moved is not a failure.

    Parameters
    ----------
    settings
        Section ``[failure]``; see `mm_autofocus.settings.FailureSettings`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.failure
        self._autofocus: Autofocus | None = None
        self._failures = 0

    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Count failures from zero."""
        self._autofocus = autofocus
        self._failures = 0

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Count the failures in a row."""
        if result.ok or ("accept" in result.action and result.end != result.start):
            self._failures = 0
        elif result.status is not Status.CANCELLED:
            self._failures += 1

    @hookimpl(trylast=True)
    def mmaf_focus_failed(self, request: FocusRequest, result: FocusResult, ledger: Ledger) -> Action | None:
        """Return the next action for this event; None for a run that converged."""
        if result.ok:
            return None
        if result.status is Status.CANCELLED:
            return Action("abort", reason="the focus run was cancelled")
        action = self._next(request, result, ledger)
        limit = self._settings.abort_after
        if limit and action.name not in RETRIES and action.name != "accept" and self._failures + 1 >= limit:
            return Action("abort", reason=f"{limit} focus runs in a row failed (abort_after = {limit})")
        return action

    def _next(self, request: FocusRequest, result: FocusResult, ledger: Ledger) -> Action:
        done = Counter(result.action)
        for name in self._settings.chain(result.status.value):
            if done[name] > 0:
                done[name] -= 1
                continue
            if name == "widen" and result.status is Status.NO_SIGNAL and self._is_blank(request):
                continue
            action = self._action(name, request, ledger)
            if action is not None:
                return action
        return Action("stay", reason="nothing else in the chain could be done")

    def _action(self, name: ActionName, request: FocusRequest, ledger: Ledger) -> Action | None:
        """Return the action, None when it cannot be done here."""
        match name:
            case "widen":
                return self._widen(request)
            case "use_map":
                return self._use_map(request)
            case "use_last_good":
                z = ledger.last_good(request.event)
                if z is None or z not in request.limits[request.knob]:
                    return None
                return Action(name, z=z, reason=f"from the nearest run that converged: {z:.2f} µm")
            case _:
                return Action(name)

    def _is_blank(self, request: FocusRequest) -> bool:
        """Whether nothing was seen where the map expected it: a blank field is not worth a second, wider search.

        After `LOST_AFTER` failures in a row it is rather the map that is wrong.
        """
        return request.prior is not None and self._failures < LOST_AFTER

    def _widen(self, request: FocusRequest) -> Action | None:
        limits, window = request.limits[request.knob], request.window
        if window is not None and window.low <= limits.low and window.high >= limits.high:
            return None
        factor = self._settings.widen_factor
        return Action("widen", factor=factor, reason=f"again in a window {factor:g} times as wide")

    def _use_map(self, request: FocusRequest) -> Action | None:
        prior = self._autofocus.predict(request.event) if self._autofocus is not None else request.prior
        if prior is None or prior.mean not in request.limits[request.knob]:
            return None
        most = self._settings.map_sd_um
        if most is not None and not prior.sd <= most:
            return None
        return Action("use_map", z=prior.mean, reason=f"from the focus map: {prior.mean:.2f} ± {prior.sd:.2f} µm")
