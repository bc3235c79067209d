"""The progress display: a bar on a terminal, and now and then a line where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.request import Event
from mm_autofocus.result import FocusResult

REFRESH_S = 0.1


class Progress:
    """Show events done, wells done, the last focus run, images spent on focusing and the time left.

    Not registered by itself: pass it as ``Autofocus(..., plugins=[Progress(len(events))])``. A well counts as done
    when the acquisition goes on to another one.

    Parameters
    ----------
    total_events
        Number of events of the acquisition.
    total_wells
        Number of wells, None when it is not known.
    console
        Where to show it, None for the standard error. One that is not a terminal gets a line every ``every_percent``.
    every_percent
        How often a line is written where there is no terminal.
    note
        Returns something more to show, "" for nothing.
    clock
        Seconds that never run backwards.
    """

    def __init__(
        self,
        total_events: int,
        total_wells: int | None = None,
        console: Console | None = None,
        *,
        every_percent: float = 10.0,
        note: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total_events < 0 or every_percent <= 0:
            raise ValueError(f"total_events is {total_events} (at least 0), every_percent {every_percent} (above 0)")
        self._total = total_events
        self._total_wells = total_wells
        self._console = console or Console(stderr=True)
        self._step = max(total_events * every_percent / 100, 1.0)
        self._note = note
        self._clock = clock
        self._bar: Bar | None = None
        self._clear()

    def _clear(self) -> None:
        self._began = self._clock()
        self._drawn = self._began
        self._next_line = self._step
        self._events = 0
        self._images = 0
        self._runs = 0
        self._failures = 0
        self._last = "not focused yet"
        self._place: tuple[Hashable, str | None] | None = None
        self._well: str | None = None
        self._wells: set[str] = set()

    # ------------------------------------------------------------------ hooks
    @hookimpl
    def mmaf_start(self) -> None:
        """Begin at zero."""
        self._stop()
        self._clear()
        if not self._console.is_terminal:
            return
        self._bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar.add_task(self.text(), total=self._total)
        self._bar.start()

    @hookimpl
    def mmaf_event(self, event: Event) -> None:
        """Count one event."""
        self._events += 1
        place = event.axes.get("position"), event.label
        if place != self._place:
            self._place = place
            self._enter(event.well)
        if self._bar is not None:
            if self._clock() - self._drawn >= REFRESH_S:
                self._draw()
        elif self._events >= self._next_line:
            self._print_line()

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Show how the run ended."""
        self._runs += 1
        self._images += result.images
        self._failures += not result.ok
        moved = result.correction.get(result.knob, 0.0)
        outcome = f"{moved:+.2f} µm" if result.ok else result.status.value.replace("_", " ")
        self._last = f"{outcome} ({min(result.confidence, 0.99):.0%} sure)"  # nobody is 100 % sure
        if not result.ok and result.action:
            self._last += f", {result.action[-1].replace('_', ' ')}"
        if self._bar is not None:
            self._draw()

    @hookimpl
    def mmaf_finish(self, error: BaseException | None) -> None:
        """Take the bar away and say how it ended."""
        if error is None:
            self._enter(None)
        self._stop()
        ended = "done" if error is None else f"ended by {type(error).__name__}"
        self._console.print(
            f"autofocus {ended}: {self._events}/{self._total} events, {self._runs} runs, "
            f"{self._failures} not converged, {self._images} focus images",
            markup=False,
            highlight=False,
        )

    # ------------------------------------------------------------------ display
    def text(self) -> str:
        """Return the state in one line."""
        parts = []
        if self._wells or self._well is not None or self._total_wells is not None:
            of = "" if self._total_wells is None else f"/{self._total_wells}"
            parts.append(f"wells {len(self._wells)}{of}")
        parts.append(f"focus {self._last}")
        if self._note is not None and (note := self._note()):
            parts.append(note)
        parts.append(f"{self._images} focus images")
        if self._failures:
            parts.append(f"{self._failures} of {self._runs} not converged")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """Return the time left at the pace so far, None before the first event."""
        if self._events == 0:
            return None
        pace = (self._clock() - self._began) / self._events
        return pace * max(self._total - self._events, 0)

    def _enter(self, well: str | None) -> None:
        if self._well is not None and well != self._well:
            self._wells.add(self._well)
        self._well = well

    def _draw(self) -> None:
        if self._bar is not None:
            self._drawn = self._clock()
            self._bar.update(self._bar.task_ids[0], completed=self._events, description=self.text())

    def _print_line(self) -> None:
        while self._next_line <= self._events:
            self._next_line += self._step
        minutes, seconds = divmod(round(self.seconds_left() or 0.0), 60)
        percent = 100 * self._events / max(self._total, 1)
        self._console.print(
            f"{percent:.0f} %, {self.text()}, {minutes} min {seconds} s left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _stop(self) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()
            self._bar = None
