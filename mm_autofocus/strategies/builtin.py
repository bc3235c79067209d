"""Registers the strategies that come with mm-autofocus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm_autofocus.hookspecs import hookimpl

if TYPE_CHECKING:
    from mm_autofocus.strategy import Strategy


@hookimpl
def mmaf_strategies() -> Sequence[type[Strategy]]:
    """Bring the strategies for light, laser, SEM and TEM, and the peers that the benchmarks compare with."""
    from mm_autofocus.benchmark.peers import GoldenSection, HillClimb, OughtaFocusBrent
    from mm_autofocus.strategies.aperture import Aperture
    from mm_autofocus.strategies.beam_centring import BeamCentring
    from mm_autofocus.strategies.deepfocus import DeepFocus
    from mm_autofocus.strategies.deepscore import DeepScore
    from mm_autofocus.strategies.defocus_pair import DefocusPair
    from mm_autofocus.strategies.dual_network import DualNetwork
    from mm_autofocus.strategies.full_stack import FullStack
    from mm_autofocus.strategies.laser import Laser
    from mm_autofocus.strategies.phase_diversity import PhaseDiversity
    from mm_autofocus.strategies.sweep import Sweep

    light = (Sweep, Laser, FullStack)
    sem = (PhaseDiversity, DeepFocus, DeepScore, DualNetwork)
    tem = (Aperture, BeamCentring, DefocusPair)
    return (*light, *sem, *tem, OughtaFocusBrent, GoldenSection, HillClimb)
