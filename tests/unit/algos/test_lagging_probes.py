"""Algorithms for actors that lag, on environments whose right answer is known, with and without a lag."""

import dataclasses

import pytest
import torch

from parl_cli import registry
from parl_cli.actors.inline import InlineActors, LaggedActors
from parl_cli.envs.toy import ConstantRewardEnv, DelayedRewardEnv, RewardByObsAndActionEnv
from parl_cli.training.loop import train
from parl_cli.types import EnvSpec
from tests.helpers.stubs import make_actor, make_learner, make_policy, make_vectorizer

GAMMA = 0.8
COMMON = {
    "num_steps": 8,
    "gamma": GAMMA,
    "learning_rate": 0.02,
    "learning_rate_schedule": "linear",
    "max_grad_norm": 0.5,
}
ONE_PASS = {"num_minibatches": 4, "optimizer": "adam"}
EACH = {"appo": {"num_epochs": 4, "num_minibatches": 2}, "a2c": ONE_PASS, "a3c": ONE_PASS, "impala": ONE_PASS}
CASES = [("a2c", 0), *((name, lag) for name in ("appo", "a3c", "impala") for lag in (0, 3))]
probes = pytest.mark.parametrize(("name", "lag"), CASES)


def learn(env, name, lag, updates=60):
    """Train for a few thousand steps."""
    probe = env()
    spec = EnvSpec("probe", probe.observation_space, probe.action_space)
    policy = make_policy(spec, hidden_sizes=[16])
    cls = registry.load("algo", name)
    algo = cls(policy, dataclasses.replace(cls.Config(), **COMMON, **EACH[name]))
    total_steps = updates * 8 * 8
    vectorizer = make_vectorizer([env] * 8)
    if lag:
        pool = LaggedActors(make_actor(vectorizer, make_policy(spec, hidden_sizes=[16]), num_steps=8), lag)
    else:
        pool = InlineActors(make_actor(vectorizer, policy, num_steps=8))
    train(make_learner(policy, algo, total_steps=total_steps), pool, [], total_steps)
    return policy


def value_at(policy, *obs):
    with torch.no_grad():
        return policy.evaluate(torch.tensor(obs)[:, None])[1].tolist()


@probes
def test_policy_reads_the_observation(name, lag):
    policy = learn(RewardByObsAndActionEnv, name, lag)
    obs = torch.tensor([-1.0, 1.0])[:, None]
    assert policy.act(obs, None, None, torch.full((2, 1), 0.5), greedy=True).action.tolist() == [0, 1]
    assert value_at(policy, -1.0, 1.0) == pytest.approx([1.0, 1.0], abs=0.15)


@probes
def test_value_of_a_delayed_reward_is_discounted_once(name, lag):
    assert value_at(learn(DelayedRewardEnv, name, lag), 0.0, 1.0) == pytest.approx([GAMMA, 1.0], abs=0.05)


@probes
def test_constant_reward_under_a_time_limit_has_the_value_of_an_endless_episode(name, lag):
    def endless():
        return ConstantRewardEnv(truncate_at=5)

    assert value_at(learn(endless, name, lag), 0.0) == pytest.approx([1 / (1 - GAMMA)], rel=0.05)
