"""A tiny run of every training loop, and a digest of its weights.

    PYTHONPATH=. python tests/training/loops.py

prints the digests: the same before and after a change that must not change what a command trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def of_net(net: Any) -> Arrays:
    return {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}


def spectral(**given: Any) -> Arrays:
    from mm_autofocus.estimators.pair_spectra import ANGULAR, RADIAL
    from mm_autofocus.training.sem_spectral import SpectralSet, fit_spectral

    rng = np.random.default_rng(1)
    stats = rng.uniform(0.5, 1.5, (200, RADIAL, ANGULAR, 3)).astype(np.float32)
    covered = np.ones((200, RADIAL, ANGULAR), dtype=bool)
    beside, target = rng.normal(size=(200, 2)), rng.normal(size=(200, 4))
    samples = SpectralSet(stats, covered, beside.astype(np.float32), target.astype(np.float32))
    return of_net(fit_spectral(samples, epochs=2, seed=3, width=4, **given))


def own(seed: int, given: dict[str, Any]) -> int:
    """Return the seed that a command gives to what a process draws for itself."""
    return given["process"].seed(seed) if "process" in given else seed


def sampler(given: dict[str, Any]) -> Any:
    from mm_autofocus.training.sem_pairs import PairSampler

    return PairSampler([np.random.default_rng(2).integers(0, 256, (720, 720), dtype=np.uint8)], own(5, given))


def pair_net(**given: Any) -> Arrays:
    from mm_autofocus.training.sem_convolutional import fit_pair_net

    return of_net(fit_pair_net(sampler(given), pairs=12, edge=96, batch=6, seed=3, **given))


def deepfocus(**given: Any) -> Arrays:
    from mm_autofocus.training.sem_deepfocus import fit_deepfocus

    return of_net(fit_deepfocus(sampler(given), pairs=8, edge=128, batch=4, seed=3, **given))


def deepscore(**given: Any) -> Arrays:
    from mm_autofocus.training.sem_deepscore import fit_deepscore

    return of_net(fit_deepscore(sampler(given), images=8, batch=8, seed=3, **given))


def score_ours(**given: Any) -> Arrays:
    from mm_autofocus.training.score_training import FeatureSet, fit_blur_nets

    rng = np.random.default_rng(1)
    features, scores = rng.normal(size=(300, 12)).astype(np.float32), rng.uniform(0, 10, 300).astype(np.float32)
    train, held = FeatureSet(features[:260], scores[:260]), FeatureSet(features[260:], scores[260:])
    return fit_blur_nets(train, held, seed=3, epochs=2, **given)[0]


def score_aenet(**given: Any) -> Arrays:
    from mm_autofocus.training import score_training
    from mm_autofocus.training.score_data import VIEW, ScoreSampler, ScoreView

    view = ScoreView("tin", 0, 2000.0, 0.1786, np.random.default_rng(0).random(VIEW).astype(np.float16))
    sampler = ScoreSampler((view,), own(3, given))
    labels = np.random.default_rng(own(4, given))
    width, score_training.AENET_WIDTH = score_training.AENET_WIDTH, 2
    try:
        return score_training._fit_convolutional("aenet", sampler, 16, labels, 3, [], str, **given)[0]
    finally:
        score_training.AENET_WIDTH = width


def control(**given: Any) -> Arrays:
    from mm_autofocus.training.control_training import Curve, fit_acnet

    at = np.linspace(-1000.0, 1000.0, 1500)
    score = 10.0 * np.exp(-np.square(at / 300.0))
    values = np.stack([score, 0.2 + 0.02 * score, 5 + 0.1 * score], 1)
    curve = Curve("tin", 2000.0, 400.0, -1000.0, 1000.0, 0.0, values)
    return fit_acnet([curve], epochs=30, seed=3, **given)[0]


def laser(**given: Any) -> Arrays:
    from mm_autofocus.training.laser import fit_profile
    from mm_autofocus.training.laser_synthetic import Frames

    rng = np.random.default_rng(1)
    frames = Frames(rng.uniform(-10, 10, 600), rng.normal(size=(600, 296)).astype(np.float32), np.arange(600) // 20)
    readout = fit_profile(frames, 10.0, epochs=3, seed=3, weights=rng.uniform(1, 2, 600), **given)
    return {name: np.asarray(value) for name, value in readout.weights.items()}


def laser_paper(**given: Any) -> Arrays:
    from mm_autofocus.training.laser_paper import fit_paper

    rng = np.random.default_rng(1)
    small, stack = rng.uniform(0, 200, (160, 96, 96)).astype(np.float32), np.repeat(np.arange(4), 40)
    z = np.tile(np.linspace(-10, 10, 40), 4)
    readout = fit_paper(small, z, stack, 10.0, (192, 192), seconds=1e6, epochs=2, seed=3, freeze_layers=100, **given)
    return {name: np.asarray(value) for name, value in readout.weights.items()}


def tem(**given: Any) -> Arrays:
    from mm_autofocus.training.tem_training import train

    rng = np.random.default_rng(1)
    small, shifts = rng.random((68, 7, 16, 16)).astype(np.float32), rng.uniform(-200, 200, (68, 2))
    outcome = train(small[:60], shifts[:60], "final", test=(small[60:], shifts[60:]), epochs=2, seed=3, **given)
    return of_net(outcome.model._net)


FROM_SETS = (spectral, score_ours, laser, laser_paper, tem)
"""All processes draw the same batches, and share them."""

OF_THE_SHARE = (spectral, laser_paper, tem)
"""Those of them whose dropout or batch normalisation is of the share of a process, not of the whole batch."""

SIMULATED = (pair_net, deepfocus, deepscore, score_aenet, control)
"""Each process simulates what it learns from."""

LOOPS: dict[str, Callable[..., Arrays]] = {loop.__name__: loop for loop in (*FROM_SETS, *SIMULATED)}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return what changes with any bit of any weight."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":  # to see whether a change of the code changes weights
    import torch

    torch.set_num_threads(1)
    for name, loop in LOOPS.items():
        print(name, digest(loop()))
