"""The arrays that pass between a vectorizer and its groups of envs: one block per field, one row per env.

All fields lie behind each other in one buffer, so that the same code serves plain memory (serial, thread) and shared
memory (subprocess). A group writes its rows in place; nothing is copied on the way to whoever reads the block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium import spaces

from parl_cli.errors import ConfigError
from parl_cli.vectorizers.structured import item_layout

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # field name -> (shape, dtype)

ALIGNMENT = 64  # bytes; a cache line, so that no two fields share one


def make_layout(
    observation_space: spaces.Space, action_space: spaces.Space, num_envs: int, num_agents: int | None
) -> Layout:
    """Shapes and dtypes of every field of `Blocks`.

    Args:
        observation_space: one agent's.
        action_space: one agent's.
        num_envs: N, the rows.
        num_agents: A, or None for a single-agent env (no agent axis).

    Raises:
        ConfigError: a space with no fixed layout, or agents with structured items.
    """
    rows: tuple[int, ...] = (num_envs,)
    lead = rows if num_agents is None else (num_envs, num_agents)
    obs_shape, obs_dtype = item_layout(observation_space, "observation")
    action_shape, action_dtype = item_layout(action_space, "action")
    if num_agents is not None and (obs_dtype.names or action_dtype.names):
        raise ConfigError("agents with Dict or Tuple spaces: use one array each, as env.wrappers=[flatten_obs] gives")
    # reward is float64, as in Gymnasium's vector envs; `recv` hands it on as float32
    return {
        "action": (lead + action_shape, action_dtype),
        "obs": (lead + obs_shape, obs_dtype),
        "final_obs": (lead + obs_shape, obs_dtype),
        "reward": (lead, np.dtype(np.float64)),
        "terminated": (lead, np.dtype(np.bool_)),
        "truncated": (lead, np.dtype(np.bool_)),
        "mask": (lead, np.dtype(np.bool_)),
        "ended": (rows, np.dtype(np.bool_)),
        "episode_return": (lead, np.dtype(np.float64)),
        "episode_length": (rows, np.dtype(np.int64)),
        "episode_numbers": (rows, np.dtype(np.int64)),
    }


def buffer_size(layout: Layout) -> int:
    """Bytes that `Blocks.over` needs for this layout."""
    return sum(_padded_size(shape, dtype) for shape, dtype in layout.values())


def arrays_over(buffer: Any, layout: Layout, offset: int = 0) -> dict[str, np.ndarray]:
    """An array per field, in a writable buffer with `buffer_size(layout)` bytes behind `offset`; they keep it alive."""
    arrays = {}
    for name, (shape, dtype) in layout.items():
        arrays[name] = np.ndarray(shape, dtype, buffer, offset)
        offset += _padded_size(shape, dtype)
    return arrays


@dataclass(frozen=True)
class Blocks:
    """One array per field; N rows, lead = (N) or (N, A)."""

    action: np.ndarray  # [*lead, *item]
    obs: np.ndarray  # [*lead, *item]; the next observation to act on
    final_obs: np.ndarray  # [*lead, *item]; what ended the last episode
    reward: np.ndarray  # [*lead] float64
    terminated: np.ndarray  # [*lead] bool
    truncated: np.ndarray  # [*lead] bool
    mask: np.ndarray  # [*lead] bool: alive before the step
    ended: np.ndarray  # [N] bool: the env's episode is over
    episode_return: np.ndarray  # [*lead] float64, of the last episode that ended
    episode_length: np.ndarray  # [N] int64, of the last episode that ended
    episode_numbers: np.ndarray  # [N] int64: which episode `obs` belongs to; -1 before the first

    @classmethod
    def over(cls, buffer: Any, layout: Layout) -> Blocks:
        """Views into a writable buffer of at least `buffer_size(layout)` bytes, which they keep alive."""
        return cls(**arrays_over(buffer, layout))

    @classmethod
    def plain(cls, layout: Layout) -> Blocks:
        """Blocks in this process's own memory, zeroed."""
        return cls.over(np.zeros(buffer_size(layout), np.uint8), layout)

    def rows(self, ids: range) -> Blocks:
        """The same blocks, seen as only these envs' rows."""
        return Blocks(**{f.name: getattr(self, f.name)[ids.start : ids.stop] for f in fields(self)})


def _padded_size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
