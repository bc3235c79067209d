"""The electron column in simulation: an acquisition over TCP that focuses and stigmates at every position."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import useq
from numpy.typing import NDArray
from rich.console import Console

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.benchmark.sem_methods import steps_of
from mm_autofocus.cli import demo_sem_score as single
from mm_autofocus.cli.acquire import acquire_mda, acquire_pycromanager
from mm_autofocus.cli.demo_plate import fresh_folder
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.report.data import FieldRecord, MethodSummary, ReportData, Section, summarise
from mm_autofocus.report.html import write_report
from mm_autofocus.report.score_sections import score_sections
from mm_autofocus.report.sem import STIG_TOLERANCE
from mm_autofocus.report.sem_sections import column_sections
from mm_autofocus.report.text import print_summary
from mm_autofocus.request import Event, FocusRequest
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.strategy import Frame, Image
from mm_autofocus.toml import to_toml
from mm_autofocus.training.score_data import TABLETOP
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_hooks.progress import Progress
from mm_autofocus_hooks.recorder import thumbnail_paths

logger = logging.getLogger(__name__)

PITCH_UM = 250.0
BETWEEN_S = 15.0
"""Simulated time from one position to the next: stage move and settling, in which the focus drifts."""
ACQUISITION_DWELL_NS = 200.0
START = Aberration(9.0, -1.5, 1.2)
"""What the column is off by at the first position, besides what it is off by when it is switched on."""
VIEWS_KEPT = 24

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exposure:
    """One frame as the column took it: the true aberration, and where the knobs stood, shape (3,) each."""

    truth: Vector
    knobs: Vector
    empty: float
    """Share of the frame that is blank resin."""


class WatchedColumn(Column):
    """A column that notes the truth of every frame, for scoring."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.exposures: list[Exposure] = []

    def scan(self, roi: tuple[int, int, int, int] | None = None) -> NDArray[np.uint8]:
        """Scan one frame; see `Column.scan`."""
        here = self.x_um, self.y_um
        width, height = self.frame
        empty = self.specimen.blank_map(*here, 16e-3 * self.pixel_nm, (height // 16, width // 16)).mean()
        knobs = np.array([self.working_distance_um, self.stig_x, self.stig_y])
        self.exposures.append(Exposure(self.truth().vector(), knobs, float(empty)))
        return super().scan(roi)


class Watcher:
    """Notes which exposure is an event's image, and keeps the first and the last frame of runs, for the report."""

    def __init__(self, column: WatchedColumn) -> None:
        self._column = column
        self._events: dict[Any, tuple[Event, int]] = {}
        self._first: Image | None = None
        self._last: Image | None = None
        self.views: list[tuple[Image | None, Image | None]] = []
        """Frame before and after each run; (None, None) beyond `VIEWS_KEPT`."""

    @hookimpl
    def mmaf_should_focus(self, event: Event) -> None:  # noqa: ARG002
        """Let the time of the stage's move pass, in which the focus drifts; whether to focus is for others to say."""
        self._column.advance(BETWEEN_S)

    @hookimpl
    def mmaf_event(self, event: Event) -> None:
        """Note which exposure will be this event's."""
        self._events[event.key] = event, len(self._column.exposures)

    @hookimpl
    def mmaf_frame(self, frame: Frame, purpose: str) -> None:
        """Keep the first frame of a run (the start's, where there is one) and the last."""
        if self._first is None or purpose == "start":
            self._first = frame.image
        self._last = frame.image

    @hookimpl
    def mmaf_focused(self, request: FocusRequest, result: FocusResult) -> None:  # noqa: ARG002
        """Put the frames of the run away."""
        keep = len(self.views) < VIEWS_KEPT
        self.views.append((self._first, self._last) if keep else (None, None))
        self._first = self._last = None

    def note(self) -> str:
        """Return the error of the last image, for the progress display."""
        images = [e for _, e in self.images().values() if e is not None]
        if not images:
            return ""
        z, x, y = images[-1].truth
        return f"off by {z:+.2f} µm, {x:+.2f}, {y:+.2f} a.u."

    def images(self) -> dict[Any, tuple[Event, Exposure | None]]:
        """Return, for every place, its event and the exposure that became its image."""
        taken = self._column.exposures
        return {k: (event, taken[i] if i < len(taken) else None) for k, (event, i) in self._events.items()}


@dataclass
class SemDemo:
    """One run of ``mm-autofocus demo sem``; see the command's options.

    Raises
    ------
    SettingsError
        When the options or the output folder cannot be used; nothing has been acquired.
    """

    positions: int = 9
    specimen: str | None = None
    setup: str = "A"
    strategy: str = "phase-diversity"
    engine: str = "pycromanager"
    settings: Path | None = None
    dwell_ns: float = 50.0
    drift_um_per_min: float = 0.5
    blank: float = 0.15
    seed: int = 1
    out: Path = Path("demo_output/sem")
    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self) -> dict[str, Any]:
        """Acquire, score, report; return the outcome as a JSON-serialisable dictionary."""
        began = time.perf_counter()
        kinds = [kind.value for kind in SpecimenKind]
        self.specimen = self.specimen or (single.SPECIMEN if self._by_score else "tissue")
        if self.specimen not in kinds:
            raise SettingsError(f"--specimen {self.specimen!r} is not simulated; choose {', '.join(kinds)}")
        self.out = fresh_folder(self.out)
        column = self._column(self.specimen)
        column.detune(column.truth() + (single.START if self._by_score else START))
        with self._microscope(column) as core:
            settings = self._settings(column)
            plan = self._plan(core.getPosition())
            watcher = Watcher(column)
            plugins: list[Any] = [watcher]
            if not self.quiet:
                plugins.append(Progress(self.positions, console=self.console, note=watcher.note))
            autofocus = Autofocus(core, settings, plugins=plugins, clock=lambda: column.clock_s, sleep=column.advance)
            acquire = acquire_mda if self.engine == "mda" else acquire_pycromanager
            dataset = acquire(core, autofocus, plan, self.out)
            results = list(autofocus.results)
            depth, unit = autofocus.depth_of_field_um, settings.microscope.dose_unit
        fields = self._fields(watcher, results)
        methods = [
            summarise(f"autofocus ({', '.join(settings.strategy)})", fields, results, depth, dose_unit=unit),
            self._untouched(watcher, depth, unit),
        ]
        paths = self._paths(watcher, results)
        data = ReportData(
            title=f"SEM over TCP: {self.positions} positions of {self.specimen}",
            created=datetime.now().astimezone(),
            instrument=self._instrument(column),
            plan={
                "positions": f"{self.positions}, {PITCH_UM:g} µm apart", "engine": self.engine, "seed": str(self.seed),
                "focusing": f"{self.dwell_ns:g} ns a pixel", "images": f"{ACQUISITION_DWELL_NS:g} ns a pixel",
                "drift": f"{self.drift_um_per_min:g} µm per minute",
            },
            depth_of_field_um=depth, strategy=", ".join(settings.strategy), results=results, fields=fields,
            methods=methods, dataset=dataset, dose_unit=unit,
            settings_toml=to_toml(settings.model_dump(mode="json", exclude_unset=True)),
            sections=self._sections(column, fields, results, paths, watcher),
        )  # fmt: skip
        path = write_report(data, self.out / "report.html")
        if not self.quiet:
            print_summary(data, self.console)
            self.console.print(f"dataset {dataset['path']}\nreport  {path}", highlight=False, soft_wrap=True)
        return {
            "report": str(path), "dataset": dataset, "seconds": time.perf_counter() - began,
            "headline": data.headline, "methods": [m.model_dump(mode="json") for m in methods],
            "residuals": [
                {"label": f.label, "wd_um": f.error_um, **{name: error for name, (error, _) in f.others.items()}}
                for f in fields
            ],
            "trajectories": [np.round(path, 4).tolist() for path in paths if len(path)],
        }  # fmt: skip

    # ------------------------------------------------------------------ the instrument
    @property
    def _by_score(self) -> bool:
        """True where single images are scored: an instrument and a depth of field of their own."""
        return self.strategy == single.STRATEGY

    def _column(self, specimen: str) -> WatchedColumn:
        if self._by_score:
            column = WatchedColumn(
                TABLETOP, specimen, self.seed, drift_um_per_min=self.drift_um_per_min,
                specimen=single.slanting_specimen(specimen, self.seed),
            )  # fmt: skip
            column.frame, column.pixel_nm = single.FRAME, single.PIXEL_NM
            return column
        return WatchedColumn(
            self.setup, specimen, self.seed, drift_um_per_min=self.drift_um_per_min,
            blank_fraction=self.blank if specimen == "tissue" else 0.0,
        )  # fmt: skip

    @contextmanager
    def _microscope(self, column: WatchedColumn) -> Iterator[AutofocusCore]:
        """Serve the column on loopback, and load sem.cfg, which talks to it, into a fresh core."""
        from mm_autofocus_devices.sem.server import SemServer

        name = "sem" if self.setup == "A" else "sem_b"
        with SemServer(column, host="127.0.0.1", port=0) as server:
            text = (CONFIGS / f"{name}.cfg").read_text(encoding="utf-8")
            text = single.with_small_frames(text) if self._by_score else text
            path = self.out / f"{name}.cfg"
            path.write_text(_with_port(text, server.port), encoding="utf-8")
            core = AutofocusCore()
            try:
                core.loadSystemConfiguration(path)
                core.setExposure(ACQUISITION_DWELL_NS * 1e-6 * column.frame[0] * column.frame[1])
                yield core
            finally:
                core.unloadAllDevices()

    def _settings(self, column: Column) -> Settings:
        name = "sem" if self.setup == "A" else "sem_b"
        path = self.settings or next(p for p in (CONFIGS / f"{name}.toml", CONFIGS / "sem.toml") if p.exists())
        data = Settings.load(path).model_dump(exclude_unset=True)
        if self.settings is None:
            width, height = column.frame
            data["strategy"] = self.strategy
            exposure_ms = self.dwell_ns * 1e-6 * width * height
            data["microscope"] = {**data.get("microscope", {}), "exposure_ms": exposure_ms}
            if self._by_score:
                data = single.without_stigmators(data, column.setup.working_distance_mm * 1e3)
            sections = data.setdefault("strategies", {})
            if self.setup == "B":  # what calibrating this instrument once has found; the defaults are setup A's
                known = column.calibration()
                sections["phase-diversity"] = {
                    "convergence_mrad": known.convergence_mrad, "stigmator_um": known.stigmator_um,
                    "stigmator_rotation_deg": known.stigmator_rotation_deg, **sections.get("phase-diversity", {}),
                }  # fmt: skip
        data["recorder"] = {**data.get("recorder", {}), "folder": str(self.out)}
        return Settings.parse(data)

    def _plan(self, working_distance_um: float) -> useq.MDASequence:
        side = int(np.ceil(np.sqrt(self.positions)))
        places = []
        for row in range(side):
            columns = range(side) if row % 2 == 0 else reversed(range(side))
            places += [(row, column) for column in columns]
        return useq.MDASequence.model_validate(
            {
                "axis_order": "p",
                "stage_positions": [
                    {
                        "x": PITCH_UM * column, "y": PITCH_UM * row, "z": working_distance_um,
                        "name": f"tile {row + 1}-{column + 1}",
                    }
                    for row, column in places[: self.positions]
                ],
                "autofocus_plan": useq.AxesBasedAF(axes=("p",)) if self.engine == "mda" else None,
            }
        )  # fmt: skip

    def _instrument(self, column: Column) -> dict[str, str]:
        setup, (width, height) = column.setup, column.frame
        return {
            "instrument": f"simulated SEM, setup {setup.name}, over TCP",
            "beam": f"{setup.landing_kv:g} kV, {setup.beam_current_na:g} nA, {setup.probe.convergence_mrad:g} mrad",
            "frame": f"{width} × {height} pixels of {column.pixel_nm:g} nm, {column.magnification:,.0f}x",
            "specimen": self.specimen or "",
        }

    # ------------------------------------------------------------------ scoring
    def _sections(
        self, column: Column, fields: list[FieldRecord], results: list[FocusResult], paths: list[Vector],
        watcher: Watcher,
    ) -> list[Section]:  # fmt: skip
        if not self._by_score:
            return column_sections(fields, results, paths, watcher.views, self.dwell_ns)
        return score_sections(
            fields, results, watcher.views, depth_um=single.depth_of_field_um(), pixel_um=column.pixel_nm * 1e-3,
            convergence_mrad=column.setup.probe.convergence_mrad, dwell_ns=self.dwell_ns,
        )  # fmt: skip

    def _fields(self, watcher: Watcher, results: list[FocusResult]) -> list[FieldRecord]:
        by_key = {Event(axes=r.axes).key: i for i, r in enumerate(results)}
        records, lines, focus_only = [], self.out / "focus.jsonl", self._by_score
        for key, (event, exposure) in watcher.images().items():
            index = by_key.get(key)
            before = after = None
            if index is not None:
                before, after = (p if p.exists() else None for p in thumbnail_paths(lines, index + 1))
            truth = exposure.truth if exposure else None
            records.append(_record(event, exposure, truth, index, before, after, focus_only=focus_only))
        return records

    def _untouched(self, watcher: Watcher, depth: float, unit: str) -> MethodSummary:
        """Score the same images as if the knobs had stayed as they were focused at the first position."""
        images = [(event, e) for event, e in watcher.images().values() if e is not None]
        name, note = "without autofocus", "focused once, at the first position"
        if not images:
            return summarise(name, [], [], depth, dose_unit=unit, note=note)
        first = images[0][1].knobs
        only = self._by_score
        fields = [_record(event, e, e.truth + first - e.knobs, None, focus_only=only) for event, e in images]
        return summarise(name, fields, [], depth, dose_unit=unit, note=note)

    def _paths(self, watcher: Watcher, results: list[FocusResult]) -> list[Vector]:
        """Return each run's true aberration before and after each iteration, (iterations + 1, 3); empty if unknown."""
        images, paths = watcher.images(), []
        for result in results:
            _, exposure = images.get(Event(axes=result.axes).key, (None, None))
            if exposure is None:
                paths.append(np.empty((0, 3)))
                continue
            best = exposure.knobs - exposure.truth
            names = (result.knob, "stig_x", "stig_y")
            start, end = (
                np.array([values.get(n, exposure.knobs[i]) for i, n in enumerate(names)])
                for values in (result.start, result.end)
            )
            steps, _ = steps_of(result.details, result.images)
            paths.append(np.array([start, *steps[:-1], end]) - best)
        return paths


def _record(
    event: Event,
    exposure: Exposure | None,
    truth: Vector | None,
    index: int | None,
    before: Path | None = None,
    after: Path | None = None,
    *,
    focus_only: bool = False,
) -> FieldRecord:
    z = None if exposure is None else float(exposure.knobs[0])
    others: dict[str, tuple[float, float]] = {}
    if truth is not None and not focus_only:
        others = {
            "stig x, a.u.": (float(truth[1]), STIG_TOLERANCE), "stig y, a.u.": (float(truth[2]), STIG_TOLERANCE),
        }  # fmt: skip
    return FieldRecord(
        label=event.label or str(event.key.position), x=event.x, y=event.y, z=z,
        truth_z=None if z is None or truth is None else z - float(truth[0]),
        blank=None if exposure is None else exposure.empty > 0.95, result_index=index, before=before, after=after,
        others=others,
    )  # fmt: skip


def _with_port(text: str, port: int) -> str:
    """Return the configuration with every device talking to this port."""
    return re.sub(r"(?m)^(#py Property,\w+,Port,)\d+$", rf"\g<1>{port}", text)
