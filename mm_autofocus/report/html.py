"""Writes the report as one HTML file that needs no network: page, style, script, plotly.js, data and thumbnails."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_autofocus.errors import SettingsError
from mm_autofocus.report import plots
from mm_autofocus.report.data import FieldRecord, ReportData, Section
from mm_autofocus.report.text import (
    actions,
    amount,
    duration,
    incident_header,
    incident_row,
    method_table,
    run_table,
)
from mm_autofocus.result import FocusResult

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_PX = 160

# Title and explanation of each figure below the maps, in the order of the page
_CHARTS = {
    "histogram": ("Residual error", "Acquired minus true focal height of every field. Shaded: the depth of field."),
    "confidence": ("Confidence and error", "Each focus run against its own error. A run that is confident and wrong "
                   "lies top right, outside the shaded depth of field."),
    "reliability": ("Can the confidence be believed?", "Fraction of runs in focus against the confidence they stated. "
                    "On the dotted line, a stated 80 % is right in 80 % of cases. Bars: 95 % interval."),
    "beliefs": ("Confidence of the runs", "How sure the focus runs said they were. Without a known focal height it "
                "cannot be checked here."),
    "prior": ("Focus map and result", "How far each result lay from where the focus map expected it. The shaded band "
              "is what the map allowed for; it narrows as the map learns the plate."),
}  # fmt: skip


def write_report(data: ReportData, path: str | Path) -> Path:
    """Write the report to ``path`` as one self-contained HTML file and return the path.

    Folders that are missing are made. The file appears whole or not at all.

    Raises
    ------
    SettingsError
        When the folder cannot be made or written to.
    """
    path = Path(path)
    page = render(data)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise SettingsError(
            f"the report cannot be written to {path}: {error.strerror or error}; "
            "name a file in a folder that exists or can be made and that you may write to"
        ) from error
    return path


def render(data: ReportData) -> str:
    """Return the page as text."""
    folder = files("mm_autofocus.report")
    made = plots.figures(data) | {chart.name: chart.figure for section in data.sections for chart in section.charts}
    parts = {
        "title": escape(data.title),
        "style": folder.joinpath("report.css").read_text(encoding="utf-8"),
        "script": folder.joinpath("report.js").read_text(encoding="utf-8"),
        "plotly": plots.plotly_js() if made else "",
        "data": _json(_payload(data, made)),
        "header": _header(data),
        "methods": _section("Methods side by side", _methods(data), "methods") if data.table else "",
        "sections": "".join(_extra(section) for section in data.sections),
        "maps": _maps(made) if data.fields else "",
        "charts": _charts(made),
        "runs": _runs(data, made) if data.results else "",
        "failures": _failures(data),
        "settings": _settings(data),
    }
    return Template(folder.joinpath("template.html").read_text(encoding="utf-8")).substitute(parts)


def _header(data: ReportData) -> str:
    items = {**data.plan, **data.instrument, "Depth of field": f"{data.depth_of_field_um:.3g} µm"}
    if data.strategy:
        items["Strategy"] = data.strategy
    if data.dataset:
        items["Dataset"] = _dataset(data.dataset)
    created = data.created.strftime("%A %d %B %Y, %H:%M")
    tiles = "".join(
        f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in _tiles(data)
    )
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in items.items())
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in data.notes)
    return (
        f"<h1>{escape(data.title)}</h1><p class=when>{created}</p><p class=headline>{escape(data.headline)}.</p>"
        f"<div class=tiles>{tiles}</div><dl class=facts>{facts}</dl>{notes}"
    )


def _dataset(dataset: dict[str, Any]) -> str:
    present, expected = dataset.get("images present"), dataset.get("images expected")
    text = f"{present} of {expected} images present" if None not in (present, expected) else ""
    return "; ".join(part for part in (text, str(dataset.get("path", ""))) if part)


def _tiles(data: ReportData) -> list[tuple[str, str]]:
    tiles = []
    first = next(iter(data.table), None)
    if first is not None and first.interval is not None:
        low, high = (100 * value for value in first.interval)
        share = 100 * (first.in_focus or 0) / max(first.denominator, 1)
        tiles.append((f"in focus (95 % interval {low:.1f} – {high:.1f} %)", f"{share:.1f} %"))
        if first.blank_in_focus is not None:
            blank = f"{first.blank_in_focus} of {first.blank_fields}"
            tiles.append(("blank fields in focus, where images say nothing", blank))
    if data.results:
        n, converged = len(data.results), sum(result.ok for result in data.results)
        tiles.append(("focus runs converged", f"{converged} of {n}"))
        tiles.append(("images per run (median)", f"{np.median([r.images for r in data.results]):g}"))
        tiles.append(("time per run (median)", duration(float(np.median([r.seconds for r in data.results])))))
        tiles.append(("dose per run (mean)", f"{amount(sum(r.dose for r in data.results) / n)} {data.dose_unit}"))
    return tiles


def _section(title: str, body: str, name: str, lead: str = "") -> str:
    lead = f"<p class=lead>{lead}</p>" if lead else ""
    return f'<section id="{name}"><h2>{title}</h2>{lead}{body}</section>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    def cell(tag: str, index: int, text: str) -> str:
        return f"<{tag}{'' if index < left else ' class=n'}>{escape(text)}</{tag}>"

    head = "".join(cell("th", i, text) for i, text in enumerate(header))
    body = "".join("<tr>" + "".join(cell("td", i, text) for i, text in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _methods(data: ReportData) -> str:
    remark = (
        f"<p class=lead>In focus: {escape(data.tolerances)} of the truth, half the depth in focus. False confidence: "
        "out of focus although the run reported that it converged.</p>"
        if data.has_truth
        else ""
    )
    return remark + _table(*method_table(data))


def _figure(name: str, title: str, text: str, kind: str = "chart") -> str:
    return (
        f'<figure class={kind}><h3>{title}</h3><div class=plot id="plot-{name}" role=img aria-label="{title}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _extra(section: Section) -> str:
    table = _table(section.header, section.rows) if section.rows else ""
    wide, half = (
        "".join(_figure(c.name, escape(c.title), escape(c.caption), c.kind) for c in section.charts if c.kind == kind)
        for kind in ("wide", "chart")
    )
    body = f"{table}{wide}" + (f"<div class=charts>{half}</div>" if half else "")
    return _section(escape(section.title), body, section.name, escape(section.lead))


def _maps(made: dict[str, plots.Figure]) -> str:
    maps = ""
    if "height" in made:
        maps += _figure("height", "Focus height", "Stage height at which each field was acquired.", "map")
    if "error" in made:
        maps += _figure("error", "Residual error", "Acquired minus true focal height: blue below, red above.", "map")
    if "belief" in made:
        maps += _figure("belief", "Confidence", "How sure the run that served each field was.", "map")
    lead = "Click a field, or choose it from the list, to see how it was focused."
    panel = files("mm_autofocus.report").joinpath("panel.html").read_text(encoding="utf-8")
    return _section("Field by field", f"<div class=fields><div class=maps>{maps}</div>{panel}</div>", "fields", lead)


def _charts(made: dict[str, plots.Figure]) -> str:
    shown = [_figure(name, *texts) for name, texts in _CHARTS.items() if name in made]
    title = "Accuracy and confidence" if "histogram" in made else "Confidence"
    return _section(title, f"<div class=charts>{''.join(shown)}</div>", "accuracy") if shown else ""


def _runs(data: ReportData, made: dict[str, plots.Figure]) -> str:
    caption = "Orange: a run in this well did not converge."
    if data.reference_results:
        caption += f" Dashes: {escape(data.reference)}."
    chart = _figure("cost", "Images, seconds and dose per well", caption, "wide") if "cost" in made else ""
    return _section("What the focus runs cost", _table(*run_table(data)) + chart, "cost")


def _failures(data: ReportData) -> str:
    incidents = data.incidents()
    if not incidents:
        text = "Every focus run converged; the failure policy had nothing to do." if data.results else ""
        return _section("Failures", f"<p class=lead>{text}</p>", "failures") if text else ""
    truth = data.has_truth
    rows = []
    for incident in incidents:
        cells = [escape(text) for text in incident_row(incident, truth)]
        if incident.field_index is not None:
            cells[0] = f"<button type=button class=link data-field={incident.field_index}>{cells[0]}</button>"
        rows.append("".join(f"<td{' class=n' if i > 3 else ''}>{text}</td>" for i, text in enumerate(cells)))
    head = "".join(f"<th{' class=n' if i > 3 else ''}>{text}</th>" for i, text in enumerate(incident_header(truth)))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<div class='scroll tall'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    return _section("Failures and what was done about them", table, "failures")


def _settings(data: ReportData) -> str:
    versions = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in data.versions.items())
    toml = f"<pre>{escape(data.settings_toml)}</pre>" if data.settings_toml else "<p>No settings were recorded.</p>"
    return f"<details><summary>Settings and versions</summary>{toml}<dl class=facts>{versions}</dl></details>"


def _payload(data: ReportData, made: dict[str, plots.Figure]) -> dict[str, Any]:
    return {
        "figures": made,
        "boxes": plots.boxes(data),
        "tolerance": data.tolerance_um,
        "doseUnit": data.dose_unit,
        "colours": {"good": plots.GOOD, "warn": plots.WARN, "ink": plots.INK, "muted": plots.MUTED, "grid": plots.GRID},
        "results": [_run(result) for result in data.results],
        "fields": [_field(field, data.tolerance_um) for field in data.fields],
    }


def _run(result: FocusResult) -> dict[str, Any]:
    samples = [(s.knobs.get(result.knob), s.score, s.purpose) for s in result.samples]
    return {
        "status": result.status.value.replace("_", " "),
        "ok": result.ok,
        "strategy": result.strategy,
        "label": result.label,
        "start": result.start.get(result.knob),
        "target": result.target.get(result.knob),
        "end": result.end.get(result.knob),
        "final": result.final,
        "prior": None if result.prior_mean is None else [result.prior_mean, result.prior_sd],
        "confidence": result.confidence,
        "images": result.images,
        "dose": result.dose,
        "time": duration(result.seconds),
        "reason": result.reason,
        "actions": actions(result.action) if result.action else "",
        "samples": [list(column) for column in zip(*samples, strict=True)],
    }


def _field(field: FieldRecord, tolerance_um: float) -> dict[str, Any]:
    before, after = thumbnails(field)
    return {
        "label": field.label,
        "place": field.place,
        "z": field.z,
        "truth": field.truth_z,
        "error": field.error_um,
        "sharp": field.sharp(tolerance_um),
        "others": {name: error for name, (error, _) in field.others.items()},
        "blank": bool(field.blank),
        "result": field.result_index,
        "before": before,
        "after": after,
    }


def thumbnails(field: FieldRecord) -> tuple[str | None, str | None]:
    """Return the images before and after as data URIs of at most 160 px, on one grey scale; None where unreadable."""
    opened = [_open(source) for source in (field.before, field.after)]
    deep = [np.asarray(image, np.float32) for image in opened if image is not None and image.mode not in ("L", "RGB")]
    scale = (min(float(np.nanpercentile(a, 0.2)) for a in deep), max(float(np.nanpercentile(a, 99.8)) for a in deep)) \
        if deep else (0.0, 1.0)  # fmt: skip
    before, after = (None if image is None else _data_uri(image, scale) for image in opened)
    return before, after


def _open(source: bytes | str | Path | None) -> Image | None:
    from PIL import Image as images

    if source is None:
        return None
    try:
        image: Image = images.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if image.mode in ("P", "RGBA", "CMYK", "YCbCr"):
            image = image.convert("RGB")
        elif image.mode in ("1", "LA"):
            image = image.convert("L")
        image.load()
    except (OSError, ValueError, SyntaxError):  # a thumbnail that is missing or broken must not cost the report
        return None
    return image


def _data_uri(image: Image, scale: tuple[float, float]) -> str:
    from PIL import Image as images

    if image.mode not in ("L", "RGB"):
        low, high = scale
        grey = (np.nan_to_num(np.asarray(image, np.float32), nan=low) - low) / max(high - low, 1e-9)
        image = images.fromarray((grey.clip(0, 1) * 255).astype(np.uint8))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _json(payload: object) -> str:
    """Return JSON that may stand inside a script element, whatever the labels hold."""
    text = json.dumps(_finite(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
