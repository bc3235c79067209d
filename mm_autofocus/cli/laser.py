"""Commands of the laser autofocus: calibrate, train, recalibrate, check, table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.readouts import Card, LaserModel, load_model
from mm_autofocus.settings import Settings
from mm_autofocus.strategies.laser import Laser, LaserSettings
from mm_autofocus.strategies.laser_care import KNOWN_UM
from mm_autofocus.training.laser_dataset import Day, acquire_day, days, frames_of, take_frames
from mm_autofocus.training.machines import HERE, Machines

Say = Callable[[str], None]


def calibrate(
    core: Any,
    settings: Settings,
    dataset: Path,
    *,
    name: str = "",
    stacks: int = 100,
    steps_um: dict[str, float] | None = None,
    focus_um: float | None = None,
    plugins: Iterable[object] = (),
    say: Say = print,
) -> dict[str, Any]:
    """Acquire a day of labelled stacks through the core; a day that was interrupted goes on.

    Parameters
    ----------
    core
        With the configuration loaded, standing at a place with specimen.
    settings
        With ``[strategies.laser]`` (camera, exposure, objective, offset), and a strategy "sweep" that works here.
    dataset
        Folder of the days.
    name
        Of the day; empty for today's date.
    stacks, steps_um
        Stacks of each range, and their steps by range ("long", "short"); 1 µm and 50 nm as in the paper.
    focus_um
        Stage position of zero defocus; None to find the plane in focus with the image sweep, less the offset.
    plugins
        Beside those of the entry points.
    say
        Told what goes on.

    Raises
    ------
    FocusError
        When no focus was found, the dataset is of another objective or camera, or a stack leaves the limits.
    """
    laser = _laser_settings(settings)
    autofocus = Autofocus(core, settings, plugins=plugins)
    folder = dataset / (name or date.today().isoformat())
    if focus_um is None and not (folder / "day.json").exists():
        focus_um = _focus_by_image(core, settings, plugins) - laser.offset_um
        say(f"zero defocus at z = {focus_um:.3f} µm, by image")
    microscope = autofocus.microscope
    exposure = laser.exposure_ms or load_model(laser.model).card.exposure_ms
    with microscope.preserved():
        image, _ = microscope.snap(camera=laser.camera, exposure_ms=exposure)
    day = Day(
        objective=laser.objective or load_model(laser.model).card.objective, camera=laser.camera or "",
        shape=(image.shape[0], image.shape[1]), exposure_ms=exposure, focus_um=focus_um or 0.0,
    )  # fmt: skip
    paths = acquire_day(
        microscope, folder, day, stacks=stacks, steps_um=steps_um, progress=lambda i, n: say(f"stack {i} of {n}")
    )
    return {"day": str(folder), "stacks": len(paths)}


def train(
    dataset: Path | None,
    out: Path,
    *,
    base: str = "",
    synthetic_days: int = 0,
    seed: int = 0,
    threads: int = 1,
    machines: Machines = HERE,
    say: Say = print,
) -> dict[str, Any]:
    """Train our readouts: jointly on a dataset's days and synthetic ones, or on synthetic days alone.

    Parameters
    ----------
    dataset
        Folder of days; None to train on synthetic days only (so was the model made that comes with mm-autofocus).
    out
        The model's card (.json).
    base
        Model to begin with, when there is a dataset; empty for the one that comes with mm-autofocus.
    synthetic_days
        How many; 0 for 300 beside a dataset.
    seed, threads
        Same numbers, same weights.
    machines
        To simulate synthetic days and to train on; the first process writes.
    say
        Told what goes on.

    Raises
    ------
    SettingsError
        When the dataset cannot be used.
    """
    from mm_autofocus.readouts.profile import ProfileReadout
    from mm_autofocus.training.laser import adapt, pretrain, pretraining_days
    from mm_autofocus.training.laser_dataset import read_day
    from mm_autofocus.training.laser_synthetic import DaysPlan

    began = time.perf_counter()
    process = machines.process
    say = process.told(say)

    def progress(epoch: int, epochs: int, loss: float) -> None:
        say(f"epoch {epoch} of {epochs}, loss {loss:.3f}")

    if dataset is None:
        if synthetic_days < 10:
            raise SettingsError(f"{synthetic_days} synthetic days are too few to train on; give a dataset, or 10 days")
        count = synthetic_days
        sets = pretraining_days(_KINDS, days=count, frames=24, seed=seed, machines=machines)
        made = {
            kind: pretrain(kind, both, seed=seed, threads=threads, process=process, progress=progress)
            for kind, both in sets.items()
        }
        trained_on = (
            f"{count} synthetic days of as many simulated instruments, 24 frames each and range, drift family "
            "gaussian-walk at 0.7 to 2 times the usual drift"
        )
        first = load_model(base).card if base else Card(objective="simulated-100x", shape=(192, 192))
    else:
        folders = days(dataset)
        day, start = read_day(folders[0]), load_model(base)
        if day.shape != start.card.shape:
            raise SettingsError(
                f"the dataset's images are {day.shape}, the model to begin with reads {start.card.shape}; train one "
                "for this camera on synthetic days first"
            )
        plans = [DaysPlan(kind, synthetic_days or 300, 24, seed + 11) for kind in _KINDS]
        made = {}
        for kind, synthetic in zip(_KINDS, machines.make(DaysPlan.simulated, None, plans), strict=True):
            readout = start.long if kind == "long" else start.short
            if not isinstance(readout, ProfileReadout):
                raise SettingsError(f"the model to begin with has no {kind}-range readout of ours; choose another base")
            own = frames_of(folders, kind)
            made[kind] = adapt(readout, own, synthetic, seed=seed, threads=threads, process=process, progress=progress)
        trained_on = f"{len(folders)} days ({', '.join(f.name for f in folders)}) on {start.card.trained_on}"
        first = start.card.model_copy(update={"objective": day.objective, "exposure_ms": day.exposure_ms})
    seconds = time.perf_counter() - began
    card = first.model_copy(
        update={
            "long_um": made["long"].range_um, "short_um": made["short"].range_um, "trained_on": trained_on,
            "command": process.command(
                f"train laser --out {out.name} --synthetic-days {synthetic_days} --seed {seed}"
                + (f" --dataset {dataset.name}" if dataset else "")
            ),
            "measured": {"training_seconds": round(seconds, 1), "threads": threads, **process.about()},
        }
    )  # fmt: skip
    if process.writes:
        LaserModel(card, made["long"], made["short"]).save(out)
    return {"model": str(out), "seconds": round(seconds, 1), "trained_on": trained_on}


_KINDS = ("long", "short")


def recalibrate(
    core: Any,
    settings: Settings,
    out: Path,
    *,
    focus_um: float | None = None,
    plugins: Iterable[object] = (),
    say: Say = print,
) -> dict[str, Any]:
    """Fit the model to today from ten frames of known defocus; no training run.

    Parameters
    ----------
    core, settings, focus_um, plugins, say
        See `calibrate`.
    out
        The new model's card (.json); name it in ``[strategies.laser] model``.

    Raises
    ------
    FocusError
        When no focus was found, or a frame leaves the limits.
    """
    laser = _laser_settings(settings)
    model = load_model(laser.model, objective=laser.objective)
    if focus_um is None:
        focus_um = _focus_by_image(core, settings, plugins) - laser.offset_um
        say(f"zero defocus at z = {focus_um:.3f} µm, by image")
    microscope = Autofocus(core, settings, plugins=plugins).microscope
    day = Day(
        objective=model.card.objective, camera=laser.camera or "", shape=model.card.shape,
        exposure_ms=laser.exposure_ms or model.card.exposure_ms, focus_um=focus_um,
    )  # fmt: skip
    images, defocus = take_frames(microscope, day, np.array(KNOWN_UM))
    began = time.perf_counter()
    today = model.recalibrated(images, defocus)
    seconds = time.perf_counter() - began
    today.save(out)
    return {"model": str(out), "frames": len(images), "seconds": round(seconds, 4)}


def check(
    core: Any,
    settings: Settings,
    *,
    starts: int = 20,
    reach_um: float = 100.0,
    threshold: float = 0.9,
    seed: int = 0,
    focus_um: float | None = None,
    plugins: Iterable[object] = (),
) -> dict[str, Any]:
    """Inject known defocus, focus with the laser alone, and report the fraction recovered; the stage goes back.

    Parameters
    ----------
    core, settings, plugins
        See `calibrate`.
    starts, reach_um, seed
        How many random starts, and how far from focus.
    threshold
        The fraction that must come back to within half the depth of field.
    focus_um
        Stage position of the plane to image; None to find it with the image sweep.

    Raises
    ------
    FocusError
        When less than ``threshold`` is recovered: do not start an acquisition with this model.
    """
    truth = _focus_by_image(core, settings, plugins) if focus_um is None else focus_um
    data = settings.model_dump(exclude_unset=True) | {
        "strategy": ("laser",), "map": {"enabled": False}, "recorder": {},
        "failure": dict.fromkeys(("no_signal", "at_limit", "low_confidence", "timed_out", "failed"), "stay"),
    }  # fmt: skip
    autofocus = Autofocus(core, Settings.parse(data), plugins=plugins)
    knob, half = autofocus.microscope.knob("z"), autofocus.depth_of_field_um / 2
    errors: list[float | None] = []
    injected = np.random.default_rng(seed).uniform(-reach_um, reach_um, starts)
    with autofocus.microscope.preserved():
        for offset in injected:
            knob.set(knob.limits.clip(truth + float(offset)))
            result = autofocus.focus().result
            errors.append(result.end["z"] - truth if result is not None and result.ok else None)
        knob.set(truth)
    autofocus.finish()
    found = np.array([e for e in errors if e is not None])
    recovered = float((np.abs(found) <= half).sum()) / starts
    outcome = {
        "recovered": recovered, "within_um": half, "starts": starts, "no_focus": errors.count(None),
        "median_error_um": float(np.median(found)) if found.size else None,
        "sd_um": float(found.std()) if found.size else None, "injected_um": injected.round(2).tolist(),
        "errors_um": errors,
    }  # fmt: skip
    if recovered < threshold:
        raise FocusError(
            f"the laser recovers {recovered:.0%} of {starts} known defoci to within {half:.2f} µm, {threshold:.0%} are "
            "wanted: do not acquire with it; recalibrate, or correct [strategies.laser] offset_um"
            + (f" (median error {np.median(found):+.2f} µm)" if found.size else "")
        )
    return outcome


def table(
    out: Path, *, quick: bool = False, paper_seconds: float = 480.0, fresh: bool = False, workers: int = 0,
    scheduler: str = "", quiet: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Measure the three readouts side by side; write laser_table.json, .md and, with the paper's figures, .html.

    Parameters
    ----------
    out
        Folder; a run that was killed goes on there.
    quick
        A few per cent of the images and of the training.
    paper_seconds
        Training time of the paper's networks in all.
    fresh
        Train and measure everything again, in place of going on.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`.
    quiet
        No progress display.

    Raises
    ------
    SettingsError
        When the folder cannot be written to.
    """
    from mm_autofocus.benchmark.page import machine
    from mm_autofocus.cli.acquire import writable_folder
    from mm_autofocus.cli.bench_options import progress_of
    from mm_autofocus.cli.laser_report import markdown, write_laser_report
    from mm_autofocus.cli.laser_table import Bench
    from mm_autofocus.report.outcomes import write_tables

    seconds = 24.0 if quick else paper_seconds
    bench = Bench(writable_folder(out), quick=quick, paper_seconds=seconds, workers=workers, scheduler=scheduler)
    if fresh:
        bench.begin_anew()
    with progress_of(len(bench.trainings()) + len(bench.units()), quiet=quiet) as progress:
        measured, records = bench.measure(progress)
    outcome = measured | {"machine": machine()}
    write_tables(out, "laser_table", outcome, markdown(outcome, records), records)
    write_laser_report(outcome, records, out / "laser_table.html")
    return outcome


def _laser_settings(settings: Settings) -> LaserSettings:
    from mm_autofocus.settings import validate

    return validate(LaserSettings, settings.strategies.get(Laser.name, {}), "[strategies.laser]")


def _focus_by_image(core: Any, settings: Settings, plugins: Iterable[object]) -> float:
    """Stage position of the plane in focus, by the image sweep.

    Raises
    ------
    FocusError
        When there is none.
    """
    data = settings.model_dump(exclude_unset=True) | {"strategy": ("sweep",), "map": {"enabled": False}, "recorder": {}}
    autofocus = Autofocus(core, Settings.parse(data), plugins=plugins)
    result = autofocus.focus().result
    autofocus.finish()
    if result is None or not result.ok:
        raise FocusError(
            f"the image sweep found no focus here ({result.reason if result else 'no result'}); go to a place with "
            "specimen, near focus, or give the stage position of zero defocus"
        )
    return result.end["z"]
