"""What several algorithms need and no paper owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parl_cli.config import TrainConfig
from parl_cli.errors import ConfigError


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's per-parameter state, keyed by text: a tree that a checkpoint can hold without pickle.

    Hyper-parameters are left out: they come from the config and its schedules.
    """
    return {str(index): dict(entry) for index, entry in optimizer.state_dict()["state"].items()}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], keys: Sequence[str] = ("step", "exp_avg", "exp_avg_sq")
) -> None:
    """The inverse of `optimizer_state`.

    Args:
        optimizer: over the same parameters.
        state: may come from a file.
        keys: what the optimizer keeps for each parameter; the default is Adam's.

    Raises:
        ValueError: it is not the state of these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    check_optimizer_state(parameters, state, keys)
    entries = {int(index): dict(entry) for index, entry in state.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def check_optimizer_state(
    parameters: Sequence[Tensor], state: dict[str, Any], keys: Sequence[str] = ("step", "exp_avg", "exp_avg_sq")
) -> None:
    """Refuse a state that is not one of these parameters: a fused kernel trusts sizes blindly.

    Raises:
        ValueError: entries, names, shapes or types differ.
    """
    if state and sorted(map(int, state)) != list(range(len(parameters))):
        raise ValueError(f"optimizer state of {len(state)} parameters; the network has {len(parameters)}")
    for index, entry in state.items():
        if sorted(entry) != sorted(keys):
            raise ValueError(f"optimizer state of parameter {index} has {sorted(entry)} instead of {sorted(keys)}")
        for name, value in entry.items():
            shape = [] if name == "step" else list(parameters[int(index)].shape)
            if not isinstance(value, Tensor) or list(value.shape) != shape or not value.is_floating_point():
                raise ValueError(f"optimizer state {name} of parameter {index} is not a float tensor of shape {shape}")


def check_columns(config: TrainConfig, policy: Any) -> None:
    """Refuse minibatches that whole columns cannot be dealt to: a recurrent policy learns from these.

    Raises:
        ConfigError: they do not divide the envs.
    """
    count, num_envs = config.algo.num_minibatches, config.num_envs
    if policy.state_size > 0 and num_envs % count:
        fitting = max(k for k in range(1, min(count, num_envs + 1)) if num_envs % k == 0)
        raise ConfigError(
            f"algo.num_minibatches={count}: policy={config.policy.name} is recurrent and learns from whole columns, "
            f"so it must divide num_envs={num_envs}; try algo.num_minibatches={fitting}"
        )


def check_minibatches(config: TrainConfig) -> None:
    """Refuse minibatches that rollouts cannot be cut into.

    Raises:
        ConfigError: they do not divide the rollout, or have no advantage to normalise by.
    """
    algo = config.algo
    rows = algo.num_steps * config.num_envs
    if algo.normalize_advantage and rows < 2:
        raise ConfigError(
            "algo.num_steps × num_envs = 1: an advantage alone cannot be normalised; raise one of them, or set "
            "algo.normalize_advantage=false"
        )
    if rows % algo.num_minibatches:
        most = rows // 2 if algo.normalize_advantage else rows
        fitting = max(k for k in range(1, min(algo.num_minibatches, most + 1)) if rows % k == 0)
        raise ConfigError(
            f"algo.num_minibatches={algo.num_minibatches}: must divide algo.num_steps × num_envs = "
            f"{algo.num_steps} × {config.num_envs} = {rows}; try algo.num_minibatches={fitting}"
        )
    if algo.normalize_advantage and rows // algo.num_minibatches < 2:
        raise ConfigError(
            f"algo.num_minibatches={algo.num_minibatches}: leaves one step per minibatch, whose advantage "
            "cannot be normalised; lower it, or set algo.normalize_advantage=false"
        )
