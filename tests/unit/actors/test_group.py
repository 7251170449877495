"""The pools of several policies behind one pool's interface, and envs that are called as in the whole run."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from parl_cli.actors.base import Actor
from parl_cli.actors.group import PoolGroup
from parl_cli.actors.inline import InlineActors
from parl_cli.actors.worker import as_in_run
from parl_cli.config import DebugConfig
from parl_cli.envs.factory import EpisodeSeeds
from parl_cli.envs.toy import CountingEnv, FaultyEnv
from parl_cli.errors import EnvError, ParlError
from parl_cli.metrics.timing import Stopwatch
from parl_cli.types import EnvSpec, Snapshot
from parl_cli.vectorizers.calls import span
from tests.helpers.saved import as_saved
from tests.helpers.stubs import make_policy, make_vectorizer

SPEC = EnvSpec("probe", CountingEnv().observation_space, CountingEnv().action_space)


class StubPool:
    """Notes what it is told."""

    def __init__(self, name, error=None):
        self.name = name
        self.error = error
        self.watch = Stopwatch()
        self.told = []

    def publish(self, snapshot):
        self.told.append(snapshot)

    def get(self, n):
        self.watch.add("wait", 1.0)
        return [f"{self.name}{k}" for k in range(n)]

    def metrics(self):
        return {"actors/restarts": 1.0, "actors/env_share": 0.25 if self.name == "a" else 0.75}

    def state_dict(self):
        return {"name": self.name}

    def load_state_dict(self, state, *, replay=True):
        self.told.append((state, replay))

    def close(self):
        self.told.append("close")
        if self.error is not None:
            raise self.error


def group_of(*pools):
    return PoolGroup([lambda pool=pool: pool for pool in pools])


def test_every_pool_is_given_its_policy_s_weights():
    a, b = StubPool("a"), StubPool("b")
    weights = {"0.w": torch.zeros(1), "1.w": torch.ones(1), "1.v": torch.ones(2)}
    group_of(a, b).publish(Snapshot(7, 64, weights, {"epsilon": 0.5}))
    assert [(s.version, s.env_steps, dict(s.scalars)) for s in (*a.told, *b.told)] == [(7, 64, {"epsilon": 0.5})] * 2
    assert a.told[0].weights.keys() == {"w"}
    assert b.told[0].weights.keys() == {"w", "v"}
    assert b.told[0].weights["w"] is weights["1.w"]


def test_eleven_policies_are_not_taken_for_two():
    pools = [StubPool(str(k)) for k in range(11)]
    group_of(*pools).publish(Snapshot(0, 0, {f"{k}.w": torch.full((1,), float(k)) for k in range(11)}))
    assert [float(pool.told[0].weights["w"]) for pool in pools] == list(range(11))
    assert all(len(pool.told[0].weights) == 1 for pool in pools)


def test_rollouts_times_and_figures_are_those_of_all():
    group = group_of(StubPool("a"), StubPool("b"))
    assert group.get(2) == ["a0", "a1", "b0", "b1"]
    assert group.watch.take()["wait"] == 2.0
    assert group.metrics() == {
        "actors/restarts": 2.0,
        "actors/env_share": 0.5,
        "policy_0/actors/restarts": 1.0,
        "policy_0/actors/env_share": 0.25,
        "policy_1/actors/restarts": 1.0,
        "policy_1/actors/env_share": 0.75,
    }


def test_states_are_each_pool_s():
    a, b = StubPool("a"), StubPool("b")
    group = group_of(a, b)
    assert group.state_dict() == {"0": {"name": "a"}, "1": {"name": "b"}}
    group.load_state_dict(group.state_dict(), replay=False)
    assert (a.told, b.told) == ([({"name": "a"}, False)], [({"name": "b"}, False)])


def test_it_can_re_step_episodes_if_every_pool_can():
    a, b = StubPool("a"), StubPool("b")
    assert group_of(a, b).replayable
    b.replayable = False
    assert not group_of(a, b).replayable


def test_all_are_closed_also_if_one_complains():
    a, b, c = StubPool("a"), StubPool("b", EnvError("b broke")), StubPool("c")
    with pytest.raises(EnvError, match="b broke"):
        group_of(a, b, c).close()
    assert [pool.told for pool in (a, b, c)] == [["close"]] * 3


def test_if_one_cannot_be_made_those_before_it_are_closed():
    a = StubPool("a")

    def broken():
        raise ParlError("no such luck")

    with pytest.raises(ParlError, match="no such luck"):
        PoolGroup([lambda: a, broken])
    assert a.told == ["close"]


# ---- names of envs ----


def actor_of(env_ids, env_fns):
    policy = make_policy(SPEC)
    seeds = EpisodeSeeds(5, first_env=env_ids.start, env_stride=env_ids.step)
    return Actor(make_vectorizer(env_fns, episode_seed=seeds), policy, num_steps=7, noise_key=7, env_ids=env_ids)


@pytest.mark.parametrize(("policy_id", "num_policies"), [(0, 2), (1, 2), (2, 3)])
def test_every_k_th_env_of_a_run_does_what_it_does_among_all(policy_id, num_policies):
    num_envs = 2 * num_policies
    whole = actor_of(range(num_envs), [CountingEnv] * num_envs)
    part = actor_of(range(policy_id, num_envs, num_policies), [CountingEnv] * 2)
    for _ in range(3):
        expected, rollout = whole.collect(), part.collect()
        mine = expected.env_id % num_policies == policy_id
        assert rollout.env_id.tolist() == expected.env_id[mine].tolist()
        for name in ("obs", "action", "reward", "is_first"):
            assert torch.equal(getattr(rollout, name), getattr(expected, name)[:, mine]), name
        episodes = [episode for episode in expected.episodes if episode.env_id % num_policies == policy_id]
        assert rollout.episodes == episodes


def test_an_env_that_fails_is_called_as_in_the_whole_run():
    faulty = functools.partial(FaultyEnv, where="step", raise_at=3)
    pool = InlineActors(actor_of(range(1, 8, 2), [CountingEnv, CountingEnv, faulty, CountingEnv]))
    with pytest.raises(EnvError, match=r"^env 5 failed in step"):
        pool.get(1)


ODD = range(1, 8, 2)  # of policy 1 of 2


def odd_pool(third):
    """A pool of envs 1, 3, 5 and 7, of which 5 is another."""
    return InlineActors(actor_of(ODD, [CountingEnv, CountingEnv, third, CountingEnv]))


@pytest.mark.parametrize("lag", [0, 2])
def test_an_env_that_cannot_be_made_is_called_as_in_the_whole_run(lag):
    faulty = functools.partial(FaultyEnv, where="init", raise_at=0)
    recipe = SimpleNamespace(
        env_ids=ODD,
        config=SimpleNamespace(debug=DebugConfig(policy_lag=lag)),
        policy=lambda: make_policy(SPEC),
        actor=lambda policy, envs: actor_of(envs, [CountingEnv, CountingEnv, faulty, CountingEnv]),
    )
    with pytest.raises(EnvError, match=r"^env 5 could not be made"):
        InlineActors.make(recipe, make_policy(SPEC))


@pytest.mark.parametrize("replay", [True, False])
def test_an_env_that_fails_in_a_resume_is_called_as_in_the_whole_run(replay):
    pool = odd_pool(CountingEnv)
    pool.get(1)
    faulty = odd_pool(functools.partial(FaultyEnv, where="reset", raise_at=0))
    with pytest.raises(EnvError, match=r"^env 5 failed in reset"):
        faulty.load_state_dict(as_saved(pool.state_dict()), replay=replay)


def test_an_env_that_cannot_be_resumed_exactly_is_called_as_in_the_whole_run():
    pool = odd_pool(CountingEnv)
    pool.get(1)
    state = as_saved(pool.state_dict())
    state["actor"]["obs"][2] += 1
    with pytest.raises(EnvError, match=r"^env 5 cannot be resumed exactly.*checkpoint\.env=reset"):
        odd_pool(CountingEnv).load_state_dict(state)


def test_an_env_that_fails_in_close_is_called_as_in_the_whole_run():
    class StuckEnv(CountingEnv):
        def close(self):
            raise RuntimeError("stuck")

    with pytest.raises(EnvError, match=r"^env 5 failed in close"):
        odd_pool(StuckEnv).close()


@pytest.mark.parametrize(
    ("text", "env_ids", "expected"),
    [
        ("env 2 failed\n\nfrom env 2", range(10, 14), "env 12 failed\n\nfrom env 2"),
        ("env 2 failed", range(4), "env 2 failed"),
        ("env 2 failed", range(10, 14), "env 12 failed"),
        ("worker 1 (envs 2 to 3) died", range(10, 14), "worker 1 (envs 12 to 13) died"),
        ("env 2 failed", range(1, 8, 2), "env 5 failed"),
        ("worker 0 (envs 0 to 1) died", range(1, 8, 2), "worker 0 (envs 1, 3) died"),
        ("worker 0 (envs 0 to 3) died", range(1, 8, 2), "worker 0 (envs 1, 3 … 7) died"),
    ],
)
def test_messages_call_envs_as_in_the_whole_run(text, env_ids, expected):
    assert as_in_run(text, env_ids) == expected


def test_a_span_says_which_envs_it_leaves_out():
    assert span(range(5, 6, 2)) == "env 5"
    assert span(range(1, 5, 2)) == "envs 1, 3"
    assert span(range(1, 7, 2)) == "envs 1, 3 … 5"


def test_seeds_of_a_part_are_those_of_the_run():
    whole, part = EpisodeSeeds(3), EpisodeSeeds(3, first_env=1, env_stride=3)
    assert [part(env, 2) for env in range(4)] == [whole(1 + 3 * env, 2) for env in range(4)]
    assert np.unique([part(env, 2) for env in range(4)]).size == 4
