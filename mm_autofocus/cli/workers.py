"""Where a command lets dask compute: the options that benches and trainings share."""

from __future__ import annotations

from typing import Annotated

import typer

Workers = Annotated[int, typer.Option(help="Processes of a local dask cluster; 0: none.", min=0)]
Scheduler = Annotated[str, typer.Option(help="Address of a dask scheduler to use instead.")]
