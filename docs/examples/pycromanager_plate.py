"""Per-well focus in a pycro-manager acquisition, on the simulated plate microscope."""

import tempfile
from pathlib import Path

from pycromanager import Acquisition, multi_d_acquisition_events

import mm_autofocus_devices
from mm_autofocus import Autofocus
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.pycromanager_backend import pycromanager_core

configs = Path(mm_autofocus_devices.__path__[0]) / "configs"
core = AutofocusCore()
core.loadSystemConfiguration(configs / "plate.cfg")

events = multi_d_acquisition_events(
    xy_positions=[(0, 0), (9000, 0), (18000, 0)],
    position_labels=["A1", "A2", "A3"],
    z_start=-1, z_end=1, z_step=1,
    channel_group="Channel", channels=["DAPI", "FITC"],
)  # fmt: skip

autofocus = Autofocus.load(configs / "plate.toml", core)
with pycromanager_core(core):  # with a real microscope: start_headless(...) or Micro-Manager's ZMQ server
    with Acquisition(tempfile.mkdtemp(), "plate", **autofocus.pycromanager_hooks()) as acquisition:
        acquisition.acquire(autofocus.plan(events))

for result in autofocus.results:
    print(f"{result.label}: {result.status}, z = {result.end['z']:.2f} µm, confidence {result.confidence:.2f}")
autofocus.report("report.html")
core.unloadAllDevices()
