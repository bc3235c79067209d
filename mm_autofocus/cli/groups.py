"""The command groups of ``mm-autofocus``, to which each instrument adds its own commands."""

from __future__ import annotations

from dataclasses import dataclass

import typer


def _group(text: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, help=text)


@dataclass(frozen=True, slots=True)
class Groups:
    """The application and its groups; `make` makes them."""

    app: typer.Typer
    demo: typer.Typer
    bench: typer.Typer
    serve: typer.Typer
    calibrate: typer.Typer
    train: typer.Typer
    recalibrate: typer.Typer
    check: typer.Typer

    @classmethod
    def make(cls, app: typer.Typer) -> Groups:
        """Make every group and add it to the application."""
        groups = {
            "demo": _group("Run a whole acquisition on a simulated microscope."),
            "bench": _group("Measure strategies and peers side by side."),
            "serve": _group("Serve a simulated instrument over TCP."),
            "calibrate": _group("Acquire labelled data of an autofocus camera."),
            "train": _group("Train the networks of a strategy."),
            "recalibrate": _group("Adapt a model to today's instrument from a few frames."),
            "check": _group("Inject a known defocus and see how much of it is recovered."),
        }
        for name, group in groups.items():
            app.add_typer(group, name=name)
        return cls(app, **groups)
