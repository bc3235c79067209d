"""``mm-autofocus bench light``: our searches and the peers' on simulated plate fields and on real recordings."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.benchmark.baseline import Baseline
from mm_autofocus.benchmark.curves import scorer_for
from mm_autofocus.benchmark.light_cases import (
    SHIPPED,
    CurveCase,
    LightCase,
    LightMethod,
    PlateCase,
    StackCase,
    absent_groups,
    light_methods,
    read_cases,
)
from mm_autofocus.benchmark.peers import HillClimb
from mm_autofocus.benchmark.replay import (
    FWHM_PLANES,
    Recording,
    peak_of_stack,
    replay,
    slide_scanner_recordings,
    windows,
)
from mm_autofocus.benchmark.replay import Case as CurveWindow
from mm_autofocus.benchmark.runner import Outcome, run_bench, set_aside
from mm_autofocus.cli.acquire import writable_folder
from mm_autofocus.cli.bench_options import progress_of
from mm_autofocus.cli.bench_tables import Tables
from mm_autofocus.errors import SettingsError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.plugins import Plugins
from mm_autofocus.request import Budget, Limits
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings, validate
from mm_autofocus.simulation.imaging import CHANNELS
from mm_autofocus.simulation.optics import Optics
from mm_autofocus.strategy import Strategy
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.plate import PlateInstrument, discard_instrument, open_instrument
from mm_autofocus_devices.replay import RecordedStack
from mm_autofocus_devices.replay.devices import ReplayCamera, ReplayStage, publish

STAY = dict.fromkeys(("no_signal", "at_limit", "low_confidence", "timed_out", "failed"), "stay")
"""No second chances: what is measured is one run."""

IMAGES = 120
"""Budget of a run; no method comes near it but the full stack."""


class Peers:
    """Brings the peers that only the benchmarks need."""

    @hookimpl
    def mmaf_strategies(self) -> Sequence[type[Strategy]]:
        """Bring the hill climb."""
        return (HillClimb,)


def measure_light(case: LightCase, method: LightMethod) -> Outcome:
    """Run one method once on one case; the truth is used to score only."""
    if isinstance(case, PlateCase):
        return _on_plate(case, method)
    if isinstance(case, StackCase):
        return _on_stack(case, method)
    return _on_curve(case, method)


# ---------------------------------------------------------------------- simulated plates
def _on_plate(case: PlateCase, method: LightMethod) -> Outcome:
    with _microscope(case) as (core, instrument):
        wavelength = CHANNELS[case.channel].wavelength_um
        depth = instrument.depth_of_field_um(case.channel)
        x, y = _field(instrument, case)
        core.setXYPosition(x, y)
        core.waitForDevice(core.getXYStageDevice())
        start = instrument.true_focus_um(x, y, case.channel) + case.start_um
        settings = _settings(
            method,
            depth * case.depth_scale,
            case.range_um,
            microscope={"channel": f"Channel/{case.channel}", "exposure_ms": case.exposure_ms,
                        "wavelength_um": wavelength},
            knobs={"z": {"limits": [-240.0, 240.0], "tolerance": 0.5, "backlash": 1.0}},
            specimen=case.specimen,
        )  # fmt: skip
        autofocus = Autofocus(
            core, settings, plugins=[Peers()], clock=lambda: instrument.clock_s, sleep=instrument.advance
        )
        autofocus.microscope.knob("z").set(start)
        result = _focus(autofocus)
        truth = instrument.true_focus_um(x, y, case.channel)
        return _outcome(result, truth, depth, nothing=case.expected == "nothing", outside=case.expected == "nothing"
                        and not case.blank)  # fmt: skip


@contextmanager
def _microscope(case: PlateCase) -> Iterator[tuple[AutofocusCore, PlateInstrument]]:
    """Load plate.cfg into a fresh core, on an instrument of its own with the case's physics."""
    name = f"bench-{os.getpid()}"
    discard_instrument(name)
    instrument = open_instrument(
        name, seed=case.seed, specimen=case.specimen, drift_um_per_h=case.drift_um_per_h, height_span_um=60.0,
        debris_well_fraction=1.0 if case.debris else 0.0, empty_field_fraction=1.0 if case.blank else 0.0,
        optics=Optics(family=case.family, coverslip_error_um=case.coverslip_error_um),
    )  # fmt: skip
    lines = []
    for line in (CONFIGS / "plate.cfg").read_text(encoding="utf-8").splitlines():
        if line.startswith("#py Property,") and line.split(",")[2] in _OPTIONS:
            continue
        lines.append(line)
        if line.startswith("#py pyDevice") and "devices.plate." in line:
            lines.append(f"#py Property,{line.split(',')[1]},Instrument,{name}")
    core = AutofocusCore()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plate.cfg"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            core.loadSystemConfiguration(path)
            yield core, instrument
        finally:
            core.unloadAllDevices()
            discard_instrument(name)


_OPTIONS = {"Seed", "Wells", "Specimen", "DriftUmPerHour", "HeightSpanUm", "BlankWells", "Speed"}
"""Properties of the plate's camera that would overwrite the case's physics."""


def _field(instrument: PlateInstrument, case: PlateCase) -> tuple[float, float]:
    """Choose a place: any when the case is blank, else one with a cell in it, and in dust where it is about dust."""
    rng = np.random.default_rng([case.seed, 5])
    names = instrument.plate.well_names()
    x = y = 0.0
    for _ in range(200):
        x, y = instrument.plate.well_centre(str(rng.choice(names)))
        reach = instrument.plate.format.well_um * 0.3
        x, y = x + float(rng.uniform(-reach, reach)), y + float(rng.uniform(-reach, reach))
        if instrument.is_blank(x, y) == case.blank:
            return x, y
    raise SettingsError(f"case {case.name!r}: no {'blank' if case.blank else 'populated'} field on plate {case.seed}")


# ---------------------------------------------------------------------- real recordings
@lru_cache(maxsize=4)
def _recording(file: str, step: float | None, positions: str | None, measure: str) -> tuple[Any, Any, float, float]:
    """Planes, their z, and position and depth of field of the measure's peak, µm."""
    stack = RecordedStack.open(file, step_um=step, positions=positions)
    focus, fwhm = peak_of_stack(stack.z_um, stack.planes.astype(np.float32), measure)
    return stack.planes, stack.z_um, focus, fwhm / FWHM_PLANES


def _on_stack(case: StackCase, method: LightMethod) -> Outcome:
    planes, z, peak, depth = _recording(case.file, case.step_um, case.positions, case.measure)
    focus = case.focus_um if case.focus_um is not None else peak
    depth = case.depth_of_field_um or depth
    window = _window(float(z[0]), float(z[-1]), case, focus, depth)
    name = f"bench-{os.getpid()}"
    publish(name, RecordedStack(planes, z, noise=0.005, seed=case.seed))
    core = AutofocusCore()
    try:
        for label, device in (("Camera", ReplayCamera()), ("Z", ReplayStage())):
            core.loadPyDevice(label, device)
            core.setProperty(label, "Recording", name)
        core.initializeAllDevices()
        core.setCameraDevice("Camera")
        core.setFocusDevice("Z")
        core.setAutoShutter(False)
        settings = _settings(
            method, depth, window.width, measure=case.measure, specimen="recorded",
            knobs={"z": {"device": "Z", "limits": [window.low, window.high], "tolerance": 1e-3}},
        )  # fmt: skip
        autofocus = Autofocus(core, settings, plugins=[Peers()])
        core.setPosition((window.low + window.high) / 2)
        result = _focus(autofocus)
    finally:
        core.unloadAllDevices()
    wide = max(depth, 2 * (case.tolerance_um or 0.0))
    return _outcome(result, focus, wide).model_copy(update={"instrument_seconds": 0.0})


def _window(low: float, high: float, case: StackCase, focus: float, depth: float) -> Limits:
    """The case's window, moved so that the focus is far enough inside for a search to see both of its sides."""
    width = (high - low) * (case.high - case.low)
    begin = low + (high - low) * case.low
    margin = min(max(0.1 * width, 1.5 * depth), width / 2)
    begin = min(max(begin, focus + margin - width), focus - margin)
    begin = min(max(begin, low), high - width)
    return Limits(begin, begin + width)


@lru_cache(maxsize=1)
def _curves(folder: Path) -> list[Recording]:
    return slide_scanner_recordings(folder)


def _on_curve(case: CurveCase, method: LightMethod) -> Outcome:
    recording = next(r for r in _curves(Path(case.file).parent) if (r.number, r.measure) == (case.number, case.measure))
    window = next(iter(windows([recording], (case.range_fwhm,), 1, case.seed, budget=Budget(IMAGES))))
    depth = recording.depth_of_field
    if method.range_depths is not None:
        half = method.range_depths * depth / 2
        narrow = window.window.intersect(Limits(window.start - half, window.start + half))
        window = CurveWindow(recording, narrow, window.start, case.range_fwhm, window.seed, None, window.budget)
    chosen = _section(method, depth, window.window.width, case.measure)
    if method.strategy == "sweep":
        chosen["guide"] = recording.guide
    plugins = Plugins(Settings(), [Peers()])
    cls: Any = plugins.strategies[method.strategy]
    strategy = cls(validate(cls.Settings, chosen, f"[strategies.{method.strategy}]"), scorer_for(recording))
    began = time.perf_counter()
    verdict, images = replay(strategy, window)
    seconds = time.perf_counter() - began
    error = verdict.target.get("z", window.start) - recording.focus
    # the label is a plane, so that one plane off is as good as the label is: two planes count as one depth of field
    return Outcome(
        status=str(verdict.status), success=verdict.status.ok and abs(error) <= depth, error=error, depth=2 * depth,
        unit="planes", confidence=verdict.confidence, images=images, dose=float(images), compute_seconds=seconds,
        reason=verdict.reason,
    )  # fmt: skip


# ---------------------------------------------------------------------- one run
def _section(method: LightMethod, depth: float, range_um: float, measure: str | None) -> dict[str, Any]:
    section = dict(method.settings)
    section["range_um"] = range_um if method.range_depths is None else min(range_um, method.range_depths * depth)
    if method.tolerance_depths is not None:
        section["tolerance_um"] = method.tolerance_depths * depth
    if measure is not None:
        section["measure"] = measure
    return section


def _settings(
    method: LightMethod,
    depth: float,
    range_um: float,
    *,
    knobs: dict[str, Any],
    microscope: dict[str, Any] | None = None,
    measure: str | None = None,
    specimen: str,
) -> Settings:
    if specimen == "stained":
        measure = "brenner"
    return Settings.parse(
        {
            "strategy": method.strategy,
            "microscope": {**(microscope or {}), "depth_of_field_um": depth},
            "knobs": knobs,
            "budget": {"images": IMAGES, "seconds": None},
            "map": {"enabled": False},
            "verify": {"enabled": not method.peer},  # the peers have none
            "min_confidence": 0.0 if method.peer else 0.5,
            "failure": STAY,
            "strategies": {method.strategy: _section(method, depth, range_um, measure)},
        }
    )


def _focus(autofocus: Autofocus) -> FocusResult:
    result = autofocus.focus().result
    autofocus.finish()
    assert result is not None
    return result


def _outcome(
    result: FocusResult, truth: float, depth: float, *, nothing: bool = False, outside: bool = False
) -> Outcome:
    error = result.end["z"] - truth
    found = abs(error) <= depth / 2
    # where nothing is to be found, saying so counts, and so does a focus found outside the window all the same
    success = (not result.ok or (outside and found)) if nothing else result.ok and found
    judged = not nothing or (outside and result.ok)
    return Outcome(
        status=result.status.value, success=success, error=error if judged else None, depth=depth,
        confidence=result.confidence, images=result.images, dose=result.dose, compute_seconds=result.compute_seconds,
        instrument_seconds=result.seconds, reason=result.reason,
    )  # fmt: skip


# ---------------------------------------------------------------------- the command
SIMULATED, RECORDED = "all simulated cases", "all recordings"


def bench_light(
    *,
    out: Path,
    case: Path | None = None,
    data: Path = Path("../shared/data"),
    quick: bool = False,
    seed: int = 0,
    workers: int = 0,
    scheduler: str = "",
    fresh: bool = False,
    baseline: Path | None = None,
    write_baseline: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run cases × methods, going on where an earlier run in the same folder ended; write the tables.

    Parameters
    ----------
    out
        Folder of light.jsonl (the journal), light.json, light.md and light.html.
    case
        A file of cases or a z-stack in place of those that come with mm-autofocus.
    data
        Folder of the real recordings.
    quick
        The few cases and methods of the continuous integration.
    seed
        Another seed draws other cases.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`.
    fresh
        Measure everything again, in place of going on: the earlier journal is kept as light-previous.jsonl.
    baseline, write_baseline
        File to compare with; file to write, to compare later runs with.
    quiet
        No progress display.

    Raises
    ------
    SettingsError
        When cases, folder or baseline cannot be used.
    """
    out = writable_folder(out)
    if baseline is not None:
        Baseline.load(baseline)  # before an hour of work, not after
    path = case or SHIPPED
    folder = data if data.exists() else None
    cases = read_cases(path, data=folder, quick=quick, seed=seed)
    absent = absent_groups(path, folder)
    if not cases:
        raise SettingsError(f"{path} holds no case that can be run; give the folder of the recordings with --data")
    methods = light_methods(quick=quick)
    if fresh:
        set_aside(out / "light.jsonl")
    with progress_of(len(cases) * len(methods), quiet=quiet) as progress:
        run = run_bench(
            cases, methods, measure_light, out / "light.jsonl", workers=workers, scheduler=scheduler, progress=progress
        )
    command = "mm-autofocus bench light" + (" --quick" if quick else "") + (f" --seed {seed}" if seed else "")
    tables = Tables(
        "light",
        command + (f" --case {case.name}" if case else ""),
        {
            SIMULATED: {c.group for c in cases if isinstance(c, PlateCase)},
            RECORDED: {c.group for c in cases if not isinstance(c, PlateCase)},
        },
        [f"left out, since the recordings are not here: {', '.join(absent)}"] if absent else [],
    )
    if write_baseline is not None:
        tables.baseline(run).save(write_baseline)
    return tables.write(run, out, baseline=baseline)
