"""The commands ``serve tem`` and ``demo tem``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json


class From(StrEnum):
    """Where images come from."""

    DETECTOR = "detector"
    SCREEN = "screen"


def register(groups: Groups) -> None:
    """Add the TEM's server and demonstration to the groups of ``mm-autofocus``."""

    @groups.serve.command("tem")
    def serve_tem(
        port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65535)] = 5160,
        host: Annotated[str, typer.Option(help="Address to listen on; nobody is authenticated.")] = "127.0.0.1",
        speed: Annotated[float, typer.Option(help="Simulated seconds per second; 0: only while waiting.", min=0)] = 1.0,
        day: Annotated[int, typer.Option(help="Another alignment each day.")] = 0,
        aperture: Annotated[int, typer.Option(help="Number of the hole.", min=1, max=4)] = 2,
        capture: Annotated[From, typer.Option(help="Detector, or a captured screen as in the paper.")] = From.DETECTOR,
        seed: Annotated[int, typer.Option(help="Seed of the instrument and its noise.", min=0)] = 1,
        as_json: Json = False,
    ) -> None:
        """Serve the simulated TEM over TCP until Ctrl-C; load configs/tem.cfg to drive it."""
        with errors(as_json):
            import threading

            from mm_autofocus.errors import SettingsError
            from mm_autofocus.simulation.tem_column import TemColumn
            from mm_autofocus_devices.tem.server import TemServer

            column = TemColumn(seed, day, aperture, capture="screen" if capture is From.SCREEN else "camera")
            server = TemServer(column, host, port, speed=speed)
            try:
                server.start()
            except OSError as error:
                raise SettingsError(str(error)) from error
            try:
                if as_json:
                    print_json({"host": host, "port": server.port})
                else:
                    typer.echo(f"the simulated TEM listens on {host}:{server.port}; Ctrl-C ends it")
                threading.Event().wait()
            finally:
                server.stop()

    @groups.demo.command("tem")
    def demo_tem(
        images: Annotated[int, typer.Option(help="Images of the series.", min=1, max=100_000)] = 200,
        every: Annotated[int, typer.Option(help="Align the aperture again after so many images.", min=1)] = 20,
        interval: Annotated[float, typer.Option(help="Seconds between images (simulated).", min=0, max=3600)] = 60.0,
        drift: Annotated[float, typer.Option(help="Drift of the beam, steps rms in an hour.", min=0)] = 30.0,
        misalign: Annotated[float, typer.Option(help="Misalignment at the start, steps.", min=0, max=600)] = 180.0,
        capture: Annotated[From, typer.Option(help="Detector, or a captured screen as in the paper.")] = From.DETECTOR,
        settings: Annotated[Path | None, typer.Option(help="An autofocus.toml in place of tem.toml.")] = None,
        seed: Annotated[int, typer.Option(help="Seed of the instrument, its drift and noise.", min=0)] = 1,
        out: Annotated[Path, typer.Option(help="Folder for the dataset and the report.")] = Path("demo_output/tem"),
        as_json: Json = False,
    ) -> None:
        """Acquire a long series on the simulated TEM while its condenser aperture is kept aligned; write a report."""
        with errors(as_json):
            from mm_autofocus.cli.demo_tem import TemDemo

            outcome = TemDemo(
                images=images, every=every, interval_s=interval, drift_steps=drift, misalign=misalign,
                capture=capture.value, settings=settings, out=out, seed=seed, quiet=as_json,
            ).run()  # fmt: skip
            if as_json:
                print_json(outcome)
            missing = outcome["dataset"]["images_expected"] - outcome["dataset"]["images_present"]
            if missing:
                typer.secho(f"{missing} images are missing in {outcome['dataset']['path']}", fg="red", err=True)
                raise typer.Exit(1)
