"""What an electron microscope's report shows beside the rest: residuals by iteration, patches on the image, crops.

After the figures of DeepFocus (Nat. Commun. 15, 948, 2024): 2 and 5 (residuals by iteration), 3 (patches and weights).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mm_autofocus.estimators.aberration import PatchEstimate
from mm_autofocus.report.plots import BAND, GOOD, INK, MUTED, WARN, Figure, axis, chart, plain, with_legend
from mm_autofocus.strategy import Image

WD_TOLERANCE_UM, STIG_TOLERANCE = 1.0, 0.25
"""Largest residual that counts as in focus (DeepFocus, Fig. 1b)."""

Residuals = Sequence[ArrayLike]
"""One array for each run: row k is (working distance µm, stig x, stig y a.u.) after iteration k, row 0 the start."""

_FLOOR = 0.005
"""Smallest residual drawn, µm and a.u."""
_FEW = 12
"""Up to so many patches have their weight written in them."""
_COLOURS = (GOOD, WARN, "#6a4c93", "#b8860b", "#3b7a3b", "#7a7a7a", "#c2185b", "#0072b2")
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True, slots=True)
class PatchView:
    """A frame with the patches that an estimator looked at."""

    title: str
    image: Image
    patches: Sequence[PatchEstimate]


def residual_chart(groups: Mapping[str, Residuals], *, single: bool = True) -> Figure:
    """Draw |residual| against iteration: working distance on the left, the larger of the stigmators on the right.

    Parameters
    ----------
    groups
        The runs of each method; one legend entry each.
    single
        Draw every run as a thin line too.
    """
    traces = []
    longest = 1
    for number, (name, runs) in enumerate(groups.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        tables = [np.abs(np.asarray(run, dtype=float)) for run in runs if np.size(run)]
        if not tables:
            continue
        longest = max(longest, *(len(table) for table in tables))
        for part, which in enumerate(("", "2")):
            of = [table[:, 0] if part == 0 else table[:, 1:].max(1) for table in tables]
            if single and len(of) > 1:
                xs: list[float | None] = []
                ys: list[float | None] = []
                for run in of:
                    xs += [*range(len(run)), None]
                    ys += [*np.maximum(run, _FLOOR).tolist(), None]
                traces.append({
                    "type": "scatter", "mode": "lines", "x": xs, "y": plain(ys), "xaxis": f"x{which}",
                    "yaxis": f"y{which}", "line": {"color": colour, "width": 0.8}, "opacity": 0.35,
                    "hoverinfo": "skip", "showlegend": False, "legendgroup": name,
                })  # fmt: skip
            steps = max(len(run) for run in of)
            mean = [float(np.mean([run[min(k, len(run) - 1)] for run in of])) for k in range(steps)]
            unit = "µm" if part == 0 else "a.u."
            traces.append({
                "type": "scatter", "mode": "lines+markers", "x": list(range(steps)), "name": name,
                "y": plain(max(value, _FLOOR) for value in mean), "xaxis": f"x{which}", "yaxis": f"y{which}",
                "legendgroup": name,
                "showlegend": part == 0, "line": {"color": colour, "width": 2.4, "dash": dash},
                "marker": {"size": 7, "color": colour},
                "hovertemplate": f"{name}, iteration %{{x}}: %{{y:.2f}} {unit}<extra></extra>",
            })  # fmt: skip
    log = {"type": "log", "tickvals": [0.01, 0.1, 1, 10], "ticktext": ["0.01", "0.1", "1", "10"]}
    steps_axis = {"range": [-0.15, longest - 0.85], "dtick": 1}
    figure = chart(
        traces,
        axis("iteration", domain=[0.0, 0.44], **steps_axis),
        axis("|residual| of wd, µm", **log),
    )
    figure["layout"]["xaxis2"] = axis("iteration", domain=[0.56, 1.0], anchor="y2", **steps_axis)
    figure["layout"]["yaxis2"] = axis("|residual| of stig, a.u.", anchor="x2", **log)
    figure["layout"]["shapes"] = [
        {
            "type": "rect", "xref": f"x{which} domain", "x0": 0, "x1": 1, "yref": f"y{which}", "y0": _FLOOR * 0.8,
            "y1": limit, "fillcolor": BAND, "line": {"width": 0}, "layer": "below",
        }
        for which, limit in (("", WD_TOLERANCE_UM), ("2", STIG_TOLERANCE))
    ]  # fmt: skip
    return with_legend(figure)


def patch_chart(view: PatchView, width_px: int = 640) -> Figure:
    """Draw a frame, darkened where patches counted for little; few patches have their weight written in them.

    Patches that overlap show their middles, as wide as they lie apart.
    """
    height, width = view.image.shape
    largest = max((patch.weight for patch in view.patches), default=1.0) or 1.0
    cells = [_cell(patch, view.patches) for patch in view.patches]
    few = len(view.patches) <= _FEW
    figure = chart(
        [{
            "type": "scatter", "mode": "text" if few else "markers", "hoverinfo": "text",
            "textfont": {"color": "#ffffff", "size": 13}, "marker": {"size": 24, "opacity": 0},
            "x": [x + w / 2 for x, _, w, _ in cells], "y": [y + h / 2 for _, y, _, h in cells],
            "text": [f"{p.weight:.2f}" for p in view.patches],
            "hovertext": [
                f"weight {p.weight:.3f}, wd {p.aberration.defocus_um:+.2f} µm, stig {p.aberration.stig_x:+.2f}, "
                f"{p.aberration.stig_y:+.2f}"
                for p in view.patches
            ],
        }],
        axis("", range=[0, width], showgrid=False, showticklabels=False, constrain="domain"),
        axis("", range=[height, 0], showgrid=False, showticklabels=False, scaleanchor="x", constrain="domain"),
    )  # fmt: skip
    figure["layout"] |= {
        "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
        "images": [_picture(view.image, (0, 0, width, height), width_px)],
        "shapes": [
            {
                "type": "rect", "x0": x, "x1": x + w, "y0": y, "y1": y + h, "layer": "above",
                "line": {"color": "rgba(255,176,0,0.9)", "width": 2 if few else 0.4},
                "fillcolor": f"rgba(8,20,32,{0.78 * (1 - patch.weight / largest):.3f})",
            }
            for patch, (x, y, w, h) in zip(view.patches, cells, strict=True)
        ],
    }  # fmt: skip
    return figure


def _cell(patch: PatchEstimate, patches: Sequence[PatchEstimate]) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the part of a patch that is its own on a regular grid."""
    columns, rows = sorted({p.x for p in patches}), sorted({p.y for p in patches})
    if len({(p.x, p.y) for p in patches}) != len(columns) * len(rows):  # no grid: places drawn at random
        return patch.x, patch.y, patch.size, patch.size
    left, right = _own(patch.x, patch.size, columns)
    top, bottom = _own(patch.y, patch.size, rows)
    return left, top, right - left, bottom - top


def _own(at: int, size: int, places: Sequence[int]) -> tuple[float, float]:
    """Return where a patch's own part begins and ends: half-way into what it shares with its neighbours."""
    number = places.index(at)
    begin, end = float(at), float(at + size)
    if number > 0:
        begin = max(begin, (at + places[number - 1] + size) / 2)
    if number + 1 < len(places):
        end = min(end, (at + size + places[number + 1]) / 2)
    return begin, end


def crop_chart(rows: Sequence[tuple[str, Image | None, Image | None]], side_px: int = 256, columns: int = 6) -> Figure:
    """Draw crops, where there is most to see, before (above) and after (below) focusing, position by position.

    Parameters
    ----------
    rows
        Label, frame before, frame after; of at most ``columns`` positions, spread over all.
    side_px
        Side of a crop, in pixels of the frame.
    columns
        See above.
    """
    if len(rows) > columns:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, columns).round().astype(int)]
    pictures, notes = [], []
    for column, (label, before, after) in enumerate(rows):
        notes.append(_label(label, column + 0.5, 2.1, "center"))
        shown = after if after is not None else before
        corner = _richest(shown, side_px) if shown is not None else (0, 0)
        for level, image in ((1, before), (0, after)):
            if image is not None:
                box = column + 0.02, level + 0.98, 0.96, 0.96
                pictures.append(_picture(_cut(image, corner, side_px), box, side_px))
    notes += [_label("before", -0.06, 1.5, "right"), _label("after", -0.06, 0.5, "right")]
    figure = chart(
        [{"type": "scatter", "mode": "markers", "x": [0], "y": [0], "opacity": 0, "hoverinfo": "skip"}],
        axis("", range=[-0.5, max(len(rows), 4)], visible=False),
        axis("", range=[0, 2.25], visible=False, scaleanchor="x"),
    )
    figure["layout"] |= {"images": pictures, "annotations": notes, "margin": {"l": 4, "r": 4, "t": 4, "b": 4}}
    return figure


def interval_chart(rows: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str, limit: float) -> Figure:
    """Draw a measure of every method with its 95 % interval, one marker for each condition; dashes: the target.

    Parameters
    ----------
    rows
        By condition and by method: value, lower and upper end.
    title
        Of the axis.
    limit
        The target.
    """
    traces = []
    for number, (condition, methods) in enumerate(rows.items()):
        values = list(methods.values())
        traces.append({
            "type": "scatter", "mode": "markers", "name": condition, "x": list(methods),
            "y": plain(v for v, *_ in values),
            "marker": {"size": 9, "color": _COLOURS[number % len(_COLOURS)]},
            "error_y": {
                "type": "data", "array": plain(high - v for v, _, high in values),
                "arrayminus": plain(v - low for v, low, _ in values), "thickness": 1.4, "width": 3,
            },
        })  # fmt: skip
    figure = chart(traces, axis("", type="category", showgrid=False), axis(title, type="log", dtick=1))
    figure["layout"]["scattermode"] = "group"
    figure["layout"]["shapes"] = [{
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit,
        "line": {"color": INK, "dash": "dash", "width": 1},
    }]  # fmt: skip
    return with_legend(figure, -0.3)


def _label(text: str, x: float, y: float, anchor: str) -> dict[str, object]:
    font = {"size": 12, "color": MUTED}
    return {"text": text, "x": x, "y": y, "xanchor": anchor, "yanchor": "middle", "showarrow": False, "font": font}


def _richest(image: Image, side: int, coarse: int = 8) -> tuple[int, int]:
    """Return (left, top) of the crop, on a grid, with the largest contrast of its means of ``coarse`` pixels."""
    height, width = image.shape
    best, found = -1.0, (0, 0)
    for top in range(0, max(height - side, 0) + 1, max(side // 2, 1)):
        for left in range(0, max(width - side, 0) + 1, max(side // 2, 1)):
            part = np.asarray(_cut(image, (left, top), side), dtype=np.float32)
            h, w = (n // coarse for n in part.shape)
            means = part[: h * coarse, : w * coarse].reshape(h, coarse, w, coarse).mean((1, 3))
            contrast = float(np.abs(np.diff(means, axis=0)).mean() + np.abs(np.diff(means, axis=1)).mean())
            if contrast > best:
                best, found = contrast, (left, top)
    return found


def _cut(image: Image, corner: tuple[int, int], side: int) -> Image:
    left, top = corner
    return image[top : top + side, left : left + side]


def _picture(image: Image, box: tuple[float, float, float, float], width_px: int) -> dict[str, object]:
    """Return an image as plotly wants it: ``box`` is (left, top, width, height) in the axes' units."""
    x, y, width, height = box
    return {
        "source": data_uri(image, width_px), "xref": "x", "yref": "y", "x": x, "y": y, "sizex": width, "sizey": height,
        "sizing": "stretch", "layer": "below",
    }  # fmt: skip


def data_uri(image: Image, width_px: int) -> str:
    """Return a picture as a data URI: stretched between its 0.5th and 99.5th percentile, at most so many px wide."""
    from PIL import Image as images

    pixels = np.asarray(image, dtype=np.float32)
    low, high = np.percentile(pixels, (0.5, 99.5))
    grey: NDArray[np.uint8] = ((pixels - low) / max(high - low, 1e-6) * 255).clip(0, 255).astype(np.uint8)
    made = images.fromarray(grey)
    if made.width > width_px:
        made = made.resize((width_px, round(made.height * width_px / made.width)), images.Resampling.BOX)
    buffer = io.BytesIO()
    made.save(buffer, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
