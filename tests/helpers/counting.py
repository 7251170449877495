"""`CountingEnv` in actors: what their workers import, so nothing here may import torch, which takes seconds."""

from __future__ import annotations

import gymnasium as gym

from parl_cli.envs.toy import CountingEnv, counting_seed


def counting_env(env_id: int) -> gym.Env:
    """The same env, whatever its id."""
    return CountingEnv()


def numbered_seed(first_env: int, env: int, episode: int) -> int:
    """The seed of an actor's env, by what it is called in the whole run."""
    return counting_seed(first_env + env, episode)
