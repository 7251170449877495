"""From the names in `env.wrappers` to wrappers around an env, whatever adapter made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from parl_cli import registry
from parl_cli.config import EnvConfig, parse
from parl_cli.envs.raw_return import RawReturn, ReportRawReturn
from parl_cli.errors import ConfigError, suggest


def wrap(env: gym.Env[Any, Any], config: EnvConfig) -> gym.Env[Any, Any]:
    """Put a config's wrappers around its env: its own ones, then those of `env.wrappers`, each first one innermost.

    Where one changes rewards or repeats steps, the last step of an episode carries
    `info["episode"] = {"r": raw return, "l": raw length}`.

    Raises:
        ConfigError: a wrapper that there is not, or that does not fit.
    """
    lists = {"env.own_wrappers": config.own_wrappers, "env.wrappers": config.wrappers}
    wrappers = [_parsed(f"{key}[{i}]", item) for key, items in lists.items() for i, item in enumerate(items)]
    raw = None
    if any(getattr(cls, "changes_return", True) for cls, _ in wrappers):  # a foreign wrapper may do anything
        env = raw = RawReturn(env)
    for cls, options in wrappers:
        env = cls(env, options)
    return env if raw is None else ReportRawReturn(env, raw)


def _parsed(key: str, item: Any) -> tuple[Any, Any]:
    """The class and the config of one list item."""
    options: Any
    if isinstance(item, str):
        name, options = item, {}
    elif isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
    else:
        raise ConfigError(
            f"{key}={item}: must be a name or {{name: {{option: value}}}}, like {{frame_stack: {{num: 4}}}}"
        )
    if name not in registry.names("wrapper"):
        raise ConfigError(f"{key}={name}: no such wrapper; {suggest(str(name), registry.names('wrapper'))}")
    cls = registry.load("wrapper", name)
    return cls, parse(cls.Config, {} if options is None else options, f"{key}.{name}")
