"""Adapts to another electron column: our calibration from a few frames, the paper's network by fine-tuning its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import FocusError, LimitError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PairEstimator
from mm_autofocus.estimators.cards import SemCard, load_card, save_card
from mm_autofocus.strategies.column_fit import Belief, ColumnFit
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    import torch

    from mm_autofocus.microscope.microscope import Microscope
    from mm_autofocus.networks.deepfocus import DeepFocus

Say = Callable[[str], None]

KNOBS = ("z", "stig_x", "stig_y")
"""Names of the knobs: working distance and stigmators."""

Offsets = Sequence[tuple[float, float, float]]


def calibration_steps(z_um: float = 6.0, stig: float = 2.0) -> tuple[tuple[float, float, float], ...]:
    """Return offsets (working distance µm, stig x, stig y) of the seven pairs that calibrate a column."""
    moves = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
    return tuple((z_um * z, stig * x, stig * y) for z, x, y in moves)


STEPS = calibration_steps()
"""Offsets from where the column stands at which pairs are taken."""

_PATCHES_OF_A_PAIR = 64
_VALIDATION = 0.2
_STIGMATOR_UM = (0.05, 500.0)

_ANGLE_SD = 0.15
"""An angle that is less certain than this (relative) is left as it was."""
_ANGLE_RANGE = (1 / 3, 3.0)
_SETTLED = 0.02
_PRIOR_SD, _PRIOR_ROTATION_DEG = 0.5, 20.0
_BEST_REACH = np.array([30.0, 10.0, 10.0])


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


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """What pairs at known knobs say about a column.

    Attributes
    ----------
    calibration
        The column's.
    convergence_sd, stigmator_sd, rotation_sd_deg
        Standard deviations: relative, relative, degrees.
    angle
        "measured", or why the convergence angle was left as it was.
    misfit
        Chi-squared per degree of freedom; well above 1 when the pairs contradict each other.
    """

    calibration: ColumnCalibration
    convergence_sd: float
    stigmator_sd: float
    rotation_sd_deg: float
    angle: str
    misfit: float


def fit_calibration(
    pairs: Sequence[KnownPair], estimator: PairEstimator, start: ColumnCalibration | None = None, *, rounds: int = 4
) -> ColumnCalibration:
    """Return the calibration alone; see `measure_calibration`."""
    return measure_calibration(pairs, estimator, start, rounds=rounds).calibration


def measure_calibration(
    pairs: Sequence[KnownPair], estimator: PairEstimator, start: ColumnCalibration | None = None, *, rounds: int = 4
) -> CalibrationFit:
    """Fit the calibration of a column to pairs between which its knobs were moved by known amounts.

    The astigmatism that is seen is ``s R(2θ) (knobs - best)``: as complex numbers a straight line, whose slope is scale
    and rotation, whatever they were believed to be. `ColumnFit` then refines them, weighting the pairs by what they can
    say. The convergence angle is the one with which the defocus that is seen follows the moves of the working distance
    one to one; it is looked for in a few rounds, and left as it was where the pairs do not tell it. The image shift
    comes from the registration.

    Parameters
    ----------
    pairs
        At least three, whose stigmator values do not coincide; `STEPS` serve. For the angle the working distance must
        differ, too.
    estimator
        `mm_autofocus.estimators.spectral.SpectralEstimator`, usually.
    start
        Calibration to begin with; only its convergence angle matters, and that may be wrong by half.
    rounds
        How often to look again with the angle that was found.

    Raises
    ------
    FocusError
        When too few pairs show a specimen, or what is seen follows neither stigmators nor working distance.
    """
    begin = calibration = start or ColumnCalibration()
    moved = float(np.ptp([pair.knobs.defocus_um for pair in pairs])) > 1e-6
    problem = "" if moved else "the working distance was not moved between the pairs"
    for _ in range(rounds if moved else 1):
        step = _fit(pairs, [_estimate(pair, estimator, calibration) for pair in pairs], calibration)
        if not moved or abs(math.log(step.factor)) < _SETTLED:
            break
        angle = calibration.convergence_mrad * step.factor
        if not _ANGLE_RANGE[0] < angle / begin.convergence_mrad < _ANGLE_RANGE[1]:
            problem = f"the pairs ask for {angle:.3g} mrad, too far from {begin.convergence_mrad:g} to be believed"
            break
        calibration = replace(calibration, convergence_mrad=angle)
    if moved and not problem and step.belief.change.convergence_sd > _ANGLE_SD:
        problem = f"the pairs tell it to no better than {step.belief.change.convergence_sd:.0%}"
    if problem and calibration != begin:
        step = _fit(pairs, [_estimate(pair, estimator, begin) for pair in pairs], begin)
    change, angle = step.belief.change, begin.convergence_mrad if problem else calibration.convergence_mrad
    found = replace(change.of(step.calibration), convergence_mrad=angle)
    if not moved:  # without it scale and angle can't be told apart
        found = replace(found, stigmator_um=found.stigmator_um * change.convergence)
    if moved and 0 in step.unfollowed:
        raise FocusError(
            f"calibration of the column: the frames do not follow the working distance over ±{_reach(pairs):.3g} µm "
            f"({change.convergence:.0%} of it is seen): it stands still whatever it says, or the model does not fit "
            "these images"
        )
    return CalibrationFit(
        found, _PRIOR_SD if problem else change.convergence_sd, change.stigmator_sd,
        change.rotation_sd_deg, f"left as it was: {problem}" if problem else "measured", step.belief.misfit,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Step:
    """One look at all pairs: the straight line's calibration, and how the fit of all knobs changes it."""

    calibration: ColumnCalibration
    belief: Belief
    unfollowed: tuple[int, ...]

    @property
    def factor(self) -> float:
        return self.belief.change.convergence


def _reach(pairs: Sequence[KnownPair]) -> float:
    return float(np.ptp([pair.knobs.defocus_um for pair in pairs])) / 2


def _estimate(pair: KnownPair, estimator: PairEstimator, calibration: ColumnCalibration) -> PairEstimate:
    return estimator.estimate(pair.under, pair.over, pair.step_um, pair.pixel_um, calibration)


def _fit(pairs: Sequence[KnownPair], estimates: Sequence[PairEstimate], calibration: ColumnCalibration) -> _Step:
    used = [(p, e) for p, e in zip(pairs, estimates, strict=True) if np.isfinite(e.sigma.vector()).all()]
    knobs = np.array([complex(p.knobs.stig_x, p.knobs.stig_y) for p, _ in used])
    if len(used) < 3 or np.std(knobs) < 1e-6:
        raise FocusError(
            f"calibration of the column: {len(used)} of {len(pairs)} pairs show a specimen, at "
            f"{len(set(knobs.tolist()))} settings of the stigmators; it takes 3 or more at different settings. Go to a "
            "place with specimen, or expose longer"
        )
    seen, weights = [], []
    for pair, estimate in used:
        _, a, b = calibration.to_blur(estimate.aberration, pair.pixel_um) / calibration.blur_per_um(pair.pixel_um)
        seen.append(complex(a, b))
        weights.append(1.0 / max(estimate.sigma.stig_x, 1e-3) ** 2)
    w = np.array(weights) / np.sum(weights)
    slope, left = _line(knobs, np.array(seen), w)
    if not _STIGMATOR_UM[0] < abs(slope) < _STIGMATOR_UM[1] or left > 0.5:
        mirrored = _line(np.conj(knobs), np.array(seen), w)[1] < 0.25
        raise FocusError(
            f"calibration of the column: the astigmatism does not follow the stigmators ({left:.0%} of it unexplained, "
            f"{abs(slope):.3g} µm for each unit); "
            + ("x and y are swapped, or one of them is reversed: correct the knobs' axes" if mirrored
               else "move them further, or check their axes")
        )  # fmt: skip
    shifts = [np.array(e.shift_px) * p.pixel_um / p.step_um for p, e in used]
    shift = np.median(shifts, axis=0)
    line = ColumnCalibration(
        calibration.convergence_mrad,
        abs(slope),
        math.degrees(math.atan2(slope.imag, slope.real)) / 2.0,
        (float(shift[0]), float(shift[1])),
    )
    fit = ColumnFit(np.zeros(3), _BEST_REACH, abs(slope), _PRIOR_SD, _PRIOR_ROTATION_DEG)
    for pair, estimate in used:
        fit.add(pair.knobs.vector(), _in_units_of(line, calibration, pair, estimate))
    return _Step(line, fit.belief(), fit.unfollowed())


def _line(knobs: NDArray[Any], seen: NDArray[Any], weights: NDArray[Any]) -> tuple[complex, float]:
    """Return the slope of ``seen`` over ``knobs`` (complex), and the share that it leaves unexplained."""
    knobs, seen = knobs - weights @ knobs, seen - weights @ seen
    slope = complex((weights * np.conj(knobs)) @ seen / float(weights @ np.abs(knobs) ** 2))
    left = float(weights @ np.abs(seen - slope * knobs) ** 2)
    return slope, left / max(float(weights @ np.abs(seen) ** 2), 1e-12)


def _in_units_of(
    new: ColumnCalibration, old: ColumnCalibration, pair: KnownPair, estimate: PairEstimate
) -> PairEstimate:
    """Return what a pair says in the stigmators' units of another calibration with the same angle."""
    aberration = new.from_blur(old.to_blur(estimate.aberration, pair.pixel_um), pair.pixel_um)
    scale = abs(old.stigmator_um) / new.stigmator_um
    sigma = estimate.sigma
    return replace(
        estimate, aberration=aberration,
        sigma=Aberration(sigma.defocus_um, sigma.stig_x * scale, sigma.stig_y * scale),
    )  # fmt: skip


def take_pairs(
    microscope: Microscope,
    offsets: Offsets,
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
    return list(taken_pairs(microscope, offsets, half_step_um=half_step_um, camera=camera, exposure_ms=exposure_ms))


def check_room(microscope: Microscope, offsets: Offsets, half_step_um: float = 5.0) -> None:
    """Check that pairs at these offsets from where the knobs stand stay within the limits.

    Raises
    ------
    LimitError
        When not; nothing has moved.
    """
    reach, half = np.array(offsets, dtype=float), np.array([half_step_um, 0.0, 0.0])
    low, high = reach.min(0) - half, reach.max(0) + half
    for name, down, up in zip(KNOBS, low, high, strict=True):
        knob = microscope.knob(name)
        here = knob.get()
        if here + down not in knob.limits or here + up not in knob.limits:
            raise LimitError(
                f"the pairs of frames need knob {name!r} from {here + down:.6g} to {here + up:.6g} {knob.unit}, its "
                f"limits are [{knob.limits.low:g}, {knob.limits.high:g}]; nothing has moved. Widen [knobs.{name}] "
                "limits if that is safe, bring the knob to their middle, or take smaller steps"
            )


def taken_pairs(
    microscope: Microscope,
    offsets: Offsets,
    *,
    half_step_um: float = 5.0,
    camera: str | None = None,
    exposure_ms: float | None = None,
) -> Generator[KnownPair, None, None]:
    """Yield each pair as it is taken; see `take_pairs`. Closing the iterator puts everything back, too."""
    pixel = microscope.pixel_um
    if pixel is None:
        raise FocusError("pairs of frames: the core knows no pixel size; define one in the configuration")
    knobs = [microscope.knob(name) for name in KNOBS]
    check_room(microscope, offsets, half_step_um)
    with microscope.preserved():
        start = np.array([knob.get() for knob in knobs])
        microscope.apply_imaging()
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

    Beyond the paper, patches are turned by quarters, which negates the stigmators' label, and their frames swapped,
    which negates all of it (`_symmetric`): a hundred pairs teach as much as several hundred, and what the labels are
    off by everywhere, as those of a search that stops a little beside focus are, cancels.

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

    from mm_autofocus.estimators.deepfocus_estimator import variant_of
    from mm_autofocus.networks.deepfocus import DeepFocus

    if len(pairs) < 10:
        raise FocusError(f"recalibration: {len(pairs)} labelled pairs are too few; take 10 or more (the paper: 100)")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    begin = time.monotonic()
    card, arrays = load_card(base, "deepfocus")
    if variant_of(card) != "stacked":
        raise FocusError(
            f"recalibration: the base is DeepFocus with {variant_of(card)}; only the network of Table 2 is supported, "
            "begin with that"
        )
    net = DeepFocus(card.parameters["edge"])
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    net.eval()
    scales = np.array(card.parameters.get("scales", (1.0, 1.0, 1.0)), dtype=np.float32)
    features, target, of_pair = _frozen_features(net, card, pairs, scales, seed)
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
    net: DeepFocus, card: SemCard, pairs: Sequence[KnownPair], scales: NDArray[np.float32], seed: int
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.intp]]:
    """Return features of augmented patches, their corrections over the scales, and which pair each is of."""
    import torch

    from mm_autofocus.estimators.deepfocus_estimator import patch_pair, standardised
    from mm_autofocus.estimators.frames import check_frame
    from mm_autofocus.training.sem_augmentation import Augmentation

    rng = np.random.default_rng([0xF0, seed])
    augment = Augmentation(probability=0.4, noise=0.1, gamma=0.15, contrast=0.15, brightness=0.1)
    features, target, of_pair = [], [], []
    binning, as_trained = int(card.parameters.get("binning", 1)), card.parameters.get("standardised", False)
    edge = net.edge * binning
    for i, pair in enumerate(pairs):
        for frame in (pair.under, pair.over):
            check_frame(frame, edge)
        height, width = pair.under.shape
        patches = []
        for _ in range(_PATCHES_OF_A_PAIR):
            y, x = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
            both = augment(patch_pair(pair.under, pair.over, (x, y), edge, binning), rng)
            both, signs = _symmetric(both, int(rng.integers(4)), bool(rng.random() < 0.5))
            patches.append(standardised(both) if as_trained else both)
            target.append(-signs * pair.knobs.vector() / scales)
        with torch.inference_mode():
            features.append(net.encoded(torch.from_numpy(np.stack(patches))))
        of_pair += [i] * _PATCHES_OF_A_PAIR
    return torch.cat(features).clone(), torch.tensor(np.array(target), dtype=torch.float32), np.array(of_pair)


def _symmetric(
    both: NDArray[np.float32], quarter_turns: int, swapped: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a pair turned and swapped, and the signs by which its label (wd, stig x, stig y) changes.

    Astigmatism turns by twice the angle, whatever the stigmators' axes are; and a probe (z, a, b) off images as one
    (-z, -a, -b) off, so that the frames of a pair in the other order are those of the opposite aberration.

    Parameters
    ----------
    both
        Shape (2, edge, edge).
    quarter_turns
        Counter-clockwise.
    swapped
        Second frame first.
    """
    signs = np.array([1.0, -1.0, -1.0]) if quarter_turns % 2 else np.ones(3)
    both = np.rot90(both, quarter_turns, (1, 2))
    return np.ascontiguousarray(both[::-1] if swapped else both), -signs if swapped else signs


def _error(net: DeepFocus, features: torch.Tensor, target: torch.Tensor, scales: NDArray[np.float32]) -> NDArray[Any]:
    """Return mean absolute errors (µm, a.u., a.u.)."""
    import torch

    with torch.inference_mode():
        return np.asarray((net.linear(features) - target).abs().mean(0).numpy() * scales, dtype=float)
