"""The commands ``bench sem-scores``, ``train sem-score`` and ``train sem-control``."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mm_autofocus.cli.bench_options import Fresh, exit_with_failures
from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json
from mm_autofocus.cli.training import EPILOG, machines
from mm_autofocus.cli.workers import Scheduler, Workers


class Network(StrEnum):
    """Score networks."""

    OURS = "ours"
    AENET = "aenet"
    RESNET18 = "resnet18"


class ActionLimit(StrEnum):
    """What limits the steps of ACNet."""

    SENSITIVITY = "sensitivity"
    EQUATION_5 = "equation_5"


def _say(as_json: bool) -> Callable[[str], None]:
    return (lambda text: typer.echo(text, err=True)) if as_json else typer.echo


def register(groups: Groups) -> None:
    """Add the commands for focus scores of single images to the groups of ``mm-autofocus``."""

    @groups.bench.command("sem-scores")
    def bench_sem_scores(
        out: Annotated[Path, typer.Option(help="Folder; a run that was killed goes on here.")] = Path(
            "bench_output/sem_scores"
        ),
        quick: Annotated[bool, typer.Option(help="A few per cent of the cases.")] = False,
        fresh: Fresh = False,
        seed: Annotated[int, typer.Option(help="Of the test frames.", min=0)] = 9,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Measure focus scores and the controllers that focus by them, on specimens that none was trained on."""
        with errors(as_json):
            from mm_autofocus.cli.score_table import table

            outcome = table(
                out, quick=quick, seed=seed, fresh=fresh, workers=workers, scheduler=scheduler, quiet=as_json,
                say=_say(as_json),
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                typer.echo((out / "sem_scores.md").read_text(encoding="utf-8"))
        exit_with_failures(outcome)

    @groups.train.command("sem-score", epilog=EPILOG)
    def train_sem_score(
        out: Annotated[Path, typer.Option(help="The card to write (.json); weights go beside it.")] = Path(
            "score.json"
        ),
        network: Annotated[Network, typer.Option(help="Which network.")] = Network.OURS,
        images: Annotated[
            int, typer.Option(help="Simulated frames; 0: as many as the weights that come along.", min=0)
        ] = 0,
        experts: Annotated[bool, typer.Option(help="Labels as people give them: whole numbers that scatter.")] = False,
        measure: Annotated[bool, typer.Option(help="Measure on specimens that were not seen, into the card.")] = True,
        seed: Annotated[int, typer.Option(help="Of everything drawn.", min=0)] = 0,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Train a network that scores the focus of one image, from a simulated SEM at any magnification.

        Workers render the specimens and make frames and features of ours; the other networks learn from frames that
        each training process simulates as it goes.
        """
        with machines(as_json, workers, scheduler) as used:
            from mm_autofocus.training.score_training import train_score

            card = train_score(
                network.value, out, images=images, expert_noise=experts, seed=seed, measure=measure, machines=used,
                say=_say(as_json),
            )  # fmt: skip
            if used.process.writes:
                _tell(card.model_dump(), out, as_json)

    @groups.train.command("sem-control", epilog=EPILOG)
    def train_sem_control(
        out: Annotated[Path, typer.Option(help="The card to write (.json); weights go beside it.")] = Path(
            "control.json"
        ),
        score_network: Annotated[Network, typer.Option(help="What scores the focus series.")] = Network.OURS,
        score_model: Annotated[str, typer.Option(help="Its card; empty for the one that comes along.")] = "",
        action_limit: Annotated[ActionLimit, typer.Option(help="Largest step.")] = ActionLimit.SENSITIVITY,
        series: Annotated[int, typer.Option(help="Focus series.", min=3)] = 30,
        frames: Annotated[int, typer.Option(help="Frames of each.", min=20)] = 250,
        epochs: Annotated[int, typer.Option(help="Updates of the network.", min=30)] = 3000,
        seed: Annotated[int, typer.Option(help="Of everything drawn.", min=0)] = 0,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Train ACNet, the paper's controller, on simulated focus series.

        Workers simulate and score the series.
        """
        with machines(as_json, workers, scheduler) as used:
            from mm_autofocus.training.control_training import train_control

            card = train_control(
                out, score_network=score_network.value, score_model=score_model, action_limit=action_limit.value,
                series=series, frames=frames, epochs=epochs, seed=seed, machines=used, say=_say(as_json),
            )  # fmt: skip
            if used.process.writes:
                _tell(card.model_dump(), out, as_json)


def _tell(card: dict[str, object], out: Path, as_json: bool) -> None:
    if as_json:
        print_json(card | {"card": str(out)})
    else:
        typer.echo(f"{out}: {card['what']}; {card['trained_on']}")
