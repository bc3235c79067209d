"""Trains, measures and saves each of the electron-image models that come along; what their cards' commands run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.cards import Arrays, Model, SemCard, Variant, save_card
from mm_autofocus.training.machines import HERE, Machines
from mm_autofocus.training.sem_evaluation import Conditions, evaluate, score_order
from mm_autofocus.training.sem_pairs import (
    TEST_KINDS,
    TEST_SEED,
    TRAINING_KINDS,
    TRAINING_SEED,
    VALIDATION_SEED,
    PairSampler,
    render_views,
)

if TYPE_CHECKING:
    from torch import nn

Say = Callable[[str], None]
Views = Sequence[NDArray[np.uint8]]

MINUTES: dict[Model, float] = {"spectral": 42.0, "convolutional": 24.0, "deepfocus": 50.0, "deepscore": 16.0}
"""What the models that come along were trained for: nominal minutes, one thread of a 2.5 GHz server processor."""

_SPECTRAL_CHUNK, _SPECTRAL_MINUTES, _SPECTRAL_EPOCHS = 5000, 6.0, 16
_PAIRS_PER_MINUTE: dict[Model, float] = {"convolutional": 1500.0, "deepfocus": 3600.0, "deepscore": 190.0}
_VARIANT_PAIRS_PER_MINUTE: dict[Variant, float] = {
    "stacked": _PAIRS_PER_MINUTE["deepfocus"], "patch-scores": 1000.0, "pixel-scores": 300.0,
    "efficientnet-b0": 700.0, "resnet-50": 350.0,
}  # fmt: skip
VARIANT_MINUTES = 25.0
"""What the variants of DeepFocus that come along were trained for."""
_CROPS_PER_MINUTE = 1400.0
"""Simulated and learnt from in a minute of one undisturbed thread."""
_VIEWS = 12
_CALIBRATION_PAIRS = 300

_HOW = ("training_seconds", "threads", "processes", "device")
"""What a card says of its training, which measuring leaves as it is."""

_WHAT: dict[Model, str] = {
    "spectral": "two spectral pair networks: defocus and astigmatism from the log-polar spectra of two frames (ours)",
    "convolutional": "convolutional pair network: the same from pixels, patch by patch (ours)",
    "deepfocus": "DeepFocus, Table 2, 128 x 128 of frames binned 4 x 4; trained for minutes, the paper's for 44 hours",
    "deepscore": "DeepScore of Table 3, single images of 512; trained for minutes, the paper's far longer",
}


def train_model(
    model: Model,
    out: Path,
    *,
    variant: Variant = "stacked",
    minutes: float = 0.0,
    seed: int = 0,
    measure: bool = True,
    views: Views | None = None,
    machines: Machines = HERE,
    say: Say = print,
) -> SemCard:
    """Train one model on simulated pairs, measure it on specimens that it has not seen, and write card and weights.

    The same model, minutes and seed give the same weights on one thread of one kind of processor: ``minutes`` are
    turned into a number of pairs, not measured.

    Parameters
    ----------
    model
        Which.
    out
        The card (.json); the weights go beside it.
    variant
        Of DeepFocus; the other models have none.
    minutes
        Nominal; 0 for those of the model that comes along.
    seed
        Of everything drawn.
    measure
        False to leave the measurements out of the card.
    views
        Of training specimens; rendered when None.
    machines
        To simulate and to train on: workers make the data set of the spectral network (the others learn from pairs as
        they are simulated), processes share the batches; the first measures and writes.
    say
        Told about progress.

    Raises
    ------
    SettingsError
        For a variant that there is not, or that is not of this model.
    """
    import torch

    if variant not in _VARIANT_PAIRS_PER_MINUTE or (variant != "stacked" and model != "deepfocus"):
        raise SettingsError(
            f"training: there is no variant {variant!r} of {model}; of deepfocus there are "
            f"{', '.join(_VARIANT_PAIRS_PER_MINUTE)}"
        )
    torch.set_num_threads(1)
    process = machines.process
    say = process.told(say)
    begin = time.monotonic()
    spent = minutes or (MINUTES[model] if variant == "stacked" else VARIANT_MINUTES)
    if views is None:
        say(f"rendering {_VIEWS * len(TRAINING_KINDS)} views of training specimens")
        views = render_views(TRAINING_KINDS, _VIEWS, TRAINING_SEED, machines=machines)
    trainer: dict[Model, Callable[[Views, float, int, Machines, Say], Trained]] = {
        "spectral": _spectral, "convolutional": _convolutional, "deepfocus": partial(_deepfocus, variant=variant),
        "deepscore": _deepscore,
    }  # fmt: skip
    arrays, parameters, trained_on = trainer[model](views, spent, seed, machines, say)
    which = "" if variant == "stacked" else f" --variant {variant}"
    seconds = time.monotonic() - begin
    card = SemCard(
        model=model, what=_VARIANT[variant] if which else _WHAT[model], weights=f"{out.stem}.safetensors",
        precision=_precision(model, variant), parameters=parameters,
        trained_on=f"{trained_on}; specimens {', '.join(TRAINING_KINDS)}, seeds from {TRAINING_SEED}",
        command=process.command(f"train sem --model {model}{which} --out {out.name} --minutes {spent:g} --seed {seed}"),
        measured={"training_seconds": round(seconds), "threads": 1, **process.about()},
    )  # fmt: skip
    if not process.writes:
        return card
    save_card(out, card, arrays)
    if measure:
        card = measure_card(out, say=say)
    return card


def _precision(model: Model, variant: Variant) -> Literal["float32", "float16", "int8"]:
    if model == "spectral":
        return "float32"
    return "int8" if variant in ("efficientnet-b0", "resnet-50") else "float16"  # millions of parameters


def measure_card(path: Path, *, pairs: int = 64, say: Say = print) -> SemCard:
    """Measure a model, adjust how sure it says it is by validation specimens, and write both into its card.

    Parameters
    ----------
    path
        The card.
    pairs
        Pairs for each condition.
    say
        Told about progress.
    """
    from mm_autofocus.estimators.cards import load_card

    card = SemCard.model_validate_json(path.read_text(encoding="utf-8"))
    _, arrays = load_card(path, card.model)
    validation = render_views(TRAINING_KINDS, 2, VALIDATION_SEED)
    test = render_views(TEST_KINDS, 2, TEST_SEED)
    measured: dict[str, Any] = {k: v for k, v in card.measured.items() if k in _HOW}
    if card.model == "deepscore":
        measured |= {"validation": score_order(_load(path, card.model), validation, seed=1)}
        measured |= {"unseen": score_order(_load(path, card.model), test, seed=2)}
    else:
        first = evaluate(_load(path, card.model), validation, pairs=pairs, seed=1)
        card = card.model_copy(update={"parameters": _adjusted(card, first)})
        save_card(path, card, arrays)
        estimator = _load(path, card.model)
        measured["validation, 20 e-/px"] = first
        for name, conditions in measured_conditions().items():
            measured[name] = evaluate(estimator, test, conditions, pairs=pairs, seed=2)
            say(f"{name}: {measured[name]}")
    card = card.model_copy(update={"measured": measured})
    save_card(path, card, arrays)
    return card


def measured_conditions() -> dict[str, Conditions]:
    """Return under which conditions pair estimators are measured on kinds of specimens that training never saw."""
    from mm_autofocus.simulation.electron_probe import ProbeFamily

    base = Conditions()
    return {
        "unseen, 84 e-/px": replace(base, electrons=84.0),
        "unseen, 20 e-/px": base,
        "unseen, 5 e-/px": replace(base, electrons=5.0),
        "unseen, angle 20 % below the calibration": replace(base, convergence=0.8),
        "unseen, angle 20 % above, soft probe": replace(base, convergence=1.2, softness=0.7),
        "unseen, polygonal probe": replace(base, family=ProbeFamily.POLYGON),
        "unseen, wave-optical probe": replace(base, family=ProbeFamily.WAVE),
        "unseen, one 512 x 512": replace(base, shape=(512, 512)),
    }


def _adjusted(card: SemCard, found: dict[str, Any]) -> dict[str, Any]:
    """Return the card's parameters with the scales of its uncertainty, from a validation run."""
    parameters = dict(card.parameters)
    if card.model == "deepfocus":
        return parameters | {"errors": [found["wd_um"], found["stig_au"], found["stig_au"]]}
    for key, name in (("scale_z", "wd_scale"), ("scale_ab", "stig_scale")):
        parameters[key] = round(parameters.get(key, 1.0) * found[name], 3)
    return parameters


def _load(path: Path, model: Model) -> Any:
    from mm_autofocus.estimators.convolutional import ConvolutionalEstimator
    from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator
    from mm_autofocus.estimators.deepscore_estimator import DeepScoreEstimator
    from mm_autofocus.estimators.spectral import SpectralEstimator

    loaders = {
        "spectral": SpectralEstimator, "convolutional": ConvolutionalEstimator, "deepfocus": DeepFocusEstimator,
        "deepscore": DeepScoreEstimator,
    }  # fmt: skip
    return loaders[model].load(path)  # type: ignore[attr-defined]


_VARIANT: dict[Variant, str] = {
    "patch-scores": "DeepFocus with patch scores (figure 3a-f), 128 x 128 of frames binned 4 x 4",
    "pixel-scores": "DeepFocus with pixel scores, a U-Net (figure 3g, h), 128 x 128 of frames binned 4 x 4",
    "efficientnet-b0": "EfficientNet-B0 on pairs (the paper's comparison), 128 x 128 of frames binned 4 x 4",
    "resnet-50": "ResNet-50 on pairs (the paper's comparison), 128 x 128 of frames binned 4 x 4",
}

Trained = tuple[Arrays, dict[str, Any], str]


def _spectral(views: Views, minutes: float, seed: int, machines: Machines, say: Say) -> Trained:
    """Train two networks whose answers are averaged: on specimens as they are, and, the longer, with directions."""
    from mm_autofocus.training.sem_pairs import Ranges
    from mm_autofocus.training.sem_spectral import DIRECTED, fit_spectral, join_sets, spectral_part

    chunks = max(2, round(minutes / _SPECTRAL_MINUTES))
    pairs = round(_SPECTRAL_CHUNK * min(1.0, minutes / (2 * _SPECTRAL_MINUTES)))
    plain = max(1, chunks * 2 // 7)
    arrays: Arrays = {}
    for member, (count, ranges) in enumerate(((plain, Ranges()), (chunks - plain, DIRECTED))):
        parts = [(10 * seed + 1 + i, pairs, ranges) for i in range(count)]
        tell = partial(_tell_parts, say, f"network {member + 1}", pairs)
        samples = join_sets(machines.make(spectral_part, views, parts, tell))
        net = fit_spectral(samples, epochs=_SPECTRAL_EPOCHS, seed=seed, process=machines.process, say=say)
        arrays |= {f"{member}.{name}": value for name, value in _arrays(net).items()}
    return arrays, {}, (
        f"{plain * pairs} simulated pairs, and for a second network {(chunks - plain) * pairs} of specimens of which "
        f"half were given a direction; {_SPECTRAL_EPOCHS} epochs of their spectra"
    )


def _tell_parts(say: Say, who: str, pairs: int, done: int, of: int) -> None:
    say(f"{who}: {done} of {of} parts of {pairs} simulated pairs")


def _convolutional(views: Views, minutes: float, seed: int, machines: Machines, say: Say) -> Trained:
    from mm_autofocus.training.sem_convolutional import fit_pair_net

    pairs = round(_PAIRS_PER_MINUTE["convolutional"] * minutes)
    process = machines.process
    sampler = PairSampler(views, process.seed(10 * seed + 5))
    net = fit_pair_net(sampler, pairs=pairs, seed=seed, process=process, say=say)
    return _arrays(net), {}, f"{pairs} simulated pairs of 256 x 256, each seen once"


def _deepfocus(views: Views, minutes: float, seed: int, machines: Machines, say: Say, *, variant: Variant) -> Trained:
    from mm_autofocus.training.sem_deepfocus import SCALES, fit_deepfocus

    pairs = round(_VARIANT_PAIRS_PER_MINUTE[variant] * minutes)
    process = machines.process
    sampler = PairSampler(views, process.seed(10 * seed + 6))
    net = fit_deepfocus(
        sampler, pairs=pairs, edge=128, binning=4, variant=variant, seed=seed, process=process, say=say
    )
    parameters = {"variant": variant, "edge": 128, "binning": 4, "standardised": True, "scales": list(SCALES),
                  "step_um": 10.0, "pixel_um": 0.01,
                  "convergence_mrad": 8.7, "stigmator_um": 6.0, "stigmator_rotation_deg": 3.0}  # fmt: skip
    trained_on = f"{pairs} simulated pairs, 512 x 512 as 128 x 128, each seen once, ±5 µm at 8.7 mrad, 10 nm (setup A)"
    return _arrays(net), parameters, trained_on


def _deepscore(views: Views, minutes: float, seed: int, machines: Machines, say: Say) -> Trained:
    from mm_autofocus.training.sem_deepscore import CROP, SCORE_SCALES, fit_deepscore

    images = round(_PAIRS_PER_MINUTE["deepscore"] * minutes)
    process = machines.process
    sampler = PairSampler(views, process.seed(10 * seed + 7))
    crops = round(_CROPS_PER_MINUTE * minutes)
    net = fit_deepscore(sampler, images=images, crops=crops, seed=seed, process=process, say=say)
    parameters = {"scales": list(SCORE_SCALES), "standardised": True}
    return _arrays(net), parameters, (
        f"{crops} simulated crops of {CROP} x {CROP}, then {images} frames of 512 x 512, at 8.7 mrad and 10 nm"
    )


def _arrays(net: nn.Module) -> Arrays:
    return {name: value.detach().contiguous().numpy().copy() for name, value in net.state_dict().items()}
