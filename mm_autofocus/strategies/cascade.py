"""The cascade: runs the configured strategies in turn until one is sure enough, and returns the best result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mm_autofocus.errors import SettingsError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.request import Budget, FocusRequest
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus.strategy import Strategy


class Cascade:
    """Default ``mmaf_focus``: the strategies of ``settings.strategy`` in turn, within one budget.

    The next strategy is tried while no result converged with at least ``min_confidence``. A converged result is
    preferred to any other, then the higher confidence, then the later one. Its costs are those of all tries, its
    samples those of all tries in order, and its ``start`` is where the first one started. When the preferred result
    is not that of the last try, the knobs are no longer at its ``end``: whoever called brings them there.

    Parameters
    ----------
    settings
        Names the strategies and the confidence that suffices.
    strategies
        The strategies by name, ready to run.

    Raises
    ------
    SettingsError
        When a configured strategy is not among them.
    """

    def __init__(self, settings: Settings, strategies: Mapping[str, Strategy]) -> None:
        missing = [name for name in settings.strategy if name not in strategies]
        if missing:
            raise SettingsError(
                f'strategy "{missing[0]}" is unknown. Available: {", ".join(sorted(strategies)) or "none"}. '
                "Correct `strategy` in the settings, or install the plugin that provides it."
            )
        self._strategies = tuple(strategies[name] for name in settings.strategy)
        self._min_confidence = settings.min_confidence

    @hookimpl(trylast=True)
    def mmaf_focus(
        self, request: FocusRequest, run: Callable[[Strategy, FocusRequest], FocusResult]
    ) -> FocusResult:
        """Focus once; a cancelled run, or an exhausted budget, ends the cascade."""
        tries: list[FocusResult] = []
        for strategy in self._strategies:
            budget = _remaining(request.budget, tries)
            if budget is None:
                break
            result = run(strategy, request if not tries else replace(request, budget=budget))
            tries.append(result)
            if result.status is Status.CANCELLED:
                return _merged(result, tries)
            if result.ok and result.confidence >= self._min_confidence:
                break
        return _merged(max(reversed(tries), key=_merit), tries)


def _merit(result: FocusResult) -> tuple[bool, float]:
    return result.ok, result.confidence if math.isfinite(result.confidence) else -1.0


def _remaining(budget: Budget, tries: Sequence[FocusResult]) -> Budget | None:
    """What is left for the next try; None when nothing is. The first try gets the budget as it is."""
    if not tries:
        return budget
    images = None if budget.images is None else budget.images - sum(result.images for result in tries)
    seconds = None if budget.seconds is None else budget.seconds - sum(result.seconds for result in tries)
    dose = None if budget.dose is None else budget.dose - sum(result.dose for result in tries)
    if any(left is not None and left <= 0 for left in (images, seconds, dose)):
        return None
    return Budget(images, seconds, dose)


def _merged(best: FocusResult, tries: Sequence[FocusResult]) -> FocusResult:
    """The best result with the costs and the samples of all tries."""
    if len(tries) == 1:
        return best
    summary = [
        {"strategy": each.strategy, "status": each.status.value, "confidence": each.confidence, "images": each.images}
        for each in tries
    ]
    return best.model_copy(
        update={
            "start": {**best.start, **tries[0].start},
            "samples": tuple(sample for each in tries for sample in each.samples),
            "images": sum(each.images for each in tries),
            "dose": sum(each.dose for each in tries),
            "seconds": sum(each.seconds for each in tries),
            "compute_seconds": sum(each.compute_seconds for each in tries),
            "moves": sum(each.moves for each in tries),
            "details": {**best.details, "cascade": summary},
        }
    )
