"""A pycro-manager acquisition on a faulty SEM, in a process of its own because it could hang; prints JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import pycromanager

from mm_autofocus import Autofocus, Settings
from mm_autofocus_devices.pycromanager_backend import pycromanager_core
from mm_autofocus_devices.sem.server import SemServer
from mm_autofocus_devices.transport import Fault, FaultKind
from sem_rig import CONFIGS, configuration, load, make_column

FAULTS = (FaultKind.CLOSE_MID_FRAME, FaultKind.GARBAGE, FaultKind.CLOSE_AFTER, FaultKind.CLOSE_BEFORE, FaultKind.SLOW)


def main(folder: Path) -> dict[str, Any]:
    """Acquire three positions while the line breaks every few frames."""
    column = make_column()
    with SemServer(column) as server:
        core = load(configuration(folder, server.port))
        core.setPosition(4505.0)
        core.setXYPosition("Stigmators", 0.25, -0.5)
        values = Settings.load(CONFIGS / "sem.toml").model_dump(exclude_unset=True)
        settings = {**values, "strategy": "sweep", "map": {"enabled": False}, "strategies": {"sweep": {"range_um": 30}}}
        autofocus = Autofocus(core, Settings.parse(settings))
        for number, kind in enumerate(FAULTS):
            server.faults.add(Fault(kind, "scan", skip=3 * number))
        images = []
        with pycromanager_core(core):
            with pycromanager.Acquisition(**autofocus.pycromanager_hooks()) as acquisition:
                dataset = acquisition.get_dataset()
                events = [{"axes": {"position": p}, "x": 5.0 * p, "y": 0.0, "z": 4505.0} for p in range(3)]
                acquisition.acquire(autofocus.plan(events))
            images = [dataset.read_image(**axes).shape for axes in dataset.get_image_coordinates_list()]
        outcome = {
            "images": len(images),
            "statuses": [result.status.value for result in autofocus.results],
            "struck": len(server.faults.struck),
            "stigmators": [core.getXPosition("Stigmators"), core.getYPosition("Stigmators")],
            "blanked": column.blanked,
        }
        core.unloadAllDevices()
    return outcome


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(main(Path(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)
