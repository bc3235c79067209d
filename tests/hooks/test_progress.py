"""The progress display, on a terminal and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mm_autofocus.request import Event
from mm_autofocus.result import FocusResult, Status
from mm_autofocus_hooks.progress import Progress


def make(total: int, *, terminal: bool = False, wells: int | None = None) -> tuple[Progress, io.StringIO, list[float]]:
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, force_terminal=terminal, width=160, color_system=None)
    made = Progress(total, wells, console, clock=lambda: now[0])
    made.mmaf_start()
    return made, out, now


def result(status: Status = Status.CONVERGED, *action: str) -> FocusResult:
    return FocusResult(
        status=status, strategy="s", start={"z": 1.0}, end={"z": 1.31}, confidence=0.97, images=7, action=action
    )


def well(name: str, number: int = 0) -> Event:
    return Event(axes={"position": number}, label=f"{name}_{number:04d}")


@pytest.mark.parametrize(("total", "lines"), [(1000, 10), (25, 10), (10, 10), (4, 4), (1, 1), (0, 0)])
def test_without_a_terminal_a_line_every_ten_percent(total: int, lines: int) -> None:
    made, out, _ = make(total)
    for number in range(total):
        made.mmaf_event(event=Event(axes={"position": number}))
    text = out.getvalue().splitlines()
    assert len(text) == lines
    assert not lines or text[-1].startswith("100 %")
    assert "\x1b" not in out.getvalue()


def test_a_line_tells_wells_last_focus_images_and_time_left() -> None:
    made, out, now = make(4, wells=2)
    made.mmaf_focused(result=result())
    for number, name in enumerate(["A1", "A1", "A2"]):
        now[0] += 40.0
        made.mmaf_event(event=well(name, number))
    assert out.getvalue().splitlines()[-1] == (
        "75 %, wells 1/2, focus +0.31 µm (97% sure), 7 focus images, 0 min 40 s left"
    )


def test_a_failure_is_told_with_what_was_done() -> None:
    made, _, _ = make(4)
    made.mmaf_focused(result=result(Status.NO_SIGNAL, "widen", "use_map"))
    assert made.text() == "focus no signal (97% sure), use map, 7 focus images, 1 of 1 not converged"


@pytest.mark.parametrize(
    ("error", "ending"),
    [(None, "autofocus done: 2/9 events, 1 runs"), (KeyboardInterrupt(), "ended by KeyboardInterrupt")],
)
def test_the_end_is_told(error: BaseException | None, ending: str) -> None:
    made, out, _ = make(9, wells=2)
    made.mmaf_focused(result=result())
    made.mmaf_event(event=well("A1"))
    made.mmaf_event(event=well("A2", 1))
    made.mmaf_finish(error=error)
    assert ending in out.getvalue()
    assert made.text().startswith("wells 2/2" if error is None else "wells 1/2")


def test_a_bar_on_a_terminal_is_drawn_and_taken_away() -> None:
    made, out, now = make(3, terminal=True, wells=1)
    for number in range(3):
        now[0] += 1.0
        made.mmaf_event(event=well("A1", number))
        made.mmaf_focused(result=result())
    made.mmaf_finish(error=None)
    made.mmaf_finish(error=None)
    assert "3/3" in out.getvalue()
    assert "wells 1/1" in out.getvalue()


def test_a_bar_is_not_drawn_at_every_event() -> None:
    made, _, _ = make(100_000, terminal=True)
    drawn = []
    made._draw = lambda: drawn.append(1)  # type: ignore[method-assign]
    for _ in range(1000):
        made.mmaf_event(event=Event())
    assert not drawn
    made._stop()


@pytest.mark.parametrize(("total", "every"), [(-1, 10.0), (5, 0.0)])
def test_impossible_arguments_are_refused(total: int, every: float) -> None:
    with pytest.raises(ValueError, match="total_events is"):
        Progress(total, every_percent=every)
