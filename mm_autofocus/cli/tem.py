"""What ``calibrate tem``, ``train tem`` and ``bench tem`` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mm_autofocus.errors import SettingsError
from mm_autofocus.training.machines import HERE, Machines

Say = Callable[[str], None]


def _progress() -> Progress:
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def calibrate(
    dataset: Path, *, config: Path | None, settings: Path | None, points: int, revolutions: float, reach: float,
    wobble: float, count: int, seed: int, day: int, adapters: str, say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Acquire a dataset of wobbles and fit the response to it; write ``response.json`` beside the images.

    Raises
    ------
    SettingsError
        When the folder holds another dataset, or the wobbles cannot be read.
    LimitError
        When the spiral leaves the limits; nothing has moved.
    """
    from mm_autofocus.estimators.response import fit_response
    from mm_autofocus.estimators.wobble_alignment import estimate_wobble
    from mm_autofocus.training.tem_dataset import Spiral, load

    turns = revolutions or max(points / 21.0, 1.0)
    spiral = Spiral(points=points, revolutions=turns, reach=reach)
    say(
        f"{points} positions up to {reach:g} steps from here; the longest way between two is {spiral.proximity:.0f} "
        f"steps, no place is farther than {spiral.coverage:.0f} from one"
    )
    with _progress() as bar:
        task = bar.add_task("wobbles", total=points)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if config is None:
            taken = _simulated(dataset, spiral, wobble, count, seed, day, told)
        else:
            taken = _real(dataset, spiral, wobble, count, config, settings, adapters, told)
    data = load(dataset)
    estimates = [estimate_wobble(list(s), list(v)) for s, v in zip(data.images, data.lens, strict=True)]
    good = [i for i, e in enumerate(estimates) if e.good]
    response = fit_response(
        data.card.knobs, data.shifts[good], np.array([estimates[i].vector for i in good]),
        covariances=[estimates[i].cov for i in good], about={"dataset": dataset.name, **data.card.about},
    )  # fmt: skip
    path = dataset / "response.json"
    response.save(path)
    say(f"{taken} series taken, {len(good)} of {len(data)} readable; response written to {path}")
    say(f'use it with [strategies.aperture] calibration = "{path}"')
    return {
        "dataset": str(dataset), "taken": taken, "series": len(data), "readable": len(good), "response": str(path),
        "matrix": [list(row) for row in response.matrix], "scale_sd": response.scale_sd,
    }  # fmt: skip


def simulate_nights(
    dataset: Path, *, nights: int, points: int, revolutions: float, reach: float, wobble: float, count: int, seed: int,
    day: int, machines: Machines, say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Acquire datasets of several nights of the simulated column, a folder each, for a network to train on.

    Raises
    ------
    SettingsError
        When a folder holds another dataset.
    """
    from mm_autofocus.training.tem_dataset import Spiral

    spiral = Spiral(points=points, revolutions=revolutions or max(points / 21.0, 1.0), reach=reach)
    days = range(day, day + nights)
    folders = [dataset.absolute() / f"day{number}" for number in days]  # a worker may stand in another folder
    taken = machines.make(
        _night, (spiral, wobble, count, seed), list(zip(folders, days, strict=True)),
        lambda i, n: say(f"{i} of {n} nights"),
    )  # fmt: skip
    return {"datasets": [str(folder) for folder in folders], "taken": sum(taken)}


def _night(common: tuple[Any, float, int, int], night: tuple[Path, int]) -> int:
    """Acquire the dataset of one night; return how many series were taken now."""
    (spiral, wobble, count, seed), (folder, day) = common, night
    return _simulated(folder, spiral, wobble, count, seed, day)


def _simulated(
    dataset: Path, spiral: Any, wobble: float, count: int, seed: int, day: int,
    told: Callable[[int, int], None] | None = None,
) -> int:  # fmt: skip
    from mm_autofocus.simulation.tem_column import TemColumn
    from mm_autofocus.training.tem_dataset import ColumnSource, WobbleCard, acquire

    column = TemColumn(seed, day)
    card = WobbleCard(
        spiral=spiral, aligned=(0.0, 0.0), wobble=wobble, count=count,
        about={"simulated": True, "seed": seed, "day": day, "aperture": column.aperture},
    )  # fmt: skip
    return acquire(ColumnSource(column), dataset, card, progress=told)


def _real(
    dataset: Path, spiral: Any, wobble: float, count: int, config: Path, settings: Path | None, adapters: str,
    told: Callable[[int, int], None],
) -> int:  # fmt: skip
    from mm_autofocus.cli.run_plan import load_core
    from mm_autofocus.microscope import Microscope
    from mm_autofocus.settings import Settings
    from mm_autofocus.strategies.aperture import ApertureSettings
    from mm_autofocus.training.tem_dataset import MicroscopeSource, WobbleCard, acquire

    if settings is None:
        raise SettingsError("--config needs --settings: an autofocus.toml with the knobs and their limits")
    loaded = Settings.load(settings)
    own = ApertureSettings(**loaded.strategies.get("aperture", {}))
    core = load_core(config, adapters)
    try:
        scope = Microscope(core, loaded)
        names = own.target_knobs
        card = WobbleCard(
            spiral=spiral, aligned=(scope.knob(names[0]).get(), scope.knob(names[1]).get()), knobs=names,
            wobble_knob=own.wobble_knob, wobble=wobble, middle=scope.knob(own.wobble_knob).get(), count=count,
            about={"configuration": config.name},
        )  # fmt: skip
        limits = {name: (scope.knob(name).limits.low, scope.knob(name).limits.high) for name in names}
        with scope.preserved():
            scope.apply_imaging()
            return acquire(
                MicroscopeSource(scope, own.camera, own.exposure_ms), dataset, card, limits=limits, progress=told
            )  # fmt: skip
    finally:
        core.unloadAllDevices()


def train(
    datasets: Sequence[Path], out: Path, *, variant: str, px: int, epochs: int, repeats: int, seed: int, threads: int,
    say: Say, machines: Machines = HERE,
) -> dict[str, Any]:  # fmt: skip
    """Train a network on datasets and keep the training with the median error.

    Workers read and shrink a dataset each; the processes of ``torchrun`` share the batches, and the first writes.

    Raises
    ------
    SettingsError
        When a dataset cannot be used, or there is no such variant.
    """
    from mm_autofocus.networks.aperture_cnn import VARIANTS
    from mm_autofocus.training.tem_training import card_of, median, repeated

    process = machines.process
    say = process.told(say)
    if variant not in VARIANTS:
        raise SettingsError(f"there is no variant {variant!r}; there are: {', '.join(VARIANTS)}")
    parts = machines.make(_shrunk, px, [folder.absolute() for folder in datasets])
    images, shifts = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    say(f"{len(shifts)} series; {repeats} trainings of {epochs} epochs at {px} x {px}")
    outcomes = repeated(
        images, shifts, variant, repeats=repeats, epochs=epochs, seed=seed, threads=threads, process=process,
        on_training=lambda i, each: say(f"training {i + 1}: {each.rmse:.2f} % on the test set, {each.seconds:.0f} s"),
    )  # fmt: skip
    kept = median(outcomes)
    names = " ".join(f"--dataset {folder.name}" for folder in datasets)
    command = process.command(f"train tem {names} --variant {variant} --px {px} --epochs {epochs} --seed {seed}")
    kept.model.about = card_of(
        kept, trained_on=[about for _, _, about in parts], series=len(shifts), command=command, **process.about(),
        all_rmse_percent=[round(each.rmse, 3) for each in outcomes],
    )  # fmt: skip
    path = kept.model.save(out) if process.writes else out
    say(f"median {kept.rmse:.2f} % of 1000 steps; written to {path}")
    return {"model": str(path), "rmse_percent": kept.rmse, "all": [each.rmse for each in outcomes]}


def _shrunk(px: int, dataset: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return a dataset's images at the network's size, its shifts, and what its card says about it."""
    from mm_autofocus.training.tem_dataset import load
    from mm_autofocus.training.tem_training import small_images

    data = load(dataset)
    return small_images(data.images, px), data.shifts, data.card.about


def bench(
    out: Path, *, quick: bool, networks: bool, px: int | None, epochs: int | None, repeats: int | None,
    loops: int | None, threads: int, seed: int, fresh: bool, workers: int, scheduler: str, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Make the table; see `mm_autofocus.benchmark.tem_table`.

    Raises
    ------
    SettingsError
        When the folder cannot be written to.
    """
    from mm_autofocus.benchmark.runner import set_aside
    from mm_autofocus.benchmark.tem_paper import Effort
    from mm_autofocus.benchmark.tem_table import QUICK, TemBench
    from mm_autofocus.cli.acquire import writable_folder
    from mm_autofocus.cli.bench_options import progress_of

    given = {name: value for name, value in (("px", px), ("epochs", epochs), ("repeats", repeats)) if value is not None}
    effort: Effort = replace(QUICK if quick else Effort(), threads=threads, **given)  # type: ignore[arg-type]
    table = TemBench(
        writable_folder(out), quick=quick, effort=effort, networks=networks, loop_runs=loops, seed=seed,
        workers=workers, scheduler=scheduler,
    )  # fmt: skip
    if fresh:
        set_aside(table.journal)
    with progress_of(table.count(), quiet=quiet) as progress:
        return table.measure(progress)
