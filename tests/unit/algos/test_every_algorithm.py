"""Every registered algorithm steps and learns in every space: through the real actor and learner, three updates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from parl_cli import registry
from parl_cli.training.loop import train
from tests.helpers.rollouts import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, spec_of
from tests.helpers.stubs import inline, make_learner, make_policy, make_vectorizer, weights_hash


class RandomEnv(gym.Env):
    """Random observations and rewards in given spaces; refuses actions outside its action space."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, self.t == 5, self.t == 7, {}


def learn(name: str, observation_space: gym.Space, action_space: gym.Space, **policy: Any) -> None:
    algorithm = registry.load("algo", name)
    network = make_policy(spec_of(observation_space, action_space), normalize_obs=True, **policy)
    before = weights_hash(network)
    small = {"num_steps": 8, "num_minibatches": 2, "num_epochs": 2}
    known = {field.name for field in dataclasses.fields(algorithm.Config)}
    algo = algorithm(network, algorithm.Config(**{key: value for key, value in small.items() if key in known}))
    learner = make_learner(network, algo)
    vectorizer = make_vectorizer([lambda: RandomEnv(observation_space, action_space)] * 3)
    rows: list[dict[str, float]] = []

    class Keep:
        def after_update(self, _learner: Any, metrics: dict[str, float]) -> None:
            rows.append(metrics)

    try:
        train(learner, inline(vectorizer, network, num_steps=8), [Keep()], total_steps=3 * 24)
    finally:
        vectorizer.close()
    assert learner.updates == len(rows) == 3
    assert all(math.isfinite(row["loss/policy"]) and math.isfinite(row["loss/value"]) for row in rows)
    assert weights_hash(network) != before


@pytest.mark.parametrize("name", registry.names("algo"))
@pytest.mark.parametrize("actions", ACTION_SPACES)
def test_every_action_space(name, actions):
    space, squash = ACTION_SPACES[actions]
    learn(name, VECTOR, space, squash=squash)


@pytest.mark.parametrize("name", registry.names("algo"))
@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
def test_every_observation_space(name, observations):
    learn(name, OBSERVATION_SPACES[observations], gym.spaces.Discrete(3))


@pytest.mark.parametrize("name", registry.names("algo"))
def test_state_dependent_exploration(name):
    learn(name, VECTOR, gym.spaces.Box(-2, 2, (2,), np.float32), gsde=True)
