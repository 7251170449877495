"""The actions of every unfinished episode: with the reset seed, all that its state depends on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class ActionTails:
    """Per env, the actions sent since its episode began, as the env took them.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self._tails: list[list[np.ndarray]] = [[] for _ in range(num_envs)]

    def record(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Add one action per env; `actions` [B, ...] must not be written to afterwards."""
        for tail, action in zip((self._tails[env] for env in envs.tolist()), actions, strict=True):
            tail.append(action)

    def end_episode(self, env: int) -> None:
        """Forget the env's actions: it has been reset."""
        self._tails[env] = []

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """All tails end to end [sum of lengths, ...], and their lengths [N]."""
        actions = [action for tail in self._tails for action in tail]
        lengths = np.array([len(tail) for tail in self._tails], np.int64)
        return (np.stack(actions) if actions else np.zeros(0)), lengths

    def unpack(self, actions: np.ndarray, lengths: np.ndarray) -> None:
        """The inverse of `packed`."""
        ends = np.cumsum(lengths)
        self._tails = [
            list(actions[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def steps(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Step by step, the envs [B] whose tail is that long, and their actions [B, ...]."""
        for t in range(max(map(len, self._tails), default=0)):
            envs = [env for env, tail in enumerate(self._tails) if len(tail) > t]
            yield np.array(envs, np.int64), np.stack([self._tails[env][t] for env in envs])
