"""The failures that are expected in a microscope room, each with what happened, where, and what to do.

They derive from `RuntimeError` because pymmcore-plus treats a `RuntimeError` from ``fullFocus`` as a failed focus
(it warns and acquires) and any other exception as the end of the run.
"""

from __future__ import annotations


class FocusError(RuntimeError):
    """An expected failure of focusing; the message says what happened, where, and what to do."""


class LimitError(FocusError):
    """A move outside the limits was asked for and refused; nothing has moved."""


class BudgetError(FocusError):
    """A strategy asked for more images, seconds or dose than its request allows."""


class HardwareError(FocusError):
    """A device did not do what it was told: a camera without an image, a stage that did not arrive."""


class CancelledError(FocusError):
    """The user or the acquisition asked to stop."""


class StrategyError(FocusError):
    """A strategy broke its contract: it raised, or answered with something that is not a Look or a Verdict."""


class SettingsError(FocusError):
    """autofocus.toml, or the arguments that stand for it, cannot be used; nothing has moved."""


class PluginError(FocusError):
    """A plugin cannot be registered: a hook of the wrong signature, a strategy without a name."""


class AcquisitionAborted(FocusError):
    """The failure policy ended the acquisition."""
