"""Plug-ins: modules that add names and configs to parl, without a fork.

Two ways in. An installed package has an entry point in the group `parl.plugins` whose value is a module; or the user
types `plugins=[my_module]`. Either way the module is imported before configs are composed, and while it is, it calls
`registry.register(kind, name, "module:Class")` and, if it brings configs, `registry.add_config_dir(folder)`.

Only what is installed or typed is imported, never what a file names. Environment workers import the same modules
(`EnvFactory`), so a plug-in's own module had better not import torch: the classes that need it are imported when
their names are used.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from parl_cli import registry
from parl_cli.errors import CheckpointError, ConfigError

GROUP = "parl.plugins"

_LIST = re.compile(r"\[\s*(?P<names>[^\[\]]*?)\s*\]")


@dataclass(frozen=True)
class Plugin:
    """One that was imported."""

    module: str
    source: str  # `my-package 1.0`, or `plugins=[my_module]`
    installed: bool  # by an entry point
    brings: tuple[str, ...]  # `algo=mine`, …, and config folders


_loaded: dict[str, Plugin] = {}


def loaded() -> list[Plugin]:
    """The plug-ins of this process, in the order they were imported."""
    return list(_loaded.values())


def installed() -> list[str]:
    """The modules of those that installed packages brought."""
    return [plugin.module for plugin in _loaded.values() if plugin.installed]


def activate(overrides: Sequence[str] = ()) -> None:
    """Import what is installed, and what is typed among the words of a command line; before anything is composed.

    Raises:
        ConfigError: see `load_installed` and `typed`.
    """
    load_installed()
    load(typed(overrides))


def load_installed() -> None:
    """Import the plug-ins of installed packages.

    Raises:
        ConfigError: one does not import, or registers what it must not.
    """
    # by name, so that it does not hang on the order of folders which of two takes a name first
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.value, entry.name)):
        package = "a package without a name" if entry.dist is None else entry.dist.name
        version = "" if entry.dist is None else f" {entry.dist.version}"
        who, way_out = f"plug-in {entry.value} of {package}", f"mend or uninstall {package}"
        _load(entry.value, f"{package}{version}", who, way_out, installed=True)


def load(modules: Iterable[str]) -> None:
    """Import the plug-ins that a user named; those of the working directory are found too.

    Raises:
        ConfigError: as `load_installed`.
    """
    for module in modules:
        search_working_directory()
        _load(module, f"plugins=[{module}]", f"plugins=[{module}]", "is it installed, or in this folder?")


def search_working_directory() -> None:
    """Let modules of the working directory be imported, for those that a user names.

    The `parl` script, unlike `python -m`, does not look there. Last in line: a file that happens to be called like
    an installed module does not take its place.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def typed(overrides: Sequence[str]) -> list[str]:
    """The modules in `plugins=[…]` among the words of a command line.

    Raises:
        ConfigError: not a list of module names.
    """
    modules: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key.lstrip("+") != "plugins":
            continue
        match = _LIST.fullmatch(value.strip("\"' "))
        names = re.split(r"\s*,\s*", match["names"]) if match and match["names"] else []
        modules = [name.strip("\"'") for name in names]  # the last one counts, as for every key
        if match is None or not all(is_module_name(name) for name in modules):
            raise ConfigError(f"{text}: must be a list of modules, like plugins=[my_module,other.module]")
    return modules


def require(values: Mapping[str, Any], given: Sequence[str], ask: Callable[[str], str]) -> None:
    """Import the plug-ins that the user named, and refuse a run whose config needs others: it is never followed.

    Args:
        values: the config of a run or checkpoint; nobody vouches for it.
        given: modules that the user named now.
        ask: from modules, `a,b`, the command that names them.

    Raises:
        ConfigError: the run used plug-ins that are not here, with the command that names them.
        CheckpointError: it names something that is not registered; the package that brought it is gone.
    """
    needed = values.get("plugins") or []
    if not isinstance(needed, list) or not all(isinstance(name, str) and is_module_name(name) for name in needed):
        raise CheckpointError(f"plugins={needed}: must be a list of module names; the file was tampered with")
    load_installed()  # who comes from Python, and composed nothing, has not done so
    load(given)
    if not {plugin.module for plugin in loaded()}.issuperset(needed):
        raise ConfigError(
            f"plugins=[{','.join(given)}]: this run used plugins=[{','.join(needed)}], which a file may not import by "
            f"itself; if you trust it, run {ask(','.join(dict.fromkeys([*given, *needed])))}"
        )
    for kind, name in _named(values):
        if name not in registry.names(kind):
            raise CheckpointError(
                f"{kind}={name}: this run used it, and nothing here registers it; install the package that brought "
                f"it, or run {ask(','.join([*given, 'MODULE']))} with the module that does"
            )


def is_module_name(text: str) -> bool:
    """Whether it is a dotted name, and nothing that a shell or a terminal would take for something else."""
    return all(part.isidentifier() for part in text.split("."))


def _load(module: str, source: str, who: str, way_out: str, installed: bool = False) -> None:
    if module in _loaded:
        return
    if not is_module_name(module):
        raise ConfigError(f"{who}: {module!r} is not the name of a module, like my_package.plugin")
    before = _brought()
    try:
        importlib.import_module(module)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from error
    except ModuleNotFoundError as error:
        own = f"{module}.".startswith(f"{error.name}.")
        reason = "no such module" if own else f"it needs the module {error.name}, which is not installed"
        raise ConfigError(f"{who}: cannot be imported, {reason}; {way_out if own else 'install that'}") from error
    # somebody else's code: whatever it raises, the user learns which plug-in it was
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{who}: cannot be imported ({type(error).__name__}: {error})") from error
    _loaded[module] = Plugin(module, source, installed, tuple(name for name in _brought() if name not in before))


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The (kind, name) pairs of a config, as far as it has the right shape; parsing it tells what has not."""
    env = values.get("env")
    env = env if isinstance(env, Mapping) else {}
    names: list[tuple[str, Any]] = [("adapter", env.get("adapter"))]
    for wrappers in (env.get("own_wrappers"), env.get("wrappers")):
        for item in wrappers if isinstance(wrappers, list) else ():
            names += [("wrapper", name) for name in (item if isinstance(item, Mapping) else [item])]
    for kind in ("vectorizer", "policy", "actors", "algo"):
        group = values.get(kind)
        names.append((kind, group.get("name") if isinstance(group, Mapping) else None))
    logger = values.get("logger")
    sinks = logger.get("sinks") if isinstance(logger, Mapping) else None
    names += [("sink", name) for name in (sinks if isinstance(sinks, Mapping | list) else ())]
    return ((kind, name) for kind, name in names if isinstance(name, str))


def _brought() -> list[str]:
    names = [f"{kind}={name}" for kind in registry.kinds() for name in registry.names(kind)]
    return names + [str(folder) for folder in registry.config_dirs()]
