"""What pycro-manager's Python engine does in each known trap; prints one JSON object."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pycromanager
from contract_devices import FORBIDDEN_Z, device, make_core
from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.pycromanager_backend import pycromanager_core

Events = list[dict[str, Any]]


def stack(n: int, **keys: Any) -> Events:
    """`n` events at different z: never merged."""
    return [{"axes": {"z": i}, "z": float(i), **keys} for i in range(n)]


def burst(n: int, axis: str = "n", **keys: Any) -> Events:
    """`n` events that differ in nothing but their index: merged."""
    return [{"axes": {axis: i}, "z": 1.0, **keys} for i in range(n)]


class Run:
    """One acquisition on a core of its own: how it ended, and the axes of the images it saved."""

    def __init__(self, *acquires: Any, prepare: Callable[[Run], None] = lambda _: None, **hooks: Any) -> None:
        self.core = make_core()
        self.images: list[dict[str, Any]] = []
        self.ended = ""
        self.acq: Any = None
        self.dataset: Any = None
        prepare(self)
        with pycromanager_core(self.core):
            self._acquire(acquires, hooks)

    def _acquire(self, acquires: tuple[Any, ...], hooks: dict[str, Any]) -> None:
        try:
            with pycromanager.Acquisition(**hooks) as self.acq:
                self.dataset = self.acq.get_dataset()
                for events in acquires:
                    events() if callable(events) else self.acq.acquire(events)
            self.ended = "normally"
        except BaseException as error:
            self.ended = f"{type(error).__name__}: {error}"
        self.images = sorted(self.dataset.get_image_coordinates_list(), key=str)

    @property
    def report(self) -> Any:
        return [self.ended, len(self.images)]


def raising(event: Any) -> Any:
    raise ValueError("oops")


def with_run(hook: Callable[[Run, Any], Any], *acquires: Any, name: str = "post_hardware_hook_fn", **keys: Any) -> Run:
    """Run with a hook that may use its Run."""
    box: list[Run] = []
    prepare = keys.pop("prepare", lambda _: None)

    def set_up(run: Run) -> None:
        box.append(run)
        prepare(run)

    return Run(*acquires, prepare=set_up, **{name: lambda event: hook(box[0], event)}, **keys)


def hook_exception() -> Any:
    return {name: Run(stack(3), **{name: raising}).report for name in HOOKS}


HOOKS = ["event_generation_hook_fn", "pre_hardware_hook_fn", "post_hardware_hook_fn", "post_camera_hook_fn"]


def hook_abort_with_exception() -> Any:
    def hook(run: Run, event: Any) -> Any:
        run.acq.abort(RuntimeError("no focus"))
        return event

    return with_run(hook, stack(3)).report


def hook_abort_without_exception() -> Any:
    def hook(run: Run, event: Any) -> Any:
        run.acq.abort()
        return event

    return with_run(hook, stack(3)).report


def abort_through_the_calling_frame() -> Any:
    """AcquisitionHook.run holds the engine's acquisition in its local `acq`: the only way without a reference."""

    def hook(event: Any) -> Any:
        sys._getframe(1).f_locals["acq"].abort(RuntimeError("no focus"))
        return event

    return {name: Run(stack(3), stack(3), **{name: hook}).report for name in HOOKS}


def abort_through_the_last_event() -> Any:
    def hook(event: Any) -> Any:
        Engine.get_instance().last_event.acquisition_.abort(RuntimeError("no focus"))
        return event

    return {name: Run(stack(3), **{name: hook}).report for name in ("pre_hardware_hook_fn", "post_hardware_hook_fn")}


def none_from_hook() -> Any:
    def hook(event: Any) -> Any:
        return None if event["axes"]["z"] == 1 else event

    return {name: [i["z"] for i in Run(stack(4), **{name: hook}).images] for name in HOOKS[:3]}


def wrong_return() -> Any:
    return {f"{n} events": Run(stack(n), post_hardware_hook_fn=lambda event: 5).report for n in (3, 1)}


def two_argument_hook() -> Any:
    return Run(stack(3), post_hardware_hook_fn=lambda event, queue: event).report


def merging() -> Any:
    def kinds(events: Any, name: str) -> Any:
        seen: list[str] = []

        def hook(event: Any) -> Any:
            seen.append(f"list of {len(event)}" if isinstance(event, list) else "dict")
            return event

        images = len(Run(events, **{name: hook}).images)
        return [seen, images]

    timed = {axis: [e | {"min_start_time": i * 1e-3} for i, e in enumerate(burst(3, axis))] for axis in ("time", "t")}
    return {
        **{name: kinds(burst(4), name) for name in HOOKS},
        "separate acquire calls": Run(*burst(3), pre_hardware_hook_fn=lambda e: e | {}).report,
        "min_start_time, axis time": kinds(timed["time"], "pre_hardware_hook_fn"),
        "min_start_time, axis t": kinds(timed["t"], "pre_hardware_hook_fn"),
    }


def dict_for_a_list() -> Any:
    return Run(burst(4), post_hardware_hook_fn=lambda e: e[0]).report


def z_edited_in_a_list() -> Any:
    def raised(events: Events) -> Events:
        return [event | {"z": event["z"] + 7} for event in events]

    return {name: device(Run(burst(3), **{name: raised}).core, "Z").moves for name in HOOKS[1:3]}


def hardware_error() -> Any:
    only, last = [{"axes": {"z": 0}, "z": FORBIDDEN_Z}], [*stack(2), {"axes": {"z": 9}, "z": FORBIDDEN_Z}]
    first = [{"axes": {"z": 9}, "z": FORBIDDEN_Z}, *stack(2)]
    return {"only": Run(only).report, "last": Run(last).report, "first": Run(first).report}


def snap_error() -> Any:
    def once(run: Run) -> None:
        device(run.core, "Cam").failures = [RuntimeError("cooler off")]

    return {"first of 3": Run(stack(3), prepare=once).report, "only": Run(stack(1), prepare=once).report}


def burst_error() -> Any:
    def once(run: Run) -> None:
        device(run.core, "Cam").failures = [RuntimeError("cooler off")]

    return Run(burst(3), prepare=once).report


def event_camera() -> Any:
    run = Run({"axes": {"z": 0}, "camera": "Cam2"}, {"axes": {"z": 1}})
    return [[run.dataset.read_image(z=z).max().item() for z in (0, 1)], run.core.getCameraDevice()]


def exposure() -> Any:
    def hook(run: Run, event: Any) -> Any:
        if event["axes"]["z"] == 0:
            run.core.setExposure(3.0)
        return event

    run = with_run(hook, stack(3, exposure=20))
    camera = device(run.core, "Cam")
    first = list(camera.snapped_with)
    camera.snapped_with.clear()
    with pycromanager_core(run.core):
        for _ in range(2):
            with pycromanager.Acquisition() as acq:
                acq.acquire(stack(1, exposure=20))
            camera.exposure = 1.0
    return [first, camera.snapped_with]


def engine_singleton() -> Any:
    first, second = make_core(), make_core()
    with pycromanager_core(first):
        Engine(second)
        stale = Engine.get_core() is first
    with pycromanager_core(second):
        pass
    return [stale, hasattr(Engine, "singleton"), pycromanager.acquisition.acq_constructor.is_pymmcore_active()]


def unknown_keys() -> Any:
    seen: list[Any] = []

    def hook(event: Any) -> Any:
        seen.append(sorted(event))
        return event

    run = Run([{"axes": {"z": 0}, "z": 1.0, "well": "A1"}], event_generation_hook_fn=hook, focus_every=3)
    return [seen, run.report]


def threads() -> Any:
    seen: dict[str, str] = {}

    def note(name: str, answer: Any = None) -> Any:
        def hook(*args: Any) -> Any:
            thread = threading.current_thread()
            seen[name] = "main" if thread is threading.main_thread() else thread.name
            return args if len(args) == 2 else args[0]

        return {name: (lambda event: hook(event)) if name not in TWO else (lambda a, b: hook(a, b))}

    Run(stack(2), **{k: v for name in [*HOOKS, *TWO, "notification_callback_fn"] for k, v in note(name).items()})
    return seen


TWO = ["image_process_fn", "image_saved_fn"]


def positions() -> Any:
    """Where the stages are, at each hook of the second of two events."""
    seen: dict[str, Any] = {}

    def note(name: str) -> Any:
        def hook(run: Run, event: Any) -> Any:
            if event["axes"]["z"] == 1:
                seen[name] = [*run.core.getXYPosition(), run.core.getPosition()]
            return event

        return hook

    events = [{"axes": {"z": i}, "z": 5.0 + i, "x": 10.0 * i, "y": 20.0 * i} for i in range(2)]
    for name in HOOKS[1:3]:
        with_run(note(name), events, name=name)

    core = make_core()
    with pycromanager_core(core), pycromanager.Acquisition() as acq:

        class BeforeZ:
            def run(self, event: Any) -> Any:
                if event.get_z_index() == 1:
                    seen["before_z"] = [*core.getXYPosition(), core.getPosition()]
                return event

            def close(self) -> None: ...

        acq._acq.before_z_hooks_.append(BeforeZ())
        acq.acquire(events)
    return seen


def resent() -> Any:
    def moves(n: int, **keys: Any) -> AutofocusCore:
        return Run(*[{"axes": {"n": i}, "z": 5.0, "x": 1.0, "y": 2.0} for i in range(n)]).core

    core = moves(3)
    return [device(core, "Z").moves, device(core, "XY").moves]


def z_edited() -> Any:
    def raised(event: Any) -> Any:
        return event | {"z": event["z"] + 7}

    result = {}
    for name in HOOKS[1:3]:
        run = Run([{"axes": {"z": 0}, "z": 1.0}], **{name: raised})
        result[name] = [device(run.core, "Z").moves, run.dataset.read_metadata(z=0)["ZPosition_um_Intended"]]
    return result


def moved_by_hook() -> Any:
    """The stage moved by a post-hardware hook: does the next event's equal z drive it back?"""

    def hook(run: Run, event: Any) -> Any:
        run.core.setPosition(event["z"] + 7)
        return event

    run = with_run(hook, *[{"axes": {"n": i}, "z": 5.0} for i in range(2)])
    return device(run.core, "Z").moves


def acquire_after_the_end() -> Any:
    left = threading.Event()

    def hook(run: Run, event: Any) -> Any:
        left.wait(0.5)
        if event["axes"]["n"] == 0:
            run.acq.acquire({"axes": {"n": 7}})
        return event

    return with_run(hook, [{"axes": {"n": 0}}]).report


def acquire_before_the_end() -> Any:
    done = threading.Event()

    def hook(run: Run, event: Any) -> Any:
        if event["axes"]["n"] == 0:
            run.acq.acquire({"axes": {"n": 7}})
            done.set()
        return event

    return with_run(hook, {"axes": {"n": 0}}, lambda: done.wait(20)).report


def image_process_exception() -> Any:
    def process(image: Any, metadata: Any) -> Any:
        raise ValueError("oops")

    return Run(stack(3), image_process_fn=process).report


def disk_full() -> Any:
    """Storing the second image fails, as it does on a full disk."""
    from ndstorage.ndtiff_dataset import NDTiffDataset

    put, count = NDTiffDataset.put_image, itertools.count()

    def put_image(self: Any, *args: Any) -> Any:
        if next(count) == 1:
            raise OSError(28, "No space left on device")
        return put(self, *args)

    NDTiffDataset.put_image = put_image
    try:
        with tempfile.TemporaryDirectory() as folder:
            return Run(stack(8), directory=folder, name="full").report
    finally:
        NDTiffDataset.put_image = put


def keyboard_interrupt_in_a_hook() -> Any:
    def hook(event: Any) -> Any:
        if event["axes"]["z"] == 1:
            raise KeyboardInterrupt
        return event

    return Run(stack(3), post_hardware_hook_fn=hook).report


def ctrl_c() -> Any:
    """The user's Ctrl-C reaches the main thread, which waits at the end of the `with` block."""
    inside = threading.Event()
    # a process that a shell started in the background ignores Ctrl-C until told otherwise
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def hook(event: Any) -> Any:
        if event["axes"]["z"] == 1:
            inside.wait(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        return event

    return Run(stack(4), post_hardware_hook_fn=hook).report


TRAPS: list[Callable[[], Any]] = [
    hook_exception,
    hook_abort_with_exception,
    hook_abort_without_exception,
    abort_through_the_calling_frame,
    abort_through_the_last_event,
    none_from_hook,
    wrong_return,
    two_argument_hook,
    merging,
    dict_for_a_list,
    z_edited_in_a_list,
    hardware_error,
    snap_error,
    burst_error,
    event_camera,
    exposure,
    engine_singleton,
    unknown_keys,
    threads,
    positions,
    resent,
    z_edited,
    moved_by_hook,
    acquire_after_the_end,
    acquire_before_the_end,
    image_process_exception,
    disk_full,
    keyboard_interrupt_in_a_hook,
    ctrl_c,
]


def print_observations(traps: dict[str, Callable[[], Any]]) -> None:
    """Observe each trap, print the JSON object as the last line, and leave hung threads behind."""
    out, sys.stdout = sys.stdout, sys.stderr  # the engine prints
    status = 1
    try:
        print(json.dumps({name: trap() for name, trap in traps.items()}), file=out, flush=True)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    print_observations({trap.__name__: trap for trap in TRAPS})
