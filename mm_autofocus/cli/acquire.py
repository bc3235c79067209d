"""Runs one useq plan with autofocus: through pycro-manager, through pymmcore-plus, or in a plain loop."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import useq
from rich.console import Console

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import CancelledError, FocusError, SettingsError
from mm_autofocus.events import from_useq
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.pycromanager_backend import pycromanager_core

SCAN = "scan"


Outcome = dict[str, Any]
"""Where the dataset is, and how many images it should have and has."""


def acquire_pycromanager(core: AutofocusCore, autofocus: Autofocus, plan: useq.MDASequence, out: Path) -> Outcome:
    """Acquire with pycro-manager into an NDTiff dataset, and count the images that its reader finds.

    Raises
    ------
    FocusError
        When the acquisition was ended by the autofocus; every image so far is on disk.
    """
    return acquire_events(core, autofocus, as_pycromanager(plan), out)


def acquire_events(core: AutofocusCore, autofocus: Autofocus, events: list[dict[str, Any]], out: Path) -> Outcome:
    """Acquire pycro-manager events; as the function above."""
    import pycromanager

    planned = autofocus.plan(events)
    with pycromanager_core(core):
        acquisition = pycromanager.Acquisition(str(out), SCAN, **autofocus.pycromanager_hooks())
        # leaving the acquisition waits for its end, so Ctrl-C must still be ours by then
        with stops_on_ctrl_c(autofocus, lambda: acquisition.abort(KeyboardInterrupt())), acquisition:
            path = Path(acquisition.get_dataset().path)
            acquisition.acquire(planned)
    return {"path": str(path), "images_expected": len(events), "images_present": count_images(path, events)}


def acquire_mda(core: AutofocusCore, autofocus: Autofocus, plan: useq.MDASequence, out: Path) -> Outcome:
    """Acquire with pymmcore-plus into an OME-TIFF series, one file per position; raises as the function above."""
    folder = out / SCAN
    folder.mkdir(exist_ok=True)
    expected = sum(1 for event in plan if event.action.type == "acquire_image")
    writer = _PositionWriter(folder, len(plan.channels))
    core.mda.set_engine(autofocus.mda_engine())
    core.mda.events.frameReady.connect(writer.frame_ready)
    try:
        with stops_on_ctrl_c(autofocus, core.mda.cancel) as stopped:
            core.mda.run(plan)
    except CancelledError:
        raise KeyboardInterrupt from None
    finally:
        core.mda.events.frameReady.disconnect(writer.frame_ready)
        writer.close()
    if stopped.is_set():
        raise KeyboardInterrupt
    if autofocus.ended_by is not None:
        raise autofocus.ended_by
    return {"path": str(folder), "images_expected": expected, "images_present": writer.images}


def acquire_script(core: AutofocusCore, autofocus: Autofocus, plan: useq.MDASequence, out: Path) -> Outcome:
    """Acquire in a plain loop with ``core.fullFocus()``, as a script does that knows nothing of mm-autofocus."""
    folder = out / SCAN
    folder.mkdir(exist_ok=True)
    device: Any = core._pydevices[core.getAutoFocusDevice()]
    device.use(autofocus)
    writer = _PositionWriter(folder, len(plan.channels))
    here: tuple[float | None, float | None] | None = None
    expected = 0
    focal = 0.0
    for event in plan:
        if (event.x_pos, event.y_pos) != here:
            here = event.x_pos, event.y_pos
            core.setXYPosition(float(event.x_pos or 0), float(event.y_pos or 0))
            core.waitForDevice(core.getXYStageDevice())
            with contextlib.suppress(FocusError):  # the report says what failed; the scan goes on
                core.fullFocus()
            focal = core.getPosition()
            base = float(plan.stage_positions[event.index["p"]].z or 0.0)
        assert event.channel is not None
        core.setConfig(event.channel.group, event.channel.config)
        if event.exposure is not None:
            core.setExposure(event.exposure)
        z = focal + float(event.z_pos or 0.0) - base
        core.setPosition(z)
        core.waitForDevice(core.getFocusDevice())
        autofocus.hook.mmaf_event(event=from_useq(event), z=z)
        core.snapImage()
        writer.frame_ready(core.getImage(), event, {})
        expected += 1
    writer.close()
    autofocus.finish()
    return {"path": str(folder), "images_expected": expected, "images_present": writer.images}


def as_pycromanager(plan: useq.MDASequence) -> list[dict[str, Any]]:
    """Return a useq plan as pycro-manager events; the position axis is the position's name."""
    events = []
    for event in plan:
        if event.action.type != "acquire_image":
            continue
        axes: dict[str, Any] = {}
        if "t" in event.index:
            axes["time"] = event.index["t"]
        if "p" in event.index:
            axes["position"] = event.pos_name or event.index["p"]
        if "g" in event.index:
            axes["grid"] = event.index["g"]
        if event.channel is not None:
            axes["channel"] = event.channel.config
        if "z" in event.index:
            axes["z"] = event.index["z"]
        one: dict[str, Any] = {"axes": axes}
        for key, value in (("x", event.x_pos), ("y", event.y_pos), ("z", event.z_pos), ("exposure", event.exposure)):
            if value is not None:
                one[key] = float(value)
        if event.channel is not None:
            one["config_group"] = [event.channel.group, event.channel.config]
        if event.min_start_time is not None:
            one["min_start_time"] = float(event.min_start_time)
        events.append(one)
    return events


def count_images(path: Path, events: list[dict[str, Any]]) -> int:
    """Open a dataset with pycro-manager's reader and count the planned images that it really delivers."""
    from ndstorage import Dataset

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        dataset = Dataset(str(path))
    try:
        return sum(dataset.has_image(**event["axes"]) for event in events)
    finally:
        dataset.close()


@contextlib.contextmanager
def stops_on_ctrl_c(autofocus: Autofocus, stop: Callable[[], object]) -> Iterator[threading.Event]:
    """Let Ctrl-C end a focus run first, so that the instrument is put back, and then the acquisition.

    The engines work in threads of their own and go on when the main thread is interrupted. A second Ctrl-C is Python's.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handler(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        stopped.set()
        autofocus.cancel()
        stop()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def resumes_on_enter(autofocus: Autofocus, console: Console) -> Iterator[None]:
    """When the failure policy pauses, ask at the terminal, and go on at Enter."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            if autofocus.paused.wait(0.2) and not done.is_set():
                console.print("[yellow]paused by the failure policy.[/] Set the instrument right, then press Enter.")
                sys.stdin.readline()
                autofocus.resume.set()

    if sys.stdin.isatty():
        threading.Thread(target=ask, daemon=True, name="mm-autofocus resume").start()
    try:
        yield
    finally:
        done.set()


def writable_folder(out: Path) -> Path:
    """Make the output folder and try to write into it.

    Raises
    ------
    SettingsError
        When it cannot be written to.
    """
    out = out.expanduser()
    probe = out / ".writable"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise SettingsError(f"--out {out} cannot be written to: {error}. Choose another folder.") from error
    return out


class _PositionWriter:
    """Writes frames into one OME-TIFF per position, as they come."""

    def __init__(self, folder: Path, channels: int) -> None:
        self._folder = folder
        self._channels = channels
        self._name: str | None = None
        self._frames: list[np.ndarray] = []
        self.images = 0

    def frame_ready(self, image: np.ndarray, event: useq.MDAEvent, meta: Any) -> None:  # noqa: ARG002
        """Take one frame; a change of position writes the one before."""
        name = event.pos_name or str(event.index.get("p", 0))
        if name != self._name:
            self.close()
            self._name = name
        self._frames.append(np.array(image))

    def close(self) -> None:
        """Write what is there."""
        if self._name is not None and self._frames:
            stack = np.stack(self._frames)
            shape = (self._channels, -1) if len(stack) % self._channels == 0 else (1, -1)
            stack_czyx = stack.reshape(*shape, *stack.shape[1:])
            tifffile.imwrite(self._folder / f"{self._name}.ome.tif", stack_czyx, metadata={"axes": "CZYX"})
            self.images += len(stack)
            self._frames.clear()
