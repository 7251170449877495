"""What a vectorizer must know of its envs before it can make room for what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from parl_cli.errors import ConfigError


@dataclass(frozen=True)
class EnvDescription:
    """One env, or all envs of a group, which are alike. The spaces are one agent's."""

    observation_space: spaces.Space
    action_space: spaces.Space
    num_agents: int | None
    metadata: dict[str, Any]
    render_mode: str | None
    spec: Any

    @classmethod
    def of(cls, env: gym.Env) -> EnvDescription:
        """Ask an env. TypeError if it is none."""
        if not isinstance(env, gym.Env):
            raise TypeError(f"the factory returned {type(env).__name__}, not a gymnasium.Env")
        num_agents = env.get_wrapper_attr("num_agents") if env.has_wrapper_attr("num_agents") else None
        return cls(
            observation_space=env.observation_space,
            action_space=env.action_space,
            num_agents=num_agents if type(num_agents) is int else None,
            metadata=dict(env.metadata),
            render_mode=env.render_mode,
            spec=env.spec,
        )

    def check_same(self, other: EnvDescription, env_id: int) -> None:
        """Raise ConfigError unless `other`, the description of env `env_id`, can share blocks with this one."""
        for part in ("observation_space", "action_space", "num_agents"):
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine != theirs:
                raise ConfigError(f"env {env_id}: its {part} {theirs} differs from env 0's {mine}; make them equal")
