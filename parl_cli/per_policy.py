"""A run of several policies, as a run of each: `num_policies=K policies.1.algo.learning_rate=1e-3`.

Columns belong to policy `env_id % K`. So policy p has every K-th env, from env p on, and everything else of its own:
weights, optimizer, hyper-parameters, actors. What is made of its part of the config is made as for a run with that
policy alone, and nothing below knows that there are others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parl_cli.config import TrainConfig, parse, to_plain
from parl_cli.errors import ConfigError

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")
_MAY_DIFFER = ("algo", "policy")
_SHARED = {
    "name": "they must be of one class",
    "num_steps": "they learn from rollouts of one length",
}


@dataclass(frozen=True)
class Part:
    """One policy's part of a run.

    Attributes:
        policy_id: from 0.
        env_ids: what its envs are called in the whole run.
        config: of a run with this policy alone.
    """

    policy_id: int
    env_ids: range
    config: TrainConfig

    def named(self, error: ConfigError) -> ConfigError:
        """An error of its config, with whose it is, where there are several."""
        if self.env_ids.step == 1:
            return error
        return ConfigError(f"policy {self.policy_id}, with {len(self.env_ids)} envs of its own: {error}")


def parts(config: TrainConfig) -> list[Part]:
    """Every policy's part of a run; of an only one the whole.

    Raises:
        ConfigError: envs or actors that cannot be shared out evenly, or keys that cannot differ between policies.
    """
    num_policies, num_envs = config.num_policies, config.num_envs
    changes = _changes(config)
    if num_policies == 1 and not changes:
        return [Part(0, range(num_envs), config)]
    _check_divides("num_envs", num_envs, num_policies)
    own: dict[str, Any] = {"num_policies": 1, "policies": {}, "num_envs": num_envs // num_policies}
    num_actors = getattr(config.actors, "num_actors", None)
    if num_actors is not None:
        _check_divides("actors.num_actors", num_actors, num_policies)
        own["actors"] = dataclasses.replace(config.actors, num_actors=num_actors // num_policies)
    return [
        Part(
            policy_id,
            range(policy_id, num_envs, num_policies),
            dataclasses.replace(config, **own, **changes.get(policy_id, {})),
        )
        for policy_id in range(num_policies)
    ]


def _check_divides(key: str, value: int, num_policies: int) -> None:
    if value % num_policies:
        more = -(-value // num_policies) * num_policies
        raise ConfigError(f"{key}={value}: must divide by num_policies={num_policies}; try {key}={more}")


def _changes(config: TrainConfig) -> dict[int, dict[str, Any]]:
    """By policy id, the components that are not those of the run."""
    changes: dict[int, dict[str, Any]] = {}
    for name, groups in config.policies.items():
        policy_id = int(name) if _NUMBER.fullmatch(name) else config.num_policies
        if policy_id >= config.num_policies:
            raise ConfigError(
                f"policies.{name}: there is no such policy; with num_policies={config.num_policies} the last is "
                f"policies.{config.num_policies - 1}"
            )
        if not isinstance(groups, Mapping):
            raise ConfigError(f"policies.{name}={groups}: must be a mapping, like {{algo: {{learning_rate: 1e-3}}}}")
        for group, values in groups.items():
            if group not in _MAY_DIFFER:
                raise ConfigError(f"policies.{name}.{group}: cannot differ between policies; keys of algo, policy can")
            changes.setdefault(policy_id, {})[group] = _changed(config, group, values, f"policies.{name}.{group}")
    return changes


def _changed(config: TrainConfig, group: str, values: Any, key: str) -> Any:
    component = getattr(config, group)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key}={values}: must be a mapping, like {{learning_rate: 1e-3}}")
    for name, why in _SHARED.items():
        if name in values:
            raise ConfigError(f"{key}.{name}={values[name]}: cannot differ between policies: {why}; set {group}.{name}")
    return parse(type(component), {**to_plain(component), **values}, key)
