"""A tiny bench that leaves a trace of every measurement: what the runner's tests run, here and in other processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mm_autofocus.benchmark.runner import Case, Method, Outcome, run_bench


class TracedCase(Case):
    trace: str = ""
    seconds: float = 0.0
    fails: bool = False


def measure(case: TracedCase, method: Method) -> Outcome:
    """Sleep, note in a file that this pair was measured and by which process, and answer from the seed alone."""
    time.sleep(case.seconds)
    if case.fails:
        raise ValueError("the specimen ran away")
    if case.trace:
        with Path(case.trace).open("a", encoding="utf-8") as file:
            file.write(f"{case.name} {method.name} {os.getpid()}\n")
    error = (case.seed * 37 % 11 - 5) / 10 * (2 if method.peer else 1)
    return Outcome(
        status="converged", success=abs(error) <= 0.5, error=error, confidence=1.0 - abs(error) / 2, images=case.seed
    )


def cases(count: int, trace: str = "", seconds: float = 0.0) -> list[TracedCase]:
    return [
        TracedCase(name=f"case {i}", group=f"group {i % 2}", seed=i, trace=trace, seconds=seconds) for i in range(count)
    ]


METHODS = [Method(name="ours", strategy="sweep"), Method(name="peer", strategy="brent", peer=True)]


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    run_bench(cases(count, str(folder / "trace.txt"), 0.03), METHODS, measure, folder / "journal.jsonl")
