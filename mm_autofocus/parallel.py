"""Runs one function over many items: here, on a local cluster of processes, or on a dask cluster elsewhere.

The benches run on it, and so can the making of datasets: everything whose parts do not need each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from mm_autofocus.errors import SettingsError

Result = TypeVar("Result")

CONNECT_S = 10.0
"""How long to wait for a scheduler to answer."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """One finished item: its index, and its result or what it raised."""

    index: int
    result: Result | None = None
    error: Exception | None = None


def in_parallel(
    function: Callable[..., Result],
    items: Sequence[Any],
    *,
    common: object = None,
    workers: int = 0,
    scheduler: str = "",
) -> Iterator[Done[Result]]:
    """Yield each item's outcome as soon as it is there: in order when serial, in any order otherwise.

    Parameters
    ----------
    function
        Importable, as are the items' classes, so that it can be sent to a worker.
    items
        What to run it on.
    common
        What the function takes before each item, unless None: it is sent once to a worker, however large it is.
    workers
        Number of processes of a local cluster; 0 runs everything here.
    scheduler
        Address of a dask scheduler ("tcp://10.0.0.5:8786") to use in their place.

    Raises
    ------
    SettingsError
        When the package for it is not installed, or the scheduler does not answer.
    """
    if workers < 0:
        raise SettingsError(f"--workers {workers} cannot be; 0 runs everything in this process")
    if not items:
        return
    before = () if common is None else (common,)
    if not workers and not scheduler:
        for index, item in enumerate(items):
            try:
                yield Done(index, result=function(*before, item))
            except Exception as error:
                yield Done(index, error=error)
        return
    yield from _on_cluster(function, before, items, workers, scheduler)


def _on_cluster(
    function: Callable[..., Result], before: tuple[Any, ...], items: Sequence[Any], workers: int, scheduler: str
) -> Iterator[Done[Result]]:
    try:
        distributed: Any = import_module("distributed")  # optional, and untyped
    except ImportError:
        raise SettingsError(
            "--workers and --scheduler need dask.distributed: pip install 'mm-autofocus[scale]'"
        ) from None
    with ExitStack() as stack:
        client: Any
        if scheduler:
            try:
                client = stack.enter_context(distributed.Client(scheduler, timeout=CONNECT_S))
            except (OSError, ValueError) as error:
                raise SettingsError(
                    f"no dask scheduler answers at {scheduler}: {error}. Start one with `dask scheduler`, or use "
                    "--workers N for processes on this machine"
                ) from error
        else:
            # one thread each: the simulated instruments and their cores belong to a process
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
                )
            )
            client = stack.enter_context(distributed.Client(cluster))
        sent = [client.scatter([value], broadcast=True, hash=False)[0] for value in before]
        futures = client.map(function, *([future] * len(items) for future in sent), items, pure=False)
        index = {future.key: i for i, future in enumerate(futures)}
        for future in distributed.as_completed(futures):
            raised = future.exception()
            if raised is not None:
                yield Done(index[future.key], error=raised)
            else:
                yield Done(index[future.key], result=future.result())
            future.release()  # a night's results need not stay on the cluster
