"""The report of a TEM's long series: misalignment over the series, corrections, and composite images of the wobbles."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.report.plots import GOOD, GRID, INK, MUTED, WARN, plotly_js
from mm_autofocus.strategy import Image

RANGE_STEPS = 1000.0
"""Errors are given in per cent of this: the aperture's useful range on either side (Grossetête et al. 2024, 3.4)."""
HUMAN_PERCENT = 2.0
"""What a human operator is content with."""

_COLOURS = np.array(
    [[0.85, 0.1, 0.55], [0.95, 0.25, 0.1], [0.95, 0.65, 0.1], [0.45, 0.75, 0.2], [0.1, 0.7, 0.65], [0.15, 0.45, 0.95],
     [0.5, 0.2, 0.9]]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AlignmentRecord:
    """One alignment of the series, steps of the aperture's drive.

    Attributes
    ----------
    image
        Number of the image before which it was made.
    before, after
        True offset (x, y) of the aperture from the beam; scores only.
    status, confidence, images, seconds, reason
        What the run said and cost.
    wobble_before, wobble_after
        Images of its first and its last wobble, in ascending order of the lens.
    """

    image: int
    before: tuple[float, float]
    after: tuple[float, float]
    status: str
    confidence: float
    images: int
    seconds: float
    reason: str = ""
    wobble_before: tuple[Image, ...] = ()
    wobble_after: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """The whole series.

    Attributes
    ----------
    title
        Heading.
    facts
        Lines for the header.
    seconds
        Instrument's clock at each image, shape (images,).
    offset, left_alone
        True offset of the aperture at each image, and what it would have been without any further alignment after the
        first, shape (images, 2), steps.
    alignments
        Every alignment.
    settings_toml
        Settings as TOML text.
    """

    title: str
    facts: dict[str, str]
    seconds: NDArray[np.float64]
    offset: NDArray[np.float64]
    left_alone: NDArray[np.float64]
    alignments: tuple[AlignmentRecord, ...]
    settings_toml: str = ""
    notes: tuple[str, ...] = ()
    created: datetime = field(default_factory=lambda: datetime.now().astimezone())


def rms_percent(offset: NDArray[np.float64] | Sequence[tuple[float, float]]) -> float:
    """Return the root mean square of each axis's offset, in per cent of the 1000-unit range, as the paper scores."""
    values = np.asarray(offset, float)
    return float(np.sqrt(np.mean(values**2)) / RANGE_STEPS * 100) if values.size else float("nan")


def composite(images: Sequence[Image], *, every: int = 1) -> NDArray[np.uint8]:
    """Lay the images of a wobble over each other, each in a colour of its own (Fig. 10).

    Parameters
    ----------
    images
        Shape (height, width) each, in ascending order of the lens.
    every
        Only every so many of them, for readability: aligned discs lie upon each other.

    Returns
    -------
    NDArray[np.uint8]
        Shape (height, width, 3).
    """
    count = len(images)
    picture = np.zeros((*np.asarray(images[0]).shape, 3))
    for i in range(0, count, every):
        image = np.asarray(images[i], float)
        low, high = np.percentile(image, 2), np.percentile(image, 99.7)
        level = np.clip((image - low) / max(high - low, 1e-9), 0.0, 1.0)
        colour = _COLOURS[round(i * (len(_COLOURS) - 1) / max(count - 1, 1))]
        picture = 1 - (1 - picture) * (1 - 0.75 * level[..., None] * colour)  # like light added to light
    return np.asarray(np.round(np.clip(picture, 0, 1) * 255), np.uint8)


def write_tem_report(record: SeriesRecord, path: Path) -> Path:
    """Write the report as one HTML file that needs no network, and return its path."""
    figures = {"series": _series(record), "corrections": _corrections(record)}
    drawn = json.dumps(figures).replace("</", r"<\/")
    style = files("mm_autofocus.report").joinpath("report.css").read_text(encoding="utf-8")
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(record.title)}</title><style>{style}
.pairs {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 18px; }}
.pairs figure {{ margin: 0; }} .pairs img {{ width: 49%; border-radius: 3px; image-rendering: auto; }}
.large {{ display: grid; grid-template-columns: 1fr 1fr; gap: 18px; max-width: 900px; }} .large img {{ width: 100%; }}
</style></head><body><main>
{_header(record)}
{_composites(record)}
<section id="series-section"><h2>The aperture over the series</h2>
<p class=lead>Distance of the aperture from the beam at every image, by the simulation's truth, which no strategy can
reach. Lines: alignments.</p><div class="wide"><div class=plot id="plot-series"></div></div></section>
<section id="corrections-section"><h2>Corrections</h2>
<p class=lead>Each alignment's misalignment before and after, normalised to the 1000-unit range (Fig. 11 of the paper);
the cross is the ideal. Right: the same, enlarged.</p><div class="wide"><div class=plot id="plot-corrections"
style="height:430px"></div></div>{_table(record)}</section>
<details><summary>Settings</summary><pre>{escape(record.settings_toml)}</pre></details>
</main>
<script type="application/json" id="figures">{drawn}</script>
<script type="application/octet-stream" id="plotly-gzip">{plotly_js()}</script>
<script>
(async () => {{
  const bytes = Uint8Array.from(atob(document.getElementById("plotly-gzip").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.appendChild(script);
  const figures = JSON.parse(document.getElementById("figures").textContent);
  for (const [name, figure] of Object.entries(figures))
    Plotly.newPlot("plot-" + name, figure.data, figure.layout, {{ responsive: true, displayModeBar: false }});
}})();
</script></body></html>
"""
    path.write_text(page, encoding="utf-8")
    return path


def headline(record: SeriesRecord) -> str:
    """Return the outcome in one sentence."""
    offset, alone = record.offset, record.left_alone
    later = [a for a in record.alignments if a.image > 0]
    aligned = [a for a in later if a.status == "converged"]
    text = f"{len(offset)} images, the aperture off by {rms_percent(offset):.2f} % rms per axis"
    if later:
        text += f"; left alone after the first alignment it would have been {rms_percent(alone):.2f} %"
        text += f". {len(aligned)} of {len(later)} re-alignments converged"
        if aligned:
            text += f", leaving {rms_percent([a.after for a in aligned]):.2f} %"
    return text + f" (a human is content with {HUMAN_PERCENT:g} %)"


def _header(record: SeriesRecord) -> str:
    runs = record.alignments
    tiles = [(f"{rms_percent(record.offset):.2f} %", "aperture off during the series, rms per axis")]
    if runs:
        tiles += [
            (f"{rms_percent([a.before for a in runs]):.2f} %", "before an alignment"),
            (f"{rms_percent([a.after for a in runs]):.2f} %", "after an alignment"),
            (f"{sum(a.status == 'converged' for a in runs)} of {len(runs)}", "alignments converged"),
            (f"{np.median([a.images for a in runs]):g}", "images per alignment (median)"),
            (f"{np.median([a.seconds for a in runs]):.0f} s", "instrument time per alignment (median)"),
        ]
    boxes = "".join(f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in record.facts.items())
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in record.notes)
    created = record.created.strftime("%A %d %B %Y, %H:%M")
    return (
        f"<header><h1>{escape(record.title)}</h1><p class=when>{created}</p>"
        f"<p class=headline>{escape(headline(record))}.</p><div class=tiles>{boxes}</div>"
        f"<dl class=facts>{facts}</dl>{notes}</header>"
    )


def _composites(record: SeriesRecord) -> str:
    shown = [a for a in record.alignments if a.wobble_before and a.wobble_after]
    if not shown:
        return ""
    first, later = shown[0], shown[1:9]
    large = (
        f"<div class=large><figure><img src='{_uri(composite(first.wobble_before), 440)}' alt='before'>"
        f"<figcaption>(a) before the first alignment, off by {_percent(first.before)}</figcaption></figure>"
        f"<figure><img src='{_uri(composite(first.wobble_after, every=2), 440)}' alt='after'>"
        f"<figcaption>(b) after it, off by {_percent(first.after)}; every second image, for readability</figcaption>"
        "</figure></div>"
    )
    pairs = "".join(
        f"<figure><img src='{_uri(composite(a.wobble_before), 200)}' alt='before'> "
        f"<img src='{_uri(composite(a.wobble_after, every=2), 200)}' alt='after'>"
        f"<figcaption>before image {a.image}: {_percent(a.before)} → {_percent(a.after)}</figcaption></figure>"
        for a in later
    )
    return (
        "<section id=composites><h2>The wobble before and after</h2><p class=lead>The images of one wobble of C1 over "
        "each other, each in its own colour (Fig. 10 of the paper). Aligned, the beam pulses on itself.</p>"
        f"{large}<div class=pairs>{pairs}</div></section>"
    )


def _table(record: SeriesRecord) -> str:
    head = ("before image", "off before", "off after", "outcome", "confidence", "images", "seconds")
    rows = [
        (str(a.image), _percent(a.before), _percent(a.after), a.status.replace("_", " "), f"{a.confidence:.3f}",
         str(a.images), f"{a.seconds:.0f}")
        for a in record.alignments
    ]  # fmt: skip
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{text}</th>" for text in head)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{cells}</tbody></table></div>"


def _percent(offset: tuple[float, float]) -> str:
    return f"({offset[0] / RANGE_STEPS * 100:+.2f}, {offset[1] / RANGE_STEPS * 100:+.2f}) %"


def _series(record: SeriesRecord) -> dict[str, Any]:
    number = list(range(1, len(record.offset) + 1))
    traces: list[dict[str, Any]] = []
    for name, values, colour, dash in (
        ("aligned again and again", record.offset, GOOD, "solid"),
        ("left alone after the first", record.left_alone, WARN, "dot"),
    ):
        length = np.hypot(*np.asarray(values, float).reshape(-1, 2).T) / RANGE_STEPS * 100
        traces.append({
            "type": "scatter", "mode": "lines", "name": name, "x": number, "y": [round(float(v), 4) for v in length],
            "line": {"color": colour, "dash": dash, "width": 2},
        })  # fmt: skip
    lines = [
        {"type": "line", "x0": a.image + 0.5, "x1": a.image + 0.5, "yref": "paper", "y0": 0, "y1": 1,
         "line": {"color": MUTED, "width": 1, "dash": "dash"}}
        for a in record.alignments
    ]  # fmt: skip
    return {"data": traces, "layout": _layout("image", "distance from the beam (% of 1000 units)") | {"shapes": lines}}


def _corrections(record: SeriesRecord) -> dict[str, Any]:
    before = np.array([a.before for a in record.alignments]).reshape(-1, 2) / RANGE_STEPS
    after = np.array([a.after for a in record.alignments]).reshape(-1, 2) / RANGE_STEPS
    traces = []
    for axis in ("", "2"):
        for name, points, colour, symbol in (
            ("before", before, WARN, "circle-open"), ("after", after, GOOD, "circle"),
            ("ideal", np.zeros((1, 2)), "#d00000", "x-thin"),
        ):  # fmt: skip
            traces.append({
                "type": "scatter", "mode": "markers", "name": name, "showlegend": axis == "",
                "x": points[:, 0].round(5).tolist(), "y": points[:, 1].round(5).tolist(),
                "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2, "color": colour}},
            })  # fmt: skip
    reach = max(0.02, float(np.abs(before).max(initial=0.0)) * 1.15)
    near = max(0.006, float(np.abs(after).max(initial=0.0)) * 1.5)
    layout = _layout("x (of 1000 units)", "y (of 1000 units)")
    common = {"gridcolor": GRID, "zerolinecolor": MUTED}
    layout |= {
        "xaxis": {"domain": [0, 0.46], "range": [-reach, reach], "title": {"text": "x, normalised"}, **common},
        "yaxis": {"range": [-reach, reach], "title": {"text": "y, normalised"}, "scaleanchor": "x", **common},
        "xaxis2": {"domain": [0.56, 1], "range": [-near, near], "title": {"text": "x, enlarged"}, **common},
        "yaxis2": {"anchor": "x2", "range": [-near, near], "scaleanchor": "x2", **common},
    }
    return {"data": traces, "layout": layout}


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "margin": {"l": 60, "r": 16, "t": 30, "b": 46}, "paper_bgcolor": "#fff", "plot_bgcolor": "#fff",
        "font": {"color": INK, "size": 13}, "legend": {"orientation": "h", "y": 1.12},
        "xaxis": {"title": {"text": x}, "gridcolor": GRID, "zeroline": False},
        "yaxis": {"title": {"text": y}, "gridcolor": GRID, "rangemode": "tozero"},
    }  # fmt: skip


def _uri(picture: NDArray[np.uint8], side: int) -> str:
    from PIL import Image as images

    image = images.fromarray(picture).resize((side, side), images.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
