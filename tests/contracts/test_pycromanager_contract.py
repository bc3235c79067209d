"""What pycro-manager 1.0's Python engine does with our core and with hooks that misbehave.

Each case is observed in a subprocess (`pycromanager_traps`, `pycromanager_hangs`), because many can hang. A result is
[how the ``with Acquisition`` block ended, number of images saved]. A change here means that hooks/pycromanager.py and
pycromanager_backend.py have to be looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ndstorage
import pytest

SILENT = ["normally", 0]
NO_FOCUS = ["RuntimeError: no focus", 0]
ENGINE, GENERATOR = "Acquisition Engine Thread_0", "Acq Eng event generator_0"

ENDS: dict[str, Any] = {
    # 1, 11: an exception in a hook is printed and swallowed, and the rest of the images with it; abort(exc) is raised
    "hook_exception": {
        "event_generation_hook_fn": SILENT,
        "pre_hardware_hook_fn": SILENT,
        "post_hardware_hook_fn": SILENT,
        "post_camera_hook_fn": SILENT,
    },
    "hook_abort_with_exception": NO_FOCUS,
    "hook_abort_without_exception": SILENT,
    # how a hook reaches abort() without a reference to its Acquisition; the events of a second acquire() are dropped
    "abort_through_the_calling_frame": {
        "event_generation_hook_fn": NO_FOCUS,
        "pre_hardware_hook_fn": NO_FOCUS,
        "post_hardware_hook_fn": NO_FOCUS,
        "post_camera_hook_fn": NO_FOCUS,
    },
    "abort_through_the_last_event": {"pre_hardware_hook_fn": SILENT, "post_hardware_hook_fn": NO_FOCUS},
    # 2: None skips the event at the hardware hooks; in event_generation it loses the event before and all after
    "none_from_hook": {
        "event_generation_hook_fn": [],
        "pre_hardware_hook_fn": [0, 2, 3],
        "post_hardware_hook_fn": [0, 2, 3],
    },
    # 3: silent only when no event follows
    "wrong_return": {
        "3 events": ["TypeError: argument of type 'int' is not iterable", 0],
        "1 events": SILENT,
    },
    "two_argument_hook": SILENT,
    # 4: events that differ in nothing but their index become one burst, and hooks get a list
    "merging": {
        "event_generation_hook_fn": [["dict"] * 4, 4],
        "pre_hardware_hook_fn": [["list of 4"], 4],
        "post_hardware_hook_fn": [["list of 4"], 4],
        "post_camera_hook_fn": [["list of 4"], 4],
        "separate acquire calls": ["normally", 3],
        "min_start_time, axis time": [["dict"] * 3, 3],
        "min_start_time, axis t": [["list of 3"], 3],
    },
    "dict_for_a_list": ["normally", 1],
    "z_edited_in_a_list": {"pre_hardware_hook_fn": [8.0], "post_hardware_hook_fn": [1.0]},
    # 5: an error of the last or only event of an acquire() is swallowed
    "hardware_error": {
        "only": SILENT,
        "last": ["normally", 2],
        "first": ["HardwareControlException: Error executing event", 0],
    },
    "snap_error": {"first of 3": ["RuntimeError: cooler off", 0], "only": SILENT},
    "burst_error": ["HardwareControlException: Expected images did not arrive in circular buffer", 0],
    # 7: the engine asks for the image after switching back; our get_tagged_image gives the image that was snapped
    "event_camera": [[2, 1], "Cam"],
    # 8: an exposure changed by a hook stays; an equal one is not sent again in the next acquisition either
    "exposure": [[3.0, 3.0, 3.0], [20.0, 1.0]],
    # 9: Engine() keeps the first core for ever; after our stop() nothing is left
    "engine_singleton": [True, False, False],
    # 10: unknown event keys never reach a hook, unknown keyword arguments are ignored
    "unknown_keys": [[["axes", "z"]], ["normally", 1]],
    "positions": {
        "pre_hardware_hook_fn": [0, 0, 5],
        "before_z": [10, 20, 5],
        "post_hardware_hook_fn": [10, 20, 6],
    },
    "resent": [[5.0, 5.0, 5.0], [[1.0, 2.0]] * 3],
    "z_edited": {"pre_hardware_hook_fn": [[8.0], 8.0], "post_hardware_hook_fn": [[1.0], 8.0]},
    "moved_by_hook": [5.0, 12.0, 5.0, 12.0],
    # 12: acquire() in a hook works until the body of the `with` block is over
    "acquire_after_the_end": ["normally", 1],
    "acquire_before_the_end": ["normally", 2],
    "image_process_exception": ["Exception: exception in image processor: oops", 0],
    "disk_full": ["OSError: [Errno 28] No space left on device", 1],
    "keyboard_interrupt_in_a_hook": ["normally", 1],
    # Ctrl-C is raised when the acquisition is over, not before: all 4 images are taken
    "ctrl_c": ["KeyboardInterrupt: ", 4],
}

THREADS = {
    "event_generation_hook_fn": GENERATOR,
    "pre_hardware_hook_fn": ENGINE,
    "post_hardware_hook_fn": ENGINE,
    "post_camera_hook_fn": ENGINE,
    "image_saved_fn": "StorageMonitorThread",
    "notification_callback_fn": "NotificationDispatcherThread",
}

# 6: a callback that raises stops its thread; the acquisition hangs once a queue of 100 is full behind it
HANGS = {
    "tags in an event": "hangs",
    "an event that does not parse": "hangs",
    "image_saved_fn raises, 3 images": "ended: ['normally', 3]",
    "image_saved_fn raises, 130 images": "hangs",
    "notification_callback_fn raises, 3 images": "ended: ['normally', 3]",
    "notification_callback_fn raises, 50 images": "hangs",
    "image future awaited in a hook": "hangs",
    "get_tagged_image raises": "hangs",
}


@pytest.fixture(scope="module")
def ends(run_script: Callable[..., Any]) -> Any:
    return run_script("pycromanager_traps.py")


@pytest.fixture(scope="module")
def hanging(run_script: Callable[..., Any]) -> Any:
    return run_script("pycromanager_hangs.py")


@pytest.mark.parametrize("trap", ENDS)
def test_trap(ends: Any, trap: str) -> None:
    assert ends[trap] == ENDS[trap]


def test_threads_of_the_hooks(ends: Any) -> None:
    threads = ends["threads"]
    assert threads.pop("image_process_fn").endswith("(_process)")
    assert threads == THREADS


@pytest.mark.parametrize("trap", HANGS)
def test_trap_that_can_hang(hanging: Any, trap: str) -> None:
    assert hanging[trap] == HANGS[trap]


def test_every_observation_is_checked(ends: Any, hanging: Any) -> None:
    assert set(ends) == {*ENDS, "threads"}
    assert set(hanging) == set(HANGS)


# ------------------------------------------------------------------------------------- our side of it


def test_start_and_stop(core: Any) -> None:
    import pycromanager
    from contract_devices import empty_core
    from mmpycorex.launcher import _PYMMCORES

    from mm_autofocus_devices.pycromanager_backend import pycromanager_core, start, stop

    other, foreign = empty_core(), empty_core()
    stop()  # nothing was started
    _PYMMCORES.append(foreign)
    try:
        start(core)
        start(core)
        assert pycromanager.Core() is core
        start(other)
        assert pycromanager.Core() is other
        stop()
        assert [known is foreign for known in _PYMMCORES] == [True]
        with pytest.raises(ZeroDivisionError), pycromanager_core(core):
            _ = 1 / 0
        assert core not in _PYMMCORES
    finally:
        _PYMMCORES.clear()


@pytest.mark.parametrize("directory", [True, False])
def test_autofocus_in_a_hook_with_a_second_camera(core: Any, tmp_path: Any, directory: bool) -> None:
    """Runs the portable rules of hooks through the real engine: NDTiff on disk and in RAM."""
    import pycromanager

    from mm_autofocus_devices.pycromanager_backend import pycromanager_core

    def hook(event: dict[str, Any]) -> dict[str, Any]:
        core = pycromanager.Core()
        core.set_camera_device("DCam")
        core.snap_image()
        assert core.get_tagged_image().pix.ndim == 2
        core.set_camera_device("Cam")
        core.full_focus()
        return event

    places = {"directory": str(tmp_path), "name": "run"} if directory else {}
    with pycromanager_core(core), pycromanager.Acquisition(post_hardware_hook_fn=hook, **places) as acquisition:
        events = pycromanager.multi_d_acquisition_events(
            xy_positions=[(0, 0), (10, 20)], z_start=0, z_end=2, z_step=1, num_time_points=1
        )
        acquisition.acquire(events)
    dataset = acquisition.get_dataset()
    if directory:  # what was written last reads as zeros until the files are opened anew
        dataset.close()
        dataset = ndstorage.Dataset(dataset.path)
    assert len(dataset.get_image_coordinates_list()) == 6
    assert dataset.read_image(position=1, z=2, time=0).max() == 1
    dataset.close()


def test_our_tagged_images_have_mmpycorexs_shape(core: Any) -> None:
    from inspect import signature

    from mmpycorex import launcher

    from mm_autofocus_devices.core import AutofocusCore
    from mm_autofocus_devices.snake_case import TaggedImage

    ours = list(signature(AutofocusCore.get_tagged_image).parameters)
    assert ours[1:] == list(signature(launcher.get_tagged_image).parameters)[1:]
    assert list(signature(TaggedImage).parameters) == list(signature(launcher.TaggedImage).parameters)
    assert core.TaggedImage is TaggedImage
