"""The paper's way to adapt to another electron column: fine-tuning the end of its network on labelled pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.estimators.cards import SemCard, save_card
from mm_autofocus.training.known_pairs import KnownPair

if TYPE_CHECKING:
    import torch

    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator
    from mm_autofocus.networks.deepfocus import DeepFocus

Say = Callable[[str], None]

_PATCHES_OF_A_PAIR = 64
_VALIDATION = 0.2


def check_base(card: SemCard) -> None:
    """Check that a network can be fine-tuned.

    Raises
    ------
    SettingsError
        When it is not that of Table 2.
    """
    from mm_autofocus.estimators.deepfocus_estimator import variant_of

    if variant_of(card) != "stacked":
        raise SettingsError(
            f"recalibration: the base is DeepFocus with {variant_of(card)}; only the network of Table 2 is supported, "
            "begin with that"
        )


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

    The convolutions stay, so that what they make of each patch, in several places and mildly augmented, is computed
    once. Steps by AdamW on the L1 loss, the rate multiplied by 0.95 every 1000 steps at 50,000 of them (the
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

    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator
    from mm_autofocus.networks.deepfocus import DeepFocus

    if len(pairs) < 10:
        raise FocusError(f"recalibration: {len(pairs)} labelled pairs are too few; take 10 or more (the paper: 100)")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    begin = time.monotonic()
    estimator = DeepFocusEstimator.load(base)
    card, net, scales = estimator.card, estimator.net, estimator.scales.astype(np.float32)
    check_base(card)
    assert isinstance(net, DeepFocus)
    features, target, of_pair = _frozen_features(net, estimator, pairs, scales, seed)
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
    net: DeepFocus, base: DeepFocusEstimator, pairs: Sequence[KnownPair], scales: NDArray[np.float32], seed: int
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.intp]]:
    """Return features of augmented patches, their corrections over the scales, and which pair each is of."""
    import torch

    from mm_autofocus.estimators.deepfocus_estimator import as_trained, patch_pair
    from mm_autofocus.estimators.frames import check_frame
    from mm_autofocus.training.sem_augmentation import Augmentation

    rng = np.random.default_rng([0xF0, seed])
    augment = Augmentation(probability=0.4, noise=0.1, gamma=0.15, contrast=0.15, brightness=0.1)
    features, target, of_pair = [], [], []
    edge = net.edge * base.binning
    for i, pair in enumerate(pairs):
        for frame in (pair.under, pair.over):
            check_frame(frame, edge)
        height, width = pair.under.shape
        patches = []
        for _ in range(_PATCHES_OF_A_PAIR):
            y, x = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
            both = augment(patch_pair(pair.under, pair.over, (x, y), edge, base.binning), rng)
            both, signs = _symmetric(both, int(rng.integers(4)), bool(rng.random() < 0.5))
            patches.append(as_trained(base.card, both))
            target.append(-signs * pair.knobs.vector() / scales)
        with torch.inference_mode():
            features.append(net.encoded(torch.from_numpy(np.stack(patches))))
        of_pair += [i] * _PATCHES_OF_A_PAIR
    return torch.cat(features).clone(), torch.tensor(np.array(target), dtype=torch.float32), np.array(of_pair)


def _symmetric(
    both: NDArray[np.float32], quarter_turns: int, swapped: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a pair turned and swapped, and the signs by which its label (wd, stig x, stig y) changes.

    Astigmatism turns by twice the angle, whatever the stigmators' axes are. A round probe (z, a, b) off images as one
    (-z, -a, -b) off, but for spherical aberration, so that the frames of a pair in the other order are those of the
    opposite aberration.

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
