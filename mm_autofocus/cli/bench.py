"""``mm-autofocus bench``: measures, prints, and writes JSON and Markdown."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.cli.acquire import writable_folder
from mm_autofocus.cli.demo_beads import bead_core
from mm_autofocus.errors import SettingsError
from mm_autofocus.request import Event
from mm_autofocus.settings import Settings
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.pycromanager_backend import pycromanager_core

SLICES = 10
EXPOSURE_MS = 10.0


def curves(*, data: Path, out: Path, quick: bool, quiet: bool) -> dict[str, Any]:
    """Run the recorded curves and stacks through ours and the peers; see `mm_autofocus.benchmark.curves`.

    Raises
    ------
    SettingsError
        When the recordings are absent or the folder cannot be written to.
    """
    from mm_autofocus.benchmark.curves import markdown, run_curves, run_stacks, summarise

    out = writable_folder(out)
    try:
        curve_records = run_curves(data, repeats=1 if quick else 5)
        stack_records = run_stacks(data, repeats=1 if quick else 5)
    except FileNotFoundError as error:
        raise SettingsError(f"{error}. The recordings are not part of mm-autofocus; point --data at them.") from error
    tables = {
        "recorded focus curves (held out)": summarise(curve_records),
        "recorded focus curves, by measure": summarise(curve_records, ("measure", "range_fwhm", "strategy")),
        "recorded z-stacks": summarise(stack_records, ("strategy",)),
    }
    text = "\n".join(f"### {title}\n\n{markdown(rows)}" for title, rows in tables.items())
    _write(out, "curves", tables, text)
    if not quiet:
        Console().print(Markdown(text))
    return tables


def overhead(*, events: int, repeats: int, out: Path, quiet: bool) -> dict[str, Any]:
    """Time events that need no focus, with and without our hooks, on both engines, alternating in one process."""
    out = writable_folder(out)
    core = bead_core()
    core.setProperty("Camera", "FastImage", 1)
    core.setExposure(EXPOSURE_MS)
    try:
        engines: dict[str, Callable[[AutofocusCore, int, bool], float]] = {"pycro-manager": _pycromanager, "MDA": _mda}
        rows = []
        for name, run in engines.items():
            run(core, SLICES, False)  # warm up
            run(core, SLICES, True)
            bare, ours = [], []
            for _ in range(repeats):
                bare.append(run(core, events, False))
                ours.append(run(core, events, True))
            ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
            rows.append(
                {
                    "engine": name, "events": events, "bare_ms": 1000 * statistics.median(bare) / events,
                    "with_autofocus_ms": 1000 * statistics.median(ours) / events, "overhead_percent": 100 * (ratio - 1),
                }
            )  # fmt: skip
    finally:
        core.unloadAllDevices()
    outcome = {"machine": f"{platform.machine()}, Python {platform.python_version()}", "rows": rows}
    text = "| engine | bare, ms an event | with our hooks | overhead |\n|---|---|---|---|\n" + "\n".join(
        f"| {r['engine']} | {r['bare_ms']:.2f} | {r['with_autofocus_ms']:.2f} | {r['overhead_percent']:+.1f} % |"
        for r in rows
    )
    _write(out, "overhead", outcome, text + "\n")
    if not quiet:
        Console().print(Markdown(text))
    return outcome


def _autofocus(core: AutofocusCore) -> Autofocus:
    """An autofocus that knows every place already, so that it places each event and focuses at none."""
    settings = {
        "microscope": {"depth_of_field_um": 2.0},
        "knobs": {"z": {"limits": [-100, 100]}},
        "schedule": {"every": "never"},
    }
    return Autofocus(core, Settings.parse(settings))


def _pycromanager(core: AutofocusCore, count: int, with_autofocus: bool) -> float:
    import pycromanager

    places = [divmod(i, SLICES) for i in range(count)]
    events = [{"axes": {"position": p, "z": z}, "x": 10.0 * p, "y": 0.0, "z": float(z)} for p, z in places]
    hooks: dict[str, Any] = {}
    if with_autofocus:
        autofocus = _autofocus(core)
        events = autofocus.plan(events)
        for event in events:
            autofocus.ledger.record(Event(axes=event["axes"], z=event["z"]), 4.0)  # type: ignore[arg-type]
        autofocus.start()
        hooks = autofocus.pycromanager_hooks()
    with pycromanager_core(core):
        began = time.perf_counter()
        with pycromanager.Acquisition(**hooks) as acquisition:
            acquisition.acquire(events)
        return time.perf_counter() - began


def _mda(core: AutofocusCore, count: int, with_autofocus: bool) -> float:
    import useq
    from pymmcore_plus.mda import MDAEngine

    positions = -(-count // SLICES)
    sequence = useq.MDASequence.model_validate(
        {
            "axis_order": "pz",
            "stage_positions": [{"x": 10.0 * p, "y": 0.0, "z": 5.0} for p in range(positions)],
            "z_plan": {"range": float(SLICES - 1), "step": 1.0},
        }
    )
    if with_autofocus:
        autofocus = _autofocus(core)
        for position in range(positions):
            autofocus.ledger.record(Event(axes={"position": position}), 5.0)
        core.mda.set_engine(autofocus.mda_engine())
    else:
        core.mda.set_engine(MDAEngine(core))
    began = time.perf_counter()
    core.mda.run(sequence)
    return time.perf_counter() - began


def _write(out: Path, name: str, outcome: Any, text: str) -> None:
    (out / f"{name}.json").write_text(json.dumps(outcome, indent=2, default=str), encoding="utf-8")
    (out / f"{name}.md").write_text(text, encoding="utf-8")
