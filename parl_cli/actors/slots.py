"""What an actor process shares with the learner's: slots for finished rollouts, and a note of how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parl_cli.types import EnvSpec
from parl_cli.vectorizers.blocks import Layout, arrays_over, buffer_size, make_layout

_BOOL, _INT64, _FLOAT32 = np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.float32)


def slot_layout(spec: EnvSpec, policy: Any, num_steps: int, num_columns: int) -> Layout:
    """Shapes and dtypes of the arrays of one rollout, by field; see `parl_cli.buffers.rollouts.as_rollout`.

    There is room for an episode that ends at every step.

    Args:
        spec: the env's spaces.
        policy: on the CPU; it acts once, to show what it returns.
        num_steps: T.
        num_columns: N.
    """
    rows = make_layout(spec.observation_space, spec.action_space, num_columns, spec.num_agents)
    item, obs_dtype = rows["obs"][0][1:], rows["obs"][1]
    one = (1, *spec.agents)
    probe = np.empty((1, *item), obs_dtype)
    probe[:] = spec.observation_space.sample()
    state = torch.zeros(*one, policy.state_size) if policy.state_size else None
    with torch.no_grad():
        output = policy.act(
            torch.from_numpy(probe), state, torch.ones(one, dtype=torch.bool), torch.full((*one, policy.noise_dim), 0.5)
        )
    steps, finals = (num_steps, num_columns), num_steps * num_columns
    lead = (*steps, *spec.agents)
    layout: Layout = {
        "obs": ((*steps, *item), obs_dtype),
        "last_obs": ((num_columns, *item), obs_dtype),
        "final_obs": ((finals, *item), obs_dtype),
        "final_index": ((finals, 2), _INT64),
        "env_id": ((num_columns,), _INT64),
        "policy_version": (steps, _INT64),
        "reward": (lead, _FLOAT32),
        "last_is_first": ((num_columns, *spec.agents), _BOOL),
        **dict.fromkeys(("terminated", "truncated", "mask", "is_first"), (lead, _BOOL)),
    }
    for name, tensor in {"action": output.action, **output.extras}.items():
        array = tensor.numpy()
        layout[name] = ((*steps, *array.shape[1:]), array.dtype)
    if policy.state_size:
        layout["state"] = ((num_columns, *spec.agents, policy.state_size), _FLOAT32)
        layout["final_state"] = ((finals, *spec.agents, policy.state_size), _FLOAT32)
    return layout


@dataclass(frozen=True)
class Status:
    """How far an actor is, written by it after every step, and one thing that it is told."""

    steps: np.ndarray  # [1] int64: env steps since it was started
    version: np.ndarray  # [1] int64: of the weights it acts with; −1 before the first
    stop: np.ndarray  # [1] bool: it shall end at the next step
    episode_numbers: np.ndarray  # [N] int64: the last episode begun in each env
    acted: np.ndarray  # [N] uint64: actions ever taken in each env

    @classmethod
    def layout(cls, num_envs: int) -> Layout:
        """Shapes and dtypes of its fields."""
        return {
            "steps": ((1,), _INT64),
            "version": ((1,), _INT64),
            "stop": ((1,), _BOOL),
            "episode_numbers": ((num_envs,), _INT64),
            "acted": ((num_envs,), np.dtype(np.uint64)),
        }

    @classmethod
    def over(cls, buffer: Any, num_envs: int) -> Status:
        """At the beginning of a buffer."""
        return cls(**arrays_over(buffer, cls.layout(num_envs)))

    @classmethod
    def begin(cls, buffer: Any, episode_numbers: np.ndarray, acted: np.ndarray) -> Status:
        """At the beginning of a buffer, for an actor that goes on where another ended."""
        status = cls.over(buffer, len(acted))
        status.steps[:], status.version[:], status.stop[:] = 0, -1, False
        status.episode_numbers[:], status.acted[:] = episode_numbers, acted
        return status


@dataclass(frozen=True)
class SlotPlan:
    """How the memory of one actor is divided: a status, then slots."""

    num_envs: int
    num_slots: int
    layout: Layout  # of a slot

    @property
    def size(self) -> int:
        """Bytes in all."""
        return buffer_size(Status.layout(self.num_envs)) + self.num_slots * buffer_size(self.layout)

    def slots(self, buffer: Any) -> list[dict[str, np.ndarray]]:
        """The arrays of each slot, by field."""
        first, length = buffer_size(Status.layout(self.num_envs)), buffer_size(self.layout)
        return [arrays_over(buffer, self.layout, first + k * length) for k in range(self.num_slots)]
