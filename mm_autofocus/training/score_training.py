"""Trains, measures and saves networks that score single images; what their cards' commands run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.blur_features import blur_features
from mm_autofocus.estimators.cards import Arrays, SemCard, save_card
from mm_autofocus.estimators.focus_score import (
    FRAME,
    LARGEST_SCORE,
    BlurScorer,
    FocusScorer,
    ScoreNetwork,
    load_scorer,
    normalised,
)
from mm_autofocus.training.abstract_textures import abstract_views
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.machines import HERE, Machines
from mm_autofocus.training.score_data import (
    SEEN,
    TEST_SEED,
    TRAINED,
    TRAINING_SEED,
    UNSEEN,
    UNTRAINED_PHYSICS,
    VALIDATION_SEED,
    Conditions,
    Say,
    ScoredImage,
    ScoreSampler,
    ScoreView,
    by_experts,
    render_views,
)
from mm_autofocus.training.score_parts import FramePart, parts_of
from mm_autofocus.training.score_variety import PLAIN, Variety

if TYPE_CHECKING:
    from torch import nn

VIEWS, VALIDATION_VIEWS = 80, 8
"""Views of each kind of specimen, for training and to scale by."""

SEEN_VIEWS, ABSTRACT_VIEWS = 160, 160
"""Views of each of the papers' kinds, and of no specimen, for the training of ours."""

IMAGES: dict[ScoreNetwork, int] = {"ours": 60_000, "aenet": 6000, "resnet18": 12_000}
"""Images that the networks that come along were trained on, each seen in two noises (ours) or once."""

SMALL_CROP, SMALL_SHARE = (120, 160), 0.8
"""ResNet-18, which pools over any size, sees parts of this size in this share of its training: four times as fast."""

MEMBERS, EPOCHS, BATCH = 3, 30, 128
"""Of ours: networks whose mean counts, passes over the features, features at once."""

_PRECISION: dict[ScoreNetwork, Literal["float32", "float16", "int8"]] = {
    "ours": "float32", "aenet": "float16", "resnet18": "int8",
}  # fmt: skip
"""How weights are stored: the 11 million of ResNet-18 as whole numbers, to be no burden to those who want them not."""

AENET_WIDTH = 8
"""Channels of the first stage of the AENet that comes along; the paper's 64 take days on graphics cards."""

_PART = 500
"""Draws that a worker turns into features at a time."""

_HOW = ("training_seconds", "cpu_seconds", "threads", "parameters", "loss", "processes", "device")
"""What a card says of its training, which measuring leaves as it is; CPU time is right on a shared machine too."""

_VALIDATION_IMAGES = 600
_FEATURE_NOISE = 0.05
_CLIP = 6.0

TEST_MAGNIFICATIONS = (500.0, 1000.0, 2000.0, 5000.0, 10_000.0)
"""Of the ResNet18 paper."""


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Blur features of many images: ``features`` of shape (n, features), labels ``scores`` of shape (n,)."""

    features: NDArray[np.float32]
    scores: NDArray[np.float32]


def feature_set(images: Sequence[ScoredImage]) -> FeatureSet:
    """Return the features of images that show more than one grey value."""
    shown = [i for i in images if i.image.min() < i.image.max()]
    features = np.stack([blur_features(i.image, i.pixel_um) for i in shown])
    return FeatureSet(features, np.array([i.score for i in shown], dtype=np.float32))


def features_of_part(views: Sequence[ScoreView], part: FramePart) -> FeatureSet:
    """Return the features of part of the training frames."""
    return feature_set(list(part.images(views)))


def train_score(
    network: ScoreNetwork,
    out: Path,
    *,
    images: int = 0,
    views: Sequence[ScoreView] | None = None,
    expert_noise: bool = False,
    seed: int = 0,
    measure: bool = True,
    machines: Machines = HERE,
    say: Say = print,
) -> SemCard:
    """Train one score network on simulated frames, measure it on specimens it has not seen, write card and weights.

    Parameters
    ----------
    network
        Which.
    out
        The card (.json); the weights go beside it.
    images
        How many to train on; 0 for those of the network that comes along.
    views
        Of training specimens; rendered when None.
    expert_noise
        Labels as people give them: whole numbers that scatter.
    seed
        Of everything drawn.
    measure
        False to leave the measurements out of the card.
    machines
        To simulate and to train on: workers render views and make the features of ours (the others learn from frames as
        they are simulated), processes share the batches; the first measures and writes.
    say
        Told about progress.

    Raises
    ------
    SettingsError
        When fewer than 64 images are asked for.
    """
    import torch

    torch.set_num_threads(1)
    process = machines.process
    say = process.told(say)
    begin, cpu = time.monotonic(), time.process_time()
    count = images or IMAGES[network]
    if count < 64:
        raise SettingsError(f"{count} images are too few to train a score network; take at least 64")
    varied = network == "ours"  # the papers' networks learn from their specimens, flipped and cropped, as they did
    if views is None:
        views = training_views(machines, say) if varied else render_views(
            SEEN, VIEWS, TRAINING_SEED, machines=machines, say=say
        )  # fmt: skip
    own = seed if network == "ours" else process.seed(seed)  # the others learn from frames as each process draws them
    labels = np.random.default_rng([0x5C3, own]) if expert_noise else None
    sampler = ScoreSampler(views, own, variety=Variety() if varied else PLAIN)
    loss: list[float] = []
    if network == "ours":
        arrays, parameters = _fit_ours(sampler, count, labels, seed, loss, say, machines)
    else:
        arrays, parameters = _fit_convolutional(network, sampler, count, labels, seed, loss, say, process)
    what = {
        "ours": "focus score of one image from its blur features, fully connected (ours)",
        "aenet": f"AENet, {AENET_WIDTH} instead of 64 channels at first; trained for minutes, the paper's for 2 days",
        "resnet18": "ResNet-18 with magnification; trained for minutes, the paper's for 100 epochs of 27,235 images",
    }[network]
    model = "score" if network == "ours" else network
    shown = ", ".join(TRAINED if varied else SEEN) + (" and pictures of no specimen, varied" if varied else "")
    experts = ", labels with the scatter of experts" if expert_noise else ""
    card = SemCard(
        model=model, what=what, weights=f"{out.stem}.safetensors",
        precision=_PRECISION[network], parameters=parameters,
        trained_on=f"{count} frames of {shown}, seeds from {TRAINING_SEED}, 500 to 30,000x{experts}",
        command=process.command(
            f"train sem-score --network {network} --out {out.name} --images {count} --seed {seed}"
        ),
        measured={
            "training_seconds": round(time.monotonic() - begin), "cpu_seconds": round(time.process_time() - cpu),
            "threads": 1, "parameters": _size(arrays), "loss": [round(value, 4) for value in loss], **process.about(),
        },
    )  # fmt: skip
    if not process.writes:
        return card
    save_card(out, card, arrays)
    return measure_card(out, network, say=say) if measure else card


def training_views(machines: Machines = HERE, say: Say = lambda _: None) -> list[ScoreView]:
    """Return the views that our network learns from: specimens, and pictures of none."""
    views = render_views(SEEN, SEEN_VIEWS, TRAINING_SEED, machines=machines, say=say)
    further = tuple(kind for kind in TRAINED if kind not in SEEN)
    views += render_views(further, VIEWS, TRAINING_SEED, machines=machines, say=say)
    say(f"{ABSTRACT_VIEWS} pictures of no specimen")
    return [*views, *abstract_views(ABSTRACT_VIEWS, TRAINING_SEED)]


def measure_card(path: Path, network: ScoreNetwork, *, views: int = 5, images: int = 30, say: Say = print) -> SemCard:
    """Measure a network on specimens, places and probes that it has not seen, and write that into its card.

    Parameters
    ----------
    path
        The card.
    network
        What it is of.
    views
        Specimens of each kind.
    images
        Frames of each.
    say
        Told about progress.
    """
    from mm_autofocus.estimators.cards import load_card

    card, arrays = load_card(path, "score" if network == "ours" else network)
    scorer = load_scorer(network, path)
    measured = {k: v for k, v in card.measured.items() if k in _HOW}
    kept = ("rmse", "correlation", "within_1", "count")
    for name, part in held_out_images(views=views, images=images, say=say).items():
        found = errors_of(scorer, part)
        measured[name] = {k: found[k] for k in kept}
        say(f"{name}: {measured[name]}")
    card = card.model_copy(update={"measured": measured})
    save_card(path, card, arrays)
    return card


def held_out_images(
    *, views: int = 5, images: int = 30, seed: int = 9, kinds: Sequence[str] = (*SEEN, *UNSEEN),
    say: Say = lambda _: None,
) -> dict[str, list[ScoredImage]]:  # fmt: skip
    """Return test frames by what is tested: each seen sample, each unseen one, and probes that were not trained on."""
    parts: dict[str, list[ScoredImage]] = {}
    for kind in kinds:
        say(f"test frames of {kind}")
        magnifications = None if kind == "particles" else TEST_MAGNIFICATIONS
        drawn = render_views((kind,), views, TEST_SEED, magnifications=magnifications, fine=0.0)
        name = kind if kind in SEEN else f"{kind}, unseen"
        for title, conditions in ((name, Conditions()), (f"{name}, untrained probes", UNTRAINED_PHYSICS)):
            frames = images if conditions != UNTRAINED_PHYSICS else max(2, images // 6)
            sampler = ScoreSampler(drawn, seed, conditions, empty=0.0)
            parts[title] = [image for view in drawn for _ in range(frames) for image in sampler.of(view)]
    return parts


def errors_of(scorer: FocusScorer, images: Sequence[ScoredImage]) -> dict[str, Any]:
    """Return how far scores are from labels: rmse, correlation, share within 1, the paper's precision, all pairs."""
    readings = [scorer.read(image.image, image.pixel_um) for image in images]
    scores = np.array([reading.score for reading in readings])
    return compare(scores, images) | {"sigma": [reading.sigma for reading in readings]}


def compare(scores: NDArray[np.float64], images: Sequence[ScoredImage]) -> dict[str, Any]:
    """Return the same for scores that are already there."""
    labels = np.array([image.score for image in images])
    error = scores - labels
    varied = len(images) > 2 and scores.std() > 0 and labels.std() > 0
    return {
        "count": len(images),
        "rmse": round(float(np.sqrt(np.mean(error**2))), 4),
        "correlation": round(float(np.corrcoef(scores, labels)[0, 1]), 4) if varied else math.nan,
        "within_1": round(float(np.mean(np.abs(error) <= 1.0)), 4),
        "precision": round(float(np.mean(1.0 - np.abs(error) / LARGEST_SCORE)), 4),
        "labels": [round(float(v), 3) for v in labels],
        "scores": [round(float(v), 3) for v in scores],
        "magnifications": [round(image.magnification) for image in images],
    }


# ---------------------------------------------------------------------- ours
def _fit_ours(
    sampler: ScoreSampler,
    count: int,
    labels: np.random.Generator | None,
    seed: int,
    loss: list[float],
    say: Say,
    machines: Machines = HERE,
) -> tuple[Arrays, dict[str, Any]]:
    begin = time.monotonic()
    parts = parts_of(sampler, -(-count // 2), _PART, repeats=2, labels=labels)
    images = machines.make(
        features_of_part, sampler.views, parts, lambda i, n: say(f"{i} of {n} parts, {time.monotonic() - begin:.0f} s")
    )
    train = FeatureSet(np.concatenate([i.features for i in images]), np.concatenate([i.scores for i in images]))
    validation_views = sampler.views
    if count > 1000:
        validation_views = render_views(TRAINED, VALIDATION_VIEWS, VALIDATION_SEED, machines=machines)
    held = feature_set(list(ScoreSampler(validation_views, seed + 1).samples(min(_VALIDATION_IMAGES, count))))
    return fit_blur_nets(train, held, seed=seed, loss=loss, process=machines.process, say=say)


def fit_blur_nets(
    train: FeatureSet, held: FeatureSet, *, seed: int = 0, epochs: int = EPOCHS, loss: list[float] | None = None,
    process: Rank = ALONE, say: Say = lambda _: None,
) -> tuple[Arrays, dict[str, Any]]:  # fmt: skip
    """Fit the members on features, and scale their standard deviations by held-out ones.

    Returns
    -------
    tuple
        Arrays and parameters of a `mm_autofocus.estimators.focus_score.BlurScorer`.
    """
    import torch

    from mm_autofocus.networks.focus_score import BlurScoreNet

    mean, scale = train.features.mean(0), train.features.std(0) + 1e-3
    x = torch.from_numpy(np.clip((train.features - mean) / scale, -_CLIP, _CLIP).astype(np.float32))
    y = torch.from_numpy(train.scores)
    batch = min(BATCH, len(x))
    arrays: Arrays = {"mean": mean, "scale": scale}
    for member in range(MEMBERS):
        torch.manual_seed(1000 * seed + member)
        rng = torch.Generator().manual_seed(1000 * seed + member)
        net = BlurScoreNet(x.shape[1])
        model = process.wrap(net)
        optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=3e-3)
        steps = epochs * (len(x) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, max(steps, 2))
        for _ in range(epochs):
            total = 0.0
            order = torch.randperm(len(x), generator=rng)[: len(x) // batch * batch].view(-1, batch)
            for part in order:
                noisy = x[part] + _FEATURE_NOISE * torch.randn(batch, x.shape[1], generator=rng)
                out = model(process.share(noisy).to(process.device))
                away, log_scale = out[:, 0] - process.share(y[part]).to(process.device), out[:, 1].clamp(-6.0, 2.0)
                laplace = (away.abs() / log_scale.exp() + log_scale).mean()
                value = laplace + 0.15 * (away**2).mean()
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                schedule.step()
                total += float((away.detach() ** 2).mean())
            if loss is not None and member == 0:
                loss.append(total / len(order))
        say(f"network {member + 1} of {MEMBERS}: mean square error {total / len(order):.3f}")
        arrays |= {f"{member}.{name}": value.numpy().copy() for name, value in net.cpu().state_dict().items()}
    parameters: dict[str, Any] = {"members": MEMBERS}
    unscaled = BlurScorer(SemCard(model="score", what="", weights="", parameters=parameters), arrays)
    scores, sigmas = unscaled.scores(held.features)
    parameters["sigma_scale"] = round(float(np.sqrt(np.mean(np.square(scores - held.scores) / sigmas**2))), 3)
    say(f"held-out specimens: rmse {np.sqrt(np.mean(np.square(scores - held.scores))):.3f}")
    return arrays, parameters


# ---------------------------------------------------------------------- the papers'
def _fit_convolutional(
    network: ScoreNetwork,
    sampler: ScoreSampler,
    count: int,
    labels: np.random.Generator | None,
    seed: int,
    loss: list[float],
    say: Say,
    process: Rank = ALONE,
) -> tuple[Arrays, dict[str, Any]]:
    import torch

    from mm_autofocus.networks.aenet import LARGEST, AENet
    from mm_autofocus.networks.focus_score import ResNet18Score

    torch.manual_seed(seed)
    parameters: dict[str, Any] = {"width": AENET_WIDTH} if network == "aenet" else {}
    net: nn.Module = AENet(AENET_WIDTH) if network == "aenet" else ResNet18Score()
    # A fifth faster on a CPU; torch's own types do not know that a module takes it.
    net = cast("nn.Module", cast("Any", net).to(memory_format=torch.channels_last))
    model = process.wrap(net)
    crops = np.random.default_rng([0x5C5, seed])
    # The papers': Adam at 0.01 in batches of 90, and SGD at 2e-4 one by one. In minutes neither gets anywhere.
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    batch = 8
    each = process.part(batch)
    steps = max(count // batch, 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    top = LARGEST if network == "aenet" else LARGEST_SCORE
    images = sampler.samples(steps * each)
    begin = time.monotonic()
    recent: list[float] = []
    net.train()
    for step in range(steps):
        part = [next(images) for _ in range(each)]
        x = torch.from_numpy(np.stack([normalised(i.image)[None] for i in part]))
        if network == "resnet18" and step < SMALL_SHARE * steps:
            top_left = [int(crops.integers(size - small + 1)) for size, small in zip(FRAME, SMALL_CROP, strict=True)]
            x = x[:, :, top_left[0] :, top_left[1] :][:, :, : SMALL_CROP[0], : SMALL_CROP[1]]
        x = x.contiguous(memory_format=torch.channels_last)
        magnification = torch.tensor([i.magnification for i in part], dtype=torch.float32)
        given = [i.score if labels is None else by_experts(i.score, labels) for i in part]
        y = torch.tensor([min(value, top) for value in given], dtype=torch.float32)
        x, magnification, y = (t.to(process.device) for t in (x, magnification, y))
        value = ((model(x, magnification) - y) ** 2).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        recent.append(float(value.detach()))
        if len(recent) == max(1, steps // 30):
            loss.append(float(np.mean(recent)))
            recent = []
            say(f"{(step + 1) * batch} of {count} images: loss {loss[-1]:.3f}, {time.monotonic() - begin:.0f} s")
    state = net.cpu().state_dict()
    arrays: Arrays = {name: np.array(value.detach().numpy(), order="C") for name, value in state.items()}
    return arrays, parameters


def _size(arrays: Arrays) -> int:
    """Return how many weights there are, without running statistics."""
    return sum(v.size for name, v in arrays.items() if name.endswith(("weight", "bias")))
