"""Autofocus for Micro-Manager: pluggable strategies with confidence, inside limits, with a failure policy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus, Placement
    from mm_autofocus.errors import (
        AcquisitionAborted,
        BudgetError,
        CancelledError,
        FocusError,
        HardwareError,
        LimitError,
        PluginError,
        SettingsError,
        StrategyError,
    )
    from mm_autofocus.hookspecs import hookimpl
    from mm_autofocus.ledger import Ledger
    from mm_autofocus.microscope import Knob, Microscope
    from mm_autofocus.policy import Action
    from mm_autofocus.request import Budget, Event, FocusRequest, Limits, Prior
    from mm_autofocus.result import FocusResult, Sample, Status
    from mm_autofocus.settings import Settings
    from mm_autofocus.strategy import Frame, Look, Strategy, StrategySettings, Verdict

_WHERE = {
    "autofocus": ("Autofocus", "Placement"),
    "errors": (
        "AcquisitionAborted", "BudgetError", "CancelledError", "FocusError", "HardwareError", "LimitError",
        "PluginError", "SettingsError", "StrategyError",
    ),
    "hookspecs": ("hookimpl",),
    "ledger": ("Ledger",),
    "microscope": ("Knob", "Microscope"),
    "policy": ("Action",),
    "request": ("Budget", "Event", "FocusRequest", "Limits", "Prior"),
    "result": ("FocusResult", "Sample", "Status"),
    "settings": ("Settings",),
    "strategy": ("Frame", "Look", "Strategy", "StrategySettings", "Verdict"),
}  # fmt: skip
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "AcquisitionAborted", "Action", "Autofocus", "Budget", "BudgetError", "CancelledError", "Event", "FocusError",
    "FocusRequest", "FocusResult", "Frame", "HardwareError", "Knob", "Ledger", "LimitError", "Limits", "Look",
    "Microscope", "Placement", "PluginError", "Prior", "Sample", "Settings", "SettingsError", "Status", "Strategy",
    "StrategyError", "StrategySettings", "Verdict", "hookimpl",
]  # fmt: skip


def __getattr__(name: str) -> object:  # loaded on first use: `mm-autofocus --help` must not wait for numpy
    if name in _MODULE:
        return getattr(import_module(f"mm_autofocus.{_MODULE[name]}"), name)
    raise AttributeError(f"module 'mm_autofocus' has no attribute {name!r}")
