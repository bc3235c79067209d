"""The main job in simulation: scan a multiwell plate in focus, and say what it cost and how good it was."""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import useq
from rich.console import Console

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.cli.acquire import acquire_mda, acquire_pycromanager, acquire_script, writable_folder
from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.report.data import FieldRecord, MethodSummary, ReportData, summarise
from mm_autofocus.report.html import write_report
from mm_autofocus.report.text import print_summary
from mm_autofocus.request import Event
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus.toml import to_toml
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.plate import Exposure, PlateInstrument, discard_instrument, open_instrument
from mm_autofocus_hooks.progress import Progress
from mm_autofocus_hooks.recorder import thumbnail_paths

logger = logging.getLogger(__name__)

INSTRUMENT = "plate"
COLUMNS = 12
FIELD_PITCH_UM = 300.0
SLICE_UM = 1.0


class TruthScorer:
    """Notes, for every event in the focal plane, how far from the true focus it was taken; scores, never steers."""

    def __init__(self, instrument: PlateInstrument, focal_slice: int, channel: str) -> None:
        self._instrument = instrument
        self._slice, self._channel = focal_slice, channel
        self._exposures: dict[Any, tuple[Event, int]] = {}

    @hookimpl
    def mmaf_event(self, event: Event) -> None:
        """Note which exposure will be this event's."""
        if event.axes.get("z", 0) == self._slice and event.channel == self._channel:
            self._exposures[event.key] = event, len(self._instrument.exposures)

    def note(self) -> str:
        """Return the error of the last image in the focal plane, for the progress display."""
        taken = self._instrument.exposures
        if not self._exposures:
            return ""
        _, index = list(self._exposures.values())[-1]
        return f"error {taken[index].defocus_um:+.2f} µm" if index < len(taken) else ""

    def places(self) -> dict[Any, tuple[Event, Exposure | None]]:
        """Return, for every place, its event and the exposure that followed: where the stage truly was."""
        taken = self._instrument.exposures
        return {key: (event, taken[i] if i < len(taken) else None) for key, (event, i) in self._exposures.items()}


@dataclass
class PlateDemo:
    """One run of ``mm-autofocus demo plate``; see the command's options.

    Raises
    ------
    SettingsError
        When the options or the output folder cannot be used; nothing has been acquired.
    """

    wells: int = 24
    fields: int = 2
    engine: str = "pycromanager"
    strategy: str = "sweep"
    settings: Path | None = None
    out: Path = Path("demo_output")
    seed: int = 1
    height_span_um: float = 250.0
    specimen: str = "fluorescence"
    peer: bool = True
    quiet: bool = False
    blank_wells: tuple[str, ...] | None = None
    drift_um_per_hour: float = 3.0
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self) -> dict[str, Any]:
        """Acquire, score, report; return the outcome as a JSON-serialisable dictionary."""
        began = time.perf_counter()
        self.out = fresh_folder(self.out)
        plan = self._plan(0.0)
        with self._microscope() as (core, instrument):
            settings = self._settings()
            base = self._focus_by_hand(core, instrument, settings)
            plan = self._plan(base)
            events = [event for event in plan if event.action.type == "acquire_image"]
            scorer = TruthScorer(instrument, focal_slice=1, channel=self._channels[0])
            plugins: list[Any] = [scorer]
            if not self.quiet:
                plugins.append(Progress(len(events), self.wells, self.console, note=scorer.note))
            autofocus = Autofocus(
                core, settings, plugins=plugins, clock=lambda: instrument.clock_s, sleep=instrument.advance
            )
            dataset = self._acquire(core, autofocus, plan)
            results = list(autofocus.results)
            scope = _describe(core, autofocus)
            depth = autofocus.depth_of_field_um
            ours = self._fields(scorer, results)
        without = [f.model_copy(update={"z": base, "result_index": None, "before": None, "after": None}) for f in ours]
        methods = [
            summarise(f"autofocus ({', '.join(settings.strategy)})", ours, results, depth),
            summarise("without autofocus", without, [], depth, note="focused once, in the first well"),
        ]
        if self.peer:
            methods += self._peers(base, depth)
        reference: list[FocusResult] = []
        if self.peer and self.strategy == "laser":
            summary, reference = self._image_sweep(base, depth)
            methods.append(summary)
        data = ReportData(
            title=f"Plate scan, {self.wells} wells × {self.fields} fields",
            created=datetime.now().astimezone(),
            instrument=scope,
            plan={
                "wells": str(self.wells), "fields per well": str(self.fields), "slices": f"3, {SLICE_UM:g} µm apart",
                "channels": ", ".join(self._channels), "engine": self.engine, "seed": str(self.seed),
                "plate height": f"{self.height_span_um:g} µm over the plate",
            },
            depth_of_field_um=depth,
            strategy=", ".join(settings.strategy),
            results=results,
            fields=ours,
            methods=methods,
            dataset=dataset,
            reference="the image sweep" if reference else "",
            reference_results=reference,
            settings_toml=to_toml(settings.model_dump(mode="json", exclude_unset=True)),
        )  # fmt: skip
        path = write_report(data, self.out / "report.html")
        if not self.quiet:
            print_summary(data, self.console)
            self.console.print(f"dataset {dataset['path']}\nreport  {path}", highlight=False, soft_wrap=True)
        return {
            "report": str(path), "dataset": dataset, "seconds": time.perf_counter() - began,
            "depth_of_field_um": depth, "methods": [m.model_dump(mode="json") for m in methods],
            "headline": data.headline,
        }  # fmt: skip

    # ------------------------------------------------------------------ the plate
    @property
    def _configuration(self) -> str:
        """Name of the configuration that comes with the devices."""
        return "plate_laser" if self.strategy == "laser" else "plate"

    @property
    def _channels(self) -> tuple[str, ...]:
        """What is imaged; the first one is focused in and scored."""
        return ("Brightfield",) if self.specimen == "stained" else ("DAPI", "FITC")

    def _names(self) -> list[tuple[int, int]]:
        """Rows and columns of the wells, in a snake; a block of half the columns until the plate is full."""
        columns = COLUMNS if self.wells > 48 else min(6, self.wells)
        wells = []
        for row in range(-(-self.wells // columns)):
            across = range(columns) if row % 2 == 0 else reversed(range(columns))
            wells += [(row, column) for column in across]
        return wells[: self.wells]

    def _blank(self) -> tuple[str, ...]:
        if self.blank_wells is not None:
            return self.blank_wells
        names = [f"{chr(65 + row)}{column + 1}" for row, column in self._names()][1:]
        return tuple(sorted(random.Random(self.seed).sample(names, min(len(names), round(self.wells / 16)))))

    def _plan(self, z: float) -> useq.MDASequence:
        rows, columns = zip(*self._names(), strict=True)
        plate = useq.WellPlatePlan.model_validate(
            {
                "plate": "96-well",
                "a1_center_xy": (0.0, 0.0),
                "selected_wells": (rows, columns),
                "well_points_plan": useq.GridRowsColumns(
                    rows=1, columns=self.fields, fov_width=FIELD_PITCH_UM, fov_height=FIELD_PITCH_UM
                ),
            }
        )
        return useq.MDASequence.model_validate(
            {
                "axis_order": "pcz",
                "stage_positions": [{"x": p.x, "y": p.y, "z": z, "name": p.name} for p in plate],
                "channels": [{"group": "Channel", "config": name, "exposure": 50.0} for name in self._channels],
                "z_plan": {"range": 2 * SLICE_UM, "step": SLICE_UM},
                "autofocus_plan": useq.AxesBasedAF(axes=("p",)) if self.engine == "mda" else None,
            }
        )

    @contextmanager
    def _microscope(self) -> Iterator[tuple[AutofocusCore, PlateInstrument]]:
        """Load plate.cfg with the demo's options into a fresh core, and unload it afterwards."""
        text = (CONFIGS / f"{self._configuration}.cfg").read_text(encoding="utf-8")
        options = {
            "Seed": self.seed, "HeightSpanUm": self.height_span_um, "Specimen": self.specimen,
            "DriftUmPerHour": self.drift_um_per_hour, "BlankWells": ";".join(self._blank()),
        }  # fmt: skip
        lines = []
        for line in text.splitlines():
            for name, value in options.items():
                start = f"#py Property,Camera,{name},"
                line = f"{start}{value}" if line.startswith(start) else line
            lines.append(line)
        path = self.out / "plate.cfg"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        discard_instrument(INSTRUMENT)
        core = AutofocusCore()
        try:
            core.loadSystemConfiguration(path)
            yield core, open_instrument(INSTRUMENT)
        finally:
            core.unloadAllDevices()
            discard_instrument(INSTRUMENT)

    def _settings(self, **changes: Any) -> Settings:
        settings = Settings.load(self.settings or CONFIGS / f"{self._configuration}.toml")
        data = settings.model_dump(exclude_unset=True)
        if self.settings is None and self.strategy != "laser":  # its file has the sweep to fall back on
            data["strategy"] = self.strategy
        if self.specimen == "stained" and self.settings is None:
            data["microscope"] = {**data["microscope"], "channel": "Channel/Brightfield", "wavelength_um": 0.55}
            sweep = {**data["strategies"]["sweep"], "measure": "brenner"}
            data["strategies"] = {**data["strategies"], "sweep": sweep}
        data["recorder"] = {**data.get("recorder", {}), "folder": str(self.out)}
        return Settings.parse({**data, **changes})

    def _focus_by_hand(self, core: AutofocusCore, instrument: PlateInstrument, settings: Settings) -> float:
        """Find the focus in the first well over the whole travel, as a person does before starting."""
        data = settings.model_dump(exclude_unset=True)
        data |= {"map": {"enabled": False}, "recorder": {}, "strategy": ("sweep",), "verify": {"enabled": True}}
        data["strategies"] = {"sweep": {**data.get("strategies", {}).get("sweep", {}), "range_um": 400}}
        first = next(iter(self._plan(0.0)))
        if first.x_pos is not None and first.y_pos is not None:
            core.setXYPosition(first.x_pos, first.y_pos)
            core.waitForDevice(core.getXYStageDevice())
        autofocus = Autofocus(
            core, Settings.parse(data), clock=lambda: instrument.clock_s, sleep=instrument.advance
        )  # fmt: skip
        result = autofocus.focus().result
        autofocus.finish()
        if result is None or not result.ok:
            raise FocusError(
                f"no focus was found in the first well ({result.reason if result else 'no result'}); choose another "
                "--seed, or --height-span 100"
            )
        return result.end["z"]

    # ------------------------------------------------------------------ acquiring and scoring
    def _acquire(self, core: AutofocusCore, autofocus: Autofocus, plan: useq.MDASequence) -> dict[str, Any]:
        if self.engine == "pycromanager":
            return acquire_pycromanager(core, autofocus, plan, self.out)
        if self.engine == "mda":
            return acquire_mda(core, autofocus, plan, self.out)
        return acquire_script(core, autofocus, plan, self.out)

    def _fields(self, scorer: TruthScorer, results: list[FocusResult]) -> list[FieldRecord]:
        places = scorer.places()
        by_key = {Event(axes=r.axes).key: i for i, r in enumerate(results)}
        if self.engine == "script":
            by_key = {key: i for i, key in enumerate(places)}
        records = []
        lines = self.out / "focus.jsonl"
        for key, (event, exposure) in places.items():
            index = by_key.get(key)
            before = after = None
            if index is not None:
                before, after = (p if p.exists() else None for p in thumbnail_paths(lines, index + 1))
            records.append(
                FieldRecord(
                    label=event.label or str(key.position), well=event.well, x=event.x, y=event.y,
                    z=exposure.actual_z_um if exposure else None, truth_z=exposure.focus_z_um if exposure else None,
                    blank=exposure.blank if exposure else None, result_index=index, before=before, after=after,
                )
            )
        return records

    def _peers(self, base: float, depth: float) -> list[MethodSummary]:
        """Focus a plate of the same seed with Micro-Manager's OughtaFocus search, field by field."""
        peers = {
            "OughtaFocus": {"range_um": 10.0, "tolerance_um": 1.0},
            "OughtaFocus, tuned": {"range_um": 60.0, "tolerance_um": 0.3},
        }
        summaries = []
        for name, options in peers.items():
            with self._microscope() as (core, instrument):
                settings = self._settings(
                    strategy="oughtafocus-brent", strategies={"oughtafocus-brent": options}, map={"enabled": False},
                    verify={"enabled": False}, recorder={}, min_confidence=0.0,
                    failure=dict.fromkeys(("no_signal", "at_limit", "low_confidence", "timed_out", "failed"), "stay"),
                )  # fmt: skip
                records, results = focus_everywhere(core, instrument, settings, self._plan(base), base)
                note = f"{options['range_um']:g} µm, tolerance {options['tolerance_um']:g} µm, from the last focus"
                summaries.append(summarise(name, records, results, depth, note=note))
        return summaries

    def _image_sweep(self, base: float, depth: float) -> tuple[MethodSummary, list[FocusResult]]:
        """Focus the same plate with the image sweep, with its focus map: what the laser saves in images."""
        with self._microscope() as (core, instrument):
            settings = self._settings(strategy="sweep", recorder={}, map={"enabled": True})
            records, results = focus_everywhere(core, instrument, settings, self._plan(base), base, by_plan=True)
            note = "by images of the specimen, with the focus map"
            return summarise("sweep", records, results, depth, note=note), results


def focus_everywhere(
    core: AutofocusCore,
    instrument: PlateInstrument,
    settings: Settings,
    plan: useq.MDASequence,
    start: float,
    *,
    by_plan: bool = False,
) -> tuple[list[FieldRecord], list[FocusResult]]:
    """Focus once at every position of a plan without acquiring.

    Each run begins where the last one ended; with ``by_plan`` as in an acquisition, where the focus is expected.
    """
    autofocus = Autofocus(core, settings, clock=lambda: instrument.clock_s, sleep=instrument.advance)
    records: list[FieldRecord] = []
    autofocus.microscope.knob("z").set(start)
    stage = core.getXYStageDevice()
    for position in plan.stage_positions:
        assert position.x is not None
        assert position.y is not None
        core.setXYPosition(position.x, position.y)
        core.waitForDevice(stage)
        event = Event({"position": str(position.name)}, position.name, position.x, position.y, start)
        placement = autofocus.focus(event if by_plan else None)
        if by_plan and placement.z is not None:
            autofocus.microscope.knob("z").set(placement.z)
        z = autofocus.microscope.knob("z").get()
        records.append(
            FieldRecord(
                label=str(position.name), x=position.x, y=position.y, z=z,
                truth_z=instrument.true_focus_um(position.x, position.y),
                blank=instrument.is_blank(position.x, position.y), result_index=len(records),
            )
        )
    autofocus.finish()
    return records, list(autofocus.results)


def _describe(core: AutofocusCore, autofocus: Autofocus) -> dict[str, str]:
    imaging = autofocus.settings.microscope
    return {
        "microscope": "simulated widefield microscope",
        "objective": f"20x, NA {imaging.na:g}" if imaging.na else "20x",
        "pixel": f"{core.getPixelSizeUm():g} µm",
        "camera": f"{core.getImageWidth()} × {core.getImageHeight()}, {core.getImageBitDepth()} bit",
    }


def fresh_folder(out: Path) -> Path:
    """Make the output folder; an earlier demo in it is moved aside into ``previous``.

    Raises
    ------
    SettingsError
        When it cannot be written to.
    """
    out = writable_folder(out)
    try:
        for earlier in ("focus.jsonl", "thumbnails", "scan", "scan_1", "scan.ome.tiff", "report.html"):
            if (out / earlier).exists():
                target = out / "previous"
                target.mkdir(exist_ok=True)
                shutil.rmtree(target / earlier, ignore_errors=True)
                (target / earlier).unlink(missing_ok=True)
                (out / earlier).rename(target / earlier)
    except OSError as error:
        raise SettingsError(f"an earlier demo in {out} cannot be moved aside: {error}; choose another --out") from error
    return out
