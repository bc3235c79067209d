"""How well the searches find the focus of recorded curves and stacks, ours and the peers', in one table.

    python -m mm_autofocus.benchmark.curves --data ../shared/data --output curves

writes ``curves.json`` and ``curves.md``. Curves of odd number are held out: every constant was chosen on the even ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm_autofocus.benchmark.peers import GoldenSection, OughtaFocusBrent, PeerSettings
from mm_autofocus.benchmark.replay import (
    Case,
    Recording,
    replay,
    slide_scanner_recordings,
    stack_recordings,
    windows,
)
from mm_autofocus.measures.registry import get_measure
from mm_autofocus.request import Budget
from mm_autofocus.strategies.full_stack import FullStack, FullStackSettings
from mm_autofocus.strategies.scoring import RecordedScorer, Scorer
from mm_autofocus.strategies.sweep import Sweep, SweepSettings
from mm_autofocus.strategy import Strategy

DATA = Path("../shared/data")
RANGES = (11.0, 28.0, 50.0)
Factory = Callable[[Case], Strategy]


def scorer_for(recording: Recording) -> Scorer | None:
    """Return what reads a recording's frames: recorded scores, or None for the strategy's own measures."""
    if not recording.recorded:
        return None
    names = [recording.measure] + ([recording.guide] if recording.guide else [])
    return RecordedScorer(tuple(get_measure(name).prior for name in names))


BRENT_PLUS_3: Mapping[float, int] = {11.0: 9, 28.0: 11, 50.0: 11}
"""Three images more than Brent's search needs on average, by range in FWHM; cut down to whole images."""


def sweep(effort: str, images: Mapping[float, int] | None = None) -> Factory:
    """Return a factory of our search; ``images`` bounds its images by range."""

    def build(case: Case) -> Strategy:
        recording = case.recording
        settings = SweepSettings.model_validate(
            {"measure": recording.measure, "guide": recording.guide, "effort": effort}
            | ({} if images is None else {"max_images": images.get(case.range_fwhm, 60)})
        )
        return Sweep(settings, scorer_for(recording))

    return build


def full_stack(case: Case) -> Strategy:
    """Build the stack at one depth of field."""
    return FullStack(FullStackSettings(measure=case.recording.measure), scorer_for(case.recording))


def brent(tolerance: float | None) -> Factory:
    """Return a factory of OughtaFocus's search; tolerance in depths of field, None for a tenth of the range."""

    def build(case: Case) -> Strategy:
        recording = case.recording
        um = case.window.width / 10 if tolerance is None else tolerance * recording.depth_of_field
        return OughtaFocusBrent(PeerSettings(measure=recording.measure, tolerance_um=um), scorer_for(recording))

    return build


def golden(case: Case) -> Strategy:
    """Build the golden-section search with half a depth of field of tolerance."""
    settings = PeerSettings(measure=case.recording.measure, tolerance_um=case.recording.depth_of_field / 2)
    return GoldenSection(settings, scorer_for(case.recording))


STRATEGIES: Mapping[str, Factory] = {
    "sweep, fast": sweep("fast"),
    "sweep, fast, Brent + 3": sweep("fast", BRENT_PLUS_3),
    "sweep, safe": sweep("safe"),
    "full stack": full_stack,
    "Brent, default (a tenth)": brent(None),
    "Brent, half a plane": brent(0.5),
    "golden section": golden,
}


def run_cases(cases: Iterable[Case], strategies: Mapping[str, Factory]) -> list[dict[str, Any]]:
    """Replay every case through every strategy; one record per run, errors in depths of field."""
    records = []
    for case in cases:
        recording = case.recording
        for name, factory in strategies.items():
            unlimited = case if name != "full stack" else Case(**{**_fields(case), "budget": Budget(None)})
            verdict, images = replay(factory(case), unlimited)
            target = verdict.target.get("z", case.start)
            records.append(
                {
                    "strategy": name,
                    "recording": recording.name,
                    "number": recording.number,
                    "measure": recording.measure,
                    "range_fwhm": case.range_fwhm,
                    "inside": case.inside,
                    "error": abs(target - recording.focus) / recording.depth_of_field,
                    "images": images,
                    "confidence": verdict.confidence,
                    "status": str(verdict.status),
                    "features": verdict.details.get("features", {}),
                }
            )
    return records


def _fields(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


def run_curves(
    data: Path = DATA,
    *,
    ranges: tuple[float, ...] = RANGES,
    half: str = "held-out",
    repeats: int = 2,
    seed: int = 1,
    outside: bool = False,
    strategies: Mapping[str, Factory] = STRATEGIES,
    prior_sd_fwhm: float | None = None,
    images: int | None = 60,
) -> list[dict[str, Any]]:
    """Replay the slide scanner's curves.

    Parameters
    ----------
    data
        The folder of the recordings.
    ranges
        Lengths of the windows, in FWHM of the peak.
    half
        "held-out" (odd curves), "tuning" (even curves) or "all".
    repeats
        Random windows per curve, measure and range.
    seed
        Of the windows and of the noise.
    outside
        Windows that just miss the focus, instead of such that hold it.
    strategies
        What to run.
    prior_sd_fwhm
        SD of a prior drawn round the focus, in FWHM; None for none.
    images
        Image budget of every run but the full stack's, verifying frame included; None for no limit.

    Returns
    -------
    list of dict
        One record per run; see `summarise`.

    Raises
    ------
    FileNotFoundError
        When the folder does not hold the curves.
    """
    recordings = [r for r in slide_scanner_recordings(data) if _chosen(r, half)]
    cases = windows(
        recordings, ranges, repeats, seed, outside=outside, prior_sd_fwhm=prior_sd_fwhm, budget=Budget(images)
    )
    return run_cases(cases, strategies)


def run_stacks(
    data: Path = DATA,
    *,
    repeats: int = 4,
    seed: int = 1,
    strategies: Mapping[str, Factory] = STRATEGIES,
    guide: str | None = "coarse_gradient",
) -> list[dict[str, Any]]:
    """Replay the recorded image stacks, windows of half to all of each; parameters and records as `run_curves`."""
    cases = []
    for recording in stack_recordings(data, guide=guide):
        whole = (recording.high - recording.low) / (1.8 * recording.depth_of_field)
        cases += list(windows([recording], (0.5 * whole, whole), repeats, seed))
    return run_cases(cases, strategies)


def _chosen(recording: Recording, half: str) -> bool:
    return half == "all" or (recording.number % 2 == 1) == (half == "held-out")


def summarise(records: list[dict[str, Any]], by: tuple[str, ...] = ("range_fwhm", "strategy")) -> list[dict[str, Any]]:
    """Return one row per group: how often right, at what cost, and how often wrongly sure.

    ``within_1`` and ``within_2`` count every target, whatever its status. ``wrong_ok`` is the fraction of runs that say
    converged and are off by more than two depths of field. ``sure`` is the fraction with a confidence of at least 0.95,
    ``sure_right`` the fraction of those within one.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[tuple(record[key] for key in by)].append(record)
    rows = []
    for key, group in groups.items():
        error = np.array([record["error"] for record in group])
        images = np.array([record["images"] for record in group])
        confidence = np.array([record["confidence"] for record in group])
        converged = np.array([record["status"] == "converged" for record in group])
        sure = (confidence >= 0.95) & converged
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "runs": len(group),
                "within_1": float(np.mean(error <= 1.0)),
                "within_2": float(np.mean(error <= 2.0)),
                "images": float(images.mean()),
                "most_images": int(images.max()),
                "worst_error": float(error.max()),
                "converged": float(converged.mean()),
                "wrong_ok": float(np.mean(converged & (error > 2.0))),
                "sure": float(sure.mean()),
                "sure_right": float(np.mean(error[sure] <= 1.0)) if sure.any() else None,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format the rows of `summarise` as a Markdown table."""
    if not rows:
        return "(no runs)\n"
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(name, row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if name in ("range_fwhm", "images", "worst_error"):
        return f"{value:.3g}"
    return f"{100 * value:.1f} %"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the recordings")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    parser.add_argument("--half", choices=("held-out", "tuning", "all"), default="held-out")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    common: dict[str, Any] = {"half": options.half, "repeats": options.repeats, "seed": options.seed}
    ours = {name: STRATEGIES[name] for name in ("sweep, fast", "sweep, safe")}
    try:
        curves = run_curves(options.data, **common)
        tables = {
            "Slide-scanner curves": summarise(curves),
            "Per measure": summarise(curves, ("measure", "range_fwhm", "strategy")),
            "Focus just outside the window": summarise(
                run_curves(options.data, outside=True, ranges=(11.0, 28.0), **common)
            ),
            "With a prior of SD 1.1 FWHM": summarise(
                run_curves(options.data, prior_sd_fwhm=1.1, ranges=(28.0,), strategies=ours, **common)
            ),
            "Recorded stacks": summarise(run_stacks(options.data, seed=options.seed), ("recording", "strategy")),
        }
    except FileNotFoundError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 2
    text = "\n".join(f"## {title} ({options.half})\n\n{markdown(rows)}" for title, rows in tables.items())
    print(text)
    if options.output is not None:
        settings = {"half": options.half, "repeats": options.repeats, "seed": options.seed}
        report = {"settings": settings, "tables": tables}
        options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
