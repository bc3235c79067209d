"""The command line: ``mm-autofocus``."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from mm_autofocus.cli.app import app

    app()
