"""The traps that can hang pycro-manager's Python engine, each given a second; prints one JSON object."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mmpycorex.launcher import _PYMMCORES
from pycromanager.acquisition.acq_eng_py.internal.engine import Engine
from pycromanager_traps import Run, print_observations, stack, with_run

from mm_autofocus_devices import pycromanager_backend

HANG_S = 1.0


def hangs(run: Callable[[], Any]) -> str:
    """Say whether an acquisition is over within `HANG_S`; the engine it clogs is left behind."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(run()), daemon=True)
    thread.start()
    thread.join(HANG_S)
    if not thread.is_alive():
        return f"ended: {result[0].report}"
    pycromanager_backend._started.clear()
    _PYMMCORES.clear()
    del Engine.singleton
    return "hangs"


def callback_raises(name: str, n: int) -> Any:
    def fail(*_: Any) -> Any:
        raise ValueError("oops")

    def fail2(axes: Any, dataset: Any) -> Any:  # the engine counts the arguments
        fail()

    return hangs(lambda: Run(stack(n), **{name: fail2 if name == "image_saved_fn" else fail}))


def await_in_a_hook() -> Any:
    future: list[Any] = []

    def hook(run: Run, event: Any) -> Any:
        future.append(run.acq.acquire({"axes": {"n": 1}}))
        future[0].await_image_saved({"n": 1})
        return event

    def once(run: Run, event: Any) -> Any:
        return event if future else hook(run, event)

    return hangs(lambda: with_run(once, [{"axes": {"n": 0}}]))


def get_tagged_image_raises() -> Any:
    def broken(run: Run) -> None:
        def fail(*_: Any) -> Any:
            raise RuntimeError("no image")

        run.core.get_tagged_image = fail

    boxes: list[Run] = []

    def keep(run: Run) -> None:
        boxes.append(run)
        broken(run)

    answer = hangs(lambda: Run(stack(2), prepare=keep))
    boxes[0].acq._acq.abort_requested_.set()  # the engine spins: give the processor back
    return answer


HANGS: dict[str, Callable[[], Any]] = {
    "tags in an event": lambda: hangs(lambda: Run([{"axes": {"n": 0}, "tags": {"a": 1}}])),
    "an event that does not parse": lambda: hangs(lambda: Run([{"axes": {"n": 0}, "z": "five"}])),
    "image_saved_fn raises, 3 images": lambda: callback_raises("image_saved_fn", 3),
    "image_saved_fn raises, 130 images": lambda: callback_raises("image_saved_fn", 130),
    "notification_callback_fn raises, 3 images": lambda: callback_raises("notification_callback_fn", 3),
    "notification_callback_fn raises, 50 images": lambda: callback_raises("notification_callback_fn", 50),
    "image future awaited in a hook": await_in_a_hook,
    "get_tagged_image raises": get_tagged_image_raises,
}


if __name__ == "__main__":
    print_observations(HANGS)
