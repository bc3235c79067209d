"""The pictures of a characterisation: error against initial defocus, repeatability, and the plate by snake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm_autofocus.benchmark.characterize import Attempt, Characterization
from mm_autofocus.benchmark.page import write_page
from mm_autofocus.report.data import Chart, Section
from mm_autofocus.report.plots import BAND, GOOD, MUTED, WARN, axis, chart, plain

_DIVERGING = [[0.0, "#2166ac"], [0.5, "#f7f7f7"], [1.0, "#b2182b"]]


def write_characterization(found: Characterization, path: Path, facts: dict[str, str]) -> Path:
    """Write the page; raises `SettingsError` when it cannot be written."""
    summary = found.summary()
    low, high = summary["interval"]
    headline = (
        f"{summary['in_focus']} of {summary['runs']} runs within ±{summary['within_um']:.2g} µm of focus "
        f"({low:.0%} to {high:.0%})"
    )
    if summary["capture_um"] is not None:
        headline += ", every one from {:+.3g} to {:+.3g} µm".format(*summary["capture_um"])
    if not found.complete:
        headline = "INTERRUPTED. " + headline
    sections = [_numbers(summary), _offsets(found)]
    if found.plate:
        sections.append(_plate(found, summary["plate"]))
    return write_page(path, f"Characterisation of {found.device}", headline, facts, sections)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " to ".join(_text(v) for v in value) or "-"
    return "-" if value is None else str(value)


_WORDS = {
    "in_focus": "runs in focus", "runs": "runs", "interval": "95 % interval of the rate",
    "gave_up": "runs that found no focus", "wrong": "runs that said they were in focus and were not",
    "bias_um": "median error, µm", "repeatability_um": "repeatability (SD from one start), µm",
    "error_95_um": "95 % of the errors below, µm", "worst_um": "worst error, µm",
    "capture_um": "every run in focus from starts, µm", "seconds_median": "seconds a run, median",
    "seconds_95": "seconds a run, 95 %", "images_mean": "images a run", "left_out_um": "starts left out (limits), µm",
    "truth_images": "images of the sweeps that scored it",
}  # fmt: skip


def _numbers(summary: dict[str, Any]) -> Section:
    rows = [[word, _text(summary[name])] for name, word in _WORDS.items()]
    return Section(
        name="numbers", title="In numbers", header=["", ""], rows=rows,
        lead=f"In focus: within ±{summary['within_um']:.2g} µm of the sharpest plane of an image sweep made there.",
    )  # fmt: skip


def _offsets(found: Characterization) -> Section:
    rows = found.by_offset()
    return Section(
        name="offsets",
        title="From known defocus",
        header=["start, µm", "in focus", "gave up", "mean error, µm", "SD, µm", "seconds"],
        rows=[
            [
                f"{r['offset_um']:+.3g}",
                f"{r['in_focus']} of {r['runs']}",
                str(r["gave_up"]),
                _text(r["mean_um"]),
                _text(r["sd_um"]),
                _text(r["seconds"]),
            ]
            for r in rows
        ],
        charts=[
            _error_chart(found, None),
            _error_chart(found, 2 * found.depth_of_field_um),
            _histogram("error-histogram", "Residual error", [a for a in found.attempts if a.ok], found),
            _seconds_chart(found.attempts),
        ],
    )


def _error_chart(found: Characterization, reach: float | None) -> Chart:
    traces = []
    for ok, name, colour in ((True, "found", GOOD), (False, "gave up", WARN)):
        runs = [a for a in found.attempts if a.ok is ok and a.error_um is not None]
        traces.append({
            "type": "scatter", "mode": "markers", "name": name, "x": plain(a.offset_um for a in runs),
            "y": plain(a.error_um for a in runs), "marker": {"color": colour, "size": 7, "opacity": 0.7},
            "hovertemplate": "from %{x:.3g} µm: error %{y:.3f} µm<extra></extra>",
        })  # fmt: skip
    limits = {} if reach is None else {"range": [-reach, reach]}
    figure = chart(traces, axis("initial defocus, µm"), axis("end − plane in focus, µm", zeroline=True, **limits))
    _band(figure, found.depth_of_field_um, "y")
    figure["layout"] |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.25}}
    return Chart(
        name="error" if reach is None else "error-near", figure=figure,
        title="Error against initial defocus" + ("" if reach is None else ", near zero"),
        caption="Each run. Shaded: the depth of field.",
    )  # fmt: skip


def _seconds_chart(attempts: Sequence[Attempt]) -> Chart:
    figure = chart(
        [{
            "type": "scatter", "mode": "markers", "x": plain(a.offset_um for a in attempts),
            "y": plain(a.seconds for a in attempts), "marker": {"color": MUTED, "size": 6},
            "hovertemplate": "from %{x:.3g} µm: %{y:.3f} s<extra></extra>",
        }],
        axis("initial defocus, µm"), axis("seconds", rangemode="tozero"),
    )  # fmt: skip
    return Chart(name="seconds", title="Time of a run", caption="By the clock on the wall.", figure=figure)


def _histogram(name: str, title: str, runs: Sequence[Attempt], found: Characterization) -> Chart:
    errors = np.array([a.error_um for a in runs if a.error_um is not None], dtype=float)
    reach = max(1.5 * found.depth_of_field_um, float(np.quantile(np.abs(errors), 0.9)) if errors.size else 0.0)
    counts, edges = np.histogram(np.clip(errors, -reach, reach), bins=41, range=(-reach, reach))
    figure = chart(
        [{"type": "bar", "x": plain((edges[:-1] + edges[1:]) / 2), "y": counts.tolist(), "marker": {"color": GOOD}}],
        axis("end − plane in focus, µm"),
        axis("runs"),
    )
    _band(figure, found.depth_of_field_um, "x")
    caption = "Shaded: the depth of field."
    if errors.size > 1:
        caption += f" Mean {errors.mean():+.3f} µm, SD {errors.std(ddof=1):.3f} µm."
    if beyond := int((np.abs(errors) > reach).sum()):
        caption += f" {beyond} beyond the edge."
    return Chart(name=name, title=title, caption=caption, figure=figure)


def _plate(found: Characterization, numbers: dict[str, Any]) -> Section:
    charts = []
    for snake in numbers:
        runs = [a for a in found.plate if a.snake == snake]
        charts.append(_map(f"map-{snake}", f"{snake} snake: residual error", runs, found))
        charts.append(_histogram(f"histogram-{snake}", f"{snake} snake", [a for a in runs if a.ok], found))
    return Section(
        name="plate",
        title="Over the plate",
        lead="Each run begins where the last one ended, as in a scan.",
        header=["snake", "in focus", "gave up", "no focus in the images", "mean, µm", "SD, µm", "worst, µm", "seconds"],
        rows=[
            [
                snake,
                f"{n['in_focus']} of {n['positions'] - n['without_truth']}",
                str(n["gave_up"]),
                str(n["without_truth"]),
                *(_text(n[k]) for k in ("mean_um", "sd_um", "worst_um", "seconds_median")),
            ]
            for snake, n in numbers.items()
        ],
        charts=charts,
    )


def _map(name: str, title: str, runs: Sequence[Attempt], found: Characterization) -> Chart:
    """Residual errors in stage coordinates, joined by the path; grey where the images show no focus."""
    reach = max(found.depth_of_field_um, *(abs(a.error_um) for a in runs if a.error_um is not None), 0.0)
    reach = min(reach, 3 * found.depth_of_field_um)
    known = [a for a in runs if a.error_um is not None]
    unknown = [a for a in runs if a.error_um is None]
    figure = chart(
        [{
            "type": "scatter", "mode": "lines", "x": plain(a.x for a in runs), "y": plain(a.y for a in runs),
            "line": {"color": "#d5dbe0", "width": 1}, "hoverinfo": "skip",
        }, {
            "type": "scatter", "mode": "markers", "x": plain(a.x for a in unknown), "y": plain(a.y for a in unknown),
            "marker": {"color": "#eceff2", "size": 12, "line": {"color": MUTED, "width": 1}},
            "text": [a.place for a in unknown], "hovertemplate": "%{text}: no focus in the images<extra></extra>",
        }, {
            "type": "scatter", "mode": "markers", "x": plain(a.x for a in known), "y": plain(a.y for a in known),
            "marker": {
                "color": plain(a.error_um for a in known), "colorscale": _DIVERGING, "cmin": -reach, "cmax": reach,
                "size": 14, "line": {"color": MUTED, "width": 1},
                "colorbar": {"title": {"text": "µm"}, "thickness": 12},
                "symbol": ["circle" if a.ok else "x" for a in known],
            },
            "text": [a.place for a in known],
            "customdata": plain(a.error_um for a in known),
            "hovertemplate": "%{text}: %{customdata:.3f} µm<extra></extra>",
        }],
        axis("x, µm"), axis("y, µm") | {"scaleanchor": "x"},
    )  # fmt: skip
    return Chart(name=name, title=title, caption="Crosses: the autofocus gave up.", figure=figure)


def _band(figure: dict[str, Any], depth: float, along: str) -> None:
    """Shade the depth of field along an axis."""
    across = {"x": "y", "y": "x"}[along]
    figure["layout"].setdefault("shapes", []).append({
        "type": "rect", f"{along}ref": along, f"{across}ref": "paper", f"{along}0": -depth / 2, f"{along}1": depth / 2,
        f"{across}0": 0, f"{across}1": 1, "fillcolor": BAND, "line": {"width": 0}, "layer": "below",
    })  # fmt: skip
