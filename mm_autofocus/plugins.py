"""Finds, checks and lists plugins: strategies, hooks and callers from the entry points ``mm_autofocus``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from mm_autofocus import hookspecs
from mm_autofocus.errors import PluginError, SettingsError
from mm_autofocus.settings import Settings, validate
from mm_autofocus.strategy import Strategy, StrategySettings

logger = logging.getLogger(__name__)

GROUP = "mm_autofocus"
CALLERS = "mm_autofocus.callers"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One active plugin: name, where it comes from, which hooks it implements, which strategies it brings."""

    name: str
    source: str
    hooks: tuple[str, ...]
    strategies: tuple[str, ...]


class Plugins:
    """The plugin manager of one `Autofocus`.

    Parameters
    ----------
    settings
        Passed to plugins that are classes; ``settings.disable`` names plugins to leave out.
    extra
        Plugin modules, objects or classes beside those of the entry points; they are asked first.
    discover
        False to use ``extra`` only.

    Raises
    ------
    PluginError
        When a plugin has a hook of an unknown name or with an unknown argument, or two strategies share a name.
    """

    def __init__(self, settings: Settings, extra: Iterable[object] = (), *, discover: bool = True) -> None:
        self.settings = settings
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._sources: dict[str, str] = {}
        found = entry_points(group=GROUP) if discover else ()
        unknown = set(settings.disable) - {point.name for point in found}
        if unknown and discover:
            raise SettingsError(
                f"disable names {', '.join(sorted(unknown))}, which is no plugin; there are: "
                + ", ".join(sorted(point.name for point in found))
            )
        for point in sorted(found, key=_ours_first):
            if point.name not in settings.disable:
                self._register(_load(point), point.name, _source(point))
        for plugin in extra:
            self._register(plugin, _name_of(plugin), "given in the script")
        self._check()
        self.strategies: dict[str, type[Strategy]] = self._collect_strategies()

    # ------------------------------------------------------------------ registration
    def _register(self, plugin: Any, name: str, source: str) -> None:
        if inspect.isclass(plugin):
            make: Any = plugin
            try:
                plugin = make(self.settings)
            except Exception as error:
                raise PluginError(
                    f"plugin {name!r} ({source}) cannot be made with Class(settings): {type(error).__name__}: {error}"
                ) from error
        try:
            registered = self.manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name!r} ({source}) cannot be registered: {_first_line(error)}") from error
        if registered is None:
            raise PluginError(f"plugin {name!r} ({source}) is blocked")
        self._sources[name] = source

    def _check(self) -> None:
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            known = ", ".join(sorted(n for n in vars(hookspecs) if n.startswith("mmaf_")))
            raise PluginError(f"{_first_line(error)}. The hooks are: {known}") from error

    def _collect_strategies(self) -> dict[str, type[Strategy]]:
        strategies: dict[str, type[Strategy]] = {}
        for implementation in self.manager.hook.mmaf_strategies.get_hookimpls():
            for cls in _brought(implementation):
                problem = _strategy_problem(cls)
                if problem:
                    raise PluginError(f"plugin {implementation.plugin_name!r}: strategy {cls!r} {problem}")
                if cls.name in strategies and strategies[cls.name] is not cls:
                    raise PluginError(
                        f"plugin {implementation.plugin_name!r} brings a second strategy named {cls.name!r}; rename "
                        f"it, or disable the plugin that brings {strategies[cls.name]!r}"
                    )
                strategies[cls.name] = cls
        return strategies

    # ------------------------------------------------------------------ use
    def add(self, plugin: object, name: str) -> None:
        """Register one more plugin; see the class for the errors."""
        self._register(plugin, name, "built in")
        self._check()

    def strategy(self, name: str) -> Strategy:
        """Make the strategy ``name`` with its section of the settings.

        Raises
        ------
        SettingsError
            When there is none of that name, or a key of its section is wrong.
        """
        cls = self.strategies.get(name)
        if cls is None:
            raise SettingsError(f"unknown strategy {name!r}; there are: {', '.join(sorted(self.strategies))}")
        section = self.settings.strategies.get(name, {})
        settings: StrategySettings = validate(cls.Settings, section, f"[strategies.{name}]")
        return cls(settings)

    def check_sections(self) -> None:
        """Check that every section of the settings belongs to somebody.

        Raises
        ------
        SettingsError
            When ``[strategies.x]`` names no strategy or ``[plugins.x]`` no plugin.
        """
        for name, section in self.settings.strategies.items():
            if name not in self.strategies:
                raise SettingsError(
                    f"[strategies.{name}]: unknown strategy {name!r}; there are: {', '.join(sorted(self.strategies))}"
                )
            validate(self.strategies[name].Settings, section, f"[strategies.{name}]")
        models: dict[str, Any] = {}
        for part in self.manager.hook.mmaf_settings():
            models.update(part)
        for name, section in self.settings.plugins.items():
            if name not in models:
                raise SettingsError(
                    f"[plugins.{name}]: no active plugin has settings of that name; there are: "
                    + (", ".join(sorted(models)) or "none")
                )
            validate(models[name], section, f"[plugins.{name}]")

    def trace(self, write: Any) -> None:
        """Write every hook call, indented, through ``write(text)``."""
        self.manager.trace.root.setwriter(write)
        self.manager.enable_tracing()

    def active(self) -> list[PluginInfo]:
        """List the active plugins in the order in which they are asked."""
        infos = []
        for name, plugin in reversed(self.manager.list_name_plugin()):
            if plugin is None:
                continue
            callers = self.manager.get_hookcallers(plugin) or []
            brings: tuple[str, ...] = ()
            for implementation in self.manager.hook.mmaf_strategies.get_hookimpls():
                if implementation.plugin is plugin:
                    brings = tuple(cls.name for cls in _brought(implementation))
            infos.append(
                PluginInfo(name, self._sources.get(name, ""), tuple(sorted(c.name for c in callers)), brings)
            )
        return infos


def caller(name: str) -> Any:
    """Load a caller ("pycromanager", "mda") from the entry points ``mm_autofocus.callers``.

    Raises
    ------
    PluginError
        When it is not installed.
    """
    for point in entry_points(group=CALLERS):
        if point.name == name:
            return _load(point)
    raise PluginError(
        f"the caller {name!r} is not installed; reinstall mm-autofocus so that its entry points are registered"
    )


def _brought(implementation: pluggy.HookImpl) -> Sequence[type[Strategy]]:
    try:
        classes: Any = implementation.function()
        return tuple(classes)
    except Exception as error:
        raise PluginError(
            f"plugin {implementation.plugin_name!r}: mmaf_strategies must return a list of classes: "
            f"{type(error).__name__}: {error}"
        ) from error


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise PluginError(
            f"plugin {point.name!r} ({_source(point)}) cannot be imported: {type(error).__name__}: {error}. Fix it, "
            f'or set disable = ["{point.name}"].'
        ) from error


def _source(point: EntryPoint) -> str:
    distribution = getattr(point, "dist", None)
    return f"{distribution.name} {distribution.version}: {point.value}" if distribution else point.value


def _ours_first(point: EntryPoint) -> tuple[bool, str]:
    # pluggy asks the plugin registered last first: ours go first, so that others may override them
    return not point.value.startswith(("mm_autofocus.", "mm_autofocus_")), point.name


def _name_of(plugin: object) -> str:
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return f"{name}@{id(plugin):x}" if not inspect.isclass(plugin) and not inspect.ismodule(plugin) else str(name)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _strategy_problem(cls: Any) -> str:
    if not inspect.isclass(cls):
        return "is not a class"
    if not isinstance(getattr(cls, "name", ""), str) or not getattr(cls, "name", ""):
        return 'has no name; give the class an attribute name = "..."'
    settings = getattr(cls, "Settings", None)
    if not (inspect.isclass(settings) and issubclass(settings, StrategySettings)):
        return "has no Settings; give the class an attribute Settings, a subclass of StrategySettings"
    for method in ("focus", "score"):
        if not callable(getattr(cls, method, None)):
            return f"has no method {method}()"
    return ""
