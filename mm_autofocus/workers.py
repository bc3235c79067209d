"""Threads that last, for work that may hang: one that hangs is given up, and another takes its place.

A thread for every frame would do as well, but glibc gives each new one a heap of its own and keeps what was freed in
it: a night of a hundred thousand frames would grow by tens of MiB.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """A task has not come back in time. ``late`` is done once it does."""

    def __init__(self, late: Future[Any]) -> None:
        super().__init__("the task has not come back in time")
        self.late = late


class Workers:
    """Lends threads for one kind of work; one idle thread is kept, whatever happens to the others.

    Parameters
    ----------
    name
        Of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: deque[Worker] = deque()

    def borrow(self) -> Worker:
        """Return a thread that has nothing to do: the idle one, or a new one while that works or hangs elsewhere.

        Whoever borrows it calls `Worker.release` in the end.
        """
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return Worker(self._name, self._take_back)
            if worker.alive:  # a fork leaves the threads behind
                return worker

    def _take_back(self, worker: Worker) -> bool:
        if self._idle:
            return False
        self._idle.append(worker)
        return True


class Worker:
    """One lasting thread, borrowed from `Workers`."""

    def __init__(self, name: str, take_back: Callable[[Worker], bool]) -> None:
        self._take_back = take_back
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answer: Future[Any] | None = None
        """Of the last task, while borrowed: an idle thread must not keep an image alive."""
        self._thread = threading.Thread(target=_work, args=(self._tasks,), daemon=True, name=name)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False in a process that was forked since."""
        return self._thread.is_alive()

    def call(self, task: Callable[[], T], timeout: float | None = None) -> T:
        """Run ``task`` in the thread; return its value, or raise what it raised.

        Raises
        ------
        NoAnswerError
            When it does not come back within ``timeout`` seconds. It goes on: a thread cannot be stopped.
        """
        answer = self._submit(task)
        try:
            return answer.result(timeout)
        except TimeoutError:
            if answer.done():  # the task's own error, or it came at the last moment
                return answer.result()
            raise NoAnswerError(answer) from None

    def release(self, last: Callable[[], object] | None = None) -> None:
        """Give the thread back, after ``last`` if there is such a task; waits for nothing.

        One that still works gives itself back when it is done, so nobody is handed a thread that hangs.
        """
        if last is not None:
            self._submit(last)
        if self._answer is None or self._answer.done():
            self._go_home()
        else:
            self._tasks.put(self._go_home)

    def _submit(self, task: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        self._answer = answer
        self._tasks.put(lambda: _run(task, answer))
        return answer

    def _go_home(self) -> None:
        self._answer = None
        if not self._take_back(self):
            self._tasks.put(None)


def _work(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # with what it refers to, before a long wait


def _run(task: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(task())
    except BaseException as error:
        answer.set_exception(error)
