"""What Hydra, OmegaConf and YAML raise, as one line with the value, the rule and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from parl_cli.errors import ConfigError, suggest

_ENV_ID = re.compile(r"env/(.*/.*|.*-v\d+)")  # FrozenLake-v1, ALE/Pong-v5
_EMPTY = re.compile(r"\b(choice|range|interval)\(\s*\)")


@contextmanager
def translated() -> Iterator[None]:
    """Raise a `ConfigError` instead of what a config library raises in the block."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """The message for a person."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not valid YAML: {error.problem or error.context}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_file(error)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.key is not None:
        return _unknown_key(cause)
    if isinstance(cause, InterpolationKeyError | MissingMandatoryValue):
        return f"{cause.full_key}: {_first_line(cause)}"
    return _known_phrase(str(error)) or _both_lines(error, cause)


def _unreadable(error: OverrideParseException) -> str:
    if "=" not in error.override and not error.override.startswith("~"):
        return f"cannot read {error.override!r}: write key=value"
    empty = _EMPTY.search(error.override)
    if empty is not None:
        return f"{error.override}: {empty[0]} holds no value; give some, like choice(1,2) or interval(0,1)"
    reason = _first_line(error).removeprefix(f"Error parsing override '{error.override}'").strip(" :")
    reason = f" ({reason})" if reason else ""
    return f"cannot read {error.override!r}{reason}: put a value with special characters in quotes, \"key='value'\""


def _missing_file(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"no config named {option}"
    env_id = _ENV_ID.fullmatch(str(error.missing_cfg_file))
    if env_id:
        return f"env={env_id[1]}: no such option; for a Gymnasium id type env=gym env.id={env_id[1]}"
    return f"{group}={option}: no such option; {suggest(option, error.options or [])}"


def _unknown_key(error: OmegaConfBaseException) -> str:
    wanted = str(error.full_key)
    root = error.parent_node._get_root() if error.parent_node is not None else None
    # The name may be right and only its place forgotten: clip_range for algo.clip_range.
    elsewhere = [path for path in _paths(root) if path.rsplit(".", 1)[-1] == wanted.rsplit(".", 1)[-1]]
    if elsewhere:
        return f"unknown key {wanted}; did you mean {' or '.join(sorted(elsewhere)[:3])}?"
    siblings = [str(key) for key in error.parent_node if key != "hydra"] if _is_dict(error.parent_node) else []
    if error.parent_node is root and "algo" in siblings:
        siblings += ["experiment", "debug", "tuned"]
    if not siblings:
        return f"unknown key {wanted}; {wanted.rpartition('.')[0]} has no keys"
    return f"unknown key {wanted}; {suggest(str(error.key), siblings)}"


def _known_phrase(text: str) -> str | None:
    several = re.search(r"Ambiguous value for argument '([^=']+)=([^']*)'", text)
    if several:
        key, values = several.groups()
        return f"{key}={values}: several values need -m (one job for each); for one list write {key}=[{values}]"
    sweep = re.search(r"Sweep parameters '([^']+)' requires --multirun", text)
    if sweep:
        return f"{sweep[1]}: several values need -m (one job for each)"
    present = re.search(r"An item is already at '([^']+)'", text)
    if present:
        return f"+{present[1]}: the key is there already; leave out the +"
    group = re.search(r"Could not override '([^']+)'\.\s*(?:Did you mean to override ([^?\s]+)|No match)", text)
    if group:
        hint = f"did you mean {group[2]}?" if group[2] else "parl list shows the groups of parl train"
        return f"unknown config group {group[1]}; {hint}"
    return None


def _both_lines(error: BaseException, cause: BaseException | None) -> str:
    first = _first_line(error)
    second = _first_line(cause) if cause is not None and cause is not error else ""
    return f"{first}: {second}" if second and second not in first else first


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _is_dict(node: Any) -> bool:
    return isinstance(node, DictConfig) and not node._is_none() and not node._is_missing()


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted paths of every key, without Hydra's own."""
    if not _is_dict(node):
        return
    for key, value in node.items_ex(resolve=False):
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            yield from _paths(value, f"{prefix}{key}.")
