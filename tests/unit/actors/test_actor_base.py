"""What an actor does beside aligning rows, which tests/integration/test_loop_probes.py proves."""

import numpy as np
import pytest
import torch

from parl_cli.actors.base import Actor
from parl_cli.actors.inline import InlineActors
from parl_cli.buffers.rollouts import concatenate
from parl_cli.envs.toy import CountingEnv, IrreproducibleEnv, TwoAgentEnv, counting_length
from parl_cli.errors import EnvError
from parl_cli.functional.noise import uniform
from parl_cli.types import EnvSpec, Snapshot
from tests.helpers.stubs import GRUPolicy, ShuffledVectorizer, make_actor, make_policy, make_vectorizer

N = 3


def actor_of(env=CountingEnv, *, policy=None, num_steps=5, cls=None):
    probe = env()
    spec = EnvSpec("probe", probe.observation_space, probe.action_space, getattr(probe, "num_agents", None))
    vectorizer = make_vectorizer([env] * N) if cls is None else make_vectorizer([env] * N, cls)
    return make_actor(vectorizer, policy or make_policy(spec), num_steps)


def publish(actor, version):
    InlineActors(actor).publish(Snapshot(version, 0, {}))


def test_actions_are_a_function_of_env_and_step_count():
    actor = actor_of()
    first, second = actor.collect(), actor.collect()
    for start, rollout in ((0, first), (5, second)):
        steps = np.arange(start, start + 5, dtype=np.uint64)[:, None]
        noise = torch.from_numpy(uniform(7, rollout.env_id.numpy(), steps, 1))
        again = actor.policy.act(rollout.obs, None, rollout.is_first, noise)
        assert torch.equal(again.action, rollout.action)


def test_rows_say_which_weights_acted():
    actor = actor_of()
    publish(actor, 4)
    assert (actor.collect().policy_version == 4).all()
    publish(actor, 5)
    assert (actor.collect().policy_version == 5).all()


def test_a_column_that_is_filled_over_several_versions_says_so_step_by_step():
    actor = actor_of(cls=ShuffledVectorizer)
    rollouts = []
    for version in range(12):
        publish(actor, version)
        rollouts.append(actor.collect())
    mixed = 0
    for version, rollout in enumerate(rollouts):
        versions = rollout.policy_version
        assert (versions <= version).all()
        assert (versions.diff(dim=0) >= 0).all()
        mixed += int((versions[0] != versions[-1]).sum())
    assert mixed > 0


def test_finished_episodes_are_told_once():
    actor = actor_of(num_steps=20)
    episodes = [episode for _ in range(3) for episode in actor.collect().episodes]
    for env in range(N):
        lengths = [episode.length for episode in episodes if episode.env_id == env]
        assert lengths == [counting_length(env, k) for k in range(len(lengths))]
        assert 60 - 8 <= sum(lengths) <= 60


def test_time_is_booked_on_env_and_act():
    actor = actor_of()
    actor.collect()
    seconds = actor.watch.take()
    assert seconds["env"] > 0
    assert seconds["act"] > 0


def test_state_holds_only_tensors():
    actor = actor_of()
    actor.collect()
    assert all(isinstance(value, torch.Tensor) for value in actor.state_dict().values())


def test_a_recurrent_actor_resumes_with_its_memory():
    probe = CountingEnv()
    policy = make_policy(EnvSpec("probe", probe.observation_space, probe.action_space), GRUPolicy)
    actor, heir = actor_of(policy=policy), actor_of(policy=policy)
    for _ in range(3):
        actor.collect()
    state = {name: value.clone() for name, value in actor.state_dict().items()}
    assert state["recurrent"].any()
    expected = actor.collect()
    heir.load_state_dict(state)
    found = heir.collect()
    assert torch.equal(found.state, expected.state)
    assert torch.equal(found.extras["dist_params"], expected.extras["dist_params"])


def test_agents_resume_too():
    actor, heir = actor_of(TwoAgentEnv), actor_of(TwoAgentEnv)
    actor.collect()
    state = {name: value.clone() for name, value in actor.state_dict().items()}
    expected = actor.collect()
    heir.load_state_dict(state)
    found = heir.collect()
    for name in ("obs", "action", "mask", "terminated", "is_first"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_state_from_before_the_first_rollout_begins_at_the_beginning():
    fresh, heir = actor_of(), actor_of()
    heir.load_state_dict(fresh.state_dict())
    assert torch.equal(heir.collect().obs, fresh.collect().obs)


def test_an_irreproducible_env_is_refused_with_the_way_out():
    actor = actor_of(IrreproducibleEnv)
    actor.collect()
    with pytest.raises(EnvError, match=r"env \d cannot be resumed exactly.*checkpoint\.env=reset"):
        actor_of(IrreproducibleEnv).load_state_dict(actor.state_dict())


class EarlyEndEnv(CountingEnv):
    """Ends its episodes sooner than `CountingEnv`: not what the saved actions were for."""

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        return obs, reward, self.t >= 1, False, info


def test_an_env_whose_episode_ends_early_is_refused():
    actor = actor_of(num_steps=2)
    actor.collect()
    with pytest.raises(EnvError, match=r"its episode ended early.*checkpoint\.env=reset"):
        actor_of(EarlyEndEnv, num_steps=2).load_state_dict(actor.state_dict())


def test_without_replay_every_env_begins_its_next_episode():
    actor, heir = actor_of(IrreproducibleEnv), actor_of(IrreproducibleEnv)
    actor.collect()
    state = actor.state_dict()
    heir.load_state_dict(state, replay=False)
    rollout = heir.collect()
    assert rollout.is_first[0].all()
    assert rollout.obs[0, :, 1].tolist() == (state["episode_numbers"] + 1).tolist()
    steps = torch.full((N,), 5)  # noise goes on where it was
    assert torch.equal(state["acted"], steps)
    noise = torch.from_numpy(uniform(7, rollout.env_id.numpy(), steps.numpy(), 1))
    assert torch.equal(heir.policy.act(rollout.obs[0], None, rollout.is_first[0], noise).action, rollout.action[0])


def test_a_vectorizer_that_cannot_replay_is_not_asked_to():
    actor, heir = actor_of(), actor_of()
    heir.vectorizer.replayable = False
    assert (actor.replayable, heir.replayable) == (True, False)
    actor.collect()
    state = actor.state_dict()
    heir.load_state_dict(state)
    assert heir.collect().obs[0, :, 1].tolist() == (state["episode_numbers"] + 1).tolist()


def shares(num_envs=4, num_actors=2, first=0):
    """Actors that share the envs of one run between them, and what each is in it."""
    share = num_envs // num_actors
    actors = []
    for low in range(first, first + num_envs, share):
        policy = make_policy(EnvSpec("probe", CountingEnv().observation_space, CountingEnv().action_space))
        vectorizer = make_vectorizer([CountingEnv] * share, episode_seed=lambda env, k, low=low: 1000 * (low + env) + k)
        actors.append(Actor(vectorizer, policy, num_steps=5, noise_key=7, env_ids=range(low, low + share)))
    return actors


def test_envs_do_the_same_whoever_of_several_actors_owns_them():
    [whole] = shares(num_actors=1)
    parts = shares(num_actors=2)
    for _ in range(4):
        expected, rollout = whole.collect(), concatenate([actor.collect() for actor in parts])
        assert torch.equal(rollout.env_id, expected.env_id)
        assert torch.equal(rollout.obs, expected.obs)
        assert torch.equal(rollout.action, expected.action)
        by_env = {(e.env_id, e.length) for e in rollout.episodes}
        assert by_env == {(e.env_id, e.length) for e in expected.episodes}


def test_an_actor_begins_where_another_ended():
    actor = actor_of()
    actor.begin(np.array([4, 5, 6]), np.full(N, 10, np.uint64))
    rollout = actor.collect()
    noise = torch.from_numpy(uniform(7, rollout.env_id.numpy(), np.arange(10, 15, dtype=np.uint64)[:, None], 1))
    assert torch.equal(actor.policy.act(rollout.obs, None, rollout.is_first, noise).action, rollout.action)
    assert (actor.vectorizer.episode_numbers >= [4, 5, 6]).all()
    assert actor.acted.tolist() == [15] * N


def test_every_answer_is_told_and_whoever_is_told_may_end_the_rollout():
    actor, told = actor_of(), []
    actor.on_step = told.append
    actor.collect()
    assert told == [N] * 5

    def stop(rows):
        raise KeyError

    actor.on_step = stop
    with pytest.raises(KeyError):
        actor.collect()
