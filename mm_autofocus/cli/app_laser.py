"""The commands ``calibrate laser``, ``train laser``, ``recalibrate laser``, ``check laser`` and ``bench laser``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mm_autofocus.cli.bench_options import Fresh, exit_with_failures
from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json
from mm_autofocus.cli.training import EPILOG, machines
from mm_autofocus.cli.workers import Scheduler, Workers

Config = Annotated[Path, typer.Option(help="Micro-Manager configuration (.cfg).")]
Toml = Annotated[Path, typer.Option("--settings", help="autofocus.toml with [strategies.laser].")]
Adapters = Annotated[str, typer.Option(help="Folder of Micro-Manager's device adapters.")]
Focus = Annotated[float | None, typer.Option(help="Stage position of zero defocus; found by an image sweep if absent.")]


def _say(as_json: bool) -> Callable[[str], None]:
    return (lambda text: typer.echo(text, err=True)) if as_json else typer.echo


@contextmanager
def _loaded(config: Path, adapters: str) -> Iterator[Any]:
    """Load a configuration into a core, and unload it afterwards."""
    from mm_autofocus.cli.run_plan import load_core

    core = load_core(config, adapters)
    try:
        yield core
    finally:
        core.unloadAllDevices()


def register(groups: Groups) -> None:
    """Add the laser's commands to the groups of ``mm-autofocus``."""

    @groups.calibrate.command("laser")
    def calibrate_laser(
        config: Config,
        settings: Toml,
        dataset: Annotated[Path, typer.Option(help="Folder of the days; a day that was interrupted goes on.")],
        day: Annotated[str, typer.Option(help="Name of the day; today's date by default.")] = "",
        stacks: Annotated[int, typer.Option(help="Stacks of each range.", min=1)] = 100,
        focus: Focus = None,
        adapters: Adapters = "",
        as_json: Json = False,
    ) -> None:
        """Acquire a day of laser stacks, each image with its z (OME-TIFF)."""
        with errors(as_json), _loaded(config, adapters) as core:
            from mm_autofocus.cli.laser import calibrate
            from mm_autofocus.settings import Settings

            outcome = calibrate(
                core, Settings.load(settings), dataset, name=day, stacks=stacks, focus_um=focus, say=_say(as_json)
            )
            if as_json:
                print_json(outcome)

    @groups.train.command("laser", epilog=EPILOG)
    def train_laser(
        out: Annotated[Path, typer.Option(help="The model's card (.json).")],
        dataset: Annotated[Path | None, typer.Option(help="Folder of days; none for synthetic days only.")] = None,
        base: Annotated[str, typer.Option(help="Model to begin with; empty for the one that comes along.")] = "",
        synthetic_days: Annotated[int, typer.Option(help="Synthetic days; 0 for 300 beside a dataset.")] = 0,
        seed: Annotated[int, typer.Option(help="Same seed, same weights.")] = 0,
        threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Train our readouts on days of stacks, or on synthetic days.

        Workers simulate the synthetic days of each range.
        """
        with machines(as_json, workers, scheduler) as used:
            from mm_autofocus.cli.laser import train

            outcome = train(
                dataset, out, base=base, synthetic_days=synthetic_days, seed=seed, threads=threads, machines=used,
                say=_say(as_json),
            )  # fmt: skip
            if as_json and used.process.writes:
                print_json(outcome)

    @groups.recalibrate.command("laser")
    def recalibrate_laser(
        config: Config,
        settings: Toml,
        out: Annotated[Path, typer.Option(help="The new model's card (.json).")],
        focus: Focus = None,
        adapters: Adapters = "",
        as_json: Json = False,
    ) -> None:
        """Adapt the laser model to today's instrument from at most ten frames."""
        with errors(as_json), _loaded(config, adapters) as core:
            from mm_autofocus.cli.laser import recalibrate
            from mm_autofocus.settings import Settings

            outcome = recalibrate(core, Settings.load(settings), out, focus_um=focus, say=_say(as_json))
            if as_json:
                print_json(outcome)

    @groups.check.command("laser")
    def check_laser(
        config: Config,
        settings: Toml,
        starts: Annotated[int, typer.Option(help="How many known offsets.", min=1)] = 20,
        reach: Annotated[float, typer.Option(help="How far from focus, µm.", min=1)] = 100.0,
        threshold: Annotated[float, typer.Option(help="Share that must be recovered.", min=0, max=1)] = 0.9,
        seed: Annotated[int, typer.Option(help="Seed of the offsets.")] = 0,
        focus: Focus = None,
        adapters: Adapters = "",
        as_json: Json = False,
    ) -> None:
        """Inject known defocus and report what is recovered; exit code 2 when it is too little."""
        with errors(as_json), _loaded(config, adapters) as core:
            from mm_autofocus.cli.laser import check
            from mm_autofocus.settings import Settings

            outcome = check(
                core, Settings.load(settings), starts=starts, reach_um=reach, threshold=threshold, seed=seed,
                focus_um=focus,
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                for key, value in outcome.items():
                    typer.echo(f"{key.replace('_', ' ')}: {value}")

    @groups.bench.command("laser")
    def bench_laser(
        out: Annotated[Path, typer.Option(help="Folder; a run that was killed goes on here.")] = Path(
            "bench_output/laser"
        ),
        quick: Annotated[bool, typer.Option(help="A few per cent of the images and of the training.")] = False,
        fresh: Fresh = False,
        paper_seconds: Annotated[float, typer.Option(help="Training time of the paper's networks in all.")] = 480.0,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Measure the paper's laser readout, a look-up table and ours side by side, on held-out days."""
        with errors(as_json):
            from mm_autofocus.cli.laser import table

            outcome = table(
                out, quick=quick, paper_seconds=paper_seconds, fresh=fresh, workers=workers, scheduler=scheduler,
                quiet=as_json,
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                typer.echo((out / "laser_table.md").read_text(encoding="utf-8"))
        exit_with_failures(outcome)
