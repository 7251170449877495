"""Raw returns: what an episode earned by the env's own rewards, where wrappers change rewards or repeat steps.

Two light wrappers, one at the bottom that adds up and one at the top that reports; envs whose wrappers leave returns
alone get neither.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from parl_cli.envs.wrappers import EnvWrapper, Info, Result


class RawReturn(EnvWrapper):
    """Adds up rewards and steps where it wraps, for `ReportRawReturn` far above it."""

    name = "raw_return"

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.total: Any = 0.0
        self.length = 0
        self._alive: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Begin from zero."""
        self.total, self.length = 0.0, 0
        if self.num_agents is not None:
            self.total, self._alive = np.zeros(self.num_agents), np.ones(self.num_agents, bool)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Result:
        """Step and add up; the filler of agents that ended does not count."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.length += 1
        if self._alive is None:
            self.total += float(reward)
        else:
            self.total[self._alive] += np.asarray(reward)[self._alive]
            self._alive &= ~(terminated | truncated)
        return obs, reward, terminated, truncated, info


class ReportRawReturn(EnvWrapper):
    """Puts `info["episode"] = {"r": raw return ([A] float64 with agents), "l": raw length}` on the last step.

    Outermost, because a wrapper in between may end the episode earlier than the env does.
    """

    name = "report_raw_return"

    def __init__(self, env: gym.Env[Any, Any], raw: RawReturn) -> None:
        super().__init__(env)
        self._raw = raw

    def step(self, action: Any) -> Result:
        """Step; report if the episode is over."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        over = terminated or truncated if self.num_agents is None else bool((terminated | truncated).all())
        if over:
            info = {**info, "episode": {"r": self._raw.total, "l": self._raw.length}}
        return obs, reward, terminated, truncated, info
