"""The commands ``train sem``, ``recalibrate sem`` and ``models``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json
from mm_autofocus.cli.training import EPILOG, machines
from mm_autofocus.cli.workers import Scheduler, Workers


class SemModel(StrEnum):
    """Models of electron images that can be trained."""

    SPECTRAL = "spectral"
    CONVOLUTIONAL = "convolutional"
    DEEPFOCUS = "deepfocus"
    DEEPSCORE = "deepscore"


class DeepFocusVariant(StrEnum):
    """Networks of the paper, see `mm_autofocus.estimators.cards.Variant`."""

    STACKED = "stacked"
    PATCH_SCORES = "patch-scores"
    PIXEL_SCORES = "pixel-scores"
    EFFICIENTNET_B0 = "efficientnet-b0"
    RESNET_50 = "resnet-50"


class Method(StrEnum):
    """Ways to adapt to another column."""

    CALIBRATION = "calibration"
    DEEPFOCUS = "deepfocus"


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep the core from logging a traceback for each device that has no server; the error says it once."""
    import logging

    logger = logging.getLogger("pymmcore_plus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Show a progress bar on standard error; yield what to tell it in words and in numbers."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("recalibrating", total=None)
        yield (
            lambda text: progress.console.print(text, highlight=False, markup=False, soft_wrap=True),
            lambda done, of: progress.update(task, completed=done, total=of),
        )


def register(groups: Groups) -> None:
    """Add the commands to the groups of ``mm-autofocus``."""

    @groups.train.command("sem", epilog=EPILOG)
    def train_sem(
        out: Annotated[Path, typer.Option(help="The model's card (.json).")],
        model: Annotated[SemModel, typer.Option(help="Which model.")] = SemModel.SPECTRAL,
        variant: Annotated[DeepFocusVariant, typer.Option(help="Of deepfocus.")] = DeepFocusVariant.STACKED,
        minutes: Annotated[float, typer.Option(help="Nominal; 0: as long as the one that comes along.", min=0)] = 0.0,
        seed: Annotated[int, typer.Option(help="Same seed, same weights.", min=0)] = 0,
        measure: Annotated[bool, typer.Option(help="Measure it on unseen specimens.")] = True,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Train a model of electron images on simulated specimens, and measure it on others.

        Workers render the specimens and simulate the pairs of the spectral network; the other networks learn from pairs
        that each training process simulates as it goes.
        """
        with machines(as_json, workers, scheduler) as used:
            from rich.console import Console

            from mm_autofocus.cli.sem_training import train

            console = Console(stderr=True, quiet=not used.process.writes)
            with console.status(f"training {model.value}") as status:
                # into a log every line, on a terminal the last one only
                say = status.update if console.is_terminal else console.print
                outcome = train(
                    model.value, out, variant=variant.value, minutes=minutes, seed=seed, measure=measure,
                    machines=used, say=say,
                )  # fmt: skip
            if not used.process.writes:
                return
            if as_json:
                print_json(outcome)
            else:
                typer.echo(f"{outcome['card']}: {outcome['measured']}")

    @groups.recalibrate.command("sem")
    def recalibrate_sem(
        config: Annotated[Path, typer.Option(help="Micro-Manager configuration (.cfg).")],
        settings: Annotated[Path, typer.Option("--settings", help="autofocus.toml with z, stig_x and stig_y.")],
        out: Annotated[Path, typer.Option(help="Calibration (.toml) or, for deepfocus, the new card (.json).")],
        method: Annotated[Method, typer.Option(help="Ours, or the paper's fine-tuning.")] = Method.CALIBRATION,
        base: Annotated[str, typer.Option(help="Card to begin with; empty for the one that comes along.")] = "",
        z_step: Annotated[float, typer.Option(help="Steps of the working distance, µm (calibration).", min=0.5)] = 6.0,
        stig_step: Annotated[float, typer.Option(help="Steps of the stigmators, a.u. (calibration).", min=0.01)] = 2.0,
        locations: Annotated[int, typer.Option(help="Places (deepfocus).", min=1)] = 10,
        aberrations: Annotated[int, typer.Option(help="Aberrations at each place (deepfocus).", min=1)] = 10,
        spacing: Annotated[float, typer.Option(help="Distance of the places, µm.", min=1)] = 100.0,
        steps: Annotated[int, typer.Option(help="Steps of the fine-tuning.", min=100)] = 3000,
        seed: Annotated[int, typer.Option(help="Of aberrations, patches and order.", min=0)] = 0,
        adapters: Annotated[str, typer.Option(help="Folder of Micro-Manager's device adapters.")] = "",
        as_json: Json = False,
    ) -> None:
        """Adapt to another column: its calibration from 14 frames, or the paper's fine-tuning from labelled pairs."""
        with errors(as_json):
            from mm_autofocus.cli.run_plan import load_core
            from mm_autofocus.cli.sem_recalibrate import recalibrate, summary
            from mm_autofocus.settings import Settings

            loaded = Settings.load(settings)
            with _without_tracebacks():
                core = load_core(config, adapters)
            try:
                with _bar() as (say, tick):
                    outcome = recalibrate(
                        core, loaded, out, method=method.value, base=base, z_step_um=z_step, stig_step=stig_step,
                        locations=locations, aberrations=aberrations, spacing_um=spacing, steps=steps, seed=seed,
                        say=say, tick=tick,
                    )  # fmt: skip
            finally:
                core.unloadAllDevices()
            if as_json:
                print_json(outcome)
            else:
                typer.echo(summary(outcome))

    @groups.app.command("models")
    def models_command(
        card: Annotated[list[Path] | None, typer.Option(help="Cards beside those that come along.")] = None,
        as_json: Json = False,
    ) -> None:
        """List the models: what each is, what it was trained on, by which command, and how good it is."""
        with errors(as_json):
            from mm_autofocus.cli.sem_training import headline, models

            entries = models(card or [])
            if as_json:
                print_json(entries)
                return
            for entry in entries:
                typer.secho(entry["name"], bold=True)
                typer.echo(f"  {entry['what']}")
                typer.echo(f"  trained on: {entry['trained_on']}")
                typer.echo(f"  command:    {entry['command']}")
                typer.echo(f"  measured:   {headline(entry)}")
                typer.echo(f"  weights:    {', '.join(entry['weights'])} ({entry['bytes'] / 1e6:.2f} MB)")
