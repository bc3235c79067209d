from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mm_autofocus.benchmark.characterize import Attempt, Characterization, Characterize, Characterizer, Place, in_snake
from mm_autofocus.benchmark.truth import TruthSweep
from mm_autofocus.cli.characterize import characterize, places_of, under_test
from mm_autofocus.cli.demo_beads import bead_core
from mm_autofocus.errors import FocusError, LimitError, SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus_devices.autofocus_device import AutoFocusDevice
from mm_autofocus_devices.core import AutofocusCore

BEADS = Settings.parse(
    {
        "microscope": {"depth_of_field_um": 3.0},
        "knobs": {"z": {"limits": [-60.0, 60.0]}},
        "strategies": {"sweep": {"range_um": 60.0}},
    }
)


@pytest.fixture
def core() -> Iterator[AutofocusCore]:
    """DemoCamera's beads, sharpest at z = 0, on a camera of 128 pixels' centre."""
    pytest.importorskip("mm_test_adapters")
    core = bead_core()
    core.setROI(192, 192, 128, 128)
    yield core
    core.unloadAllDevices()


class Vendor:
    """An autofocus that ends ``bias`` µm from the beads' focus, gives up beyond ``capture``, and may misbehave."""

    name = "vendor"

    def __init__(self, core: Any, bias: float = 0.2, capture: float = 20.0) -> None:
        self.core, self.bias, self.capture = core, bias, capture
        self.goes_to: float | None = None
        self.fails: BaseException | None = None
        self.starts: list[float] = []

    def focus(self) -> tuple[bool, str, FocusResult | None]:
        z = self.core.getPosition()
        self.starts.append(z)
        if self.fails is not None and len(self.starts) >= 3:
            raise self.fails
        if abs(z) > self.capture:
            return False, "too far", None
        self.core.setPosition(self.bias if self.goes_to is None else self.goes_to)
        return True, "", None


def state(core: Any) -> tuple[object, ...]:
    return (
        round(core.getPosition(), 3), round(core.getXPosition(), 2), round(core.getYPosition(), 2), core.getExposure(),
        tuple(core.getROI()), core.getCameraDevice(), core.getAutoShutter(),
    )  # fmt: skip


def work(core: Any, focuser: Vendor, **options: Any) -> Characterizer:
    plan = Characterize.model_validate({"reach_um": 12.0, "offsets": 5, "repeats": 2} | options)
    return Characterizer(Microscope(core, BEADS), focuser, plan)


# ---------------------------------------------------------------------- known offsets
def test_an_autofocus_of_known_bias_is_found_to_have_it(core: AutofocusCore) -> None:
    core.setPosition(1.0)
    before = state(core)
    focuser = Vendor(core, bias=0.9)
    found = work(core, focuser).run()
    numbers = found.summary()
    assert (numbers["runs"], numbers["in_focus"], numbers["gave_up"], numbers["wrong"]) == (10, 10, 0, 0)
    assert numbers["bias_um"] == pytest.approx(0.9, abs=0.35)  # the beads are equally sharp within a µm
    assert numbers["repeatability_um"] < 0.05
    assert numbers["capture_um"] == (-12.0, 12.0)
    assert found.complete
    assert state(core) == before


def test_starts_are_where_they_were_said_to_be(core: AutofocusCore) -> None:
    focuser = Vendor(core)
    found = work(core, focuser, offsets=5, repeats=1).run()
    for attempt in found.attempts:
        assert attempt.start_z == pytest.approx((attempt.offset_um or 0) + (attempt.truth_z or 0), abs=0.5)
    assert {a.offset_um for a in found.attempts} == {-12.0, -6.0, 0.0, 6.0, 12.0}


def test_a_capture_range_ends_where_it_gives_up_and_a_bias_beyond_the_depth_is_wrong(core: AutofocusCore) -> None:
    numbers = work(core, Vendor(core, capture=8.0)).run().summary()
    assert numbers["capture_um"] == (-6.0, 6.0)
    assert numbers["gave_up"] == 4
    wrong = work(core, Vendor(core, bias=2.6)).run().summary()
    assert (wrong["in_focus"], wrong["wrong"], wrong["capture_um"]) == (0, 10, None)


def test_offsets_outside_the_limits_are_left_out(core: AutofocusCore) -> None:
    focuser = Vendor(core, capture=100.0)
    found = work(core, focuser, reach_um=80.0, offsets=5, repeats=1).run()
    assert found.left_out_um == [-80.0, 80.0]
    assert all(-60.0 <= z <= 60.0 for z in focuser.starts)
    with pytest.raises(SettingsError, match=r"no start within ±300 µm"):
        work(core, focuser, reach_um=300.0, offsets=2).run()


def test_a_device_that_leaves_the_limits_is_stopped_and_brought_back(core: AutofocusCore) -> None:
    before = state(core)
    focuser = Vendor(core)
    focuser.goes_to = 75.0
    with pytest.raises(LimitError, match=r"'vendor' went to 75 µm, outside the limits \[-60, 60\]"):
        work(core, focuser).run()
    assert state(core) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the driver died")])
def test_whatever_interrupts_it_the_instrument_is_put_back(core: AutofocusCore, error: BaseException) -> None:
    core.setPosition(2.0)
    core.setXYPosition(100.0, 200.0)
    core.waitForDevice("XY")
    before = state(core)
    focuser = Vendor(core)
    focuser.fails = error
    job = work(core, focuser, repeats=1)
    with pytest.raises(type(error)):
        job.run()
    assert state(core) == before
    assert len(job.found.attempts) == 2
    assert not job.found.complete


def test_continuous_focus_is_off_meanwhile_and_on_again(core: AutofocusCore) -> None:
    core.loadDevice("AF", "DemoCamera", "DAutoFocus")
    core.initializeDevice("AF")
    core.setAutoFocusDevice("AF")
    core.enableContinuousFocus(True)
    seen: list[bool] = []

    class Watching(Vendor):
        def focus(self) -> tuple[bool, str, FocusResult | None]:
            seen.append(core.isContinuousFocusEnabled())
            return super().focus()

    work(core, Watching(core), offsets=2, repeats=1).run()
    assert seen == [False, False]
    assert core.isContinuousFocusEnabled()


def test_without_specimen_it_says_so_and_moves_nothing_for_good(core: AutofocusCore) -> None:
    core.setProperty("Camera", "Mode", "Color Test Pattern")
    before = state(core)
    with pytest.raises(FocusError, match="show no plane in focus"):
        work(core, Vendor(core)).run()
    assert state(core) == before


# ---------------------------------------------------------------------- truth
@pytest.mark.parametrize("start", [0.0, -9.0, 14.0, 40.0])
def test_the_truth_is_located_from_afar(core: AutofocusCore, start: float) -> None:
    sweep = TruthSweep(Microscope(core, BEADS))
    core.setPosition(start)
    assert sweep.locate(start) == pytest.approx(0.0, abs=0.6)
    assert core.getPosition() == pytest.approx(0.0, abs=0.6)
    assert sweep.images > 8


def test_the_truth_needs_room_inside_the_limits(core: AutofocusCore) -> None:
    with pytest.raises(LimitError, match="no room inside the limits"):
        TruthSweep(Microscope(core, BEADS), half_um=2.0).find(62.0)


# ---------------------------------------------------------------------- the plate
PLATE = [Place(f"{row}{column + 1}", 1000.0 * column, -1000.0 * r) for r, row in enumerate("AB") for column in range(3)]


def test_snakes_turn_round_at_every_row_and_column() -> None:
    assert [p.name for p in in_snake(PLATE, "horizontal")] == ["A1", "A2", "A3", "B3", "B2", "B1"]
    assert [p.name for p in in_snake(PLATE[::-1], "vertical")] == ["A1", "B1", "B2", "A2", "A3", "B3"]
    assert in_snake(PLATE[:1], "vertical") == PLATE[:1]


def test_fields_of_a_well_stay_in_its_row() -> None:
    fields = [Place(f"{p.name}_{i}", p.x + 50.0 * i, p.y + 20.0 * i) for p in PLATE for i in range(2)]
    names = [p.name for p in in_snake(fields, "horizontal")]
    assert names[:6] == ["A1_0", "A1_1", "A2_0", "A2_1", "A3_0", "A3_1"]
    assert names[6] == "B3_1"


def test_a_plate_is_visited_in_both_directions_and_scored(core: AutofocusCore) -> None:
    before = state(core)
    found = work(core, Vendor(core, bias=0.5), offsets=2, repeats=1).run(PLATE)
    assert [(a.snake, a.place) for a in found.plate] == [
        (snake, p.name) for snake in ("horizontal", "vertical") for p in in_snake(PLATE, snake)
    ]
    numbers = found.summary()["plate"]
    assert numbers["horizontal"]["in_focus"] == numbers["vertical"]["in_focus"] == 6
    assert numbers["vertical"]["sd_um"] < 0.3
    assert state(core) == before


# ---------------------------------------------------------------------- numbers by hand
def attempt(offset: float, error: float | None, ok: bool = True) -> Attempt:
    truth = None if error is None else 0.0
    return Attempt(offset_um=offset, start_z=offset, end_z=error or 0.0, truth_z=truth, ok=ok, seconds=1.0)


def test_numbers_by_hand() -> None:
    runs = [
        attempt(-5, 0.1),
        attempt(-5, 0.3),
        attempt(0, 0.0),
        attempt(0, 0.0),
        attempt(5, 9.0),
        attempt(5, 0.0, ok=False),
    ]
    found = Characterization(device="x", depth_of_field_um=1.0, limits=(-9, 9), attempts=runs)
    numbers = found.summary()
    assert (numbers["runs"], numbers["in_focus"], numbers["gave_up"], numbers["wrong"]) == (6, 4, 1, 1)
    assert numbers["repeatability_um"] == pytest.approx((0.02 / 2) ** 0.5)  # pooled over two starts of two repeats
    assert numbers["capture_um"] == (-5.0, 0.0)
    assert numbers["worst_um"] == 9.0
    rows = found.by_offset()
    assert [(row["offset_um"], row["in_focus"], row["gave_up"]) for row in rows] == [(-5, 2, 0), (0, 2, 0), (5, 0, 1)]


def test_runs_without_truth_are_not_counted() -> None:
    found = Characterization(device="x", depth_of_field_um=1.0, limits=(-9, 9), attempts=[attempt(0, None)])
    assert found.summary()["runs"] == 0
    assert found.summary()["capture_um"] is None


# ---------------------------------------------------------------------- the command's work
class Biased(AutoFocusDevice):
    """A Micro-Manager device that ends half a µm off."""

    def full_focus(self, core: AutofocusCore) -> None:
        core.setPosition(0.5)


def test_a_vendors_device_behind_full_focus_gets_a_report(core: AutofocusCore, tmp_path: Path) -> None:
    device = Biased()
    core.loadPyDevice("AF", device)
    core.initializeDevice("AF")
    core.setAutoFocusDevice("AF")
    outcome = characterize(
        core, BEADS, out=tmp_path, say=lambda _: None, reach_um=9.0, offsets=3, repeats=1, facts={"configuration": "x"}
    )
    assert (outcome["device"], outcome["in_focus"], outcome["images_mean"]) == ("AF", 3, None)
    page = (tmp_path / "characterize.html").read_text()
    assert "Characterisation of AF" in page
    assert "plot-error-near" in page
    kept = json.loads((tmp_path / "characterize.json").read_text())
    assert len(kept["attempts"]) == 3
    assert kept["summary"]["in_focus"] == 3


def test_our_strategy_tells_its_images_too(core: AutofocusCore, tmp_path: Path) -> None:
    outcome = characterize(core, BEADS, out=tmp_path, say=lambda _: None, reach_um=15.0, offsets=3, repeats=1)
    assert outcome["device"] == "sweep"
    assert outcome["in_focus"] == 3
    assert outcome["images_mean"] > 4


def test_what_was_measured_before_ctrl_c_is_written(core: AutofocusCore, tmp_path: Path) -> None:
    class Interrupted(Biased):
        runs = 0

        def full_focus(self, core: AutofocusCore) -> None:
            self.runs += 1
            if self.runs > 2:
                raise KeyboardInterrupt
            super().full_focus(core)

    core.loadPyDevice("AF", Interrupted())
    core.initializeDevice("AF")
    core.setAutoFocusDevice("AF")
    with pytest.raises(KeyboardInterrupt):
        characterize(core, BEADS, out=tmp_path, say=lambda _: None, reach_um=9.0, offsets=4, repeats=1)
    assert "INTERRUPTED" in (tmp_path / "characterize.html").read_text()
    assert len(json.loads((tmp_path / "characterize.json").read_text())["attempts"]) == 2


def test_without_a_device_the_strategy_is_tested_and_a_device_that_is_wanted_is_missed(core: AutofocusCore) -> None:
    assert under_test(core, BEADS)[1].name == "sweep"
    with pytest.raises(SettingsError, match="no AutoFocus device"):
        under_test(core, BEADS, "device")
    with pytest.raises(SettingsError, match='no knob "z"'):
        under_test(core, Settings.parse({"knobs": {"x": {"axis": "x", "limits": [0, 1]}}}))


def test_the_positions_of_a_plan_are_visited_once(tmp_path: Path) -> None:
    events = [
        {"axes": {"position": "A1", "z": z}, "x": 1.0, "y": 2.0, "z": float(z)} for z in range(3)
    ] + [{"axes": {"position": "A2"}, "x": 5.0, "y": 2.0}]  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(events))
    assert places_of(tmp_path / "plan.json") == [Place("A1", 1.0, 2.0), Place("A2", 5.0, 2.0)]
    (tmp_path / "none.json").write_text(json.dumps([{"axes": {"position": 0}}]))
    with pytest.raises(SettingsError, match="no positions with x and y"):
        places_of(tmp_path / "none.json")
