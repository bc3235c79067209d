from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_autofocus.errors import SettingsError
from mm_autofocus.training.distributed import Rank, process_group

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("distributed_line.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def trained(folder: Path, processes: int) -> list[dict[str, Any]]:
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(folder)]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=100, capture_output=True)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback differs")
def test_two_gloo_processes_learn_what_one_does(tmp_path: Path) -> None:
    (alone,) = trained(tmp_path / "one", 1)
    first, second = trained(tmp_path / "two", 2)
    assert (first["size"], second["size"]) == (2, 2)
    assert [first["writes"], second["writes"]] == [True, False]
    assert first["weights"] == second["weights"]
    np.testing.assert_allclose(first["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_alone_nothing_is_wrapped_or_shared() -> None:
    import torch

    with process_group() as process:
        model = torch.nn.Linear(2, 1)
        assert process.wrap(model) is model
        assert process.share(np.arange(7)).tolist() == list(range(7))
        assert process.mean(0.25) == 0.25


def test_shares_are_equal_and_apart() -> None:
    parts = [Rank(rank, 3).share(np.arange(11)).tolist() for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(SettingsError, match="a batch of 2 cannot be shared by 3"):
        Rank(0, 3).share(np.arange(2))
