"""The sections of an acquisition report that only an electron column has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.aberration import Aberration, PatchEstimate
from mm_autofocus.report.data import Chart, FieldRecord, Section
from mm_autofocus.report.sem import WD_TOLERANCE_UM, PatchView, crop_chart, patch_chart, residual_chart
from mm_autofocus.result import FocusResult
from mm_autofocus.strategy import Image

PATCH_VIEWS = 4
View = tuple[Image | None, Image | None]
"""Frame before and after a run."""
Path3 = NDArray[np.float64]
"""True aberration before and after each iteration, shape (iterations + 1, 3)."""


def column_sections(
    fields: Sequence[FieldRecord],
    results: Sequence[FocusResult],
    paths: Sequence[Path3],
    views: Sequence[View],
    dwell_ns: float,
) -> list[Section]:
    """Return what the report shows of working distance and stigmators.

    Parameters
    ----------
    fields, results
        As in the report; ``result_index`` of a field counts among the results.
    paths
        Of each result, where the truth is known (empty array where it is not).
    views
        Of each result.
    dwell_ns
        Dwell time of the views' frames.
    """
    sections = []
    known = [path for path in paths if len(path)]
    if known:
        pairs = float(np.mean([len(path) - 1 for path in known]))
        chart = Chart(
            name="residuals", title="Residual by iteration, every position", kind="wide",
            caption="Thin: single positions. Bold: their mean. Shaded: within 1 µm and 0.25 a.u. Left the working "
            "distance, right the worse stigmator.",
            figure=residual_chart({"mean of all positions": known}),
        )  # fmt: skip
        lead = (
            "How far working distance and stigmators truly were from their best values, before (0) and after each "
            f"pair of frames; {pairs:.1f} pairs a position. The strategy never sees these numbers."
        )
        header, rows = _residual_table(fields, results, paths)
        sections.append(
            Section(
                name="trajectories", title="How the column came into focus", lead=lead, header=header, rows=rows,
                charts=[chart],
            )
        )  # fmt: skip
    crops = [
        (result.label or f"run {i + 1}", *view)
        for i, (result, view) in enumerate(zip(results, views, strict=False))
        if view[0] is not None
    ]
    if crops:
        chart = Chart(
            name="crops", title="Before and after", kind="wide", figure=crop_chart(crops),
            caption=f"256 x 256 pixels of the frames that were used for focusing, {dwell_ns:g} ns a pixel, each "
            "stretched to its own grey scale.",
        )  # fmt: skip
        sections.append(Section(name="frames", title="What it looks like", charts=[chart]))
    patched = _patch_views(results, views)
    if patched:
        charts = [
            Chart(name=f"patches{i}", title=view.title, figure=patch_chart(view), kind="chart", caption="")
            for i, view in enumerate(patched)
        ]
        lead = (
            "The frame that a run began with. Dark: patches that counted for little in the first estimate, such as the "
            "empty resin of a blood vessel. Hover for what a patch said by itself."
        )
        sections.append(Section(name="patches", title="Where the answer came from", lead=lead, charts=charts))
    return sections


def _patch_views(results: Sequence[FocusResult], views: Sequence[View]) -> list[PatchView]:
    """Return the frames whose patches counted most unequally."""
    found = []
    for result, (image, _) in zip(results, views, strict=False):
        records = result.details.get("patches") or []
        if image is None or len(records) < 2:
            continue
        patches = read_patches(records)
        weights = np.array([p.weight for p in patches])
        found.append((float(weights.std() / max(weights.mean(), 1e-9)), PatchView(result.label or "", image, patches)))
    found.sort(key=lambda item: -item[0])
    return [view for _, view in found[:PATCH_VIEWS]]


def read_patches(records: Sequence[Mapping[str, float]]) -> list[PatchEstimate]:
    """Return patches from what a strategy keeps of them in its details."""
    return [
        PatchEstimate(
            int(p["x"]), int(p["y"]), int(p["size"]), Aberration(p["defocus_um"], p["stig_x"], p["stig_y"]),
            float(p["weight"]),
        )
        for p in records
    ]  # fmt: skip


def _residual_table(
    fields: Sequence[FieldRecord], results: Sequence[FocusResult], paths: Sequence[Path3]
) -> tuple[list[str], list[list[str]]]:
    header = [
        "Position", "Start: wd, µm", "stig x, y, a.u.", "End: wd, µm", "stig x, y, a.u.", "In focus", "Confidence",
        "Outcome", "Frames", "Dose, e/nm²",
    ]  # fmt: skip
    rows = []
    for record in fields:
        if record.result_index is None or record.error_um is None or not len(paths[record.result_index]):
            continue
        result, start = results[record.result_index], paths[record.result_index][0]
        end = [error for error, _ in record.others.values()]
        rows.append(
            [
                record.label, _signed(start[0]), ", ".join(_signed(v) for v in start[1:]), _signed(record.error_um),
                ", ".join(_signed(v) for v in end), "yes" if record.sharp(WD_TOLERANCE_UM) else "no",
                f"{result.confidence:.2f}", result.status.value.replace("_", " "), str(result.images),
                f"{result.dose:.0f}",
            ]
        )  # fmt: skip
    return header, rows


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
