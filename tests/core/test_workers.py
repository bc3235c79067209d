"""Threads that last: one is enough, unless it hangs."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from mm_autofocus.workers import NoAnswerError, Workers


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What a task waits for that hangs; set in the end, so that no thread outlives its test for long."""
    event = threading.Event()
    yield event
    event.set()


def thread_of(workers: Workers) -> threading.Thread:
    worker = workers.borrow()
    try:
        return worker.call(threading.current_thread)
    finally:
        worker.release()


def test_one_thread_serves_them_all() -> None:
    workers = Workers("test lasting")
    threads = {thread_of(workers) for _ in range(20)}
    assert len(threads) == 1
    assert threads.pop().name == "test lasting"


def test_two_at_a_time_have_two_threads_of_which_one_stays() -> None:
    workers = Workers("test two")
    first, second = workers.borrow(), workers.borrow()
    one, other = first.call(threading.current_thread), second.call(threading.current_thread)
    assert one is not other
    first.release()
    second.release()
    other.join(10)
    assert not other.is_alive()
    assert thread_of(workers) is one


def test_what_a_task_raises_is_raised_and_the_thread_goes_on() -> None:
    workers = Workers("test errors")
    before = thread_of(workers)
    for error in (ValueError("bad"), TimeoutError("the driver's own"), StopIteration(3), KeyboardInterrupt()):

        def fail(error: BaseException = error) -> None:
            raise error

        worker = workers.borrow()
        with pytest.raises(type(error)) as caught:
            worker.call(fail, 30)
        assert caught.value is error
        worker.release()
    assert thread_of(workers) is before


def test_one_that_hangs_is_replaced_and_its_late_answer_is_nobodys(hanging: threading.Event) -> None:
    workers = Workers("test hanging")
    stuck = workers.borrow()
    with pytest.raises(NoAnswerError) as given_up:
        stuck.call(lambda: hanging.wait(30) and "late", 0.01)
    stuck.release()
    assert not given_up.value.late.done()
    other = workers.borrow()
    assert other is not stuck
    assert other.call(lambda: "prompt", 30) == "prompt"
    hanging.set()
    assert given_up.value.late.result(30) == "late"
    assert other.call(lambda: "still prompt", 30) == "still prompt"
    other.release()


def test_one_that_hung_is_used_again_once_it_is_back(hanging: threading.Event) -> None:
    workers = Workers("test back")
    worker = workers.borrow()
    thread = worker.call(threading.current_thread)
    with pytest.raises(NoAnswerError):
        worker.call(lambda: hanging.wait(30), 0.01)
    done = threading.Event()
    worker.release(done.set)
    assert not done.is_set()  # releasing waits for nothing
    hanging.set()
    assert done.wait(30)
    while not workers._idle:
        time.sleep(0.001)
    assert thread_of(workers) is thread


def test_an_idle_thread_keeps_nothing_alive() -> None:
    class Image:
        pass

    workers = Workers("test idle")
    image = Image()
    gone = weakref.ref(image)
    worker = workers.borrow()
    assert worker.call(lambda kept=image: kept) is image  # type: ignore[misc]
    worker.release()
    del image
    thread_of(workers)  # by its answer, the thread has left the task before
    assert gone() is None


def test_a_thread_that_a_fork_left_behind_is_not_lent() -> None:
    workers = Workers("test fork")
    worker = workers.borrow()
    worker.release()
    worker._tasks.put(None)
    worker._thread.join(10)
    assert not worker.alive
    other = workers.borrow()
    assert other.call(lambda: 5, 30) == 5
    other.release()
