import pytest
import torch

from parl_cli.actors.inline import LaggedActors
from parl_cli.envs.toy import CountingEnv
from parl_cli.types import ActorPool, EnvSpec, Snapshot
from tests.helpers.saved import as_saved
from tests.helpers.stubs import inline, make_actor, make_policy, make_vectorizer


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


# ---- with a lag made on purpose ----


def lagged(lag):
    probe = CountingEnv()
    policy = make_policy(EnvSpec("probe", probe.observation_space, probe.action_space))
    return LaggedActors(make_actor(make_vectorizer([CountingEnv] * 2), policy, num_steps=4), lag)


def version(pool, number):
    """Weights by which action number 0, 1, 2 or 3 is all but certain."""
    weights = {name: value.clone() for name, value in pool.actor.policy.state_dict().items()}
    weights["policy_head.bias"] = 100.0 * torch.eye(4)[number % 4]
    return Snapshot(number, 0, weights)


def acted(pool):
    """Version and action of the next rollout, which are the same everywhere in it."""
    [rollout] = pool.get(1)
    [[number], [action]] = rollout.policy_version.unique(), rollout.action.unique()
    return int(number), int(action)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_it_acts_with_the_weights_of_that_many_updates_ago(lag):
    pool = lagged(lag)
    seen = []
    for update in range(6):
        pool.publish(version(pool, update))
        seen.append(acted(pool))
    expected = [max(0, update - lag) for update in range(6)]
    assert seen == [(number, number % 4) for number in expected]


def test_without_a_lag_it_is_the_plain_pool(pool):
    other = lagged(0)
    for update in range(3):
        for each in (pool, other):
            each.publish(Snapshot(update, 0, pool.actor.policy.state_dict()))
        mine, plain = other.get(1)[0], pool.get(1)[0]
        assert torch.equal(mine.action, plain.action)
        assert torch.equal(mine.policy_version, plain.policy_version)


def test_weights_that_change_later_were_copied():
    pool, snapshot = lagged(1), None
    for update in range(2):
        snapshot = version(pool, update)
        pool.publish(snapshot)
        snapshot.weights["policy_head.bias"].zero_()
    assert acted(pool) == (0, 0)


def test_publishing_a_version_again_replaces_it():
    pool = lagged(1)
    for number in (0, 1, 1, 1):
        pool.publish(version(pool, number))
    assert acted(pool) == (0, 0)
    pool.publish(version(pool, 2))
    assert acted(pool) == (1, 1)


@pytest.mark.parametrize("updates", [0, 1, 2, 5])
def test_a_saved_lag_goes_on(updates):
    pool, heir = lagged(3), lagged(3)
    for update in range(updates):
        pool.publish(version(pool, update))
        acted(pool)
    heir.load_state_dict(as_saved(pool.state_dict()))
    for each in (pool, heir):
        if updates:
            each.publish(version(each, updates - 1))  # as a call of `train` begins
    for update in range(updates, updates + 5):
        rollouts = []
        for each in (pool, heir):
            each.publish(version(each, update))
            rollouts += each.get(1)
        assert torch.equal(rollouts[0].action, rollouts[1].action)
        assert torch.equal(rollouts[0].obs, rollouts[1].obs)
        assert torch.equal(rollouts[0].policy_version, rollouts[1].policy_version)


def test_a_state_of_another_lag_or_network_is_refused():
    pool = lagged(3)
    for update in range(4):
        pool.publish(version(pool, update))
    state = as_saved(pool.state_dict())
    with pytest.raises(ValueError, match=r"versions \[0, 1, 2, 3\]: must be at most 2 in a row"):
        lagged(1).load_state_dict(state)
    with pytest.raises(ValueError, match="in a row"):
        lagged(3).load_state_dict(state | {"versions": torch.tensor([0, 2])})
    del state["weights"]["2"]["policy_head.bias"]
    with pytest.raises(RuntimeError, match=r"policy_head\.bias"):
        lagged(3).load_state_dict(state)
