"""Data sets made in parts: the same on workers, here, and in the processes that train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_autofocus.errors import SettingsError
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.training import sem_pairs
from mm_autofocus.training.laser_synthetic import DaysPlan
from mm_autofocus.training.machines import HERE, Machines
from mm_autofocus.training.score_data import SEEN, VIEW, ScoreSampler, ScoreView, render_views
from mm_autofocus.training.score_parts import parts_of
from mm_autofocus.training.score_training import features_of_part
from mm_autofocus.training.sem_spectral import spectral_part

Arrays = list[np.ndarray]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as started:
        yield started.scheduler_address


def score_sampler() -> ScoreSampler:
    return ScoreSampler(
        [ScoreView("tin", 0, 2000.0, 0.1786, np.random.default_rng(0).random(VIEW).astype(np.float16))], 3
    )


def pairs(machines: Machines) -> Arrays:
    views = [np.random.default_rng(2).integers(0, 256, (400, 400), dtype=np.uint8)]
    return [s.stats for s in machines.make(spectral_part, views, [(seed, 2, sem_pairs.Ranges()) for seed in (1, 2, 3)])]


def views_of_pairs(machines: Machines) -> Arrays:
    return list(sem_pairs.render_views((SpecimenKind.TIN, SpecimenKind.GRID), 1, 1000, size=128, machines=machines))


def views_of_scores(machines: Machines) -> Arrays:
    return [view.image for view in render_views(SEEN[:1], 2, 20_000, machines=machines)]


def scores(machines: Machines) -> Arrays:
    sampler = score_sampler()
    parts = parts_of(sampler, 6, 2, repeats=2, labels=np.random.default_rng(4))
    made = machines.make(features_of_part, sampler.views, parts)
    return [array for each in made for array in (each.features, each.scores)]


def laser_days(machines: Machines) -> Arrays:
    made = machines.make(DaysPlan.simulated, None, [DaysPlan("long", 2, 3, 1), DaysPlan("short", 2, 3, 2)])
    return [array for each in made for array in (each.features, each.defocus)]


GENERATORS: dict[str, Callable[[Machines], Arrays]] = {
    make.__name__: make for make in (pairs, views_of_pairs, views_of_scores, scores, laser_days)
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_scheduler_s_workers_make_what_is_made_here(name: str, cluster: str) -> None:
    here, there = GENERATORS[name](HERE), GENERATORS[name](Machines(scheduler=cluster))
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        assert one.size > 0
        np.testing.assert_array_equal(one, other)


def test_two_workers_of_a_local_cluster_make_what_is_made_here() -> None:
    pytest.importorskip("distributed")
    for one, other in zip(scores(HERE), scores(Machines(workers=2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_workers_acquire_nights_as_they_are_acquired_here(cluster: str, tmp_path: Path) -> None:
    from mm_autofocus.cli.tem import simulate_nights
    from mm_autofocus.training.tem_dataset import load

    plan: dict[str, Any] = {
        "nights": 2, "points": 3, "revolutions": 0.0, "reach": 100.0, "wobble": 0.03, "count": 5, "seed": 1, "day": 4,
        "say": str,
    }  # fmt: skip
    for folder, machines in (("here", HERE), ("there", Machines(scheduler=cluster))):
        assert simulate_nights(tmp_path / folder, machines=machines, **plan)["taken"] == 6
    nights = [[load(tmp_path / folder / f"day{day}").images for folder in ("here", "there")] for day in (4, 5)]
    for here, there in nights:
        np.testing.assert_array_equal(here, there)
    assert not np.array_equal(nights[0][0], nights[1][0])


@pytest.mark.parametrize("each", [1, 4, 100])
def test_parts_together_are_what_one_sampler_draws(each: int) -> None:
    whole = list(score_sampler().samples(9, repeats=2))
    sampler = score_sampler()
    parts = parts_of(sampler, 9, each, repeats=2)
    assert not any(part.sampler.views for part in parts)  # they are sent once, not with every part
    for _ in range(2):  # a part can be made again
        made = [image for part in parts for image in part.images(sampler.views)]
        assert [m.score for m in made] == [w.score for w in whole]
        assert all(np.array_equal(m.image, w.image) for m, w in zip(made, whole, strict=True))


def test_what_a_part_raises_is_raised_and_progress_is_told(cluster: str) -> None:
    heard: list[tuple[int, int]] = []
    assert HERE.make(pow, 2, [1, 3], lambda done, of: heard.append((done, of))) == [2, 8]
    assert heard == [(1, 2), (2, 2)]
    for machines in (HERE, Machines(scheduler=cluster)):
        with pytest.raises(ZeroDivisionError):
            machines.make(divmod, 1, [1, 0])
    with pytest.raises(SettingsError, match="--workers -1"):
        Machines(workers=-1).make(pow, 2, [1])


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback differs")
def test_torchrun_starts_a_command_and_only_the_first_process_writes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mm_autofocus",
        "train", "laser", "--out", str(tmp_path / "m.json"), "--synthetic-days", "10", "--json",
    ]  # fmt: skip
    run = subprocess.run(command, env=environment, timeout=100, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert json.loads(run.stdout)["model"] == str(tmp_path / "m.json")
    card = json.loads((tmp_path / "m.json").read_text())
    assert card["command"].startswith("torchrun --nproc-per-node 2 -m mm_autofocus train laser --out m.json")
    assert card["measured"]["processes"] == 2
    assert run.stderr.count("epoch 40 of 40") == 2  # of the long and the short range, by one of the processes
