"""The commands ``mm-autofocus serve ...``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors


class Setup(StrEnum):
    """The simulated columns."""

    A = "a"
    B = "b"


class SemSpecimen(StrEnum):
    """What lies in the simulated SEM."""

    TISSUE = "tissue"
    TIN = "tin"
    GRID = "grid"
    PARTICLES = "particles"
    FIBRES = "fibres"
    WING = "wing"
    FABRIC = "fabric"
    POWDER = "powder"


def register(groups: Groups) -> None:
    """Add the commands."""

    @groups.serve.command("sem")
    def serve_sem(
        port: Annotated[int, typer.Option(help="Port; 0 for 7520 (setup a) or 7521 (b).", min=0, max=65535)] = 0,
        host: Annotated[str, typer.Option(help="Address to listen on. Nobody is authenticated: keep it local.")] = (
            "127.0.0.1"
        ),
        setup: Annotated[Setup, typer.Option(help="Column: a like a Merlin, b like an UltraPlus.")] = Setup.A,
        specimen: Annotated[SemSpecimen, typer.Option(help="What is looked at.")] = SemSpecimen.TISSUE,
        seed: Annotated[int, typer.Option(help="Seed of specimen, noise, drift and misalignment.")] = 1,
        speed: Annotated[float, typer.Option(help="0: never wait; 1: frames take their real time.", min=0)] = 0.0,
        drift: Annotated[float, typer.Option(help="Drift of focus, µm/min.", min=0)] = 0.0,
        charging: Annotated[float, typer.Option(help="0 to 1.", min=0, max=1)] = 0.0,
        blank_fraction: Annotated[float, typer.Option(help="Share of blank resin.", min=0, max=0.6)] = 0.0,
        as_json: Json = False,
    ) -> None:
        """Serve a simulated scanning electron microscope until Ctrl-C."""
        with errors(as_json):
            from mm_autofocus.cli import serve

            def started(where: dict[str, Any]) -> None:
                _say(as_json, where, f"SEM {where['setup']} ({where['specimen']}) at {where['host']}:{where['port']}")

            outcome = serve.serve_sem(
                host=host, port=port, setup=setup.value, specimen=specimen.value, seed=seed, speed=speed,
                drift_um_per_min=drift, charging=charging, blank_fraction=blank_fraction, started=started,
            )  # fmt: skip
            _say(
                as_json,
                outcome,
                f"stopped; the beam is blanked. {outcome['frames']} frames, {outcome['dose_e_per_nm2']:.1f} e-/nm2",
            )

    @groups.serve.command("coxem")
    def serve_coxem(
        folder: Annotated[Path, typer.Option(help="Where the images go; made if missing.")] = Path("coxem-images"),
        port: Annotated[int, typer.Option(help="Port.", min=0, max=65535)] = 9025,
        host: Annotated[str, typer.Option(help="Address to listen on. Nobody is authenticated: keep it local.")] = (
            "127.0.0.1"
        ),
        setup: Annotated[Setup, typer.Option(help="Column: a like a Merlin, b like an UltraPlus.")] = Setup.A,
        specimen: Annotated[SemSpecimen, typer.Option(help="What is looked at.")] = SemSpecimen.TIN,
        frame: Annotated[str, typer.Option(help="Size of the images, pixels.")] = "1024x768",
        seed: Annotated[int, typer.Option(help="Seed of specimen, noise, drift and misalignment.")] = 1,
        speed: Annotated[
            float, typer.Option(help="0: never wait; 1: frames and stage moves take their real time.", min=0)
        ] = 0.0,
        drift: Annotated[float, typer.Option(help="Drift of focus, µm/min.", min=0)] = 0.0,
        as_json: Json = False,
    ) -> None:
        """Serve a simulated SEM that speaks the COXEM dialect until Ctrl-C."""
        with errors(as_json):
            from mm_autofocus.cli import serve

            def started(where: dict[str, Any]) -> None:
                at = f"{where['host']}:{where['port']}"
                text = f"COXEM SEM ({where['specimen']}) at {at}, images in {where['folder']}"
                _say(as_json, where, text)

            outcome = serve.serve_coxem(
                host=host, port=port, folder=folder, setup=setup.value, specimen=specimen.value, frame=frame, seed=seed,
                speed=speed, drift_um_per_min=drift, started=started,
            )  # fmt: skip
            _say(as_json, outcome, f"stopped; the beam is blanked. {outcome['frames']} frames")


def _say(as_json: bool, values: dict[str, Any], text: str) -> None:
    """Print one line at once: whoever started the server may wait for it."""
    import json

    sys.stdout.write((json.dumps(values) if as_json else text) + "\n")
    sys.stdout.flush()
