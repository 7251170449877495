"""What a vectorizer must know of its envs before it can make room for what they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector.utils import batch_differing_spaces, batch_space

from parl_cli.errors import SpaceError
from parl_cli.vectorizers.structured import item_layout

ObservationMode = str | tuple[spaces.Space, spaces.Space]  # "same", "different", or the spaces (of all envs, of one)


@dataclass(frozen=True)
class EnvDescription:
    """One env, or all envs of a group, which are alike. The spaces are one agent's."""

    observation_space: spaces.Space
    action_space: spaces.Space
    num_agents: int | None
    metadata: dict[str, Any]
    render_mode: str | None
    spec: Any
    each_observation_space: tuple[spaces.Space, ...] = ()  # of every env of a group, where they may differ

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

    def check_same(self, env_id: int, other: EnvDescription, other_id: int, *, same_observations: bool) -> None:
        """Raise SpaceError unless env `other_id` can share blocks with `env_id`, which is described here.

        Without `same_observations` their spaces are left to `check_alike`.
        """
        for part in ("observation_space", "action_space", "num_agents"):
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine == theirs or (part == "observation_space" and not same_observations):
                continue
            way_out = "make them equal"
            if part == "observation_space":  # Gymnasium's words
                way_out = (
                    "the sub-environments observation spaces are not equivalent. If this is intentional, use "
                    "`observation_mode='different'` instead. It is for other bounds; shapes and dtypes must be equal"
                )
            raise SpaceError(f"env {other_id}: its {part} {theirs} differs from env {env_id}'s {mine}; {way_out}")


def check_mode(mode: ObservationMode) -> None:
    """Raise SpaceError unless it is an observation mode of Gymnasium's."""
    if isinstance(mode, tuple) and len(mode) == 2 and all(isinstance(space, spaces.Space) for space in mode):
        return
    if mode not in ("same", "different"):
        raise SpaceError(  # Gymnasium's words; but its tuples begin with the batch's space, as ours do
            "Invalid `observation_mode`, expected: 'same' or 'different' or tuple of single and batch observation "
            f"space, actual got {mode}; such a tuple begins with the space of all envs"
        )


def check_alike(space: spaces.Space, each: Sequence[spaces.Space]) -> None:
    """Raise SpaceError unless the envs' observation spaces, one `each`, are laid out as `space`."""
    item_layout(space, "observation")  # refuses what Gymnasium cannot compare
    for env_id, theirs in enumerate(each):
        if not is_space_dtype_shape_equiv(space, theirs):
            raise SpaceError(
                f"env {env_id}: its observation_space {theirs} differs from {space} in more than bounds; "
                "give all envs one shape, dtype and set of keys"
            )


def batch_each(each: Sequence[spaces.Space], num_agents: int | None) -> spaces.Space:
    """The observation space of envs whose own are alike, but not the same."""
    return batch_differing_spaces([one_env(space, num_agents) for space in each])


def one_env(space: spaces.Space, num_agents: int | None) -> spaces.Space:
    """The space of one env, from that of one agent (None: the env's own)."""
    return space if num_agents is None else batch_space(space, num_agents)
