"""The commands register, train, and the bench writes its three files from whatever weights are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.benchmark import score_table
from mm_autofocus.benchmark.score_table import Size
from mm_autofocus.cli import app_score
from mm_autofocus.cli.groups import Groups
from mm_autofocus.report.score_table import headline, markdown, sections, tables


@pytest.fixture
def app():
    made = typer.Typer()
    app_score.register(Groups.make(made))
    return made


def test_help_needs_no_torch():
    code = (
        "import sys; import mm_autofocus.cli.app_score, mm_autofocus.strategies.dual_network;"
        "assert 'torch' not in sys.modules and 'plotly' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_focusing_needs_no_torch():
    code = (
        "import sys, numpy as np; from mm_autofocus.strategies.dual_network import DualNetwork;"
        "image = np.random.default_rng(0).integers(0, 255, (240, 320)).astype(np.uint8);"
        "assert 0 <= DualNetwork().read(image, 0.1).score <= 10; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("command", [["bench", "sem-scores"], ["train", "sem-score"], ["train", "sem-control"]])
def test_commands_have_help(app, command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "--seed" in result.output
    assert "--json" in result.output


def test_an_impossible_training_says_why(app, tmp_path):
    result = CliRunner().invoke(
        app, ["train", "sem-score", "--images", "3", "--out", str(tmp_path / "a.json"), "--json"]
    )
    assert result.exit_code == 2
    assert "too few" in json.loads(result.stdout)["message"]


def outcome():
    cell = {"count": 9, "rmse": 0.3, "correlation": 0.99, "within_1": 0.97, "precision": 0.98, "pairs": [[1.0, 1.1]]}
    parts = dict.fromkeys(("tin", "grid", "particles", "wing, unseen"), cell)
    score = {"parts": parts, "by_magnification": {"500": 0.3, "10000": 0.4}, "mean_rmse": 0.35}
    loop = {
        "runs": 2, "score_loss": 0.05, "score_loss_worst": 0.1, "score_loss_read": 0.05, "frames": 6.0,
        "frames_sd": 1.0, "within_depth": 1.0, "converged": 1.0, "false_confidence": 0.0, "ms_per_frame": 9.0,
        "each": [{"scores": [1.0, 9.0]}],
    }  # fmt: skip
    row = [[9.0, 9.1]]
    return {
        "names": {"ours": "ours"}, "failures": [], "missing": {"aenet": "no weights <here>"},
        "scores": {"ours": score, "variance": score},
        "loops": {"ours": dict.fromkeys(("tin", "seen", "unseen"), loop)},
        "stay": {
            name: {
                "unit": "gain", "values": [1.0, 2.0], "rows": dict.fromkeys(("score", "variance", "entropy"), row),
                "relative_sd": {"score": 0.01, "variance": 0.3, "entropy": 0.2}, "score_sd": 0.1,
            }
            for name in ("contrast", "magnification")
        },
        "speed": {"ours": {"ms": 9.0, "cpu_ms": 8.0, "ratio": 1.0}},
        "series": [{"kind": "tin", "magnification": 500, "defocus_um": [-1.0, 1.0], "score": [1.0, 2.0],
                    "variance": [1.0, 2.0], "entropy": [1.0, 2.0], "label": [1.0, 2.0]}],
        "training": {"score_ours": {"loss": [1.0, 0.5], "training_seconds": 60}},
        "examples": [{"kind": "tin", "magnification": 500, "label": 3.0, "scores": {"ours": 3.1}, "picture": "data:,"}],
    }  # fmt: skip


def test_the_table_says_what_is_missed():
    made = outcome()
    rows = {row[0]: row for row in next(iter(tables(made)))[3]}
    assert rows["frames to focus, seen"][-1] == "must"
    assert rows["correlation with the label, least of three samples"][-1] == "ambitious"
    made["loops"]["ours"]["seen"] = {**made["loops"]["ours"]["seen"], "frames": 30.0}
    rows = {row[0]: row for row in next(iter(tables(made)))[3]}
    assert rows["frames to focus, seen"][-1] == "missed"
    assert "0.35" in headline(made)
    text = markdown(made)
    assert "not measured: aenet" in text
    assert text.count("### ") == 6


def test_the_page_holds_every_figure(tmp_path):
    from mm_autofocus.benchmark.page import write_page

    made = sections(outcome())
    names = [chart.name for section in made for chart in section.charts]
    assert len(names) == len(set(names))
    assert {"correspondence", "examples", "series-score", "training-score_ours-loss", "stay-contrast"} <= set(names)
    page = write_page(tmp_path / "a.html", "t", "h", {}, made).read_text(encoding="utf-8")
    assert "http://" not in page.split("plotly-gzip")[0].replace("http://www.w3.org", "")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bench_measures_everything(app, tmp_path, monkeypatch):
    size = Size(2, 2, 1, 1, 1, 8, 1, full_aenet=False)
    monkeypatch.setattr(score_table.Size, "quick", classmethod(lambda cls: size))
    result = CliRunner().invoke(app, ["bench", "sem-scores", "--quick", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "sem_scores.json").read_text())
    assert found["scores"]["ours"]["mean_rmse"] < 1.5
    assert found["scores"]["variance"]["mean_rmse"] > found["scores"]["ours"]["mean_rmse"]
    assert found["loops"]["ours"]["seen"]["score_loss"] < 1.0
    assert (tmp_path / "sem_scores.html").stat().st_size > 100_000
    again = CliRunner().invoke(app, ["bench", "sem-scores", "--quick", "--out", str(tmp_path), "--json"])
    assert json.loads(again.stdout)["resumed"] == found["units"]
