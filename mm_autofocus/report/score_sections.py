"""The sections of an acquisition report that only focusing by scores of single images has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mm_autofocus.estimators.focus_score import score_of_blur
from mm_autofocus.report.data import Chart, FieldRecord, Section
from mm_autofocus.report.plots import BAND, GOOD, MUTED, WARN, Figure, axis, chart, plain, with_legend
from mm_autofocus.report.sem import crop_chart
from mm_autofocus.result import FocusResult
from mm_autofocus.strategy import Image

View = tuple[Image | None, Image | None]
"""Frame before and after a run."""

_COLOURS = (GOOD, WARN, "#6a4c93", "#b8860b", "#3b7a3b", "#7a7a7a", "#c2185b", "#0072b2")
_CURVE = 161
_SIDE_PX = 240


def score_sections(
    fields: Sequence[FieldRecord],
    results: Sequence[FocusResult],
    views: Sequence[View],
    *,
    depth_um: float,
    pixel_um: float,
    convergence_mrad: float,
    dwell_ns: float,
) -> list[Section]:
    """Return what the report shows of scores over working distance.

    Parameters
    ----------
    fields, results
        As in the report; ``result_index`` of a field counts among the results.
    views
        Of each result.
    depth_um
        Full width of working distance that counts as in focus.
    pixel_um, convergence_mrad
        Of the frames and the beam, for the curve that scores would follow.
    dwell_ns
        Dwell time of the views' frames.
    """
    known = [f for f in fields if f.result_index is not None and f.truth_z is not None]
    runs = [(f, results[f.result_index]) for f in known if f.result_index is not None]
    sections = []
    if runs:
        charts = [
            Chart(
                name="scores", title="Score against working distance", kind="wide",
                caption="Every frame of every run, from the true best working distance of its place. Dashed: what the "
                "score means, the rms blur against what the magnification can resolve. Shaded: in focus.",
                figure=_score_chart(runs, depth_um, pixel_um, convergence_mrad),
            ),
            Chart(
                name="approach", title="Distance from focus, frame by frame", kind="wide",
                caption="True distance of each frame of a run, one line a position. Shaded: in focus. A run looks to "
                "either side of the peak and goes to the middle in the end.",
                figure=_approach_chart(runs, depth_um),
            ),
        ]  # fmt: skip
        frames = float(np.mean([result.images for _, result in runs]))
        lead = (
            f"One network scores each frame from 0 to 10, a controller turns the working distance: {frames:.1f} frames "
            "a position, the check at the end included. The strategy never sees the true distances."
        )
        header, rows = _table(runs, depth_um)
        sections.append(
            Section(
                name="scores", title="How scores led to the focus", lead=lead, header=header, rows=rows, charts=charts
            )
        )
    crops = [
        (result.label or f"run {i + 1}", *view)
        for i, (result, view) in enumerate(zip(results, views, strict=False))
        if view[0] is not None
    ]
    if crops:
        chart = Chart(
            name="crops", title="Before and after", kind="wide", figure=crop_chart(crops, _SIDE_PX),
            caption=f"{_SIDE_PX} x {_SIDE_PX} pixels of the frames that were used for focusing, {dwell_ns:g} ns a "
            "pixel, each stretched to its own grey scale.",
        )  # fmt: skip
        sections.append(Section(name="frames", title="What it looks like", charts=[chart]))
    return sections


def _seen(field: FieldRecord, result: FocusResult) -> tuple[list[float], list[float]]:
    """Return distance from focus, µm, and score of each frame that was searched with."""
    best = field.truth_z if field.truth_z is not None else math.nan
    searched = [s for s in result.samples if s.purpose != "verify" and s.score is not None]
    return [s.knobs[result.knob] - best for s in searched], [float(s.score or 0.0) for s in searched]


def _score_chart(
    runs: Sequence[tuple[FieldRecord, FocusResult]], depth_um: float, pixel_um: float, convergence_mrad: float
) -> Figure:
    traces = []
    farthest = depth_um
    for number, (field, result) in enumerate(runs):
        away, scores = _seen(field, result)
        farthest = max(farthest, *(abs(v) for v in away))
        traces.append({
            "type": "scatter", "mode": "markers", "name": field.label, "x": plain(away), "y": plain(scores),
            "marker": {"size": 7, "color": _COLOURS[number % len(_COLOURS)], "opacity": 0.75},
            "hovertemplate": f"{field.label}: %{{x:.1f}} µm, %{{y:.2f}}<extra></extra>",
        })  # fmt: skip
    at = np.linspace(-1.08 * farthest, 1.08 * farthest, _CURVE)
    blur = np.abs(at) * convergence_mrad * 1e-3 / math.sqrt(2.0)
    traces.append({
        "type": "scatter", "mode": "lines", "name": "meaning of the score", "hoverinfo": "skip",
        "x": plain(at), "y": plain(score_of_blur(float(r), pixel_um) for r in blur),
        "line": {"color": MUTED, "dash": "dash", "width": 1.4},
    })  # fmt: skip
    figure = chart(traces, axis("working distance less the best one, µm"), axis("score", range=[-0.3, 10.4]))
    figure["layout"]["shapes"] = [_band("x", depth_um)]
    return with_legend(figure)


def _approach_chart(runs: Sequence[tuple[FieldRecord, FocusResult]], depth_um: float) -> Figure:
    traces = []
    for number, (field, result) in enumerate(runs):
        away, _ = _seen(field, result)
        if field.error_um is not None:
            away.append(field.error_um)
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": field.label, "x": list(range(1, len(away) + 1)),
            "y": plain(away), "line": {"color": _COLOURS[number % len(_COLOURS)], "width": 1.4}, "marker": {"size": 5},
            "hovertemplate": f"{field.label}, frame %{{x}}: %{{y:.1f}} µm<extra></extra>",
        })  # fmt: skip
    figure = chart(traces, axis("frame; the last one is the image", dtick=1), axis("distance from focus, µm"))
    figure["layout"]["shapes"] = [_band("y", depth_um)]
    return with_legend(figure)


def _band(along: str, depth_um: float) -> dict[str, object]:
    """Return the shaded depth of field around 0 on one axis, over the whole of the other."""
    other = "y" if along == "x" else "x"
    return {
        "type": "rect", "fillcolor": BAND, "line": {"width": 0}, "layer": "below", f"{along}ref": along,
        f"{other}ref": f"{other} domain", f"{along}0": -depth_um / 2.0, f"{along}1": depth_um / 2.0,
        f"{other}0": 0, f"{other}1": 1,
    }  # fmt: skip


def _table(runs: Sequence[tuple[FieldRecord, FocusResult]], depth_um: float) -> tuple[list[str], list[list[str]]]:
    header = [
        "Position", "Start, µm", "score", "End, µm", "score", "In focus", "Confidence", "Outcome", "Frames",
        "Dose, e/nm²",
    ]  # fmt: skip
    rows = []
    for field, result in runs:
        away, scores = _seen(field, result)
        if not away or field.error_um is None:
            continue
        end = result.score if result.score is not None else max(scores)
        rows.append(
            [
                field.label, _signed(away[0]), f"{scores[0]:.1f}", _signed(field.error_um), f"{end:.1f}",
                "yes" if field.sharp(depth_um / 2.0) else "no", f"{result.confidence:.2f}",
                result.status.value.replace("_", " "), str(result.images), f"{result.dose:.2g}",
            ]
        )  # fmt: skip
    return header, rows


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
