"""``mm-autofocus bench sem``: measures the methods for an electron column, and writes JSON, Markdown and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mm_autofocus.cli.acquire import writable_folder


def table(
    out: Path,
    *,
    quick: bool = False,
    only: Sequence[str] | None = None,
    fresh: bool = False,
    workers: int = 0,
    scheduler: str = "",
    quiet: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure; write sem_table.json, .md and .html, and return what was measured.

    Parameters
    ----------
    out
        Folder for the tables and for sem.jsonl, the journal: a run that was killed goes on there.
    quick
        A few per cent of the cases, in about a minute.
    only
        Keys of the methods to measure; None for all that can be used.
    fresh
        Measure everything again, in place of going on: the earlier journal is kept as sem-previous.jsonl.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`.
    quiet
        No progress display.
    say
        Told what goes on.

    Raises
    ------
    SettingsError
        When the folder cannot be written to, or no method can be used.
    """
    from mm_autofocus.benchmark.page import machine, write_page
    from mm_autofocus.benchmark.runner import set_aside
    from mm_autofocus.benchmark.sem_cases import Conditions, vessel_column
    from mm_autofocus.benchmark.sem_table import Bench, Size
    from mm_autofocus.cli.bench_options import progress_of
    from mm_autofocus.report.outcomes import write_tables
    from mm_autofocus.report.sem_table import headline, markdown, notes, sections

    out = writable_folder(out)
    journal = out / "sem.jsonl"
    size = Size.quick() if quick else Size()
    bench = Bench(journal, size, say=say, keys=only, workers=workers, scheduler=scheduler)
    if fresh:
        set_aside(journal)
    with progress_of(len(bench.units()), quiet=quiet) as progress:
        measured, records = bench.measure(progress)
    outcome = measured | {"machine": machine(), "quick": quick, "created": datetime.now().isoformat(timespec="seconds")}
    write_tables(out, "sem_table", outcome, markdown(outcome, records), records)
    facts = {"Machine": outcome["machine"], **{f"Note {i + 1}": line for i, line in enumerate(notes(outcome))}}
    vessel = vessel_column(bench.vessel_starts()[0], Conditions(84.0)).scan() if outcome["vessel"] else None
    title = "Focus and stigmators of an electron column: methods side by side"
    write_page(out / "sem_table.html", title, headline(outcome), facts, sections(outcome, records, vessel))
    return outcome
