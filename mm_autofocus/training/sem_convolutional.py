"""Trains the networks that see pixels: our PairNet, the paper's DeepFocus and DeepScore."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.deepfocus_estimator import standardised
from mm_autofocus.estimators.pair_spectra import REFERENCE_PX
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.sem_pairs import PairSampler, Ranges, TrainingPair

if TYPE_CHECKING:
    import torch

    from mm_autofocus.networks.deepfocus import DeepFocus
    from mm_autofocus.networks.deepscore import DeepScore
    from mm_autofocus.networks.pair_net import PairNet

Say = Callable[[str], None]
Array = NDArray[np.float32]

SETUP_A_PX_PER_UM = 0.87
"""Blur pixels of 1 µm at 8.7 mrad and 10 nm: what DeepFocus, which knows no calibration, is trained for."""

SETUP_A_STIGMATOR_UM = 6.0
SETUP_A_ROTATION_DEG = 3.0

CURRICULUM = Ranges(
    delta_px=(2.0, 5.5), defocus=1.8, astigmatism=1.4, wide_share=0.0, electrons=(15.0, 300.0), blank_share=0.0,
    empty_share=0.0, residual_px=0.5, softness=0.3, miscalibration=0.1,
)  # fmt: skip
"""Small blur first: without it a convolutional network learns nothing in its first thousands of pairs."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The paper's (Methods): additive noise, gamma, brightness and contrast, each with its probability.

    Attributes
    ----------
    probability
        Of each of the three, applied on its own.
    noise, gamma, contrast, brightness
        Standard deviations, for grey values from -1 to 1; gamma and contrast around 1.
    """

    probability: float = 0.75
    noise: float = 0.2
    gamma: float = 0.25
    contrast: float = 0.25
    brightness: float = 0.25

    def __call__(self, pair: Array, rng: np.random.Generator) -> Array:
        """Return the pair augmented, both images alike but for their noise; shape (2, height, width), from -1 to 1."""
        if rng.random() < self.probability:
            gamma = max(0.2, 1.0 + self.gamma * rng.standard_normal())
            pair = 2.0 * np.power(np.clip(0.5 * pair + 0.5, 0.0, 1.0), np.float32(gamma)) - 1.0
        if rng.random() < self.probability:
            contrast = 1.0 + self.contrast * rng.standard_normal()
            mean = float(pair.mean())
            pair = contrast * (pair - mean) + mean + self.brightness * rng.standard_normal()
        if rng.random() < self.probability:
            pair = pair + self.noise * rng.standard_normal(pair.shape, dtype=np.float32)
        return np.asarray(pair, dtype=np.float32)


def turn_pair(pair: Array, aberration: NDArray[np.float64], quarter_turns: int, mirrored: bool) -> tuple[Array, Array]:
    """Return images and (z, a, b) turned by quarter turns, then mirrored left to right: exact symmetries.

    Parameters
    ----------
    pair
        Shape (..., height, width), square.
    aberration
        Shape (3,), in the image's axes.
    quarter_turns
        Counter-clockwise.
    mirrored
        After turning.
    """
    z, a, b = aberration
    if quarter_turns % 2:
        a, b = -a, -b
    pair = np.rot90(pair, quarter_turns, (-2, -1))
    if mirrored:
        pair, b = pair[..., ::-1], -b
    return pair, np.array([z, a, b], dtype=np.float32)


def fit_pair_net(
    sampler: PairSampler,
    *,
    pairs: int,
    edge: int = 256,
    batch: int = 24,
    curriculum: float = 0.15,
    learning_rate: float = 3e-3,
    seed: int = 0,
    process: Rank = ALONE,
    say: Say | None = None,
) -> PairNet:
    """Train a `PairNet` on pairs as they are simulated.

    Parameters
    ----------
    sampler
        Of pairs.
    pairs
        How many to simulate; each is seen once.
    edge, batch
        Of the patches.
    curriculum
        Share of the pairs with small blur, at the beginning.
    learning_rate
        At the top of the cosine.
    seed
        Of initial weights and symmetries.
    process
        Which of the processes of ``torchrun`` this is: each simulates its share of every batch, from a sampler whose
        seed is its own.
    say
        Told about progress.
    """
    import torch

    from mm_autofocus.networks.pair_net import PairNet

    torch.manual_seed(seed)
    rng = np.random.default_rng([0xC0, process.seed(seed)])
    net = PairNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, each = process.wrap(net), process.part(batch)
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=1e-2)
    whole, seen, log, begin = sampler.ranges, 0, [], time.monotonic()
    while seen < pairs:
        spent = seen / pairs
        sampler.ranges = CURRICULUM if spent < curriculum else whole
        _schedule(optimiser, learning_rate, spent, seen / (batch * 100.0))
        images, target, beside = (t.to(process.device) for t in _pair_batch(sampler, each, edge, rng))
        out = model(images, beside)
        loss = _laplace(out, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        seen += each * process.size
        log.append((out[:, :3] - target[:, :3]).abs().mean(0).tolist())
        if say is not None and len(log) == 100:
            say(f"{seen} pairs, {time.monotonic() - begin:.0f} s, errors {np.mean(log, 0).round(3)} of half the step")
            log = []
    sampler.ranges = whole
    return net.cpu().eval()  # type: ignore[no-any-return]


def _pair_batch(
    sampler: PairSampler, batch: int, edge: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    images: list[Array] = []
    target: list[list[float]] = []
    beside: list[list[float]] = []
    while len(images) < batch:
        for pair in sampler.draw((edge, edge), 3):
            both, truth = turn_pair(
                np.stack([pair.under, pair.over]), pair.aberration, int(rng.integers(4)), bool(rng.random() < 0.5)
            )
            images.append(both)
            target.append([*truth, math.log(pair.step_ratio)])
            beside.append([math.log(pair.delta_px / REFERENCE_PX)])
    return (
        torch.from_numpy(np.stack(images[:batch])),
        torch.tensor(target[:batch], dtype=torch.float32),
        torch.tensor(beside[:batch], dtype=torch.float32),
    )


def _laplace(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the likelihood's loss, weighted by the scales' roots, and that of the step ratio."""
    import torch

    scales = out[:, 3:6].clamp(-4.5, 2.5)
    likelihood = (out[:, :3] - target[:, :3]).abs() * torch.exp(-scales) + scales
    return (likelihood * torch.exp(0.5 * scales.detach())).mean() + (out[:, 6] - target[:, 3]).abs().mean()


def _schedule(optimiser: torch.optim.Optimizer, top: float, spent: float, warm: float) -> None:
    """Set the learning rate: a short rise, then a half cosine to a fiftieth."""
    rate = top * min(1.0, warm + 0.02) * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(spent, 1.0))))
    for group in optimiser.param_groups:
        group["lr"] = rate


def setup_a_ranges(small: bool, binning: int = 1) -> Ranges:
    """Return the draw of setup A, which never changes: ±5 µm at 8.7 mrad and 10 nm; or one of small blur.

    Parameters
    ----------
    small
        Small blur only, for the beginning.
    binning
        Pixels of the frame that are averaged along each axis: what is drawn are pairs as they are after that.
    """
    delta = 5.0 * SETUP_A_PX_PER_UM / binning
    stig = 5.0 * SETUP_A_STIGMATOR_UM / 5.0
    fixed = Ranges(
        delta_px=(delta, delta), defocus=4.0, astigmatism=stig, wide_share=0.0, small_share=0.2, miscalibration=0.0,
        electrons=(10.0 * binning**2, 150.0 * binning**2), residual_px=8.0, softness=0.4, blank_share=0.1,
        empty_share=0.0,
    )  # fmt: skip
    if binning > 1:  # a mean over n pixels has a standard deviation of n / sqrt(12) of them; 15 px of displacement
        fixed = replace(fixed, core_px=(0.3, 0.3 + 0.6 / binning), residual_px=16.0 / binning)
    return replace(fixed, defocus=2.4, astigmatism=1.5, residual_px=2.0, blank_share=0.0) if small else fixed


def knobs_of(pair: TrainingPair, aberration: NDArray[np.floating]) -> Array:
    """Return (working distance µm, stig x, stig y) of setup A for (z, a, b) over half the perturbation (±5 µm)."""
    from mm_autofocus.estimators.aberration import ColumnCalibration

    calibration = ColumnCalibration(1000.0, SETUP_A_STIGMATOR_UM, SETUP_A_ROTATION_DEG)
    found = calibration.from_blur(5.0 * np.asarray(aberration, dtype=float) * pair.step_ratio, 1.0)
    return found.vector().astype(np.float32)


SCALES = (5.0, 1.5, 1.5)
"""What DeepFocus' outputs are multiplied with; the paper trains on µm and a.u. as they are, for days."""


def fit_deepfocus(
    sampler: PairSampler,
    *,
    pairs: int,
    edge: int = 128,
    binning: int = 4,
    scores: bool = False,
    batch: int = 32,
    curriculum: float = 0.0,
    noise: float = 0.05,
    learning_rate: float = 1e-3,
    seed: int = 0,
    process: Rank = ALONE,
    say: Say | None = None,
) -> DeepFocus:
    """Train the paper's network for setup A: L1 loss, AdamW, its augmentations; a cosine in place of its slow decay.

    So that it learns in minutes: patches are standardised, and the convolutions are also taught how blurred either
    image of the pair is (`_taught`).

    Parameters
    ----------
    sampler
        Of pairs; its ranges are replaced by those of setup A.
    pairs
        How many to simulate; each is seen once.
    edge, scores
        Of the network. With scores, five patches of one pair are weighed together (equation 3).
    binning
        Pixels averaged along each axis before the network sees them: a patch of 128 at 4 shows what one of 512 does.
    noise
        Standard deviation of the augmentation's noise; the paper's is larger than most of a binned image's contrast.
    batch, curriculum, learning_rate, seed, process, say
        As for `fit_pair_net`.
    """
    import torch

    from mm_autofocus.networks.deepfocus import DeepFocus, score_loss

    torch.manual_seed(seed)
    rng = np.random.default_rng([0xDF, process.seed(seed)])
    net = DeepFocus(edge, scores)
    for module in net.modules():  # a tenth of dropout at every layer keeps a run this short from learning at all
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    taught = _taught(net)
    model, each = process.wrap(taught), process.part(batch)
    optimiser = torch.optim.AdamW(taught.parameters(), learning_rate, weight_decay=1e-2)
    patches, augment = 5 if scores else 1, Augmentation(noise=noise)
    seen, log, begin = 0, [], time.monotonic()
    while seen < pairs:
        spent = seen / pairs
        sampler.ranges = setup_a_ranges(spent < curriculum, binning)
        _schedule(optimiser, learning_rate, spent, seen / (batch * 100.0))
        drawn = _deepfocus_batch(sampler, each, edge, patches, augment, rng)
        images, target, blur = (tensor.to(process.device) for tensor in drawn)
        out, seen_blur = model(images)
        single = (out[:, :3] - target).abs().mean()
        loss = score_loss(out.reshape(-1, patches, 4), target[::patches]) if scores else single
        loss = loss + (seen_blur - blur).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        seen += each * process.size
        log.append((out[:, :3] - target).abs().mean(0).tolist())
        if say is not None and len(log) == 50:
            say(f"{seen} pairs, {time.monotonic() - begin:.0f} s, errors {(np.mean(log, 0) * SCALES).round(3)}")
            log = []
    return net.cpu().eval()


def _taught(net: DeepFocus) -> torch.nn.Module:
    """Return the network with a head that says of either image alone how blurred it is; only for the training.

    Of an image (z, a, b) off it is (r, 2 z a / r, 2 z b / r), what its own blurred disc shows, over `_BLUR_SCALE`.
    """
    import torch

    from mm_autofocus.networks.deepfocus import CONVOLUTIONS, LINEAR

    class Taught(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.blur = torch.nn.Linear(LINEAR[net.edge][0] // 2, 3)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.net.features(images)
            each = features.reshape(len(features), CONVOLUTIONS[-1][0], 2, -1).transpose(1, 2).flatten(2)
            return self.net.linear(features), self.blur(each)

    return Taught()


_BLUR_SCALE = 3.0
"""Half perturbations: about the mean of what `_taught` is taught."""


def _blur(z: float, a: float, b: float) -> list[float]:
    r = math.sqrt(z * z + a * a + b * b) + 0.3
    return [value / _BLUR_SCALE for value in (r, 2 * z * a / r, 2 * z * b / r)]


def _deepfocus_batch(
    sampler: PairSampler, batch: int, edge: int, patches: int, augment: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return standardised images, negative aberrations over `SCALES`, and blur; patches of a pair in a row."""
    import torch

    images: list[Array] = []
    target: list[Array] = []
    blur: list[list[list[float]]] = []
    while len(images) < batch:
        size = edge if patches == 1 else 2 * edge
        for pair in sampler.draw((size, size), 2):
            both, truth = turn_pair(
                np.stack([pair.under, pair.over]), pair.aberration, int(rng.integers(4)), bool(rng.random() < 0.5)
            )
            both = augment(both * np.float32(2 / 255) - np.float32(1), rng)
            correction = np.asarray(-knobs_of(pair, truth) / np.array(SCALES), dtype=np.float32)
            z, a, b = (float(value) for value in truth)
            for _ in range(patches):
                y, x = rng.integers(0, size - edge + 1, 2)
                images.append(standardised(both[:, y : y + edge, x : x + edge]))
                target.append(correction)
                blur.append([_blur(z - 1.0, a, b), _blur(z + 1.0, a, b)])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(target)), torch.tensor(blur)


SCORE_SCALES = (5.0, 3.0)
"""What DeepScore's outputs are multiplied with."""


CROP = 192
"""Edge of the crops with which DeepScore's convolutions begin: of so many pixels they leave one value a channel."""


def fit_deepscore(
    sampler: PairSampler,
    *,
    images: int,
    crops: int = 0,
    batch: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    process: Rank = ALONE,
    say: Say | None = None,
) -> DeepScore:
    """Train the paper's score network for setup A on single frames: L1 distance to |wd| and |stig x| + |stig y|.

    A frame of 512 x 512 is seven times as costly as a crop, and convolutions learn as much from one as from the other:
    they are first taught how blurred crops are, then all layers what the paper asks for.

    Parameters
    ----------
    sampler
        Of pairs; its ranges are replaced by those of setup A.
    images, crops
        How many frames to simulate, and crops before that; both of a pair serve, each at its own working distance.
    batch
        Frames of a step; of crops there are four times as many.
    learning_rate, seed, process, say
        As for `fit_pair_net`.
    """
    import torch

    from mm_autofocus.networks.deepscore import CONVOLUTIONS, EDGE, DeepScore, score_target

    torch.manual_seed(seed)
    rng = np.random.default_rng([0xD5, process.seed(seed)])
    net = DeepScore()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    class Taught(torch.nn.Module):
        """The network, and at every place that its convolutions leave the blur and both scores."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.each = net, torch.nn.Conv2d(CONVOLUTIONS[-1], 5, 1)

        def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.net.convolutions(frames.to(memory_format=torch.channels_last))
            whole = self.net.linear(features.flatten(1)) if frames.shape[-1] == EDGE else features.new_zeros(0, 2)
            return whole, self.each(features)

    taught = Taught()
    model = process.wrap(taught)
    augment = Augmentation(noise=0.1)
    sampler.ranges = replace(setup_a_ranges(small=False), small_share=0.35, residual_px=0.0)
    scales = torch.tensor(SCORE_SCALES, device=process.device)
    for edge, count, size in ((CROP, crops, 4 * batch), (EDGE, images, batch)):
        optimiser = torch.optim.AdamW(taught.parameters(), learning_rate, weight_decay=1e-2)
        seen, log, begin, each = 0, [], time.monotonic(), process.part(size)
        while seen < count:
            _schedule(optimiser, learning_rate, seen / count, seen / (size * 100.0))
            frames, knobs, blur = (tensor.to(process.device) for tensor in _frames(sampler, each, edge, augment, rng))
            target = score_target(knobs)
            whole, places = model(frames)
            both = torch.cat([blur, target / scales], 1)
            loss = (places - both[:, :, None, None]).abs().mean()
            if edge == EDGE:
                loss = loss + (whole - target / scales).abs().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(taught.parameters(), 2.0)
            optimiser.step()
            seen += len(frames) * process.size
            told = whole if edge == EDGE else places[:, 3:].mean((2, 3))
            log.append(((told.detach() * scales) - target).abs().mean(0).tolist())
            if say is not None and len(log) == 50:
                say(f"{seen} images of {edge}, {time.monotonic() - begin:.0f} s, errors {np.mean(log, 0).round(3)}")
                log = []
    return net.cpu().eval()


def _frames(
    sampler: PairSampler, count: int, edge: int, augment: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return standardised frames (count, 1, edge, edge), where the knobs stand (count, 3), and the blur (count, 3)."""
    import torch

    frames: list[Array] = []
    knobs: list[Array] = []
    blur: list[list[float]] = []
    while len(frames) < count:
        for pair in sampler.draw((edge, edge), 2):
            both = augment(np.stack([pair.under, pair.over]) * np.float32(2 / 255) - np.float32(1), rng)
            truth = knobs_of(pair, pair.aberration)
            z, a, b = (float(value) for value in pair.aberration)
            for image, side in zip(both, (-1.0, 1.0), strict=True):
                frames.append(standardised(image[None]))
                knobs.append(truth + np.array([5.0 * side, 0, 0], dtype=np.float32))
                blur.append(_blur(z + side, a, b))
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(knobs)), torch.tensor(blur)
