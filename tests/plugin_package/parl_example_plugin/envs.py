"""A chain of cells: go right to the last one."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Chain(gym.Env[np.ndarray, int]):
    """The agent starts in the left half, and gets 1 for reaching the last of `length` cells."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, length: int = 6) -> None:
        self.length = length
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.cell = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(self.length // 2))
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.cell = max(0, self.cell + (1 if action == 1 else -1))
        arrived = self.cell >= self.length - 1
        return self._obs(), float(arrived), arrived, False, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.cell / (self.length - 1)], np.float32)
