"""The recorder never loses a result, and nothing that happens to the disk disturbs the acquisition."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus.strategy import Frame
from mm_autofocus_hooks.recorder import Recorder, load, thumbnail, thumbnail_paths

REQUEST = FocusRequest(Event(label="B7_0000"), {"z": 0.0}, {"z": Limits(-10, 10)})


def make(folder: Path | str, **chosen: Any) -> Recorder:
    made = Recorder(Settings.parse({"recorder": {"folder": str(folder), **chosen}}))
    made.mmaf_start()
    return made


def result(number: int = 0, **changes: Any) -> FocusResult:
    values = {"status": Status.CONVERGED, "strategy": "µ-sweep", "start": {"z": 0.0}, "end": {"z": float(number)}}
    return FocusResult(**{**values, **changes})


def frame(value: int, z: float) -> Frame:
    image = np.zeros((64, 96), np.uint16)
    image[:, : value + 1] = 1000  # tells which frame it was, whatever the stretch
    return Frame(image, {"z": z})


def bright_columns(path: Path) -> int:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    return int(np.count_nonzero(image.mean(axis=0) > 127)) - 1


def test_every_result_is_on_disk_at_once_and_comes_back_equal(tmp_path: Path) -> None:
    made = make(tmp_path)
    for number in range(5):
        made.mmaf_focused(result=result(number, reason="Schärfe gefunden", details={"width": 2.5}))
        assert load(tmp_path / "focus.jsonl") == made.results
    assert len(made.results) == 5


def test_an_earlier_run_is_never_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        made = make(tmp_path)
        made.mmaf_focused(result=result(number))
        made.mmaf_finish()
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert names == ["focus-2.jsonl", "focus-3.jsonl", "focus.jsonl"]
    assert load(tmp_path / "focus-2.jsonl")[0].end == {"z": 1.0}


def test_an_acquisition_without_results_leaves_no_file(tmp_path: Path) -> None:
    make(tmp_path).mmaf_finish()
    assert not list(tmp_path.glob("*.jsonl"))


def test_without_a_folder_results_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make("")
    made.mmaf_frame(request=REQUEST, frame=frame(1, 0.0), purpose="start")
    made.mmaf_focused(result=result(1))
    made.mmaf_finish()
    assert made.path is None
    assert len(made.results) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match=r"recorder\.folder = .*cannot be written to.*Choose a folder"):
        make(tmp_path / "file" / "run")


@pytest.mark.parametrize("written", [0, 7])
def test_a_full_disk_loses_nothing_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, written: int
) -> None:
    made = make(tmp_path)
    made.mmaf_focused(result=result(0))
    write = os.write
    with monkeypatch.context() as full:
        if written:
            full.setattr(os, "write", lambda file, data: write(file, data[:written]))
        else:

            def refuse(file: int, data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            full.setattr(os, "write", refuse)
        for number in (1, 2, 3):
            made.mmaf_focused(result=result(number))
        made.mmaf_finish()
        assert [each.end["z"] for each in load(tmp_path / "focus.jsonl")] == [0.0]
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING and "tried again" in each.msg]
    assert len(warnings) == 1
    assert "3 focus results could not be written" in caplog.text
    made.mmaf_focused(result=result(4))
    assert load(tmp_path / "focus.jsonl") == made.results
    assert (tmp_path / "focus.jsonl").read_bytes().count(b"\n") == 5


def test_a_folder_that_vanishes_does_not_disturb(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    made = make(folder, thumbnails=False)
    made.mmaf_focused(result=result(0))
    folder.rename(tmp_path / "moved")
    made.mmaf_focused(result=result(1))
    (tmp_path / "moved").rename(folder)
    made.mmaf_finish()
    assert load(folder / "focus.jsonl") == made.results


def test_details_that_json_does_not_know_are_written_as_text(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.mmaf_focused(result=result(details={"fit": object(), "width": 2.0}))
    (back,) = load(tmp_path / "focus.jsonl")
    assert back.details["fit"].startswith("<object")


@given(cut=st.integers(1, 400), number=st.integers(1, 4))
def test_a_truncated_file_gives_all_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int, number: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "focus.jsonl"
    results = [result(index, reason="größer") for index in range(number)]
    data = "".join(each.model_dump_json() + "\n" for each in results).encode()
    path.write_bytes(data[: max(len(data) - cut, 0)])
    back = load(path)
    assert back == results[: len(back)]
    assert len(back) >= data[: max(len(data) - cut, 0)].count(b"\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FocusError, match=r"focus\.jsonl cannot be read"):
        load(tmp_path / "focus.jsonl")


SWEEP = [(3, -2.0, "search"), (5, 0.0, "search"), (7, 2.0, "search")]


@pytest.mark.parametrize(
    ("frames", "end", "before", "after"),
    [
        ([*SWEEP, (20, 0.0, "start"), (30, 1.0, "verify")], 1.0, 20, 30),
        ([(20, 0.0, "start"), *SWEEP, (30, 1.0, "verify")], 1.0, 20, 30),
        ([*SWEEP, (30, 1.0, "verify")], 1.0, 3, 30),
        ([*SWEEP, (30, 1.0, "verify"), (40, 3.0, "verify")], 3.0, 3, 40),
        (SWEEP, 1.8, 3, 7),
    ],
)
def test_thumbnails(tmp_path: Path, frames: list[Any], end: float, before: int, after: int) -> None:
    made = make(tmp_path)
    made.mmaf_focused(result=result(0))  # a run without frames: line 1 has none
    for value, z, purpose in frames:
        made.mmaf_frame(request=REQUEST, frame=frame(value, z), purpose=purpose)
    made.mmaf_focused(result=result(end=({"z": end})))
    assert made.path is not None
    paths = thumbnail_paths(made.path, 2)
    assert sorted((tmp_path / "thumbnails").iterdir()) == sorted(paths)
    assert tuple(bright_columns(path) for path in paths) == (before, after)


def test_frames_of_a_run_that_was_never_reported_are_not_taken_for_the_next(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.mmaf_frame(request=REQUEST, frame=frame(50, 0.0), purpose="start")
    other = FocusRequest(Event(label="B8_0000"), {"z": 0.0}, {"z": Limits(-10, 10)})
    made.mmaf_frame(request=other, frame=frame(9, 0.0), purpose="search")
    made.mmaf_focused(result=result(0))
    assert made.path is not None
    assert bright_columns(thumbnail_paths(made.path, 1)[0]) == 9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((100, 400), (40, 160)),
        ((400, 100), (160, 40)),
        ((30, 50), (30, 50)),
        ((200, 200, 3), (160, 160)),
        ((1, 999), (1, 160)),
    ],
)
def test_any_image_becomes_a_small_8_bit_one(dtype: Any, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    image = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    small = thumbnail(image, 160)
    assert (small.shape, small.dtype) == (size, np.uint8)


def test_flat_and_nan_images_do_not_fail() -> None:
    assert not thumbnail(np.full((20, 20), 7, np.uint16), 160).any()
    assert thumbnail(np.full((20, 20), np.nan), 160).shape == (20, 20)
