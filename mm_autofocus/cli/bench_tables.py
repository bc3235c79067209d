"""What every bench writes from its records: JSON, Markdown, one HTML page, and a verdict against a baseline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_autofocus.benchmark.baseline import Baseline, regressions
from mm_autofocus.benchmark.page import machine, write_page
from mm_autofocus.benchmark.reliability import MUST, Reliability, reliability, reliability_section
from mm_autofocus.benchmark.runner import BenchRun, Record
from mm_autofocus.benchmark.tables import (
    HEADER,
    SURE,
    Row,
    cells,
    cost_chart,
    error_chart,
    markdown,
    success_chart,
    summarise,
    unit_of,
)
from mm_autofocus.report.data import Section, installed_versions
from mm_autofocus.report.outcomes import write_tables

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tables:
    """What a bench is called, and what its groups add up to.

    Attributes
    ----------
    name
        Of the bench ("light"): the stem of the files.
    command
        The command that makes it again.
    totals
        Rows over several groups; the first is what the headline and the cost chart are about.
    notes
        What the reader must know: what was left out.
    """

    name: str
    command: str
    totals: Mapping[str, Collection[str]]
    notes: Sequence[str] = ()

    def write(self, run: BenchRun, out: Path, *, baseline: Path | None = None) -> dict[str, Any]:
        """Write NAME.json, NAME.md and NAME.html into a folder; return what NAME.json holds, with ``regressions``.

        Raises
        ------
        SettingsError
            When a file cannot be written, or the baseline cannot be read.
        """
        known = Baseline.load(baseline) if baseline is not None else None
        totals = {name: parts for name, parts in self.totals.items() if {r.group for r in run.records} & set(parts)}
        rows = summarise(run.records, totals)
        believed = reliability(run.records)
        notes = [*self.notes, *(f"{f.case}, {f.method} was not measured: {f.message}" for f in run.failures)]
        fallen = regressions(rows, known) if known is not None else []
        outcome = {
            "bench": self.name,
            "command": self.command,
            "machine": machine(),
            "versions": installed_versions(),
            "notes": notes,
            "rows": [row.model_dump(mode="json") for row in rows],
            "reliability": [one.model_dump(mode="json") for one in believed],
            "failures": [failure.model_dump(mode="json") for failure in run.failures],
            "regressions": fallen,
        }
        text = self._markdown(rows, believed, notes)
        write_tables(out, self.name, outcome, text, run.records, totals)
        self._page(out, run.records, rows, believed, notes)
        return outcome

    def baseline(self, run: BenchRun) -> Baseline:
        """Return the totals as a baseline: single groups are too small to tell a fall from noise."""
        rows = summarise(run.records, self.totals)
        return Baseline.of(self.name, self.command, [row for row in rows if row.group in self.totals])

    def _markdown(self, rows: Sequence[Row], believed: Sequence[Reliability], notes: Sequence[str]) -> str:
        lines = [f"## bench {self.name}", "", f"`{self.command}` on {machine()}.", "", markdown(rows)]
        lines += [
            f"### Results given with a confidence of {SURE:g} or more",
            "",
            f"| method | right | must {MUST:.0%} |",
        ]
        lines.append("|---|---|---|")
        for one in believed:
            share = f"{one.sure_right} of {one.sure}" if one.sure else "-"
            lines.append(f"| {one.method} | {share} | {_VERDICTS[one.met]} |")
        return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])

    def _page(
        self, out: Path, records: Sequence[Record], rows: Sequence[Row], believed: Sequence[Reliability],
        notes: Sequence[str],
    ) -> None:  # fmt: skip
        groups = list(dict.fromkeys(row.group for row in rows))
        first = [row for row in rows if row.group == groups[0]]
        best = max(first, key=lambda row: (row.rate, -row.images))
        errors = error_chart(records)
        charts = [success_chart(rows), *([errors] if errors else []), cost_chart(rows, groups[0])]
        sections = [Section(name="pictures", title="Side by side", lead="; ".join(notes), charts=charts)]
        sections += [
            Section(
                name=f"group-{number}", title=group, lead=f"Errors in {unit_of(chosen)}.", header=list(HEADER),
                rows=[cells(row) for row in chosen],
            )
            for number, group in enumerate(groups)
            if (chosen := [row for row in rows if row.group == group])
        ]  # fmt: skip
        sections.append(reliability_section(believed))
        headline = (
            f"{best.method}: {best.success} of {best.runs} in {groups[0]} ({best.low:.0%} to {best.high:.0%}), "
            f"{best.images:.1f} images a run"
        )
        facts = {"machine": machine(), "command": self.command, **installed_versions()}
        write_page(out / f"{self.name}.html", f"bench {self.name}", headline, facts, sections)


_VERDICTS = {True: "met", False: "MISSED", None: "-"}
