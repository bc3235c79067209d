"""Data-parallel training: the same loop alone, or as one of the processes that ``torchrun`` has started.

    torchrun --nproc-per-node 4 train.py

A loop asks `process_group` for its rank, wraps its model, takes its share of every batch, and only rank 0 writes. With
the mean as the loss and equal shares, the gradients are those of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError

if TYPE_CHECKING:
    import torch

TIMEOUT_S = 600.0
"""A process that waits longer than this for the others gives up."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Which of the processes this is.

    Attributes
    ----------
    rank, size
        Number of this process, and how many there are; 0 of 1 without ``torchrun``.
    device
        Where its model belongs: "cpu", or "cuda:N" with a GPU for each process of the machine.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def writes(self) -> bool:
        """True for the one process that writes weights and tells progress."""
        return self.rank == 0

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Move a model to the device; of several, all begin with the weights of rank 0 and share their gradients."""
        model = model.to(self.device)
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def share(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of a batch, as long as everybody else's.

        Parameters
        ----------
        indices
            The whole batch, shape (samples,), the same in every process (drawn from the same seed).

        Raises
        ------
        SettingsError
            When the batch has fewer samples than there are processes.
        """
        each = len(indices) // self.size
        if not each:
            raise SettingsError(f"a batch of {len(indices)} cannot be shared by {self.size} processes; make it larger")
        return indices[self.rank * each : (self.rank + 1) * each]

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes, for the validation loss that decides when to stop."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        total = torch.tensor([value], dtype=torch.float64 if self.device == "cpu" else torch.float32)
        total = total.to(self.device)
        dist.all_reduce(total)
        return float(total.item()) / self.size


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside a wrapped one: what is saved."""
    inner: torch.nn.Module = getattr(model, "module", model)
    return inner


@contextmanager
def process_group() -> Iterator[Rank]:
    """Join the processes of ``torchrun``, and leave them at the end; alone without it.

    NCCL where every process of the machine has a GPU of its own, else gloo.

    Raises
    ------
    SettingsError
        When the environment is torchrun's and the others do not answer.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Rank(device="cpu")
        return
    import torch
    import torch.distributed as dist

    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    try:
        dist.init_process_group("nccl" if gpus else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"process {rank} of {size} cannot join the others: {error}") from error
    try:
        if gpus:
            torch.cuda.set_device(local)
        yield Rank(rank, size, f"cuda:{local}" if gpus else "cpu")
    finally:
        dist.destroy_process_group()
