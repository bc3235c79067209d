"""What the runs of any bench came to, and whether their confidence can be believed: tables and charts for its page."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_autofocus.benchmark.reliability import reliability, reliability_section
from mm_autofocus.benchmark.runner import Record
from mm_autofocus.benchmark.tables import HEADER, SURE, cells, error_chart, summarise, unit_of
from mm_autofocus.benchmark.tables import Row as Outcomes
from mm_autofocus.report.data import Section

Row = list[str]
Table = tuple[str, str, Row, list[Row]]
"""Title, remark, header and rows."""
OVERVIEW = "overview.json"
Totals = Mapping[str, Collection[str]]


def write_overview(folder: Path, records: Sequence[Record], totals: Totals | None = None) -> Path:
    """Write overview.json, the rows by which all benches are shown on one page: the totals where there are any.

    Parameters
    ----------
    folder
        The bench's own.
    records, totals
        See `outcome_sections`.
    """
    rows = summarise(records, _there(records, totals))
    chosen = [row for row in rows if row.group in (totals or {})] or rows
    path = folder / OVERVIEW
    path.write_text(json.dumps([row.model_dump(mode="json") for row in chosen], indent=1) + "\n", encoding="utf-8")
    return path


def write_tables(
    folder: Path, stem: str, outcome: Mapping[str, Any], text: str, records: Sequence[Record],
    totals: Totals | None = None,
) -> None:  # fmt: skip
    """Write what every bench leaves behind beside its page: STEM.json, STEM.md and the overview.

    Parameters
    ----------
    folder, stem
        Where, and what the two files are called.
    outcome
        JSON-serialisable.
    text
        Markdown.
    records, totals
        See `write_overview`.
    """
    (folder / f"{stem}.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    write_overview(folder, records, totals)


def read_overview(folder: Path) -> list[Outcomes]:
    """Return what `write_overview` wrote there; nothing when the bench did not come so far."""
    path = folder / OVERVIEW
    return [Outcomes.model_validate(row) for row in json.loads(path.read_text("utf-8"))] if path.exists() else []


def _there(records: Sequence[Record], totals: Totals | None) -> dict[str, Collection[str]]:
    groups = {record.group for record in records}
    return {name: parts for name, parts in (totals or {}).items() if groups & set(parts)}


def outcome_tables(records: Sequence[Record], remark: str, totals: Totals | None = None) -> list[Table]:
    """Return success, errors, cost and false confidence by condition and method, and the reliability of confidence.

    Parameters
    ----------
    records
        Focus runs; without any there is no table.
    remark
        What counts as success, and in what units the cost is.
    totals
        Rows over several conditions, to put first: a name, and the conditions.
    """
    return [(s.title, s.lead, s.header, s.rows) for s in outcome_sections(records, remark, totals)]


def outcome_sections(records: Sequence[Record], remark: str, totals: Totals | None = None) -> list[Section]:
    """Return the same as sections of a page, with the distribution of errors and the reliability diagrams."""
    if not records:
        return []
    rows = summarise(records, _there(records, totals))
    lead = (
        f"{remark} Errors in {unit_of(rows)}. Sure: converged with a confidence of at least {SURE:g}; - where none was."
    )
    errors = error_chart(records)
    made = [
        Section(
            name="outcomes", title="What a run came to", lead=lead, header=["condition", *HEADER],
            rows=[[row.group, *cells(row)] for row in rows], charts=[errors] if errors else [],
        )
    ]  # fmt: skip
    believed = reliability(records)
    return [*made, reliability_section(believed)] if believed else made
