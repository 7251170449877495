"""Every kind of space, and rollouts made of random numbers, without an environment."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from parl_cli.types import EnvSpec, Rollout

VECTOR = spaces.Box(-1, 1, (3,), np.float32)

OBSERVATION_SPACES: dict[str, spaces.Space] = {
    "box": VECTOR,
    "box_unbounded": spaces.Box(-np.inf, np.inf, (4,), np.float64),
    "box_2d": spaces.Box(-2, 2, (2, 3), np.float32),
    "box_0d": spaces.Box(-1, 1, (), np.float32),
    "box_bytes": spaces.Box(0, 255, (5,), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete_start": spaces.Discrete(3, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 4]),
    "multi_discrete_start": spaces.MultiDiscrete([2, 4], start=[3, -1]),
    "multi_binary": spaces.MultiBinary(4),
    "multi_binary_2d": spaces.MultiBinary((2, 3)),
}

ACTION_SPACES: dict[str, tuple[spaces.Space, bool]] = {  # with policy.squash
    "discrete": (spaces.Discrete(3), False),
    "discrete_start": (spaces.Discrete(4, start=-2), False),
    "multi_discrete": (spaces.MultiDiscrete([3, 2, 4]), False),
    "multi_discrete_start": (spaces.MultiDiscrete([3, 2], start=[1, -1]), False),
    "multi_discrete_int32": (spaces.MultiDiscrete([3, 2], dtype=np.int32), False),
    "multi_binary": (spaces.MultiBinary(3), False),
    "box": (spaces.Box(-1, 1, (2,), np.float32), False),
    "box_unbounded": (spaces.Box(-np.inf, np.inf, (1,), np.float32), False),
    "box_float64": (spaces.Box(-1, 1, (2,), np.float64), False),
    "box_2d": (spaces.Box(-0.1, 0.1, (2, 3), np.float32), False),
    "box_squashed": (spaces.Box(np.float32([-1, 0, 2]), np.float32([3, 0.5, 100]), dtype=np.float32), True),
    "box_squashed_2d": (spaces.Box(-2, 1, (2, 2), np.float32), True),
}


def spec_of(observation_space: spaces.Space = VECTOR, action_space: spaces.Space | None = None) -> EnvSpec:
    """A spec without an env."""
    return EnvSpec("made-up", observation_space, action_space or spaces.Discrete(3))


def observe(space: spaces.Space, *lead: int, seed: int = 0) -> Tensor:
    """Random observations [*lead, *space.shape]."""
    space.seed(seed)
    rows = np.array([space.sample() for _ in range(int(np.prod(lead)))])
    return torch.from_numpy(rows.reshape(*lead, *space.shape))


def uniform_noise(policy: Any, *lead: int, seed: int = 0) -> Tensor:
    """Noise [*lead, noise_dim] for `policy.act`."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(0.001, 0.999, (*lead, policy.noise_dim)).astype(np.float32))


def random_rollout(
    policy: Any, spec: EnvSpec, *, num_steps: int = 8, num_columns: int = 4, seed: int = 0, end_share: float = 0.2
) -> Rollout:
    """Random observations, rewards and ends (half of them truncated), with actions that the policy drew."""
    rng = np.random.default_rng(seed)
    lead = (num_steps, num_columns)
    obs = observe(spec.observation_space, num_steps + 1, num_columns, seed=seed)
    over = rng.random(lead) < end_share
    truncated = over & (rng.random(lead) < 0.5)
    is_first = np.zeros((num_steps + 1, num_columns), bool)
    is_first[0] = rng.random(num_columns) < 0.5
    is_first[1:] = over
    final_index = torch.from_numpy(np.argwhere(over))
    with torch.no_grad():
        output = policy.act(obs[:-1], None, torch.from_numpy(is_first[:-1]), uniform_noise(policy, *lead, seed=seed))
    return Rollout(
        env_id=torch.arange(num_columns),
        policy_version=torch.zeros(lead, dtype=torch.int64),
        mask=torch.ones(lead, dtype=torch.bool),
        obs=obs[:-1],
        action=output.action,
        reward=torch.from_numpy(rng.normal(size=lead).astype(np.float32)),
        terminated=torch.from_numpy(over & ~truncated),
        truncated=torch.from_numpy(truncated),
        is_first=torch.from_numpy(is_first[:-1]),
        last_obs=obs[-1],
        last_is_first=torch.from_numpy(is_first[-1]),
        final_index=final_index,
        final_obs=observe(spec.observation_space, len(final_index), seed=seed + 1),
        extras=output.extras,
    )


def clone(rollout: Rollout) -> Rollout:
    """A copy that shares no memory."""
    values = {f.name: getattr(rollout, f.name) for f in dataclasses.fields(Rollout)}
    values = {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}
    values["extras"] = {k: v.clone() for k, v in rollout.extras.items()}
    return Rollout(**values)
