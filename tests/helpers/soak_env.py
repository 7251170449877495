"""An env that tells which of its transitions one is, and that fails when an action says so."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from parl_cli.envs.toy import UnpicklableError

LENGTH = 50  # steps of an episode
FAULTS = ("raise", "raise what cannot be pickled", "exit", "SIGKILL", "SIGSEGV", "hang")
_EPISODES = 2**20  # of an env, more than any run makes


def soak_seed(env: int, episode: int) -> int:
    """The reset seed that `SoakEnv` reads back."""
    return env * _EPISODES + episode


class SoakEnv(gym.Env[np.ndarray, Any]):
    """Observation (env, episode, t), int64 [3], reward t. Action 0 steps; action k ends in `FAULTS[k - 1]`."""

    observation_space = spaces.Box(0, 2**40, (3,), np.int64)
    action_space = spaces.Discrete(1 + len(FAULTS))
    metadata = {"render_modes": []}  # noqa: RUF012

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the episode that the seed names."""
        assert seed is not None
        self._at = np.array([*divmod(seed, _EPISODES), 0])
        return self._at.copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count one step, or fail."""
        if action:
            self._fail(FAULTS[action - 1])
        self._at[2] += 1
        t = int(self._at[2])
        return self._at.copy(), float(t), t == LENGTH, False, {}

    def _fail(self, fault: str) -> None:
        if fault == "raise":
            raise RuntimeError("asked to")
        if fault == "raise what cannot be pickled":
            raise UnpicklableError("asked to")
        if fault == "exit":
            os._exit(3)
        if fault == "hang":
            time.sleep(600)
        os.kill(os.getpid(), getattr(signal, fault))
        time.sleep(600)  # the signal comes first
