"""Statistics of the last training episodes: what "return" means in the panel and in every row."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from parl_cli.errors import CheckpointError
from parl_cli.metrics.per_policy import merged
from parl_cli.types import Episode, Metrics


class EpisodeWindow:
    """Mean, spread and range over the last `size` finished episodes.

    Args:
        size: episodes that count; 100 is the field's habit.
    """

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.count = 0  # finished since the start of the run
        self._returns: deque[float] = deque(maxlen=size)
        self._lengths: deque[int] = deque(maxlen=size)

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take finished episodes, in the order they finished."""
        for episode in episodes:
            self.count += 1
            self._returns.append(float(episode.episode_return))
            self._lengths.append(int(episode.length))

    def metrics(self) -> Metrics:
        """The row's `episode/…` values; only the count before the first episode has finished."""
        if not self._returns:
            return {"episode/count": float(self.count)}
        returns = np.array(self._returns, dtype=np.float64)
        return {
            "episode/return_mean": float(returns.mean()),
            "episode/return_std": float(returns.std()),
            "episode/return_min": float(returns.min()),
            "episode/return_max": float(returns.max()),
            "episode/length_mean": float(np.mean(self._lengths)),
            "episode/count": float(self.count),
        }

    def state_dict(self) -> dict[str, Any]:
        """The window as plain JSON values; floats survive JSON exactly."""
        return {"count": self.count, "returns": list(self._returns), "lengths": list(self._lengths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            CheckpointError: the state is not one that `state_dict` of a window this size writes.
        """
        count, returns, lengths = (state.get(key) for key in ("count", "returns", "lengths"))
        if not (
            _is_count(count)
            and isinstance(returns, list)
            and isinstance(lengths, list)
            and len(returns) == len(lengths) <= self.size
            and all(isinstance(value, int | float) and math.isfinite(value) for value in returns)
            and all(_is_count(value) for value in lengths)
        ):
            raise CheckpointError("episode statistics in the checkpoint: not a window of finite returns and lengths")
        self.count = int(count or 0)
        self._returns = deque((float(value) for value in returns), maxlen=self.size)
        self._lengths = deque(lengths, maxlen=self.size)


class WindowGroup:
    """A window for each policy, of the episodes of its envs; see `EpisodeWindow`.

    Args:
        num_policies: K; env i belongs to policy i % K.
    """

    def __init__(self, num_policies: int) -> None:
        self.windows = [EpisodeWindow() for _ in range(num_policies)]

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take finished episodes, in the order they finished."""
        for episode in episodes:
            self.windows[episode.env_id % len(self.windows)].add([episode])

    def metrics(self) -> Metrics:
        """The row's `episode/…` values, of each policy and over them."""
        return merged([window.metrics() for window in self.windows])

    def state_dict(self) -> dict[str, Any]:
        """Each window's, by policy id."""
        return {str(policy_id): window.state_dict() for policy_id, window in enumerate(self.windows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for policy_id, window in enumerate(self.windows):
            window.load_state_dict(state[str(policy_id)])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
