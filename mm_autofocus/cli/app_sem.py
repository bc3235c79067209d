"""The commands ``demo sem`` and ``bench sem``."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mm_autofocus.cli.bench_options import Fresh, exit_with_failures
from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json
from mm_autofocus.cli.workers import Scheduler, Workers


class Engine(StrEnum):
    """What runs the acquisition."""

    PYCROMANAGER = "pycromanager"
    MDA = "mda"


class Setup(StrEnum):
    """Which of the simulated instruments."""

    A = "A"
    B = "B"


def _say(as_json: bool) -> Callable[[str], None]:
    return (lambda text: typer.echo(text, err=True)) if as_json else typer.echo


def register(groups: Groups) -> None:
    """Add the electron column's commands to the groups of ``mm-autofocus``."""

    @groups.demo.command("sem")
    def demo_sem(
        positions: Annotated[int, typer.Option(help="Positions, on a grid.", min=1, max=400)] = 9,
        specimen: Annotated[
            str | None, typer.Option(help="tissue (the default), tin (that of dual-network), grid, particles, wing ...")
        ] = None,
        setup: Annotated[Setup, typer.Option(help="Instrument A (Merlin-like) or B (UltraPlus-like).")] = Setup.A,
        strategy: Annotated[
            str, typer.Option(help='Name of the strategy; "dual-network" comes with a tabletop column that slants.')
        ] = "phase-diversity",
        engine: Annotated[Engine, typer.Option(help="What runs the acquisition.")] = Engine.PYCROMANAGER,
        settings: Annotated[Path | None, typer.Option(help="An autofocus.toml in place of the demo's.")] = None,
        dwell: Annotated[float, typer.Option(help="Dwell time, ns (50 to 800).", min=50, max=800)] = 50.0,
        drift: Annotated[float, typer.Option(help="Drift of the focus, µm per minute.", min=0, max=20)] = 0.5,
        blank: Annotated[float, typer.Option(help="Share of the specimen that is empty.", min=0, max=0.6)] = 0.15,
        seed: Annotated[int, typer.Option(help="Seed of specimen, column, noise and starts.", min=0)] = 1,
        out: Annotated[Path, typer.Option(help="Folder for the dataset and the report.")] = Path("demo_output/sem"),
        as_json: Json = False,
    ) -> None:
        """Focus and stigmate a simulated SEM over TCP at every position of an acquisition, and write a report."""
        with errors(as_json):
            from mm_autofocus.cli.demo_sem import SemDemo

            outcome = SemDemo(
                positions=positions, specimen=specimen, setup=setup.value, strategy=strategy, engine=engine.value,
                settings=settings, dwell_ns=dwell, drift_um_per_min=drift, blank=blank, seed=seed, out=out,
                quiet=as_json,
            ).run()  # fmt: skip
            if as_json:
                print_json(outcome)
            missing = outcome["dataset"]["images_expected"] - outcome["dataset"]["images_present"]
            if missing:
                typer.secho(f"{missing} images are missing in {outcome['dataset']['path']}", fg="red", err=True)
                raise typer.Exit(1)

    @groups.bench.command("sem")
    def bench_sem(
        out: Annotated[Path, typer.Option(help="Folder; a run that was killed goes on here.")] = Path(
            "bench_output/sem"
        ),
        quick: Annotated[bool, typer.Option(help="A few per cent of the cases, in about a minute.")] = False,
        fresh: Fresh = False,
        only: Annotated[list[str] | None, typer.Option(help="spectral, convolutional, deepfocus, mapfost ...")] = None,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Measure ours, DeepFocus, DeepScore and MAPFoSt side by side, on specimens that none was trained on."""
        with errors(as_json):
            from mm_autofocus.cli.sem_table import table

            outcome = table(
                out, quick=quick, only=only, fresh=fresh, workers=workers, scheduler=scheduler, quiet=as_json,
                say=_say(as_json),
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                typer.echo((out / "sem_table.md").read_text(encoding="utf-8"))
        exit_with_failures(outcome)
