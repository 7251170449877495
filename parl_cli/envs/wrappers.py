"""Env wrappers by name, for `env.wrappers=[flatten_obs, {frame_stack: {num: 4}}]`; the first one is innermost.

A wrapper is built as `cls(env, cls.Config(...))`. Its `changes_return` says whether returns or lengths seen above it
differ from the env's own; the adapter then records the raw ones below them (`raw_return.py`). All of them keep the
spaces true, return arrays the caller may keep, and work for multi-agent envs (a leading axis A on obs, action and
reward, see `toy`) unless they say otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from parl_cli.config import option
from parl_cli.errors import ConfigError

Info = dict[str, Any]
Result = tuple[Any, Any, Any, Any, Info]


def num_agents(env: gym.Env[Any, Any]) -> int | None:
    """A in a multi-agent env (one with an integer attribute `num_agents`), None in an ordinary one."""
    number = env.get_wrapper_attr("num_agents") if env.has_wrapper_attr("num_agents") else None
    return number if type(number) is int else None


class EnvWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """What the wrappers here share: their name in messages, and whether there are agents."""

    env: Any  # Gymnasium's types know nothing of rewards and ends with an agent axis
    name: ClassVar[str]
    changes_return: ClassVar[bool] = False

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.num_agents = num_agents(env)

    def _box(self, what: str, space: spaces.Space[Any], way_out: str) -> spaces.Box:
        if not isinstance(space, spaces.Box):
            raise ConfigError(f"env.wrappers: {self.name} needs a Box {what} space, not {space}; {way_out}")
        return space


class ObsWrapper(EnvWrapper):
    """A wrapper that maps observations one by one."""

    def obs(self, obs: Any) -> np.ndarray:
        """The observation [(A,) *item] as it is seen above."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Reset and map."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self.obs(obs), info

    def step(self, action: Any) -> Result:
        """Step and map."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self.obs(obs), reward, terminated, truncated, info


class FrameStack(EnvWrapper):
    """The last `num` observations, newest last; an episode begins with its first one repeated.

    Box only. `axis: new` gives [num, *item] (channels first for grey images H×W); `axis: last` joins along the last
    axis: [..., num * C] for H×W×C or for a vector of C numbers.
    """

    name = "frame_stack"

    @dataclass(frozen=True)
    class Config:
        """Options."""

        num: int = option(4, "how many observations", ge=1, le=1000)
        axis: Literal["new", "last"] = option("new", "new: a first axis of size num; last: joined along the last axis")

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        space = self._box("observation", env.observation_space, "put flatten_obs before it")
        if config.axis == "last" and not space.shape:
            raise ConfigError("env.wrappers: frame_stack.axis=last needs an observation with axes; use axis: new")
        self._last = config.axis == "last"
        low, high = ([bound] * config.num for bound in (space.low, space.high))
        join = (lambda parts: np.concatenate(parts, axis=-1)) if self._last else np.stack
        self.observation_space = spaces.Box(join(low), join(high), dtype=space.dtype.type)
        lead = () if self.num_agents is None else (self.num_agents,)
        self._frames = np.zeros((config.num, *lead, *space.shape), space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Begin with the first observation `num` times."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._frames[:] = obs
        return self._stacked(), info

    def step(self, action: Any) -> Result:
        """Push out the oldest observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = obs
        return self._stacked(), reward, terminated, truncated, info

    def _stacked(self) -> np.ndarray:
        if self._last:
            return np.concatenate(list(self._frames), axis=-1)
        return (self._frames if self.num_agents is None else self._frames.swapaxes(0, 1)).copy()


class FlattenObs(ObsWrapper):
    """Any fixed-size observation (Dict, Tuple, Discrete …) as one float32 vector; classes become one-hot."""

    name = "flatten_obs"

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        self._space = env.observation_space
        flat = spaces.flatten_space(self._space) if self._space.is_np_flattenable else None
        if not isinstance(flat, spaces.Box):
            raise ConfigError(f"env.wrappers: flatten_obs needs observations of a fixed size, not {self._space}")
        self.observation_space = spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32))

    def obs(self, obs: Any) -> np.ndarray:
        """Flatten, [(A,) F]."""
        if self.num_agents is None:
            return np.array(spaces.flatten(self._space, obs), np.float32)
        return np.array([spaces.flatten(self._space, one) for one in obs], np.float32)


class SelectObs(ObsWrapper):
    """Some numbers of a vector observation, in the order given; the rest is hidden. Box with one axis."""

    name = "select_obs"

    @dataclass(frozen=True)
    class Config:
        """Options."""

        indices: list[int] = option(dataclasses.MISSING, "places of the numbers that stay, from 0, each once", ge=0)

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        space = self._box("observation", env.observation_space, "put flatten_obs before it")
        shown = f"env.wrappers: select_obs.indices={config.indices}"
        if len(space.shape) != 1:
            raise ConfigError(
                f"env.wrappers: select_obs needs an observation with one axis, not shape {space.shape}; "
                "put flatten_obs before it"
            )
        if not config.indices:
            raise ConfigError(f"{shown} leaves nothing to observe; name at least one place")
        if len(set(config.indices)) < len(config.indices):
            raise ConfigError(f"{shown} names a place twice; name each once")
        if max(config.indices) >= space.shape[0]:
            raise ConfigError(
                f"{shown}: the observation has {space.shape[0]} numbers; choose from 0 to {space.shape[0] - 1}"
            )
        self._indices = np.array(config.indices)
        self.observation_space = spaces.Box(space.low[self._indices], space.high[self._indices], dtype=space.dtype.type)

    def obs(self, obs: Any) -> np.ndarray:
        """Select, [(A,) len(indices)]."""
        return np.asarray(obs)[..., self._indices]


class ObsScale(ObsWrapper):
    """(obs - subtract) * scale, as float32; for pixels, `{scale: 0.00392156862745098}` gives [0, 1]. Box only."""

    name = "obs_scale"

    @dataclass(frozen=True)
    class Config:
        """Options."""

        subtract: float | list[float] = option(0.0, "a number, or one per element of the last axis")
        scale: float | list[float] = option(1.0, "a number, or one per element of the last axis; not 0")

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        space = self._box("observation", env.observation_space, "put flatten_obs before it")
        for key, value in dataclasses.asdict(config).items():
            if np.ndim(value) and (not space.shape or len(value) != space.shape[-1]):
                raise ConfigError(
                    f"env.wrappers: obs_scale.{key}={value} has {len(value)} numbers, but the observation has "
                    f"shape {space.shape}; give one number, or as many as its last axis is long"
                )
        if not np.all(config.scale):
            raise ConfigError(f"env.wrappers: obs_scale.scale={config.scale} must not be 0: it would blank the input")
        self._subtract, self._scale = (np.asarray(v, np.float32) for v in (config.subtract, config.scale))
        with np.errstate(over="ignore"):  # a huge bound becomes infinite, which is what it meant
            ends = self.obs(space.low), self.obs(space.high)
        self.observation_space = spaces.Box(np.minimum(*ends), np.maximum(*ends))

    def obs(self, obs: Any) -> np.ndarray:
        """Scale, [(A,) *item] float32."""
        return np.asarray((np.asarray(obs, np.float32) - self._subtract) * self._scale)


class RewardClip(EnvWrapper):
    """The reward clipped to [min, max], or only its sign (-1, 0, 1). Raw returns are still what is reported."""

    name = "reward_clip"
    changes_return = True

    @dataclass(frozen=True)
    class Config:
        """Options."""

        min: float = option(-1.0, "lowest reward")
        max: float = option(1.0, "highest reward")
        sign: bool = option(False, "keep only the sign; min and max do not matter then")

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        if config.min >= config.max:
            raise ConfigError(f"env.wrappers: reward_clip.min={config.min} must be less than max={config.max}")
        self._config = config

    def step(self, action: Any) -> Result:
        """Step and clip."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._config.sign:
            reward = np.sign(reward)
        elif self.num_agents is None:  # np.clip takes microseconds, these two do not
            reward = min(max(reward, self._config.min), self._config.max)
        else:
            reward = np.clip(reward, self._config.min, self._config.max)
        return obs, reward, terminated, truncated, info


class RewardScale(EnvWrapper):
    """Reward * scale + shift. Raw returns are still what is reported."""

    name = "reward_scale"
    changes_return = True

    @dataclass(frozen=True)
    class Config:
        """Options."""

        scale: float = option(1.0, "factor")
        shift: float = option(0.0, "added after scaling")

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        self._config = config

    def step(self, action: Any) -> Result:
        """Step and scale."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward * self._config.scale + self._config.shift, terminated, truncated, info


def _as_dtype(action: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The action in the env's own dtype; the nearest whole number where it takes those."""
    return (np.rint(action) if dtype.kind in "iu" else action).astype(dtype, copy=False)


class ActionRescale(EnvWrapper):
    """The agent acts in [low, high]; each dimension is mapped onto the env's own bounds. Box with finite bounds."""

    name = "action_rescale"

    @dataclass(frozen=True)
    class Config:
        """Options."""

        low: float = option(-1.0, "the agent's lowest action")
        high: float = option(1.0, "the agent's highest action")

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        space = self._box("action", env.action_space, "remove it")
        if config.low >= config.high:
            raise ConfigError(f"env.wrappers: action_rescale.low={config.low} must be less than high={config.high}")
        if not space.is_bounded():
            raise ConfigError(f"env.wrappers: action_rescale needs finite action bounds, not {space}; remove it")
        self._low, self._high, self._dtype = space.low, space.high, space.dtype
        self._from = np.float64(config.low)
        self._gain = (np.float64(space.high) - space.low) / (config.high - config.low)
        self.action_space = spaces.Box(config.low, config.high, space.shape, np.float32)

    def step(self, action: Any) -> Result:
        """Step with the mapped action; what lies outside [low, high] is clipped."""
        mapped = _as_dtype((action - self._from) * self._gain + self._low, self._dtype)
        return self.env.step(np.minimum(np.maximum(mapped, self._low), self._high))


class ActionClip(EnvWrapper):
    """The agent may act outside the env's bounds; the action is clipped into them. Box only."""

    name = "action_clip"

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        space = self._box("action", env.action_space, "remove it")
        self._low, self._high = space.low, space.high
        self.action_space = spaces.Box(-np.inf, np.inf, space.shape, np.float32)

    def step(self, action: Any) -> Result:
        """Step with the clipped action."""
        clipped = np.minimum(np.maximum(action, self._low), self._high)
        return self.env.step(_as_dtype(clipped, self._low.dtype))


class ActionRepeat(EnvWrapper):
    """Each action is taken `num` times, or until the episode ends; rewards add up. One agent only."""

    name = "action_repeat"
    changes_return = True

    @dataclass(frozen=True)
    class Config:
        """Options."""

        num: int = option(4, "how many steps of the env one action lasts", ge=1)

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        if self.num_agents is not None:  # an agent that dies within the repeats would lose its last observation
            raise ConfigError(
                f"env.wrappers: action_repeat cannot wrap an env with {self.num_agents} agents; remove it"
            )
        self._num = config.num

    def step(self, action: Any) -> Result:
        """Step up to `num` times."""
        total = 0.0
        for _ in range(self._num):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class FreshWorld(EnvWrapper):
    """A new Box2D world for every episode, so that an episode is a function of its seed. Box2D envs only.

    Gymnasium's BipedalWalker keeps its world, whose contacts remember the order of bodies long gone; its floats then
    depend on earlier episodes, and a run could not resume exactly. LunarLander mended this in itself (Gymnasium #728).
    """

    name = "fresh_world"

    @dataclass(frozen=True)
    class Config:
        """No options."""

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        self._inner: Any = env.unwrapped
        world = type(getattr(self._inner, "world", None))
        if world.__name__ != "b2World" or not hasattr(self._inner, "_destroy"):
            raise ConfigError(
                f"env.wrappers: fresh_world needs one of Gymnasium's Box2D envs, not {type(self._inner).__name__}; "
                "remove it"
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Begin in an empty world with the gravity of the old one."""
        self._inner._destroy()  # while the bodies' own world is there; the env's own call then finds nothing to do
        self._inner.world = type(self._inner.world)(gravity=self._inner.world.gravity)
        return self.env.reset(seed=seed, options=options)


class TimeLimit(EnvWrapper):
    """The episode is truncated after `max_episode_steps`; in a multi-agent env, for every agent still in it."""

    name = "time_limit"

    @dataclass(frozen=True)
    class Config:
        """Options."""

        max_episode_steps: int = option(dataclasses.MISSING, "steps of an episode, counted where it wraps", ge=1)

    def __init__(self, env: gym.Env[Any, Any], config: Config) -> None:
        super().__init__(env)
        self._limit, self._t = config.max_episode_steps, 0

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]  # a property in gym.Wrapper too
        """The env's spec with this limit in it, as Gymnasium's own TimeLimit has it."""
        spec = copy.deepcopy(self.env.spec)
        if spec is not None:
            spec.max_episode_steps = self._limit
        return spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Begin to count."""
        self._t = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Result:
        """Step; at the limit, whatever did not terminate is truncated."""
        result: Result = self.env.step(action)
        self._t += 1
        if self._t < self._limit:
            return result
        obs, reward, terminated, truncated, info = result
        truncated = truncated or not terminated if self.num_agents is None else truncated | ~terminated
        return obs, reward, terminated, truncated, info
