"""An electron column whose frames carry their own aberration, and estimators that read it: logic without physics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.microscope import Microscope
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.result import FocusResult
from mm_autofocus.run import FocusRun
from mm_autofocus.strategies.column_fit import angle_power
from mm_autofocus.strategy import Frame, Look, Strategy, Verdict
from support import FakeCore, settings

DEPTHS = {"z": 2.0, "stig_x": 0.5, "stig_y": 0.5}
SHAPE = (64, 64)
TRUE = ColumnCalibration(8.7, 6.0, 3.0)


@dataclass
class CodedColumn:
    """Knobs with a best value; the first pixels of a frame say how far it was, the rest is texture that blurs."""

    best: tuple[float, float, float] = (4500.0, 1.0, -2.0)
    low: dict[str, float] = field(default_factory=lambda: {"z": 4000.0, "stig_x": -30.0, "stig_y": -30.0})
    high: dict[str, float] = field(default_factory=lambda: {"z": 5000.0, "stig_x": 30.0, "stig_y": 30.0})
    ignores: tuple[str, ...] = ()
    """Knobs that say they moved and did not."""
    clamps: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Narrower ranges of the instrument itself, which the read-back tells."""
    change: Callable[[np.ndarray, int], np.ndarray] = lambda image, n: image
    pixel_um: float | None = 0.01
    looks: list[dict[str, float]] = field(default_factory=list)
    stuck: dict[str, float] = field(default_factory=dict)

    def frame(self, knobs: dict[str, float]) -> Frame:
        knobs = {
            name: min(max(value, self.clamps[name][0]), self.clamps[name][1]) if name in self.clamps else value
            for name, value in knobs.items()
        }
        real = {name: self.stuck.setdefault(name, value) if name in self.ignores else value
                for name, value in knobs.items()}  # fmt: skip
        away = [real.get(name, b) - b for name, b in zip(("z", "stig_x", "stig_y"), self.best, strict=True)]
        rng = np.random.default_rng(len(self.looks))
        radius = math.hypot(away[0], 6 * away[1], 6 * away[2])
        texture = np.indices(SHAPE).sum(axis=0) % 12 * (100.0 / (1.0 + radius)) + rng.normal(100.0, 1.0, SHAPE)
        image = texture.astype(np.float32)
        image[0, :3] = away
        return Frame(self.change(image, len(self.looks)), knobs, self.pixel_um)

    def request(self, away: tuple[float, float, float] = (0.0, 0.0, 0.0), **changes: Any) -> FocusRequest:
        names = ("z", "stig_x", "stig_y")
        start = {name: b + a for name, b, a in zip(names, self.best, away, strict=True)}
        values: dict[str, Any] = {
            "event": Event(axes={"position": 0}),
            "start": start,
            "limits": {name: Limits(self.low[name], self.high[name]) for name in names},
            "depth_of_field_um": 2.0,
            "depths": DEPTHS,
        }
        return FocusRequest(**{**values, **changes})

    def focus(self, strategy: Strategy, request: FocusRequest) -> Verdict:
        """Drive one strategy; every Look must stay inside the limits."""
        generator = strategy.focus(request)
        state = dict(request.start)
        look: Look = next(generator)
        while True:
            assert look.targets.keys() <= request.start.keys()
            for name, value in look.targets.items():
                assert value in request.limits[name], f"{name} = {value} is outside {request.limits[name]}"
            state |= {name: float(value) for name, value in look.targets.items()}
            self.looks.append(dict(state))
            frame = self.frame(state)
            state |= frame.knobs
            try:
                look = generator.send(frame)
            except StopIteration as stop:
                verdict: Verdict = stop.value
                for name, value in verdict.target.items():
                    assert value in request.limits[name]
                return verdict

    def residual(self, verdict: Verdict) -> np.ndarray:
        names = ("z", "stig_x", "stig_y")
        return np.array([verdict.target[n] - b for n, b in zip(names, self.best, strict=True)])


@dataclass
class CodedEstimator:
    """Reads the aberration that a `CodedColumn` wrote, stretched by a wrong convergence angle as a real pair is.

    With ``step_ratio`` it measures the perturbation too, and the aberration in units of it: then a wrong convergence
    angle does not matter.
    """

    true: ColumnCalibration = TRUE
    sigma: tuple[float, float, float] = (0.1, 0.03, 0.03)
    share: float = 0.02
    """Error in proportion to the aberration."""
    saturation: float = math.inf
    """Aberration in µm at which the reading levels off."""
    signal: float = 1.0
    seed: int = 0
    step_ratio: bool = False
    patches: int = 0
    calls: int = 0

    def estimate(
        self, under: np.ndarray, over: np.ndarray, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        self.calls += 1
        away = (under[0, :3].astype(float) + over[0, :3]) / 2
        away[0] *= min(1.0, self.saturation / max(abs(away[0]), 1e-9))
        blur = self.true.to_blur(Aberration(*away), pixel_um)
        angle = self.true.convergence_mrad / calibration.convergence_mrad
        seen = calibration.scaled(angle).from_blur(blur, pixel_um).vector()  # as with the right angle
        if not self.step_ratio:
            distance = np.linalg.norm(blur) / self.true.blur_per_um(pixel_um)
            power = float(angle_power(np.array(distance), 0.5 * step_um))
            seen *= math.copysign(abs(angle) ** power, angle)
        rng = np.random.default_rng((self.seed, self.calls))
        sigma = np.hypot(self.sigma, self.share * np.abs(seen))
        each = [Aberration(*(seen + sigma * math.sqrt(max(self.patches, 1)) * rng.laplace(0, 0.7, 3)))
                for _ in range(max(self.patches, 1))]  # fmt: skip
        mean = Aberration(*np.mean([e.vector() for e in each], axis=0))
        made = float(over[0, 0] - under[0, 0]) / step_um
        ratio = made * angle if self.step_ratio else math.nan
        found = tuple(PatchEstimate(0, 0, 32, e, 1 / self.patches) for e in each) if self.patches else ()
        return PairEstimate(mean, Aberration(*sigma), found, self.signal, step_ratio=ratio)


@dataclass
class Answers:
    """An estimator that answers whatever it is told."""

    values: Any
    sigmas: Any = (0.1, 0.05, 0.05)
    signal: float = 1.0
    step_ratio: float = math.nan
    calls: int = 0

    def estimate(self, *_: Any) -> PairEstimate:
        value = self.values[self.calls % len(self.values)]
        self.calls += 1
        sigma = Aberration(*self.sigmas)
        return PairEstimate(Aberration(*value), sigma, signal=self.signal, step_ratio=self.step_ratio)


class CodedCore(FakeCore):
    """A `CodedColumn` behind the part of pymmcore that the facade uses."""

    def __init__(self, column: CodedColumn, away: tuple[float, float, float]) -> None:
        super().__init__(low=column.low["z"], high=column.high["z"])
        self.column = column
        start = column.request(away).start
        self.z = start["z"]
        self.properties = {"StigX": start["stig_x"], "StigY": start["stig_y"]}
        self.roi = [0, 0, SHAPE[1], SHAPE[0]]

    def getLoadedDevices(self) -> list[str]:
        return [*super().getLoadedDevices(), "Column"]

    def hasProperty(self, device: str, name: str) -> bool:
        return (device == "Column" and name in self.properties) or super().hasProperty(device, name)

    def getProperty(self, device: str, name: str) -> str:
        return str(self.properties[name]) if device == "Column" else super().getProperty(device, name)

    def setProperty(self, device: str, name: str, value: str) -> None:
        if device == "Column":
            self.properties[name] = float(value)
        else:
            super().setProperty(device, name, value)

    def getPixelSizeUm(self) -> float:
        return self.column.pixel_um or 0.0

    def knobs(self) -> dict[str, float]:
        return {"z": self.z, "stig_x": self.properties["StigX"], "stig_y": self.properties["StigY"]}

    def getImage(self) -> Any:
        self.column.looks.append(self.knobs())
        return self.column.frame(self.knobs()).image

    def microscope(self) -> Microscope:
        def stigmator(name: str) -> dict[str, Any]:
            return {"device": "Column", "axis": "property", "property": name, "limits": [-30.0, 30.0],
                    "depth": 0.5, "unit": "a.u."}  # fmt: skip

        knobs = {"z": {"depth": 2.0, "tolerance": 0.01}, "stig_x": stigmator("StigX"), "stig_y": stigmator("StigY")}
        return Microscope(self, settings(knobs=knobs))

    def run(self, strategy: Strategy, **changes: Any) -> FocusResult:
        """Run it once as the orchestrator does."""
        microscope = self.microscope()
        request = self.column.request(start=self.knobs(), **changes)
        return FocusRun(microscope, strategy, request)()
