"""``mm-autofocus report``: makes report.html from what an acquisition has recorded."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from mm_autofocus.errors import SettingsError
from mm_autofocus.report.data import ReportData, fields_from_results
from mm_autofocus.report.html import write_report
from mm_autofocus_hooks.recorder import load, thumbnail_paths

DEPTH_OF_FIELD_UM = 1.0
"""For shading, where results of an earlier version do not say what the microscope's was."""


def report_from_folder(folder: Path, out: Path | None) -> Path:
    """Write a report from the newest ``focus*.jsonl`` of a folder, or from a file of that kind.

    Raises
    ------
    SettingsError
        When there is none, or the report cannot be written.
    """
    candidates = [folder] if folder.is_file() else sorted(folder.glob("focus*.jsonl"), key=lambda p: p.stat().st_mtime)
    if not candidates:
        raise SettingsError(
            f"there is no focus.jsonl in {folder}; an acquisition writes it when [recorder] folder is set"
        )
    lines = candidates[-1]
    results = load(lines)
    if not results:
        raise SettingsError(f"{lines} holds no focus result that can be read")
    data = ReportData(
        title=f"Autofocus, {lines.parent.name}",
        created=datetime.fromtimestamp(lines.stat().st_mtime).astimezone(),
        depth_of_field_um=results[-1].depths.get(results[-1].knob, DEPTH_OF_FIELD_UM),
        strategy=", ".join(sorted({r.strategy for r in results})),
        results=results,
        fields=fields_from_results(results, lambda i: thumbnail_paths(lines, i + 1)),
    )
    return write_report(data, out or lines.parent / "report.html")
