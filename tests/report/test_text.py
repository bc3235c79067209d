from __future__ import annotations

import io

import pytest
from rich.console import Console

from mm_autofocus.report import MethodSummary, ReportData, print_summary
from mm_autofocus.report.text import duration, method_table, number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (4.24, "4.2 s"), (59.98, "1 min 00 s"), (750.4, "12 min 30 s"), (3599.7, "1 h 00 min"),
     (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert (number(None), number(1234.5, 1), number(-0.25)) == ("–", "1\u202f234.5", "−0.25")


def test_units_of_dose_stand_in_the_header_unless_they_differ() -> None:
    methods = [MethodSummary(name="a", fields=1, dose=2), MethodSummary(name="b", fields=1, dose=3, dose_unit="e/px")]
    header, rows = method_table(ReportData(title="t", depth_of_field_um=1, methods=methods))
    assert "Dose" in header
    assert [row[header.index("Dose")] for row in rows] == ["2 ms", "3 e/px"]
    header, rows = method_table(ReportData(title="t", depth_of_field_um=1, methods=methods[:1]))
    assert rows[0][header.index("Dose, ms")] == "2"


def test_every_row_is_as_long_as_its_header(plate: ReportData) -> None:
    header, rows = method_table(plate)
    assert {len(row) for row in rows} == {len(header)}


def test_the_terminal_says_the_same(plate: ReportData) -> None:
    out = io.StringIO()
    print_summary(plate, Console(file=out, width=220))
    for text in (
        plate.headline,
        "OughtaFocus",
        "low confidence",
        "the edge of the window",
        "Failure policy",
        "F9_0000",
    ):
        assert text in out.getvalue()


def test_markup_in_labels_is_text() -> None:
    out = io.StringIO()
    print_summary(ReportData(title="[red]x[/nope]", depth_of_field_um=1, notes=["[/]"]), Console(file=out, width=100))
    assert "[red]x[/nope]" in out.getvalue()
