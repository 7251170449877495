"""Stub policies, algorithms and envs through the real actor, learner and loop: the contracts, before any algorithm."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from parl_cli import registry
from parl_cli.envs.toy import (
    CountingEnv,
    TwoAgentEnv,
    counting_length,
    counting_reward,
    counting_seed,
    counting_truncates,
)
from parl_cli.training.loop import train
from parl_cli.types import EnvSpec, Rollout
from tests.helpers.stubs import (
    GRUPolicy,
    ReplayStub,
    ShuffledVectorizer,
    inline,
    make_actor,
    make_learner,
    make_policy,
    make_vectorizer,
    weights_hash,
)
from tests.helpers.vectorizers import of_python_envs

VECTORIZERS = [registry.load("vectorizer", name) for name in of_python_envs(lock_step=True)] + [ShuffledVectorizer]
NUM_ENVS = 5


def spec_of(env) -> EnvSpec:
    return EnvSpec("probe", env.observation_space, env.action_space, getattr(env, "num_agents", None))


def check_counting(rollout: Rollout, seen: dict[int, tuple[int, int]]) -> None:
    """Every number of a rollout, recomputed from where the env said it was; `seen` = next (episode, t) per env."""
    finals = {tuple(at): obs for at, obs in zip(rollout.final_index.tolist(), rollout.final_obs, strict=True)}
    for n, env in enumerate(rollout.env_id.tolist()):
        episode, t = seen.get(env, (0, 0))
        for step in range(rollout.obs.shape[0]):
            where = (step, n)
            assert rollout.obs[where].tolist() == [env, episode, t]
            assert bool(rollout.is_first[where]) == (t == 0)
            assert bool(rollout.mask[where])
            action = int(rollout.action[where])
            assert float(rollout.reward[where]) == counting_reward(env, episode, t, action)
            t += 1
            over = t >= counting_length(env, episode)
            truncated = over and counting_truncates(env, episode)
            assert bool(rollout.truncated[where]) == truncated
            assert bool(rollout.terminated[where]) == (over and not truncated)
            assert (where in finals) == over
            if over:
                assert finals.pop(where).tolist() == [env, episode, t]
                episode, t = episode + 1, 0
        assert rollout.last_obs[n].tolist() == [env, episode, t]
        assert bool(rollout.last_is_first[n]) == (t == 0)
        seen[env] = (episode, t)
    assert not finals


@pytest.mark.parametrize("cls", VECTORIZERS, ids=lambda cls: cls.__name__)
def test_rollouts_align_obs_action_reward_and_ends_under_every_vectorizer(cls):
    vectorizer = make_vectorizer([CountingEnv] * NUM_ENVS, cls)
    try:
        actor = make_actor(vectorizer, make_policy(spec_of(CountingEnv())), num_steps=7)
        seen: dict[int, tuple[int, int]] = {}
        for _ in range(6):
            rollout = actor.collect()
            assert rollout.obs.shape == (7, NUM_ENVS, 3)
            check_counting(rollout, seen)
        total = sum(episode * 1000 + t for episode, t in seen.values())
        assert total > NUM_ENVS * 1000  # every env came round at least once
    finally:
        vectorizer.close()


@pytest.mark.parametrize("cls", VECTORIZERS, ids=lambda cls: cls.__name__)
def test_noise_and_so_actions_depend_on_env_and_step_alone(cls):
    def actions(make) -> dict[int, list[int]]:
        vectorizer = make_vectorizer([CountingEnv] * NUM_ENVS, make)
        try:
            actor = make_actor(vectorizer, make_policy(spec_of(CountingEnv())), num_steps=4)
            taken: dict[int, list[int]] = {env: [] for env in range(NUM_ENVS)}
            for _ in range(12):
                rollout = actor.collect()
                for n, env in enumerate(rollout.env_id.tolist()):
                    taken[env] += rollout.action[:, n].tolist()
            return taken
        finally:
            vectorizer.close()

    reference, found = actions(registry.load("vectorizer", "serial")), actions(cls)
    for env, mine in found.items():
        length = min(len(mine), len(reference[env]))
        assert length >= 4
        assert mine[:length] == reference[env][:length]


def test_out_of_order_columns_may_give_one_env_more_than_another():
    vectorizer = make_vectorizer([CountingEnv] * NUM_ENVS, ShuffledVectorizer)
    actor = make_actor(vectorizer, make_policy(spec_of(CountingEnv())), num_steps=3)
    shares = np.zeros(NUM_ENVS, int)
    for _ in range(20):
        np.add.at(shares, actor.collect().env_id.numpy(), 1)
    assert shares.sum() == 20 * NUM_ENVS
    assert len(set(shares.tolist())) > 1


def test_recurrent_policy_trains_through_the_loop_and_keeps_state_in_step():
    vectorizer = make_vectorizer([CountingEnv] * 4)
    policy = make_policy(spec_of(CountingEnv()), GRUPolicy)
    before = weights_hash(policy)
    learner, pool = make_learner(policy), inline(vectorizer, policy)
    train(learner, pool, [], total_steps=256)
    assert learner.env_steps == 256
    assert weights_hash(policy) != before
    # what acting saw is what learning re-computes: same weights, so the same log-probabilities
    rollout = pool.get(1)[0]
    distribution, value = policy.evaluate(rollout.obs, rollout.state, rollout.is_first)
    torch.testing.assert_close(distribution.log_prob(rollout.action), rollout.extras["log_prob"])
    again, following = policy.values(rollout)
    torch.testing.assert_close(again, value)
    assert len(rollout.final_index)
    for (t, n), final_obs, state in zip(
        rollout.final_index.tolist(), rollout.final_obs, rollout.final_state, strict=True
    ):
        if rollout.truncated[t, n]:
            hidden = policy.remember(final_obs[None], state[None], torch.zeros(1, dtype=torch.bool))
            torch.testing.assert_close(following[t, n], policy.value_head(hidden).squeeze())


@pytest.mark.parametrize("filler", [0.0, float("nan")])
def test_two_agents_one_of_which_dies_train_through_the_loop(filler):
    env = TwoAgentEnv()
    vectorizer = make_vectorizer([functools.partial(TwoAgentEnv, filler=filler)] * 3)
    policy = make_policy(spec_of(env))
    learner, pool = make_learner(policy), inline(vectorizer, policy)
    train(learner, pool, [], total_steps=16 * 3 * 4)
    assert learner.env_steps == 16 * 3 * 4  # env steps, not agent steps
    rollout = pool.get(1)[0]
    assert rollout.obs.shape[:3] == (16, 3, 2)
    assert rollout.reward.shape == rollout.mask.shape == rollout.is_first.shape == (16, 3, 2)
    alive = rollout.mask[..., 0]
    assert alive.all()  # agent 0 lives to the end of every episode
    dead = ~rollout.mask[..., 1]
    assert dead.any()
    assert not rollout.reward[..., 1][dead].any()
    # the row in which agent 1 dies is real; the next one is not, unless the episode ended there too
    died = rollout.terminated[:-1, :, 1] & rollout.mask[:-1, :, 1]
    assert died.any()
    assert torch.equal(dead[1:][died], ~rollout.is_first[1:, :, 1][died])


def test_a_replay_algorithm_with_single_step_rollouts_passes_through_the_loop():
    vectorizer = make_vectorizer([CountingEnv] * 3)
    policy = make_policy(spec_of(CountingEnv()))
    algo = ReplayStub(policy)
    learner, pool = make_learner(policy, algo), inline(vectorizer, policy, num_steps=1)
    train(learner, pool, [], total_steps=60)
    assert len(algo.replay) == 60
    for obs, action, reward, next_obs, terminated in algo.replay:
        env, episode, t = (int(x) for x in obs)
        assert next_obs.tolist() == [env, episode, t + 1]
        assert float(reward) == counting_reward(env, episode, t, int(action))
        over = t + 1 >= counting_length(env, episode)
        assert bool(terminated) == (over and not counting_truncates(env, episode))


def test_several_rollouts_per_update_are_learned_from_side_by_side():
    vectorizer = make_vectorizer([CountingEnv] * 4)
    policy = make_policy(spec_of(CountingEnv()))
    learner = make_learner(policy)
    train(learner, inline(vectorizer, policy), [], total_steps=256, rollouts_per_update=2)
    assert (learner.updates, learner.env_steps) == (2, 256)


@pytest.mark.parametrize("name", of_python_envs(lock_step=True))
def test_an_actor_resumes_bit_for_bit(name):
    make = functools.partial(make_vectorizer, [CountingEnv] * 4, registry.load("vectorizer", name))
    policy = make_policy(spec_of(CountingEnv()))
    first, second = make(), make()
    try:
        actor = make_actor(first, policy, num_steps=5)
        for _ in range(3):
            actor.collect()
        state = actor.state_dict()
        heir = make_actor(second, policy, num_steps=5)
        heir.load_state_dict(state)
        for _ in range(3):
            mine, theirs = actor.collect(), heir.collect()
            for field in ("obs", "action", "reward", "terminated", "truncated", "is_first", "last_obs", "final_obs"):
                assert torch.equal(getattr(mine, field), getattr(theirs, field))
            assert mine.episodes == theirs.episodes
    finally:
        first.close()
        second.close()


def test_counting_seed_is_what_the_env_reads():
    env = CountingEnv()
    assert env.reset(seed=counting_seed(3, 4))[0].tolist() == [3, 4, 0]
