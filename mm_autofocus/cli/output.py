"""What every command shares: the ``--json`` option, JSON on standard output, and one clear line for an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")]


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Turn an expected failure into one clear message and exit code 2; Ctrl-C into 130."""
    from mm_autofocus.errors import FocusError

    try:
        yield
    except FocusError as error:
        if as_json:
            print_json({"error": type(error).__name__, "message": str(error)})
        else:
            typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho("stopped; the instrument is back where it was, every image so far is kept", fg="yellow", err=True)
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """Print a JSON-serialisable value."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
