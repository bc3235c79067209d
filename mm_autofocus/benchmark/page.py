"""Writes tables and charts as one HTML page that needs no network, in the style of the acquisition report."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from mm_autofocus.errors import SettingsError
from mm_autofocus.report.data import Chart, Section
from mm_autofocus.report.plots import plotly_js

_SCRIPT = """
(async () => {
  const packed = document.getElementById("plotly-gzip").textContent;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const figures = JSON.parse(document.getElementById("figures-json").textContent);
  for (const [name, figure] of Object.entries(figures))
    Plotly.newPlot("plot-" + name, figure.data, figure.layout, { displayModeBar: false, responsive: true });
})();
"""


def write_page(path: Path, title: str, headline: str, facts: Mapping[str, str], sections: Sequence[Section]) -> Path:
    """Write the page and return its path.

    Parameters
    ----------
    path
        Where to; missing folders are made.
    title, headline
        Heading, and the result in one sentence.
    facts
        Short lines for the head of the page: what was run, on which machine.
    sections
        Tables and charts; the names of all charts must differ.

    Raises
    ------
    SettingsError
        When the file cannot be written.
    """
    figures = {chart.name: chart.figure for section in sections for chart in section.charts}
    data = json.dumps(figures, allow_nan=False).replace("</", "<\\/")
    style = files("mm_autofocus.report").joinpath("report.css").read_text(encoding="utf-8")
    lines = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    page = (
        f"<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{style}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f"<p class=headline>{escape(headline)}</p><dl class=facts>{lines}</dl></header>"
        + "".join(_section(section) for section in sections)
        + f"</main><script type='application/json' id=figures-json>{data}</script>"
        + (
            f"<script type='application/octet-stream' id=plotly-gzip>{plotly_js()}</script><script>{_SCRIPT}</script>"
            if figures
            else ""
        )
        + "</body></html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"the page cannot be written to {path}: {error}; choose another --out") from error
    return path


def machine() -> str:
    """Name the machine in one line: processor, cores, system, Python."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].strip() if models else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _cell(text: str) -> str:
    """Return a cell as HTML; the path of a page beside this one becomes a link."""
    if re.fullmatch(r"[\w./-]+\.html", text):
        return f'<a href="{text}">{text}</a>'
    return escape(text)


def _section(section: Section) -> str:
    table = ""
    if section.rows:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
        body = "".join("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>" for row in section.rows)
        table = f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    wide = "".join(_figure(chart) for chart in section.charts if chart.kind == "wide")
    half = "".join(_figure(chart) for chart in section.charts if chart.kind == "chart")
    lead = f"<p class=lead>{escape(section.lead)}</p>" if section.lead else ""
    charts = f"<div class=charts>{half}</div>" if half else ""
    return f"<section id='{escape(section.name)}'><h2>{escape(section.title)}</h2>{lead}{table}{wide}{charts}</section>"


def _figure(chart: Chart) -> str:
    height = chart.figure["layout"].get("height")
    style = f' style="height:{height:g}px"' if height else ""
    return (
        f"<figure class={chart.kind}><h3>{escape(chart.title)}</h3>"
        f"<div class=plot id='plot-{escape(chart.name)}'{style}></div>"
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )
