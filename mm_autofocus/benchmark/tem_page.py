"""One self-contained HTML page with the figures of the aperture table: figures 5 to 8 and 11 of the paper, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_autofocus.benchmark.page import machine, write_page
from mm_autofocus.benchmark.runner import Record
from mm_autofocus.benchmark.tem_paper import PAPER
from mm_autofocus.report.data import Chart, Section
from mm_autofocus.report.outcomes import outcome_sections
from mm_autofocus.report.plots import Figure

_NET, _OURS, _PAPER = "#c8501e", "#2a788e", "#5d6b76"


def write_tem_page(table: dict[str, Any], records: Sequence[Record], path: Path) -> Path:
    """Write the page and return its path."""
    from mm_autofocus.benchmark.tem_table import RUNS, TOTALS, tables

    charts = [
        Chart(
            name=name, title=caption.partition(":")[0].rstrip("."), caption=caption, figure=figure,
            kind="chart" if name.startswith("figure11") else "wide",
        )
        for name, (caption, figure) in page_figures(table).items()
    ]  # fmt: skip
    sections = [Section(name="pictures", title="Side by side", charts=charts)]
    sections += [
        Section(name=f"table-{i}", title=title, lead=remark, header=header, rows=rows)
        for i, (title, remark, header, rows) in enumerate(tables(table))
    ]
    sections += outcome_sections(records, RUNS, TOTALS)
    facts = {"Machine": machine(), "Effort": table["reduced"]}
    headline = (
        "All on the simulated column, except where a line says 'paper, real'. RMSE in per cent of the 1000-unit range."
    )
    return write_page(path, "Condenser aperture alignment", headline, facts, sections)


def page_figures(table: dict[str, Any]) -> dict[str, tuple[str, Figure]]:
    """Return caption and plotly figure by name."""
    nets, ours = table.get("networks"), table["ours"]
    figures: dict[str, tuple[str, Figure]] = {}
    if nets:
        line = nets["medians"]["figure5"].get("cnn")
        figures["figure5"] = (
            "Figure 5: each cross is one training on dataset 14; the line is the initial CNN's median.",
            _crosses(nets["figure5"], line),
        )
        if nets["optimisers"]:
            figures["figure23"] = (
                "Figure A.23: optimisers of the initial CNN on dataset 14.", _crosses(nets["optimisers"], line)
            )  # fmt: skip
        figures["figure6"] = ("Figure 6: initial and final CNN on datasets 14 and 13.", _crosses(nets["figure6"], None))
        figures["figure7"] = (
            "Figure 7 and table 2: the final CNN on each dataset, disc geometry beside it, and the paper's medians.",
            _crosses(nets["table2"], None, extra=[
                ("disc geometry", ours["table2"], _OURS), ("paper, real", PAPER["table2"], _PAPER)
            ]),
        )  # fmt: skip
    figures["figure8"] = (
        "Figure 8: RMSE against the number of training samples (networks on 10/13/14, disc geometry on 14).",
        _samples(table),
    )
    for name in ("14", "6"):
        if nets:
            figures[f"figure11_{name}"] = (
                f"Figure 11, dataset {name}: before (grey) and after one correction by the final CNN trained on 10/13 "
                "(orange) and by disc geometry (blue). The cross is the ideal.",
                _corrections(name, ours["figure11"][name], nets["figure11"][name]),
            )
    figures["loops"] = ("The loop: RMSE after one, two and three corrections.", _loops(table["loops"]))
    bins = table["confidence"]["reliability"]
    figures["reliability"] = ("Stated confidence against what came true.", _reliability(bins))
    return figures


def _layout(x: str, y: str, log: bool = False) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}, "automargin": True}, "margin": {"t": 20, "r": 20},
        "yaxis": {"title": {"text": y}, "type": "log" if log else "linear"}, "template": "plotly_white",
        "legend": {"orientation": "h", "y": 1.12},
    }  # fmt: skip


def _crosses(
    values: dict[str, list[float]], line: float | None, extra: list[tuple[str, dict[str, float], str]] | None = None
) -> Figure:
    x = [name for name, each in values.items() for _ in each]
    y = [v for each in values.values() for v in each]
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers", "x": x, "y": y, "name": "one training",
         "marker": {"symbol": "cross-thin", "size": 10, "line": {"width": 2, "color": _NET}}},
        {"type": "scatter", "mode": "markers", "x": list(values), "name": "median",
         "y": [sorted(each)[len(each) // 2] for each in values.values()],
         "marker": {"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": _NET}}},
    ]  # fmt: skip
    for name, points, colour in extra or []:
        data.append({
            "type": "scatter", "mode": "markers", "name": name, "x": list(points), "y": list(points.values()),
            "marker": {"size": 11, "color": colour, "symbol": "diamond"},
        })  # fmt: skip
    layout = _layout("", "RMSE, %", log=True)
    layout["xaxis"] |= {"type": "category"}
    if line is not None:
        layout["shapes"] = [{
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": line, "y1": line,
            "line": {"dash": "dot", "color": "red"},
        }]  # fmt: skip
    return {"data": data, "layout": layout}


def _samples(table: dict[str, Any]) -> Figure:
    geometry = table["ours"]["figure8"]
    data: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines+markers", "name": "disc geometry, median", "line": {"color": _OURS},
        "x": [int(n) for n in geometry], "y": [v["median"] for v in geometry.values()],
    }]  # fmt: skip
    if nets := table.get("networks"):
        points = nets["medians"]["figure8"]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": "final CNN, median", "line": {"color": _NET},
            "x": [int(n) for n in points], "y": list(points.values()),
        })  # fmt: skip
    layout = _layout("training samples", "RMSE, %", log=True)
    layout["xaxis"] |= {"type": "log"}
    return {"data": data, "layout": layout}


def _corrections(name: str, ours: dict[str, Any], nets: dict[str, Any]) -> Figure:
    def points(rows: list[list[float]], label: str, colour: str) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "markers", "name": label, "x": [-r[0] for r in rows], "y": [-r[1] for r in rows],
            "marker": {"size": 6, "color": colour},
        }  # fmt: skip

    before = [[-x, -y] for x, y in ours["shifts"]]
    data = [
        points(before, f"dataset {name}", "#b9c2c9"), points(nets["errors"], "after the final CNN", _NET),
        points(ours["errors"], "after disc geometry", _OURS),
        {"type": "scatter", "mode": "markers", "name": "ideal", "x": [0], "y": [0],
         "marker": {"symbol": "cross-thin", "size": 18, "line": {"width": 2, "color": "red"}}},
    ]  # fmt: skip
    layout = _layout("x, steps", "y, steps")
    layout["yaxis"] |= {"scaleanchor": "x"}
    return {"data": data, "layout": layout}


def _loops(rows: list[dict[str, Any]]) -> Figure:
    rows = [row for row in rows if "after 1" in row]
    colours = ("#9ecae1", "#4a98ae", _OURS)
    data = [
        {"type": "bar", "name": f"after {n}", "x": [r["condition"] for r in rows], "y": [r[f"after {n}"] for r in rows],
         "marker": {"color": colour}}
        for n, colour in zip((1, 2, 3), colours, strict=True)
    ]  # fmt: skip
    layout = _layout("", "RMSE, %", log=True) | {"barmode": "group"}
    return {"data": data, "layout": layout}


def _reliability(bins: list[dict[str, Any]]) -> Figure:
    data = [
        {"type": "scatter", "mode": "lines", "name": "ideal", "x": [0, 1], "y": [0, 1],
         "line": {"dash": "dot", "color": _PAPER}},
        {"type": "scatter", "mode": "markers+text", "name": "runs", "x": [b["stated"] for b in bins],
         "y": [b["within 0.5 %"] for b in bins], "text": [str(b["runs"]) for b in bins], "textposition": "top left",
         "marker": {"size": 12, "color": _OURS}},
    ]  # fmt: skip
    return {"data": data, "layout": _layout("stated confidence", "share within 0.5 %")}
