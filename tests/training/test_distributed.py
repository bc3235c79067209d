"""Every training loop alone, and shared by two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mm_autofocus.errors import SettingsError
from mm_autofocus.training.distributed import ALONE, Rank, process_group

torch = pytest.importorskip("torch")

from training.loops import FROM_SETS, LOOPS, OF_THE_SHARE, SIMULATED, Arrays, digest, sampler  # noqa: E402

SCRIPT = Path(__file__).with_name("distributed_loops.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def alone() -> dict[str, Arrays]:
    torch.set_num_threads(1)
    return {name: loop() for name, loop in LOOPS.items()}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Arrays]]:
    folder = tmp_path_factory.mktemp("together")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder)], env=ENVIRONMENT, timeout=100, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()[-4000:]
    return {name: [dict(np.load(folder / f"{name}-{rank}-of-2.npz")) for rank in (0, 1)] for name in LOOPS}


def learnt(arrays: Arrays) -> Arrays:
    """Leave out running statistics, which each process keeps of its own share, and what is measured with them."""
    return {n: v for n, v in arrays.items() if "running_" not in n and "num_batches" not in n and n != "sigma"}


@pytest.mark.parametrize("name", LOOPS)
def test_without_torchrun_a_loop_is_what_it_is_without_a_process_group(name: str, alone: dict[str, Arrays]) -> None:
    if torch.cuda.is_available():
        pytest.skip("alone with a GPU, it trains there")
    with process_group() as process:
        assert process == ALONE
        assert digest(LOOPS[name](process=process)) == digest(alone[name])


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback differs")
@pytest.mark.parametrize("name", LOOPS)
def test_two_gloo_processes_end_with_the_same_weights(name: str, together: dict[str, list[Arrays]]) -> None:
    first, second = (learnt(arrays) for arrays in together[name])
    assert first
    assert digest(first) == digest(second)


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback differs")
@pytest.mark.parametrize("name", [loop.__name__ for loop in FROM_SETS if loop not in OF_THE_SHARE])
def test_two_gloo_processes_learn_what_one_does(
    name: str, alone: dict[str, Arrays], together: dict[str, list[Arrays]]
) -> None:
    for key, value in alone[name].items():
        np.testing.assert_allclose(together[name][0][key], value, rtol=1e-3, atol=2e-4, err_msg=key)


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback differs")
@pytest.mark.parametrize("name", [loop.__name__ for loop in SIMULATED])
def test_two_gloo_processes_learn_from_more_than_the_draws_of_one(
    name: str, alone: dict[str, Arrays], together: dict[str, list[Arrays]]
) -> None:
    assert digest(learnt(together[name][0])) != digest(learnt(alone[name]))


def test_what_two_processes_simulate_is_apart() -> None:
    drawn = [sampler({"process": Rank(rank, 2)}).draw((96, 96), 2) for rank in (0, 1)]
    for one in drawn[0]:
        assert all(not np.array_equal(one.under, other.under) for other in drawn[1])
        assert all(not np.array_equal(one.aberration, other.aberration) for other in drawn[1])
    assert np.array_equal(drawn[0][0].under, sampler({}).draw((96, 96), 2)[0].under)  # the first draws as one alone


def test_alone_nothing_is_wrapped_or_shared() -> None:
    model = torch.nn.Linear(2, 1)
    assert ALONE.wrap(model) is model
    assert ALONE.share(np.arange(7)).tolist() == list(range(7))
    assert (ALONE.part(7), ALONE.seed(3), ALONE.mean(0.25), ALONE.gathered(4)) == (7, 3, 0.25, [4])
    assert ALONE.command("train sem") == "mm-autofocus train sem"
    assert ALONE.about() == {}


def test_shares_are_equal_and_apart() -> None:
    parts = [Rank(rank, 3).share(np.arange(11)).tolist() for rank in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [Rank(rank, 3).share(torch.arange(11)).tolist() for rank in range(3)] == parts
    assert len({Rank(rank, 3).seed(5) for rank in range(3)}) == 3
    with pytest.raises(SettingsError, match="a batch of 2 cannot be shared by 3"):
        Rank(0, 3).share(np.arange(2))


def test_only_the_first_process_tells_and_the_card_says_how_many_there_were() -> None:
    heard: list[str] = []
    for rank in (0, 1):
        Rank(rank, 2).told(heard.append)(f"from {rank}")
    assert heard == ["from 0"]
    assert Rank(0, 2, "cuda:0").command("train tem") == "torchrun --nproc-per-node 2 -m mm_autofocus train tem"
    assert Rank(0, 2, "cuda:0").about() == {"processes": 2, "device": "cuda"}


def test_alone_the_first_gpu_is_taken_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for there, device in ((True, "cuda:0"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with process_group() as process:
            assert process == Rank(0, 1, device)
