from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmark.bench_cases import METHODS, cases, measure
from mm_autofocus.benchmark.runner import run_bench
from mm_autofocus.cli import app_bench, bench_all
from mm_autofocus.cli.bench_memory import bench_memory, resident_mib
from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import SettingsError
from mm_autofocus.report.outcomes import write_overview


@pytest.fixture
def groups() -> Groups:
    groups = Groups.make(typer.Typer())
    app_bench.register(groups)
    return groups


class Ended:
    def __init__(self, returncode: int) -> None:
        self.returncode = returncode


def test_every_bench_that_is_there_runs_in_a_process_of_its_own(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @groups.bench.command("sem")
    def sem() -> None:
        """A bench that fails."""

    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Ended:
        started.append(command)
        name, folder = command[4], Path(command[6])
        folder.mkdir(parents=True)
        (folder / f"{name}.md").write_text(f"table of {name}\n")
        (folder / f"{name}.html").write_text("<p>a page")
        if name == "light":
            done = run_bench(cases(6), METHODS, measure, folder / "light.jsonl")
            write_overview(folder, done.records, {"all of it": {"group 0", "group 1"}})
        return Ended(3 if name == "sem" else 0)

    monkeypatch.setattr(bench_all, "run", run)
    outcome = bench_all.bench_all(groups, out=tmp_path, quick=True, workers=2, fresh=True, say=lambda _: None)
    assert [(b["bench"], b["exit_code"]) for b in outcome["benches"]] == [("light", 0), ("sem", 3)]
    assert all(c[0] == sys.executable for c in started)
    assert all(c[-5:] == ["--quick", "--fresh", "--workers", "2", "--json"] for c in started)
    assert "table of light" in (tmp_path / "bench.md").read_text()
    assert json.loads((tmp_path / "bench.json").read_text())["quick"] is True
    page = (tmp_path / "index.html").read_text()
    assert '<a href="light/light.html">' in page
    assert "<td>all of it</td><td>ours</td><td>6 of 6</td>" in page
    assert "| light | all of it | peer |" in (tmp_path / "bench.md").read_text()


def test_a_bench_that_is_not_there_is_refused(groups: Groups, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--only names stm; there are: light"):
        bench_all.bench_all(groups, out=tmp_path, only="light,stm")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_is_watched_well_by_well(tmp_path: Path) -> None:
    outcome = bench_memory(wells=8, first=4, out=tmp_path, say=lambda _: None)
    assert len(outcome["mib"]) == 8
    assert outcome["images_present"] == outcome["images_expected"] == 8
    assert outcome["peak_mib_last"] >= outcome["peak_mib_first"] > 50
    assert abs(outcome["mib"][-1] - resident_mib()) < 200
    assert "Peak" in (tmp_path / "memory.html").read_text()
    with pytest.raises(SettingsError, match="must be below"):
        bench_memory(wells=4, first=4, out=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_1536_wells_take_no_more_memory_than_96(tmp_path: Path) -> None:
    outcome = bench_memory(out=tmp_path, say=lambda _: None)
    assert outcome["images_present"] == 1536
    assert outcome["growth_percent"] < 5.0
