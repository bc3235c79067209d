"""Tells the observing plugins what happens; one that fails is logged, and nothing ends because of it."""

from __future__ import annotations

import logging
from typing import Any

import pluggy

logger = logging.getLogger(__name__)

OBSERVING = ("mmaf_event", "mmaf_frame", "mmaf_focused", "mmaf_finish")
"""The hooks whose plugins only watch."""


class Observers:
    """Calls each observing plugin by itself.

    Parameters
    ----------
    manager
        Where the plugins are registered; later registrations are not noticed.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        plugins = [plugin for _, plugin in manager.list_name_plugin() if plugin is not None]
        self._callers = {
            hook: [
                (each.plugin_name, manager.subset_hook_caller(hook, [p for p in plugins if p is not each.plugin]))
                for each in getattr(manager.hook, hook).get_hookimpls()
            ]
            for hook in OBSERVING
        }
        self._complained: set[tuple[str, str]] = set()

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call ``hook`` of every plugin; the first failure of each is logged with its traceback."""
        for name, call in self._callers[hook]:
            try:
                call(**arguments)
            except Exception as error:
                if (name, hook) not in self._complained:  # once: it may fail at every event of a night
                    self._complained.add((name, hook))
                    logger.exception("plugin %r failed in %s; the acquisition goes on", name, hook)
                else:
                    logger.debug("plugin %r failed in %s again: %s", name, hook, error)
