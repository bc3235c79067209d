"""``mm-autofocus run``: runs an acquisition plan with autofocus on any Micro-Manager configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import useq
from rich.console import Console

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.cli.acquire import (
    acquire_events,
    acquire_mda,
    as_pycromanager,
    channel_offsets,
    resumes_on_enter,
    writable_folder,
)
from mm_autofocus.errors import SettingsError
from mm_autofocus.report.html import write_report
from mm_autofocus.report.text import print_summary
from mm_autofocus.settings import Settings
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_hooks.progress import Progress


def run_plan(
    *, plan: Path, config: Path, settings_path: Path, out: Path, engine: str, adapters: str, trace: bool, quiet: bool
) -> dict[str, Any]:
    """Load a configuration, run a plan, write dataset and report; return where they are.

    Raises
    ------
    SettingsError
        When plan, configuration, settings or folder cannot be used; nothing has moved.
    """
    if engine == "script":
        raise SettingsError("--engine script belongs to the demo; use pycromanager or mda")
    loaded = load_plan(plan)
    settings = Settings.load(settings_path)
    out = writable_folder(out)
    console = Console(stderr=True)
    core = load_core(config, adapters)
    try:
        recorder = {**settings.recorder.model_dump(exclude_unset=True), "folder": str(out)}
        stack = settings.stack.model_dump(exclude_unset=True)
        offsets = channel_offsets(loaded) if isinstance(loaded, useq.MDASequence) else {}
        if offsets and settings.stack.channel_offsets:
            raise SettingsError(
                f"both {plan} (z_offset) and {settings_path} ([stack] channel_offsets) shift the channels; say it once"
            )
        if offsets and engine != "mda":  # the MDA engine finds them in the plan
            stack["channel_offsets"] = offsets
        plugins = [] if quiet else [Progress(len(_events(loaded)), console=console)]
        autofocus = Autofocus(core, settings, plugins=plugins, recorder=recorder, stack=stack)
        if trace:
            autofocus.plugins.trace(sys.stderr.write)
        if engine == "mda" and not isinstance(loaded, useq.MDASequence):
            raise SettingsError(f"--engine mda needs a useq plan; {plan} holds pycro-manager events")
        autofocus.plan(loaded)
        autofocus.start()
        with resumes_on_enter(autofocus, console):
            if engine == "mda" and isinstance(loaded, useq.MDASequence):
                dataset = acquire_mda(core, autofocus, loaded, out)
            else:
                dataset = acquire_events(core, autofocus, _events(loaded), out)
        data = autofocus.report_data(title=plan.stem).model_copy(
            update={
                "instrument": {"configuration": config.name},
                "plan": {"file": plan.name, "engine": engine, "events": str(dataset["images_expected"])},
                "dataset": dataset,
            }
        )
    finally:
        core.unloadAllDevices()
    path = write_report(data, out / "report.html")
    if not quiet:
        print_summary(data, console)
        console.print(f"dataset {dataset['path']}\nreport  {path}", highlight=False, soft_wrap=True)
    return {"dataset": dataset, "report": str(path), "runs": len(data.results)}


def load_core(config: Path, adapters: str = "") -> AutofocusCore:
    """Load a configuration into a new core.

    Raises
    ------
    SettingsError
        When it cannot be loaded.
    """
    if not config.exists():
        raise SettingsError(f"configuration {config} does not exist")
    core = AutofocusCore()
    if adapters:
        core.setDeviceAdapterSearchPaths([adapters])
    try:
        core.loadSystemConfiguration(config)
    except Exception as error:
        core.unloadAllDevices()
        raise SettingsError(
            f"configuration {config} cannot be loaded: {error}. If a device adapter was not found, say where they are "
            "with --adapters"
        ) from error
    return core


def load_plan(path: Path) -> useq.MDASequence | list[dict[str, Any]]:
    """Read a useq plan (YAML or JSON), or a JSON list of pycro-manager events.

    Raises
    ------
    SettingsError
        When the file is neither, or has no positions to go to.
    """
    try:
        if path.suffix.lower() == ".json":
            data = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(data, list):
                if not data or not all(isinstance(event, dict) and "axes" in event for event in data):
                    raise SettingsError(f'plan {path} holds no pycro-manager events (each needs "axes")')
                return data
        sequence = useq.MDASequence.from_file(path)
    except SettingsError:
        raise
    except FileNotFoundError:
        raise SettingsError(f"plan {path} does not exist") from None
    except Exception as error:
        raise SettingsError(f"plan {path} is neither a useq plan nor a list of pycro-manager events: {error}") from None
    if not any(True for _ in sequence):
        raise SettingsError(f"plan {path} holds no events: give it stage_positions")
    return sequence


def _events(plan: useq.MDASequence | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return as_pycromanager(plan) if isinstance(plan, useq.MDASequence) else plan
