"""Adapts to another electron column: our calibration from a few frames, the paper's network by fine-tuning its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import FocusError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PairEstimator
from mm_autofocus.estimators.cards import SemCard, load_card, save_card
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    import torch

    from mm_autofocus.microscope.microscope import Microscope
    from mm_autofocus.networks.deepfocus import DeepFocus

Say = Callable[[str], None]

STEPS = ((0.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, -2.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.0, -2.0))
"""Offsets (working distance µm, stig x, stig y) from where the column stands, at which pairs are taken."""

_PATCHES_OF_A_PAIR = 12
_VALIDATION = 0.2
_STIGMATOR_UM = (0.05, 500.0)


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A pair and where the knobs stood.

    Attributes
    ----------
    under, over
        Frames at the lower and the higher working distance.
    knobs
        Of the midpoint. For `fit_calibration` relative to anything that stays the same from pair to pair; for
        `recalibrate_deepfocus` relative to the best values: the label.
    step_um, pixel_um
        As for `PairEstimator.estimate`.
    """

    under: Image
    over: Image
    knobs: Aberration
    step_um: float
    pixel_um: float


def fit_calibration(
    pairs: Sequence[KnownPair], estimator: PairEstimator, start: ColumnCalibration | None = None, *, rounds: int = 2
) -> ColumnCalibration:
    """Return the calibration of a column from pairs between which the stigmators were moved by known amounts.

    The astigmatism that is seen is ``s R(2θ) (knobs - best)``: as complex numbers a straight line, whose slope is scale
    and rotation and whose offset nobody needs to know. The convergence angle comes from the perturbation as each pair
    shows it, or, from an estimator that does not measure it, from how the defocus that is seen follows the knob. The
    image shift comes from the registration.

    Parameters
    ----------
    pairs
        At least three, whose stigmator values do not coincide; `STEPS` serve.
    estimator
        `mm_autofocus.estimators.spectral.SpectralEstimator`, usually.
    start
        Calibration to begin with; only the convergence angle matters, and it may be wrong by a third.
    rounds
        How often to look again with what was found.

    Raises
    ------
    FocusError
        When too few pairs show a specimen, or the astigmatism does not follow the stigmators.
    """
    calibration = start or ColumnCalibration()
    for _ in range(rounds):
        calibration = _fit(pairs, [_estimate(pair, estimator, calibration) for pair in pairs], calibration)
    return calibration


def _estimate(pair: KnownPair, estimator: PairEstimator, calibration: ColumnCalibration) -> PairEstimate:
    return estimator.estimate(pair.under, pair.over, pair.step_um, pair.pixel_um, calibration)


def _fit(
    pairs: Sequence[KnownPair], estimates: Sequence[PairEstimate], calibration: ColumnCalibration
) -> ColumnCalibration:
    used = [(p, e) for p, e in zip(pairs, estimates, strict=True) if math.isfinite(e.sigma.stig_x)]
    knobs = np.array([complex(p.knobs.stig_x, p.knobs.stig_y) for p, _ in used])
    if len(used) < 3 or np.std(knobs) < 1e-6:
        raise FocusError(
            f"calibration of the column: {len(used)} of {len(pairs)} pairs show a specimen, at "
            f"{len(set(knobs.tolist()))} settings of the stigmators; it takes 3 or more at different settings"
        )
    seen, weights = [], []
    for pair, estimate in used:
        _, a, b = calibration.to_blur(estimate.aberration, pair.pixel_um) / calibration.blur_per_um(pair.pixel_um)
        seen.append(complex(a, b))
        weights.append(1.0 / max(estimate.sigma.stig_x, 1e-3) ** 2)
    w = np.array(weights) / np.sum(weights)
    values = np.array(seen)
    from_mean, to_mean = knobs - w @ knobs, values - w @ values
    slope = complex((w * np.conj(from_mean)) @ to_mean / float(w @ np.abs(from_mean) ** 2))
    left = float(w @ np.abs(to_mean - slope * from_mean) ** 2) / max(float(w @ np.abs(to_mean) ** 2), 1e-12)
    if not _STIGMATOR_UM[0] < abs(slope) < _STIGMATOR_UM[1] or left > 0.5:
        raise FocusError(
            f"calibration of the column: the astigmatism does not follow the stigmators ({left:.0%} of it unexplained, "
            f"{abs(slope):.3g} µm for each unit); move them further, or check their axes"
        )
    shifts = [np.array(e.shift_px) * p.pixel_um / p.step_um for p, e in used]
    shift = np.median(shifts, axis=0)
    return ColumnCalibration(
        calibration.convergence_mrad * _angle_factor(used),
        abs(slope),
        math.degrees(math.atan2(slope.imag, slope.real)) / 2.0,
        (float(shift[0]), float(shift[1])),
    )


def _angle_factor(used: Sequence[tuple[KnownPair, PairEstimate]]) -> float:
    """Return true over assumed convergence angle: by the step ratios, else by the slope of the defocus, else 1."""
    ratios = [math.log(e.step_ratio) for _, e in used if math.isfinite(e.step_ratio) and e.step_ratio > 0]
    if ratios:
        weights = [1.0 / max(float(e.details.get("step_ratio_sigma", 0.1)), 0.01) ** 2 for _, e in used
                   if math.isfinite(e.step_ratio) and e.step_ratio > 0]  # fmt: skip
        return math.exp(float(np.average(ratios, weights=weights)))
    knob = np.array([p.knobs.defocus_um for p, _ in used])
    if np.std(knob) < 1e-6:
        return 1.0
    seen = np.array([e.aberration.defocus_um for _, e in used])
    slope = float(np.cov(knob, seen)[0, 1] / np.var(knob, ddof=1))
    return min(max(slope, 0.2), 5.0)


def take_pairs(
    microscope: Microscope,
    offsets: Sequence[tuple[float, float, float]],
    *,
    half_step_um: float = 5.0,
    camera: str | None = None,
    exposure_ms: float | None = None,
) -> list[KnownPair]:
    """Take pairs at offsets from where the knobs stand, and put everything back.

    Parameters
    ----------
    microscope
        With the knobs "z", "stig_x" and "stig_y".
    offsets
        (working distance µm, stig x, stig y).
    half_step_um
        The frames of a pair lie so far on either side.
    camera, exposure_ms
        What to image with; the microscope's own by default.

    Raises
    ------
    FocusError
        When an offset leaves the limits, the pixel size is not known, or a frame can't be taken.
    """
    return list(_taken(microscope, offsets, half_step_um, camera, exposure_ms))


def _taken(
    microscope: Microscope, offsets: Sequence[tuple[float, float, float]], half_step_um: float, camera: str | None,
    exposure_ms: float | None,
) -> Iterator[KnownPair]:  # fmt: skip
    pixel = microscope.pixel_um
    if pixel is None:
        raise FocusError("pairs of frames: the core knows no pixel size; define one in the configuration")
    names = ("z", "stig_x", "stig_y")
    knobs = [microscope.knob(name) for name in names]
    start = np.array([knob.get() for knob in knobs])
    for offset in offsets:
        for sign in (-1.0, 1.0):
            knobs[0].check(float(start[0] + offset[0] + sign * half_step_um))
        for knob, value in zip(knobs[1:], (start + np.array(offset))[1:], strict=True):
            knob.check(float(value))
    with microscope.preserved():
        for offset in offsets:
            target = start + np.array(offset)
            there = [float(knob.set(float(value))) for knob, value in zip(knobs[1:], target[1:], strict=True)]
            low = float(knobs[0].set(float(target[0] - half_step_um)))
            under, _ = microscope.snap(camera=camera, exposure_ms=exposure_ms)
            high = float(knobs[0].set(float(target[0] + half_step_um)))
            over, _ = microscope.snap(camera=camera, exposure_ms=exposure_ms)
            middle = np.array([(low + high) / 2, *there]) - start
            yield KnownPair(under, over, Aberration(*(float(v) for v in middle)), high - low, pixel)
        for knob, value in zip(knobs, start, strict=True):
            knob.set(float(value))


def random_aberrations(
    count: int, seed: int, *, defocus_um: float = 20.0, stigmator: float = 5.0
) -> list[tuple[float, float, float]]:
    """Return aberrations drawn evenly between limits: the paper takes 10 at each of 10 locations."""
    rng = np.random.default_rng([0xAB, seed])
    drawn = rng.uniform(-1.0, 1.0, (count, 3)) * np.array([defocus_um, stigmator, stigmator])
    return [(float(z), float(x), float(y)) for z, x, y in drawn]


def recalibrate_deepfocus(
    pairs: Sequence[KnownPair],
    out: Path,
    *,
    base: str | Path = "",
    steps: int = 3000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    say: Say | None = None,
) -> SemCard:
    """Fine-tune the three fully connected layers of DeepFocus on labelled pairs, and write the new card.

    The convolutions stay, so that what they make of each patch, in several places and augmented as in the training, is
    computed once. Steps by AdamW on the L1 loss, the rate multiplied by 0.95 every 1000 steps at 50,000 of them (the
    paper) and as much faster as there are fewer.

    Parameters
    ----------
    pairs
        Labelled: ``knobs`` relative to the best values of each place. The paper has 100.
    out
        The new card (.json).
    base
        Card of the network to begin with; empty for the one that comes along.
    steps, learning_rate, seed
        Of the fine-tuning.
    say
        Told about progress.

    Raises
    ------
    FocusError
        With fewer than 10 pairs.
    SettingsError
        When the base can't be used.
    """
    import torch

    from mm_autofocus.networks.deepfocus import DeepFocus

    if len(pairs) < 10:
        raise FocusError(f"recalibration: {len(pairs)} labelled pairs are too few; take 10 or more (the paper: 100)")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    begin = time.monotonic()
    card, arrays = load_card(base, "deepfocus")
    if card.parameters.get("scores"):
        raise FocusError("recalibration: a network with patch scores is not supported; begin with one without")
    net = DeepFocus(card.parameters["edge"])
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    net.eval()
    scales = np.array(card.parameters.get("scales", (1.0, 1.0, 1.0)), dtype=np.float32)
    features, target, of_pair = _frozen_features(net, pairs, scales, seed)
    if say is not None:
        say(f"{len(features)} patches of {len(pairs)} pairs, {time.monotonic() - begin:.0f} s")
    rng = np.random.default_rng([0x4E, seed])
    held = rng.permutation(len(pairs))[: max(2, round(_VALIDATION * len(pairs)))]
    validation = torch.from_numpy(np.isin(of_pair, held))
    before = _error(net, features[validation], target[validation], scales)
    best = float(before.mean())
    kept = {name: value.clone() for name, value in net.linear.state_dict().items()}
    train = torch.nonzero(~validation)[:, 0]
    optimiser = torch.optim.AdamW(net.linear.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, max(1, steps // 50), 0.95)
    for step in range(steps):
        at = train[torch.from_numpy(rng.integers(0, len(train), 64))]
        loss = (net.linear(features[at]) - target[at]).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            error = _error(net, features[validation], target[validation], scales)
            if error.mean() < best:
                best = float(error.mean())
                kept = {name: value.clone() for name, value in net.linear.state_dict().items()}
            if say is not None and step % 500 == 499:
                say(f"step {step + 1}, errors on held-out pairs {error.round(3)}")
    net.linear.load_state_dict(kept)
    after = _error(net, features[validation], target[validation], scales)
    pixel, step_um = pairs[0].pixel_um, pairs[0].step_um
    new = card.model_copy(
        update={
            "weights": f"{out.stem}.safetensors",
            "parameters": {k: v for k, v in card.parameters.items() if not k.startswith(("convergence", "stigmator"))}
            | {"errors": [round(float(e), 3) for e in after], "pixel_um": pixel, "step_um": step_um},
            "trained_on": f"{card.trained_on}; last three layers anew on {len(pairs)} pairs of another column",
            "command": "mm-autofocus recalibrate sem --method deepfocus",
            "measured": {
                "held_out_before": before.round(3).tolist(), "held_out_after": after.round(3).tolist(),
                "pairs": len(pairs), "seconds": round(time.monotonic() - begin, 1),
            },
        }
    )  # fmt: skip
    save_card(out, new, {name: value.detach().contiguous().numpy().copy() for name, value in net.state_dict().items()})
    return new


def _frozen_features(
    net: DeepFocus, pairs: Sequence[KnownPair], scales: NDArray[np.float32], seed: int
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.intp]]:
    """Return features of augmented patches, their corrections over the scales, and which pair each is of."""
    import torch

    from mm_autofocus.estimators.deepfocus_estimator import rescaled
    from mm_autofocus.estimators.frames import check_frame
    from mm_autofocus.training.sem_convolutional import Augmentation

    rng = np.random.default_rng([0xF0, seed])
    augment = Augmentation(probability=0.4, noise=0.1, gamma=0.15, contrast=0.15, brightness=0.1)
    features, target, of_pair = [], [], []
    edge = net.edge
    for i, pair in enumerate(pairs):
        for frame in (pair.under, pair.over):
            check_frame(frame, edge)
        height, width = pair.under.shape
        patches = []
        for _ in range(_PATCHES_OF_A_PAIR):
            y, x = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
            both = np.stack([rescaled(frame[y : y + edge, x : x + edge]) for frame in (pair.under, pair.over)])
            patches.append(augment(both, rng))
        with torch.inference_mode():
            features.append(net.features(torch.from_numpy(np.stack(patches))))
        target += [-pair.knobs.vector() / scales] * _PATCHES_OF_A_PAIR
        of_pair += [i] * _PATCHES_OF_A_PAIR
    return torch.cat(features).clone(), torch.tensor(np.array(target), dtype=torch.float32), np.array(of_pair)


def _error(net: DeepFocus, features: torch.Tensor, target: torch.Tensor, scales: NDArray[np.float32]) -> NDArray[Any]:
    """Return mean absolute errors (µm, a.u., a.u.)."""
    import torch

    with torch.inference_mode():
        return np.asarray((net.linear(features) - target).abs().mean(0).numpy() * scales)
