"""Measures the three laser readouts side by side on days, drift and an instrument that ours was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.readouts import Card, LaserModel, load_model
from mm_autofocus.readouts.features import of_images
from mm_autofocus.readouts.lookup import LookupReadout
from mm_autofocus.readouts.paper import PaperReadout, rescale
from mm_autofocus.readouts.profile import ProfileReadout
from mm_autofocus.readouts.reading import Readout
from mm_autofocus.readouts.zero import find_zero
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.simulation.laser_day import Family, LaserDay, instrument, make_day
from mm_autofocus.simulation.laser_spot import LaserSpot
from mm_autofocus.simulation.plate import Drift, Plate
from mm_autofocus.strategies.laser import Laser, LaserSettings
from mm_autofocus.strategies.laser_care import KNOWN_UM
from mm_autofocus.strategy import Frame
from mm_autofocus.training.laser import adapt
from mm_autofocus.training.laser_paper import fit_paper, transfer_paper
from mm_autofocus.training.laser_synthetic import RANGES, Frames, synthetic_frames

Array = NDArray[np.float64]
Labelled = tuple[Array, NDArray[np.uint16]]
"""Defocus in µm, shape (planes,), and images of shape (planes, height, width)."""
Say = Callable[[str], None]

UNIT, WINDOW, FIRST_DAY = 77_000_001, 777, 9000
"""The tested instrument, its camera window, and its first day; no training set uses these seeds."""
SHAPE = (192, 192)
SECONDS_PER_WELL = 75.0
LOST_UM = 2.0
METHODS = ("paper", "lookup", "ours")


@dataclass
class Recording:
    """Labelled images of one range: defocus, 96 x 96 images, features, and the stack's and the day's number."""

    defocus: Array
    small: NDArray[np.float32]
    features: NDArray[np.float32]
    stack: NDArray[np.int64]
    day: NDArray[np.int64]
    sweep: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    """The images of the first stack, for the look-up table."""

    def frames(self) -> Frames:
        """Our training set."""
        return Frames(self.defocus, self.features, self.day)


@dataclass
class Bench:
    """One measurement of everything.

    Attributes
    ----------
    out
        Folder; the paper's networks are kept there and used again.
    quick
        A few per cent of the images and of the training.
    paper_seconds
        Time for training the paper's networks, all together (3 h each on a GPU in the paper).
    say
        Told what goes on.
    """

    out: Path
    quick: bool = False
    paper_seconds: float = 480.0
    say: Say = print
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(2024))

    def __post_init__(self) -> None:
        self.unit = instrument(UNIT)
        self.spot = LaserSpot(seed=WINDOW)
        self.days = [make_day(self.unit, FIRST_DAY + i, Family.HELD_OUT) for i in range(15)]
        self.next_days = self.days[10:12] if self.quick else self.days[10:]
        self.rows: dict[str, dict[str, Any]] = {}
        self.figures: dict[str, dict[str, Any]] = {"stacks": {}, "starts": {}, "plates": {}}
        self.models: dict[str, dict[str, LaserModel]] = {method: {} for method in METHODS}
        self.seconds: dict[str, float] = {}
        self._one_day: dict[str, Recording] = {}

    # ------------------------------------------------------------------ data
    def record(self, days: list[LaserDay], kind: str, hours: tuple[float, ...], planes: int) -> Recording:
        """Record stacks at these hours of these days."""
        z = np.linspace(-1, 1, planes) * RANGES[kind]
        small, features = [], []
        stacks: list[NDArray[np.int64]] = []
        numbers: list[NDArray[np.int64]] = []
        first: NDArray[np.uint16] | None = None
        for number, day in enumerate(days):
            for hour in hours:
                images = self.spot.images(z, day.state(hour), self.rng)
                first = images if first is None else first
                small.append(np.stack([rescale(image) for image in images]))
                features.append(of_images(images))
                stacks.append(np.full(planes, len(stacks)))
                numbers.append(np.full(planes, number))
        assert first is not None
        return Recording(
            np.tile(z, len(small)), np.concatenate(small), np.concatenate(features), np.concatenate(stacks),
            np.concatenate(numbers), first,
        )  # fmt: skip

    # ------------------------------------------------------------------ training
    def train(self) -> None:
        """Train or fit everything: on one day, and on ten."""
        planes = 41 if self.quick else 101
        synthetic_days = 60 if self.quick else 800
        shipped = load_model()
        readouts: dict[tuple[str, str, str], Readout] = {}
        for kind in ("long", "short"):
            base = shipped.long if kind == "long" else shipped.short
            assert isinstance(base, ProfileReadout)
            one = self.record([self.days[9]], kind, tuple(np.linspace(0, 4, 3 if self.quick else 10)), planes)
            ten = self.record(self.days[:10], kind, (0.0, 4.0) if self.quick else (0.0, 1.3, 2.7, 4.0), planes)
            sweep = self.record([self.days[9]], kind, (0.0,), 201)
            tables = [self.record([day], kind, (0.0,), 201).sweep for day in self.days[:10]]
            self._one_day[kind] = one
            self.say(f"{kind}: {len(one.defocus)} images of one day, {len(ten.defocus)} of ten")
            began = time.perf_counter()
            synthetic = synthetic_frames(kind, synthetic_days, 24, seed=11)
            for name, own in (("1 day", one), ("10 days", ten)):
                readouts["ours", name, kind] = adapt(base, own.frames(), synthetic, epochs=4 if self.quick else 15)
            self._add("ours: joint training", time.perf_counter() - began)
            began = time.perf_counter()
            fit = LookupReadout.fit
            readouts["lookup", "1 day", kind] = fit(sweep.sweep, sweep.defocus, RANGES[kind])
            self._add("lookup: table", time.perf_counter() - began)
            readouts["lookup", "10 days", kind] = fit(
                np.concatenate(tables), np.tile(sweep.defocus, 10), RANGES[kind]
            )  # fmt: skip
            for name, own, share in (("1 day", one, 0.15), ("10 days", ten, 0.35)):
                readouts["paper", name, kind] = self._paper(kind, name, own, share * self.paper_seconds)
        for method in METHODS:
            for name in ("1 day", "10 days"):
                long, short = readouts[method, name, "long"], readouts[method, name, "short"]
                card = Card(
                    readout="profile" if method == "ours" else method,  # type: ignore[arg-type]
                    objective=shipped.card.objective, shape=SHAPE, long_um=long.range_um, short_um=short.range_um,
                )  # fmt: skip
                self.models[method][name] = LaserModel(card, long, short)

    def _paper(self, kind: str, name: str, own: Recording, seconds: float) -> PaperReadout:
        """Train MobileNetV2, or take it from the folder. Its learning rate is 1e-3 here: 1e-4 needs hours."""
        from safetensors.numpy import load_file, save_file

        path = self.out / f"paper_{kind}_{name.replace(' ', '')}_{seconds:.0f}s.safetensors"
        if path.exists():
            kept = load_file(path)
            self._add("paper: training", float(kept.pop("seconds")[0]))
            return PaperReadout(kept, RANGES[kind], SHAPE)
        began = time.perf_counter()
        readout = fit_paper(
            own.small, own.defocus, own.stack, RANGES[kind], SHAPE, seconds=seconds, learning_rate=1e-3
        )  # fmt: skip
        took = time.perf_counter() - began
        self._add("paper: training", took)
        self.say(f"paper, {kind}, {name}: validation {float(readout.weights['sigma'][0]):.3f} µm rms")
        arrays = {k: np.ascontiguousarray(v) for k, v in readout.weights.items()}
        save_file({**arrays, "seconds": np.array([took])}, path)
        return readout

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    # ------------------------------------------------------------------ measuring
    def measure(self) -> dict[str, Any]:
        """Train, measure everything, and return the table with its context."""
        began = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        self.train()
        self._stacks()
        self._recalibration()
        self._two_step()
        self._plates()
        self._zero()
        if not self.quick:
            self._knocked()
        return {
            "rows": self.rows,
            "figures": self.figures,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "total_seconds": round(time.perf_counter() - began, 1),
            "quick": self.quick,
            "paper_seconds": self.paper_seconds,
            "tested_on": f"instrument {UNIT}, days {FIRST_DAY} to {FIRST_DAY + 14}, drift {Family.HELD_OUT.value}",
            "trained_on": load_model().card.trained_on,
        }

    def _row(self, name: str, method: str, value: dict[str, Any]) -> None:
        self.rows.setdefault(name, {})[method] = value
        self.say(f"{name} | {method} | {value}")

    def _test(self, days: list[LaserDay], kind: str, hours: tuple[float, ...]) -> list[Labelled]:
        z = np.linspace(-1, 1, 41 if self.quick else 81) * RANGES[kind]
        return [(z, self.spot.images(z, day.state(h), self.rng)) for day in days for h in hours]

    def _stacks(self) -> None:
        """Rows that need only stacks: same day, next days."""
        sets: dict[tuple[str, str], list[Labelled]] = {}
        for kind in ("long", "short"):
            sets[kind, "same day"] = self._test([self.days[9]], kind, (5.0, 6.0, 7.0))
            sets[kind, "next days"] = self._test(self.next_days, kind, (1.0, 4.0))
        for kind in ("long", "short"):
            for trained, when in (("1 day", "same day"), ("1 day", "next days"), ("10 days", "next days")):
                for method in METHODS:
                    model = self.models[method][trained]
                    readout = model.long if kind == "long" else model.short
                    assert readout is not None
                    errors = [readout.predict(images)[0] - z for z, images in sets[kind, when]]
                    name = f"{kind} range, trained on {trained}, {when}"
                    self._row(name, method, _spread(errors, kind))
                    z = sets[kind, when][0][0]
                    self.figures["stacks"].setdefault(name, {})[method] = {"z": _list(z), "errors": _list(errors)}

    def _recalibration(self) -> None:
        """Trained on one day, next days, recalibrated from ten frames (ours), or from a fresh sweep (look-up table)."""
        known = np.array(KNOWN_UM)
        model = self.models["ours"]["1 day"]
        errors: dict[tuple[str, str], list[Array]] = {}
        for day in self.next_days:
            images = self.spot.images(known, day.state(0.5), self.rng)
            began = time.perf_counter()
            today = model.recalibrated(images, known)
            self.seconds["ours: recalibration"] = time.perf_counter() - began
            for kind in ("long", "short"):
                z = np.linspace(-1, 1, 201) * RANGES[kind]
                table = LookupReadout.fit(self.spot.images(z, day.state(0.5), self.rng), z, RANGES[kind])
                readout = today.long if kind == "long" else today.short
                assert readout is not None
                for where, frames in self._test([day], kind, (1.0, 4.0)):
                    errors.setdefault((kind, "ours"), []).append(readout.predict(frames)[0] - where)
                    errors.setdefault((kind, "lookup"), []).append(table.predict(frames)[0] - where)
        for kind in ("long", "short"):
            name = f"{kind} range, trained on 1 day, next days, recalibrated"
            self._row(name, "paper", {"note": "cannot"})
            self._row(name, "lookup", {**_spread(errors[kind, "lookup"], kind), "note": "fresh sweep of 201 frames"})
            self._row(name, "ours", {**_spread(errors[kind, "ours"], kind), "note": "10 frames"})

    def _two_step(self) -> None:
        """Focus from anywhere in ±100 µm on the next days, with the models of ten days."""
        starts = self.rng.uniform(-100, 100, 20 if self.quick else 120)
        for method in METHODS:
            ends, lost, times = [], 0, []
            pairs = self.figures["starts"].setdefault(method, [])
            for i, start in enumerate(starts):
                day = self.next_days[i % len(self.next_days)]
                end, found, seconds = self._focus(method, day, 1.0 + i % 4, float(start), 0.0, "two")
                times.append(seconds)
                pairs.append([_round(start), _round(end)])
                if found and abs(end) < LOST_UM:
                    ends.append(end)
                else:
                    lost += 1
            error = np.array(ends or [np.nan])
            self._row("two steps from ±100 µm, next days", method, {
                "sd": _round(error.std()), "rms": _round(np.sqrt((error**2).mean())), "bias": _round(error.mean()),
                "p95": _round(np.percentile(np.abs(error), 95)), "lost": f"{lost}/{len(starts)}",
            })  # fmt: skip
            self._row("compute per focus", method, {"ms": round(1000 * float(np.median(times)), 1)})

    def _plates(self) -> None:
        """96 wells of ±125 µm in 2 h, each begun where the last one ended."""
        plate = Plate("96", 250.0, drift=Drift.of_rate(2.0), seed=77)
        names = np.array(plate.well_names()).reshape(8, 12)
        snakes = {
            "horizontal": [w for r, row in enumerate(names) for w in (row if r % 2 == 0 else row[::-1])],
            "vertical": [w for c, column in enumerate(names.T) for w in (column if c % 2 == 0 else column[::-1])],
        }
        day = self.next_days[0]
        for name, wells in snakes.items():
            wells = wells[:24] if self.quick else wells
            for steps in ("two", "long", "short"):
                for method in METHODS:
                    errors, lost = [], 0
                    wells_seen: dict[str, float] = {}
                    self.figures["plates"].setdefault(f"{name} snake, {steps}", {})[method] = wells_seen
                    z = plate.focus_um(*plate.well_centre(str(wells[0])), 0.0)
                    for i, well in enumerate(wells):
                        seconds = i * SECONDS_PER_WELL
                        surface = plate.focus_um(*plate.well_centre(str(well)), seconds)
                        end, _, _ = self._focus(method, day, 1.0 + seconds / 3600, z - surface, surface, steps)
                        z = end + surface
                        wells_seen[str(well)] = _round(end)
                        if abs(end) < (LOST_UM if steps != "long" else 5 * LOST_UM):
                            errors.append(end)
                        else:
                            lost += 1
                    e = np.array(errors or [np.nan])
                    step_name = "two steps" if steps == "two" else f"{steps} range only"
                    self._row(f"96 wells, {name} snake, {step_name}", method, {
                        "sd": _round(e.std()), "bias": _round(e.mean()), "lost": f"{lost}/{len(wells)}",
                    })  # fmt: skip

    def _zero(self) -> None:
        """How well the paper's zero criterion repeats."""
        zeros, signs = [], set()
        for day in self.next_days:
            one = []
            for hour in (1.0, 1.01, 1.02):
                z = np.linspace(-4, 4, 81)
                found = find_zero(z, self.spot.images(z, day.state(hour), self.rng))
                one.append(found.z_um)
                signs.add(found.sign)
            zeros.append(one)
        table = np.array(zeros)
        self._row("zero criterion (normalised)", "paper", {
            "bias": _round(table.mean()), "sd within a day": _round(table.std(1, ddof=1).mean()),
            "sd between days": _round(table.mean(1).std()), "sign": "/".join(sorted(signs)),
        })  # fmt: skip

    def _knocked(self) -> None:
        """An instrument that was knocked (3 x the drift): transfer learning against joint training, with 10 stacks."""
        knocked = make_day(self.unit, FIRST_DAY + 50, Family.HELD_OUT, scale=3.0)
        for kind in ("long", "short"):
            own = self.record([knocked], kind, tuple(np.linspace(0, 2, 10)), 41)
            base = {method: self.models[method]["10 days"] for method in METHODS}
            readouts = {method: m.long if kind == "long" else m.short for method, m in base.items()}
            ours, paper = readouts["ours"], readouts["paper"]
            assert isinstance(ours, ProfileReadout)
            assert isinstance(paper, PaperReadout)
            began = time.perf_counter()
            joint = adapt(ours, own.frames(), synthetic_frames(kind, 120, 24, seed=12), epochs=15)
            self._add("ours: joint training, knocked", time.perf_counter() - began)
            transferred = transfer_paper(paper, own.small, own.defocus, own.stack, seconds=0.05 * self.paper_seconds)
            after: dict[str, Readout | None] = {"paper": transferred, "ours": joint}
            for name, pair in (("as it was", readouts), ("after 10 stacks", after)):
                for method, readout in pair.items():
                    assert readout is not None
                    errors = [readout.predict(images)[0] - z for z, images in self._test([knocked], kind, (3.0, 5.0))]
                    self._row(f"{kind} range, knocked, {name}", method, _spread(errors, kind))

    # ------------------------------------------------------------------ one focus
    def _focus(
        self, method: str, day: LaserDay, hours: float, start: float, surface: float, steps: str
    ) -> tuple[float, bool, float]:
        """Focus once; return the final defocus, whether a focus was found, and the seconds of computing."""
        state, spent = day.state(hours), 0.0
        model = self.models[method]["10 days"]
        if method == "ours":
            laser = Laser(LaserSettings(steps=steps), model)  # type: ignore[arg-type]
            request = FocusRequest(
                Event(), {"z": start + surface}, {"z": Limits(-240.0, 240.0)}, depth_of_field_um=0.6
            )  # fmt: skip
            generator = laser.focus(request)
            began = time.perf_counter()
            look = next(generator)
            while True:
                spent += time.perf_counter() - began
                z = look.targets["z"]
                image = self.spot.images(z - surface, state, self.rng)[0]
                began = time.perf_counter()
                try:
                    look = generator.send(Frame(image, {"z": z}))
                except StopIteration as stop:
                    spent += time.perf_counter() - began
                    verdict = stop.value
                    return verdict.target.get("z", start + surface) - surface, bool(verdict.target), spent
        defocus = start
        for readout in {"two": (model.long, model.short), "long": (model.long,), "short": (model.short,)}[steps]:
            assert readout is not None
            image = self.spot.images(defocus, state, self.rng)
            began = time.perf_counter()
            defocus -= float(readout.predict(image)[0][0])
            spent += time.perf_counter() - began
        return defocus, True, spent


def _spread(errors: list[Array], kind: str) -> dict[str, Any]:
    e = np.concatenate(errors)
    tolerance = 1.0 if kind == "long" else 0.2
    return {
        "rms": _round(np.sqrt((e**2).mean())),
        "median": _round(np.median(np.abs(e))),
        "p95": _round(np.percentile(np.abs(e), 95)),
        f"within {tolerance:g} µm": f"{100 * float((np.abs(e) < tolerance).mean()):.0f} %",
    }


def _round(value: Any) -> float:
    return round(float(value), 3)


def _list(values: Any) -> list[Any]:
    rounded: list[Any] = np.round(np.asarray(values), 3).tolist()
    return rounded
