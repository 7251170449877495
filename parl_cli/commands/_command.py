"""The commands that are a dataclass of keys and no training job: `parl eval`, `parl resume`, `parl report`.

Composed by Hydra on conf/<command>.yaml, but nothing of a Hydra run: no folder, no logging. With -m the command is
done once for each combination of the values, all of them checked before the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parl_cli import plugins
from parl_cli.commands._flags import parse_flags
from parl_cli.config import parse
from parl_cli.errors import ConfigError


def run_command(
    name: str,
    config_class: type,
    args: list[str],
    action: Callable[[Any], Any],
    paths: frozenset[str],
    words: str | None = None,
) -> int:
    """Read the command line into `config_class` and call `action` with it.

    Args:
        name: the command, and its config's name.
        config_class: the dataclass of its keys.
        args: what was typed after the command.
        action: does the work; it is called only once everything typed is known to be valid.
        paths: the keys whose values are paths: they may hold any character, unquoted.
        words: the key, a list of paths, whose values may be typed alone; None: there is none.

    Returns:
        The exit code.

    Raises:
        ConfigError: bad input.
    """
    flags = parse_flags(name, args)
    if flags.help:
        from parl_cli.commands._help import command_help

        print(command_help(name, config_class, words))
        return 0

    from parl_cli.commands._show import show

    plugins.activate(flags.overrides)
    from parl_cli.composition.compose import compose, gather_words, plain, quote_values, session
    from parl_cli.composition.grid import expand

    if words is not None:
        flags.overrides = gather_words(flags.overrides, words)
    if not flags.multirun:
        # With -m a comma separates values, so there a path with one in it must be quoted by the user.
        flags.overrides = quote_values(flags.overrides, paths)
    with session(flags.config_dir) as hydra:
        if flags.cfg or flags.info:
            show(hydra, name, flags)
            return 0
        jobs = expand(hydra.config_loader, flags.overrides) if flags.multirun else [flags.overrides]
        commands: list[Any] = []
        for overrides in jobs:
            try:
                commands.append(parse(config_class, plain(compose(hydra, name, overrides))))
            except ConfigError as error:
                if flags.multirun:
                    raise ConfigError(f"{' '.join(overrides)}: {error}") from error
                raise
    folders = [command.output for command in commands if getattr(command, "output", None) is not None]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"output={folders[0]}: several jobs would write there; leave it out, or give each its own")
    for command in commands:
        action(command)
    return 0
