"""Evaluation plays given episodes, whole, and its answer does not depend on how."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from parl_cli.build import make_eval_vectorizer
from parl_cli.config import EnvConfig
from parl_cli.envs.factory import EVAL_ROLE, TRAIN_ROLE, EnvFactory, EpisodeSeeds, env_spec
from parl_cli.envs.toy import TwoAgentEnv
from parl_cli.errors import EnvError
from parl_cli.training.evaluate import EpisodeSpread, Evaluation, bootstrap_interval, evaluate
from parl_cli.types import EnvSpec
from parl_cli.vectorizers.serial import SerialVectorizer
from tests.helpers.stubs import GRUPolicy, make_policy, weights_hash

EPISODES = 10


def vectorizer_of(env_fn, num_envs):
    spread = EpisodeSpread(EpisodeSeeds(3, EVAL_ROLE), num_envs)
    return SerialVectorizer([env_fn] * num_envs, autoreset_mode="SameStep", episode_seed=spread)


def play(policy, env_fn, num_envs, episodes=EPISODES, **options):
    vectorizer = vectorizer_of(env_fn, num_envs)
    try:
        return evaluate(policy, vectorizer, episodes, noise_key=5, **options)
    finally:
        vectorizer.close()


def cartpole(cls=None):
    config = EnvConfig(id="CartPole-v1")
    policy = make_policy(env_spec(config)) if cls is None else make_policy(env_spec(config), cls)
    with torch.no_grad():
        policy.policy_head.weight.mul_(300)  # far from a coin's toss, so that it matters what is seen
    return policy, EnvFactory(config)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("cls", [None, GRUPolicy])
def test_the_result_does_not_depend_on_how_many_envs_play(deterministic, cls):
    policy, env_fn = cartpole(cls)
    results = [play(policy, env_fn, n, deterministic=deterministic) for n in (1, 4, 7, 10)]
    for result in results[1:]:
        assert result.returns.tolist() == results[0].returns.tolist()
        assert result.lengths.tolist() == results[0].lengths.tolist()
    assert len(set(results[0].returns.tolist())) > 3


def test_sampled_episodes_are_other_episodes_and_repeatable():
    policy, env_fn = cartpole()
    greedy, sampled, again = (play(policy, env_fn, 4, deterministic=d) for d in (True, False, False))
    assert sampled.returns.tolist() == again.returns.tolist()
    assert sampled.returns.tolist() != greedy.returns.tolist()


def test_the_first_episodes_are_the_same_however_many_follow():
    policy, env_fn = cartpole()
    few, many = (play(policy, env_fn, 3, episodes=n) for n in (5, 12))
    assert many.returns[:5].tolist() == few.returns.tolist()


def test_the_policy_is_left_as_it_was():
    policy, env_fn = cartpole()
    policy.train()
    before = weights_hash(policy)
    play(policy, env_fn, 2)
    assert weights_hash(policy) == before
    assert policy.training


def test_evaluation_seeds_are_none_of_training():
    spread = EpisodeSpread(EpisodeSeeds(1, EVAL_ROLE), 4)
    training = EpisodeSeeds(1, TRAIN_ROLE)
    mine = {spread(env, episode) for env in range(4) for episode in range(25)}
    assert len(mine) == 100
    assert not mine & {training(env, episode) for env in range(32) for episode in range(100)}


def test_env_i_of_n_plays_every_nth_episode():
    spread = EpisodeSpread(lambda index, episode: episode, 4)
    assert [[spread(env, k) for k in range(3)] for env in range(2)] == [[0, 4, 8], [1, 5, 9]]


def test_several_agents_count_as_their_mean():
    env = TwoAgentEnv(length=6, death_at=3)
    policy = make_policy(EnvSpec("two", env.observation_space, env.action_space, 2))
    result = play(policy, TwoAgentEnv, 2, episodes=3)
    assert result.returns.tolist() == [6.0] * 3  # agent 0 earns 1 for six steps, agent 1 earns 2 for three
    assert result.lengths.tolist() == [6] * 3


class NanRewardEnv(gym.Env):
    """One step, whose reward is NaN."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), math.nan, True, False, {}


def test_a_nan_reward_is_an_error_and_no_endless_evaluation():
    policy = make_policy(EnvSpec("nan", NanRewardEnv.observation_space, NanRewardEnv.action_space))
    with pytest.raises(EnvError, match=r"env 0 .* reward nan is not a finite"):
        play(policy, NanRewardEnv, 1, episodes=2)


def test_a_policy_is_left_as_it_was_when_an_env_fails():
    policy = make_policy(EnvSpec("nan", NanRewardEnv.observation_space, NanRewardEnv.action_space))
    policy.train()
    with pytest.raises(EnvError):
        play(policy, NanRewardEnv, 1, episodes=2)
    assert policy.training


class EndlessEnv(NanRewardEnv):
    """Nothing ever happens."""

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


@pytest.fixture
def endless():
    gym.register("test/Endless-v0", EndlessEnv)
    gym.register("test/Limited-v0", EndlessEnv, max_episode_steps=30)
    yield
    del gym.registry["test/Endless-v0"], gym.registry["test/Limited-v0"]


@pytest.mark.parametrize(
    ("env_id", "trained", "asked", "length"),
    [
        ("test/Endless-v0", None, None, 20),
        ("test/Endless-v0", 25, None, 25),
        ("test/Endless-v0", 25, 40, 40),
        ("test/Limited-v0", None, None, 30),
        ("test/Limited-v0", None, 7, 7),
    ],
)
def test_every_evaluation_ends(env_id, trained, asked, length, endless, monkeypatch, caplog):
    for module in ("parl_cli.build", "parl_cli.training.evaluate"):
        monkeypatch.setattr(f"{module}.LONGEST_EPISODE", 20)
    policy = make_policy(EnvSpec("endless", EndlessEnv.observation_space, EndlessEnv.action_space))
    config = EnvConfig(id=env_id, max_episode_steps=trained)
    vectorizer = make_eval_vectorizer(config, seed=1, episodes=3, max_episode_steps=asked)
    try:
        assert evaluate(policy, vectorizer, 3).lengths.tolist() == [length] * 3
    finally:
        vectorizer.close()
    told = (
        "evaluation: 3 of 3 episodes were cut off after 20 steps; "
        "eval.max_episode_steps (of parl eval: max_episode_steps) sets another limit"
    )
    assert (told in caplog.text) is (length == 20)


# ---- statistics ----


def test_summary_of_known_numbers():
    summary = Evaluation(np.array([1.0, 2.0, 3.0]), np.array([10, 20, 30])).summary()
    assert list(summary) == ["mean_return", "std_return", "ci95", "mean_length", "episodes"]
    assert (summary["mean_return"], summary["std_return"], summary["mean_length"]) == (2.0, 1.0, 20.0)
    low, high = summary["ci95"]
    assert 1.0 <= low < 2.0 < high <= 3.0


def test_a_single_episode_has_no_spread():
    summary = Evaluation(np.array([5.0]), np.array([9])).summary()
    assert (summary["std_return"], summary["ci95"]) == (0.0, [5.0, 5.0])


def test_metrics_are_the_summary():
    evaluation = Evaluation(np.array([1.0, 2.0, 3.0]), np.array([10, 20, 30]))
    metrics, (low, high) = evaluation.metrics(), evaluation.summary()["ci95"]
    assert metrics["eval/return_mean"] == 2.0
    assert metrics["eval/return_ci95"] == (high - low) / 2
    assert metrics["eval/episodes"] == 3.0


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(50, 10, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))  # what the normal approximation says
    assert low == pytest.approx(values.mean() - half, abs=0.1)
    assert high == pytest.approx(values.mean() + half, abs=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([7.0] * 5) == (7.0, 7.0)


def test_the_bootstrap_of_many_episodes_fits_in_memory():
    low, high = bootstrap_interval(np.arange(300_000) % 2, resamples=20)
    assert 0.49 < low <= high < 0.51
