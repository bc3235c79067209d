"""Trains the paper's readout, and transfers it to a realigned instrument as the paper does."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.readouts.paper import PaperReadout, normalise
from mm_autofocus.training.distributed import ALONE, Rank

Array = NDArray[np.float64]
Small = NDArray[np.float32]
Progress = Callable[[int, float, float], None]
"""Called after each epoch with (epoch, training loss, validation loss), in normalised units."""

_BATCH = 64


def fit_paper(
    small: Small,
    defocus_um: Array,
    stack: NDArray[np.int64],
    range_um: float,
    shape: tuple[int, int],
    *,
    seconds: float,
    epochs: int = 10_000,
    learning_rate: float = 1e-4,
    start: PaperReadout | None = None,
    freeze_layers: int = 0,
    seed: int = 0,
    threads: int = 1,
    process: Rank = ALONE,
    progress: Progress | None = None,
) -> PaperReadout:
    """Train MobileNetV2: mean squared error, Adam, the weights of the best validation epoch.

    Targets are centred and divided by half their range; every tenth stack of the set validates.

    Parameters
    ----------
    small
        Images at 96 x 96 pixels, not yet normalised, shape (images, 96, 96).
    defocus_um
        Labels, µm, shape (images,).
    stack
        Number of the stack of each image.
    range_um, shape
        Half of the range, and (height, width) of the camera's images.
    seconds
        Time allowed; the paper's own training took 3 h on a GPU.
    epochs
        Most passes over the data.
    learning_rate
        Of Adam; 1e-4 in the paper, 1e-5 when transferring.
    start
        Begin with these weights.
    freeze_layers
        Freeze so many first layers, as Keras counts them; 100 when transferring.
    seed, threads
        Fix the result for a number of epochs.
    process
        Which of the processes of ``torchrun`` this is; they share every batch.
    progress
        Told after each epoch.
    """
    import torch

    from mm_autofocus.networks.mobilenet_v2 import MobileNetV2, freeze

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    net = MobileNetV2()
    if start is not None:
        net.load_state_dict(copy.deepcopy(start._net.state_dict()))
    frozen = freeze(net, freeze_layers)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = process.wrap(net)
    centre, half = float(defocus_um.mean()), float(np.ptp(defocus_um)) / 2
    target = torch.from_numpy(((defocus_um - centre) / half).astype(np.float32)).to(process.device)
    stacks = np.unique(stack)
    held = np.isin(stack, stacks[9::10] if len(stacks) >= 10 else stacks[-1:]) if len(stacks) > 1 else stack < 0
    train, validate = np.flatnonzero(~held), np.flatnonzero(held)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], learning_rate)
    rng = np.random.default_rng(seed)
    best, best_loss, begin = copy.deepcopy(net.state_dict()), float("inf"), time.monotonic()

    def batch(at: NDArray[np.int64]) -> Any:
        images = torch.from_numpy(normalise(small[at]))[:, None].contiguous(memory_format=torch.channels_last)
        return images.to(process.device)

    # an epoch is at most 2000 images, so that a short training too has several to choose the best from
    pending: list[int] = []
    for epoch in range(epochs):
        net.train()
        for layer in frozen:
            layer.eval()
        if len(pending) < _BATCH:
            pending = rng.permutation(train).tolist()
        chosen, pending = np.array(pending[:2000]), pending[2000:]
        losses = []
        for i in range(0, len(chosen) - len(chosen) % _BATCH or 1, _BATCH):
            at = process.share(chosen[i : i + _BATCH])
            loss = ((model(batch(at)) - target[at]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if process.elapsed(begin) > seconds:
                break
        net.eval()
        checked = validate if len(validate) else chosen
        checked = checked[:: max(len(checked) // 400, 1)]
        with torch.inference_mode():
            parts = [(net(batch(c)) - target[c]) ** 2 for c in np.array_split(checked, max(len(checked) // 128, 1))]
        loss_value = float(torch.cat(parts).mean())
        if loss_value < best_loss:
            best, best_loss = copy.deepcopy(net.state_dict()), loss_value
        if progress is not None:
            progress(epoch + 1, float(np.mean(losses)), loss_value)
        if process.elapsed(begin) > seconds:
            break
    arrays: dict[str, NDArray[np.generic]] = {name: value.cpu().contiguous().numpy() for name, value in best.items()}
    arrays |= {
        "centre": np.array([centre]), "half_range": np.array([half]), "sigma": np.array([best_loss**0.5 * half]),
    }  # fmt: skip
    return PaperReadout(arrays, range_um, shape)


def transfer_paper(
    base: PaperReadout, small: Small, defocus_um: Array, stack: NDArray[np.int64], *, seconds: float, epochs: int = 50,
    seed: int = 0,
) -> PaperReadout:  # fmt: skip
    """Transfer learning as in the paper: first 100 layers frozen, Adam 1e-5, 50 epochs.

    The paper takes 10 stacks, of which 9 train and one validates. See `fit_paper` for the parameters.
    """
    return fit_paper(
        small, defocus_um, stack, base.range_um, base.shape, seconds=seconds, epochs=epochs, learning_rate=1e-5,
        start=base, freeze_layers=100, seed=seed,
    )  # fmt: skip
