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

import tifffile
import useq
from rich.console import Console

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import CancelledError, FocusError, SettingsError
from mm_autofocus.events import from_useq, useq_channel_offset
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
    """Acquire with pymmcore-plus into OME-TIFF, a file for each position; raises as the functions above."""
    output = out / f"{SCAN}.ome.tiff"
    expected = sum(1 for event in plan if event.action.type == "acquire_image")
    core.mda.set_engine(autofocus.mda_engine())
    try:
        with stops_on_ctrl_c(autofocus, core.mda.cancel) as stopped:
            core.mda.run(plan, output=output, overwrite=True)
    except CancelledError:
        raise KeyboardInterrupt from None
    if stopped.is_set():
        raise KeyboardInterrupt
    if autofocus.ended_by is not None:
        raise autofocus.ended_by
    path = output if output.exists() else out / SCAN  # several positions make a folder
    return {"path": str(path), "images_expected": expected, "images_present": count_planes(path)}


def acquire_script(core: AutofocusCore, autofocus: Autofocus, plan: useq.MDASequence, out: Path) -> Outcome:
    """Acquire in a plain loop with ``core.fullFocus()``, as a script does that knows nothing of mm-autofocus."""
    folder = out / SCAN
    folder.mkdir(exist_ok=True)
    device: Any = core._pydevices[core.getAutoFocusDevice()]
    device.use(autofocus)
    here: tuple[float | None, float | None] | None = None
    expected = 0
    focal = base = 0.0
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
        core.waitForConfig(event.channel.group, event.channel.config)
        if event.exposure is not None:
            core.setExposure(event.exposure)
        z = autofocus.microscope.knob("z").set(focal + float(event.z_pos or 0.0) - base)
        autofocus.tell_event(from_useq(event), z)
        core.snapImage()
        name = "_".join(f"{axis}{index:03}" for axis, index in event.index.items())
        tifffile.imwrite(folder / f"{name}.tif", core.getImage())
        expected += 1
    autofocus.finish()
    return {"path": str(folder), "images_expected": expected, "images_present": len(list(folder.glob("*.tif")))}


def as_pycromanager(plan: useq.MDASequence) -> list[dict[str, Any]]:
    """Return a useq plan as pycro-manager events.

    The position axis is the position's name where all names differ. The channels' own z offsets are taken out of z:
    give them to the autofocus as ``channel_offsets(plan)``.
    """
    planned = [event for event in plan if event.action.type == "acquire_image"]
    named = {event.index.get("p"): event.pos_name for event in planned}
    unique = all(named.values()) and len(set(named.values())) == len(named)
    events = []
    for event in planned:
        axes: dict[str, Any] = {}
        if "t" in event.index:
            axes["time"] = event.index["t"]
        if "p" in event.index:
            axes["position"] = event.pos_name if unique else event.index["p"]
        if "g" in event.index:
            axes["grid"] = event.index["g"]
        if event.channel is not None:
            axes["channel"] = event.channel.config
        if "z" in event.index:
            axes["z"] = event.index["z"]
        one: dict[str, Any] = {"axes": axes}
        z = None if event.z_pos is None else event.z_pos - useq_channel_offset(event)
        for key, value in (("x", event.x_pos), ("y", event.y_pos), ("z", z), ("exposure", event.exposure)):
            if value is not None:
                one[key] = float(value)
        if event.channel is not None:
            one["config_group"] = [event.channel.group, event.channel.config]
        if event.min_start_time is not None:
            one["min_start_time"] = float(event.min_start_time)
        events.append(one)
    return events


def channel_offsets(plan: useq.MDASequence) -> dict[str, float]:
    """Return the z offset in µm of every channel of a plan that has one.

    Raises
    ------
    SettingsError
        When positions disagree on a channel's offset; pycro-manager's events have no place for that.
    """
    offsets: dict[str, float] = {}
    for event in plan:
        if event.channel is not None and event.action.type == "acquire_image":
            offset = useq_channel_offset(event)
            if offsets.setdefault(event.channel.config, offset) != offset:
                raise SettingsError(
                    f"channel {event.channel.config!r} has different z offsets at different positions; use --engine mda"
                )
    return {name: offset for name, offset in offsets.items() if offset}


def count_images(path: Path, events: list[dict[str, Any]]) -> int:
    """Open a dataset with pycro-manager's reader and count the planned images that it really delivers."""
    from ndstorage import Dataset

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        dataset = Dataset(str(path))
    try:
        return sum(dataset.has_image(**event["axes"]) for event in events)
    finally:
        dataset.close()


def count_planes(path: Path) -> int:
    """Count the planes of an OME-TIFF, or of all in a folder, that hold an image: the others are skipped or lost."""
    files = [path] if path.is_file() else sorted(path.glob("*.tif*"))
    return sum(bool(page.asarray().any()) for file in files for page in _pages(file))


def _pages(file: Path) -> Iterator[Any]:
    with tifffile.TiffFile(file) as tiff:
        yield from tiff.pages


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
