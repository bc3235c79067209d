"""Runs every training loop as one of the processes of torchrun; writes the weights of each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from loops import LOOPS

from mm_autofocus.training.distributed import process_group
from mm_autofocus.training.machines import Machines


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group() as process:
        for name, loop in LOOPS.items():
            np.savez(folder / f"{name}-{process.rank}-of-{process.size}.npz", **loop(process=process))
        assert process.gathered(process.rank) == list(range(process.size))
        assert process.from_first(process.rank) == 0
        assert Machines(process).make(pow, 2, range(5)) == [1, 2, 4, 8, 16]  # each makes some, all have all
    # the group is gone with its threads, which could abort the process when Python ends
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    assert process.size == 1 or not [name for name in names if "gloo" in name], names


if __name__ == "__main__":
    main(Path(sys.argv[1]))
