"""The callers on real engines: triggered stacks, second runs, coarse and fine drives, channels and their offsets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

sys.path.append(str(Path(__file__).parent.parent / "contracts"))
import mm_test_adapters
import pytest
import useq
from java_core import JavaCore

from mm_autofocus import Autofocus, Look, StrategySettings, Verdict, hookimpl
from mm_autofocus.cli.acquire import as_pycromanager, channel_offsets
from mm_autofocus.errors import SettingsError
from mm_autofocus.events import from_pycromanager, from_useq, useq_channel_offset
from mm_autofocus.ledger import Ledger
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_hooks.pycromanager import PycromanagerCaller


class LoggingCore(AutofocusCore):
    """Says that its stage can be triggered, and keeps every command."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        super().__init__()

    def setPosition(self, *args: Any) -> None:
        self.log.append(("move", args[0] if len(args) > 1 else self.getFocusDevice(), args[-1]))
        super().setPosition(*args)

    def snapImage(self) -> None:
        self.log.append(("snap", self.getCurrentConfig("Channel") if self.getAvailableConfigGroups() else ""))
        super().snapImage()

    def isStageSequenceable(self, label: str) -> bool:
        return True

    def getStageSequenceMaxLength(self, label: str) -> int:
        return 100

    def loadStageSequence(self, label: str, positions: Any) -> None:
        self.log.append(("load", list(positions)))

    def startStageSequence(self, label: str) -> None:
        self.log.append(("start",))


@pytest.fixture
def core() -> Iterator[LoggingCore]:
    core = LoggingCore()
    core.setDeviceAdapterSearchPaths([str(mm_test_adapters.device_adapter_path())])
    devices = {"Camera": "DCam", "Z": "DStage", "XY": "DXYStage", "Wheel": "DWheel"}
    for label, name in devices.items():
        core.loadDevice(label, "DemoCamera", name)
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setFocusDevice("Z")
    core.setXYStageDevice("XY")
    core.setExposure(1.0)
    core.setAutoShutter(False)
    for name, label in (("DAPI", "State-1"), ("FITC", "State-2")):
        core.defineConfig("Channel", name, "Wheel", "Label", label)
    core.setConfig("Channel", "DAPI")
    core.waitForConfig("Channel", "DAPI")
    yield core
    core.unloadAllDevices()


class Goes:
    """A plugin with a strategy that always finds the focus at ``z``."""

    z = 0.0

    @hookimpl
    def mmaf_strategies(self) -> list[Any]:
        plugin = self

        class Oracle:
            name: ClassVar[str] = "oracle"
            Settings: ClassVar[type[StrategySettings]] = StrategySettings

            def __init__(self, settings: Any) -> None:
                self.settings = settings

            def focus(self, request: Any) -> Any:
                z = request.limits["z"].clip(plugin.z)
                yield Look({"z": z})
                return Verdict({"z": z}, 0.99)

            def score(self, frame: Any) -> float:
                return -abs(float(frame.knobs["z"]) - plugin.z)

        return [Oracle]


def make(core: Any, low: float, high: float, **changes: Any) -> tuple[Autofocus, Goes]:
    plugin = Goes()
    knobs = {"z": {"limits": [low, high], **changes.pop("knob", {})}}
    microscope = {"depth_of_field_um": 2.0}
    return Autofocus(core, strategy="oracle", plugins=[plugin], microscope=microscope, knobs=knobs, **changes), plugin


def test_every_slice_of_a_triggered_stack_stays_inside_and_focusing_comes_before_arming(core: LoggingCore) -> None:
    autofocus, plugin = make(core, 0, 20)
    plugin.z = 17.0
    core.mda.set_engine(autofocus.mda_engine())
    core.log.clear()
    stack = useq.MDASequence(stage_positions=[(0, 0, 6.0)], z_plan={"range": 8, "step": 2})  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):  # DemoCamera's camera cannot be triggered after all
        core.mda.run(stack)
    loaded = [entry for entry in core.log if entry[0] == "load"]
    assert loaded == [("load", [13.0, 15.0, 17.0, 19.0, 20.0])]
    snaps = [i for i, entry in enumerate(core.log) if entry[0] == "snap"]
    assert snaps
    assert max(snaps) < core.log.index(("start",))


def test_a_second_run_with_another_z_is_placed_by_its_own_plan(core: LoggingCore) -> None:
    autofocus, plugin = make(core, -200, 200)
    core.mda.set_engine(autofocus.mda_engine())
    taken: list[float] = []
    core.mda.events.frameReady.connect(lambda image, event, meta: taken.append(core.getPosition()))
    for z in (0.0, 80.0):
        plugin.z = z + 1.0
        core.mda.run(useq.MDASequence(stage_positions=[(0, 0, z)]))  # type: ignore[arg-type]
    assert taken == pytest.approx([1.0, 81.0])


def test_a_skipped_place_is_not_skipped_for_ever(core: LoggingCore) -> None:
    autofocus = make(core, -50, 50, min_confidence=1.0, failure={"low_confidence": "skip"})[0]
    event = from_pycromanager({"axes": {"position": 0}, "x": 0.0, "y": 0.0, "z": 0.0})
    assert autofocus.at(event).skip
    assert autofocus.where(event).skip
    autofocus.finish()
    autofocus.start()
    assert not autofocus.where(event).skip


@pytest.mark.parametrize("engine", ["pycromanager", "mda"])
def test_a_knob_that_is_not_the_focus_drive_is_refused(core: LoggingCore, engine: str) -> None:
    core.loadDevice("Piezo", "DemoCamera", "DStage")
    core.initializeDevice("Piezo")
    autofocus, _ = make(core, 0, 100, knob={"device": "Piezo"})
    core.log.clear()
    message = r"move the core's focus drive 'Z', but \[knobs.z\] focuses with 'Piezo'"
    if engine == "mda":
        core.mda.set_engine(autofocus.mda_engine())
        with pytest.raises(SettingsError, match=message):
            core.mda.run(useq.MDASequence(stage_positions=[(0, 0, 5.0)]))  # type: ignore[arg-type]
    else:
        with pytest.raises(SettingsError, match=message):
            PycromanagerCaller(autofocus).pre_hardware({"axes": {"position": 0}, "z": 5.0})
    assert not [entry for entry in core.log if entry[0] == "move"]


def test_on_the_java_backend_every_event_is_placed_by_the_hook_itself(core: LoggingCore) -> None:
    """Its engine does not move to a z that equals its last one, wherever a hook has been in between."""
    autofocus, plugin = make(JavaCore(core), -50, 50)
    plugin.z = 7.0
    caller = PycromanagerCaller(autofocus)
    events = [{"axes": {"position": 0, "z": i}, "x": 0.0, "y": 0.0, "z": float(i)} for i in range(3)]
    autofocus.plan(events)
    placed = []
    for event in events:
        before = caller.pre_hardware(dict(event))
        assert isinstance(before, dict)
        after = caller.post_hardware(before)
        assert isinstance(after, dict)
        assert type(after["z"]) is float
        placed.append((after["z"], core.getPosition()))
        core.setPosition(-20.0)  # something else moves the stage; the engine would not notice
    assert placed == [(6.0, 6.0), (7.0, 7.0), (8.0, 8.0)]


def test_a_z_burst_is_focused_in_its_own_channel(core: LoggingCore) -> None:
    autofocus, _ = make(core, -50, 50)
    core.setConfig("Channel", "FITC")  # left over from the position before
    burst = [
        {"axes": {"position": 0, "z": i}, "x": 0.0, "y": 0.0, "z": float(i), "config_group": ["Channel", "DAPI"]}
        for i in range(3)
    ]
    autofocus.plan(burst)
    core.log.clear()
    PycromanagerCaller(autofocus).pre_hardware(burst)
    assert {entry[1] for entry in core.log if entry[0] == "snap"} == {"DAPI"}


class Listener:
    """Keeps where the observers are told each event is acquired."""

    def __init__(self) -> None:
        self.z: list[float | None] = []

    @hookimpl
    def mmaf_event(self, z: float | None) -> None:
        self.z.append(z)


def test_observers_hear_the_z_of_each_slice_of_a_burst(core: LoggingCore) -> None:
    autofocus, plugin = make(core, -50, 50)
    plugin.z = 7.0
    listener = Listener()
    autofocus.plugins.add(listener, "listener")
    burst = [{"axes": {"position": 0, "z": i}, "x": 0.0, "y": 0.0, "z": float(i)} for i in range(3)]
    autofocus.plan(burst)
    caller = PycromanagerCaller(autofocus)
    caller.post_hardware(caller.pre_hardware(burst))  # type: ignore[arg-type]
    assert listener.z == [6.0, 7.0, 8.0]


PLAN = {"stage_positions": [{"x": 0, "y": 0, "z": 100}], "channels": [{"config": "FITC", "z_offset": 5}, "DAPI"]}


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({**PLAN}, {"FITC": {110.0}, "DAPI": {110.0}}),  # useq adds the offset only with a z plan
        ({**PLAN, "z_plan": {"range": 2, "step": 1}}, {"FITC": {114.0, 115.0, 116.0}, "DAPI": {109.0, 110.0, 111.0}}),
    ],
)
@pytest.mark.parametrize("engine", ["mda", "pycromanager"])
def test_a_channels_own_offset_is_kept(plan: dict[str, Any], expected: dict[str, set[float]], engine: str) -> None:
    sequence = useq.MDASequence.model_validate(plan)
    found: dict[str, set[float]] = {}
    if engine == "mda":
        ledger = Ledger()
        events = [from_useq(event) for event in sequence]
        offsets = [useq_channel_offset(event) for event in sequence]
    else:
        ledger = Ledger(channel_offsets=channel_offsets(sequence))
        events = [from_pycromanager(event) for event in as_pycromanager(sequence)]
        offsets = [0.0] * len(events)
    ledger.plan(events)
    ledger.record(events[0], 110.0)  # FITC comes first; the focal plane is found in the focusing channel
    for event, offset in zip(events, offsets, strict=True):
        z = ledger.position(event)
        assert z is not None
        found.setdefault(str(event.channel), set()).add(round(z + offset, 6))
    assert found == expected


def test_the_offsets_of_a_positions_own_channels_are_used() -> None:
    sequence = useq.MDASequence.model_validate(
        {
            "stage_positions": [
                {"z": 0, "sequence": {"channels": ["DAPI", {"config": "FITC", "z_offset": 7}]}},
                {"z": 0},
            ],
            "channels": ["DAPI", {"config": "FITC", "z_offset": 2}],
            "z_plan": {"range": 2, "step": 2},
        }
    )
    offsets = {(e.index["p"], e.channel.config): useq_channel_offset(e) for e in sequence if e.channel}
    assert offsets == {(0, "DAPI"): 0.0, (0, "FITC"): 7.0, (1, "DAPI"): 0.0, (1, "FITC"): 2.0}
    with pytest.raises(SettingsError, match="different z offsets"):
        channel_offsets(sequence)


def test_positions_of_one_name_stay_apart() -> None:
    plan = {"stage_positions": [{"x": i, "y": 0, "z": 0, "name": "same"} for i in range(3)]}
    events = as_pycromanager(useq.MDASequence.model_validate(plan))
    assert [event["axes"]["position"] for event in events] == [0, 1, 2]
