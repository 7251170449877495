"""An actor's life, without a process around it."""

import queue

import numpy as np
import pytest

from parl_cli.actors.slots import Status
from parl_cli.actors.worker import Failed, Filled, Ready, live
from parl_cli.envs.toy import CountingEnv, FaultyEnv
from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.vectorizers.blocks import buffer_size
from tests.helpers.actors import NUM_STEPS, Recipe
from tests.helpers.stubs import train_config

N = 2


class Life:
    """What an actor of envs 10 and 11 says to some tickets."""

    def __init__(self, make_env=lambda env: CountingEnv(), tickets=(0, None), episode=-1, acted=0):
        status = np.zeros(buffer_size(Status.layout(N)), np.uint8)
        self.status = Status.begin(status, np.full(N, episode), np.full(N, acted, np.uint64))
        self.recipe = Recipe(train_config(), make_env)
        self.tickets = queue.SimpleQueue()
        self.said = []
        self.actor = None
        self.loaded = 0
        for ticket in tickets:
            self.tickets.put(ticket)

    def make(self):
        self.actor = self.recipe.actor(self.recipe.policy(), range(10, 10 + N))
        return self.actor

    def load(self, policy):
        assert policy is self.actor.policy
        self.loaded += 1
        return 40 + self.loaded

    def run(self):
        live(self.make, self.status, self.tickets.get, self.said.append, self.load, [None, None], range(10, 14))
        return self.said


def test_it_fills_what_it_has_tickets_for_with_the_newest_weights():
    life = Life(tickets=(0, 1, None))
    ready, first, second = life.run()
    assert isinstance(ready, Ready)
    for k, filled in enumerate((first, second)):
        assert isinstance(filled, Filled)
        assert (filled.slot, filled.version) == (k, 41 + k)
        assert (filled.rollout.policy_version == 41 + k).all()
        assert filled.rollout.env_id.tolist() == [10, 11]
        assert filled.num_finals == len(filled.rollout.final_index) > 0
        assert filled.episodes == filled.rollout.episodes
        assert 0 < sum(filled.seconds.values()) <= filled.wall_s
    assert life.actor.vectorizer.closed


def test_its_status_says_how_far_it_is():
    life = Life(tickets=(0, 1, None), episode=5, acted=100)
    life.run()
    assert life.status.steps[0] == 2 * NUM_STEPS * N
    assert life.status.version[0] == 42
    assert life.status.episode_numbers.tolist() == life.actor.vectorizer.episode_numbers.tolist()
    assert life.status.acted.tolist() == [100 + 2 * NUM_STEPS] * N


def test_it_begins_behind_the_episodes_that_were():
    life = Life(episode=5)
    _, filled = life.run()
    assert filled.rollout.obs[0, :, 1].tolist() == [6, 6]


def test_it_stops_in_the_middle_of_a_rollout_without_a_word():
    life = Life()
    life.status.stop[0] = True
    assert life.run() == []
    assert life.actor.vectorizer.closed


def test_an_env_that_raises_is_told_by_its_name_in_the_whole_run():
    life = Life(lambda env: FaultyEnv(raise_at=2) if env == 11 else CountingEnv())
    _, failed = life.run()
    assert failed.error == "EnvError"
    summary, _, trace = failed.text.partition("\n")
    assert summary.startswith("env 11 failed in step (seed 11000, episode 0, step 3, action")
    assert "Traceback" in trace
    assert life.actor.vectorizer.closed


def test_an_env_that_cannot_be_made_is_told():
    [failed] = Life(lambda env: FaultyEnv(raise_at=0, where="init")).run()
    assert failed.text.startswith("env 10 could not be made")


class StuckEnv(CountingEnv):
    def close(self):
        raise RuntimeError("cannot be closed")


def test_an_env_that_cannot_be_closed_is_told():
    *_, failed = Life(lambda env: StuckEnv()).run()
    assert failed.text.startswith("env 10 failed in close: RuntimeError: cannot be closed")


@pytest.mark.parametrize(
    ("error", "kind", "summary"),
    [
        (EnvError("env 1 failed in step 3"), "EnvError", "env 11 failed in step 3"),
        (WorkerError("worker 0 (envs 0 to 1) was killed"), "WorkerError", "worker 0 (envs 10 to 11) was killed"),
        (ConfigError("num_envs=1: too few envs"), "ConfigError", "num_envs=1: too few envs"),
        (type("Odd", (ParlError,), {})("odd"), "WorkerError", "failed with Odd: odd"),
        (KeyError("env 3"), "WorkerError", "failed with KeyError: 'env 3'"),
    ],
)
def test_errors_are_told_as_text(error, kind, summary):
    failed = Failed.because(error, range(10, 14))
    assert failed.error == kind
    assert failed.text.partition("\n")[0] == summary


def test_whoever_lost_its_listener_does_not_go_on():
    life = Life()

    def nobody(what):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        live(life.make, life.status, life.tickets.get, nobody, life.load, [None], range(10, 14))
    assert life.actor.vectorizer.closed
