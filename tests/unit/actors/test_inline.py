import pytest
import torch

from parl_cli.envs.toy import CountingEnv
from parl_cli.types import ActorPool, EnvSpec, Snapshot
from tests.helpers.stubs import inline, make_policy, make_vectorizer


@pytest.fixture
def pool():
    probe = CountingEnv()
    policy = make_policy(EnvSpec("probe", probe.observation_space, probe.action_space))
    return inline(make_vectorizer([CountingEnv] * 2), policy, num_steps=4)


def test_it_is_an_actor_pool(pool):
    assert isinstance(pool, ActorPool)


def test_get_acts_out_as_many_rollouts_as_asked_for(pool):
    first, second = pool.get(2)
    assert first.obs.shape == second.obs.shape == (4, 2, 3)
    assert torch.equal(first.last_obs, second.obs[0])


def test_publishing_tells_the_version_and_shares_the_weights(pool):
    weights = pool.actor.policy.state_dict()
    pool.publish(Snapshot(9, 100, weights))
    assert (pool.get(1)[0].policy_version == 9).all()
    pool.actor.policy.policy_head.bias.data[:] = torch.tensor([100.0, 0.0, 0.0, 0.0])
    assert not pool.get(1)[0].action.any()


def test_state_round_trip_through_the_pool(pool):
    pool.get(1)
    state = {"actor": {name: value.clone() for name, value in pool.state_dict()["actor"].items()}}
    expected = pool.get(1)[0]
    other = inline(make_vectorizer([CountingEnv] * 2), pool.actor.policy, num_steps=4)
    other.load_state_dict(state)
    assert torch.equal(other.get(1)[0].obs, expected.obs)


def test_close_closes_the_vectorizer(pool):
    pool.close()
    assert pool.actor.vectorizer.closed
