"""``mm-autofocus bench all``: the bench of every instrument, each in a process of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

from mm_autofocus.benchmark.page import machine, write_page
from mm_autofocus.benchmark.tables import HEADER, SURE, cells
from mm_autofocus.cli.acquire import writable_folder
from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import SettingsError
from mm_autofocus.report.data import Section, installed_versions
from mm_autofocus.report.outcomes import read_overview

BENCHES = ("light", "laser", "sem", "sem-scores", "tem")
"""The benches that compare methods on an instrument."""


def bench_all(
    groups: Groups, *, out: Path, quick: bool = False, only: str = "", fresh: bool = False, workers: int = 0,
    scheduler: str = "", say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Run them; one that fails does not keep the others from running, and one that was killed goes on.

    Parameters
    ----------
    groups
        Says which of `BENCHES` are there.
    out
        Folder; each writes into a folder below, and bench.json, bench.md and index.html hold what all came to.
    quick
        Pass ``--quick`` on.
    only
        Names, with commas; empty for all.
    fresh, workers, scheduler
        Passed on to each.
    say
        Told what goes on.

    Raises
    ------
    SettingsError
        When the folder cannot be written to, or ``only`` names none.
    """
    there = [str(command.name) for command in groups.bench.registered_commands if command.name in BENCHES]
    wanted = [name.strip() for name in only.split(",") if name.strip()] or there
    if unknown := sorted(set(wanted) - set(there)):
        raise SettingsError(f"--only names {', '.join(unknown)}; there are: {', '.join(there)}")
    out = writable_folder(out)
    passed = ["--quick"] * quick + ["--fresh"] * fresh
    passed += ["--workers", str(workers)] if workers else []
    passed += ["--scheduler", scheduler] if scheduler else []
    benches: list[dict[str, Any]] = []
    for name in wanted:
        command = ["bench", name, "--out", str(out / name), *passed]
        say("mm-autofocus " + " ".join(command))
        began = time.perf_counter()
        code = "import sys; from mm_autofocus.cli import main; sys.argv[0] = 'mm-autofocus'; main()"
        ended = run([sys.executable, "-c", code, *command, "--json"], stdout=DEVNULL, check=False)
        seconds = time.perf_counter() - began
        say(f"{name}: exit code {ended.returncode} after {seconds:.0f} s")
        benches.append(
            {"bench": name, "command": " ".join(["mm-autofocus", *command]), "exit_code": ended.returncode,
             "seconds": round(seconds, 1), "tables": [str(p) for p in sorted((out / name).glob("*.md"))]}
        )  # fmt: skip
    outcome = {"machine": machine(), "quick": quick, "versions": installed_versions(), "benches": benches}
    (out / "bench.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    compared = _compared([(name, out / name) for name in wanted])
    parts = [f"# bench\n\n{machine()}.\n", _markdown(compared)]
    parts += [Path(path).read_text(encoding="utf-8") for bench in benches for path in bench["tables"]]
    (out / "bench.md").write_text("\n".join(parts), encoding="utf-8")
    pages = [next((str(p.relative_to(out)) for p in sorted((out / b["bench"]).glob("*.html"))), "-") for b in benches]
    section = Section(
        name="benches", title="What was run", header=["bench", "command", "exit code", "time", "page"],
        rows=[
            [b["bench"], b["command"], str(b["exit_code"]), f"{b['seconds']:.0f} s", page]
            for b, page in zip(benches, pages, strict=True)
        ],
    )  # fmt: skip
    what = "Every method on every instrument" + (", in the quick form: a few cases of each" if quick else "")
    facts = {"machine": machine(), **installed_versions()}
    write_page(out / "index.html", "bench all", what, facts, [section, compared])
    return outcome


def _compared(benches: Sequence[tuple[str, Path]]) -> Section:
    """Return one table of all strategies and peers, by the totals of each bench."""
    rows = [
        [name, row.group, *cells(row), "; ".join(row.knobs) or row.unit]
        for name, folder in benches for row in read_overview(folder)
    ]  # fmt: skip
    return Section(
        name="compared", title="All strategies and peers",
        header=["bench", "condition", *HEADER, "errors in"], rows=rows,
        lead="Success, dose and depth are explained on each bench's own page. Sure: converged with a confidence of at "
        f"least {SURE:g}.",
    )  # fmt: skip


def _markdown(section: Section) -> str:
    lines = [f"## {section.title}", "", section.lead, ""]
    table = [section.header, ["---"] * len(section.header), *section.rows]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table), ""])
