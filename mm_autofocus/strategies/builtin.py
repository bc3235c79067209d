"""Registers the strategies that come with mm-autofocus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm_autofocus.hookspecs import hookimpl

if TYPE_CHECKING:
    from mm_autofocus.strategy import Strategy


@hookimpl
def mmaf_strategies() -> Sequence[type[Strategy]]:
    """Bring the image-based strategies, the laser, and the peers that the benchmarks compare with."""
    from mm_autofocus.benchmark.peers import GoldenSection, OughtaFocusBrent
    from mm_autofocus.strategies.full_stack import FullStack
    from mm_autofocus.strategies.laser import Laser
    from mm_autofocus.strategies.sweep import Sweep

    return (Sweep, Laser, FullStack, OughtaFocusBrent, GoldenSection)
