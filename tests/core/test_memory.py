"""A night of wells must not add up: what stays of each well is counted, and so are the threads."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mm_autofocus import Autofocus, Event, hookimpl
from support import FakeCore, Stack, settings

FIRST, LAST = 72, 120
"""Beyond the results that are kept as they are, and short of the map's next larger arrays."""
MOST_BYTES = 3000
"""Of a well: a packed result, its place in ledger and map; an unpacked result alone takes 8000."""


class Strategies:
    @hookimpl
    def mmaf_strategies(self) -> list[type[Any]]:
        return [Stack]


def test_a_well_leaves_little_memory_and_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self)))
    core = FakeCore()
    autofocus = Autofocus(
        core, settings(strategy="test-stack", recorder={"folder": str(tmp_path)}), plugins=[Strategies()]
    )  # fmt: skip

    def scan(first: int, last: int) -> int:
        """Focus in the wells of that range; return the traced bytes after it."""
        for well in range(first, last):
            core.focus = 2.0 + 0.01 * (well % 7)
            name = f"{'ABCDEFGH'[well // 24]}{well % 24 + 1}"
            event = Event(axes={"position": name}, label=name, x=9000.0 * (well % 24), y=-9000.0 * (well // 24), z=0.0)
            assert autofocus.at(event).result.ok  # type: ignore[union-attr]
        core.log.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    scan(0, FIRST // 2)
    assert len(started) <= 2
    tracemalloc.start()
    try:
        before = scan(FIRST // 2, FIRST)
        after = scan(FIRST, LAST)
    finally:
        tracemalloc.stop()
    autofocus.finish()
    assert len(started) <= 2, "one lasting thread for the snaps and one for the strategy, no more"
    assert (after - before) / (LAST - FIRST) < MOST_BYTES
