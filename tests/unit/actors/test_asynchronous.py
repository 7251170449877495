"""Tickets, the queue and failures, with actors that finish when the test says so."""

import dataclasses
import logging
from collections import deque

import numpy as np
import pytest
import torch

from parl_cli import registry
from parl_cli.actors import asynchronous
from parl_cli.actors.asynchronous import AsyncActors, AsyncActorsConfig
from parl_cli.actors.process import ProcessActorsConfig
from parl_cli.actors.slots import Status
from parl_cli.actors.tickets import MAX_AHEAD, Running
from parl_cli.actors.worker import Failed, Filled, Ready
from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.types import Episode, Snapshot
from parl_cli.vectorizers.blocks import buffer_size
from tests.helpers.rollouts import random_rollout, spec_of
from tests.helpers.stubs import make_policy, train_config

T, SHARE = 4, 2
SPEC = spec_of()
POLICY = make_policy(SPEC)


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(asynchronous.time, "monotonic", clock.monotonic)
    return clock


@dataclasses.dataclass(eq=False)
class Scripted(Running):
    """An actor that does nothing by itself."""

    told: list = dataclasses.field(default_factory=list)


class ScriptedActors(AsyncActors):
    """`work(order)` is asked whenever the learner waits; it says what happens, by `finish` and `say`."""

    def __init__(self, num_actors=2, **changes):
        config = AsyncActorsConfig(**({"num_actors": num_actors} | changes))
        super().__init__(config, range(SHARE * num_actors))
        self.said = deque()
        self.work = self.everybody_works
        self.published = []
        self.weights = {}
        self.buried = []
        self.abandoned = []

    def everybody_works(self):
        for actor in self._actors:
            for slot in actor.told:
                self.finish(actor.index, slot)
            actor.told.clear()

    def finish(self, index, slot=None, dropped=0):
        """The actor has filled its first ticket."""
        actor = self._actors[index]
        if slot is None:
            slot = actor.told.pop(0)
        actor.status.steps[0] += T * SHARE
        actor.status.episode_numbers[:] += 1
        rollout = random_rollout(POLICY, SPEC, num_steps=T, num_columns=SHARE)
        rollout.env_id = torch.arange(actor.envs.start, actor.envs.stop)
        version = int(actor.status.version[0])
        rollout.policy_version[:] = version
        episodes = [Episode(actor.envs.start, float(version), 1)]
        rollout.episodes = episodes
        seconds = {"env": 1.0, "act": 2.0, "wait": 3.0}
        self.said.append((actor, Filled(slot, version, 0, episodes, dropped, seconds, 8.0, rollout)))

    def say(self, index, what):
        self.said.append((self._actors[index], what))

    def _start(self, index, incarnation, envs, begin):
        status = begin(np.zeros(buffer_size(Status.layout(len(envs))), np.uint8))
        actor = Scripted(index, incarnation, envs, status, list(range(self.tickets.num_slots)))
        self.said.append((actor, Ready()))
        return actor

    def _tell(self, actor, ticket):
        actor.told.append(ticket)
        actor.status.version[0] = self.published[-1]

    def _hear(self, timeout_s):
        if timeout_s and not self.said:
            self.work()
        said, self.said = self.said, deque()
        return list(said)

    def _abandon(self, actor):
        self.abandoned.append(actor)
        return "it was killed"

    def _bury(self, actor):
        self.buried.append(actor)

    def _end(self):
        return []

    def _publish(self, snapshot):
        self.published.append(snapshot.version)
        self.weights = dict(snapshot.weights)

    def _newest(self):
        return self.weights

    def _rollout(self, actor, filled):
        return filled.rollout

    def _own(self, rollout):
        return rollout

    def under_way(self):
        return [len(actor.told) for actor in self._actors]


def publish(pool, version, weight=0.0):
    pool.publish(Snapshot(version, 0, {"w": torch.tensor(weight)}))
    pool._take_in(0.0)  # those who have just been started say that they are ready


def unready(pool):
    """A pool whose actors were started and have not said a word."""
    pool.publish(Snapshot(0, 0, {}))
    pool.said.clear()


def learn(pool, updates, n=1, first=0):
    """The training loop; the rollouts of each update."""
    publish(pool, first)
    seen = []
    for version in range(first, first + updates):
        seen.append(pool.get(n))
        publish(pool, version + 1)
    return seen


# ---- tickets ----


@pytest.mark.parametrize("lag", [0, 1, 2, 7])
@pytest.mark.parametrize("n", [1, 3])
def test_no_rollout_is_older_than_the_lag_and_all_have_every_column(lag, n):
    for version, rollouts in enumerate(learn(ScriptedActors(num_actors=3, max_policy_lag=lag), 12, n)):
        assert len(rollouts) == n
        for rollout in rollouts:
            assert rollout.obs.shape[:2] == (T, 3 * SHARE)
            assert rollout.env_id.tolist() == list(range(6))
            age = version - rollout.policy_version
            assert age.min() >= 0
            assert age.max() <= lag


def test_without_lag_every_actor_acts_once_per_update_and_waits():
    pool = ScriptedActors(num_actors=3, max_policy_lag=0)
    publish(pool, 0)
    assert pool.under_way() == [1, 1, 1]
    pool.get(1)
    assert pool.under_way() == [0, 0, 0]
    publish(pool, 1)
    assert pool.under_way() == [1, 1, 1]


def test_with_lag_the_next_rollout_is_under_way_while_the_learner_learns():
    pool = ScriptedActors(max_policy_lag=1)
    publish(pool, 0)
    assert pool.under_way() == [2, 2]
    pool.finish(0)
    pool.finish(1)
    pool.get(1)
    assert pool.under_way() == [1, 1]
    publish(pool, 1)
    assert pool.under_way() == [2, 2]


def test_no_actor_is_far_ahead_whatever_the_lag():
    pool = ScriptedActors(max_policy_lag=1000)
    publish(pool, 0)
    assert pool.under_way() == [MAX_AHEAD + 1] * 2


def test_tickets_go_to_those_who_are_done_and_nobody_waits_for_the_slowest():
    pool = ScriptedActors(num_actors=2, max_policy_lag=5)
    pool.work = lambda: [pool.finish(1) for _ in list(pool._actors[1].told)]
    for rollouts in learn(pool, 4):
        assert rollouts[0].env_id.tolist() == [2, 3, 2, 3]


def test_nobody_begins_before_all_are_ready():
    pool = ScriptedActors(max_policy_lag=0)
    unready(pool)
    pool.say(0, Ready())
    pool._take_in(0.0)
    assert pool.under_way() == [0, 0]
    pool.say(1, Ready())
    pool._take_in(0.0)
    assert pool.under_way() == [1, 1]


@pytest.mark.parametrize(("weight", "dropped"), [(0.0, 0), (1.0, 4 * T * SHARE)])
def test_what_was_acted_before_weights_were_set_by_hand_is_dropped(weight, dropped):
    pool = ScriptedActors(max_policy_lag=1)
    publish(pool, 0)
    pool.finish(0)
    pool._take_in(0.0)
    publish(pool, 0, weight)  # as at the beginning of every call of `train`
    [rollout] = pool.get(1)
    assert rollout.dropped_steps == dropped


def test_publishing_twice_gives_no_more_tickets():
    pool = ScriptedActors(max_policy_lag=0)
    publish(pool, 0)
    publish(pool, 0)
    assert pool.under_way() == [1, 1]


def test_asking_for_more_than_the_lag_allows_is_an_error_not_a_hang():
    pool = ScriptedActors(max_policy_lag=0)
    publish(pool, 0)
    pool.get(1)
    with pytest.raises(ParlError, match="max_policy_lag=0"):
        pool.get(1)


def test_a_closed_pool_starts_nobody():
    pool = ScriptedActors()
    pool.close()
    with pytest.raises(ParlError, match="closed"):
        publish(pool, 0)


# ---- what is too old ----


def late():
    """Actor 0 acts with version 0 for three updates."""
    pool = ScriptedActors(num_actors=2, max_policy_lag=2)
    publish(pool, 0)
    for version in range(3):
        pool.finish(1)
        pool.finish(1)
        pool.get(1)
        publish(pool, version + 1)
    for actor in pool._actors:
        actor.status.version[0] = 3
    return pool


def test_a_straggler_is_dropped_and_counted():
    pool = late()
    pool._actors[0].status.version[0] = 0
    pool.finish(0)
    pool._actors[0].status.version[0] = 3
    [rollout] = pool.get(1)
    assert rollout.policy_version.min() >= 1
    assert rollout.dropped_steps == T * SHARE
    publish(pool, 4)
    assert pool.get(1)[0].dropped_steps == 0


def test_episodes_of_a_dropped_rollout_are_known_all_the_same():
    pool = late()
    pool._actors[0].status.version[0] = 0
    pool.finish(0)
    pool._actors[0].status.version[0] = 3
    [rollout] = pool.get(1)
    assert Episode(0, 0.0, 1) in rollout.episodes


def test_what_actors_themselves_have_lost_is_passed_on():
    pool = ScriptedActors(num_actors=2, max_policy_lag=0)
    publish(pool, 0)
    pool.finish(0, dropped=3)
    pool.finish(1, dropped=4)
    assert pool.get(1)[0].dropped_steps == 7


# ---- failures ----


def failing(pool, error, after=1):
    """Actor 1 fails `after` some work, once."""
    left = [after]

    def work():
        if left[0] == 0:
            left[0] = -1
            pool.say(1, error)
        else:
            left[0] -= 1
            pool.everybody_works()

    pool.work = work


def test_a_failed_actor_is_reported_and_replaced(caplog):
    pool = ScriptedActors(max_policy_lag=0, max_restarts=1)
    failing(pool, Failed("EnvError", "env 0 failed in step"))
    with caplog.at_level(logging.WARNING):
        seen = learn(pool, 3)
    assert [rollouts[0].env_id.tolist() for rollouts in seen] == [[0, 1, 2, 3]] * 3
    assert "actor 1 (envs 2 to 3, incarnation 0, weights of update 1): env 0 failed in step" in caplog.text
    assert "1 of actors.max_restarts=1" in caplog.text
    assert pool.restarts == 1
    assert [actor.incarnation for actor in pool._actors] == [0, 1]
    assert [actor.incarnation for actor in pool.buried] == [0]


def test_a_replaced_actor_begins_episodes_that_nobody_had():
    pool = ScriptedActors(max_policy_lag=0)
    publish(pool, 0)
    pool.get(1)
    pool._actors[1].status.episode_numbers[:] = [7, 9]
    pool._actors[1].status.acted[:] = [70, 90]
    pool.said.append((pool._actors[1], Failed("WorkerError", "was killed")))
    publish(pool, 1)
    pool.get(1)
    assert pool._actors[1].incarnation == 1
    assert pool._actors[1].status.episode_numbers.tolist() == [
        9,
        11,
    ]  # two on: it may have failed to begin 8 and 10
    assert pool._actors[1].status.acted.tolist() == [70, 90]


def test_steps_that_died_with_an_actor_are_counted():
    pool = ScriptedActors(max_policy_lag=0)
    publish(pool, 0)
    pool.finish(0)
    pool._actors[1].status.steps[0] = 5
    pool.said.append((pool._actors[1], Failed("WorkerError", "was killed")))
    assert pool.get(1)[0].dropped_steps == 5


def test_what_a_failed_actor_delivered_before_counts():
    pool = ScriptedActors(max_policy_lag=1)
    publish(pool, 0)
    pool.finish(1)
    pool.say(1, Failed("WorkerError", "was killed"))
    pool.finish(0)
    [rollout] = pool.get(1)
    assert rollout.env_id.tolist() == [0, 1, 2, 3]
    assert rollout.dropped_steps == 0


@pytest.mark.parametrize("kind", [EnvError, WorkerError])
def test_beyond_the_budget_the_error_is_raised(kind):
    pool = ScriptedActors(max_policy_lag=0, max_restarts=0)
    failing(pool, Failed(kind.__name__, "broke"))
    with pytest.raises(kind, match=r"actor 1 \(envs 2 to 3, incarnation 0, weights of update 1\): broke"):
        learn(pool, 3)


def test_after_an_error_the_pool_is_closed():
    pool = ScriptedActors(max_policy_lag=0, max_restarts=0)
    failing(pool, Failed("EnvError", "broke"))
    with pytest.raises(EnvError):
        learn(pool, 3)
    with pytest.raises(ParlError, match="closed"):
        pool.get(1)


@pytest.mark.parametrize("name", ["ConfigError", "EnvError"])
def test_an_actor_that_never_was_ready_is_not_tried_again(name):
    pool = ScriptedActors()
    unready(pool)
    pool.say(0, Failed(name, "env 0 could not be made"))
    with pytest.raises(ParlError, match="could not be made"):
        pool.get(1)
    assert pool.restarts == 0


def test_a_config_error_is_never_tried_again():
    pool = ScriptedActors(max_policy_lag=0)
    failing(pool, Failed("ConfigError", "unknown key"))
    with pytest.raises(ConfigError, match="unknown key"):
        learn(pool, 3)


def test_one_that_hangs_is_given_up_after_its_time(clock):
    pool = ScriptedActors(max_policy_lag=0, step_timeout_s=10, max_restarts=0)
    publish(pool, 0)

    def work():
        clock.now += 11
        if 0 in map(len, [pool._actors[0].told]):
            return
        pool.finish(0)

    pool.work = work
    with pytest.raises(WorkerError, match=r"actor 1 .* did not answer within actors.step_timeout_s=10; it was killed"):
        pool.get(1)
    assert [actor.index for actor in pool.abandoned] == [1]


def test_one_that_makes_steps_does_not_hang(clock):
    pool = ScriptedActors(num_actors=1, max_policy_lag=0, step_timeout_s=10)
    publish(pool, 0)
    rounds = []

    def work():
        rounds.append(clock.now)
        clock.now += 9
        pool._actors[0].status.steps[0] += 1
        if len(rounds) == 20:
            pool.finish(0)

    pool.work = work
    pool.get(1)
    assert not pool.abandoned


def test_time_without_a_ticket_does_not_count(clock):
    pool = ScriptedActors(num_actors=1, max_policy_lag=0, step_timeout_s=10)
    publish(pool, 0)
    pool.get(1)
    clock.now += 19
    publish(pool, 1)
    pool.work = lambda: (setattr(clock, "now", clock.now + 5), pool.finish(0))
    pool.get(1)
    assert not pool.abandoned


def test_time_in_which_the_learner_was_away_does_not_count(clock):
    pool = ScriptedActors(num_actors=1, max_policy_lag=0, step_timeout_s=10)
    learn(pool, 2)
    clock.now += 1000
    pool.work = lambda: None if pool._looked < clock.now else pool.finish(0)
    pool.get(1)
    assert not pool.abandoned


def test_one_that_hangs_while_others_work_is_given_up_too(clock):
    pool = ScriptedActors(num_actors=2, max_policy_lag=9, step_timeout_s=10)

    def work():
        clock.now += 4
        pool.finish(1)

    pool.work = work
    learn(pool, 5)
    assert {actor.index for actor in pool.abandoned} == {0}


def test_one_that_hangs_is_noticed_by_a_learner_that_never_waits(clock):
    pool = ScriptedActors(num_actors=3, max_policy_lag=9, step_timeout_s=10)
    publish(pool, 0)
    for version in range(1, 4):
        clock.now += 6
        for index in (1, 1, 2, 2):
            if pool._actors[index].told:
                pool.finish(index)
        pool.get(1)
        publish(pool, version)
    assert {actor.index for actor in pool.abandoned} == {0}


def test_starting_has_a_limit_of_its_own(clock):
    pool = ScriptedActors(num_actors=1, start_timeout_s=30, step_timeout_s=10)
    unready(pool)
    times = []

    def work():
        clock.now += 11
        times.append(clock.now)

    pool.work = work
    with pytest.raises(WorkerError, match=r"did not answer within actors\.start_timeout_s=30"):
        pool.get(1)
    assert len(times) == 3


# ---- state ----


def test_state_says_where_episodes_stand_and_another_pool_goes_on_behind_them(caplog):
    pool = ScriptedActors()
    assert pool.state_dict()["episode_numbers"].tolist() == [-1] * 4
    learn(pool, 3)
    for actor in pool._actors:
        actor.status.episode_numbers[:] = [4, 5]
        actor.status.acted[:] = [40, 50]
    state = pool.state_dict()
    other = ScriptedActors()
    other.load_state_dict(state)
    assert "not bit for bit" in caplog.text
    publish(other, 3)
    assert other._actors[1].status.episode_numbers.tolist() == [4, 5]
    assert other._actors[1].status.acted.tolist() == [40, 50]
    assert other.state_dict()["acted"].tolist() == [40, 50, 40, 50]


def test_state_of_a_pool_that_runs_is_forgotten_when_another_is_loaded():
    pool = ScriptedActors(max_policy_lag=1)
    publish(pool, 0)
    pool.finish(0)
    pool.load_state_dict({"episode_numbers": torch.tensor([1, 2, 3, 4]), "acted": torch.tensor([5, 6, 7, 8])})
    publish(pool, 0)
    assert pool.under_way() == [2, 2]
    assert pool._actors[1].status.acted.tolist() == [7, 8]


@pytest.mark.parametrize(
    "damage",
    [
        {"episode_numbers": torch.zeros(3, dtype=torch.int64)},
        {"episode_numbers": torch.zeros(4)},
        {"acted": torch.full((4,), -1)},
        {"episode_numbers": torch.full((4,), -2)},
    ],
)
def test_a_damaged_state_is_refused(damage):
    pool = ScriptedActors()
    with pytest.raises(ValueError, match=next(iter(damage))):
        pool.load_state_dict(pool.state_dict() | damage)


# ---- figures and config ----


def test_shares_are_of_the_actors_own_time():
    pool = ScriptedActors(max_policy_lag=0)
    learn(pool, 2)
    metrics = pool.metrics()
    assert metrics["actors/env_share"] == pytest.approx(1 / 8)
    assert metrics["actors/act_share"] == pytest.approx(2 / 8)
    assert metrics["actors/wait_share"] == pytest.approx(3 / 8)
    assert metrics["actors/other_share"] == pytest.approx(2 / 8)
    assert sum(value for name, value in pool.metrics().items() if name.endswith("_share")) == 1.0  # nothing since


def test_queue_depth_is_what_lay_ready_when_the_learner_asked():
    pool = ScriptedActors(max_policy_lag=1)
    publish(pool, 0)
    for index in (0, 0, 1, 1):
        pool.finish(index)
    pool.get(1)
    publish(pool, 1)
    pool.get(1)
    assert pool.metrics()["actors/queue_depth"] == pytest.approx((2 + 1) / 2)
    assert pool.metrics()["actors/queue_depth"] == 0.0


@pytest.mark.parametrize(
    ("num_actors", "words"),
    [
        (5, "actors.num_actors=5: at most one per env, num_envs=4"),
        (3, "num_envs=4: must divide by actors.num_actors=3; try num_envs=6"),
    ],
)
def test_envs_that_cannot_be_shared_out_are_refused(num_actors, words):
    with pytest.raises(ConfigError) as caught:
        AsyncActors.check(train_config(actors=ProcessActorsConfig(num_actors=num_actors)))
    assert str(caught.value) == words


@pytest.mark.parametrize("algo", registry.names("algo"))
def test_an_algorithm_that_must_not_lag_does_not(algo):
    cls = registry.load("algo", algo)

    def check(lag):
        actors = ProcessActorsConfig(num_actors=2, max_policy_lag=lag)
        AsyncActors.check(train_config(actors=actors, algo=cls.Config(name=algo)))

    check(0)
    if "process" in cls.supports["actors"]:
        check(4)
    else:
        with pytest.raises(ConfigError, match=rf"^actors.max_policy_lag=4: algo={algo} learns only from .* newest"):
            check(4)
