"""A long series on the simulated TEM over TCP, with the condenser aperture aligned again every so many images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.cli.acquire import acquire_events
from mm_autofocus.cli.demo_plate import fresh_folder
from mm_autofocus.estimators.response import ResponseMap
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.report.tem import AlignmentRecord, SeriesRecord, headline, rms_percent, write_tem_report
from mm_autofocus.request import Event, FocusRequest
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.simulation.tem_day import TemDay
from mm_autofocus.strategies.aperture import Aperture
from mm_autofocus.strategy import Frame, Image
from mm_autofocus.toml import to_toml
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.tem import TemClient
from mm_autofocus_devices.tem.protocol import Capture
from mm_autofocus_devices.tem.server import TemServer

APERTURE = ("aperture_x", "aperture_y")


class SeriesObserver:
    """Notes the truth at every image and around every alignment, and keeps the wobbles' images; never steers.

    It also lets the experiment's time pass between two images, and hands the response that the first alignment has
    measured to the next ones.
    """

    def __init__(self, column: TemColumn, client: TemClient, interval_s: float, console: Console | None) -> None:
        self._column, self._client, self._interval_s, self._console = column, client, interval_s, console
        self._autofocus: Autofocus | None = None
        self.seconds: list[float] = []
        self.offsets: list[tuple[float, float]] = []
        self.centres: list[tuple[float, float]] = []
        self.alignments: list[AlignmentRecord] = []
        self._before: tuple[float, float] | None = None
        self._wobbles: list[dict[float, Image]] = []

    def offset(self) -> tuple[float, float]:
        """Return how far the aperture is from the beam, steps; the truth."""
        truth = self._column.truth()
        x, y = (self._column.get(name) - truth[name] for name in APERTURE)
        return x, y

    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Remember whose strategies these are."""
        self._autofocus = autofocus

    @hookimpl
    def mmaf_event(self, event: Event) -> None:  # noqa: ARG002
        """Let the interval pass, then note the truth for the image that follows."""
        if self.seconds:
            self._client.wait(self._interval_s)
        truth = self._column.truth()
        self.seconds.append(self._column.clock_s)
        self.offsets.append(self.offset())
        self.centres.append((truth["aperture_x"], truth["aperture_y"]))

    @hookimpl
    def mmaf_frame(self, request: FocusRequest, frame: Frame, purpose: str) -> None:
        """Keep the frames of each wobble by the lens's value."""
        if purpose != "search" or "c1" not in frame.knobs:
            return
        if self._before is None:
            self._before = self.offset()
        lowest = request.start["c1"] * 0.99 > frame.knobs["c1"]
        begun = self._wobbles and len(self._wobbles[-1]) < 7
        if not begun and (lowest or not self._wobbles):
            self._wobbles.append({})
        self._wobbles[-1][round(frame.knobs["c1"], 5)] = frame.image

    @hookimpl
    def mmaf_focused(self, request: FocusRequest, result: FocusResult) -> None:  # noqa: ARG002
        """Note what the alignment came to."""
        whole = [wobble for wobble in self._wobbles if len(wobble) >= 3]
        first, last = (tuple(w[c1] for c1 in sorted(w)) for w in (whole[0], whole[-1])) if whole else ((), ())
        self.alignments.append(
            AlignmentRecord(
                image=len(self.seconds), before=self._before or self.offset(), after=self.offset(),
                status=result.status.value, confidence=result.confidence, images=result.images, seconds=result.seconds,
                reason=result.reason, wobble_before=first, wobble_after=last,
            )
        )  # fmt: skip
        self._before, self._wobbles = None, []
        self._teach(result)
        if self._console is not None:
            one = self.alignments[-1]
            self._console.print(
                f"image {one.image:4d}: {result.status.value}, {rms_percent([one.before]):.2f} % -> "
                f"{rms_percent([one.after]):.2f} %, {one.images} images",
                highlight=False,
            )

    def _teach(self, result: FocusResult) -> None:
        """Give the response that a converged alignment has measured to the alignments that follow."""
        strategy = self._autofocus.strategies.get("aperture") if self._autofocus is not None else None
        response = result.details.get("response")
        if isinstance(strategy, Aperture) and strategy.response is None and result.ok and response is not None:
            (a, b), (c, d) = response
            strategy.response = ResponseMap(APERTURE, ((a, b), (c, d)), scale_sd=0.05)

    def left_alone(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the offset at each image had the aperture stayed where the first image was taken, shape (n, 2)."""
        if not self.centres:
            return np.empty((0, 2))
        where = np.array(self.offsets[0]) + np.array(self.centres[0])
        return np.asarray(where - np.array(self.centres), float)


@dataclass
class TemDemo:
    """One run of ``mm-autofocus demo tem``; see the command's options."""

    images: int = 200
    every: int = 20
    interval_s: float = 60.0
    drift_steps: float = 30.0
    misalign: float = 180.0
    capture: str = Capture.DETECTOR.value
    settings: Path | None = None
    out: Path = Path("demo_output/tem")
    seed: int = 1
    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def run(self) -> dict[str, Any]:
        """Acquire, score, report; return the outcome as a JSON-serialisable dictionary."""
        began = time.perf_counter()
        self.out = fresh_folder(self.out)
        settings = self._settings()
        with self._microscope() as (core, column, client):
            observer = SeriesObserver(column, client, self.interval_s, None if self.quiet else self.console)
            autofocus = Autofocus(
                core, settings, plugins=[observer], clock=lambda: client.clock_s, sleep=client.wait
            )  # fmt: skip
            # a start time of its own keeps an image from being merged into a burst, in which nothing could be aligned
            events = [
                {"axes": {"time": i}, "exposure": 100.0, "min_start_time": 1e-3 * i} for i in range(self.images)
            ]  # fmt: skip
            dataset = acquire_events(core, autofocus, events, self.out)
        record = SeriesRecord(
            title=f"TEM series of {self.images} images, condenser aperture aligned every {self.every}",
            facts={
                "instrument": "simulated TEM over TCP (mm-autofocus serve tem)", "images from": self.capture,
                "between images": f"{self.interval_s:g} s",
                "drift": f"{self.drift_steps:g} steps rms in an hour, each axis",
                "misaligned at the start by": f"{self.misalign:g} steps", "strategy": ", ".join(settings.strategy),
                "seed": str(self.seed),
                "dataset": f"{dataset['images_present']} of {dataset['images_expected']} images present",
            },
            seconds=np.array(observer.seconds), offset=np.array(observer.offsets).reshape(-1, 2),
            left_alone=observer.left_alone(), alignments=tuple(observer.alignments),
            settings_toml=to_toml(settings.model_dump(mode="json", exclude_unset=True)),
            notes=self._notes(observer),
        )  # fmt: skip
        path = write_tem_report(record, self.out / "report.html")
        if not self.quiet:
            self.console.print(f"{headline(record)}.\nreport {path}", highlight=False, soft_wrap=True)
        runs = observer.alignments
        return {
            "report": str(path), "dataset": dataset, "wall_seconds": time.perf_counter() - began,
            "instrument_seconds": float(record.seconds[-1]) if len(record.seconds) else 0.0,
            "headline": headline(record), "rms_percent": rms_percent(record.offset),
            "rms_percent_left_alone": rms_percent(record.left_alone),
            "rms_percent_after_alignment": rms_percent([a.after for a in runs]),
            "worst_after_percent": max((float(np.hypot(*a.after)) / 10 for a in runs), default=0.0),
            "alignments": [
                {"image": a.image, "before": a.before, "after": a.after, "status": a.status, "confidence": a.confidence,
                 "images": a.images, "seconds": a.seconds, "reason": a.reason}
                for a in runs
            ],
        }  # fmt: skip

    def _notes(self, observer: SeriesObserver) -> tuple[str, ...]:
        failed = [a for a in observer.alignments if a.status != "converged"]
        return tuple(f"before image {a.image}: {a.status.replace('_', ' ')}: {a.reason}" for a in failed)

    def _settings(self) -> Settings:
        settings = Settings.load(self.settings or CONFIGS / "tem.toml")
        data = settings.model_dump(exclude_unset=True)
        data["schedule"] = {**data.get("schedule", {}), "every": "event", "frames": self.every}
        data["recorder"] = {**data.get("recorder", {}), "folder": str(self.out)}
        return Settings.parse({**data, "seed": self.seed})

    @contextmanager
    def _microscope(self) -> Iterator[tuple[AutofocusCore, TemColumn, TemClient]]:
        """Serve a column, load tem.cfg into a fresh core, and take both down afterwards."""
        day = TemDay.make(self.seed, 0, 2)
        column = TemColumn(self.seed, condition=replace(day, centre_drift=self.drift_steps / 60.0))
        with TemServer(column, speed=0) as server:
            path = self.out / "tem.cfg"
            path.write_text(configuration(server.port), encoding="utf-8")
            core = AutofocusCore()
            client = TemClient(port=server.port)
            try:
                core.loadSystemConfiguration(path)
                core.setProperty("Camera", "Capture", self.capture)
                self._misalign(core, column)
                yield core, column, client
            finally:
                client.close()
                core.unloadAllDevices()

    def _misalign(self, core: AutofocusCore, column: TemColumn) -> None:
        """Set a known misalignment, as the paper's operator did; afterwards nobody is told where the beam is."""
        angle = np.random.default_rng([self.seed, 61]).uniform(0.0, 2.0 * np.pi)
        truth = column.truth()
        x = truth["aperture_x"] + self.misalign * np.cos(angle)
        y = truth["aperture_y"] + self.misalign * np.sin(angle)
        core.setXYPosition("Aperture", float(round(x)), float(round(y)))
        core.waitForDevice("Aperture")


def configuration(port: int, host: str = "127.0.0.1") -> str:
    """Return tem.cfg for a server at another port."""
    lines = []
    for line in (CONFIGS / "tem.cfg").read_text(encoding="utf-8").splitlines():
        lines.append(line)
        parts = line.split(",")
        if parts[0] == "#py pyDevice" and parts[2].startswith("mm_autofocus_devices.tem."):
            lines += [f"#py Property,{parts[1]},Host,{host}", f"#py Property,{parts[1]},Port,{port}"]
    return "\n".join(lines) + "\n"
