"""`demo sem`: an acquisition over TCP, scored by a truth that the strategy cannot reach, and its report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_autofocus.cli.demo_sem import SemDemo, WatchedColumn, _with_port
from mm_autofocus.cli.demo_sem_score import with_small_frames
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators import Aberration, PatchEstimate
from mm_autofocus.report.sem import PatchView, crop_chart, interval_chart, patch_chart, residual_chart
from mm_autofocus.report.sem_sections import column_sections
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus_devices.autofocus_strategy import CONFIGS

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sem")
    return SemDemo(positions=3, specimen="tin", seed=3, out=out, quiet=True).run() | {"out": out}


def test_every_position_is_focused_and_stigmated_and_every_image_is_there(demo: dict[str, Any]) -> None:
    assert demo["dataset"]["images_present"] == demo["dataset"]["images_expected"] == 3
    ours, untouched = demo["methods"]
    assert (ours["in_focus"], ours["scored"]) == (3, 3)
    assert ours["false_confident"] == 0
    assert untouched["name"] == "without autofocus"
    first = demo["trajectories"][0]
    assert abs(first[0][0]) > 5
    assert np.all(np.abs(first[-1]) < [1.0, 0.25, 0.25])
    assert all(abs(r["stig x, a.u."]) < 0.25 for r in demo["residuals"])
    json.dumps(demo, default=str)


def test_the_dose_is_that_of_the_beam(demo: dict[str, Any]) -> None:
    ours = demo["methods"][0]
    column = Column("A", "tin", 3)
    column.dwell_ns = 50.0
    assert ours["dose_unit"] == "e/nm2"
    assert ours["dose"] == pytest.approx(ours["images"] * column.frame_dose(), rel=0.01)


def test_the_report_shows_what_a_microscopist_looks_for(demo: dict[str, Any]) -> None:
    page = Path(demo["report"]).read_text(encoding="utf-8")
    for text in ("How the column came into focus", "What it looks like", "Where the answer came from", "Dose, e/nm²"):
        assert text in page
    figures = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.S).group(1))["figures"]  # type: ignore[union-attr]
    assert len(figures["crops"]["layout"]["images"]) == 6  # before and after of three positions
    assert {"residuals", "patches0", "cost"} <= set(figures)
    assert "http" not in re.sub(r"<script.*?</script>|xmlns=\S+", "", page, flags=re.S)


def test_the_strategy_gets_no_truth(demo: dict[str, Any]) -> None:
    lines = (demo["out"] / "focus.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert "truth" not in "".join(lines)


def test_scores_of_single_images_focus_a_slanting_specimen_over_tcp(tmp_path: Path) -> None:
    outcome = SemDemo(positions=3, strategy="dual-network", out=tmp_path, quiet=True).run()
    ours, untouched = outcome["methods"]
    assert (ours["in_focus"], ours["scored"], ours["false_confident"]) == (3, 3, 0)
    assert untouched["in_focus"] < 3  # it slants by more than is in focus
    assert outcome["dataset"]["images_present"] == outcome["dataset"]["images_expected"] == 3
    assert all(set(r) == {"label", "wd_um"} for r in outcome["residuals"])  # no stigmators
    page = Path(outcome["report"]).read_text(encoding="utf-8")
    assert "How scores led to the focus" in page
    assert "How the column came into focus" not in page
    figures = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.S).group(1))["figures"]  # type: ignore[union-attr]
    assert {"scores", "approach", "crops"} <= set(figures)
    first = figures["scores"]["data"][0]
    assert max(first["y"]) > 9 > 4 > min(first["y"])


@pytest.mark.slow
def test_the_mda_engine_does_the_same(tmp_path: Path) -> None:
    outcome = SemDemo(positions=2, specimen="tin", engine="mda", seed=3, out=tmp_path, quiet=True).run()
    assert outcome["methods"][0]["in_focus"] == 2
    assert outcome["dataset"]["images_present"] == 2


def test_a_specimen_that_is_not_simulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tissue, tin"):
        SemDemo(specimen="cheese", out=tmp_path / "out", quiet=True).run()
    assert not (tmp_path / "out").exists()


def test_only_the_words_of_the_frame_are_changed_in_the_configuration() -> None:
    text = (CONFIGS / "sem.cfg").read_text(encoding="utf-8")
    made = with_small_frames(text)
    changed = [new for old, new in zip(text.splitlines(), made.splitlines(), strict=True) if old != new]
    assert changed == ["#py Property,Camera,FrameSize,320x240", "#py Property,Column,PixelSizeNm,150"]


def test_every_device_gets_the_port() -> None:
    text = (CONFIGS / "sem.cfg").read_text(encoding="utf-8")
    made = _with_port(text, 40123)
    assert made.count(",Port,40123") == text.count(",Port,") == 5
    assert made.replace("40123", "7520") == text


# ---------------------------------------------------------------------- figures
PATHS = [np.array([[10.0, 1.0, -2.0], [1.0, 0.1, 0.3], [0.0, 0.0, 0.0]]), np.array([[4.0, 0.0, 0.5], [0.2, 0.0, 0.1]])]


def test_residuals_are_drawn_as_means_of_magnitudes_with_the_last_value_held() -> None:
    figure = residual_chart({"ours": PATHS})
    means = [trace for trace in figure["data"] if trace["mode"] == "lines+markers"]
    assert means[0]["y"] == [7.0, 0.6, 0.1]  # the shorter run stays at 0.2
    assert means[1]["y"] == [1.25, 0.2, 0.05]  # the worse stigmator
    assert {trace["yaxis"] for trace in figure["data"]} == {"y", "y2"}
    assert [shape["y1"] for shape in figure["layout"]["shapes"]] == [1.0, 0.25]


def test_patches_that_counted_for_little_are_dark() -> None:
    image = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    patches = [PatchEstimate(x, 0, 64, Aberration(1.0), weight) for x, weight in ((0, 0.75), (32, 0.25))]
    figure = patch_chart(PatchView("tile", image, patches))
    first, second = figure["layout"]["shapes"]
    assert first["fillcolor"].endswith(",0.000)")
    assert second["fillcolor"].endswith(",0.520)")
    assert (first["x0"], first["x1"], second["x0"], second["x1"]) == (0, 48, 48, 96)  # each its half of what both see
    assert figure["data"][0]["text"] == ["0.75", "0.25"]


def test_crops_show_the_richest_part_at_the_same_place_before_and_after() -> None:
    after = np.full((512, 512), 100, np.uint8)
    after[256:, 256:][::32] = 200
    figure = crop_chart([("tile", np.zeros((512, 512), np.uint8), after)], side_px=256)
    assert len(figure["layout"]["images"]) == 2
    assert crop_chart([("tile", None, None)])["layout"]["images"] == []


def test_intervals_are_drawn_around_their_values() -> None:
    figure = interval_chart({"20 e-/px": {"ours": (0.5, 0.4, 0.7)}}, "MAE", 1.2)
    bars = figure["data"][0]["error_y"]
    assert (bars["array"], bars["arrayminus"]) == ([0.2], [0.1])
    assert figure["layout"]["shapes"][0]["y0"] == 1.2


def test_sections_leave_out_what_is_unknown() -> None:
    result = FocusResult(status=Status.NO_SIGNAL, strategy="s", start={"z": 1.0}, end={"z": 1.0})
    assert column_sections([], [result], [np.empty((0, 3))], [(None, None)], 50.0) == []


def test_a_column_that_is_watched_notes_the_truth_of_each_frame() -> None:
    column = WatchedColumn("A", "tin", 5)
    column.frame = (320, 240)
    column.detune(Aberration(3.0, 0.5, -0.5))
    column.scan()
    assert column.exposures[-1].truth == pytest.approx([3.0, 0.5, -0.5], abs=1e-9)
    assert column.exposures[-1].knobs[0] == column.working_distance_um
