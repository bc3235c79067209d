"""Carries out what the failure policy says about a run that did not converge."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from mm_autofocus.errors import AcquisitionAborted, CancelledError, FocusError
from mm_autofocus.policy import Action
from mm_autofocus.request import FocusRequest, Limits
from mm_autofocus.result import FocusResult, Status

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus

logger = logging.getLogger(__name__)

MAX_ACTIONS = 10
"""No failure policy may go on for longer than this at one event."""

Recovered = tuple[FocusResult, float | None, FocusError | None]
"""The result, the focal z to use (None: none), and what ends the acquisition (None: nothing)."""


def recover(autofocus: Autofocus, request: FocusRequest, result: FocusResult, *, from_here: bool) -> Recovered:
    """Ask for an action and do it, until one settles the event.

    Parameters
    ----------
    autofocus
        Whose hooks decide, and whose instrument is moved.
    request, result
        What was asked, and the run that did not converge.
    from_here
        True for a script that wants a focus where the stage stands: it is not taken to where the map says.
    """
    knob = request.knob
    while True:
        action: Action | None = autofocus.hook.mmaf_focus_failed(
            request=request, result=result, ledger=autofocus.ledger
        )
        if action is None or len(result.action) >= MAX_ACTIONS:
            action = Action("stay")
        logger.info("%s: %s (%s) -> %s", request.event.name, result.status, result.reason, action.name)
        result = result.model_copy(update={"action": (*result.action, action.name)})
        match action.name:
            case "accept":
                return result, result.end[knob], None
            case "use_map" | "use_last_good":
                if from_here or action.z is None or action.z not in request.limits[knob]:
                    continue
                if autofocus.move(knob, action.z) and _others_back(autofocus, request):
                    return result.model_copy(update={"final": action.z}), action.z, None
                continue
            case "skip":
                autofocus.skip(request.event)
                return result, _stay(autofocus, request), None
            case "abort":
                _stay(autofocus, request)
                return result, None, _ending(request, result)
            case "pause":
                _stay(autofocus, request)  # whoever comes to look, or ends it here, finds the instrument as it was
                try:
                    _pause(autofocus, request, result)
                except CancelledError as error:
                    return result, None, error
                window = request.window
            case "widen":
                window = widened(request, result, action.factor)
            case "stay":
                return result, _stay(autofocus, request), None
            case _:
                logger.error("a plugin answered mmaf_focus_failed with the unknown action %r; staying", action.name)
                return result, _stay(autofocus, request), None
        result = _again(autofocus, request, result, window)
        if result.ok:
            return result, result.end[knob], None


def widened(request: FocusRequest, result: FocusResult, factor: float) -> Limits:
    """Return a window ``factor`` times as wide as what was searched, around the start, inside the limits."""
    searched = [s.knobs[request.knob] for s in result.samples if request.knob in s.knobs]
    start = request.start[request.knob]
    half = max((abs(z - start) for z in searched), default=0.0)
    half = max(half, 2.0 * request.depth_of_field_um) * factor
    return Limits(start - half, start + half).intersect(request.limits[request.knob])


def _again(autofocus: Autofocus, request: FocusRequest, before: FocusResult, window: Limits | None) -> FocusResult:
    """Run once more from the start; the result counts what both runs cost."""
    _stay(autofocus, request)  # an unsure run stays where it ended, which is not what a second one has to put back
    request = replace(request, window=window, attempt=len(before.action))
    if window is not None:
        request = replace(request, prior=None)
    result = autofocus.run(request)
    return result.model_copy(
        update={
            "action": before.action,
            "images": before.images + result.images,
            "dose": before.dose + result.dose,
            "seconds": before.seconds + result.seconds,
            "compute_seconds": before.compute_seconds + result.compute_seconds,
            "moves": before.moves + result.moves,
            "samples": before.samples + result.samples,
        }
    )


def _stay(autofocus: Autofocus, request: FocusRequest) -> float | None:
    """Put the knobs back to the start, and return the focused one if it is a focal z."""
    start = request.start[request.knob]
    autofocus.move(request.knob, start)
    _others_back(autofocus, request)
    return start if request.knob == "z" else None


def _others_back(autofocus: Autofocus, request: FocusRequest) -> bool:
    """Put every knob but the focused one (stigmators) back to the start; False when one cannot go there."""
    moved = [autofocus.move(name, value) for name, value in request.start.items() if name != request.knob]
    return all(moved)


def _ending(request: FocusRequest, result: FocusResult) -> FocusError:
    if result.status is Status.CANCELLED:
        return CancelledError(result.reason)
    return AcquisitionAborted(
        f"focusing at {request.event.name} ended with {result.status}: {result.reason} The failure policy says abort "
        "([failure])."
    )


def _pause(autofocus: Autofocus, request: FocusRequest, result: FocusResult) -> None:
    """Wait until someone sets ``autofocus.resume``.

    Raises
    ------
    CancelledError
        When someone cancels instead.
    """
    autofocus.resume.clear()
    autofocus.paused.set()
    where = request.event.name
    logger.warning("paused at %s: %s; resume.set() goes on, cancel() ends", where, result.reason)
    try:
        while not autofocus.resume.wait(0.2):
            autofocus.check_cancel()
    finally:
        autofocus.paused.clear()
    autofocus.check_cancel()
