"""``mm-autofocus replay``: focuses on a recorded z-stack as if it were a microscope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import SettingsError
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.replay import RecordedStack
from mm_autofocus_devices.replay.devices import ReplayCamera, ReplayStage, publish


def replay_stack(
    *,
    stack: Path,
    strategy: str,
    settings_path: Path | None,
    step_um: float | None,
    positions: Path | None,
    start_um: float | None,
    depth_of_field_um: float | None,
    quiet: bool,
) -> dict[str, Any]:
    """Run a strategy on a recorded z-stack, through a real core; return the result as JSON-serialisable data.

    Raises
    ------
    SettingsError
        When the stack or the settings cannot be used.
    """
    recording = RecordedStack.open(stack, step_um=step_um, positions=positions)
    z = recording.z_um
    if start_um is not None and not z[0] <= start_um <= z[-1]:
        raise SettingsError(f"--start {start_um:g} is outside the recording, {z[0]:g} to {z[-1]:g} µm")
    core = AutofocusCore()
    publish("replay", recording)
    try:
        core.loadPyDevice("Camera", ReplayCamera())
        core.loadPyDevice("Z", ReplayStage())
        core.initializeAllDevices()
        core.setCameraDevice("Camera")
        core.setFocusDevice("Z")
        core.setAutoShutter(False)
        settings = _settings(recording, settings_path, strategy, depth_of_field_um)
        core.setPosition(float(start_um if start_um is not None else z[len(z) // 2]))
        autofocus = Autofocus(core, settings)
        result = autofocus.focus().result
        autofocus.finish()
    finally:
        core.unloadAllDevices()
    assert result is not None
    if not quiet:
        _print(result, stack, Console())
    return result.model_dump(mode="json")


def _settings(
    recording: RecordedStack, path: Path | None, strategy: str, depth_of_field_um: float | None
) -> Settings:
    data: dict[str, Any] = Settings.load(path).model_dump(exclude_unset=True) if path else {"strategy": strategy}
    z = recording.z_um
    microscope = dict(data.get("microscope", {}))
    if depth_of_field_um is not None and not depth_of_field_um > 0:
        raise SettingsError(f"--depth-of-field {depth_of_field_um:g} must be above 0")
    if depth_of_field_um is not None or not {"depth_of_field_um", "na"} & set(microscope):
        microscope["depth_of_field_um"] = depth_of_field_um or 2.0 * float(np.median(np.diff(z)))
    data["microscope"] = microscope
    data["knobs"] = {"z": {"device": "Z", "limits": [float(z[0]), float(z[-1])], "tolerance": 1e-3}}
    strategies = dict(data.get("strategies", {}))
    name = data["strategy"] if isinstance(data["strategy"], str) else data["strategy"][0]
    strategies.setdefault(name, {"range_um": float(z[-1] - z[0])})
    data["strategies"] = strategies
    data["map"] = {"enabled": False}
    return Settings.parse(data)


def _print(result: FocusResult, stack: Path, console: Console) -> None:
    table = Table("image", "z, µm", "sharpness", "taken for", title=stack.name)
    for i, sample in enumerate(result.samples):
        score = "" if sample.score is None else f"{sample.score:.5g}"
        table.add_row(str(i + 1), f"{sample.knobs['z']:.3f}", score, sample.purpose)
    console.print(table)
    console.print(
        f"{result.status.value} at z = {result.end['z']:.3f} µm, confidence {result.confidence:.2f}, "
        f"{result.images} images: {result.reason}",
        highlight=False,
    )
