"""The commands of ``mm-autofocus``; each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mm_autofocus.cli import (
    app_bench,
    app_laser,
    app_score,
    app_sem,
    app_sem_training,
    app_serve,
    app_tem,
    app_tem_devices,
)
from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Autofocus for Micro-Manager: pluggable strategies, inside limits, with a failure policy you choose.",
)
groups = Groups.make(app)
demo, bench = groups.demo, groups.bench


class Engine(StrEnum):
    """What runs an acquisition."""

    PYCROMANAGER = "pycromanager"
    MDA = "mda"
    SCRIPT = "script"


class Specimen(StrEnum):
    """What grows on the simulated plate: stained cells are imaged in brightfield."""

    FLUORESCENCE = "fluorescence"
    STAINED = "stained"


def _require_complete(dataset: dict[str, Any]) -> None:
    """Exit with code 1 when images are missing (a camera that failed, positions skipped with the MDA engine)."""
    expected, present = dataset["images_expected"], dataset["images_present"]
    if present != expected:
        typer.secho(f"{expected - present} of {expected} images are missing in {dataset['path']}", fg="red", err=True)
        raise typer.Exit(1)


@demo.command("plate")
def demo_plate(
    wells: Annotated[int, typer.Option(help="How many wells of the 96-well plate, 1 to 96.", min=1, max=96)] = 24,
    fields: Annotated[int, typer.Option(help="Fields per well.", min=1, max=9)] = 2,
    engine: Annotated[Engine, typer.Option(help="What runs the acquisition.")] = Engine.PYCROMANAGER,
    strategy: Annotated[str, typer.Option(help="Name of the strategy.")] = "sweep",
    settings: Annotated[Path | None, typer.Option(help="An autofocus.toml to use in place of the demo's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the dataset and the report.")] = Path("demo_output"),
    seed: Annotated[int, typer.Option(help="Seed of the plate, the specimen and the noise.")] = 1,
    height_span: Annotated[float, typer.Option(help="Height difference over the plate in µm.", min=0, max=250)] = 250.0,
    specimen: Annotated[Specimen, typer.Option(help="What grows on the plate.")] = Specimen.FLUORESCENCE,
    peer: Annotated[bool, typer.Option(help="Focus the same plate with OughtaFocus's search as well.")] = True,
    as_json: Json = False,
) -> None:
    """Scan a simulated multiwell plate with autofocus, and write a report."""
    with errors(as_json):
        from mm_autofocus.cli.demo_plate import PlateDemo

        outcome = PlateDemo(
            wells=wells, fields=fields, engine=engine.value, strategy=strategy, settings=settings, out=out, seed=seed,
            height_span_um=height_span, specimen=specimen.value, peer=peer, quiet=as_json,
        ).run()  # fmt: skip
        if as_json:
            print_json(outcome)
        _require_complete(outcome["dataset"])


@demo.command("beads")
def demo_beads(
    strategy: Annotated[str, typer.Option(help="Name of the strategy.")] = "sweep",
    starts: Annotated[int, typer.Option(help="How many random starts.", min=1)] = 12,
    range_um: Annotated[float, typer.Option("--range", help="Search range in µm.", min=4, max=200)] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = 1,
    as_json: Json = False,
) -> None:
    """Focus Micro-Manager's own DemoCamera in its 'Fluorescent Beads' mode, which blurs with |z|."""
    with errors(as_json):
        from mm_autofocus.cli.demo_beads import run_beads

        outcome = run_beads(strategy=strategy, starts=starts, range_um=range_um, seed=seed, quiet=as_json)
        if as_json:
            print_json(outcome)


@app.command("run")
def run_plan(
    plan: Annotated[Path, typer.Argument(help="A useq plan (.yaml, .json) or a list of pycro-manager events (.json).")],
    config: Annotated[Path, typer.Option(help="Micro-Manager configuration (.cfg).")],
    settings: Annotated[Path, typer.Option(help="autofocus.toml")],
    out: Annotated[Path, typer.Option(help="Folder for the dataset and the report.")],
    engine: Annotated[Engine, typer.Option(help="pycromanager or mda.")] = Engine.PYCROMANAGER,
    adapters: Annotated[str, typer.Option(help="Folder of Micro-Manager's device adapters.")] = "",
    trace: Annotated[bool, typer.Option(help="Write every hook call to standard error.")] = False,
    as_json: Json = False,
) -> None:
    """Run an acquisition plan with autofocus on any Micro-Manager configuration."""
    with errors(as_json):
        from mm_autofocus.cli.run_plan import run_plan

        outcome = run_plan(
            plan=plan, config=config, settings_path=settings, out=out, engine=engine.value, adapters=adapters,
            trace=trace, quiet=as_json,
        )  # fmt: skip
        if as_json:
            print_json(outcome)
        _require_complete(outcome["dataset"])


@app.command()
def replay(
    stack: Annotated[Path, typer.Argument(help="A recorded z-stack: multi-page TIFF, axes ZYX.")],
    strategy: Annotated[str, typer.Option(help="Name of the strategy.")] = "sweep",
    settings: Annotated[Path | None, typer.Option(help="autofocus.toml")] = None,
    step: Annotated[float | None, typer.Option(help="z step in µm, when the file does not say.")] = None,
    positions: Annotated[Path | None, typer.Option(help="JSON with z_um (a list), or a stacks.json.")] = None,
    start: Annotated[float | None, typer.Option(help="Where to start in µm; the middle by default.")] = None,
    depth_of_field: Annotated[float | None, typer.Option(help="Depth of field in µm; two steps by default.")] = None,
    as_json: Json = False,
) -> None:
    """Focus on a recorded z-stack as if it were a microscope."""
    with errors(as_json):
        from mm_autofocus.cli.replay import replay_stack

        outcome = replay_stack(
            stack=stack, strategy=strategy, settings_path=settings, step_um=step, positions=positions, start_um=start,
            depth_of_field_um=depth_of_field, quiet=as_json,
        )  # fmt: skip
        if as_json:
            print_json(outcome)


@app.command()
def plugins(
    settings: Annotated[Path | None, typer.Option(help="autofocus.toml")] = None, as_json: Json = False
) -> None:
    """List the active plugins, their hooks and strategies, and where they come from."""
    with errors(as_json):
        from mm_autofocus.plugins import Plugins
        from mm_autofocus.settings import Settings

        found = Plugins(Settings.load(settings) if settings else Settings()).active()
        if as_json:
            print_json([
                {"name": p.name, "source": p.source, "hooks": p.hooks, "strategies": p.strategies} for p in found
            ])  # fmt: skip
            return
        from rich.console import Console
        from rich.table import Table

        table = Table("plugin", "strategies", "hooks", "from")
        for p in found:
            table.add_row(p.name, ", ".join(p.strategies), ", ".join(p.hooks), p.source)
        Console().print(table)


@app.command("settings")
def show_settings(
    path: Annotated[Path | None, typer.Argument(help="An autofocus.toml to check.")] = None, as_json: Json = False
) -> None:
    """Print an autofocus.toml with every setting and its default, or check one."""
    with errors(as_json):
        from mm_autofocus.plugins import Plugins
        from mm_autofocus.settings import Settings
        from mm_autofocus.toml import to_toml

        settings = Settings.load(path) if path else Settings()
        Plugins(settings).check_sections()
        if as_json:
            print_json(settings.model_dump(mode="json"))
        elif path:
            typer.echo(f"{path} is in order")
        else:
            typer.echo(to_toml(settings.model_dump(mode="json")), nl=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with focus.jsonl, as an acquisition leaves it.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; report.html in the folder by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write report.html from what an acquisition has recorded."""
    with errors(as_json):
        from mm_autofocus.cli.make_report import report_from_folder

        path = report_from_folder(folder, out)
        if as_json:
            print_json({"report": str(path)})
        else:
            typer.echo(str(path))


@bench.command("curves")
def bench_curves(
    data: Annotated[Path, typer.Option(help="Folder of real through-focus recordings.")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("bench_output"),
    quick: Annotated[bool, typer.Option(help="A tenth of the cases.")] = False,
    as_json: Json = False,
) -> None:
    """Compare searches on recorded focus curves and z-stacks: success, images, worst error."""
    with errors(as_json):
        from mm_autofocus.cli.bench import curves

        outcome = curves(data=data, out=out, quick=quick, quiet=as_json)
        if as_json:
            print_json(outcome)


@bench.command("overhead")
def bench_overhead(
    events: Annotated[int, typer.Option(help="Events per run.", min=10)] = 300,
    repeats: Annotated[int, typer.Option(help="Runs of each kind, alternating.", min=1)] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("bench_output"),
    as_json: Json = False,
) -> None:
    """Measure what our hooks add to an event that needs no focus, against the bare engines in the same run."""
    with errors(as_json):
        from mm_autofocus.cli.bench import overhead

        outcome = overhead(events=events, repeats=repeats, out=out, quiet=as_json)
        if as_json:
            print_json(outcome)


app_laser.register(groups)
app_score.register(groups)
app_sem.register(groups)
app_sem_training.register(groups)
app_serve.register(groups)
app_tem.register(groups)
app_tem_devices.register(groups)
app_bench.register(groups)
