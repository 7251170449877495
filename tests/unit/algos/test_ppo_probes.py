"""PPO on environments whose right answer is known, through the real actor and learner."""

import dataclasses

import pytest
import torch

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.envs.toy import (
    ConstantRewardEnv,
    DelayedRewardEnv,
    OneStepEnv,
    RewardByActionEnv,
    RewardByObsAndActionEnv,
    RewardByObsEnv,
)
from parl_cli.types import EnvSpec
from tests.helpers.stubs import inline, make_learner, make_policy, make_vectorizer

GAMMA = 0.8


def learn(env, *, updates=40, edit=lambda rollout: rollout):
    """Train for a few thousand steps; `edit` changes what the learner is shown."""
    probe = env()
    policy = make_policy(EnvSpec("probe", probe.observation_space, probe.action_space), hidden_sizes=[16])
    config = PPOConfig(
        num_steps=8, num_epochs=4, num_minibatches=2, learning_rate=0.02, learning_rate_schedule="linear", gamma=GAMMA
    )
    total_steps = updates * 8 * 8
    learner = make_learner(policy, PPO(policy, config), total_steps=total_steps)
    pool = inline(make_vectorizer([env] * 8), policy, num_steps=8)
    for _ in range(updates):
        learner.step([edit(rollout) for rollout in pool.get(1)])
    return policy


def value_at(policy, *obs):
    with torch.no_grad():
        return policy.evaluate(torch.tensor(obs)[:, None])[1].tolist()


def greedy_at(policy, *obs):
    noise = torch.full((len(obs), 1), 0.5)
    return policy.act(torch.tensor(obs)[:, None], None, None, noise, greedy=True).action.tolist()


def truncated_as_terminated(rollout):
    return dataclasses.replace(
        rollout,
        terminated=rollout.terminated | rollout.truncated,
        truncated=torch.zeros_like(rollout.truncated),
    )


def test_value_of_a_constant_reward_is_that_reward():
    assert value_at(learn(OneStepEnv), 0.0) == pytest.approx([1.0], abs=0.05)


def test_value_follows_the_observation():
    assert value_at(learn(RewardByObsEnv), -1.0, 1.0) == pytest.approx([-1.0, 1.0], abs=0.1)


def test_value_of_a_delayed_reward_is_discounted_once():
    assert value_at(learn(DelayedRewardEnv), 0.0, 1.0) == pytest.approx([GAMMA, 1.0], abs=0.05)


def test_policy_takes_the_rewarded_action():
    policy = learn(RewardByActionEnv)
    assert greedy_at(policy, 0.0) == [1]
    assert value_at(policy, 0.0) == pytest.approx([1.0], abs=0.1)


def test_policy_reads_the_observation():
    policy = learn(RewardByObsAndActionEnv)
    assert greedy_at(policy, -1.0, 1.0) == [0, 1]
    assert value_at(policy, -1.0, 1.0) == pytest.approx([1.0, 1.0], abs=0.1)


def endless():
    return ConstantRewardEnv(truncate_at=5)


def test_constant_reward_under_a_time_limit_has_the_value_of_an_endless_episode():
    assert value_at(learn(endless), 0.0) == pytest.approx([1 / (1 - GAMMA)], rel=0.05)


def test_without_the_bootstrap_of_truncated_steps_that_value_is_wrong():
    [value] = value_at(learn(endless, edit=truncated_as_terminated), 0.0)
    # every state looks the same: between the mean of the five returns and the fixed point V = 1 + gamma · 4/5 · V
    returns = [(1 - GAMMA**left) / (1 - GAMMA) for left in range(1, 6)]
    assert 0.95 * sum(returns) / 5 < value < 1.05 / (1 - GAMMA * 4 / 5)
    assert value < 0.7 / (1 - GAMMA)
