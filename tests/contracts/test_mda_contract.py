"""What pymmcore-plus's acquisition engine does with autofocus, and what CorrectedMDAEngine does better."""

from __future__ import annotations

from typing import Any

import pytest
import useq
from contract_devices import SequenceableStage, device, make_core
from pymmcore_plus.mda import MDAEngine, SkipEvent

from mm_autofocus.errors import FocusError
from mm_autofocus_hooks.mda_engine import CorrectedMDAEngine

ENGINES = [MDAEngine, CorrectedMDAEngine]
TWO_POSITIONS = [{"x": 0, "y": 0, "z": 10}, {"x": 1, "y": 1, "z": 20}]
GRID = useq.GridRowsColumns(rows=1, columns=2, fov_width=1, fov_height=1)


def focus_per_position() -> useq.AxesBasedAF:
    return useq.AxesBasedAF(axes=("p",))  # a new one each time: see test_a_plan_remembers


def run(core: Any, engine: Any, events: Any) -> list[tuple[dict[str, int], float, float | None]]:
    """Run events and return index, real z and nominal z of every frame."""
    frames: list[Any] = []

    def ready(image: Any, event: useq.MDAEvent, meta: Any) -> None:
        frames.append((dict(event.index), meta.get("position", {}).get("z"), event.z_pos))

    core.mda.set_engine(engine)
    core.mda.events.frameReady.connect(ready)
    try:
        core.mda.run(events)
    finally:
        core.mda.events.frameReady.disconnect(ready)
    return frames


@pytest.mark.parametrize("engine", ENGINES)
def test_correction_per_position_accumulates(core: Any, engine: type[MDAEngine]) -> None:
    plan = useq.MDASequence(
        axis_order="tpc",
        stage_positions=TWO_POSITIONS,
        time_plan={"interval": 0, "loops": 2},
        channels=[],
        autofocus_plan=focus_per_position(),
    )
    expected = [
        ({"t": 0, "p": 0}, 15, 10),
        ({"t": 0, "p": 1}, 25, 20),
        ({"t": 1, "p": 0}, 20, 10),
        ({"t": 1, "p": 1}, 30, 20),
    ]
    assert run(core, engine(core), plan) == expected
    assert run(core, core.mda.engine, plan) == expected  # a new sequence begins anew


@pytest.mark.parametrize("engine", ENGINES)
def test_tiles_of_a_grid_share_the_correction_of_their_position(core: Any, engine: type[MDAEngine]) -> None:
    plan = useq.MDASequence(stage_positions=TWO_POSITIONS, grid_plan=GRID, autofocus_plan=focus_per_position())
    assert [frame[1] for frame in run(core, engine(core), plan)] == [15, 15, 25, 25]


@pytest.mark.parametrize(("engine", "real"), [(MDAEngine, [15, 20, 20, 20]), (CorrectedMDAEngine, [15, 20, 15, 20])])
def test_every_tile_focused(core: Any, engine: type[MDAEngine], real: list[float]) -> None:
    """With a focus run on each tile, MDAEngine mixes the corrections of the tiles up."""
    focus = useq.AxesBasedAF(axes=("p", "g"))
    tiles = list(useq.MDASequence(stage_positions=[TWO_POSITIONS[0]], grid_plan=GRID, autofocus_plan=focus))
    again = [event for event in tiles if event.action.type == "acquire_image"]
    assert [frame[1] for frame in run(core, engine(core), [*tiles, *again])] == real


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("failures", "runs", "z"), [(2, 3, 15), (3, 3, 10)])
def test_runtime_error_is_tried_three_times(
    core: Any, engine: type[MDAEngine], failures: int, runs: int, z: float
) -> None:
    device(core, "AF").failures = [FocusError("no signal")] * failures
    plan = useq.MDASequence(stage_positions=TWO_POSITIONS[:1], autofocus_plan=focus_per_position())
    assert [frame[1] for frame in run(core, engine(core), plan)] == [z]
    assert device(core, "AF").runs == runs


def test_other_exception_ends_a_stock_run_but_not_ours(core: Any) -> None:
    plan = useq.MDASequence(stage_positions=TWO_POSITIONS, autofocus_plan=focus_per_position())

    def timeout() -> None:
        raise TimeoutError("Wait for device 'Z' timed out")  # waitForSystem() of Python devices; no RuntimeError

    core.waitForSystem = timeout
    engine = CorrectedMDAEngine(core)
    engine.setup_event = engine.setup_single_event  # setup_event waits for the system as well
    assert [frame[1] for frame in run(core, engine, plan)] == [10, 20]

    stock = MDAEngine(core)
    stock.setup_event = stock.setup_single_event
    with pytest.raises(TimeoutError):
        run(core, stock, plan)


@pytest.mark.parametrize(("engine", "shift"), [(MDAEngine, 0), (CorrectedMDAEngine, 5)])
def test_correction_of_hardware_triggered_stacks(engine: type[MDAEngine], shift: float) -> None:
    core = make_core(SequenceableStage)
    plan = useq.MDASequence(
        stage_positions=TWO_POSITIONS, z_plan={"range": 2, "step": 1}, autofocus_plan=focus_per_position()
    )
    frames = run(core, engine(core), plan)
    assert [frame[2] for frame in frames] == [9, 10, 11, 19, 20, 21]  # nominal
    assert device(core, "Z").sequences == [
        (9 + shift, 10 + shift, 11 + shift),
        (19 + shift, 20 + shift, 21 + shift),
    ]


@pytest.mark.parametrize(("engine", "z"), [(MDAEngine, 10), (CorrectedMDAEngine, 15)])
def test_correction_of_a_burst_at_one_z(engine: type[MDAEngine], z: float) -> None:
    core = make_core()
    plan = useq.MDASequence(
        axis_order="ptc",
        stage_positions=TWO_POSITIONS[:1],
        time_plan={"interval": 0, "loops": 3},
        autofocus_plan=focus_per_position(),
    )
    frames = run(core, engine(core), plan)
    assert len(frames) == 3
    assert core.getPosition() == z


def test_positions_are_not_merged() -> None:
    core = make_core(SequenceableStage)
    events = [useq.MDAEvent(index={"p": p, "z": z}, z_pos=z) for p in (0, 1) for z in (0, 1)]
    assert [len(e.events) for e in MDAEngine(core).event_iterator(events)] == [4]
    assert [len(e.events) for e in CorrectedMDAEngine(core).event_iterator(events)] == [2, 2]
    unmerged = CorrectedMDAEngine(core, use_hardware_sequencing=False)
    assert list(unmerged.event_iterator(events)) == events


def test_the_correction_can_come_from_elsewhere(core: Any) -> None:
    class Ours(CorrectedMDAEngine):
        def correction(self, event: useq.MDAEvent) -> float:
            return 100.0 * event.index["p"]

    plan = useq.MDASequence(stage_positions=TWO_POSITIONS)
    assert [frame[1] for frame in run(core, Ours(core), plan)] == [10, 120]


def test_a_plan_remembers(core: Any) -> None:
    """useq's AxesBasedAF keeps the last index beyond its sequence: one position is focused in the first run only."""
    plan = useq.MDASequence(stage_positions=TWO_POSITIONS[:1], autofocus_plan=focus_per_position())
    assert [frame[1] for _ in range(2) for frame in run(core, CorrectedMDAEngine(core), plan)] == [15, 10]


def test_no_autofocus_device(core: Any) -> None:
    core.setAutoFocusDevice("")
    plan = useq.MDASequence(stage_positions=TWO_POSITIONS, autofocus_plan=focus_per_position())
    assert [frame[1] for frame in run(core, CorrectedMDAEngine(core), plan)] == [10, 20]


def test_no_shutter_and_auto_shutter(core: Any) -> None:
    """UniMMCore's own getAutoShutter() is True here, and MDAEngine then fails on the shutter with label ""."""
    core.setShutterDevice("")
    core.setAutoShutter(True)
    assert len(run(core, MDAEngine(core), useq.MDASequence(stage_positions=TWO_POSITIONS))) == 2


# ------------------------------------------------------------------------ hook points of an engine


def test_skip_event(core: Any) -> None:
    class Skips(CorrectedMDAEngine):
        def setup_event(self, event: useq.MDAEvent) -> None:
            super().setup_event(event)
            if event.index["p"] == 0:
                raise SkipEvent(1, "out of focus")

    assert [frame[0] for frame in run(core, Skips(core), useq.MDASequence(stage_positions=TWO_POSITIONS))] == [{"p": 1}]


def test_custom_action_reaches_exec_event(core: Any) -> None:
    seen: list[Any] = []

    class Acts(CorrectedMDAEngine):
        def exec_event(self, event: useq.MDAEvent) -> Any:
            if isinstance(event.action, useq.CustomAction):
                seen.append((event.action.name, event.action.data))
            return super().exec_event(event)

    action = useq.CustomAction(name="mm_autofocus", data={"strategy": "sweep"})
    assert run(core, Acts(core), [useq.MDAEvent(action=action)]) == []
    assert seen == [("mm_autofocus", {"strategy": "sweep"})]


def test_events_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        useq.MDAEvent().z_pos = 3  # type: ignore[misc]


def fail(*_: Any) -> None:
    raise ValueError("oops")


def test_exception_in_event_started_ends_the_run(core: Any) -> None:
    core.mda.events.eventStarted.connect(fail)
    with pytest.raises(Exception, match="oops"):
        run(core, MDAEngine(core), useq.MDASequence(stage_positions=TWO_POSITIONS))


def test_exception_in_frame_ready_is_only_logged(core: Any) -> None:
    """But the slots that were connected after the failing one do not get the frame."""
    early: list[Any] = []
    core.mda.events.frameReady.connect(lambda *frame: early.append(frame))
    core.mda.events.frameReady.connect(fail)
    late = run(core, MDAEngine(core), useq.MDASequence(stage_positions=TWO_POSITIONS))
    assert (len(early), len(late)) == (2, 0)


def test_failed_snap_is_a_warning_and_a_missing_frame(core: Any) -> None:
    device(core, "Cam").failures = [RuntimeError("cooler off")]
    frames = run(core, MDAEngine(core), useq.MDASequence(stage_positions=TWO_POSITIONS))
    assert [frame[0] for frame in frames] == [{"p": 1}]
