"""The actions of every unfinished episode: with the reset seed, all that its state depends on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_FOLD_AFTER = 1024  # records


class ActionTails:
    """Per env, the actions sent since its episode began, as the env took them.

    A record is kept as it comes, and counted. Now and then what was recorded is folded into arrays without the actions
    of episodes that ended since, so that an env that never ends costs its actions' bytes and 16 more for each.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self._begun = np.zeros(num_envs, np.int64)  # how many records there were when the env's episode began
        self._count = 0  # records so far
        self._fresh: list[tuple[np.ndarray, np.ndarray]] = []  # the newest of them
        none = np.zeros(0, np.int64)
        self._envs, self._when = none, none  # [K] of each older action: its env, and the number of its record
        self._actions: np.ndarray | None = None  # [K, ...]

    def record(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Add one action per env; `envs` [B] and `actions` [B, ...] must not be written to afterwards."""
        self._fresh.append((envs, actions))
        self._count += 1
        # the more is kept, the rarer: else all of it would be copied again and again
        if len(self._fresh) >= max(_FOLD_AFTER, len(self._envs) // len(self._begun)):
            self._fold()

    def end_episode(self, env: int) -> None:
        """Forget the env's actions: it has been reset."""
        self._begun[env] = self._count

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """All tails end to end [sum of lengths, ...], and their lengths [N]."""
        self._fold()
        lengths = np.bincount(self._envs, minlength=len(self._begun))
        if self._actions is None or not len(self._actions):
            return np.zeros(0), lengths
        return self._actions[np.argsort(self._envs, kind="stable")], lengths

    def unpack(self, actions: np.ndarray, lengths: np.ndarray) -> None:
        """The inverse of `packed`."""
        self._fresh = []
        self._count = int(lengths.max(initial=0))
        self._begun = self._count - lengths
        self._envs = np.repeat(np.arange(len(lengths)), lengths)
        self._when = np.concatenate([np.arange(begun, self._count) for begun in self._begun.tolist()])
        self._actions = actions if len(actions) else None

    def steps(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Step by step, the envs [B] whose tail is that long, and their actions [B, ...]."""
        actions, lengths = self.packed()
        starts = lengths.cumsum() - lengths
        for t in range(int(lengths.max(initial=0))):
            envs = (lengths > t).nonzero()[0]
            yield envs, actions[starts[envs] + t]

    def _fold(self) -> None:
        if self._fresh:
            envs, actions = zip(*self._fresh, strict=True)
            first = self._count - len(self._fresh)
            when = np.repeat(np.arange(first, self._count), [len(each) for each in envs])
            self._envs = np.concatenate([self._envs, *envs])
            self._when = np.concatenate([self._when, when])
            self._actions = np.concatenate(actions if self._actions is None else [self._actions, *actions])
            self._fresh = []
        if self._actions is not None:
            unfinished = self._when >= self._begun[self._envs]
            self._envs, self._when = self._envs[unfinished], self._when[unfinished]
            self._actions = self._actions[unfinished]
