"""Data-parallel training: the same loop alone, or as one of the processes that ``torchrun`` has started.

    torchrun --nproc-per-node 4 -m mm_autofocus train sem --model spectral --out spectral.json

A command opens `process_group` and hands its `Rank` to the loop, which wraps its model and takes its share of every
batch; only rank 0 writes. With the mean as the loss and equal shares, the gradients are those of one process with the
whole batch: where a batch comes out of a set, all draw the same batch (and the same noise) and take a slice of it;
where samples are simulated as they are needed, each process draws from a seed of its own.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError

if TYPE_CHECKING:
    import torch

Batch = TypeVar("Batch", NDArray[Any], "torch.Tensor")
Value = TypeVar("Value")
Told = ParamSpec("Told")

TIMEOUT_S = 3600.0
"""A process that waits longer than this for the others gives up: the first may simulate for all of them. torchrun
itself ends the others at once when one fails."""

_SEEDS_APART = 1_000_003
"""Between the seeds of two processes, so that they do not meet those that a training gives to its own parts."""


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

    def seed(self, seed: int) -> int:
        """Return the seed of what this process draws for itself; that of the first, and alone, is the one given."""
        return seed + self.rank * _SEEDS_APART

    def part(self, batch: int) -> int:
        """Return how many samples of a batch are this process's, as many as everybody else's.

        Raises
        ------
        SettingsError
            When the batch has fewer samples than there are processes.
        """
        each = batch // self.size
        if not each:
            raise SettingsError(f"a batch of {batch} cannot be shared by {self.size} processes; start fewer of them")
        return each

    def share(self, batch: Batch) -> Batch:
        """Return this process's part of a batch.

        Parameters
        ----------
        batch
            The whole batch, or its indices, shape (samples, ...), the same in every process (from the same seed).

        Raises
        ------
        SettingsError
            When the batch has fewer samples than there are processes.
        """
        each = self.part(len(batch))
        return batch[self.rank * each : (self.rank + 1) * each]

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

    def elapsed(self, begin: float) -> float:
        """Return the seconds since ``begin`` (`time.monotonic`), the same in every process: all stop at once."""
        return self.mean(time.monotonic() - begin)

    def gathered(self, mine: Value) -> list[Value]:
        """Return what each of the processes has made, in every one of them, in their order."""
        if self.size == 1:
            return [mine]
        import torch.distributed as dist

        parts: list[Value | None] = [None] * self.size
        dist.all_gather_object(parts, mine)
        return parts  # type: ignore[return-value]

    def from_first(self, value: Value) -> Value:
        """Return the first process's value in all of them; a large one is sent once."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        held = [value if self.writes else None]
        dist.broadcast_object_list(held, 0)
        return held[0]  # type: ignore[return-value]

    def told(self, say: Callable[Told, None]) -> Callable[Told, None]:
        """Return a way to tell progress, which is silent in all processes but the first."""

        def nothing(*args: Told.args, **named: Told.kwargs) -> None:
            """Say nothing."""

        return say if self.writes else nothing

    def command(self, arguments: str) -> str:
        """Return the command line for a card: what gives the same weights again."""
        if self.size == 1:
            return f"mm-autofocus {arguments}"
        return f"torchrun --nproc-per-node {self.size} -m mm_autofocus {arguments}"

    def about(self) -> dict[str, Any]:
        """Return what a card says of processes and device; nothing for one process on the processor."""
        found: dict[str, Any] = {} if self.size == 1 else {"processes": self.size}
        return found | ({} if self.device == "cpu" else {"device": self.device.partition(":")[0]})


ALONE = Rank()
"""One process, on the processor."""


@contextmanager
def process_group() -> Iterator[Rank]:
    """Join the processes of ``torchrun``, and leave them at the end; alone without it.

    NCCL where every process of the machine has a GPU of its own, else gloo on the processor. Alone on the first GPU
    that is visible, if there is one.

    Raises
    ------
    SettingsError
        When torch is not installed, or the environment is torchrun's and the others do not answer.
    """
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        raise SettingsError("training needs torch: pip install 'mm-autofocus[train]'") from None
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Rank(device="cuda:0" if torch.cuda.is_available() else "cpu")
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", size))
    # DistributedDataParallel imports this with a group in place, which then stays as the default of many arguments: the
    # group's threads would run until Python ends, and now and then abort the process there.
    import_module("torch._dynamo")
    try:
        dist.init_process_group("nccl" if gpus else "gloo", timeout=timedelta(seconds=TIMEOUT_S))
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"process {rank} of {size} cannot join the others: {error}") from error
    try:
        if gpus:
            torch.cuda.set_device(local)
        yield Rank(rank, size, f"cuda:{local}" if gpus else "cpu")
    finally:
        gc.collect()  # wrapped models are circular, and hold the group
        dist.destroy_process_group()
