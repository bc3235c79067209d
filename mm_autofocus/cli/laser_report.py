"""Draws what `laser_table` has measured, as the paper does: figures 3, 5, 6, 7, S4 and S5, in one HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

METHODS = {"paper": "(a) paper", "lookup": "(b) look-up table", "ours": "(c) ours"}
_COLOURS = {"paper": "#888888", "lookup": "#c77700", "ours": "#0b6fb8"}
MUSTS = {
    "long range, trained on 1 day, same day": ("rms", 1.0),
    "short range, trained on 1 day, same day": ("rms", 0.1),
    "short range, trained on 1 day, next days, recalibrated": ("rms", 0.2),
    "short range, trained on 10 days, next days": ("rms", 0.2),
    "two steps from ±100 µm, next days": ("rms", 0.15),
    "96 wells, horizontal snake, two steps": ("sd", 0.15),
    "96 wells, vertical snake, two steps": ("sd", 0.15),
    "compute per focus": ("ms", 30.0),
}
"""What ours must reach, by row of the table: the number and its limit, µm or ms."""

_STEPS = {"two": "two steps", "long": "long range only", "short": "short range only"}
_ROWS, _COLUMNS = "ABCDEFGH", 12
_DEPTH_UM = 0.6
"""Depth of field of the paper's objective."""


def write_laser_report(outcome: dict[str, Any], markdown: str, path: Path) -> Path:
    """Write the report.

    Parameters
    ----------
    outcome
        What `mm_autofocus.cli.laser_table.Bench.measure` returned.
    markdown
        The table.
    path
        Where to.
    """
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    parts = [to_html(figure, full_html=False, include_plotlyjs=False) for figure in _figures(outcome["figures"])]
    page = (
        "<!doctype html><meta charset='utf-8'><title>Laser autofocus</title>"
        "<style>body{font:15px system-ui;max-width:1200px;margin:2em auto}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;font-size:13px}</style>"
        f"<h1>Laser autofocus: three readouts side by side</h1>{_table(markdown)}"
        f"<script>{get_plotlyjs()}</script>{''.join(parts)}"
    )
    path.write_text(page, encoding="utf-8")
    return path


def markdown(outcome: dict[str, Any]) -> str:
    """Return the table as Markdown (µm unless the cell says otherwise)."""
    lines = ["| µm | (a) paper | (b) look-up table | (c) ours | must (c) |", "|---|---|---|---|---|"]
    for name, cells in outcome["rows"].items():
        found = [cells.get(method, {}) for method in METHODS]
        texts = [", ".join(f"{k} {v}" for k, v in cell.items()) or "-" for cell in found]
        lines.append(f"| {name} | {' | '.join(texts)} | {_verdict(name, cells.get('ours', {}))} |")
    lines += [
        "",
        f"Tested on {outcome['tested_on']}. Ours was trained on {outcome['trained_on']}, then jointly with the tested "
        "instrument's own days. RMS, SD and bias of the last rows leave out the lost ones.",
        f"(a) MobileNetV2 had {outcome['paper_seconds']:.0f} s in all on one core (the paper: 3 h on a GPU for each), "
        "at Adam 1e-3 instead of 1e-4: undertrained. Labels are the stage's, for all three.",
        "Seconds: " + ", ".join(f"{name} {value:g}" for name, value in outcome["seconds"].items())
        + f"; in all {outcome['total_seconds']:g}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _verdict(name: str, cell: dict[str, Any]) -> str:
    if name not in MUSTS or MUSTS[name][0] not in cell:
        return ""
    key, limit = MUSTS[name]
    lost = str(cell.get("lost", "0/")).split("/")[0]
    met = float(cell[key]) <= limit and lost == "0"
    return f"{key} {limit:g}: {'met' if met else 'MISSED'}" + (f", {lost} lost" if lost != "0" else "")


def _figures(data: dict[str, Any]) -> Iterator[Any]:
    for name, methods in data["stacks"].items():
        yield _stack_figure(name, methods)
    yield _start_figure(data["starts"])
    for snake in ("horizontal", "vertical"):
        yield _plate_figure(snake, {s: data["plates"][f"{snake} snake, {s}"] for s in _STEPS})


def _stack_figure(name: str, methods: dict[str, Any]) -> Any:
    """Predicted against actual defocus, and mean and SD of the residuals (figures 3, 5 and 6)."""
    from plotly.subplots import make_subplots

    titles = [f"{title}: {what}" for what in ("predicted", "mean residual ± SD") for title in METHODS.values()]
    figure = make_subplots(rows=2, cols=3, subplot_titles=titles, vertical_spacing=0.14)
    for column, method in enumerate(METHODS, start=1):
        z, errors = np.array(methods[method]["z"]), np.array(methods[method]["errors"])
        for stack in errors:
            figure.add_scatter(x=z, y=z + stack, mode="markers", marker={"size": 3}, row=1, col=column)
        figure.add_scatter(x=z, y=z, mode="lines", line={"color": "black", "width": 1}, row=1, col=column)
        figure.add_scatter(
            x=z, y=errors.mean(0), error_y={"type": "data", "array": errors.std(0), "thickness": 1, "width": 0},
            mode="markers", marker={"size": 4, "color": _COLOURS[method]}, row=2, col=column,
        )  # fmt: skip
    figure.update_layout(title=name, height=640, showlegend=False)
    figure.update_xaxes(title_text="defocus (µm)", row=2)
    return figure


def _start_figure(starts: dict[str, Any]) -> Any:
    """Final error over initial defocus, whole and near zero (figure 7); the band is the depth of field."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=["final error (µm)", "near zero"])
    for method, pairs in starts.items():
        start, end = np.array(pairs).T
        for column in (1, 2):
            figure.add_scatter(
                x=start, y=end, mode="markers", name=METHODS[method], marker={"color": _COLOURS[method], "size": 5},
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    figure.add_hrect(y0=-_DEPTH_UM / 2, y1=_DEPTH_UM / 2, fillcolor="red", opacity=0.12, line_width=0)
    figure.update_yaxes(range=[-1, 1], row=1, col=2)
    figure.update_xaxes(title_text="initial defocus (µm)")
    figure.update_layout(title="Two steps, on days after the ten that were trained on", height=420)
    return figure


def _plate_figure(snake: str, steps: dict[str, Any]) -> Any:
    """Plate maps of ours and histograms of all (figures S4 and S5)."""
    from plotly.subplots import make_subplots

    titles = [f"(c) ours, {word}" for word in _STEPS.values()] + [f"{word}: histogram" for word in _STEPS.values()]
    figure = make_subplots(rows=2, cols=3, subplot_titles=titles, vertical_spacing=0.14)
    for column, methods in enumerate(steps.values(), start=1):
        grid = np.full((len(_ROWS), _COLUMNS), np.nan)
        for well, error in methods["ours"].items():
            grid[_ROWS.index(well[0]), int(well[1:]) - 1] = error
        figure.add_heatmap(
            z=grid, x=list(range(1, _COLUMNS + 1)), y=list(_ROWS), zmin=-1, zmax=1, colorscale="RdBu",
            showscale=column == 3, row=1, col=column,
        )  # fmt: skip
        figure.update_yaxes(autorange="reversed", row=1, col=column)
        for method, wells in methods.items():
            figure.add_histogram(
                x=np.clip(list(wells.values()), -5, 5), xbins={"start": -5, "end": 5, "size": 0.1},
                name=METHODS[method], marker={"color": _COLOURS[method]}, opacity=0.6, showlegend=column == 1,
                row=2, col=column,
            )  # fmt: skip
    figure.update_xaxes(title_text="final error (µm; beyond ±5 at the edge)", row=2)
    figure.update_layout(title=f"96 wells, {snake} snake", height=640, barmode="overlay")
    return figure


def _table(markdown: str) -> str:
    rows, notes = [], []
    for line in markdown.splitlines():
        if line.startswith("|---"):
            continue
        if line.startswith("|"):
            cells = "".join(f"<td>{escape(cell.strip())}</td>" for cell in line.strip("|").split("|"))
            rows.append(f"<tr>{cells}</tr>")
        elif line:
            notes.append(f"<p>{escape(line)}</p>")
    return f"<table>{''.join(rows)}</table>{''.join(notes)}"
