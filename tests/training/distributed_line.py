"""Trains a small network on a line, alone or under torchrun; writes what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from mm_autofocus.training.distributed import process_group, unwrapped


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group() as process:
        torch.manual_seed(process.rank)  # every process starts with other weights: rank 0's must win
        model = process.wrap(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        rng = np.random.default_rng(5)
        x = rng.normal(size=(64, 3)).astype(np.float32)
        y = x @ np.array([[1.0], [-2.0], [0.5]], dtype=np.float32)
        loss = 0.0
        for _ in range(25):
            part = process.share(rng.permutation(64)[:32])
            inputs, wanted = torch.from_numpy(x[part]), torch.from_numpy(y[part])
            value = torch.nn.functional.mse_loss(model(inputs), wanted)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            loss = process.mean(float(value.item()))
        weights = torch.cat([p.detach().ravel() for p in unwrapped(model).parameters()]).tolist()
        (folder / f"rank{process.rank}.json").write_text(
            json.dumps({"weights": weights, "loss": loss, "size": process.size, "writes": process.writes})
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
