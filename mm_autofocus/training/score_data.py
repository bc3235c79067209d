"""Scored images of a simulated SEM at any magnification, and focus series: what focus-score networks learn from.

The label is what an expert would call the focus: the rms blur against what the magnification can resolve,
`mm_autofocus.estimators.focus_score.score_of_blur`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.focus_score import (
    FRAME,
    LARGEST_PIXEL_UM,
    LARGEST_SCORE,
    SMALLEST_PIXEL_UM,
    blur_of_score,
    pixel_um_of,
    resolvable_um,
    score_of_blur,
)
from mm_autofocus.simulation.electron_probe import Probe, ProbeFamily, blurred
from mm_autofocus.simulation.sem_column import ColumnSetup
from mm_autofocus.simulation.sem_specimen import Specimen, SpecimenKind
from mm_autofocus.training.machines import HERE, Machines
from mm_autofocus.training.score_variety import PLAIN, Variety

Image = NDArray[np.uint8]
Say = Callable[[str], None]

TABLETOP = ColumnSetup(
    "tabletop",
    Probe(8.7, 6.0, softness=0.3, voltage_kv=5.0),
    working_distance_mm=10.0,
    beam_current_na=0.3,
    shift_um_per_um=(0.004, -0.003),
    magnification_per_um=(1.0e-5, 1.0e-5),
    electrons_per_pixel=84.0,
    row_noise=1.5,
)
"""A small column for 500 to 30,000x: within its 2 to 20 mm of working distance all of them go quite blurred."""

MAGNIFICATIONS: Mapping[str, tuple[float, float]] = {
    "tin": (500.0, 10_000.0),
    "grid": (500.0, 10_000.0),
    "particles": (8_000.0, 30_000.0),
    "tissue": (500.0, 10_000.0),
    "wing": (500.0, 10_000.0),
    "fabric": (500.0, 10_000.0),
}
"""Magnifications at which each sample is looked at (AENet, Methods, Datasets)."""

SEEN, UNSEEN = ("tin", "grid", "particles"), ("wing", "fabric")
TRAINED = (*SEEN, "tissue")
"""The papers' three kinds, and tissue, which was left out when the training was designed, to judge it by."""

TRAINING_SEED, VALIDATION_SEED, TEST_SEED = 20_000, 21_000, 22_000

VIEW = (384, 480)
"""(height, width) of a view that frames are cut from."""

MARGIN_PX = 44
"""Pixels around a frame while it is blurred, so that its edges do not wrap around into it."""

LEAST_CONTRAST = 0.03
"""Places whose sharp image varies less than this show no specimen, and are passed over."""

PLACE_UM = 800.0
"""Views lie within this of the specimen's centre."""

FINE_SHARE, BEYOND = 0.35, 1.15
"""Share of views at half the pixel, and how far beyond the range of magnifications training goes."""

_EMPTY_SHARE, _TRIES = 0.03, 40


@dataclass(frozen=True, slots=True)
class ScoreView:
    """A sharp picture of one place on one specimen.

    Attributes
    ----------
    kind, seed
        The specimen.
    magnification
        What the instrument would say, for a frame 320 pixels wide.
    pixel_um
        Pixel size.
    image
        Shape `VIEW`, yield 0 to 1 as 16-bit floats.
    """

    kind: str
    seed: int
    magnification: float
    pixel_um: float
    image: NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One frame and its label.

    Attributes
    ----------
    image
        Shape (240, 320), 8 bits.
    pixel_um, magnification, kind
        What it shows.
    score
        Label, 0 to 10.
    defocus_um
        How far from the best working distance; NaN for images of nothing.
    """

    image: Image
    pixel_um: float
    magnification: float
    kind: str
    score: float
    defocus_um: float


def render_views(
    kinds: Sequence[str],
    count: int,
    seed: int,
    *,
    magnifications: Sequence[float] | None = None,
    fine: float = FINE_SHARE,
    machines: Machines = HERE,
    say: Say = lambda _: None,
) -> list[ScoreView]:
    """Draw views of specimens; each has a seed, a place and a magnification of its own.

    Parameters
    ----------
    kinds
        Which specimens.
    count
        Views of each kind.
    seed
        Of the first specimen of each kind; the next ones follow it.
    magnifications
        Taken in turn; None to draw them evenly in their logarithm from `MAGNIFICATIONS` and a little beyond.
    fine
        Share of views at half the pixel size, as of frames with twice the pixels at the same magnification.
    machines
        To render on.
    say
        Told about progress.
    """
    plan = _Plan(count, seed, magnifications, fine)
    which = [(kind, i) for kind in kinds for i in range(count)]

    def told(done: int, every: int) -> None:
        if done % count == 0:
            say(f"{done} of {every} views")

    return machines.make(_view, plan, which, told)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the views of `render_views` have in common."""

    count: int
    seed: int
    magnifications: Sequence[float] | None
    fine: float


def _view(plan: _Plan, which: tuple[str, int]) -> ScoreView:
    kind, i = which
    low, high = MAGNIFICATIONS[kind]
    rng = np.random.default_rng([0x5C0, plan.seed + i, list(SpecimenKind).index(SpecimenKind(kind))])
    if plan.magnifications is None:
        # A little beyond the range at either end, for the ends to lie within what is learnt.
        span = (i + float(rng.uniform())) / plan.count
        magnification = low / BEYOND * (high / low * BEYOND**2) ** span
    else:
        magnification = plan.magnifications[i % len(plan.magnifications)]
    pixel_um = pixel_um_of(magnification) * (0.5 if rng.uniform() < plan.fine else 1.0)
    specimen, image = Specimen(kind, plan.seed + i), np.zeros(VIEW, np.float32)
    for _ in range(4):
        x, y = rng.uniform(-PLACE_UM, PLACE_UM, 2)
        image = specimen.view(float(x), float(y), pixel_um, VIEW)
        if image.std() > 2 * LEAST_CONTRAST:
            break
    return ScoreView(kind, plan.seed + i, magnification, pixel_um, image.astype(np.float16))


@dataclass(frozen=True)
class Conditions:
    """Under which frames are taken; pairs are lowest and highest.

    Attributes
    ----------
    electrons
        Detected electrons of a pixel of yield 1, drawn evenly in the logarithm.
    families
        Shapes of the probe.
    softness, core_nm, convergence_mrad
        Of the probe.
    gamma, contrast, brightness
        What the detector does; contrast as a factor of the gain, brightness as an offset in grey values.
    row_noise
        Standard deviation of the offset of a row, grey values.
    astigmatic
        Share of frames in which part of the blur is astigmatism.
    """

    electrons: tuple[float, float] = (6.0, 120.0)
    families: tuple[ProbeFamily, ...] = (ProbeFamily.SOFT,)
    softness: tuple[float, float] = (0.0, 0.6)
    core_nm: tuple[float, float] = (4.0, 9.0)
    convergence_mrad: tuple[float, float] = (6.5, 11.0)
    gamma: tuple[float, float] = (0.7, 1.4)
    contrast: tuple[float, float] = (0.45, 1.25)
    brightness: tuple[float, float] = (-35.0, 35.0)
    row_noise: tuple[float, float] = (0.5, 2.5)
    astigmatic: float = 0.3


UNTRAINED_PHYSICS = Conditions(families=(ProbeFamily.POLYGON, ProbeFamily.WAVE))
"""Probes of shapes that no training frame had."""


@dataclass
class ScoreSampler:
    """Makes scored frames out of views: cut, flipped, blurred, detected.

    Parameters
    ----------
    views
        Sharp pictures.
    seed
        Of everything drawn.
    conditions
        How frames are taken.
    empty
        Share of images of nothing, label 0: noise, white, black (ResNet18 paper, New Labeling).
    variety
        What is done to sharp pictures before they are blurred; for training.
    """

    views: Sequence[ScoreView]
    seed: int
    conditions: Conditions = field(default_factory=Conditions)
    empty: float = _EMPTY_SHARE
    variety: Variety = PLAIN

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([0x5C1, self.seed])

    def samples(self, count: int, *, repeats: int = 1) -> Iterator[ScoredImage]:
        """Yield ``count`` times ``repeats`` frames of views drawn anew each time; see `of`."""
        for _ in range(count):
            if self._rng.uniform() < self.empty:
                for _ in range(repeats):
                    yield self._nothing()
            else:
                yield from self.of(self.views[int(self._rng.integers(len(self.views)))], repeats=repeats)

    def of(self, view: ScoreView, *, score: float | None = None, repeats: int = 1) -> Iterator[ScoredImage]:
        """Yield a frame of a view, ``repeats`` times with other noise and detector settings.

        Labels are drawn evenly, from 0 to a little above the best, when not given.
        """
        rng, c = self._rng, self.conditions
        vary = self.variety.wanted(rng)
        if vary:
            pixel_um = self.variety.pixel_um(rng, view.pixel_um, (SMALLEST_PIXEL_UM, LARGEST_PIXEL_UM))
            view = replace(view, pixel_um=pixel_um, magnification=view.magnification * view.pixel_um / pixel_um)
        # Beyond 0 there is blur that no label tells apart, and above the best there is none.
        wanted = float(rng.uniform(-0.7, LARGEST_SCORE + 0.5)) if score is None else score
        reach = blur_of_score(min(wanted, LARGEST_SCORE), view.pixel_um) * math.sqrt(2.0)
        angle = 0.0
        if rng.uniform() < c.astigmatic:
            angle = float(rng.uniform(0.0, math.pi / 2))
        away, stig = reach * math.cos(angle), reach * math.sin(angle) + 0.2 * view.pixel_um * abs(rng.normal())
        direction = rng.uniform(0.0, 2.0 * math.pi)
        probe = self.probe()
        alpha = probe.convergence_mrad * 1e-3
        defocus = math.copysign(away, rng.uniform(-1.0, 1.0)) / alpha
        a, b = stig * math.cos(direction) / alpha, stig * math.sin(direction) / alpha
        sharp = self.cut(view)
        if vary:
            other = self.cut(self.views[int(rng.integers(len(self.views)))])
            sharp = self.variety.varied(rng, sharp, other)
        signal = self.blur(sharp, view.pixel_um, defocus, a, b, probe)
        label = score_of_blur(math.hypot(away, stig) / math.sqrt(2.0), view.pixel_um)
        for _ in range(repeats):
            frame = self.detect(signal)
            yield ScoredImage(frame, view.pixel_um, view.magnification, view.kind, label, defocus)

    def probe(self) -> Probe:
        """Return a beam of these conditions."""
        rng, c = self._rng, self.conditions
        return Probe(
            float(rng.uniform(*c.convergence_mrad)),
            float(rng.uniform(*c.core_nm)),
            float(rng.uniform(*c.softness)),
            c.families[int(rng.integers(len(c.families)))],
            voltage_kv=5.0,
            seed=int(rng.integers(1000)),
        )

    def cut(self, view: ScoreView) -> NDArray[np.float32]:
        """Return part of a view with room around it, flipped at random, where there is something to see."""
        height, width = FRAME[0] + 2 * MARGIN_PX, FRAME[1] + 2 * MARGIN_PX
        part = np.zeros((height, width), np.float32)
        for _ in range(_TRIES):
            y = int(self._rng.integers(view.image.shape[0] - height + 1))
            x = int(self._rng.integers(view.image.shape[1] - width + 1))
            part = view.image[y : y + height, x : x + width].astype(np.float32)
            if part[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX].std() > LEAST_CONTRAST:
                break
        flips = self._rng.integers(2, size=2)
        return part[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]

    def blur(
        self, sharp: NDArray[np.float32], pixel_um: float, defocus_um: float, a_um: float, b_um: float, probe: Probe
    ) -> NDArray[np.float32]:
        """Return what this beam makes of a part with room around it, without the room, shape `FRAME`."""
        whole = blurred(sharp, pixel_um, defocus_um, a_um, b_um, probe)
        return whole[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]

    def detect(self, signal: NDArray[np.float32], *, electrons: float | None = None) -> Image:
        """Return grey values: shot noise, gamma, gain, offset and row noise drawn from the conditions."""
        rng, c = self._rng, self.conditions
        dose = electrons or math.exp(rng.uniform(math.log(c.electrons[0]), math.log(c.electrons[1])))
        signal = np.maximum(signal, 0.0)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        seen = np.maximum(signal + noise * np.sqrt(signal / np.float32(dose)), 0.0)
        seen = np.power(seen, np.float32(rng.uniform(*c.gamma)))
        gain = 204.0 * float(rng.uniform(*c.contrast))
        rows = rng.standard_normal((len(seen), 1), dtype=np.float32) * np.float32(rng.uniform(*c.row_noise))
        grey = gain * (seen - 0.5) + 127.0 + float(rng.uniform(*c.brightness)) + rows
        return np.asarray(np.clip(grey, 0.0, 255.0), dtype=np.uint8)

    def _nothing(self) -> ScoredImage:
        rng = self._rng
        view = self.views[int(rng.integers(len(self.views)))]
        level = (0.0, 255.0, float(rng.uniform(20.0, 230.0)))[int(rng.integers(3))]
        noise = rng.standard_normal(FRAME, dtype=np.float32) * np.float32(rng.uniform(0.8, 60.0))
        image = np.clip(level + noise, 0.0, 255.0).astype(np.uint8)
        return ScoredImage(image, view.pixel_um, view.magnification, view.kind, 0.0, math.nan)


def by_experts(score: float, rng: np.random.Generator, spread: float = 0.4) -> float:
    """Return the label that a person would give: a whole number, off by ``spread`` (standard deviation) before it."""
    return float(np.clip(round(score + rng.normal(0.0, spread)), 0.0, LARGEST_SCORE))


@dataclass(frozen=True, slots=True)
class FocusSeries:
    """A place seen at many working distances (AENet, Dataset 2).

    Attributes
    ----------
    kind, magnification, pixel_um
        What is seen.
    defocus_um
        Working distance less the best one, rising, shape (frames,).
    images
        Shape (frames, 240, 320), 8 bits.
    score
        Labels, shape (frames,).
    """

    kind: str
    magnification: float
    pixel_um: float
    defocus_um: NDArray[np.float64]
    images: NDArray[np.uint8]
    score: NDArray[np.float64]


def focus_series(
    view: ScoreView, seed: int, *, frames: int = 250, conditions: Conditions | None = None, reach: float = 1.3
) -> FocusSeries:
    """Return one place at working distances evenly spread around the best one, in the fast mode of 320 x 240.

    Parameters
    ----------
    view
        The place.
    seed
        Of the frame and the noise.
    frames
        How many.
    conditions
        How frames are taken; one probe and one detector setting serve the whole series.
    reach
        The series ends where the blur is this many times that of score 0.
    """
    drawn = conditions or Conditions(electrons=(12.0, 60.0))
    rng = np.random.default_rng([0x5C2, seed])

    def fixed(span: tuple[float, float]) -> tuple[float, float]:
        value = float(rng.uniform(*span))
        return value, value

    held = Conditions(
        electrons=fixed(drawn.electrons), families=(drawn.families[int(rng.integers(len(drawn.families)))],),
        softness=fixed(drawn.softness), core_nm=fixed(drawn.core_nm), convergence_mrad=fixed(drawn.convergence_mrad),
        gamma=fixed(drawn.gamma), contrast=fixed(drawn.contrast), brightness=fixed(drawn.brightness),
        row_noise=fixed(drawn.row_noise),
    )  # fmt: skip
    sampler = ScoreSampler((view,), seed, held)
    probe, sharp = sampler.probe(), sampler.cut(view)
    alpha = probe.convergence_mrad * 1e-3
    widest = reach * blur_of_score(0.0, view.pixel_um) * math.sqrt(2.0) / alpha
    low, high = -widest * rng.uniform(0.6, 1.0), widest * rng.uniform(0.6, 1.0)
    stig = float(rng.uniform(0.0, 0.8)) * resolvable_um(view.pixel_um) / alpha
    turn = rng.uniform(0.0, 2.0 * math.pi)
    defocus = np.linspace(low, high, frames)
    images = np.empty((frames, *FRAME), np.uint8)
    for i, z in enumerate(defocus):
        a, b = stig * math.cos(turn), stig * math.sin(turn)
        images[i] = sampler.detect(sampler.blur(sharp, view.pixel_um, float(z), a, b, probe))
    labels = [score_of_blur(alpha * math.hypot(z, stig) / math.sqrt(2.0), view.pixel_um) for z in defocus]
    return FocusSeries(view.kind, view.magnification, view.pixel_um, defocus, images, np.array(labels))
