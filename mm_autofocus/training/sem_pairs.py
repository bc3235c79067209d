"""Simulated pairs of electron images for training: specimens, probes, noise and everything that goes wrong, drawn anew.

The specimens' views are rendered once and cropped, turned, filtered and masked at will; an aberration costs one
transfer function and one inverse transform. Specimens for training, validation and test differ in kind and seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import j1

from mm_autofocus.simulation.sem_specimen import Specimen, SpecimenKind
from mm_autofocus.training.machines import HERE, Machines

Array = NDArray[np.float32]

TRAINING_KINDS = (SpecimenKind.TISSUE, SpecimenKind.TIN, SpecimenKind.GRID, SpecimenKind.PARTICLES)
TEST_KINDS = (SpecimenKind.WING, SpecimenKind.FABRIC, SpecimenKind.FIBRES, SpecimenKind.POWDER)
"""Kinds that training never sees."""

TRAINING_SEED, VALIDATION_SEED, TEST_SEED = 1000, 5000, 9000
"""Seeds of specimens start here."""

MARGIN = 64
VIEW = 1216
_PIXELS_UM = (0.005, 0.01, 0.02, 0.04)
_NOISE = 1 << 23
"""Noise is drawn once, this many values, and read from a place drawn for each frame: drawing it anew costs a third."""

_LONGEST_PX = 85.0
"""Blur radius beyond which an aberration is drawn smaller: the margin could not hold it."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """What is drawn, and between which limits.

    Attributes
    ----------
    delta_px
        Half of the perturbation, blur pixels; logarithmic.
    defocus, astigmatism
        Half ranges in units of half the perturbation: 4 and 6 are ±20 µm and ±5 a.u. of 6 µm at ±5 µm.
    wide
        Half ranges of the share ``wide_share``.
    wide_share, small_share
        Shares of samples with wide ranges, and with aberrations that are logarithmically small.
    miscalibration
        Half range of the logarithm of the true over the nominal perturbation, in half of the samples.
    electrons
        Per pixel at full signal; logarithmic.
    residual_px
        Displacement that registration leaves.
    softness
        Largest share of the Gaussian in the probe.
    core_px
        Standard deviation of the probe's core, pixels.
    blank_share, empty_share
        Shares of samples with blank regions, and with nothing at all.
    directed_share
        Share of samples whose specimen is given a direction: fibres, bundles of axons, scales.
    """

    delta_px: tuple[float, float] = (1.2, 6.6)
    defocus: float = 4.6
    astigmatism: float = 6.8
    wide: tuple[float, float] = (7.0, 8.0)
    wide_share: float = 0.15
    small_share: float = 0.25
    miscalibration: float = 0.28
    electrons: tuple[float, float] = (3.5, 300.0)
    residual_px: float = 1.5
    softness: float = 1.0
    core_px: tuple[float, float] = (0.3, 1.3)
    blank_share: float = 0.25
    empty_share: float = 0.02
    directed_share: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One pair and its truth.

    Attributes
    ----------
    under, over
        Grey values 0 to 255, whole numbers, shape (height, width).
    aberration
        (z, a, b) of the midpoint over half of the true perturbation.
    delta_px
        Half of the perturbation, blur pixels, as the calibration says.
    step_ratio
        True over nominal perturbation.
    empty
        True when there is no specimen.
    """

    under: Array
    over: Array
    aberration: NDArray[np.float64]
    delta_px: float
    step_ratio: float
    empty: bool


def render_views(
    kinds: Sequence[SpecimenKind],
    each: int,
    seed: int,
    *,
    size: int = VIEW,
    pixels_um: Sequence[float] = _PIXELS_UM,
    machines: Machines = HERE,
    progress: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.uint8]]:
    """Return views of specimens, one specimen each, at pixel sizes taken in turn; shape (size, size) each.

    Parameters
    ----------
    kinds
        Of specimens.
    each
        Views of each kind.
    seed
        Of the first specimen; the others follow.
    size, pixels_um
        Edge of a view in pixels, and pixel sizes; those of the specimens' own levels are the fastest to render.
    machines
        To render on.
    progress
        Told (done, all).
    """
    places = []
    rng = np.random.default_rng([0x5E, seed])
    for i in range(each):
        for k, kind in enumerate(kinds):
            pixel = pixels_um[(i + k) % len(pixels_um)]
            x, y = pixel * np.round(rng.uniform(-50.0, 50.0, 2) / pixel)
            places.append((kind, seed + i, float(x), float(y), pixel))
    return machines.make(_rendered, size, places, progress)


def _rendered(size: int, place: tuple[SpecimenKind, int, float, float, float]) -> NDArray[np.uint8]:
    kind, seed, x, y, pixel_um = place
    return np.asarray(np.round(255.0 * Specimen(kind, seed).view(x, y, pixel_um, (size, size))), dtype=np.uint8)


@dataclass(slots=True)
class PairSampler:
    """Draws pairs; the same seed and views, the same pairs.

    Attributes
    ----------
    views
        From `render_views`.
    seed
        Of every draw.
    ranges
        Limits.
    """

    views: Sequence[NDArray[np.uint8]]
    seed: int = 0
    ranges: Ranges = field(default_factory=Ranges)
    rng: np.random.Generator = field(init=False)
    _noise: Array = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([0xA1, self.seed])
        self._noise = self.rng.standard_normal(_NOISE, dtype=np.float32)

    def draw(self, shape: tuple[int, int], count: int = 2) -> list[TrainingPair]:
        """Return ``count`` pairs of one place of one specimen at different aberrations, each of this shape."""
        rng, ranges = self.rng, self.ranges
        empty = rng.random() < ranges.empty_share
        padded = (shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN)
        spectrum = fft.rfft2(self._object(padded, empty), workers=1)
        self._tint(spectrum, padded)
        delta = math.exp(rng.uniform(*np.log(ranges.delta_px)))
        softness = rng.uniform(0.0, ranges.softness) if rng.random() < 0.5 else rng.uniform(0.0, 0.3) * ranges.softness
        core = rng.uniform(*ranges.core_px)
        electrons = math.exp(rng.uniform(*np.log(ranges.electrons)))
        pairs = []
        for _ in range(count):
            ratio = math.exp(rng.uniform(-1, 1) * ranges.miscalibration if rng.random() < 0.5 else rng.normal(0, 0.025))
            truth = self.aberration(delta)
            shift = rng.uniform(-1, 1, 2) * ranges.residual_px * (4.0 if rng.random() < 0.05 else 1.0)
            frames = []
            gain, offset = 255.0 * rng.uniform(0.5, 1.05), 255.0 * rng.uniform(-0.03, 0.15)
            row_noise, read = rng.uniform(0.0, 3.0), rng.uniform(0.0, 2.0)
            for sign in (-1.0, 1.0):
                z, a, b = delta * truth
                transfer = fast_otf(padded, z + sign * delta, a, b, core, softness, shift if sign > 0 else (0.0, 0.0))
                clean = fft.irfft2(spectrum * transfer, padded, workers=1)[MARGIN:-MARGIN, MARGIN:-MARGIN]
                frames.append(self.detect(clean, electrons, gain * rng.uniform(0.96, 1.04), offset, row_noise, read))
            pairs.append(TrainingPair(frames[0], frames[1], truth, delta / ratio, ratio, empty))
        return pairs

    def aberration(self, delta: float) -> NDArray[np.float64]:
        """Return (z, a, b) in units of half the perturbation."""
        rng, ranges = self.rng, self.ranges
        wide = rng.random() < ranges.wide_share
        defocus, astigmatism = ranges.wide if wide else (ranges.defocus, ranges.astigmatism)
        drawn = rng.uniform(-1, 1, 3) * np.array([defocus, astigmatism, astigmatism])
        if rng.random() < ranges.small_share:
            drawn *= 10.0 ** rng.uniform(-1.7, 0.0)
        if rng.random() < 0.15:
            drawn[1:] *= 0.1
        longest = (abs(drawn[0]) + 1.0 + math.hypot(drawn[1], drawn[2])) * delta
        return np.asarray(drawn * min(1.0, _LONGEST_PX / longest))

    def detect(
        self, clean: Array, electrons: float, gain: float, offset: float, row_noise: float, read: float
    ) -> Array:
        """Return grey values of a frame: shot noise (Gaussian, fair above 4 e-), row offsets, reading, 8 bits."""
        rng = self.rng
        signal = np.maximum(clean, np.float32(0.0))
        frame = np.sqrt(signal * np.float32(gain * gain / electrons) + np.float32(read * read))
        start = int(rng.integers(_NOISE - frame.size))
        frame *= self._noise[start : start + frame.size].reshape(frame.shape)
        frame += signal * np.float32(gain)
        frame += np.float32(offset) + np.float32(row_noise) * rng.standard_normal((len(clean), 1), dtype=np.float32)
        np.rint(frame, out=frame)
        return np.asarray(np.clip(frame, 0.0, 255.0), dtype=np.float32)

    def _object(self, shape: tuple[int, int], empty: bool) -> Array:
        """Return what the beam meets, 0 to 1: a crop, turned, stretched in tone, inverted, masked, on a pedestal."""
        rng = self.rng
        if empty:
            return np.full(shape, rng.uniform(0.2, 0.8), dtype=np.float32)
        image = self._crop(shape)
        if rng.random() < 0.2:  # two specimens at once: textures that no single one has
            share = np.float32(rng.uniform(0.2, 0.8))
            image = share * image + (1 - share) * self._crop(shape)
        if rng.random() < 0.7:
            image = np.power(image, np.float32(math.exp(0.45 * rng.standard_normal())))
        if rng.random() < 0.25:
            image = 1.0 - image
        if rng.random() < self.ranges.blank_share:
            image = self._mask(image)
        contrast = rng.uniform(0.25, 1.0)
        return np.asarray(rng.uniform(0.0, 1.0) * (1.0 - contrast) + contrast * image, dtype=np.float32)

    def _crop(self, shape: tuple[int, int]) -> Array:
        rng = self.rng
        view = self.views[int(rng.integers(len(self.views)))]
        if rng.random() < 0.5:
            view = view.T
        y = int(rng.integers(view.shape[0] - shape[0] + 1))
        x = int(rng.integers(view.shape[1] - shape[1] + 1))
        cut = view[y : y + shape[0], x : x + shape[1]]
        if rng.random() < 0.5:
            cut = cut[::-1]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        return np.asarray(cut, dtype=np.float32) * np.float32(1 / 255)

    def _mask(self, image: Array) -> Array:
        """Return the image with smooth-edged blank regions on 20 to 85 % of its area."""
        rng = self.rng
        coarse = rng.standard_normal((8, 8))
        fy, fx = image.shape[0] / 8, image.shape[1] / 8
        low = np.kron(coarse, np.ones((math.ceil(fy), math.ceil(fx))))[: image.shape[0], : image.shape[1]]
        spectrum = fft.rfft2(low.astype(np.float32), workers=1)
        ky, kx = _frequencies(image.shape)
        spectrum *= np.exp(-0.5 * (0.35 * fy * ky) ** 2) * np.exp(-0.5 * (0.35 * fx * kx) ** 2)
        smooth = fft.irfft2(spectrum, image.shape, workers=1)
        level = np.quantile(smooth[::8, ::8], rng.uniform(0.2, 0.85))
        keep = np.clip((smooth - level) * 20.0 + 0.5, 0.0, 1.0)
        return np.asarray(keep * image + (1.0 - keep) * np.float32(rng.uniform(0.2, 0.8)), dtype=np.float32)

    def _tint(self, spectrum: NDArray[np.complex64], shape: tuple[int, int]) -> None:
        """Filter the specimen (alike for both frames): other slopes and directions of its spectrum, charging tails."""
        rng = self.rng
        ky, kx = _frequencies(shape)
        if rng.random() < 0.5:
            slope = rng.uniform(-0.5, 0.35)
            # |k| seen along and across a random direction, unequally: no specimen is alike in all directions
            angle, stretch = rng.uniform(0, math.pi), math.exp(rng.uniform(-0.9, 0.9))
            along = math.cos(angle) * kx + math.sin(angle) * ky
            across = math.cos(angle) * ky - math.sin(angle) * kx
            tint = np.power(along * along * stretch + across * across / stretch + np.float32(1e-3), slope)
            mean = spectrum[0, 0]
            low = np.s_[1:8, 1:8]
            before = float(np.abs(spectrum[low]).sum())
            spectrum *= tint
            spectrum *= np.float32(before / max(float(np.abs(spectrum[low]).sum()), 1e-9))
            spectrum[0, 0] = mean
        if self.ranges.directed_share > 0.0 and rng.random() < self.ranges.directed_share:
            spectrum *= _directed(shape, rng.uniform(0, math.pi), rng.uniform(-1.2, 1.6), int(rng.choice([1, 2, 4, 8])))
        if rng.random() < 0.2:  # charge that flows off while the beam scans on: a tail behind every edge
            length, share = rng.uniform(3.0, 40.0), rng.uniform(-0.4, 0.4)
            spectrum *= (1.0 + share / (1.0 + 1j * kx * length)).astype(np.complex64) / np.float32(1.0 + share)


def _directed(shape: tuple[int, int], angle: float, gain: float, narrow: int) -> Array:
    """Return a filter exp(gain cos^2n) of the angle between a frequency and a direction, with a mean of 1."""
    ky, kx = _frequencies(shape)
    along = math.cos(angle) * kx + math.sin(angle) * ky
    lobe = np.power(along * along / (ky * ky + kx * kx + np.float32(1e-9)), narrow)
    tint = np.exp(np.float32(gain) * lobe)
    tint /= tint.mean()
    tint[0, 0] = 1.0
    return tint


@lru_cache(maxsize=8)
def _frequencies(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return ky of shape (height, 1) and kx of shape (1, width // 2 + 1), radians per pixel."""
    ky = (2 * np.pi * np.fft.fftfreq(shape[0])).astype(np.float32)[:, None]
    kx = (2 * np.pi * np.fft.rfftfreq(shape[1])).astype(np.float32)[None, :]
    return ky, kx


_STEP = 0.02
_ENTRIES = 30_000


@lru_cache(maxsize=1)
def _jinc_table() -> tuple[Array, Array]:
    """Return 2 J1(q) / q at steps of `_STEP`, and its differences."""
    q = np.maximum(np.arange(_ENTRIES + 1) * _STEP, 1e-6)
    table = 2.0 * j1(q) / q
    return table[:-1].astype(np.float32), np.diff(table).astype(np.float32)


def fast_otf(
    shape: tuple[int, int],
    z: float,
    a: float,
    b: float,
    core_px: float,
    softness: float = 0.0,
    shift_px: Sequence[float] | NDArray[np.float64] = (0.0, 0.0),
) -> NDArray[np.float32] | NDArray[np.complex64]:
    """Return `mm_autofocus.simulation.electron_probe.otf` of a soft disc from a table, four times as fast, to 1e-5.

    Parameters
    ----------
    shape
        Frame (height, width).
    z, a, b
        Blur pixels.
    core_px
        Standard deviation of the core, pixels.
    softness
        Share of the Gaussian.
    shift_px
        Displacement (x, y), pixels.
    """
    ky, kx = _frequencies(shape)
    q2 = np.square((z + a) * kx + b * ky, dtype=np.float32)
    q2 += np.square(b * kx + (z - a) * ky, dtype=np.float32)
    at = np.sqrt(q2)
    at *= np.float32(1 / _STEP)
    np.minimum(at, np.float32(_ENTRIES - 2), out=at)
    index = at.astype(np.int32)
    at -= index
    table, difference = _jinc_table()
    transfer = np.take(difference, index)
    transfer *= at
    transfer += np.take(table, index)
    if softness > 0.0:
        q2 *= np.float32(-0.125)
        np.exp(q2, out=q2)
        transfer *= np.float32(1.0 - softness)
        transfer += np.float32(softness) * q2
    transfer *= np.exp(np.float32(-0.5 * core_px**2) * ky * ky)
    transfer *= np.exp(np.float32(-0.5 * core_px**2) * kx * kx)
    dx, dy = float(shift_px[0]), float(shift_px[1])
    if dx or dy:
        phase = np.exp(-1j * dy * ky).astype(np.complex64) * np.exp(-1j * dx * kx).astype(np.complex64)
        return np.asarray(transfer * phase, dtype=np.complex64)
    return transfer
