"""Envs whose steps take a known time, for measuring what steps them. `SleepEnv` of `parl_cli.envs.toy` is another."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class _TimedEnv(gym.Env[np.ndarray, Any]):
    """Four numbers as observation, two actions, episodes of 200 steps; `_spend` is where a step's time goes."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (4,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._spend()
        self.t += 1
        return np.zeros(4, np.float32), 1.0, False, self.t >= 200, {}

    def _spend(self) -> None:
        raise NotImplementedError


class BusyEnv(_TimedEnv):
    """Computes in Python, so it holds the GIL.

    Args:
        step_s: CPU time of a step: of the thread, so that a busy machine makes no step cheaper.
    """

    def __init__(self, step_s: float = 100e-6) -> None:
        super().__init__()
        self.step_s = step_s

    def _spend(self) -> None:
        ends = time.thread_time() + self.step_s
        while time.thread_time() < ends:
            pass


class RandomSleepEnv(_TimedEnv):
    """Sleeps for an exponentially distributed time, as a step over a network might.

    Args:
        mean_s: of that time.
    """

    def __init__(self, mean_s: float = 2e-3) -> None:
        super().__init__()
        self.mean_s = mean_s

    def _spend(self) -> None:
        time.sleep(self.np_random.exponential(self.mean_s))
