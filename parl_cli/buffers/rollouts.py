"""Rollouts in the making: columns that fill up step by step, and what is done with whole ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parl_cli.types import Episode, Rollout

FINALS = ("final_index", "final_obs", "final_state")  # fields with a row per episode that ended
BY_COLUMN = ("env_id", "last_obs", "last_is_first", "state")  # fields with a row per column


class ColumnBuffer:
    """Columns of T steps in one block per field; grows when more are open than it holds.

    A column is opened for an env, written one step at a time, and taken once it is full. Fields other than the
    fixed ones (whatever the policy returns) are allocated at their first write.

    Args:
        num_steps: T.
        num_columns: how many columns to hold at first.
        agents: `()` or `(A,)`.
    """

    def __init__(self, num_steps: int, num_columns: int, agents: tuple[int, ...]) -> None:
        self.num_steps = num_steps
        self.agents = agents
        self._capacity = num_columns
        self._free = list(range(num_columns - 1, -1, -1))
        self._fields: dict[str, np.ndarray] = {}  # [T, C, ...]
        self._heads: dict[str, np.ndarray] = {}  # [C, ...]: one value per column
        self._finals: dict[int, list[tuple[int, np.ndarray, np.ndarray | None]]] = {}

    def open(self, count: int) -> np.ndarray:
        """Indices [count] of free columns, in ascending order where possible."""
        while len(self._free) < count:
            self._grow()
        return np.array([self._free.pop() for _ in range(count)], dtype=np.int64)

    def write(self, name: str, t: Any, columns: Any, rows: np.ndarray) -> None:
        """Put `rows` [B, ...] at step `t` (one number or [B]) of `columns` ([B] or a slice)."""
        if name not in self._fields:
            self._fields[name] = np.zeros((self.num_steps, self._capacity, *rows.shape[1:]), rows.dtype)
        self._fields[name][t, columns] = rows

    def read(self, name: str, t: Any, columns: Any) -> np.ndarray:
        """What was written at step `t` of `columns`."""
        return self._fields[name][t, columns]

    def write_whole(self, name: str, columns: np.ndarray, block: np.ndarray) -> None:
        """Put `block` [T, B, ...] into whole columns."""
        if name not in self._fields:
            self._fields[name] = np.zeros((self.num_steps, self._capacity, *block.shape[2:]), block.dtype)
        self._fields[name][:, columns] = block

    def write_head(self, name: str, columns: Any, rows: np.ndarray) -> None:
        """Put one value per column, `rows` [B, ...]."""
        if name not in self._heads:
            self._heads[name] = np.zeros((self._capacity, *rows.shape[1:]), rows.dtype)
        self._heads[name][columns] = rows

    def add_final(self, column: int, t: int, obs: np.ndarray, state: np.ndarray | None) -> None:
        """Keep what the last step of an episode led to, and the recurrent state it is read with."""
        self._finals.setdefault(column, []).append((t, obs, state))

    def take(
        self, columns: np.ndarray, episodes: list[Episode], out: Mapping[str, np.ndarray] | None = None
    ) -> Rollout:
        """Copy full columns out as a Rollout and free them.

        Args:
            columns: [N], which.
            episodes: those that finished while they were filled.
            out: arrays to copy into, by field, as `as_rollout` wants them; None: new ones.
        """
        # np.take: v[:, columns] would give column-major blocks, twice as slow to make and to flatten afterwards
        arrays = {
            name: np.take(block, columns, axis=axis, out=None if out is None else out[name], mode="clip")
            for blocks, axis in ((self._fields, 1), (self._heads, 0))
            for name, block in blocks.items()
            if name != "noise"
        }
        finals = [(t, n, *rest) for n, c in enumerate(columns.tolist()) for t, *rest in self._finals.pop(c, [])]
        ends = {
            "final_index": np.array([(t, n) for t, n, *_ in finals], np.int64).reshape(-1, 2),
            "final_obs": _stack([obs for _, _, obs, _ in finals], arrays["last_obs"]),
        }
        if "state" in arrays:
            ends["final_state"] = _stack([state for *_, state in finals], arrays["state"])
        if out is not None:
            for name, rows in ends.items():
                out[name][: len(finals)] = rows
            ends = {name: out[name] for name in ends}
        self._free.extend(columns[::-1].tolist())
        return as_rollout(arrays | ends, len(finals), episodes)

    def _grow(self) -> None:
        extra = self._capacity
        for blocks, axis in ((self._fields, 1), (self._heads, 0)):
            for name, block in blocks.items():
                blocks[name] = np.concatenate([block, np.zeros_like(block)], axis=axis)
        self._free = list(range(self._capacity + extra - 1, self._capacity - 1, -1)) + self._free
        self._capacity += extra


def _stack(rows: list[Any], like: np.ndarray) -> np.ndarray:
    return np.stack(rows) if rows else like[:0].copy()


def as_rollout(arrays: Mapping[str, np.ndarray], num_finals: int, episodes: list[Episode]) -> Rollout:
    """A Rollout over arrays, without copying them.

    Args:
        arrays: by name of the field; names that a Rollout does not have are extras.
        num_finals: K, the rows of `final_index`, `final_obs` and `final_state` that count.
        episodes: those that finished in it.
    """
    known = {f.name for f in dataclasses.fields(Rollout)}
    tensors: dict[str, Any] = {
        name: torch.from_numpy(array[:num_finals] if name in FINALS else array) for name, array in arrays.items()
    }
    return Rollout(
        **{name: tensor for name, tensor in tensors.items() if name in known},
        extras={name: tensor for name, tensor in tensors.items() if name not in known},
        episodes=episodes,
    )


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """Several rollouts of equal T side by side, as one with all their columns."""
    if len(rollouts) == 1:
        return rollouts[0]
    merged: dict[str, Any] = {}
    offsets = np.cumsum([0, *(len(r.env_id) for r in rollouts[:-1])]).tolist()
    for spec in dataclasses.fields(Rollout):
        parts = [getattr(r, spec.name) for r in rollouts]
        if spec.name == "final_index":
            shifted = [p + torch.tensor([0, o], device=p.device) for p, o in zip(parts, offsets, strict=True)]
            merged[spec.name] = torch.cat(shifted)
        elif spec.name == "extras":
            merged[spec.name] = {k: torch.cat([p[k] for p in parts], dim=1) for k in parts[0]}
        elif spec.name == "episodes":
            merged[spec.name] = [episode for p in parts for episode in p]
        elif spec.name == "dropped_steps":
            merged[spec.name] = sum(parts)
        elif parts[0] is None:
            merged[spec.name] = None
        else:
            merged[spec.name] = torch.cat(parts, dim=0 if spec.name in BY_COLUMN or spec.name in FINALS else 1)
    return Rollout(**merged)


def select_columns(rollout: Rollout, columns: Tensor) -> Rollout:
    """The rollout of some of its columns alone, without episodes and dropped steps: those belong to no column.

    Args:
        rollout: of N columns.
        columns: [n] int64 in ascending order, without repetition.
    """
    ends = torch.isin(rollout.final_index[:, 1], columns)
    index = rollout.final_index[ends]
    chosen: dict[str, Any] = {"episodes": [], "dropped_steps": 0}
    for spec in dataclasses.fields(Rollout):
        value = getattr(rollout, spec.name)
        if spec.name == "final_index":
            chosen[spec.name] = torch.stack([index[:, 0], torch.searchsorted(columns, index[:, 1].contiguous())], dim=1)
        elif spec.name == "extras":
            chosen[spec.name] = {name: tensor[:, columns] for name, tensor in value.items()}
        elif isinstance(value, Tensor):
            rows = ends if spec.name in FINALS else columns
            chosen[spec.name] = value[rows] if spec.name in BY_COLUMN or spec.name in FINALS else value[:, rows]
    return Rollout(**chosen)


def split_by_policy(rollout: Rollout, num_policies: int) -> list[Rollout | None]:
    """What each policy acted: at index p the columns with env_id % num_policies = p; None where there are none.

    A rollout that is one policy's alone stays as it is. What was dropped of a mixed one is shared out evenly, since
    nobody knows whose it was.
    """
    owner = rollout.env_id % num_policies
    present = owner.unique().tolist()
    if len(present) == 1:
        return [rollout if policy_id in present else None for policy_id in range(num_policies)]
    parts: list[Rollout | None] = [None] * num_policies
    for place, policy_id in enumerate(present):
        part = parts[policy_id] = select_columns(rollout, (owner == policy_id).nonzero()[:, 0])
        part.episodes = [episode for episode in rollout.episodes if episode.env_id % num_policies == policy_id]
        before, after = (rollout.dropped_steps * n // len(present) for n in (place, place + 1))
        part.dropped_steps = after - before
    return parts


def to_device(rollout: Rollout, device: torch.device) -> Rollout:
    """The rollout with every tensor on `device`; the same object where it is there already."""
    if rollout.obs.device == device:
        return rollout
    return _each_tensor(rollout, lambda tensor: tensor.to(device, non_blocking=True))


def copied(rollout: Rollout) -> Rollout:
    """The rollout with tensors of its own."""
    return _each_tensor(rollout, Tensor.clone)


def _each_tensor(rollout: Rollout, change: Callable[[Tensor], Tensor]) -> Rollout:
    changed: dict[str, Any] = {n: change(value) for n, value in vars(rollout).items() if isinstance(value, Tensor)}
    changed["extras"] = {name: change(value) for name, value in rollout.extras.items()}
    return dataclasses.replace(rollout, **changed)
