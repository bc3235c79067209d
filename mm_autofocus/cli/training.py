"""What every ``train`` command shares: the options for workers, and where a training runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mm_autofocus.cli.output import errors

if TYPE_CHECKING:
    from mm_autofocus.training.machines import Machines

EPILOG = (
    "Trains on the first GPU if there is one, else on a processor. To share every batch between N processes, with a "
    "GPU each where there are as many: torchrun --nproc-per-node N -m mm_autofocus train ... The data set is the same "
    "wherever it is made; workers elsewhere need mm-autofocus, and must see the folders that are named here."
)
"""Ends the help of every command that trains."""


@contextmanager
def machines(as_json: bool, workers: int, scheduler: str) -> Iterator[Machines]:
    """Join the processes of ``torchrun``, and turn expected failures into one line as `errors` does."""
    with errors(as_json):
        from mm_autofocus.training.distributed import process_group
        from mm_autofocus.training.machines import Machines

        with process_group() as process:
            yield Machines(process, workers, scheduler)
