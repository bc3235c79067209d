"""Through-focus recordings as cases: a strategy is driven over them frame by frame, without hardware."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from mm_autofocus.errors import StrategyError
from mm_autofocus.measures.curve import Array
from mm_autofocus.measures.registry import get_measure
from mm_autofocus.measures.spatial import FloatImage
from mm_autofocus.request import Budget, Event, FocusRequest, Limits, Prior
from mm_autofocus.strategy import Frame, Image, Strategy, Verdict

CURVES_FILE = "slide_scanner_focus_curves.npz"
STACKS_FILE = "stacks.json"
FWHM_PLANES = 1.8
"""FWHM of the slide scanner's squared-gradient peak, planes; one plane is one depth of field."""

FrameAt = Callable[[float, np.random.Generator], Image]


@dataclass(frozen=True)
class Recording:
    """One recorded through-focus series.

    Attributes
    ----------
    name
        For the tables.
    number
        Counts the specimens; the odd ones are held out.
    low, high
        The recorded interval, µm (planes for the slide scanner).
    focus
        True focus, µm.
    depth_of_field
        Unit of the errors, µm.
    frame_at
        Returns the image at a position, with noise from the generator it is given.
    measure
        Fine measure to judge with.
    guide
        Guide measure, or None.
    recorded
        True when the images hold recorded scores (`mm_autofocus.strategies.scoring.RecordedScorer`).
    """

    name: str
    number: int
    low: float
    high: float
    focus: float
    depth_of_field: float
    frame_at: FrameAt
    measure: str
    guide: str | None
    recorded: bool = False


@dataclass(frozen=True)
class Case:
    """A recording, a window of it, and where the search starts."""

    recording: Recording
    window: Limits
    start: float
    range_fwhm: float
    seed: int
    prior: Prior | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def inside(self) -> bool:
        """Whether the focus lies in the window."""
        return self.recording.focus in self.window

    @property
    def request(self) -> FocusRequest:
        """What the strategy is asked."""
        return FocusRequest(
            Event(),
            {"z": self.start},
            {"z": self.window},
            prior=self.prior,
            window=self.window,
            budget=self.budget,
            depth_of_field_um=self.recording.depth_of_field,
            seed=self.seed,
        )


def replay(strategy: Strategy, case: Case) -> tuple[Verdict, int]:
    """Drive a strategy over a case; return its verdict and the number of images.

    Raises
    ------
    StrategyError
        When it looks outside the window, or takes more than 1000 images.
    """
    generator = strategy.focus(case.request)
    noise = np.random.default_rng(case.seed)
    images = 0
    look = next(generator)
    while images < 1000:
        z = look.targets["z"]
        if z not in case.window:
            raise StrategyError(f"{strategy.name} looked at {z:.6g}, outside {case.window}")
        frame = Frame(case.recording.frame_at(z, noise), {"z": z})
        images += 1
        try:
            look = generator.send(frame)
        except StopIteration as stop:
            verdict: Verdict = stop.value
            return verdict, images
    raise StrategyError(f"{strategy.name} took {images} images on {case.recording.name} and did not conclude")


def slide_scanner_recordings(
    data: Path, measures: tuple[str, ...] = ("brenner", "laplacian_of_gaussian"), guide: str = "normalized_variance"
) -> list[Recording]:
    """Return the slide scanner's curves, one recording per curve and measure; positions in planes.

    Scores are interpolated in the logarithm and get 1 % of noise. The focus is the labelled plane.
    """
    path = data / CURVES_FILE
    if not path.exists():
        raise FileNotFoundError(f"no focus curves at {path.resolve()}; give the folder that holds {CURVES_FILE}")
    recordings = []
    with np.load(path) as archive:
        names = [str(name) for name in archive["measures"]]
        for number in range(len([key for key in archive.files if key.endswith("_z")])):
            z = archive[f"{number:02d}_z"] / 100.0
            z = z - z[0]
            table = np.log(np.maximum(archive[f"{number:02d}_measures"], 1e-9))
            focus = float(z[int(archive[f"{number:02d}_peak"])])
            for measure in measures:
                curves = table[:, [names.index(measure), names.index(guide)]]
                recordings.append(
                    Recording(
                        f"slide {number:02d}",
                        number,
                        float(z[0]),
                        float(z[-1]),
                        focus,
                        1.0,
                        _score_frames(z, curves),
                        measure,
                        guide,
                        recorded=True,
                    )
                )
    return recordings


def synthetic_recordings(count: int, seed: int) -> list[Recording]:
    """Return made-up curves of 100 depths of field: one to three peaks of random shape on a drifting background.

    The focus is the highest peak; the others reach 5 to 95 % of it.
    """
    rng = np.random.default_rng(seed)
    z = np.linspace(0.0, 100.0, 2001)
    recordings = []
    for number in range(count):
        centres = rng.uniform(3.0, 97.0, rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
        heights = np.append(1.0, rng.uniform(0.05, 0.95, len(centres) - 1))
        height = np.exp(rng.normal(1.3, 1.2))
        logs = []
        for fwhm, shape, slope, strength in (
            (FWHM_PLANES * np.exp(rng.normal(0.0, 0.3)), np.exp(rng.normal(0.1, 0.3)), 0.05, height),
            (FWHM_PLANES * np.exp(rng.normal(0.8, 0.5)), np.exp(rng.normal(-0.7, 0.3)), 0.6, height / 3),
        ):
            width = fwhm / 2 / np.sqrt(2 ** (1 / shape) - 1)
            distance = (z[:, None] - centres) / width
            bump = (strength * heights * (1 + distance**2) ** -shape).sum(axis=1)
            logs.append(np.log1p(bump) + rng.normal(0.0, slope) * (z - 50.0) / (10 * FWHM_PLANES))
        recordings.append(
            Recording(
                f"synthetic {number}",
                2 * number,
                0.0,
                100.0,
                float(centres[0]),
                1.0,
                _score_frames(z, np.stack(logs, axis=1)),
                "brenner",
                "normalized_variance",
                recorded=True,
            )
        )
    return recordings


def _score_frames(z: Array, logs: Array, noise: float = 0.01) -> FrameAt:
    def frame_at(at: float, rng: np.random.Generator) -> Image:
        values = np.array([np.interp(at, z, column) for column in logs.T])
        return np.exp(values + rng.normal(0.0, noise, len(values)))[None]

    return frame_at


def stack_recordings(data: Path, measure: str = "laplacian_of_gaussian", guide: str | None = None) -> list[Recording]:
    """Return the recorded image stacks; images are interpolated between planes and get noise.

    The focus is the peak of the noiseless measure, so that the search is judged and not the measure; the depth of
    field is the peak's FWHM over 1.8, both read off the interpolated stack.
    """
    path = data / STACKS_FILE
    if not path.exists():
        raise FileNotFoundError(f"no image stacks at {path.resolve()}; give the folder that holds {STACKS_FILE}")
    recordings = []
    for number, (name, entry) in enumerate(json.loads(path.read_text(encoding="utf-8")).items()):
        planes = tifffile.imread(data / name).astype(np.float32)
        z = np.asarray(entry["z_um"], dtype=float)[: len(planes)]
        order = np.argsort(z)
        z, planes = z[order], planes[order]
        frame_at = _stack_frames(z, planes)
        focus, fwhm = peak_of_stack(z, planes, measure)
        recordings.append(
            Recording(
                name.removesuffix(".tif"),
                number,
                float(z[0]),
                float(z[-1]),
                focus,
                fwhm / FWHM_PLANES,
                frame_at,
                measure,
                guide,
            )
        )
    return recordings


def _stack_frames(z: Array, planes: FloatImage) -> FrameAt:
    scale = float(np.percentile(planes, 99.9)) or 1.0

    def frame_at(at: float, rng: np.random.Generator) -> Image:
        above = int(np.clip(np.searchsorted(z, at), 1, len(z) - 1))
        weight = float(np.clip((at - z[above - 1]) / (z[above] - z[above - 1]), 0.0, 1.0))
        image = (1 - weight) * planes[above - 1] + weight * planes[above]
        return np.asarray(image + rng.normal(0.0, 0.005 * scale, image.shape), dtype=np.float32)

    return frame_at


def peak_of_stack(z: Array, planes: FloatImage, measure: str) -> tuple[float, float]:
    """Position and FWHM of the measure's peak, µm, read off the planes (log parabola, linear half maximum)."""
    scores = np.array([get_measure(measure)(plane) for plane in planes])
    best = int(scores.argmax())
    inner = min(max(best, 1), len(z) - 2)
    part = slice(inner - 1, inner + 2)
    curvature, slope, _ = np.polyfit(z[part] - z[best], np.log(scores[part]), 2)
    peak = float(np.clip(z[best] - slope / (2 * curvature), z[part][0], z[part][-1])) if curvature < 0 else z[best]
    fine = np.linspace(z[0], z[-1], 4001)
    curve = np.interp(fine, z, scores)
    high = curve > (curve.max() + np.quantile(curve, 0.1)) / 2
    centre = int(curve.argmax())
    below = np.flatnonzero(~high[:centre])
    above = np.flatnonzero(~high[centre:])
    left = fine[below[-1]] if below.size else fine[0]
    right = fine[centre + above[0]] if above.size else fine[-1]
    return float(peak), float(right - left)


def windows(
    recordings: list[Recording],
    ranges_fwhm: tuple[float, ...],
    repeats: int,
    seed: int,
    *,
    outside: bool = False,
    prior_sd_fwhm: float | None = None,
    budget: Budget | None = None,
) -> Iterator[Case]:
    """Yield random windows of every recording that contain its focus, or with ``outside`` just miss it.

    A window is as long as the range says, or as the recording; the search starts in its middle. ``outside`` puts the
    focus half to eight depths of field beyond an edge. ``prior_sd_fwhm`` adds a prior drawn round the focus.
    """
    for index, recording in enumerate(recordings):
        fwhm = FWHM_PLANES * recording.depth_of_field
        for range_fwhm in ranges_fwhm:
            for repeat in range(repeats):
                key = (seed, index, round(100 * range_fwhm), repeat, int(outside))
                rng = np.random.default_rng(key)
                width = min(range_fwhm * fwhm, recording.high - recording.low)
                window = _window(recording, width, rng, outside)
                if window is None:
                    continue
                prior = None
                if prior_sd_fwhm is not None:
                    sd = prior_sd_fwhm * fwhm
                    prior = Prior(float(window.clip(recording.focus + rng.normal(0.0, sd))), sd)
                start = (window.low + window.high) / 2 if prior is None else prior.mean
                case_seed = int(rng.integers(2**31))
                yield Case(recording, window, start, range_fwhm, case_seed, prior, budget or Budget(60))


def _window(recording: Recording, width: float, rng: np.random.Generator, outside: bool) -> Limits | None:
    if outside:
        gap = rng.uniform(0.5, 8.0) * recording.depth_of_field
        above = rng.random() < 0.5
        low = recording.focus + gap if above else recording.focus - gap - width
        if low < recording.low or low + width > recording.high:
            low = recording.focus - gap - width if above else recording.focus + gap
        if low < recording.low or low + width > recording.high:
            return None
        return Limits(low, low + width)
    least = max(recording.low, recording.focus - width)
    most = max(min(recording.focus, recording.high - width), least)
    low = float(rng.uniform(least, most))
    return Limits(low, min(low + width, recording.high))
