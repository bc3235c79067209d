"""The tables of `bench sem-scores` as Markdown, and with the papers' figures as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mm_autofocus.benchmark.runner import Record
from mm_autofocus.report.data import Chart, Section
from mm_autofocus.report.outcomes import Row, Table, Totals, outcome_sections, outcome_tables
from mm_autofocus.report.plots import GOOD, INK, MUTED, WARN, Figure, axis, chart, plain, with_legend

RUNS = (
    "Success: converged within the depth over which a score falls by 0.15, from anywhere in the range. Dose: electrons "
    "that land, per nm². Instrument: seconds of its simulated clock."
)
PAPER_RMSE = {"500": 0.3056, "1000": 0.3152, "2000": 0.3152, "5000": 0.4174, "10000": 0.6729}
PAPER_VARIANCE = {"500": 3.0467, "1000": 2.9133, "2000": 2.7270, "5000": 2.7924, "10000": 2.7741}
PAPER_CORRELATION = {"tin": 0.974, "grid": 0.978, "particles": 0.975}
PAPER_WITHIN = {"tin": 0.920, "grid": 0.880, "particles": 0.731}
PAPER_LOSS = {"tin": 0.158, "grid": 0.152, "particles": 0.068}
PAPER_FRAMES = {"tin": 10.743, "grid": 13.300, "particles": 10.574}

_COLOURS = (GOOD, WARN, "#6a4c93", "#b8860b", "#3b7a3b", "#7a7a7a", "#c2185b", "#0072b2")
_METRICS = ("variance", "entropy")
_WORDS = {"variance": "variance, scaled to scores", "entropy": "entropy, scaled to scores"}


def tables(outcome: dict[str, Any]) -> Iterator[Table]:
    """Yield every table of an outcome of `mm_autofocus.benchmark.score_table.ScoreBench.measure`."""
    yield _targets(outcome)
    yield _magnifications(outcome)
    yield _samples(outcome)
    for name, groups in outcome["loops"].items():
        yield _loop(name, groups)
    yield _stay(outcome["stay"])
    yield _speed(outcome["speed"])


def markdown(outcome: dict[str, Any], records: Sequence[Record] = (), totals: Totals | None = None) -> str:
    """Return all tables as Markdown, with what the runs came to where their records are given."""
    lines: list[str] = []
    for title, remark, header, rows in [*tables(outcome), *outcome_tables(records, RUNS, totals)]:
        lines += [f"### {title}", "", remark, "", _line(header), f"|{'---|' * len(header)}", *map(_line, rows), ""]
    lines += [f"- not measured: {name} ({reason})" for name, reason in outcome["missing"].items()]
    lines += [f"- not measured: {f['case']}, {f['method']} ({f['message']})" for f in outcome["failures"]]
    return "\n".join(lines) + "\n"


def sections(outcome: dict[str, Any], records: Sequence[Record] = (), totals: Totals | None = None) -> list[Section]:
    """Return every table with the figures that belong to it, for a page.

    Parameters
    ----------
    outcome
        See `tables`.
    records, totals
        All focus runs, and rows over several samples; for what they came to and for the reliability diagrams.
    """
    drawn = {
        "Score by magnification": [_correspondence(outcome)],
        "A score stays put while the focus does": _stay_charts(outcome["stay"]),
        "Time of one score": [],
    }
    made = [
        Section(name=f"table-{i}", title=title, lead=remark, header=header, rows=rows, charts=drawn.get(title, []))
        for i, (title, remark, header, rows) in enumerate(tables(outcome))
    ]
    made += outcome_sections(records, RUNS, totals)
    made.append(
        Section(
            name="series", title="Score against working distance",
            lead="One place each, and the same frames' variance and entropy: their peaks have another height at every "
            "magnification and on every sample (AENet, Fig. 4b-d).",
            charts=_series_charts(outcome["series"]),
        )
    )  # fmt: skip
    made.append(Section(name="runs", title="Focus runs", charts=_run_charts(outcome["loops"])))
    made.append(Section(name="examples", title="Images and their scores", charts=[_examples(outcome)]))
    made.append(Section(name="training", title="Training", charts=_training(outcome["training"])))
    return made


def headline(outcome: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    score, loop = outcome["scores"]["ours"], outcome["loops"]["ours"]
    return (
        f"Ours: rmse {score['mean_rmse']:.2f} of 10 over 500 to 10,000x (paper 0.45); focused in "
        f"{loop['seen']['frames']:.1f} frames on samples it knows, {loop['unseen']['frames']:.1f} on others, for "
        f"{loop['seen']['score_loss']:.2f} and {loop['unseen']['score_loss']:.2f} less than the best score."
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------- tables
def _targets(outcome: dict[str, Any]) -> Table:
    score, loop, speed = outcome["scores"]["ours"], outcome["loops"]["ours"], outcome["speed"]["ours"]
    samples = [score["parts"][kind] for kind in ("tin", "grid", "particles")]
    lowest = min(cell["correlation"] for cell in samples)
    within = min(cell["within_1"] for cell in samples)
    tenth = score["by_magnification"].get("10000", float("nan"))
    rows = [
        _target("score RMSE, mean over 500-10,000x", "0.4548", 0.45, 0.25, score["mean_rmse"]),
        _target("the same at 10,000x", "0.6729", 0.65, 0.35, tenth),
        _target("correlation with the label, least of three samples", "0.974", 0.975, 0.99, lowest, larger=True),
        _target("share within ±1, least of three samples", "0.73", 0.92, 0.99, within, larger=True),
        _target(
            "best score in the range less the final one, seen", "0.07-0.16", 0.15, 0.05, loop["seen"]["score_loss"]
        ),
        _target("the same, unseen samples", "0.79-1.03", 0.15, 0.05, loop["unseen"]["score_loss"]),
        _target("frames to focus, seen", "10.6-13.3", 9, 5, loop["seen"]["frames"]),
        _target("frames to focus, unseen samples", "not given", 11, 6, loop["unseen"]["frames"]),
        _target("one score of 320x240, one thread, ms of CPU", "1800", 20, 5, speed["cpu_ms"]),
    ]
    remark = "Unseen specimens, places and seeds throughout; scores and labels from 0 to 10. Ours."
    return "Against the targets", remark, ["", "paper", "must", "ambitious", "measured", ""], rows


def _target(name: str, paper: str, must: float, ambitious: float, value: float, *, larger: bool = False) -> Row:
    sign = -1 if larger else 1
    verdict = "ambitious" if sign * value <= sign * ambitious else "must" if sign * value <= sign * must else "missed"
    return [name, paper, f"{must:g}", f"{ambitious:g}", f"{value:.3g}", verdict]


def _magnifications(outcome: dict[str, Any]) -> Table:
    keys = list(outcome["scores"]["ours"]["by_magnification"])
    rows = []
    for name, cell in outcome["scores"].items():
        values = [f"{cell['by_magnification'][key]:.3f}" for key in keys]
        rows.append([_name(outcome, name), *values, f"{cell['mean_rmse']:.3f}"])
    for name, paper, mean in (
        ("paper: ResNet18 + magnification", PAPER_RMSE, 0.4548), ("paper: absolute variance", PAPER_VARIANCE, 2.85),
    ):  # fmt: skip
        rows.append([name, *(f"{paper[key]:.3f}" if key in paper else "–" for key in keys), f"{mean:.3f}"])
    remark = "RMSE on tin and grid, specimens and places that were not trained on (Table 2 of the ResNet18 paper)."
    return "Score by magnification", remark, ["", *(f"{float(key):,.0f}x" for key in keys), "mean"], rows


def _samples(outcome: dict[str, Any]) -> Table:
    rows = []
    for name, cell in outcome["scores"].items():
        if name in _METRICS:
            continue
        for part, values in cell["parts"].items():
            paper = f"{PAPER_CORRELATION[part]:.3f} / {PAPER_WITHIN[part]:.2f}" if part in PAPER_CORRELATION else "–"
            rows.append(
                [
                    _name(outcome, name), part, str(values["count"]), f"{values['rmse']:.3f}",
                    f"{values['correlation']:.4f}", f"{values['within_1']:.3f}", f"{values['precision']:.3f}", paper,
                ]
            )  # fmt: skip
    header = [
        "network",
        "sample",
        "images",
        "rmse",
        "correlation",
        "within ±1",
        "precision",
        "AENet, correlation / within",
    ]
    remark = 'By sample; "untrained probes": irregular polygons and wave optics, where training had round soft discs.'
    return "Score by sample", remark, header, rows


def _loop(name: str, groups: dict[str, Any]) -> Table:
    rows = []
    for kind, cell in groups.items():
        paper = f"{PAPER_LOSS[kind]:.2f} / {PAPER_FRAMES[kind]:.1f}" if kind in PAPER_LOSS else "–"
        rows.append(
            [
                kind, str(cell["runs"]), f"{cell['score_loss']:.3f}", f"{cell['score_loss_worst']:.2f}",
                f"{cell['score_loss_read']:.3f}", f"{cell['frames']:.1f} ± {cell['frames_sd']:.1f}",
                f"{cell['within_depth']:.0%}", f"{cell['converged']:.0%}", f"{cell['false_confidence']:.1%}", paper,
            ]
        )  # fmt: skip
    header = [
        "sample", "runs", "best less final score", "worst", "as read", "frames", "in focus", "converged",
        "sure and wrong", "paper: loss / frames",
    ]  # fmt: skip
    remark = (
        "From places evenly over the whole range in which anything can be recognised, all frames counted. In focus: "
        "within the depth over which a score falls by 0.15. Sure: converged with confidence of at least 0.9."
    )
    return f"Focusing: {name}", remark, header, rows


def _stay(stay: dict[str, Any]) -> Table:
    rows = [
        [
            name, f"{cell['score_sd']:.2f}", f"{cell['relative_sd']['score']:.1%}",
            f"{cell['relative_sd']['variance']:.1%}", f"{cell['relative_sd']['entropy']:.1%}",
        ]
        for name, cell in stay.items()
    ]  # fmt: skip
    header = ["changed", "score, SD of 10", "score", "variance", "entropy"]
    remark = "Frames in focus; standard deviation over the mean while one thing changes (Fig. 1a and 4)."
    return "A score stays put while the focus does", remark, header, rows


def _speed(speed: dict[str, Any]) -> Table:
    rows = [[name, f"{c['cpu_ms']:.1f}", f"{c['ms']:.1f}", f"{c['ratio']:.0f} x"] for name, c in speed.items()]
    remark = "320 x 240 pixels, one thread, preparation included; the ratio is that of CPU times in one run."
    return "Time of one score", remark, ["network", "CPU, ms", "wall, ms", "to ours"], rows


def _name(outcome: dict[str, Any], key: str) -> str:
    return str(outcome["names"].get(key, _WORDS.get(key, key)))


# ---------------------------------------------------------------------- figures
def _line_trace(name: str, x: Sequence[float], y: Sequence[float], number: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": plain(x), "y": plain(y),
        "line": {"color": _COLOURS[number % len(_COLOURS)], "width": 1.6}, **more,
    }  # fmt: skip


def _correspondence(outcome: dict[str, Any]) -> Chart:
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 10],
            "y": [0, 10],
            "line": {"color": MUTED, "dash": "dash"},
            "showlegend": False,
        }
    ]
    shown = [(n, cell) for n, cell in outcome["scores"]["ours"]["parts"].items() if "probes" not in n]
    for number, (part, cell) in enumerate(shown):
        pairs = cell["pairs"]
        traces.append({
            "type": "scatter", "mode": "markers", "name": part, "x": plain(p[0] for p in pairs),
            "y": plain(p[1] for p in pairs),
            "marker": {"size": 4, "opacity": 0.6, "color": _COLOURS[number % len(_COLOURS)]},
        })  # fmt: skip
    figure = with_legend(chart(traces, axis("label", range=[-0.3, 10.3]), axis("score", range=[-0.3, 10.3])))
    return Chart(
        name="correspondence", title="Score against label", caption="As Fig. 4a of the AENet paper.", figure=figure,
        kind="wide",
    )  # fmt: skip


def _stay_charts(stay: dict[str, Any]) -> list[Chart]:
    charts = []
    for name, cell in stay.items():
        traces = []
        for number, (measure, rows) in enumerate(cell["rows"].items()):
            for i, row in enumerate(rows):
                top = 10.0 if measure == "score" else max(max(max(r) for r in rows), 1e-9)
                traces.append(
                    _line_trace(
                        measure, cell["values"], [v / top for v in row], number, showlegend=i == 0, legendgroup=measure
                    )
                )
        horizontal = axis(cell["unit"], type="log") if name == "magnification" else axis(cell["unit"])
        figure = with_legend(chart(traces, horizontal, axis("share of the most", range=[0, 1.05])))
        charts.append(
            Chart(
                name=f"stay-{name}", title=f"Changing {name}", figure=figure,
                caption="Three places in focus. Score of 10; variance and entropy of their largest value here.",
            )
        )  # fmt: skip
    return charts


def _series_charts(series: Sequence[dict[str, Any]]) -> list[Chart]:
    charts = []
    for measure in ("score", *_METRICS):
        traces = []
        for number, one in enumerate(series):
            width = max(abs(v) for v in one["defocus_um"])
            name = f"{one['kind']} {one['magnification']:,}x"
            trace = _line_trace(name, [v / width for v in one["defocus_um"]], one[measure], number)
            trace["line"]["dash"] = "solid" if one["kind"] in PAPER_LOSS else "dot"  # kinds that were not trained on
            traces.append(trace)
        figure = with_legend(chart(traces, axis("defocus, share of the range"), axis(measure)))
        caption = (
            "The range is as far as anything can be recognised at each magnification. Dotted: kinds of specimen that "
            "were not trained on."
        )
        charts.append(
            Chart(name=f"series-{measure}", title=measure.capitalize(), caption=caption, figure=figure, kind="wide")
        )
    return charts


def _run_charts(loops: dict[str, Any]) -> list[Chart]:
    charts = []
    for number, (name, groups) in enumerate(loops.items()):
        traces = []
        for kind in ("seen", "unseen"):
            for i, each in enumerate(groups[kind]["each"]):
                frames = list(range(1, len(each["scores"]) + 1))
                traces.append(
                    _line_trace(
                        kind, frames, each["scores"], 0 if kind == "seen" else 1, showlegend=i == 0, legendgroup=kind,
                        opacity=0.5,
                    )
                )  # fmt: skip
        figure = with_legend(chart(traces, axis("frame"), axis("score", range=[0, 10.3])))
        charts.append(
            Chart(
                name=f"runs-{number}",
                title=name,
                caption="Scores frame by frame, one line for each run.",
                figure=figure,
            )
        )
    return charts


def _examples(outcome: dict[str, Any]) -> Chart:
    """Draw images in rows of samples, columns of focus, with label and scores below each."""
    kinds = list(dict.fromkeys(e["kind"] for e in outcome["examples"]))
    columns = len(outcome["examples"]) // max(len(kinds), 1)
    pictures, notes = [], []
    for i, example in enumerate(outcome["examples"]):
        x, y = float(i % columns), -1.0 * (i // columns)
        pictures.append({
            "source": example["picture"], "xref": "x", "yref": "y", "x": x, "y": y, "sizex": 0.96, "sizey": 0.78,
            "sizing": "stretch", "layer": "below",
        })  # fmt: skip
        scores = ", ".join(f"{name} {value:.1f}" for name, value in example["scores"].items())
        text = f"{example['kind']} {example['magnification']:,}x: label {example['label']:.1f}<br>{scores}"
        notes.append({
            "text": text, "x": x, "y": y - 0.79, "xanchor": "left", "yanchor": "top", "align": "left",
            "showarrow": False, "font": {"size": 10, "color": INK},
        })  # fmt: skip
    hidden = {"visible": False}
    figure: Figure = chart(
        [{
            "type": "scatter", "x": [0, columns], "y": [0, -len(kinds)], "mode": "markers", "marker": {"opacity": 0},
            "hoverinfo": "skip",
        }],
        {**hidden, "range": [-0.02, columns]}, {**hidden, "range": [-len(kinds), 0.05]},
    )  # fmt: skip
    figure["layout"] |= {"images": pictures, "annotations": notes, "height": 230 * len(kinds)}
    return Chart(
        name="examples", title="Blurred to sharp", caption="Places that were not trained on; the last two samples are "
        "of kinds that were not.", figure=figure, kind="wide",
    )  # fmt: skip


def _training(training: dict[str, Any]) -> list[Chart]:
    charts = []
    for name, cell in training.items():
        for measure in ("loss", "accuracy"):
            if not cell.get(measure):
                continue
            values = cell[measure]
            share = [(i + 1) / len(values) for i in range(len(values))]
            vertical = axis(measure, type="log") if measure == "loss" else axis(measure, range=[0, 1])
            words = f"{cell.get('training_seconds', 0):,} s in all"
            charts.append(
                Chart(
                    name=f"training-{name}-{measure}", title=f"{name.replace('_', ' ')}: {measure}", caption=words,
                    figure=chart([_line_trace(name, share, values, 0)], axis("share of the training"), vertical),
                )
            )  # fmt: skip
    return charts
