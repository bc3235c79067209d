"""The benchmark on recorded data (skipped where it is not there), and its bookkeeping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mm_autofocus.benchmark import curves
from mm_autofocus.benchmark.calibrate_confidence import calibration, fit_logistic
from mm_autofocus.benchmark.curves import STRATEGIES, markdown, run_cases, run_curves, run_stacks, summarise
from mm_autofocus.benchmark.replay import CURVES_FILE, synthetic_recordings, windows

DATA = Path(__file__).parents[3] / "shared" / "data"
recorded = pytest.mark.skipif(not (DATA / CURVES_FILE).exists(), reason=f"no recordings at {DATA}")
OURS = {name: STRATEGIES[name] for name in ("sweep, fast", "Brent, half a plane")}


@recorded
def test_ours_finds_what_brent_misses_on_held_out_curves() -> None:
    rows = summarise(run_curves(DATA, ranges=(28.0,), repeats=1, seed=3, strategies=OURS), ("strategy",))
    ours, brent = rows
    assert ours["within_2"] >= 0.8
    assert ours["within_2"] >= brent["within_2"] + 0.2
    assert ours["images"] <= brent["images"] + 3
    assert ours["sure_right"] is None or ours["sure_right"] >= 0.9
    assert brent["wrong_ok"] > ours["wrong_ok"]


@recorded
def test_ours_focuses_the_recorded_stacks() -> None:
    rows = summarise(run_stacks(DATA, repeats=1, strategies={"ours": STRATEGIES["sweep, fast"]}), ("strategy",))
    assert rows[0]["within_2"] >= 0.9


@recorded
def test_the_same_seed_gives_the_same_runs() -> None:
    options = {"ranges": (11.0,), "repeats": 1, "seed": 4, "strategies": {"golden": STRATEGIES["golden section"]}}
    assert run_curves(DATA, **options) == run_curves(DATA, **options)


def test_missing_data_is_said_clearly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curves.main(["--data", str(tmp_path)]) == 2
    assert CURVES_FILE in capsys.readouterr().err


@pytest.mark.parametrize("outside", [False, True])
def test_windows_hold_or_miss_the_focus(outside: bool) -> None:
    cases = list(windows(synthetic_recordings(10, 1), (11.0, 28.0), 2, 1, outside=outside))
    assert cases
    for case in cases:
        assert case.inside is not outside
        assert case.recording.low <= case.window.low < case.window.high <= case.recording.high


def test_made_up_curves_are_tabulated() -> None:
    records = run_cases(windows(synthetic_recordings(4, 2), (11.0,), 1, 1), STRATEGIES)
    rows = summarise(records)
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    text = markdown(rows)
    assert text.count("\n") == len(rows) + 2
    assert markdown([]) == "(no runs)\n"


def test_the_logistic_fit_recovers_a_known_probability() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000)
    truth = 1 / (1 + np.exp(-(0.5 + 1.5 * x)))
    right = (rng.random(4000) < truth).astype(float)
    beta = fit_logistic(np.stack([np.ones(4000), x, np.full(4000, 3.0)], axis=1), right)
    assert beta[:2] == pytest.approx([0.5, 1.5], abs=0.2)
    assert beta[2] == 0.0
    assert calibration(truth, right)["ece"] < 0.03
