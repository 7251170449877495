"""Names a user can type, and the classes behind them.

A name maps to a `"module:Class"` string that is imported only when it is used, so `parl list` and `parl --help`
stay light. Nothing that comes from a file is ever imported: a file holds names, and names are looked up here.
"""

from __future__ import annotations

import importlib
from typing import Any

from parl_cli.errors import ConfigError, suggest

_TARGETS: dict[str, dict[str, str]] = {
    "algo": {
        "ppo": "parl_cli.algos.ppo:PPO",
        "truly_ppo": "parl_cli.algos.truly_ppo:TrulyPPO",
        "tr_ppo": "parl_cli.algos.tr_ppo:TRPPO",
        "tr_ppo_rb": "parl_cli.algos.tr_ppo_rb:TRPPORB",
        "ppo_rb": "parl_cli.algos.ppo_rb:PPORB",
    },
    "policy": {
        "mlp": "parl_cli.policies.actor_critic:ActorCritic",
    },
    "vectorizer": {
        "serial": "parl_cli.vectorizers.serial:SerialVectorizer",
        "thread": "parl_cli.vectorizers.thread:ThreadVectorizer",
        "subprocess": "parl_cli.vectorizers.subprocess:SubprocessVectorizer",
    },
    "actors": {
        "inline": "parl_cli.actors.inline:InlineActors",
    },
    "adapter": {
        "gymnasium": "parl_cli.envs.gymnasium_adapter:make_env",
    },
    "wrapper": {
        "frame_stack": "parl_cli.envs.wrappers:FrameStack",
        "flatten_obs": "parl_cli.envs.wrappers:FlattenObs",
        "select_obs": "parl_cli.envs.wrappers:SelectObs",
        "obs_scale": "parl_cli.envs.wrappers:ObsScale",
        "reward_clip": "parl_cli.envs.wrappers:RewardClip",
        "reward_scale": "parl_cli.envs.wrappers:RewardScale",
        "action_rescale": "parl_cli.envs.wrappers:ActionRescale",
        "action_clip": "parl_cli.envs.wrappers:ActionClip",
        "action_repeat": "parl_cli.envs.wrappers:ActionRepeat",
        "fresh_world": "parl_cli.envs.wrappers:FreshWorld",
        "time_limit": "parl_cli.envs.wrappers:TimeLimit",
    },
    "logger": {
        "csv": "parl_cli.metrics.csv:CsvSink",
        "tensorboard": "parl_cli.metrics.tensorboard:TensorBoardSink",
    },
}


def kinds() -> list[str]:
    """Every kind of thing that has names."""
    return list(_TARGETS)


def names(kind: str) -> list[str]:
    """The registered names of one kind, in the order they were registered."""
    return list(_TARGETS[kind])


def register(kind: str, name: str, target: str) -> None:
    """Add a name; `target` is `"module:Class"`. A taken name is an error, never an override."""
    if kind not in _TARGETS:
        raise ConfigError(f"cannot register {kind}={name}: unknown kind; {suggest(kind, _TARGETS)}")
    if _TARGETS[kind].get(name, target) != target:
        taken_by = _TARGETS[kind][name]
        raise ConfigError(f"cannot register {kind}={name}: the name is taken by {taken_by}; choose another name")
    _TARGETS[kind][name] = target


def load(kind: str, name: str) -> Any:
    """Import and return the class (or function) registered under a name."""
    if name not in _TARGETS[kind]:
        raise ConfigError(f"{kind}={name}: no such {kind}; {suggest(name, _TARGETS[kind])}")
    module, _, attribute = _TARGETS[kind][name].partition(":")
    return getattr(importlib.import_module(module), attribute)
