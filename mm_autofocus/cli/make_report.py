"""``mm-autofocus report``: makes report.html from what an acquisition has recorded."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from mm_autofocus.errors import SettingsError
from mm_autofocus.report.data import FieldRecord, ReportData
from mm_autofocus.report.html import write_report
from mm_autofocus.result import FocusResult
from mm_autofocus_hooks.recorder import load, thumbnail_paths

DEPTH_OF_FIELD_UM = 1.0
"""Only for shading, when the results do not say."""


def field_records(results: list[FocusResult], lines: Path | None) -> list[FieldRecord]:
    """Return one field per focus run, where it put the focal plane; with its thumbnails when there are some."""
    records = []
    for i, result in enumerate(results):
        before = after = None
        if lines is not None:
            before, after = (p if p.exists() else None for p in thumbnail_paths(lines, i + 1))
        label = result.label or ", ".join(f"{k} {v}" for k, v in result.axes.items()) or f"run {i + 1}"
        z = result.final if result.final is not None else result.end.get(result.knob)
        records.append(
            FieldRecord(
                label=label, well=result.well, x=result.x, y=result.y, z=z, result_index=i, before=before, after=after
            )
        )
    return records


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
    depth = next((r.details["depth_of_field_um"] for r in results if "depth_of_field_um" in r.details), None)
    data = ReportData(
        title=f"Autofocus, {lines.parent.name}",
        created=datetime.fromtimestamp(lines.stat().st_mtime).astimezone(),
        depth_of_field_um=float(depth or DEPTH_OF_FIELD_UM),
        strategy=", ".join(sorted({r.strategy for r in results})),
        results=results,
        fields=field_records(results, lines),
    )
    return write_report(data, out or lines.parent / "report.html")
