"""Per-well focus in a pymmcore-plus acquisition: a useq plan with an autofocus plan."""

from pathlib import Path

import useq

import mm_autofocus_devices
from mm_autofocus import Autofocus
from mm_autofocus_devices.core import AutofocusCore

configs = Path(mm_autofocus_devices.__path__[0]) / "configs"
core = AutofocusCore()
core.loadSystemConfiguration(configs / "plate.cfg")

autofocus = Autofocus.load(configs / "plate.toml", core)
core.mda.set_engine(autofocus.mda_engine())
core.mda.run(
    useq.MDASequence(
        stage_positions=useq.WellPlatePlan(plate="96-well", a1_center_xy=(0, 0), selected_wells=([0, 0], [0, 1])),
        channels=[{"group": "Channel", "config": "DAPI", "exposure": 50}],
        z_plan={"range": 2, "step": 1},
        autofocus_plan=useq.AxesBasedAF(axes=("p",)),  # leave it out, and autofocus.toml's [schedule] decides
    )
)
for result in autofocus.results:
    print(f"{result.label}: {result.status}, z = {result.end['z']:.2f} µm, confidence {result.confidence:.2f}")
core.unloadAllDevices()
