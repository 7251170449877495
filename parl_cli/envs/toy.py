"""Probe environments: tiny envs whose right answer is known, for tests of everything that handles experience.

Three families:

- alignment: `CountingEnv` and `TwoAgentEnv` write where and when they are into their observations, and
  `counting_reward`, `counting_length` and `counting_truncates` recompute the rest, so that a test can prove which
  obs, action, reward and end belong together;
- values: `OneStepEnv` … `ConstantRewardEnv` and `IdentityEnv` state the value or return that learning must reach
  (the order of debugging is that of Andy Jones, "Debugging RL, Without the Agonizing Pain", 2021);
- failures: `SleepEnv`, `FaultyEnv` and `IrreproducibleEnv` break the rules on purpose.

All but the last are resumable: the state is a function of the reset seed and the actions since.

Multi-agent convention (`TwoAgentEnv`): an integer attribute `num_agents` = A; `observation_space` and `action_space`
are one agent's; obs [A, *item], actions [A, *item], reward [A] float32, terminated and truncated [A] bool. The episode
is over when each agent is terminated or truncated. The later rows of an agent that ended are filler: its action is
ignored, its flags stay as they are, and nobody may learn from the row.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Info = dict[str, Any]
Transition = tuple[np.ndarray, float, bool, bool, Info]

EPISODES_PER_ENV = 1000


def counting_seed(env: int, episode: int) -> int:
    """The reset seed that `CountingEnv` reads back as (env, episode); episode < EPISODES_PER_ENV."""
    return env * EPISODES_PER_ENV + episode


def counting_reward(env: int, episode: int, t: int, action: int) -> float:
    """The reward of `CountingEnv` for `action` on the observation (env, episode, t); exact in float32."""
    return (env % 64) * 64 + episode % 64 + (t % 64) / 64 + action / 256


def counting_length(env: int, episode: int, length: int = 3) -> int:
    """Steps in an episode of `CountingEnv(length)`: between `length` and `length` + 4, uneven on purpose."""
    return length + (3 * env + 2 * episode) % 5


def counting_truncates(env: int, episode: int) -> bool:
    """Whether an episode of `CountingEnv` ends by truncation (else by termination); every other one does."""
    return (env + episode) % 2 == 1


class CountingEnv(gym.Env[np.ndarray, Any]):
    """Observation (env, episode, t), float32 [3]; t = steps since reset; four actions.

    Env and episode are decoded from the reset seed (the inverse of `counting_seed`), so the state depends on the seed
    and nothing else. A reset without a seed begins the next episode of the same env.

    Args:
        length: the shortest episode, see `counting_length`.
        env_index: where given, it is the env number, and episodes count the resets of this object; seeds are
            ignored then, which makes this mode unfit for resume.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, length: int = 3, env_index: int | None = None, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 2**24, (3,), np.float32)  # whole numbers are exact up to there
        self.action_space = spaces.Discrete(4)
        self.render_mode = render_mode
        self.length = length
        self.env_index = env_index
        self.env_number, self.episode, self.t = env_index or 0, -1, 0  # not `env`: that is what wrappers wrap

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Begin an episode; see the class for what `seed` means."""
        super().reset(seed=seed)
        if seed is not None and self.env_index is None:
            self.env_number, self.episode = divmod(seed, EPISODES_PER_ENV)
        else:
            self.episode += 1
        self.t = 0
        return self._obs(), {}

    def step(self, action: int) -> Transition:
        """Count one step; the reward is `counting_reward` of the observation that was acted on."""
        reward = counting_reward(self.env_number, self.episode, self.t, int(action))
        self.t += 1
        over = self.t >= counting_length(self.env_number, self.episode, self.length)
        truncated = over and counting_truncates(self.env_number, self.episode)
        return self._obs(), reward, over and not truncated, truncated, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.env_number, self.episode, self.t], np.float32)


class _Probe(gym.Env[np.ndarray, Any]):
    """A probe with one number as observation and two actions."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.obs = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self.obs = self._first_obs()
        return np.array([self.obs], np.float32), {}

    def _first_obs(self) -> float:
        return 0.0

    def _result(self, reward: float, terminated: bool = True, truncated: bool = False) -> Transition:
        return np.array([self.obs], np.float32), reward, terminated, truncated, {}


class OneStepEnv(_Probe):
    """One step, obs 0, reward 1. Known answer: V = 1. Fails: the value loss or its optimizer."""

    def step(self, action: int) -> Transition:
        """End with reward 1."""
        return self._result(1.0)


class RewardByObsEnv(_Probe):
    """One step, obs -1 or 1 at random, reward = obs. Known answer: V(obs) = obs. Fails: the input of the network."""

    def _first_obs(self) -> float:
        return float(self.np_random.choice((-1.0, 1.0)))

    def step(self, action: int) -> Transition:
        """End with the observation as reward."""
        return self._result(self.obs)


class DelayedRewardEnv(_Probe):
    """Two steps: obs 0, reward 0, then obs 1, reward 1. Known answer: V(0) = gamma, V(1) = 1. Fails: discounting."""

    def step(self, action: int) -> Transition:
        """Move from 0 to 1, or end with reward 1."""
        if self.obs == 0.0:
            self.obs = 1.0
            return self._result(0.0, terminated=False)
        return self._result(1.0)


class RewardByActionEnv(_Probe):
    """One step, obs 0, reward 1 for action 1 and -1 for action 0. Known answer: always 1, V = 1. Fails: advantages."""

    def step(self, action: int) -> Transition:
        """End, rewarding the action."""
        return self._result(1.0 if action == 1 else -1.0)


class RewardByObsAndActionEnv(RewardByObsEnv):
    """One step, obs -1 or 1; reward 1 if the action is 1 on obs 1 or 0 on obs -1, else -1.

    Known answer: action = (obs > 0), V = 1. Fails: rows of obs, action and advantage that do not match.
    """

    def step(self, action: int) -> Transition:
        """End, rewarding the action that fits the observation."""
        return self._result(1.0 if (action == 1) == (self.obs > 0) else -1.0)


class ConstantRewardEnv(_Probe):
    """Obs 0 and reward 1 for ever; never terminates, but is cut off after `truncate_at` steps.

    Known answer: V = 1 / (1 - gamma), if and only if truncated steps bootstrap from their final observation.
    """

    def __init__(self, truncate_at: int = 8, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.truncate_at = truncate_at
        self.t = 0

    def _first_obs(self) -> float:
        self.t = 0
        return 0.0

    def step(self, action: int) -> Transition:
        """Reward 1; truncated at the limit."""
        self.t += 1
        return self._result(1.0, terminated=False, truncated=self.t >= self.truncate_at)


class IdentityEnv(gym.Env[np.ndarray, Any]):
    """One step: the observation shows the right action. Known answer: mean return 1 (`box`: 0).

    `space` and `sizes` choose the action space, and the observation shows the target:

    - `discrete`: Discrete(sizes[0], start=start), one-hot; reward 1 if right, else 0; chance is 1 / n;
    - `multi_discrete`: MultiDiscrete(sizes), one-hots side by side; reward is the share of right choices;
    - `multi_binary`: MultiBinary(sizes[0]), the bits; reward is the share of right bits; chance is 1 / 2;
    - `box`: Box(-1, 1, (sizes[0],)), the numbers; reward is minus the mean squared error, 0 at best.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        space: Literal["discrete", "multi_discrete", "multi_binary", "box"] = "discrete",
        sizes: tuple[int, ...] | None = None,
        start: int = 0,
        render_mode: str | None = None,
    ) -> None:
        sizes = tuple(sizes) if sizes else ((3, 2) if space == "multi_discrete" else (3,))
        by_name: dict[str, tuple[spaces.Space[Any], int]] = {
            "discrete": (spaces.Discrete(sizes[0], start=start), sizes[0]),
            "multi_discrete": (spaces.MultiDiscrete(list(sizes)), sum(sizes)),
            "multi_binary": (spaces.MultiBinary(sizes[0]), sizes[0]),
            "box": (spaces.Box(-1, 1, (sizes[0],), np.float32), sizes[0]),
        }
        if space not in by_name:
            raise TypeError(f"space={space!r}: choose from {', '.join(by_name)}")
        self.action_space, width = by_name[space]
        self.observation_space = spaces.Box(-1, 1, (width,), np.float32)
        self.render_mode = render_mode
        self.target: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Draw a target, a function of the seed."""
        super().reset(seed=seed)
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            self.target = space.start + self.np_random.integers(space.n)
        elif isinstance(space, spaces.MultiDiscrete):
            self.target = self.np_random.integers(space.nvec)
        elif isinstance(space, spaces.MultiBinary):
            self.target = self.np_random.integers(2, size=space.shape)
        else:
            self.target = self.np_random.uniform(-1, 1, space.shape).astype(np.float32)
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Info]:
        """End, scoring the action against the target."""
        if isinstance(self.action_space, spaces.Box):
            reward = -float(np.mean(np.square(action - self.target)))
        else:
            reward = float(np.mean(np.equal(action, self.target)))
        return self._obs(), reward, True, False, {}

    def _obs(self) -> np.ndarray:
        if isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete):
            obs = spaces.flatten(self.action_space, self.target)
        else:
            obs = self.target
        return np.array(obs, np.float32)  # a copy: whoever keeps it must not hold the target


class TwoAgentEnv(gym.Env[np.ndarray, Any]):
    """Two agents by the multi-agent convention above; agent 1 terminates in the middle of the episode.

    Observation (agent, t), float32 [2, 2]; each agent has two actions. While it lives, agent a is paid a + 1 per step.
    Known answer: with n steps left, V(agent) = (agent + 1) (1 - gamma^n) / (1 - gamma), if the filler is masked.

    Args:
        length: steps of the episode, which agent 0 sees to the end.
        death_at: steps after which agent 1 terminates.
        truncate: whether agent 0 ends by truncation.
        filler: what obs and reward hold for an agent that has ended; NaN finds code that forgets the mask.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    num_agents = 2

    def __init__(
        self,
        length: int = 6,
        death_at: int = 3,
        truncate: bool = False,
        filler: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = spaces.Box(0, 2**24, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.ends = np.array([length, death_at])
        self.truncates = np.array([truncate, False])
        self.filler = filler
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Begin with both agents alive."""
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, Any, Any, Info]:
        """Count one step for the agents that are alive."""
        if np.shape(action) != (2,):
            raise ValueError(f"actions have shape {np.shape(action)}, expected (2,): one for each agent")
        reward = np.where(self.t < self.ends, [1.0, 2.0], self.filler).astype(np.float32)
        self.t += 1
        over = self.t >= self.ends
        return self._obs(), reward, over & ~self.truncates, over & self.truncates, {}

    def _obs(self) -> np.ndarray:
        obs = np.array([[0, self.t], [1, self.t]], np.float32)
        obs[self.t > self.ends] = self.filler  # the observation that ends an agent is still its own
        return obs


class SleepEnv(CountingEnv):
    """A `CountingEnv` whose steps and resets take time: sleeping, so any number fits on one core."""

    def __init__(
        self,
        step_s: float = 0.001,
        reset_s: float = 0.0,
        length: int = 3,
        env_index: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(length, env_index, render_mode)
        self.step_s, self.reset_s = step_s, reset_s

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Sleep `reset_s`, then count."""
        time.sleep(self.reset_s)
        return super().reset(seed=seed, options=options)

    def step(self, action: int) -> Transition:
        """Sleep `step_s`, then count."""
        time.sleep(self.step_s)
        return super().step(action)


class UnpicklableError(RuntimeError):
    """Raised by `FaultyEnv(unpicklable=True)`: it holds a lambda, so it cannot cross a process border."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.culprit = lambda: None


class FaultyEnv(CountingEnv):
    """A `CountingEnv` that fails at a known call.

    Calls of `where` are counted from 0 since construction, over all episodes (`init` is one call).

    Args:
        raise_at: the call that raises RuntimeError (UnpicklableError if `unpicklable`).
        hang_at: the call that sleeps for `hang_s` before it goes on.
        exit_at: the call that ends the whole process with exit code 3, without a word.
        kill_at: the call that ends the whole process with SIGKILL.
        nan_at: the call whose observation is NaN.
        where: `init`, `reset` or `step`.
        marker: a file that is made before the fault; while it exists there is none: fail once, then work.
    """

    def __init__(
        self,
        raise_at: int | None = None,
        hang_at: int | None = None,
        exit_at: int | None = None,
        kill_at: int | None = None,
        nan_at: int | None = None,
        where: Literal["init", "reset", "step"] = "step",
        unpicklable: bool = False,
        hang_s: float = 600.0,
        marker: str | None = None,
        length: int = 3,
        env_index: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(length, env_index, render_mode)
        self.faults = {"raise": raise_at, "hang": hang_at, "exit": exit_at, "kill": kill_at, "nan": nan_at}
        self.where, self.unpicklable, self.hang_s, self.marker = where, unpicklable, hang_s, marker
        self.calls = 0
        self._fault("init", np.empty(0, np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Count, and fail if it is this call's turn."""
        obs, info = super().reset(seed=seed, options=options)
        self._fault("reset", obs)
        return obs, info

    def step(self, action: int) -> Transition:
        """Count, and fail if it is this call's turn."""
        result = super().step(action)
        self._fault("step", result[0])
        return result

    def _fault(self, where: str, obs: np.ndarray) -> None:
        if where != self.where:
            return
        due = [fault for fault, at in self.faults.items() if at == self.calls]
        self.calls += 1
        if not due or (self.marker and Path(self.marker).exists()):
            return
        if self.marker:
            Path(self.marker).touch()
        if "raise" in due:
            message = f"FaultyEnv raises in {where}, call {self.calls - 1}"
            raise UnpicklableError(message) if self.unpicklable else RuntimeError(message)
        if "hang" in due:
            time.sleep(self.hang_s)
        if "exit" in due:
            os._exit(3)
        if "kill" in due:
            os.kill(os.getpid(), signal.SIGKILL)
        if "nan" in due:
            obs.fill(np.nan)


class IrreproducibleEnv(CountingEnv):
    """A `CountingEnv` that breaks the contract: t is off by a number drawn at each reset, whatever the seed."""

    offset = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Count from a number that no seed determines."""
        self.offset = int.from_bytes(os.urandom(2))
        return super().reset(seed=seed, options=options)

    def _obs(self) -> np.ndarray:
        return super()._obs() + np.array([0, 0, self.offset], np.float32)


IDS = {
    "parl/Counting-v0": CountingEnv,
    "parl/OneStep-v0": OneStepEnv,
    "parl/RewardByObs-v0": RewardByObsEnv,
    "parl/DelayedReward-v0": DelayedRewardEnv,
    "parl/RewardByAction-v0": RewardByActionEnv,
    "parl/RewardByObsAndAction-v0": RewardByObsAndActionEnv,
    "parl/ConstantReward-v0": ConstantRewardEnv,
    "parl/Identity-v0": IdentityEnv,
    "parl/TwoAgent-v0": TwoAgentEnv,
    "parl/Irreproducible-v0": IrreproducibleEnv,
}

for _id, _class in IDS.items():
    if _id not in gym.registry:
        gym.register(_id, entry_point=f"{__name__}:{_class.__name__}", order_enforce=False)
