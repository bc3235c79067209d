"""What an unsure run has moved is put back when somebody looks at it, ends it, or tries again; tiny moves too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mm_autofocus import Action, Autofocus, CancelledError, Event, Look, Status, StrategySettings, Verdict, hookimpl
from mm_autofocus.errors import HardwareError
from mm_autofocus.microscope import Microscope
from support import FakeCore, contrast, settings, state

UNSURE_AT = 5.0


class Unsure:
    """Goes to the best of a few planes, and does not trust it."""

    name = "unsure"

    class Settings(StrategySettings):
        pass

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def focus(self, request: Any) -> Any:
        planes = np.linspace(-10.0, 10.0, 9).tolist()
        scores = []
        for z in planes:
            frame = yield Look({"z": z})
            scores.append(contrast(frame))
        return Verdict({"z": planes[int(np.argmax(scores))]}, 0.3, Status.LOW_CONFIDENCE)

    def score(self, frame: Any) -> float:
        return contrast(frame)


class Policy:
    """Brings the strategy, and answers what to do about a run that failed."""

    def __init__(self, answer: Callable[[], Action]) -> None:
        self._answer = answer

    @hookimpl
    def mmaf_strategies(self) -> Any:
        return (Unsure,)

    @hookimpl
    def mmaf_focus_failed(self) -> Action:
        return self._answer()


def unsure(core: FakeCore, answer: Callable[[], Action]) -> Autofocus:
    return Autofocus(core, settings(), strategy="unsure", plugins=[Policy(answer)], map={"enabled": False})


def test_a_second_try_that_is_interrupted_puts_back_what_the_first_has_moved() -> None:
    core = FakeCore(focus=UNSURE_AT)
    before = state(core)
    seen: list[float] = []

    def snaps() -> Iterator[BaseException | None]:
        yield from [None, None]
        raise KeyboardInterrupt

    def answer() -> Action:
        seen.append(core.z)
        core.snap_failures = snaps()
        return Action("widen", factor=2.0)

    with pytest.raises(KeyboardInterrupt):
        unsure(core, answer).focus(Event(axes={"position": 0}, z=0.0))
    assert seen == [UNSURE_AT]
    assert state(core) == before


def test_a_pause_waits_at_the_start_and_a_cancelled_one_leaves_it_there() -> None:
    core = FakeCore(focus=UNSURE_AT)
    before = state(core)
    autofocus = unsure(core, lambda: Action("pause"))
    waited_at: list[float] = []

    def cancel() -> None:
        if autofocus.paused.wait(20):
            waited_at.append(core.z)
        autofocus.cancel()

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    with pytest.raises(CancelledError):
        autofocus.focus(Event(axes={"position": 0}, z=0.0))
    thread.join(20)
    assert waited_at == [0.0]
    assert state(core) == before


def one_wobble(microscope: Microscope) -> None:
    for value in (0.99, 1.0009):
        microscope.knob("z").set(value)
        microscope.snap()


def test_a_knob_that_counts_in_fractions_is_put_back_too() -> None:
    core = FakeCore(low=0.5, high=1.5)
    core.z = 1.0
    microscope = Microscope(core, settings(knobs={"z": {"tolerance": 0.0005}}))
    core.snap_failures = iter([None, CancelledError("stopped"), CancelledError("stopped")])
    with pytest.raises(HardwareError, match="stopped"), microscope.preserved():
        one_wobble(microscope)
    assert core.z == 1.0
