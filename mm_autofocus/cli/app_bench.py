"""The commands ``bench light``, ``bench memory``, ``bench all``, ``check focus`` and ``characterize``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mm_autofocus.cli.bench_options import Fresh, exit_with_failures
from mm_autofocus.cli.groups import Groups
from mm_autofocus.cli.output import Json, errors, print_json
from mm_autofocus.cli.workers import Scheduler, Workers

Config = Annotated[Path, typer.Option(help="Micro-Manager configuration (.cfg).")]
Toml = Annotated[Path, typer.Option("--settings", help="autofocus.toml with the limits and how to image.")]
Adapters = Annotated[str, typer.Option(help="Folder of Micro-Manager's device adapters.")]
Focus = Annotated[float | None, typer.Option(help="Stage position in focus; found by images if absent.")]


class Under(StrEnum):
    """Which autofocus is under test."""

    AUTO = "auto"
    DEVICE = "device"
    STRATEGY = "strategy"


class Reference(StrEnum):
    """What says where focus is."""

    IMAGE = "image"
    SELF = "self"


class Direction(StrEnum):
    """How a plate is visited."""

    BOTH = "both"
    HORIZONTAL = "horizontal"
    VERTICAL = "vertical"


Use = Annotated[
    Under, typer.Option(help="device: core.fullFocus(); strategy: that of the settings; auto: the device if any.")
]


def _say(as_json: bool) -> Callable[[str], None]:
    return lambda text: typer.echo(text, err=as_json)


@contextmanager
def _loaded(config: Path, adapters: str) -> Iterator[Any]:
    """Load a configuration into a core, and unload it afterwards."""
    from mm_autofocus.cli.run_plan import load_core

    core = load_core(config, adapters)
    try:
        yield core
    finally:
        core.unloadAllDevices()


@contextmanager
def _errors_are_1(as_json: bool) -> Iterator[None]:
    """As `errors`, with exit code 1: 2 says that the autofocus was checked and is not good enough."""
    try:
        with errors(as_json):
            yield
    except typer.Exit as stop:
        raise typer.Exit(1 if stop.exit_code == 2 else stop.exit_code) from None


def register(groups: Groups) -> None:
    """Add these commands to ``mm-autofocus`` and its groups."""

    @groups.bench.command("light")
    def bench_light(
        case: Annotated[
            Path | None, typer.Option(help="Cases of your own: a TOML or JSON file, or a z-stack (TIFF).")
        ] = None,
        data: Annotated[Path, typer.Option(help="Folder of real through-focus recordings.")] = Path("../shared/data"),
        out: Annotated[Path, typer.Option(help="Folder; a run that was killed goes on here.")] = Path(
            "bench_output/light"
        ),
        quick: Annotated[bool, typer.Option(help="A few cases and methods, two minutes.")] = False,
        fresh: Fresh = False,
        seed: Annotated[int, typer.Option(help="Another seed draws other cases.")] = 0,
        workers: Workers = 0,
        scheduler: Scheduler = "",
        baseline: Annotated[
            Path | None, typer.Option(help="Exit with code 1 when a success rate fell by more than its noise.")
        ] = None,
        write_baseline: Annotated[Path | None, typer.Option(help="Write a baseline for later runs.")] = None,
        as_json: Json = False,
    ) -> None:
        """Compare our searches and the peers' on simulated plates and on real recordings."""
        with errors(as_json):
            from mm_autofocus.cli.bench_light import bench_light

            outcome = bench_light(
                case=case, data=data, out=out, quick=quick, fresh=fresh, seed=seed, workers=workers,
                scheduler=scheduler, baseline=baseline, write_baseline=write_baseline, quiet=as_json,
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                from rich.console import Console
                from rich.markdown import Markdown

                Console().print(Markdown((out / "light.md").read_text(encoding="utf-8")))
                typer.echo(f"report {out / 'light.html'}")
        for sentence in outcome["regressions"]:
            typer.secho(f"worse than the baseline: {sentence}", fg="red", err=True)
        exit_with_failures(outcome)
        if outcome["regressions"]:
            raise typer.Exit(1)

    @groups.bench.command("memory")
    def bench_memory(
        wells: Annotated[int, typer.Option(help="How many wells of a 1536-well plate.", min=2, max=1536)] = 1536,
        first: Annotated[int, typer.Option(help="The well after which memory should not grow.", min=1)] = 96,
        limit: Annotated[float, typer.Option(help="Largest growth of the peak, in per cent.", min=0)] = 5.0,
        out: Annotated[Path, typer.Option(help="Folder for the records and the curve.")] = Path("bench_output/memory"),
        seed: Annotated[int, typer.Option(help="Seed of the plate.")] = 1,
        as_json: Json = False,
    ) -> None:
        """Scan a 1536-well plate and watch the memory; exit code 1 when its peak grows by more than the limit."""
        with errors(as_json):
            from mm_autofocus.cli.bench_memory import bench_memory

            outcome = bench_memory(wells=wells, first=first, out=out, seed=seed, say=_say(as_json))
            if as_json:
                print_json(outcome)
            else:
                typer.echo(
                    f"peak {outcome['peak_mib_first']:.0f} MiB at well {first}, {outcome['peak_mib_last']:.0f} MiB at "
                    f"well {wells}: {outcome['growth_percent']:+.1f} %"
                )
        if outcome["growth_percent"] > limit:
            raise typer.Exit(1)

    @groups.bench.command("all")
    def bench_all(
        out: Annotated[Path, typer.Option(help="Folder; each bench gets its own below.")] = Path("bench_output"),
        quick: Annotated[bool, typer.Option(help="The quick form of each.")] = False,
        fresh: Fresh = False,
        only: Annotated[str, typer.Option(help="Names of benches to run, with commas; empty for all.")] = "",
        workers: Workers = 0,
        scheduler: Scheduler = "",
        as_json: Json = False,
    ) -> None:
        """Run the bench of every instrument, each in a process of its own, and one page that leads to all tables."""
        with errors(as_json):
            from mm_autofocus.cli.bench_all import bench_all

            outcome = bench_all(
                groups, out=out, quick=quick, only=only, fresh=fresh, workers=workers, scheduler=scheduler,
                say=_say(as_json),
            )  # fmt: skip
            if as_json:
                print_json(outcome)
        if any(bench["exit_code"] for bench in outcome["benches"]):
            raise typer.Exit(1)

    @groups.check.command("focus")
    def check_focus(
        config: Config,
        settings: Toml,
        offset: Annotated[
            list[float] | None, typer.Option(help="Defocus to inject, µm; repeatable. 5 depths of field by default.")
        ] = None,
        repeats: Annotated[int, typer.Option(help="Runs from each offset.", min=1)] = 1,
        threshold: Annotated[float, typer.Option(help="Fraction that every run must recover.", min=0, max=1)] = 0.9,
        reference: Annotated[
            Reference, typer.Option(help="image: a sweep says where focus is; self: the autofocus itself.")
        ] = Reference.IMAGE,
        focus: Focus = None,
        use: Use = Under.AUTO,
        adapters: Adapters = "",
        as_json: Json = False,
    ) -> None:
        """Inject a known defocus and report what is recovered: exit code 0 enough, 2 too little, 1 an error."""
        with _errors_are_1(as_json), _loaded(config, adapters) as core:
            from mm_autofocus.cli.characterize import check
            from mm_autofocus.settings import Settings

            outcome = check(
                core, Settings.load(settings), use=use.value, injected_um=offset or (), repeats=repeats,
                threshold=threshold, reference=reference.value, focus_um=focus,
            )  # fmt: skip
            if as_json:
                print_json(outcome.model_dump(mode="json"))
            else:
                typer.echo(outcome.sentence)
        if not outcome.passed:
            raise typer.Exit(2)

    @groups.app.command("characterize")
    def characterize(
        config: Config,
        settings: Toml,
        out: Annotated[Path, typer.Option(help="Folder for characterize.html and .json.")] = Path("characterize"),
        reach: Annotated[float, typer.Option(help="Farthest start from focus, µm.", min=0.001)] = 10.0,
        offsets: Annotated[int, typer.Option(help="How many starts over -reach to +reach.", min=2)] = 9,
        repeats: Annotated[int, typer.Option(help="Runs from each start.", min=1)] = 3,
        plan: Annotated[Path | None, typer.Option(help="A plan whose positions are visited too (a plate).")] = None,
        snake: Annotated[Direction, typer.Option(help="In which direction to visit them.")] = Direction.BOTH,
        measure: Annotated[str, typer.Option(help="Sharpness measure of the scoring sweep.")] = "laplacian_of_gaussian",
        truth: Annotated[float | None, typer.Option(help="Reach of that sweep, µm; 4 depths of field.")] = None,
        focus: Focus = None,
        use: Use = Under.AUTO,
        seed: Annotated[int, typer.Option(help="Seed of the order of the starts.")] = 0,
        adapters: Adapters = "",
        as_json: Json = False,
    ) -> None:
        """Characterise any autofocus, ours or a vendor's: error over initial defocus, repeatability, time, a plate."""
        with errors(as_json), _loaded(config, adapters) as core:
            from mm_autofocus.cli.characterize import characterize
            from mm_autofocus.settings import Settings

            outcome = characterize(
                core, Settings.load(settings), out=out, use=use.value, plan=plan, say=_say(as_json),
                facts={"configuration": config.name, "settings": settings.name}, reach_um=reach, offsets=offsets,
                repeats=repeats, measure=measure, truth_um=truth, focus_um=focus, seed=seed,
                snakes=("horizontal", "vertical") if snake is Direction.BOTH else (snake.value,),
            )  # fmt: skip
            if as_json:
                print_json(outcome)
            else:
                for name in ("in_focus", "runs", "bias_um", "repeatability_um", "worst_um", "capture_um", "report"):
                    typer.echo(f"{name.replace('_', ' ')}: {outcome[name]}")
