"""The commands ``calibrate tem``, ``train tem`` and ``bench tem``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mm_autofocus.cli.bench_options import Fresh, exit_with_failures
from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json
from mm_autofocus.cli.training import EPILOG, machines
from mm_autofocus.cli.workers import Scheduler, Workers
from mm_autofocus.errors import SettingsError


def _say(as_json: bool) -> Callable[[str], None]:
    return (lambda text: typer.echo(text, err=True)) if as_json else typer.echo


def register(groups: Groups) -> None:
    """Add the commands of the condenser alignment to the groups of ``mm-autofocus``."""

    @groups.calibrate.command("tem")
    def calibrate_tem(
        dataset: Annotated[Path, typer.Option(help="Folder of the dataset; one that was interrupted goes on.")],
        config: Annotated[
            Path | None, typer.Option(help="Micro-Manager configuration (.cfg); none for the simulated column alone.")
        ] = None,
        settings: Annotated[
            Path | None, typer.Option("--settings", help="autofocus.toml with the knobs and [strategies.aperture].")
        ] = None,
        points: Annotated[int, typer.Option(help="Aperture positions: 5 for ours, 84-127 for a network.", min=3)] = 5,
        revolutions: Annotated[float, typer.Option(help="Turns of the spiral; 0: one for each 21 points.", min=0)] = 0,
        reach: Annotated[float, typer.Option(help="Largest shift from aligned, steps.", min=1)] = 240.0,
        wobble: Annotated[float, typer.Option(help="Fraction of the lens value.", min=0.001, max=0.5)] = 0.03,
        count: Annotated[int, typer.Option(help="Images of a wobble.", min=3)] = 7,
        seed: Annotated[int, typer.Option(help="Seed of the simulated column.")] = 1,
        day: Annotated[int, typer.Option(help="Day of the simulated column.")] = 0,
        nights: Annotated[
            int, typer.Option(help="Of the simulated column, from that day on: to train a network on.", min=1)
        ] = 1,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        adapters: Annotated[str, typer.Option(help="Folder of Micro-Manager's device adapters.")] = "",
        as_json: Json = False,
    ) -> None:
        """Acquire wobbles on a spiral of aperture shifts about where it stands (aligned), and fit the response.

        With --nights, datasets for a network instead: each in a folder day0, day1 ... of its own, simulated by workers
        if there are any.
        """
        with errors(as_json):
            from mm_autofocus.cli.tem import calibrate, simulate_nights
            from mm_autofocus.training.machines import Machines

            if nights > 1:
                if config is not None:
                    raise SettingsError(f"--nights {nights} are simulated ones; a microscope has one night at a time")
                found = simulate_nights(
                    dataset, nights=nights, points=points, revolutions=revolutions, reach=reach, wobble=wobble,
                    count=count, seed=seed, day=day, machines=Machines(workers=workers, scheduler=scheduler),
                    say=_say(as_json),
                )  # fmt: skip
                if as_json:
                    print_json(found)
                return
            outcome = calibrate(
                dataset, config=config, settings=settings, points=points, revolutions=revolutions, reach=reach,
                wobble=wobble, count=count, seed=seed, day=day, adapters=adapters, say=_say(as_json),
            )  # fmt: skip
            if as_json:
                print_json(outcome)

    @groups.train.command("tem", epilog=EPILOG)
    def train_tem(
        dataset: Annotated[list[Path], typer.Option(help="Folder of a dataset; name several to join them.")],
        out: Annotated[Path, typer.Option(help="The model's card (.json).")],
        variant: Annotated[str, typer.Option(help="Network of appendix A of the paper.")] = "final",
        px: Annotated[int, typer.Option(help="Edge of the images; 256 in the paper.", min=16)] = 64,
        epochs: Annotated[int, typer.Option(help="Passes over the data.", min=1)] = 200,
        repeats: Annotated[int, typer.Option(help="Trainings; the one with the median error is kept.", min=1)] = 1,
        seed: Annotated[int, typer.Option(help="Same seed, same weights.")] = 0,
        threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Train one of the paper's networks on datasets of `calibrate tem`.

        Workers read and shrink a dataset each.
        """
        with machines(as_json, workers, scheduler) as used:
            from mm_autofocus.cli.tem import train

            outcome = train(
                dataset, out, variant=variant, px=px, epochs=epochs, repeats=repeats, seed=seed, threads=threads,
                machines=used, say=_say(as_json),
            )  # fmt: skip
            if as_json and used.process.writes:
                print_json(outcome)

    @groups.bench.command("tem")
    def bench_tem(
        out: Annotated[Path, typer.Option(help="Folder; a run that was killed goes on here.")] = Path(
            "bench_output/tem"
        ),
        quick: Annotated[bool, typer.Option(help="About a minute: a few small trainings, one run each.")] = False,
        fresh: Fresh = False,
        networks: Annotated[bool, typer.Option(help="Train the paper's networks too.")] = True,
        px: Annotated[int | None, typer.Option(help="Edge of the networks' images; 32 by default.", min=16)] = None,
        epochs: Annotated[int | None, typer.Option(help="Epochs of each training; 100 by default.", min=1)] = None,
        repeats: Annotated[int | None, typer.Option(help="Trainings of each network; 3 by default.", min=1)] = None,
        loops: Annotated[int | None, typer.Option(help="Runs of each loop condition; 30 by default.", min=1)] = None,
        threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
        seed: Annotated[int, typer.Option(help="Seed of the datasets.")] = 0,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Measure the aperture networks of the paper and disc geometry side by side; figures 5-8, tables 2 and 3."""
        with errors(as_json):
            from mm_autofocus.cli.tem import bench

            outcome = bench(
                out, quick=quick, networks=networks, px=px, epochs=epochs, repeats=repeats, loops=loops,
                threads=threads, seed=seed, fresh=fresh, workers=workers, scheduler=scheduler, quiet=as_json,
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                typer.echo((out / "tem_table.md").read_text(encoding="utf-8"))
        exit_with_failures(outcome)
