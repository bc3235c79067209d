"""``recalibrate sem`` as a user runs it: against a server, with everything put back, and errors that say what to do."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import FocusError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate
from mm_autofocus.estimators.spectral import SpectralEstimator
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.training.known_pairs import KnownPair
from mm_autofocus.training.sem_calibration import STEPS, measure_calibration
from mm_autofocus_devices.sem.server import SemServer
from sem_rig import configuration, knobs, load, make_column

TRUE = ColumnCalibration(6.2, 4.3, -104.0, (0.011, 0.006))
"""Setup B in image axes; the settings of these tests believe `WRONG`, that of setup A."""
WRONG = {"convergence_mrad": 8.7, "stigmator_um": 6.0, "stigmator_rotation_deg": 3.0}

SETTINGS = """strategy = "phase-diversity"
[microscope]
depth_of_field_um = 2.0
[knobs.z]
limits = [5900, 6100]
tolerance = 0.05
[knobs.stig_x]
device = "Stigmators"
axis = "x"
limits = [-20, 20]
tolerance = 0.01
depth = 0.5
[knobs.stig_y]
device = "Stigmators"
axis = "y"
limits = [-20, 20]
tolerance = 0.01
depth = 0.5
[strategies.phase-diversity]
convergence_mrad = 8.7
stigmator_um = 6.0
stigmator_rotation_deg = 3.0
"""


class Witness:
    """Remembers at which aberration each frame was taken, and reads pairs as a network with a wrong calibration does.

    The defocus follows the knob by (true over assumed angle) to the power of 1.35, as the spectral network's does.
    """

    def __init__(self, column: Column) -> None:
        self.frames: dict[bytes, Aberration] = {}
        self.scans = 0
        self.signal = 10.0
        scan = column.scan

        def remember(*args: Any, **kwargs: Any) -> Any:
            frame = scan(*args, **kwargs)
            self.frames[frame.tobytes()] = column.truth()
            self.scans += 1
            return frame

        column.scan = remember  # type: ignore[method-assign]

    def estimate(
        self, under: Any, over: Any, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        truths = [self.frames[np.ascontiguousarray(frame).tobytes()].vector() for frame in (under, over)]
        middle = Aberration(*(float(v) for v in np.mean(truths, axis=0)))
        um = TRUE.to_blur(middle, 1.0) / TRUE.blur_per_um(1.0)
        um *= (TRUE.convergence_mrad / calibration.convergence_mrad) ** 1.35
        seen = calibration.from_blur(um * calibration.blur_per_um(1.0), 1.0)
        shift = tuple(step_um * s / pixel_um for s in TRUE.shift_um_per_um)
        return PairEstimate(seen, Aberration(0.3, 0.1, 0.1), (), self.signal, (shift[0], shift[1]), 1.0)


class Rig:
    """A server, a configuration and settings for it, and the command."""

    def __init__(self, folder: Path, column: Column, port: int) -> None:
        self.column, self.folder = column, folder
        self.config = configuration(folder, port, name="sem_b", timeout_s=5.0, retry_s=10.0)
        self.settings = folder / "autofocus.toml"
        self.settings.write_text(SETTINGS, encoding="utf-8")
        self.out = folder / "out" / "column.toml"

    def run(self, *arguments: str, out: Path | None = None) -> Any:
        app = typer.Typer()
        from mm_autofocus.cli import app_sem_training

        app_sem_training.register(Groups.make(app))
        return CliRunner().invoke(
            app,
            ["recalibrate", "sem", "--config", str(self.config), "--settings", str(self.settings), "--out",
             str(out or self.out), *arguments],
        )  # fmt: skip

    def state(self) -> tuple[float, ...]:
        c = self.column
        return c.working_distance_um, c.stig_x, c.stig_y, c.x_um, c.y_um


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    column = make_column("B")
    with SemServer(column, port=0) as server:
        yield Rig(tmp_path, column, server.port)


@pytest.fixture
def witness(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Witness:
    witness = Witness(rig.column)
    monkeypatch.setattr(SpectralEstimator, "load", classmethod(lambda cls, path="": witness))
    return witness


# ------------------------------------------------------------------------------------------------------------- ours
def test_calibration_is_written_for_pasting_and_everything_is_back(rig: Rig, witness: Witness) -> None:
    before = rig.state()
    result = rig.run("--json")
    assert result.exit_code == 0, result.output
    assert rig.state() == pytest.approx(before, abs=1e-3)
    assert rig.column.blanked
    outcome = json.loads(result.stdout)
    assert outcome["frames"] == witness.scans == 2 * len(STEPS)
    assert outcome["was"]["convergence_mrad"] == 8.7
    assert outcome["convergence_angle"] == "measured"
    section = tomllib.loads(rig.out.read_text(encoding="utf-8"))["strategies"]["phase-diversity"]
    assert section["convergence_mrad"] == pytest.approx(6.2, rel=0.03)
    assert section["stigmator_um"] == pytest.approx(4.3, rel=0.05)
    assert math.remainder(section["stigmator_rotation_deg"] + 104.0, 180.0) == pytest.approx(0.0, abs=1.0)
    assert section["shift_um_per_um"] == pytest.approx([0.011, 0.006], abs=1e-4)
    pasted = rig.settings.read_text(encoding="utf-8").partition("[strategies")[0] + rig.out.read_text(encoding="utf-8")
    from mm_autofocus.settings import Settings

    assert Settings.parse(tomllib.loads(pasted)).strategies["phase-diversity"] == section


def test_a_blank_place_is_left_after_its_first_pair(rig: Rig, witness: Witness) -> None:
    before, witness.signal = rig.state(), 0.0
    result = rig.run()
    assert result.exit_code == 2
    assert "no specimen" in result.output
    assert witness.scans == 2
    assert rig.state() == pytest.approx(before, abs=1e-3)
    assert not rig.out.exists()


def test_limits_that_are_too_tight_stop_it_before_anything_moves(rig: Rig, witness: Witness) -> None:
    rig.settings.write_text(SETTINGS.replace("[5900, 6100]", "[5991, 6009]"), encoding="utf-8")
    result = rig.run("--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["error"]) == (2, "LimitError"), told
    assert "[knobs.z]" in told["message"]
    assert witness.scans == 0
    assert not rig.out.exists()


def test_it_says_so_when_the_file_cannot_be_written(rig: Rig, witness: Witness) -> None:
    (rig.folder / "file").write_text("x", encoding="utf-8")
    for out in (rig.folder / "file" / "column.toml", rig.folder / "column.txt"):
        result = rig.run(out=out)
        assert result.exit_code == 2
        assert "--out" in result.output
    assert witness.scans == 0


def test_without_a_server_it_says_where_it_looked(tmp_path: Path) -> None:
    rig = Rig(tmp_path, make_column("B"), 1)
    text = rig.config.read_text(encoding="utf-8").replace("RetryFor,10.0", "RetryFor,0.2")
    rig.config.write_text(text, encoding="utf-8")
    result = rig.run()
    assert result.exit_code == 2
    assert "127.0.0.1:1" in result.output.replace("\n", "")
    assert not rig.out.exists()


def test_ctrl_c_puts_the_column_back(rig: Rig, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm_autofocus.microscope.microscope import Microscope

    before, snap = rig.state(), Microscope.snap

    def interrupted(self: Microscope, **arguments: Any) -> Any:
        if witness.scans == 9:
            raise KeyboardInterrupt
        return snap(self, **arguments)

    monkeypatch.setattr(Microscope, "snap", interrupted)
    result = rig.run()
    assert result.exit_code == 130
    assert rig.state() == pytest.approx(before, abs=1e-3)
    assert not rig.out.exists()


# ------------------------------------------------------------------------------------------------- what pairs can say
class Linear:
    """Reads a pair whose frames hold the aberration."""

    def __init__(self, gain: float = 1.0, mirror: float = 1.0) -> None:
        self.gain, self.mirror = gain, mirror

    def estimate(self, under: Any, over: Any, step_um: float, pixel_um: float, calibration: Any) -> PairEstimate:
        z, x, y = (float(v) for v in under[0, :3])
        seen = calibration.from_blur(TRUE.to_blur(Aberration(z * self.gain, x, y * self.mirror), 1.0)
                                     / TRUE.blur_per_um(1.0) * calibration.blur_per_um(1.0), 1.0)  # fmt: skip
        return PairEstimate(seen, Aberration(0.2, 0.05, 0.05))


def pairs_at(offsets: Any) -> list[KnownPair]:
    frames = [np.array([offset], dtype=float) for offset in offsets]
    return [
        KnownPair(f, f, Aberration(*(float(v) for v in o)), 10.0, 0.01) for f, o in zip(frames, offsets, strict=True)
    ]


def test_the_angle_is_left_as_it_was_without_moves_of_the_working_distance() -> None:
    fit = measure_calibration(pairs_at(STEPS[3:]), Linear(), ColumnCalibration(8.7, 6.0, 3.0))
    assert fit.calibration.convergence_mrad == 8.7
    assert fit.angle.startswith("left as it was")
    assert fit.calibration.stigmator_um == pytest.approx(4.3, rel=0.02)


def test_a_working_distance_that_stands_still_is_no_calibration() -> None:
    with pytest.raises(FocusError, match="do not follow the working distance"):
        measure_calibration(pairs_at(STEPS), Linear(gain=0.0))


def test_swapped_stigmators_are_recognised() -> None:
    with pytest.raises(FocusError, match="swapped"):
        measure_calibration(pairs_at(STEPS), Linear(mirror=-1.0))


# --------------------------------------------------------------------------------------------------- the paper's way
class Truth:
    """A score that is the distance from focus; stands for a DeepScore that was trained long enough."""

    def __init__(self, column: Column) -> None:
        self.column = column

    def score(self, image: Any, pixel_um: float, calibration: Any) -> tuple[float, float]:
        z, x, y = self.column.truth().vector()
        return abs(z) / 5, math.hypot(x, y)


def test_labels_come_from_deepscore_and_the_stage_goes_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm_autofocus.cli import sem_recalibrate
    from mm_autofocus.settings import Settings
    from mm_autofocus.strategies import deepscore

    monkeypatch.setattr(deepscore, "_load", lambda settings: Truth(rig.column))
    ends_soon = "[strategies.deepscore]\nmax_images = 40\nthreshold = 0.3\n"
    rig.settings.write_text(SETTINGS + ends_soon, encoding="utf-8")
    before = rig.state()
    core = load(rig.config)
    try:
        told: list[str] = []
        pairs, left_out = sem_recalibrate._labelled(
            core, Settings.load(rig.settings), (2, 5, 30.0), 1, (), told.append, lambda done, of: None
        )
        assert not left_out
        assert len(pairs) == 10
        assert rig.state() == pytest.approx(before, abs=1e-3)
        assert np.ptp([pair.knobs.stig_x for pair in pairs]) > 2
        monkeypatch.setattr(sem_recalibrate, "_FEWEST_LABELLED", 11)
        with pytest.raises(FocusError, match="nothing was written"):
            sem_recalibrate._labelled(
                core, Settings.load(rig.settings), (1, 1, 30.0), 1, (), told.append, lambda done, of: None
            )
        assert knobs(core) == pytest.approx(before[:3], abs=1e-3)
    finally:
        core.unloadAllDevices()


def test_a_base_that_cannot_be_fine_tuned_is_refused_before_the_labelling(rig: Rig, witness: Witness) -> None:
    pytest.importorskip("torch")
    before = rig.state()
    result = rig.run("--method", "deepfocus", "--base", "sem_deepfocus_patch_scores", out=rig.folder / "new.json")
    assert result.exit_code != 0
    assert "patch-scores" in result.output
    assert "Table 2" in result.output
    assert witness.scans == 0
    assert rig.state() == before
    assert not (rig.folder / "new.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_setup_b_converges_after_it(tmp_path: Path) -> None:
    """The strategy that believes setup A's calibration, before and after, on three fields of setup B."""
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.settings import Settings

    column = Column("B", "tissue", 3)
    with SemServer(column, port=0) as server:
        rig = Rig(tmp_path, column, server.port)
        rig.config = configuration(tmp_path, server.port, name="sem_b", frame="1024x768", timeout_s=30.0)
        result = rig.run()
        assert result.exit_code == 0, result.output
        print(result.output)
        section = tomllib.loads(rig.out.read_text(encoding="utf-8"))["strategies"]["phase-diversity"]
        core = load(rig.config)
        try:
            good = {}
            for name, calibration in (("before", WRONG), ("after", section)):
                base = tomllib.loads(SETTINGS) | {"strategies": {"phase-diversity": calibration}}
                good[name] = 0
                for i, off in enumerate(((15.0, 2.0, -2.0), (-15.0, -2.0, 2.0), (8.0, 3.0, 1.0))):
                    core.setXYPosition(200.0 + 40.0 * i, 100.0)
                    truth = column.truth()
                    for knob, was, wanted in zip(
                        ("working_distance_um", "stig_x", "stig_y"), truth.vector(), off, strict=True
                    ):
                        setattr(column, knob, getattr(column, knob) - was + wanted)
                    Autofocus(core, Settings.parse(base)).focus()
                    left = np.abs(column.truth().vector())
                    good[name] += bool(np.all(left < [1.0, 0.25, 0.25]))
                    print(name, i, left.round(2), flush=True)
            assert good["after"] == 3
            assert good["before"] < 3
        finally:
            core.unloadAllDevices()
