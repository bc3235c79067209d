from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmark.bench_cases import METHODS, TracedCase, cases, measure
from mm_autofocus.benchmark.runner import Journal, Method, Record, key_of, run_bench
from mm_autofocus.errors import SettingsError
from mm_autofocus.parallel import in_parallel

HERE = Path(__file__)
TESTS = HERE.parent.parent


def traced(folder: Path) -> list[str]:
    path = folder / "trace.txt"
    return [line.rsplit(" ", 1)[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_every_method_meets_every_case_in_order(tmp_path: Path) -> None:
    run = run_bench(cases(3), METHODS, measure, tmp_path / "journal.jsonl")
    assert [(r.case, r.method) for r in run.records] == [(f"case {i}", m.name) for i in range(3) for m in METHODS]
    assert not run.failures
    assert not run.resumed


def test_a_second_run_measures_nothing_again(tmp_path: Path) -> None:
    chosen = cases(4, str(tmp_path / "trace.txt"))
    first = run_bench(chosen, METHODS, measure, tmp_path / "journal.jsonl")
    second = run_bench(chosen, METHODS, measure, tmp_path / "journal.jsonl")
    assert second.records == first.records
    assert second.resumed == 8
    assert len(traced(tmp_path)) == 8


def test_a_changed_case_or_method_is_measured_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    run_bench(cases(2), METHODS[:1], measure, journal)
    moved = [case.model_copy(update={"seed": case.seed + 1}) for case in cases(2)]
    assert run_bench(moved, METHODS[:1], measure, journal).resumed == 0
    other = [Method(name="ours", strategy="sweep", settings={"effort": "safe"})]
    assert run_bench(cases(2), other, measure, journal).resumed == 0
    assert run_bench(cases(2), METHODS[:1], measure, journal).resumed == 2


def test_more_cases_go_on_where_fewer_ended(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    run_bench(cases(2), METHODS, measure, journal)
    run = run_bench(cases(5), METHODS, measure, journal)
    assert run.resumed == 4
    assert len(run.records) == 10


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_kill_9_loses_no_case_and_does_none_twice(tmp_path: Path) -> None:
    count, journal = 30, tmp_path / "journal.jsonl"
    command = [sys.executable, str(HERE.with_name("bench_cases.py")), str(tmp_path), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    for kill in range(3):
        process = subprocess.Popen(command, env=environment)
        wanted = len(journal.read_bytes().splitlines()) + 7 if journal.exists() else 7
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        if kill == 0:  # as if the kill had come in the middle of a line
            journal.write_bytes(journal.read_bytes() + b'{"key": "half a li')
    subprocess.run(command, env=environment, check=True, timeout=60)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    wanted_pairs = {(f"case {i}", m.name) for i in range(count) for m in METHODS}
    kept = Counter((line["case"], line["method"]) for line in lines)
    assert set(kept) == wanted_pairs
    assert set(kept.values()) == {1}, "a pair was kept twice"
    # a pair that was cut off between its measurement and its line is measured again, never more than one a kill
    assert len(traced(tmp_path)) <= len(wanted_pairs) + 3


def test_a_journal_in_use_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl"), pytest.raises(SettingsError, match="another run has"):
        run_bench(cases(1), METHODS, measure, tmp_path / "journal.jsonl")


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n")
    with pytest.raises(SettingsError, match="line 1 is no record"):
        run_bench(cases(1), METHODS, measure, path)
    assert path.read_text() == "buy milk\n"


def test_a_pair_that_raises_is_told_and_tried_again(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    broken = TracedCase(name="broken", group="a", fails=True)
    run = run_bench([broken, *cases(1)], METHODS[:1], measure, journal)
    assert [f.message for f in run.failures] == ["ValueError: the specimen ran away"]
    assert [r.case for r in run.records] == ["case 0"]
    assert run_bench([broken, *cases(1)], METHODS[:1], measure, journal).failures


@pytest.mark.parametrize(
    ("chosen", "methods", "message"),
    [
        ([], METHODS, "no case"),
        (cases(1), [], "no method"),
        ([*cases(1), *cases(1)], METHODS, "two cases are named 'case 0'"),
        (cases(1), METHODS[:1] * 2, "two methods are named 'ours'"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, chosen: list[TracedCase], methods: list[Method], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        run_bench(chosen, methods, measure, tmp_path / "journal.jsonl")


def test_progress_counts_what_was_resumed(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    run_bench(cases(1), METHODS, measure, journal)
    seen: list[tuple[int, int, str]] = []

    def note(done: int, total: int, record: Record) -> None:
        seen.append((done, total, record.method))

    run_bench(cases(2), METHODS, measure, journal, progress=note)
    assert seen == [(3, 4, "ours"), (4, 4, "peer")]


def test_the_key_depends_on_all_that_defines_a_pair() -> None:
    case, method = cases(1)[0], METHODS[0]
    keys = {
        key_of(case, method),
        key_of(case.model_copy(update={"seed": 9}), method),
        key_of(case.model_copy(update={"group": "x"}), method),
        key_of(case, method.model_copy(update={"settings": {"a": 1}})),
    }
    assert len(keys) == 4


def test_two_workers_share_the_work_and_agree_with_a_serial_run(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    chosen = cases(12, str(tmp_path / "trace.txt"), 0.05)
    parallel = run_bench(chosen, METHODS, measure, tmp_path / "parallel.jsonl", workers=2)
    processes = {line.rsplit(" ", 1)[1] for line in (tmp_path / "trace.txt").read_text().splitlines()}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert not parallel.failures
    serial = run_bench(chosen, METHODS, measure, tmp_path / "serial.jsonl")
    assert parallel.records == serial.records


def test_a_scheduler_elsewhere_is_used_and_a_failure_comes_back(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        broken = TracedCase(name="broken", group="a", fails=True)
        run = run_bench(
            [*cases(2), broken], METHODS, measure, tmp_path / "j.jsonl", scheduler=cluster.scheduler_address
        )
    assert len(run.records) == 4
    assert {f.message for f in run.failures} == {"ValueError: the specimen ran away"}


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("mm_autofocus.parallel.CONNECT_S", 0.5)
    with pytest.raises(SettingsError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:9"):
        list(in_parallel(abs, [1], scheduler="tcp://127.0.0.1:9"))


def test_workers_below_zero_are_refused() -> None:
    with pytest.raises(SettingsError, match="--workers -1"):
        list(in_parallel(abs, [1], workers=-1))
