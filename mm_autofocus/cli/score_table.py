"""``mm-autofocus bench sem-scores``: measures focus scores and their controllers; writes JSON, Markdown and a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from mm_autofocus.cli.acquire import writable_folder


def table(out: Path, *, quick: bool = False, seed: int = 9, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure; write sem_scores.json, .md and .html, and return what was measured.

    Parameters
    ----------
    out
        Folder for the tables.
    quick
        A few per cent of the cases.
    seed
        Of test frames.
    say
        Told what goes on.

    Raises
    ------
    SettingsError
        When the folder cannot be written to, or our network's weights are missing.
    """
    from mm_autofocus.benchmark.page import write_page
    from mm_autofocus.benchmark.score_table import ScoreBench, Size, machine
    from mm_autofocus.report.score_table import headline, markdown, sections

    out = writable_folder(out)
    bench = ScoreBench(Size.quick() if quick else Size(), seed=seed, say=say)
    outcome = bench.measure() | {
        "machine": machine(), "quick": quick, "created": datetime.now().isoformat(timespec="seconds"),
    }  # fmt: skip
    (out / "sem_scores.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    (out / "sem_scores.md").write_text(markdown(outcome), encoding="utf-8")
    facts = {"Machine": outcome["machine"], "Cases": "a few per cent" if quick else "all"}
    facts |= {f"Not measured: {name}": reason for name, reason in outcome["missing"].items()}
    title = "Focusing an SEM by single images: scores and controllers side by side"
    write_page(out / "sem_scores.html", title, headline(outcome), facts, sections(outcome))
    return outcome
