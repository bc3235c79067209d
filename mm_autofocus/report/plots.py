"""The figures of the report, as the plain dictionaries that plotly draws: plate maps, errors, confidence, costs."""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from html import escape
from typing import Any

import numpy as np

from mm_autofocus.report.data import ReportData, wilson
from mm_autofocus.report.plate import Plate, row_and_column, row_name
from mm_autofocus.result import FocusResult, Status

Figure = dict[str, Any]

INK, MUTED, GRID, EMPTY = "#1f2a33", "#5d6b76", "#e3e8ec", "#eceff2"
GOOD, WARN, BAND = "#2a788e", "#c8501e", "rgba(42,120,142,0.13)"
# Okabe and Ito's colours with a symbol each, so that no status is told by its colour alone
STATUS_STYLE = {
    Status.CONVERGED: (GOOD, "circle"),
    Status.LOW_CONFIDENCE: ("#e69f00", "diamond"),
    Status.AT_LIMIT: ("#d55e00", "triangle-up"),
    Status.NO_SIGNAL: ("#cc79a7", "square"),
    Status.TIMED_OUT: ("#0072b2", "cross"),
    Status.CANCELLED: ("#7a7a7a", "circle-open"),
    Status.FAILED: ("#111111", "x"),
}
_DIVERGING = [
    [0.0, "#2166ac"], [0.2, "#67a9cf"], [0.4, "#d1e5f0"], [0.5, "#fbfbfb"],
    [0.6, "#fddbc7"], [0.8, "#ef8a62"], [1.0, "#b2182b"],
]  # fmt: skip


@cache
def plotly_js() -> str:
    """Return plotly.js, gzipped and in base64: 1.9 MB in place of 4.8 MB; the page unpacks it."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")


def figures(data: ReportData) -> dict[str, Figure]:
    """Return every figure that the data can fill, by name.

    Without a truth the errors give way to what the runs themselves said: a map and a histogram of the confidence.
    """
    made = {
        "height": height_map(data),
        "error": error_map(data),
        "belief": None if data.has_truth else confidence_map(data),
        "beliefs": None if data.has_truth else confidence_histogram(data),
        "histogram": error_histogram(data),
        "confidence": confidence_and_error(data),
        "reliability": reliability(data),
        "prior": prior_and_result(data),
        "cost": cost(data),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def height_map(data: ReportData) -> Figure | None:
    """Map of the height that each field was acquired at, in µm."""
    values = [field.z for field in data.fields]
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = (float(v) for v in np.percentile(known, [1, 99]))
    pad = max(0.5 - (high - low) / 2, 0.0)  # a flat plate must not show nanometres as colours
    return _map(data, values, ("Viridis", low - pad, high + pad), "µm", "z %{z:.2f} µm")


def error_map(data: ReportData) -> Figure | None:
    """Map of acquired minus true focal height, in µm; None without a truth."""
    values = [field.error_um for field in data.fields]
    known = [abs(value) for value in values if value is not None]
    if not known:
        return None
    limit = max(data.depth_of_field_um, float(np.percentile(known, 95)))
    return _map(data, values, (_DIVERGING, -limit, limit), "µm", "error %{z:.2f} µm")


def confidence_map(data: ReportData) -> Figure | None:
    """Map of the confidence of the run that served each field; None without runs."""
    results = [data.result_of(field) for field in data.fields]
    values = [None if result is None else result.confidence for result in results]
    known = any(value is not None for value in values)
    return _map(data, values, ("Cividis", 0.0, 1.0), "", "confidence %{z:.2f}") if known else None


def confidence_histogram(data: ReportData) -> Figure | None:
    """Histogram of the confidence of the runs, converged or not; None without runs."""
    traces: list[dict[str, Any]] = []
    for name, ok, colour in (("converged", True, GOOD), ("not converged", False, WARN)):
        stated = [r.confidence for r in data.results if r.ok is ok and math.isfinite(r.confidence)]
        if stated:
            counts, edges = np.histogram(stated, bins=20, range=(0.0, 1.0))
            traces.append({
                "type": "bar", "name": name, "x": plain((edges[:-1] + edges[1:]) / 2), "y": counts.tolist(),
                "marker": {"color": colour}, "hovertemplate": "%{x:.3f}: %{y} runs<extra></extra>",
            })  # fmt: skip
    if not traces:
        return None
    figure = chart(traces, axis("stated confidence", range=[0, 1]), axis("focus runs"))
    figure["layout"] |= {"barmode": "stack", "bargap": 0.08}
    return with_legend(figure)


def error_histogram(data: ReportData) -> Figure | None:
    """Histogram of the error in µm with the depth of field shaded; None without a truth."""
    errors = np.array([e for field in data.fields if (e := field.error_um) is not None])
    if errors.size == 0:
        return None
    reach = min(max(float(np.abs(errors).max()) * 1.02, 1.25 * data.tolerance_um), 3 * data.depth_of_field_um)
    counts, edges = np.histogram(np.clip(errors, -reach, reach), bins=41, range=(-reach, reach))
    centres = (edges[:-1] + edges[1:]) / 2
    inside = np.abs(centres) <= data.tolerance_um
    figure = chart(
        [{
            "type": "bar", "x": plain(centres), "y": counts.tolist(), "width": float(edges[1] - edges[0]) * 0.92,
            "marker": {"color": [GOOD if i else WARN for i in inside]},
            "hovertemplate": "%{x:.2f} µm: %{y} fields<extra></extra>",
        }],
        axis("acquired − true focal height, µm", zeroline=True), axis("fields"),
    )  # fmt: skip
    _shade(figure, -data.tolerance_um, data.tolerance_um, "x")
    beyond = int((np.abs(errors) > reach).sum())
    if beyond:
        _note(figure, f"outermost bars: {beyond} fields beyond ±{reach:.1f} µm")
    return figure


def confidence_and_error(data: ReportData) -> Figure | None:
    """Confidence of each run against its own absolute error in µm; None without a truth."""
    runs = [run for run in data.scored_runs() if math.isfinite(run[0].confidence)]
    if not runs:
        return None
    floor = data.depth_of_field_um / 200
    traces = []
    for status, (colour, symbol) in STATUS_STYLE.items():
        chosen = [(result, abs(error)) for result, error in runs if result.status is status]
        if chosen:
            traces.append({
                "type": "scatter", "mode": "markers", "name": status.value.replace("_", " "),
                "x": plain(max(error, floor) for _, error in chosen), "y": plain(r.confidence for r, _ in chosen),
                "text": [escape(result.label or "") for result, _ in chosen],
                "marker": {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75},
                "hovertemplate": "%{text}<br>|error| %{x:.2f} µm, confidence %{y:.2f}<extra></extra>",
            })  # fmt: skip
    figure = chart(traces, axis("|error|, µm", type="log", dtick=1), axis("confidence", range=[-0.04, 1.04]))
    furthest = max(max(abs(error) for _, error in runs), data.tolerance_um) * 1.4
    figure["layout"]["xaxis"]["range"] = [math.log10(floor * 0.8), math.log10(furthest)]
    _shade(figure, floor * 0.8, data.tolerance_um, "x")
    return with_legend(figure)


def reliability(data: ReportData) -> Figure | None:
    """Fraction in focus against stated confidence, in five bins with 95 % Wilson intervals; None without a truth."""
    runs = [(r.confidence, sharp) for r, sharp in data.sharp_runs() if math.isfinite(r.confidence)]
    if not runs:
        return None
    stated, share, above, below, text, numbers = [], [], [], [], [], []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        bin_ = [run for run in runs if low <= run[0] < low + 0.2 or (low == 0.8 and run[0] >= 1.0)]
        if not bin_:
            continue
        hits, n = sum(hit for _, hit in bin_), len(bin_)
        interval = wilson(hits, n)
        stated.append(sum(confidence for confidence, _ in bin_) / n)
        share.append(hits / n)
        below.append(hits / n - interval[0])
        above.append(interval[1] - hits / n)
        text.append(f"{hits} of {n}")
        numbers.append(n)
    return chart(
        [{
            "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
            "line": {"color": MUTED, "dash": "dot", "width": 1},
        }, {
            "type": "scatter", "mode": "markers", "x": plain(stated), "y": plain(share), "text": text,
            "cliponaxis": False, "marker": {"color": GOOD, "size": 10},
            "error_y": {
                "type": "data", "array": plain(above), "arrayminus": plain(below), "color": GOOD, "thickness": 1.5,
            },
            "hovertemplate": "stated %{x:.2f}, in focus %{y:.2f} (%{text})<extra></extra>",
        }, {
            "type": "scatter", "mode": "text", "x": plain(stated), "y": [1.1] * len(stated), "hoverinfo": "skip",
            "text": [f"n={n}" for n in numbers], "textfont": {"size": 12, "color": MUTED}, "cliponaxis": False,
        }],
        axis("stated confidence", range=[-0.02, 1.02]),
        axis("fraction in focus", range=[-0.04, 1.17], tick0=0, dtick=0.2),
    )  # fmt: skip


def prior_and_result(data: ReportData) -> Figure | None:
    """Result minus the focus map's expectation in µm, run by run, with the map's ±2 SD; None without a map."""
    runs = [
        (number, result, result.end[result.knob] - result.prior_mean)
        for number, result in enumerate(data.results, 1)
        if result.prior_mean is not None and result.knob in result.end
    ]
    if not runs:
        return None
    numbers = [number for number, _, _ in runs]
    spread = [2 * (result.prior_sd or 0.0) for _, result, _ in runs]
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "x": [*numbers, *reversed(numbers)], "fill": "toself", "fillcolor": BAND,
        "y": plain([*spread, *(-value for value in reversed(spread))]), "line": {"width": 0}, "hoverinfo": "skip",
        "name": "expected ± 2 SD",
    }]  # fmt: skip
    for name, ok, colour, symbol in (("converged", True, GOOD, "circle"), ("not converged", False, WARN, "x")):
        chosen = [run for run in runs if run[1].ok is ok]
        if chosen:
            traces.append({
                "type": "scatter", "mode": "markers", "name": name, "x": [number for number, _, _ in chosen],
                "y": plain(gain for _, _, gain in chosen), "text": [escape(r.label or "") for _, r, _ in chosen],
                "marker": {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
                "hovertemplate": "%{text}: %{y:.2f} µm<extra></extra>",
            })  # fmt: skip
    return with_legend(chart(traces, axis("focus run"), axis("result − expected, µm", zeroline=True)))


_COSTS: tuple[Callable[[FocusResult], float], ...] = (
    lambda result: result.images,
    lambda result: result.seconds,
    lambda result: result.dose,
)


def cost(data: ReportData) -> Figure | None:
    """Images, seconds and dose per well (or per position outside a plate), in the order of the runs."""
    own, places = data.own_fields(), dict[str, list[FocusResult]]()
    for index, result in enumerate(data.results):
        place = data.fields[own[index]].place if index in own else result.well or result.label or f"run {index + 1}"
        places.setdefault(place, []).append(result)
    if not places:
        return None
    names = [escape(name) for name in places]
    colours = [GOOD if all(result.ok for result in group) else WARN for group in places.values()]
    others: dict[str, list[FocusResult]] = {}
    for result in data.reference_results:
        others.setdefault(result.well or result.label or "", []).append(result)
    rows: tuple[tuple[str, Sequence[float]], ...] = (
        ("images", [sum(result.images for result in group) for group in places.values()]),
        ("seconds", [sum(result.seconds for result in group) for group in places.values()]),
        (f"dose, {escape(data.dose_unit)}", [sum(result.dose for result in group) for group in places.values()]),
    )
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    spent = [[sum(of(r) for r in others.get(name, ())) for name in places] for of in _COSTS] if others else []
    for number, sums in enumerate(spent, 1):
        traces.append({
            "type": "scatter", "mode": "markers", "x": names, "y": plain(sums),
            "yaxis": f"y{'' if number == 1 else number}",
            "marker": {"color": INK, "symbol": "line-ew-open", "size": 9, "line": {"width": 2}},
            "hovertemplate": f"{escape(data.reference)}, %{{x}}: %{{y:.4~g}}<extra></extra>",
        })  # fmt: skip
    for number, (title, values) in enumerate(rows, 1):
        which = "" if number == 1 else str(number)
        traces.append({
            "type": "bar", "x": names, "y": plain(values), "yaxis": f"y{which}", "marker": {"color": colours},
            "hovertemplate": "%{x}: %{y:.4~g} " + title.split(",")[0] + "<extra></extra>",
        })  # fmt: skip
        top = 1 - (number - 1) * 0.345
        layout[f"yaxis{which}"] = axis(title, domain=[top - 0.29, top], nticks=4, rangemode="tozero", anchor="x")
    figure = chart(traces, axis("", type="category", anchor="y3", nticks=32, showgrid=False), axis(""))
    figure["layout"] |= layout | {"bargap": 0.25}
    return figure


def boxes(data: ReportData) -> list[list[float] | None]:
    """Return for each field the rectangle [x0, x1, y0, y1] that it fills in the maps, None where it has none."""
    plate = _plate(data)
    if plate is not None:
        return [*plate.boxes]
    return [None if x is None or y is None else [x, x, y, y] for x, y in zip(*_places(data), strict=True)]


def _plate(data: ReportData) -> Plate | None:
    wells = [row_and_column(field.place) for field in data.fields]
    return Plate([well for well in wells if well is not None]) if wells and None not in wells else None


def _places(data: ReportData) -> tuple[list[float | None], list[float | None]]:
    if any(field.x is not None and field.y is not None for field in data.fields):
        known = [field if field.x is not None and field.y is not None else None for field in data.fields]
        return [f.x if f else None for f in known], [f.y if f else None for f in known]
    return [float(i + 1) for i in range(len(data.fields))], [0.0] * len(data.fields)


def _map(
    data: ReportData, values: Sequence[float | None], colours: tuple[Any, float, float], title: str, says: str
) -> Figure:
    scale, low, high = colours
    bar = {"title": {"text": title, "side": "top"}, "thickness": 12, "len": 0.95, "outlinewidth": 0, "x": 1.01}
    hover = "%{text}<br>" + says + "<extra></extra>"
    labels = [escape(field.label) for field in data.fields]
    plate = _plate(data)
    if plate is None:
        xs, ys = _places(data)
        size = min(26.0, max(7.0, 170 / math.sqrt(len(values))))
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "markers", "x": plain(xs), "y": plain(ys), "text": labels,
            "customdata": list(range(len(values))),
            "marker": {
                "color": plain(values), "colorscale": scale, "cmin": low, "cmax": high, "size": size,
                "colorbar": bar, "line": {"color": MUTED, "width": 0.5},
            },
            "hovertemplate": hover.replace("%{z", "%{marker.color"),
        }  # fmt: skip
        on_stage = any(field.x is not None and field.y is not None for field in data.fields)
        xaxis = axis("stage x, µm" if on_stage else "position")
        yaxis = axis("stage y, µm") | {"scaleanchor": "x"} if on_stage else axis("", showticklabels=False)
        middle = [(x, y) for x, y in zip(xs, ys, strict=True)]
        mark = size * 0.5
    else:
        x_edges, y_edges = plate.edges(0), plate.edges(1)
        shape = (len(y_edges) - 1, len(x_edges) - 1)
        grid, index = np.full(shape, None, object), np.full(shape, None, object)
        text = np.full(shape, "", object)
        for i, place in enumerate(plate.places):
            cell = plate.cell(place)
            grid[cell], index[cell], text[cell] = plain([values[i]])[0], i, labels[i]
        trace = {
            "type": "heatmap", "x": x_edges, "y": y_edges, "z": grid.tolist(), "customdata": index.tolist(),
            "text": text.tolist(), "colorscale": scale, "zmin": low, "zmax": high, "colorbar": bar,
            "hoverongaps": False, "hovertemplate": hover,
        }  # fmt: skip
        step = 1 if plate.columns <= 12 else 2 if plate.columns <= 24 else 4
        columns, rows = range(0, plate.columns, step), range(0, plate.rows, step)
        xaxis = axis("", tickvals=list(columns), ticktext=[str(c + 1) for c in columns], side="top", showgrid=False)
        yaxis = axis("", tickvals=list(rows), ticktext=[row_name(r) for r in rows], showgrid=False, scaleanchor="x")
        xaxis |= {"range": [-0.7, plate.columns - 0.3], "constrain": "domain"}
        yaxis |= {"range": [plate.rows - 0.3, -0.7], "constrain": "domain"}
        middle = [((box[0] + box[1]) / 2, (box[2] + box[3]) / 2) for box in plate.boxes]
        mark = max(4.0, 90 / plate.columns / max(1, plate.cells[0] / 2))
    results = [data.result_of(field) for field in data.fields]
    failed = [result is not None and not result.ok for result in results]
    figure = chart([
        trace,
        _marks(middle, [bool(field.blank) for field in data.fields], "circle", mark, "blank well"),
        _marks(middle, failed, "x", mark * 1.15, "run did not converge"),
    ], xaxis, yaxis)  # fmt: skip
    figure["data"] = [item for item in figure["data"] if item["x"]]
    on_plate = (
        {"plot_bgcolor": EMPTY, "margin": {"l": 26, "r": 78, "t": 26, "b": 34, "autoexpand": False}}
        if plate is not None
        else {}
    )
    figure["layout"] |= on_plate
    return with_legend(figure, -0.01 if plate is not None else -0.18) if len(figure["data"]) > 1 else figure


def _marks(
    middle: Sequence[tuple[float | None, float | None]], wanted: Sequence[bool], symbol: str, size: float, name: str
) -> dict[str, Any]:
    chosen = [place for place, want in zip(middle, wanted, strict=True) if want]
    # white with an ink outline reads on every colour of both scales, on paper too
    marker = {"symbol": symbol, "size": size, "color": "#ffffff", "line": {"width": 1.2, "color": INK}}
    return {
        "type": "scatter", "mode": "markers", "x": plain(x for x, _ in chosen), "y": plain(y for _, y in chosen),
        "marker": marker, "name": name, "hoverinfo": "skip",
    }  # fmt: skip


def chart(traces: list[dict[str, Any]], xaxis: dict[str, Any], yaxis: dict[str, Any]) -> Figure:
    """Return a figure of these traces in the report's type, colours and margins."""
    layout = {
        "font": {"family": "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 58, "r": 16, "t": 14, "b": 50}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "#ffffff",
        "showlegend": False, "hovermode": "closest", "xaxis": xaxis, "yaxis": yaxis, "dragmode": False,
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis in the report's style; ``more`` is plotly's."""
    style = {"gridcolor": GRID, "zeroline": False, "zerolinecolor": "#b8c2ca", "ticks": "", "automargin": True}
    return style | ({"title": {"text": title, "standoff": 8}} if title else {}) | more


def with_legend(figure: Figure, y: float = -0.2) -> Figure:
    """Return the figure with a legend below it, at ``y`` of its height."""
    legend = {"orientation": "h", "x": 0, "y": y, "yanchor": "top", "font": {"size": 12}}
    figure["layout"] |= {"showlegend": True, "legend": legend}
    for trace in figure["data"]:
        trace.setdefault("showlegend", "name" in trace)
    return figure


def _shade(figure: Figure, low: float, high: float, axis: str) -> None:
    """Shade the depth of field."""
    figure["layout"].setdefault("shapes", []).append({
        "type": "rect", "xref": axis, "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "fillcolor": BAND,
        "line": {"width": 0}, "layer": "below",
    })  # fmt: skip


def _note(figure: Figure, text: str) -> None:
    figure["layout"].setdefault("annotations", []).append({
        "text": text, "xref": "paper", "yref": "paper", "x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top",
        "showarrow": False, "font": {"size": 12, "color": MUTED},
    })  # fmt: skip


def plain(values: Iterable[float | None]) -> list[float | None]:
    """Return numbers that JSON can hold: five decimals at most, None for what is not finite."""
    return [round(float(v), 5) if v is not None and math.isfinite(v) else None for v in values]
