"""The table and the report of the laser readouts, from made-up numbers."""

from __future__ import annotations

from typing import Any

from mm_autofocus.cli.laser_report import markdown, write_laser_report

METHODS = ("paper", "lookup", "ours")


def outcome() -> dict[str, Any]:
    stack = {m: {"z": [-1.0, 0.0, 1.0], "errors": [[0.1, 0.0, -0.1], [0.0, 0.1, 0.2]]} for m in METHODS}
    return {
        "rows": {"short range, same day": {"ours": {"rms": 0.05}, "paper": {"rms": 0.9, "median": 0.7}}},
        "figures": {
            "stacks": {"short range, same day": stack},
            "starts": {m: [[-50.0, 0.1], [20.0, -0.05]] for m in METHODS},
            "plates": {
                f"{snake} snake, {steps}": {m: {"A1": 0.1, "H12": -0.2} for m in METHODS}
                for snake in ("horizontal", "vertical")
                for steps in ("two", "long", "short")
            },
        },
        "seconds": {"ours: joint training": 12.5},
        "total_seconds": 900.0,
        "paper_seconds": 480.0,
        "tested_on": "instrument 1",
        "trained_on": "synthetic days",
        "machine": "a computer",
        "failures": [],
    }


def test_the_table_has_a_column_for_each_readout() -> None:
    lines = markdown(outcome()).splitlines()
    assert lines[2] == "| short range, same day | rms 0.9, median 0.7 | - | rms 0.05 |  |"
    assert "undertrained" in markdown(outcome())


def test_the_report_is_one_file_without_network(tmp_path) -> None:
    text = write_laser_report(outcome(), [], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "horizontal snake" in text
    assert "<td>rms 0.05</td>" in text
    assert 'src="http' not in text


def test_the_table_says_what_was_missed() -> None:
    made = outcome()
    made["rows"] = {
        "compute per focus": {"ours": {"ms": 5.0}},
        "96 wells, vertical snake, two steps": {"ours": {"sd": 0.2, "lost": "0/96"}},
        "96 wells, horizontal snake, two steps": {"ours": {"sd": 0.03, "lost": "1/96"}},
    }
    ends = [line.split("|")[-2].strip() for line in markdown(made).splitlines()[2:5]]
    assert ends == ["ms 30: met", "sd 0.15: MISSED", "sd 0.15: MISSED, 1 lost"]
