"""``mm-autofocus bench sem-scores``: measures focus scores and their controllers; writes JSON, Markdown and a page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from mm_autofocus.cli.acquire import writable_folder


def table(
    out: Path,
    *,
    quick: bool = False,
    seed: int = 9,
    fresh: bool = False,
    workers: int = 0,
    scheduler: str = "",
    quiet: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure; write sem_scores.json, .md and .html, and return what was measured.

    Parameters
    ----------
    out
        Folder for the tables and for sem_scores.jsonl, the journal: a run that was killed goes on there.
    quick
        A few per cent of the cases.
    seed
        Of test frames.
    fresh
        Measure everything again, in place of going on: the earlier journal is kept as sem_scores-previous.jsonl.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`.
    quiet
        No progress display.
    say
        Told what goes on.

    Raises
    ------
    SettingsError
        When the folder cannot be written to, or our network's weights are missing.
    """
    from mm_autofocus.benchmark.page import machine, write_page
    from mm_autofocus.benchmark.runner import set_aside
    from mm_autofocus.benchmark.score_table import ScoreBench, Size, totals
    from mm_autofocus.cli.bench_options import progress_of
    from mm_autofocus.report.outcomes import write_tables
    from mm_autofocus.report.score_table import headline, markdown, sections

    out = writable_folder(out)
    journal = out / "sem_scores.jsonl"
    size = Size.quick() if quick else Size()
    bench = ScoreBench(journal, size, seed=seed, say=say, workers=workers, scheduler=scheduler)
    if fresh:
        set_aside(journal)
    with progress_of(len(bench.units()), quiet=quiet) as progress:
        measured, records = bench.measure(progress)
    outcome = measured | {"machine": machine(), "quick": quick, "created": datetime.now().isoformat(timespec="seconds")}
    write_tables(out, "sem_scores", outcome, markdown(outcome, records, totals()), records, totals())
    facts = {"Machine": outcome["machine"], "Cases": "a few per cent" if quick else "all"}
    facts |= {f"Not measured: {name}": reason for name, reason in outcome["missing"].items()}
    title = "Focusing an SEM by single images: scores and controllers side by side"
    write_page(out / "sem_scores.html", title, headline(outcome), facts, sections(outcome, records, totals()))
    return outcome
