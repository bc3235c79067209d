"""Real acquisitions in which focusing goes wrong; run in a process of its own, prints one JSON object a case.

``python acquisition_cases.py ENGINE CASE [CASE ...]``
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import mm_test_adapters
import numpy as np

from mm_autofocus import Autofocus, FocusError, Look, Verdict, hookimpl
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.pycromanager_backend import pycromanager_core
from support import Scripted, Stack

POSITIONS, SLICES = 3, 3
CONTINUES = {"failed": "stay", "timed_out": "stay", "no_signal": "stay", "low_confidence": "stay", "at_limit": "stay"}


class FaultyCore(AutofocusCore):
    """Fails on demand, in the autofocus only: its snaps come from a thread of their own."""

    fault: Any = None
    stage_fault: BaseException | None = None
    commands: list[float]

    def snapImage(self) -> None:
        if self.fault is not None and "snap" in threading.current_thread().name:
            error = next(self.fault)
            if error is not None:
                raise error
        super().snapImage()

    def setPosition(self, *args: Any) -> None:
        self.__dict__.setdefault("commands", []).append(float(args[-1]))
        if self.stage_fault is not None and focusing.is_set():
            raise self.stage_fault
        super().setPosition(*args)


focusing = threading.Event()


def make_core() -> FaultyCore:
    core = FaultyCore()
    core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
    for label, device in (("Camera", "DCam"), ("Z", "DStage"), ("XY", "DXYStage"), ("Shutter", "DShutter")):
        core.loadDevice(label, "DemoCamera", device)
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setFocusDevice("Z")
    core.setXYStageDevice("XY")
    core.setShutterDevice("Shutter")
    core.setProperty("Camera", "Mode", "Fluorescent Beads")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setProperty("Camera", "OnCameraCCDXSize", 128)
    core.setProperty("Camera", "OnCameraCCDYSize", 128)
    core.setExposure(5.0)
    core.setROI(0, 0, 96, 96)
    core.setAutoShutter(True)
    return core


def state(core: Any) -> list[Any]:
    return [
        core.getCameraDevice(), core.getExposure(), list(core.getROI()), core.getAutoShutter(), core.getShutterOpen(),
        core.getProperty("Camera", "Binning"), round(core.getPosition("Z"), 3),
    ]  # fmt: skip


class Broken:
    """A plugin that brings one scripted strategy."""

    def __init__(self, steps: list[Any], answer: Any = None) -> None:
        self._steps, self._answer = steps, answer

    @hookimpl
    def mmaf_strategies(self) -> list[Any]:
        steps, answer = self._steps, self._answer

        class Case(Scripted):
            name = "case"

            def __init__(self, settings: Any) -> None:
                super().__init__(steps, answer)

        return [Case]


class Good:
    @hookimpl
    def mmaf_strategies(self) -> list[Any]:
        class Case(Stack):
            name = "case"

        return [Case]


def hang(request: Any) -> Look:
    time.sleep(3)
    return Look({"z": 1.0})


def cases() -> dict[str, dict[str, Any]]:
    look = Look({"z": 2.0})
    return {
        "raises": {"plugin": Broken([look, ValueError("boom")])},
        "nan": {"plugin": Broken([look], Verdict({"z": float("nan")}, 0.9))},
        "nonsense": {"plugin": Broken([look, "up"])},
        "times out": {"plugin": Broken([look, hang]), "settings": {"budget": {"seconds": 0.15}}},
        "outside": {"plugin": Broken([look, Look({"z": 1e6})])},
        "camera fails once": {"fault": lambda: itertools.chain([RuntimeError("usb")], itertools.repeat(None))},
        "camera fails for ever": {"fault": lambda: itertools.repeat(RuntimeError("gone"))},
        "stage refuses": {"stage_fault": RuntimeError("stage error")},
        "worse than the start": {"plugin": Broken([Look({"z": 0.0})], Verdict({"z": 40.0}, 0.99))},
        "disk of the recorder full": {"recorder_full": True},
        "skip": {"plugin": Broken([look, ValueError("boom")]), "failure": {**CONTINUES, "failed": "skip"}},
        "burst": {"burst": True},
        "abort": {"plugin": Broken([look, ValueError("boom")]), "failure": {**CONTINUES, "failed": "abort"}},
        "cancel": {"cancel_at": 2},
        "wrong answer": {"plugin": Broken([look], {"z": 3.0})},
        "unplanned stack": {"unplanned": True},
        "plan outside the limits": {"z": 500.0},
    }


def pycromanager_events(case: dict[str, Any]) -> list[dict[str, Any]]:
    z0 = case.get("z", 0.0)
    events: list[dict[str, Any]] = []
    for p in range(POSITIONS):
        if case.get("burst"):
            events += [{"axes": {"position": p, "n": i}, "x": 10.0 * p, "y": 0.0, "z": z0} for i in range(SLICES)]
        else:
            events += [
                {"axes": {"position": p, "z": i}, "x": 10.0 * p, "y": 0.0, "z": z0 + 2.0 * (i - 1)}
                for i in range(SLICES)
            ]
    return events


class Observer:
    """Checks, around every run, that the instrument is as it was."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.restored: list[bool] = []
        self.cancel_at: int | None = None
        self.autofocus: Any = None
        self.runs = 0

    @hookimpl(wrapper=True)
    def mmaf_focus(self, request: Any, run: Any) -> Any:
        before = state(self.core)
        focusing.set()
        try:
            result = yield
        finally:
            focusing.clear()
        after = state(self.core)
        if result.ok:
            before, after = before[:-1], after[:-1]
        self.restored.append(before == after)
        return result

    @hookimpl
    def mmaf_frame(self, request: Any, frame: Any, purpose: str) -> None:
        if self.cancel_at is not None and request.event.axes.get("position") == self.cancel_at:
            self.autofocus.cancel()


def run(engine: str, name: str) -> dict[str, Any]:
    case = cases()[name]
    core = make_core()
    core.fault = case["fault"]() if "fault" in case else None
    core.stage_fault = case.get("stage_fault")
    observer = Observer(core)
    folder = tempfile.mkdtemp()
    settings: dict[str, Any] = {
        "microscope": {"depth_of_field_um": 2.0}, "knobs": {"z": {"limits": [-50, 50]}}, "map": {"enabled": False},
        "failure": case.get("failure", CONTINUES), "recorder": {"folder": folder}, **case.get("settings", {}),
    }  # fmt: skip
    autofocus = Autofocus(core, strategy="case", plugins=[case.get("plugin", Good()), observer], **settings)
    observer.autofocus, observer.cancel_at = autofocus, case.get("cancel_at")
    if case.get("recorder_full"):
        _fill_disk(folder)
    images: list[Any] = []
    means: list[float] = []
    ended = "normally"
    try:
        if engine == "pycromanager":
            _pycromanager(core, autofocus, case, images, means)
        else:
            _mda(core, autofocus, case, images, means)
    except BaseException as error:
        ended = f"{type(error).__name__}: {error}"
    commands = core.__dict__.get("commands", [])
    return {
        "ended": ended, "images": len(images), "distinct": len({json.dumps(i, sort_keys=True) for i in images}),
        "restored": all(observer.restored), "runs": len(observer.restored),
        "statuses": [r.status.value for r in autofocus.results], "actions": [list(r.action) for r in autofocus.results],
        "reasons": [r.reason for r in autofocus.results][:1], "inside": all(-50 <= c <= 50 for c in commands),
        "moved": bool(commands), "dark": [m < 1 for m in means], "state": state(core),
    }  # fmt: skip


def _pycromanager(core: Any, autofocus: Any, case: dict[str, Any], images: list[Any], means: list[float]) -> None:
    import pycromanager

    with pycromanager_core(core):
        dataset: Any = None
        try:
            with pycromanager.Acquisition(**autofocus.pycromanager_hooks()) as acquisition:
                dataset = acquisition.get_dataset()
                events = pycromanager_events(case)
                acquisition.acquire(events if case.get("unplanned") else autofocus.plan(events))
        finally:
            for axes in dataset.get_image_coordinates_list():
                images.append(axes)
                means.append(float(np.mean(dataset.read_image(**axes))))


def _mda(core: Any, autofocus: Any, case: dict[str, Any], images: list[Any], means: list[float]) -> None:
    import useq

    z0 = case.get("z", 0.0)
    sequence = useq.MDASequence(
        axis_order="pz", stage_positions=[{"x": 10.0 * p, "y": 0.0, "z": z0} for p in range(POSITIONS)],
        z_plan={"range": 4, "step": 2},
    )  # fmt: skip
    core.mda.set_engine(autofocus.mda_engine())
    core.mda.events.frameReady.connect(lambda image, event, meta: images.append(dict(event.index)))
    core.mda.events.frameReady.connect(lambda image, event, meta: means.append(float(image.mean())))
    core.mda.run(sequence)
    if autofocus.ended_by is not None:
        raise autofocus.ended_by


def _fill_disk(folder: str) -> None:
    """Writing to the recorder's folder fails from now on, as on a full disk."""
    import mm_autofocus_hooks.recorder as recorder

    write = os.write

    def full(fd: int, data: Any) -> int:
        if os.path.realpath(f"/proc/self/fd/{fd}").startswith(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    recorder.os.write = full  # type: ignore[assignment]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    try:
        answers = {name: run(sys.argv[1], name) for name in sys.argv[2:]}
    except FocusError as error:
        answers = {"error": {"ended": str(error)}}
    print(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)  # a strategy that still sleeps must not keep us
