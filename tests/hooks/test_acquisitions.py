"""In real acquisitions, whatever goes wrong in focusing, no image is lost and everything is as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SURVIVES = {
    "raises": "failed",
    "nan": "failed",
    "nonsense": "failed",
    "wrong answer": "failed",
    "times out": "timed_out",
    "outside": "failed",
    "camera fails once": "converged",
    "camera fails for ever": "failed",
    "stage refuses": "failed",
    "worse than the start": "low_confidence",
    "disk of the recorder full": "converged",
}
"""Case -> status of every run; the acquisition goes on and is complete."""

ENDS = {
    "abort": ("AcquisitionAborted: focusing at", 0),
    "cancel": ("CancelledError", 6),
    "plan outside the limits": ("SettingsError: the plan goes to z = 498", 0),
}
"""Case -> how the acquisition ends, and the images kept."""

PYCROMANAGER = {**ENDS, "unplanned stack": ("SettingsError: event {'position': 0, 'z': 0} is one slice", 0)}
ENGINES = {"pycromanager": [*SURVIVES, "burst", "skip", *PYCROMANAGER], "mda": [*SURVIVES, "skip", *ENDS]}


@cache
def outcomes(engine: str) -> dict[str, dict[str, Any]]:
    """Run every case of one engine in one process, which may not hang."""
    script = Path(__file__).with_name("acquisition_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), engine, *ENGINES[engine]], capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("case", SURVIVES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_acquisition_is_complete(engine: str, case: str) -> None:
    outcome = outcomes(engine)[case]
    assert outcome["ended"] == "normally"
    assert (outcome["images"], outcome["distinct"]) == (9, 9)
    assert outcome["statuses"] == [SURVIVES[case]] * 3
    assert outcome["restored"]
    assert outcome["inside"]


@pytest.mark.parametrize(("engine", "case"), [("mda", c) for c in ENDS] + [("pycromanager", c) for c in PYCROMANAGER])
def test_the_acquisition_ends_with_the_error_and_keeps_its_images(engine: str, case: str) -> None:
    outcome = outcomes(engine)[case]
    message, images = PYCROMANAGER[case]
    assert outcome["ended"].startswith(message)
    assert outcome["images"] == images
    assert outcome["restored"]
    assert outcome["inside"]
    if "SettingsError" in message:
        assert not outcome["moved"]


def test_a_burst_is_focused_once_and_complete() -> None:
    outcome = outcomes("pycromanager")["burst"]
    assert (outcome["ended"], outcome["images"], outcome["runs"]) == ("normally", 9, 3)


def test_skip_keeps_the_shape_with_pycromanager_and_leaves_the_gap_to_the_sink_with_mda() -> None:
    assert outcomes("pycromanager")["skip"]["images"] == 9
    skipped = outcomes("mda")["skip"]
    assert (skipped["ended"], skipped["images"]) == ("normally", 0)
