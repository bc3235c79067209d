"""What every bench of methods shares: how to go on or begin anew, and the display of progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mm_autofocus.benchmark.runner import Progress, Record

Fresh = Annotated[bool, typer.Option("--fresh", help="Measure everything again instead of going on.")]


@contextmanager
def progress_of(total: int, *, quiet: bool) -> Iterator[Progress | None]:
    """Show a progress bar on standard error while a bench runs."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)

        def note(done: int, _: int, record: Record) -> None:
            bar.update(task, completed=done, description=f"{record.case}, {record.method}: {record.status}")

        yield note


def exit_with_failures(outcome: dict[str, Any]) -> None:
    """Name what could not be measured, and end with exit code 1 when there is any.

    Raises
    ------
    typer.Exit
        With code 1.
    """
    for failure in outcome["failures"]:
        what = f"{failure['case']}, {failure['method']}: {failure['message']}"
        typer.secho(f"not measured: {what}", fg="red", err=True)
    if outcome["failures"]:
        raise typer.Exit(1)
