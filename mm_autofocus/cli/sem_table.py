"""``mm-autofocus bench sem``: measures the methods for an electron column, and writes JSON, Markdown and a page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mm_autofocus.cli.acquire import writable_folder


def table(
    out: Path, *, quick: bool = False, only: Sequence[str] | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure; write sem_table.json, .md and .html, and return what was measured.

    Parameters
    ----------
    out
        Folder for the tables.
    quick
        A few per cent of the cases, in less than a minute.
    only
        Keys of the methods to measure; None for all that can be used.
    say
        Told what goes on.

    Raises
    ------
    SettingsError
        When the folder cannot be written to, or no method can be used.
    """
    from mm_autofocus.benchmark.page import write_page
    from mm_autofocus.benchmark.sem_table import Bench, Size
    from mm_autofocus.errors import SettingsError
    from mm_autofocus.report.sem_table import headline, markdown, notes, sections

    out = writable_folder(out)
    _one_thread()
    bench = Bench(Size.quick() if quick else Size(), say=say, keys=only)
    if not bench.methods:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in bench.missing.items())
        raise SettingsError(f"none of the methods can be used ({reasons or f'no method is called {only}'})")
    machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"}
    outcome = bench.measure() | machine | {"quick": quick, "created": datetime.now().isoformat(timespec="seconds")}
    (out / "sem_table.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    (out / "sem_table.md").write_text(markdown(outcome), encoding="utf-8")
    facts = {"Machine": machine["machine"], **{f"Note {i + 1}": line for i, line in enumerate(notes(outcome))}}
    title = "Focus and stigmators of an electron column: methods side by side"
    write_page(out / "sem_table.html", title, headline(outcome), facts, sections(outcome, bench.vessel_frame))
    return outcome


def _one_thread() -> None:
    """Let torch, where it is installed, compute on one thread, as every time in the table is meant."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
