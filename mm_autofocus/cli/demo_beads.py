"""Focuses Micro-Manager's own DemoCamera, a simulation that nobody here wrote: it blurs with |z|, sharpest at 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import SettingsError
from mm_autofocus.settings import Settings
from mm_autofocus_devices.core import AutofocusCore

DEPTH_OF_FIELD_UM = 3.0
"""DemoCamera's beads are equally sharp within ±1 µm and have lost 15 % of their sharpness at ±1.5 µm."""


def bead_core() -> AutofocusCore:
    """Return a core with DemoCamera in 'Fluorescent Beads' mode, its z and XY stages and its shutter.

    Raises
    ------
    SettingsError
        When Micro-Manager's demo adapter is not installed.
    """
    try:
        import mm_test_adapters
    except ImportError:
        raise SettingsError("Micro-Manager's DemoCamera is not installed: pip install 'mm-autofocus[demo]'") from None
    core = AutofocusCore()
    core.setDeviceAdapterSearchPaths([str(mm_test_adapters.device_adapter_path())])
    for label, device in (("Camera", "DCam"), ("Z", "DStage"), ("XY", "DXYStage"), ("Shutter", "DShutter")):
        core.loadDevice(label, "DemoCamera", device)
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setFocusDevice("Z")
    core.setXYStageDevice("XY")
    core.setShutterDevice("Shutter")
    core.setProperty("Camera", "Mode", "Fluorescent Beads")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setExposure(10.0)
    return core


def run_beads(*, strategy: str, starts: int, range_um: float, seed: int, quiet: bool) -> dict[str, Any]:
    """Focus from random starts at random places; return the outcome of each, and how many are in focus."""
    core = bead_core()
    half = range_um / 2
    settings = Settings.parse(
        {
            "strategy": strategy,
            "microscope": {"depth_of_field_um": DEPTH_OF_FIELD_UM},
            "knobs": {"z": {"limits": [-2 * range_um, 2 * range_um]}},
            "map": {"enabled": False},
            "strategies": {strategy: {"range_um": range_um}},
        }
    )
    autofocus = Autofocus(core, settings)
    rng = np.random.default_rng(seed)
    runs: list[dict[str, Any]] = []
    try:
        for _ in range(starts):
            start = float(rng.uniform(-0.9 * half, 0.9 * half))
            core.setXYPosition(float(rng.uniform(-5000, 5000)), float(rng.uniform(-5000, 5000)))
            core.setPosition(start)
            result = autofocus.focus().result
            assert result is not None
            runs.append(
                {
                    "start_um": start, "end_um": result.end["z"], "status": result.status.value,
                    "confidence": result.confidence, "images": result.images,
                    "in_focus": abs(result.end["z"]) <= DEPTH_OF_FIELD_UM / 2,
                }
            )  # fmt: skip
        autofocus.finish()
    finally:
        core.unloadAllDevices()
    in_focus = sum(run["in_focus"] for run in runs)
    if not quiet:
        table = Table("start, µm", "end, µm", "outcome", "confidence", "images", title="DemoCamera, Fluorescent Beads")
        for run in runs:
            table.add_row(
                f"{run['start_um']:.2f}", f"{run['end_um']:.2f}", str(run["status"]), f"{run['confidence']:.2f}",
                str(run["images"]),
            )  # fmt: skip
        console = Console()
        console.print(table)
        console.print(f"{in_focus} of {starts} within ±{DEPTH_OF_FIELD_UM / 2:g} µm of focus")
    return {"strategy": strategy, "in_focus": in_focus, "starts": starts, "runs": runs}
