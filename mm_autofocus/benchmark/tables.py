"""Sums up the records of a bench: rows with intervals, as data, as Markdown, and as charts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from mm_autofocus.benchmark.intervals import wilson
from mm_autofocus.benchmark.runner import Record
from mm_autofocus.report.data import Chart
from mm_autofocus.report.plots import GOOD, MUTED, WARN, Figure, axis, chart, plain

ALL = "all cases"
SURE = 0.95
"""A result with at least this confidence is one that a user will not look at again."""


class Row(BaseModel):
    """One method on one group of cases.

    Attributes
    ----------
    runs, success
        How many cases, and how many of them did what the case asks (see `Outcome.success`).
    low, high
        95 % Wilson interval of the success rate.
    error_median, error_95, worst
        Of the absolute error, over the cases that have a focus to find; None without such.
    unit
        Of the errors; depths of field where the cases have different ones.
    knobs
        Median, 95 % and worst of the absolute error of each knob, where there are several; by name and unit.
    images, dose, compute_seconds, instrument_seconds
        Mean per case.
    sure, sure_wrong
        How many results were given as converged with a confidence of `SURE` or more, and how many of those were wrong.
    wrong
        How many converged results were wrong.
    """

    model_config = ConfigDict(frozen=True)

    group: str
    method: str
    peer: bool
    runs: int
    success: int
    low: float
    high: float
    error_median: float | None
    error_95: float | None
    worst: float | None
    unit: str
    knobs: dict[str, tuple[float, float, float]] = {}
    images: float
    dose: float
    compute_seconds: float
    instrument_seconds: float
    sure: int
    sure_wrong: int
    wrong: int

    @property
    def rate(self) -> float:
        """Fraction of successes."""
        return self.success / self.runs


def summarise(records: Sequence[Record], totals: Mapping[str, Collection[str]] | None = None) -> list[Row]:
    """Return a row for each group and method in the order of the records.

    Parameters
    ----------
    records
        What was measured.
    totals
        Rows to put first, over several groups: a name, and the groups. None: one over all of them.
    """
    names = list(dict.fromkeys(record.group for record in records))
    if totals is None:
        totals = {ALL: names}
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        for group in (*(total for total, parts in totals.items() if record.group in parts), record.group):
            groups.setdefault((group, record.method), []).append(record)
    order = [*totals, *names]
    return [_row(*key, groups[key]) for key in sorted(groups, key=lambda key: order.index(key[0]))]


def _row(group: str, method: str, records: Sequence[Record]) -> Row:
    units = {r.unit for r in records}
    unit = units.pop() if len(units) == 1 else "depths of field"
    errors = np.abs([r.error / (r.depth if unit == "depths of field" else 1.0) for r in records if r.error is not None])
    success = sum(r.success for r in records)
    low, high = wilson(success, len(records))
    sure = [r for r in records if r.converged and r.confidence is not None and r.confidence >= SURE]
    knobs = dict.fromkeys(name for r in records for name in r.errors)
    off = {name: np.abs([r.errors[name] for r in records if name in r.errors]) for name in knobs}

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return Row(
        group=group, method=method, peer=records[0].peer, runs=len(records), success=success, low=low, high=high,
        error_median=float(np.median(errors)) if errors.size else None,
        error_95=float(np.quantile(errors, 0.95)) if errors.size else None,
        worst=float(errors.max()) if errors.size else None,
        unit=unit,
        knobs={
            name: (float(np.median(each)), float(np.quantile(each, 0.95)), float(each.max()))
            for name, each in off.items()
        },
        images=mean(r.images for r in records), dose=mean(r.dose for r in records),
        compute_seconds=mean(r.compute_seconds for r in records),
        instrument_seconds=mean(r.instrument_seconds for r in records),
        sure=len(sure), sure_wrong=sum(not r.success for r in sure),
        wrong=sum(r.converged and not r.success for r in records),
    )  # fmt: skip


HEADER = (
    "method", "success", "95 % interval", "error median", "95 %", "worst", "images", "dose", "compute s",
    "instrument s", "sure and wrong", "converged and wrong",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """Return a row as text, in the order of `HEADER`."""

    def error(which: int, value: float | None) -> str:
        if row.knobs:
            return "; ".join(f"{each[which]:.2f}" for each in row.knobs.values())
        return "-" if value is None else f"{value:.2f}"

    return [
        row.method, f"{row.success} of {row.runs}", f"{row.low:.0%} to {row.high:.0%}", error(0, row.error_median),
        error(1, row.error_95), error(2, row.worst), f"{row.images:.1f}",
        f"{row.dose:.0f}" if row.dose >= 100 else f"{row.dose:.3g}" if row.dose else "-", f"{row.compute_seconds:.2f}",
        f"{row.instrument_seconds:.2f}" if row.instrument_seconds else "-",
        f"{row.sure_wrong} of {row.sure}" if row.sure else "-", str(row.wrong),
    ]  # fmt: skip


def unit_of(rows: Sequence[Row]) -> str:
    """Return in what the errors of these rows are."""
    return next(("; ".join(row.knobs) for row in rows if row.knobs), rows[0].unit)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as one Markdown table for each group."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        chosen = [row for row in rows if row.group == group]
        lines = [f"### {group}", "", f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in chosen]
        lines += ["", f"Errors in {unit_of(chosen)}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_COLOURS = (GOOD, WARN, "#e69f00", "#cc79a7", "#0072b2", "#56b4e9", "#7a7a7a", "#111111", "#009e73", "#b2182b")
"""One for each method, the same in every chart."""


def _legend_above(figure: Figure) -> None:
    """Put the legend above the plot: below it are the long names of the groups."""
    figure["layout"] |= {
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom", "font": {"size": 12}},
        "margin": {**figure["layout"]["margin"], "t": 48},
    }


def success_chart(rows: Sequence[Row]) -> Chart:
    """Success rates with their intervals, a column of points for each group."""
    groups = list(dict.fromkeys(row.group for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    traces: list[dict[str, Any]] = []
    for number, method in enumerate(methods):
        chosen = [row for row in rows if row.method == method]
        shift = (number - (len(methods) - 1) / 2) * 0.8 / len(methods)
        colour = _COLOURS[number % len(_COLOURS)]
        traces.append({
            "type": "scatter", "mode": "markers", "name": method, "x": [groups.index(r.group) + shift for r in chosen],
            "y": plain(r.rate for r in chosen), "marker": {"color": colour, "size": 7},
            "error_y": {
                "type": "data", "array": plain(r.high - r.rate for r in chosen),
                "arrayminus": plain(r.rate - r.low for r in chosen), "color": colour, "thickness": 1, "width": 2,
            },
            "text": [f"{r.group}: {r.success} of {r.runs}" for r in chosen],
            "hovertemplate": "%{text}<extra>" + method + "</extra>",
        })  # fmt: skip
    figure = chart(
        traces,
        axis("", tickvals=list(range(len(groups))), ticktext=groups, showgrid=False),
        axis("success rate", range=[-0.03, 1.03], tickformat=".0%"),
    )
    _legend_above(figure)
    return Chart(
        name="success", title="Success rate by group", caption="Bars: 95 % Wilson interval.", figure=figure, kind="wide"
    )


def error_chart(records: Sequence[Record]) -> Chart | None:
    """Cumulative distribution of the absolute error in half depths of field; None when no case has a truth."""
    known = [r for r in records if r.error is not None and r.depth > 0]
    if not known:
        return None
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "x": [1, 1], "y": [0, 1], "hoverinfo": "skip", "showlegend": False,
        "line": {"color": MUTED, "dash": "dot", "width": 1},
    }]  # fmt: skip
    for number, method in enumerate(dict.fromkeys(r.method for r in known)):
        errors = np.sort([max(2 * abs(r.error or 0.0) / r.depth, 1e-2) for r in known if r.method == method])
        traces.append({
            "type": "scatter", "mode": "lines", "name": method, "x": plain(errors),
            "y": plain(np.arange(1, len(errors) + 1) / len(errors)),
            "line": {"shape": "hv", "width": 1.6, "color": _COLOURS[number % len(_COLOURS)]},
            "hovertemplate": "%{y:.0%} within %{x:.2f}<extra>" + method + "</extra>",
        })  # fmt: skip
    figure = chart(
        traces, axis("|error|, half depths of field", type="log"), axis("share of the cases", tickformat=".0%")
    )
    _legend_above(figure)
    return Chart(
        name="errors", title="How far off", figure=figure, kind="wide",
        caption="Share of the cases with a focus to find that end within this distance. Dotted: half the depth of "
        "field, what counts as in focus.",
    )  # fmt: skip


def cost_chart(rows: Sequence[Row], group: str = ALL) -> Chart:
    """Success rate against images, over one group."""
    chosen = [row for row in rows if row.group == group]
    figure = chart(
        [{
            "type": "scatter", "mode": "markers+text", "x": plain(r.images for r in chosen),
            "y": plain(r.rate for r in chosen), "text": [r.method for r in chosen], "textposition": "top center",
            "marker": {"color": [MUTED if r.peer else GOOD for r in chosen], "size": 11},
            "hovertemplate": "%{text}: %{y:.0%} with %{x:.1f} images<extra></extra>", "cliponaxis": False,
        }],
        axis("images a run", rangemode="tozero"), axis("success rate", tickformat=".0%"),
    )  # fmt: skip
    return Chart(
        name="cost", title="What success costs", figure=figure, kind="wide",
        caption="Mean images of a run, start and verifying frames included. Grey: peers.",
    )  # fmt: skip
