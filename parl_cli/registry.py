"""Names a user can type, and the classes behind them.

A name maps to a `"module:Class"` string that is imported only when it is used, so `parl list` and `parl --help`
stay light. Nothing that comes from a file is ever imported: a file holds names, and names are looked up here.

Plug-ins (`plugins.py`) add to what parl brings, by `register` and `add_config_dir`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from parl_cli.errors import ConfigError, suggest

_TARGETS: dict[str, dict[str, str]] = {
    "algo": {
        "ppo": "parl_cli.algos.ppo:PPO",
        "truly_ppo": "parl_cli.algos.truly_ppo:TrulyPPO",
        "tr_ppo": "parl_cli.algos.tr_ppo:TRPPO",
        "tr_ppo_rb": "parl_cli.algos.tr_ppo_rb:TRPPORB",
        "ppo_rb": "parl_cli.algos.ppo_rb:PPORB",
        "appo": "parl_cli.algos.appo:APPO",
        "a2c": "parl_cli.algos.a2c:A2C",
        "a3c": "parl_cli.algos.a3c:A3C",
        "impala": "parl_cli.algos.impala:IMPALA",
    },
    "policy": {
        "mlp": "parl_cli.policies.actor_critic:ActorCritic",
    },
    "vectorizer": {
        "serial": "parl_cli.vectorizers.serial:SerialVectorizer",
        "thread": "parl_cli.vectorizers.thread:ThreadVectorizer",
        "subprocess": "parl_cli.vectorizers.subprocess:SubprocessVectorizer",
        "hybrid": "parl_cli.vectorizers.hybrid:HybridVectorizer",
        "async": "parl_cli.vectorizers.asynchronous:AsyncVectorizer",
        "native": "parl_cli.vectorizers.native:NativeVectorizer",
        "auto": "parl_cli.vectorizers.auto:AutoVectorizer",
    },
    "actors": {
        "inline": "parl_cli.actors.inline:InlineActors",
        "process": "parl_cli.actors.process:ProcessActors",
        "thread": "parl_cli.actors.thread:ThreadActors",
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
    "sink": {
        "csv": "parl_cli.metrics.csv:CsvSink",
        "tensorboard": "parl_cli.metrics.tensorboard:TensorBoardSink",
        "wandb": "parl_cli.metrics.wandb:WandbSink",
        "mlflow": "parl_cli.metrics.mlflow:MlflowSink",
    },
}

# What a class of a kind must have to be used at all.
_PARTS = {
    "algo": ("Config", "check"),
    "policy": ("Config",),
    "vectorizer": ("Config",),
    "actors": ("Config",),
    "wrapper": ("Config",),
    "sink": ("Config", "check", "make"),
}

_CONFIG_DIRS: list[Path] = []


def kinds() -> list[str]:
    """Every kind of thing that has names."""
    return list(_TARGETS)


def names(kind: str) -> list[str]:
    """The registered names of one kind, in the order they were registered."""
    return list(_TARGETS[kind])


def target(kind: str, name: str) -> str:
    """The `"module:Class"` behind a registered name."""
    return _TARGETS[kind][name]


def config_dirs() -> list[Path]:
    """The config folders that plug-ins added, in the order they came."""
    return list(_CONFIG_DIRS)


def register(kind: str, name: str, target: str) -> None:
    """Add a name.

    Args:
        kind: one of `kinds()`.
        name: what a user types.
        target: `"module:Class"`, imported once the name is used.

    Raises:
        ConfigError: an unknown kind, or a name that is taken: there is no overriding.
    """
    if kind not in _TARGETS:
        raise ConfigError(f"cannot register {kind}={name}: unknown kind; {suggest(kind, _TARGETS)}")
    if not all(target.partition(":")):
        raise ConfigError(f'cannot register {kind}={name}: {target!r} is not of the form "module:Class"')
    taken_by = _TARGETS[kind].get(name, target)
    if taken_by != target:
        raise ConfigError(
            f"cannot register {kind}={name}: the name is taken by {taken_by}; choose another name for {target}"
        )
    _TARGETS[kind][name] = target


def add_config_dir(path: str | os.PathLike[str]) -> None:
    """Add a folder that is laid out like parl's `conf/`, with `algo/mine.yaml`, `env/mine.yaml`, `tuned/ppo/mine.yaml`.

    It is searched after parl's own `conf/`, and before `--config-dir` and `./conf`.

    Raises:
        ConfigError: no such folder.
    """
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise ConfigError(f"cannot add the config folder {folder}: no such folder; is it packaged with the plug-in?")
    if folder not in _CONFIG_DIRS:
        _CONFIG_DIRS.append(folder)


def load(kind: str, name: str) -> Any:
    """Import and return the class (or function) registered under a name.

    Raises:
        ConfigError: no such name, or a plug-in's target that does not load or lacks what its kind must have.
    """
    if name not in _TARGETS[kind]:
        raise ConfigError(f"{kind}={name}: no such {kind}; {suggest(name, _TARGETS[kind])}")
    module, _, attribute = _TARGETS[kind][name].partition(":")
    if module.startswith("parl_cli."):
        return getattr(importlib.import_module(module), attribute)  # a bug of ours keeps its traceback
    try:
        target = getattr(importlib.import_module(module), attribute)
        for part in _PARTS.get(kind, ()):
            getattr(target, part)
    # other people's code may raise anything while it is imported
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{kind}={name}: cannot load {_TARGETS[kind][name]}, which a plug-in registered "
            f"({type(error).__name__}: {' '.join(str(error).split())}); mend the plug-in"
        ) from error
    return target
