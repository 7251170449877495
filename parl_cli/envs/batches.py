"""Batches that libraries step as one: Gymnasium's `vector_entry_point` (CartPole's, ALE's AtariVectorEnv), and EnvPool.

Evaluation plays the same env alone, so a batch must take the actions and give the observations of the env alone.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from parl_cli.config import EnvConfig
from parl_cli.envs.gymnasium_adapter import (
    check_kwargs,
    find_spec,
    load_creator,
    make_env,
    missing_dependency,
    one_line,
)
from parl_cli.errors import ConfigError

WAY_OUT = "use vectorizer=serial, thread, subprocess or hybrid"


def make_batch(config: EnvConfig, num_envs: int, backend: str = "gymnasium") -> VectorEnv:
    """The library's own vector env of `num_envs` envs, with the time limit of the env alone.

    Args:
        config: the environment; without wrappers, which go around single envs.
        num_envs: N.
        backend: `gymnasium` for what the id registers, or `envpool`.

    Raises:
        ConfigError: there is no such batch, or it is not the env that the config describes.
    """
    if config.adapter != "gymnasium":
        raise ConfigError(f"vectorizer=native: env={config.name} is no Gymnasium env, so it has no batch; {WAY_OUT}")
    if config.own_wrappers:
        raise ConfigError(
            f"env={config.name}: is made of wrappers around single envs, and vectorizer=native steps a whole batch; "
            f"{WAY_OUT}"
        )
    if config.wrappers:
        raise ConfigError(
            f"env.wrappers={config.wrappers}: they go around single envs, and vectorizer=native steps a whole batch; "
            f"{WAY_OUT}, or env.wrappers=[]"
        )
    alone = make_env(config)
    try:
        make = {"gymnasium": _registered_batch, "envpool": _envpool_batch}[backend]
        batch = make(config, num_envs)
        _check_spaces(config, batch, alone)
        if isinstance(batch, EnvPoolBatch):
            batch.adopt(alone.observation_space, alone.action_space)
    finally:
        alone.close()
    return batch


def _registered_batch(config: EnvConfig, num_envs: int) -> VectorEnv:
    spec = find_spec(config)
    if spec.vector_entry_point is None or spec.additional_wrappers:
        raise ConfigError(f"vectorizer=native: {spec.id} has no batch of its own; {WAY_OUT}")
    try:
        creator = load_creator(spec.vector_entry_point)
        check_kwargs(config, creator)
        known = inspect.signature(creator).parameters
        arguments = dict(config.kwargs)
        limit = config.max_episode_steps or spec.max_episode_steps
        if limit and "max_episode_steps" not in known:
            raise ConfigError(
                f"env.max_episode_steps={limit}: the batch of {spec.id} takes no time limit (its arguments are "
                f"{', '.join(known)}); {WAY_OUT}"
            )
        if limit:
            arguments["max_episode_steps"] = limit
        if "autoreset_mode" in known:
            arguments.setdefault("autoreset_mode", AutoresetMode.SAME_STEP)
        return gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **arguments)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise missing_dependency(config, spec, error) from error


def _envpool_batch(config: EnvConfig, num_envs: int) -> VectorEnv:
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise ConfigError("vectorizer.backend=envpool: EnvPool is not installed; pip install envpool") from error
    spec = find_spec(config)
    name = spec.id.rpartition("/")[2]  # EnvPool's ids have no namespace
    if name not in envpool.list_all_envs():
        raise ConfigError(f"vectorizer.backend=envpool: EnvPool has no {name}; {WAY_OUT}")
    arguments = dict(config.kwargs)
    if limit := config.max_episode_steps or spec.max_episode_steps:
        arguments["max_episode_steps"] = limit
    try:
        return EnvPoolBatch(partial(envpool.make_gymnasium, name, num_envs=num_envs, **arguments), num_envs)
    except TypeError as error:
        raise ConfigError(f"env.kwargs={config.kwargs}: EnvPool's {name} refuses them: {one_line(error)}") from error


class EnvPoolBatch(VectorEnv):
    """EnvPool's envs as Gymnasium would have them: batched spaces, and a seed that is given at reset.

    EnvPool (Weng et al. 2022, arXiv:2206.10558) fixes seeds when a pool is made, so a seeded reset makes a new one.
    It resets an env on the step after an end.

    Args:
        make: makes the pool, given `seed`.
        num_envs: N.
    """

    def __init__(self, make: Any, num_envs: int) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._make = make
        self._pool = make(seed=0)
        self._action_dtype = self._pool.action_space.dtype
        self.adopt(self._pool.observation_space, self._pool.action_space)

    def adopt(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Take the spaces of the env alone, of which EnvPool's differ in the bounds, or the dtype of actions."""
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all envs; with a seed, in a new pool."""
        if seed is not None:
            self._pool.close()
            self._pool = self._make(seed=seed)
        return self._pool.reset()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all envs."""
        return self._pool.step(actions.astype(self._action_dtype, copy=False))

    def close_extras(self, **kwargs: Any) -> None:
        """End the pool's threads."""
        self._pool.close()


def _check_spaces(config: EnvConfig, batch: VectorEnv, alone: gym.Env) -> None:
    """Refuse a batch that is preprocessed in another way than the env with which a policy is evaluated."""
    pairs = {
        "observes": (batch.single_observation_space, alone.observation_space),
        "takes": (batch.single_action_space, alone.action_space),
    }
    for verb, (theirs, ours) in pairs.items():
        if not _alike(theirs, ours, bounds=verb == "takes"):
            batch.close()
            raise ConfigError(
                f"vectorizer=native: the batch of {config.id} {verb} {theirs}, the env alone, in which the policy is "
                f"evaluated, {ours}; {WAY_OUT}"
            )


def _alike(a: spaces.Space, b: spaces.Space, *, bounds: bool) -> bool:
    if not (isinstance(a, spaces.Box) and isinstance(b, spaces.Box)):
        return a == b
    if not bounds:
        return a.shape == b.shape and a.dtype == b.dtype
    return a.shape == b.shape and np.allclose(a.low, b.low) and np.allclose(a.high, b.high)
