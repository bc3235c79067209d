"""The report in words and tables: the cells that the HTML page and the terminal share, and the terminal's version."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.report.data import ACTION_WORDS, Incident, MethodSummary, ReportData

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod

DASH = "–"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with ``digits`` decimals, thin spaces and a true minus sign; a dash for None."""
    return DASH if value is None else f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def amount(value: float) -> str:
    """Return a dose: whole, or with two digits that count where it is small."""
    return f"{value:.2g}" if 0 < value < 10 else number(value, 0)


def duration(seconds: float | None) -> str:
    """Return a time in s as a reader says it: "4 ms", "4.2 s", "12 min 30 s", "2 h 05 min"."""
    if seconds is None:
        return DASH
    if 0 < seconds < 0.095:
        return f"{1e3 * seconds:.2g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def actions(chain: tuple[str, ...]) -> str:
    """Return an action chain as words."""
    return ", then ".join(ACTION_WORDS.get(name, name) for name in chain) if chain else DASH


def method_table(data: ReportData) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of methods; columns that need a truth are there only with one."""
    rows = data.table
    truth = any(row.in_focus is not None for row in rows)
    blank = any(row.blank_fields for row in rows)
    compute = any(row.compute_seconds is not None for row in rows)
    notes = any(row.note for row in rows)
    units = sorted({row.dose_unit for row in rows})
    mixed = len(units) != 1
    header = ["Method"]
    if truth:
        header += ["In focus", "% (95 % interval)"]
        header += ["Blank fields"] * blank
        header += ["Median |error|, µm", "95th pct., µm", "Worst, µm", "False confidence"]
    else:
        header += ["Fields", "Runs converged"]
    header += ["Images", "Dose" if mixed else f"Dose, {units[0]}", "Instrument"]
    header += ["Compute"] * compute + ["Note"] * notes
    return header, [_method_row(row, truth, blank, compute, notes, mixed) for row in rows]


def _method_row(row: MethodSummary, truth: bool, blank: bool, compute: bool, notes: bool, mixed: bool) -> list[str]:
    cells = [row.name]
    if truth:
        interval, n = row.interval, row.denominator
        cells.append(DASH if row.in_focus is None else f"{row.in_focus} of {n}")
        if row.in_focus is None or interval is None or not n:
            cells.append(DASH)
        else:
            low, high = (100 * value for value in interval)
            cells.append(f"{100 * row.in_focus / n:.1f} ({low:.1f} {DASH} {high:.1f})")
        if blank:
            cells.append(DASH if row.blank_in_focus is None else f"{row.blank_in_focus} of {row.blank_fields}")
        cells += [number(row.median_um), number(row.p95_um), number(row.worst_um)]
        cells.append(DASH if row.false_confident is None else str(row.false_confident))
    else:
        cells += [str(row.fields), f"{row.converged} of {row.runs}" if row.runs else DASH]
    cells += [
        number(row.images, 0),
        amount(row.dose) + f" {row.dose_unit}" * mixed,
        duration(row.instrument_seconds),
    ]
    cells += [duration(row.compute_seconds)] * compute + [row.note] * notes
    return cells


def run_table(data: ReportData) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of what the focus runs did, one row per status and one for all."""
    header = ["Outcome", "Runs", "Images per run", "Images", "Dose", "Time", "Time per run"]
    groups = [
        (status.value.replace("_", " "), [r for r in data.results if r.status is status])
        for status in data.status_counts()
    ]
    rows = []
    for name, group in [*groups, ("all runs", data.results)]:
        if not group:
            continue
        images = [result.images for result in group]
        seconds = [result.seconds for result in group]
        dose = sum(result.dose for result in group)
        rows.append(
            [
                name,
                str(len(group)),
                f"{np.median(images):g} ({min(images)} {DASH} {max(images)})",
                number(sum(images), 0),
                f"{amount(dose)} {data.dose_unit}",
                duration(sum(seconds)),
                duration(float(np.median(seconds))),
            ]
        )
    return header, rows


def incident_row(incident: Incident, truth: bool) -> list[str]:
    """Return the cells of one row of the failures table: position, status, reason, what was done, final z, error."""
    cells = [
        incident.label,
        incident.status.value.replace("_", " "),
        incident.reason or DASH,
        actions(incident.actions),
        number(incident.final_z),
    ]
    return [*cells, number(incident.error_um)] if truth else cells


def incident_header(truth: bool) -> list[str]:
    """Return the header that belongs to `incident_row`."""
    return ["Position", "Outcome", "Why", "What was done", "Final z, µm"] + ["Error, µm"] * truth


WIDE = 150
"""Columns of a terminal that the table of methods needs."""


def print_summary(data: ReportData, console: Console) -> None:
    """Print the report's headline and tables to the terminal.

    Parameters
    ----------
    data
        What to report.
    console
        The rich console to print to.
    """
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    def show(title: str, header: list[str], rows: list[list[str]], left: int = 1) -> None:
        if not rows:
            return
        table = Table(
            title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE, padding=(0, 1, 0, 0)
        )
        for index, (name, *cells) in enumerate(zip(header, *rows, strict=True)):
            longest = max(len(word) for text in (name, *cells) for word in text.split(" "))
            side: JustifyMethod = "left" if index < left else "right"
            table.add_column(escape(name), justify=side, overflow="fold", min_width=min(longest, 24))
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)

    console.print(f"[bold]{escape(data.title)}[/bold]", highlight=False)
    console.print(escape(data.headline), highlight=False)
    header, methods = method_table(data)
    if console.width < WIDE:  # a column for each method reads better than columns cut off
        header, *methods = [list(column) for column in zip(header, *methods, strict=True)]
    show("Methods", header, methods)
    show("What the autofocus did", *run_table(data))
    incidents = data.incidents()
    rows = [incident_row(incident, data.has_truth) for incident in incidents]
    show("Failures and what was done about them", incident_header(data.has_truth), rows, left=4)
    done = Counter(action for incident in incidents for action in incident.actions)
    if done:
        text = "; ".join(f"{ACTION_WORDS.get(name, name)}: {count}" for name, count in done.most_common())
        console.print(f"Failure policy: {escape(text)}", highlight=False)
    for note in data.notes:
        console.print(f"Note: {escape(note)}", highlight=False)
