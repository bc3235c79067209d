"""Whether stated confidence can be believed: for each method the share that was right, against what it stated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from mm_autofocus.benchmark.intervals import wilson
from mm_autofocus.benchmark.runner import Record
from mm_autofocus.benchmark.tables import SURE
from mm_autofocus.report.data import Chart, Section
from mm_autofocus.report.plots import GOOD, MUTED, axis, chart, plain

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
"""Bins of the stated confidence; finer where it matters."""
MUST = 0.93
"""Share of the results with a confidence of `SURE` or more that must be right."""


class Bin(BaseModel):
    """Results whose stated confidence lies between two edges."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    runs: int
    right: int
    stated: float
    """Mean stated confidence."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share that was right."""
        return wilson(self.right, self.runs)


class Reliability(BaseModel):
    """One method's confidence against what it was worth.

    Attributes
    ----------
    bins
        Those that hold results.
    sure, sure_right
        Results with a confidence of `SURE` or more, and how many of them were within the depth of field.
    expected_error
        Mean distance of stated from actual, weighted by the results (expected calibration error).
    brier
        Mean square of confidence minus outcome (Brier, Mon. Weather Rev. 78 (1950) 1).
    """

    model_config = ConfigDict(frozen=True)

    method: str
    peer: bool
    bins: list[Bin]
    sure: int
    sure_right: int
    expected_error: float
    brier: float

    @property
    def met(self) -> bool | None:
        """Whether at least `MUST` of the sure results were right; None when none was sure."""
        return None if not self.sure else self.sure_right >= MUST * self.sure


def reliability(records: Sequence[Record]) -> list[Reliability]:
    """Judge the stated confidence of each method; one that states none is left out.

    Only results that were given as a focus count (converged, or accepted with little confidence): no_signal and
    at_limit state that there is none. A converged result where there is nothing to focus on counts as wrong.
    """
    found = []
    for method in dict.fromkeys(record.method for record in records):
        given = [r for r in records if r.method == method and r.status in ("converged", "low_confidence")]
        given = [r for r in given if r.confidence is not None]
        if not given:
            continue
        right = [_right(r) for r in given]
        stated = np.array([r.confidence for r in given], dtype=float)
        which = np.clip(np.searchsorted(EDGES, stated, side="right") - 1, 0, len(EDGES) - 2)
        bins = [
            Bin(
                low=EDGES[i], high=EDGES[i + 1], runs=int((which == i).sum()),
                right=int(np.array(right)[which == i].sum()), stated=float(stated[which == i].mean()),
            )
            for i in range(len(EDGES) - 1) if (which == i).any()
        ]  # fmt: skip
        off = sum(b.runs * abs(b.stated - b.right / b.runs) for b in bins) / len(given)
        sure = stated >= SURE
        found.append(
            Reliability(
                method=method, peer=given[0].peer, bins=bins, sure=int(sure.sum()),
                sure_right=int(np.array(right)[sure].sum()), expected_error=float(off),
                brier=float(np.mean((stated - np.array(right)) ** 2)),
            )
        )  # fmt: skip
    return found


def _right(record: Record) -> bool:
    return record.error is not None and abs(record.error) <= record.depth / 2


def reliability_section(found: Sequence[Reliability]) -> Section:
    """Return the table and a diagram for each method."""
    rows = []
    for one in found:
        low, high = wilson(one.sure_right, one.sure)
        share = f"{one.sure_right} of {one.sure} ({low:.0%} to {high:.0%})" if one.sure else "-"
        verdict = {True: "met", False: "MISSED", None: "-"}[one.met]
        rows.append([one.method, share, verdict, f"{one.expected_error:.3f}", f"{one.brier:.3f}"])
    return Section(
        name="reliability",
        title="Can the confidence be believed?",
        lead=f"Of the results given with a confidence of {SURE:g} or more, at least {MUST:.0%} must be within the "
        "depth of field. Methods that never state one are left out.",
        header=["method", f"right among those >= {SURE:g}", f"must {MUST:.0%}", "calibration error", "Brier score"],
        rows=rows,
        charts=[_chart(number, one) for number, one in enumerate(found)],
    )


def _chart(number: int, one: Reliability) -> Chart:
    share = [b.right / b.runs for b in one.bins]
    figure = chart(
        [{
            "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
            "line": {"color": MUTED, "dash": "dot", "width": 1},
        }, {
            "type": "scatter", "mode": "markers", "x": plain(b.stated for b in one.bins), "y": plain(share),
            "text": [f"{b.right} of {b.runs}" for b in one.bins], "cliponaxis": False,
            "marker": {"color": MUTED if one.peer else GOOD, "size": 9},
            "error_y": {
                "type": "data", "array": plain(b.interval[1] - s for b, s in zip(one.bins, share, strict=True)),
                "arrayminus": plain(s - b.interval[0] for b, s in zip(one.bins, share, strict=True)),
                "color": MUTED if one.peer else GOOD, "thickness": 1.5,
            },
            "hovertemplate": "stated %{x:.2f}, right %{y:.2f} (%{text})<extra></extra>",
        }],
        axis("stated confidence", range=[-0.02, 1.02]), axis("share within the depth of field", range=[-0.03, 1.03]),
    )  # fmt: skip
    caption = "Bars: 95 % Wilson interval. On the dotted line, a stated 80 % is right in 80 % of the cases."
    return Chart(name=f"reliability-{number}", title=one.method, caption=caption, figure=figure)
