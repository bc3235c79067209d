"""The tables of `bench sem` as Markdown, and with the paper's figures as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mm_autofocus.benchmark.runner import Record
from mm_autofocus.report.data import Chart, Section
from mm_autofocus.report.outcomes import Table, outcome_sections, outcome_tables
from mm_autofocus.report.sem import PatchView, interval_chart, patch_chart, residual_chart
from mm_autofocus.report.sem_sections import read_patches
from mm_autofocus.strategy import Image

MUSTS: dict[str, str] = {
    "pairs": "must: 1.2 µm / 0.30 a.u. at 20 e-/px; ambitious 0.5 / 0.12",
    "loops": "must: 0.35 µm and 95 % within after 2 iterations at 20 e-/px; by iteration 3 at 5 e-/px, 5 at ±20 %",
}
PAIR_MUST_UM = 1.2
RUNS = (
    "All closed loops above. Success: converged within 1 µm and 0.25 a.u. The second error is that of the worse "
    "stigmator. Dose: electrons that land, per nm². Instrument: seconds of its simulated clock."
)
VESSEL = "An image with a blood vessel, from 30 µm, +6, -6 a.u. (Fig. 3)"


def tables(outcome: dict[str, Any]) -> Iterator[Table]:
    """Yield every table of an outcome of `mm_autofocus.benchmark.sem_table.Bench.measure`."""
    names = outcome["names"]
    yield _pairs(outcome["pairs"], names)
    for condition, methods in outcome["loops"].items():
        yield _loop(f"Closed loop, {condition}", methods, names)
    for group, methods in outcome["far"].items():
        yield _loop(_far(group), methods, names)
    yield _loop(VESSEL, outcome["vessel"], names)
    yield _locations(outcome["locations"], names)
    if outcome["against"]:
        yield _against(outcome["against"], names)
    if outcome["score"]:
        yield _score(outcome["score"])
    if outcome["recalibration"]:
        yield _recalibration(outcome["recalibration"])
    yield _speed(outcome["speed"])


def markdown(outcome: dict[str, Any], records: Sequence[Record] = ()) -> str:
    """Return all tables as Markdown, with what the runs came to where their records are given."""
    lines = []
    for title, remark, header, rows in [*tables(outcome), *outcome_tables(records, RUNS)]:
        lines += [f"### {title}", "", *([remark, ""] if remark else [])]
        lines += [_line(header), f"|{'---|' * len(header)}", *map(_line, rows), ""]
    lines += [*notes(outcome), ""]
    return "\n".join(lines)


def sections(outcome: dict[str, Any], records: Sequence[Record] = (), vessel: Image | None = None) -> list[Section]:
    """Return every table with the figures that belong to it, for a page.

    Parameters
    ----------
    outcome
        See `tables`.
    records
        All closed loops, for what they came to and for the reliability diagrams.
    vessel
        Frame with the blood vessel, to draw the patches' weights on.
    """
    drawn = _charts(outcome, outcome["names"])
    if vessel is not None:
        for key, cell in outcome["vessel"].items():
            if cell["patches"]:
                title = f"What counted: {outcome['names'][key]}"
                figure = patch_chart(PatchView(title, vessel, read_patches(cell["patches"])))
                caption = "Dark: patches that counted for little in the first pair."
                chart = Chart(name=f"vessel-{key}", title=title, caption=caption, figure=figure)
                drawn[VESSEL].append(chart)
    made = [
        Section(name=f"table-{i}", title=title, lead=remark, header=header, rows=rows, charts=drawn.get(title, []))
        for i, (title, remark, header, rows) in enumerate(tables(outcome))
    ]
    return made + outcome_sections(records, RUNS)


def headline(outcome: dict[str, Any]) -> str:
    """Return the result in one sentence: the default's single pair and closed loop at 20 e-/px."""
    pair = outcome["pairs"].get("20 e-/px", {}).get("spectral")
    loop = outcome["loops"].get("20 e-/px", {}).get("spectral")
    if pair is None or loop is None:
        return "Methods side by side; ours was left out."
    two = loop["after"][min(2, len(loop["after"]) - 1)]
    return (
        f"At 20 e-/px ours is off by {pair['wd'][0]:.2f} µm and {pair['stig'][0]:.2f} a.u. after one pair; after two "
        f"iterations by {two['wd'][0]:.2f} µm, {two['within'][0]:.0%} within 1 µm and 0.25 a.u."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------- tables
def _pairs(pairs: dict[str, Any], names: dict[str, str]) -> Table:
    header = ["Method", "pairs"]
    for dose in pairs:
        header += [f"wd µm, {dose}", f"stig a.u., {dose}"]
    keys = list(dict.fromkeys(key for methods in pairs.values() for key in methods))
    rows = []
    for key in keys:
        row = [names[key], "/".join(str(len(m[key]["errors"])) if key in m else "–" for m in pairs.values())]
        for methods in pairs.values():
            cell = methods.get(key)
            row += (
                [f"{_with_interval(cell['wd'])}; {cell['median_wd']:.2f}", _with_interval(cell["stig"])]
                if cell
                else ["–", "–"]
            )
        rows.append(row)
    remark = (
        "MAE (95 % interval), and the median for the working distance, of pairs of 1024 x 768 within ±20 µm and "
        f"±5 a.u., the first so many of the same ones; {MUSTS['pairs']}."
    )
    return "One pair", remark, header, rows


def _loop(title: str, methods: dict[str, Any], names: dict[str, str]) -> Table:
    most = max((len(cell["after"]) for cell in methods.values()), default=1) - 1
    header = ["Method", "runs"]
    header += [f"after {k}: wd µm (within)" for k in range(1, most + 1)]
    header += ["within at the end", "iterations", "frames", "compute, s"]
    rows = []
    for key, cell in methods.items():
        after = [f"{step['wd'][0]:.2f} ({step['within'][0]:.0%})" for step in cell["after"][1:]]
        reached = cell["iterations"]
        rows.append(
            [
                names.get(key, key), str(len(cell["runs"])), *after, _share(cell["after"][-1]["within"]),
                f"{reached[0]:.1f}" if reached else "–", f"{cell['frames']:g}", f"{cell['seconds']:.2f}",
            ]
        )  # fmt: skip
    remark = (
        "Mean |residual| of the working distance, and in brackets the share within 1 µm and 0.25 a.u.; iterations: "
        f"mean of the runs that came within for good. {MUSTS['loops'].capitalize()}."
    )
    return title, remark, header, rows


def _far(group: str) -> str:
    return f"{group[0].upper()}{group[1:]} (Fig. 2)"


def _locations(cells: dict[str, Any], names: dict[str, str]) -> Table:
    title, remark, header, rows = _loop("Nine locations (Fig. 5)", cells, names)
    dwells = [f"{cell['dwell_ns']} ns" for cell in cells.values()]
    rows = [[row[0], dwell, *row[1:]] for row, dwell in zip(rows, dwells, strict=True)]
    return title, f"{remark} MAPFoSt at 200 ns of dwell, the others at 50 ns, as in the paper.", [
        header[0], "dwell", *header[1:],
    ], rows  # fmt: skip


def _against(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> Table:
    header = [
        "Condition", "against", "starts", "arrived: ours, peer", "iterations where both did: ours, peer",
        "ours was earlier, later",
    ]  # fmt: skip
    body = [
        [
            row["condition"], names[row["peer"]], str(row["runs"]), "{}, {}".format(*row["reached"]),
            "{:.1f}, {:.1f}".format(*row["iterations"]) if row["iterations"] else "–",
            f"{row['fewer']}, {row['more']}",
        ]
        for row in rows
    ]  # fmt: skip
    remark = (
        "On the same starts and first frames. Arrived: within 1 µm and 0.25 a.u. for good; one that never does is the "
        "later one. Must: fewer iterations at ±20 µm; ambitious: also when both believe an angle that is 20 % off."
    )
    return "Against MAPFoSt, start by start", remark, header, body


def _score(cell: dict[str, Any]) -> Table:
    header = ["Method", "wd µm", "stig a.u.", "within", "frames (median)", "compute, s"]
    row = [
        "DeepScore + Nelder-Mead", _with_interval(cell["wd"]), _with_interval(cell["stig"]), _share(cell["within"]),
        f"{cell['frames']:g}", f"{cell['seconds']:.1f}",
    ]  # fmt: skip
    return "A score of single images", "From within ±20 µm and ±5 a.u. at 20 e-/px.", header, [row]


def _recalibration(cells: dict[str, Any]) -> Table:
    header, rows = ["Model on setup B", "within at the end", "wd µm at the end", "note"], []
    for name, cell in cells.items():
        last = cell["after"][-1]
        rows.append([name, _share(last["within"]), _with_interval(last["wd"]), cell.get("note", "")])
    return "Setup B, before and after recalibration (Fig. 4)", "", header, rows


def _speed(rows: Sequence[dict[str, Any]]) -> Table:
    header = ["Model and back end", "s, 512 x 512 pair", "MPx/s", "times StackedConv eager", "s, 1024 x 768 pair"]
    cells = [
        [
            row["name"], f"{row['seconds_512']:.3f}", f"{row['mpx_per_s']:.1f}",
            f"{row['ratio']:.1f}" if row["ratio"] else "–",
            f"{row['seconds_frame']:.3f}" if row["seconds_frame"] else "–",
        ]
        for row in rows
    ]  # fmt: skip
    remark = "Median of the processor's time; all in one run, in turn. Must: the default 10 times as fast."
    return "Speed, one thread", remark, header, cells


# ---------------------------------------------------------------------- figures
def _charts(outcome: dict[str, Any], names: dict[str, str]) -> dict[str, list[Chart]]:
    def of(title: str, name: str, methods: dict[str, Any], caption: str, kind: Any = "wide") -> None:
        groups = {names.get(key, key): cell["runs"] for key, cell in methods.items()}
        chart = Chart(name=name, title="Residual after each iteration", caption=caption, kind=kind,
                      figure=residual_chart(groups, single=len(groups) < 4))  # fmt: skip
        made.setdefault(title, []).append(chart)

    made: dict[str, list[Chart]] = {}
    shaded = "Mean of |residual|; shaded: within 1 µm and 0.25 a.u."
    for i, (condition, methods) in enumerate(outcome["loops"].items()):
        of(f"Closed loop, {condition}", f"loop{i}", methods, shaded)
    for i, (group, methods) in enumerate(outcome["far"].items()):
        of(_far(group), f"far{i}", methods, shaded)
    of(VESSEL, "vessel", outcome["vessel"], shaded)
    of("Nine locations (Fig. 5)", "locations", outcome["locations"], shaded)
    if outcome["recalibration"]:
        cells = outcome["recalibration"]
        of("Setup B, before and after recalibration (Fig. 4)", "recalibration", cells, shaded)
    rows = {
        dose: {names[key]: tuple(cell["wd"]) for key, cell in methods.items()}
        for dose, methods in outcome["pairs"].items()
    }
    made["One pair"] = [
        Chart(
            name="pairs", title="Error of one pair", kind="wide",
            caption="MAE of the working distance with its 95 % interval; dashes: the must.",
            figure=interval_chart(rows, "MAE of wd, µm", PAIR_MUST_UM),
        )
    ]  # fmt: skip
    return made


# ---------------------------------------------------------------------- words
def notes(outcome: dict[str, Any]) -> list[str]:
    """Return what the reader must know about the run: what it was tested on, how long it took, what is left out."""
    lines = [f"Tested on {outcome['tested_on']}. {outcome['total_seconds']:.0f} s in all, on one thread."]
    if outcome["resumed"]:
        lines.append(f"Of {outcome['units']} measurements an earlier run had made {outcome['resumed']}.")
    lines += [f"Not measured: {f['case']}, {f['method']}: {f['message']}" for f in outcome["failures"]]
    lines += [f"Left out: {name}: {reason}" for name, reason in outcome["missing"].items()]
    return lines


def _with_interval(cell: Sequence[float]) -> str:
    value, low, high = cell[:3]
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def _share(cell: Sequence[float]) -> str:
    value, low, high, n = cell
    return f"{value:.0%} of {n:g} ({low:.0%}–{high:.0%})"
