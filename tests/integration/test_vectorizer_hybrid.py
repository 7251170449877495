"""What is special of `hybrid`: the last share of the envs steps in the caller's own process."""

import os
import time
from functools import partial

import numpy as np
import pytest

from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv
from parl_cli.errors import ConfigError, EnvError, WorkerError
from parl_cli.vectorizers import HybridVectorizer
from tests.helpers.vectorizers import make

ACTIONS = np.zeros(4, np.int64)


class InterruptedEnv(CountingEnv):
    """Ctrl-C comes in the middle of its second step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 2:
            raise KeyboardInterrupt
        return super().step(action)


class UnmadeEnv(CountingEnv):
    """Ctrl-C comes while it is made."""

    def __init__(self):
        raise KeyboardInterrupt


class ComplainingEnv(CountingEnv):
    """Cannot be closed."""

    def close(self):
        raise RuntimeError("not now")


class WhereEnv(CountingEnv):
    """Knows which process it is in."""

    def pid(self):
        return os.getpid()


def hybrid(env_fns, **options):
    return make("hybrid", env_fns, **{"num_workers": 2, **options})


def step(vectorizer):
    vectorizer.send(ACTIONS[: vectorizer.num_envs])
    return vectorizer.recv()


@pytest.mark.parametrize(("num_workers", "processes"), [(1, 0), (2, 1), (3, 2), (9, 3)])
def test_the_caller_is_one_of_the_workers(num_workers, processes):
    vectorizer = hybrid([WhereEnv] * 4, num_workers=num_workers)
    vectorizer.begin()
    pids = vectorizer.call("pid")
    assert len({*pids} - {os.getpid()}) == processes == len(vectorizer._processes)
    assert pids[-1] == os.getpid() != pids[0] or not processes
    assert step(vectorizer).mask.all()
    vectorizer.close()


def test_both_shares_step_at_once():
    vectorizer = hybrid([partial(SleepEnv, step_s=0.4)] * 2)
    vectorizer.begin()
    began = time.monotonic()
    step(vectorizer)
    assert time.monotonic() - began < 0.75
    vectorizer.close()


def test_a_worker_that_dies_is_replaced_and_the_share_here_goes_on():
    envs = [partial(FaultyEnv, kill_at=2), CountingEnv, CountingEnv, CountingEnv]
    vectorizer = hybrid(envs, max_restarts=1)
    vectorizer.begin()
    masks = [step(vectorizer).mask.tolist() for _ in range(4)]
    assert masks[:2] == [[True] * 4] * 2
    assert masks[2] == [False, False, True, True]
    assert masks[3] == [True] * 4
    assert vectorizer.restarts == 1
    vectorizer.close()


def test_a_worker_that_hangs_is_found_though_the_share_here_takes_its_time():
    vectorizer = hybrid([partial(FaultyEnv, hang_at=0, hang_s=60), partial(SleepEnv, step_s=0.7)], step_timeout_s=0.5)
    vectorizer.begin()
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"did not answer within step_timeout_s=0\.5"):
        step(vectorizer)
    assert time.monotonic() - began < 10


def test_a_share_here_that_is_slower_than_the_limit_is_no_fault_of_the_workers():
    vectorizer = hybrid([CountingEnv, partial(SleepEnv, step_s=0.8)], step_timeout_s=0.3)
    vectorizer.begin()
    for _ in range(2):
        assert step(vectorizer).mask.all()
    vectorizer.close()


def test_what_an_env_raises_here_is_told_whatever_max_restarts_says():
    vectorizer = hybrid([CountingEnv] * 3 + [partial(FaultyEnv, raise_at=1)], max_restarts=3)
    vectorizer.begin()
    step(vectorizer)
    with pytest.raises(EnvError, match="env 3 failed in step"):
        step(vectorizer)
    assert vectorizer.restarts == 0
    vectorizer.begin()
    assert step(vectorizer).mask.all()
    vectorizer.close()


def test_ctrl_c_here_is_raised_when_the_workers_have_answered():
    vectorizer = hybrid([CountingEnv, InterruptedEnv])
    vectorizer.begin()
    step(vectorizer)
    with pytest.raises(KeyboardInterrupt):
        step(vectorizer)
    vectorizer.begin()
    assert step(vectorizer).mask.all()
    vectorizer.close()


@pytest.mark.parametrize(("fault", "closed"), [({"raise_at": 1}, False), ({"kill_at": 1}, True)])
def test_ctrl_c_here_is_raised_before_what_becomes_of_a_worker(fault, closed):
    vectorizer = hybrid([partial(FaultyEnv, **fault), InterruptedEnv])
    vectorizer.begin()
    step(vectorizer)
    with pytest.raises(KeyboardInterrupt):
        step(vectorizer)
    assert vectorizer.closed is closed
    vectorizer.close()


def test_ctrl_c_while_envs_are_made_here_does_not_wait_for_the_workers():
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hybrid([partial(FaultyEnv, hang_at=0, hang_s=60, where="init"), UnmadeEnv])
    assert time.monotonic() - began < 15


def test_groups_are_refused():
    with pytest.raises(ConfigError, match="num_groups=2: a share here has no parts"):
        HybridVectorizer([CountingEnv] * 4, num_groups=2)


@pytest.mark.parametrize("where", [0, 1])
def test_an_env_that_cannot_be_made_is_named_and_nothing_is_left(where):
    envs = [CountingEnv, CountingEnv]
    envs[where] = partial(FaultyEnv, raise_at=0, where="init")
    with pytest.raises(EnvError, match=f"env {where} could not be made"):
        hybrid(envs)


def test_complaints_of_both_sides_are_told_when_it_is_closed():
    vectorizer = hybrid([CountingEnv, ComplainingEnv])
    with pytest.raises(EnvError, match=r"env 1 failed in close: RuntimeError: not now"):
        vectorizer.close()
    assert not [process for process in vectorizer._processes if process._popen is not None and process.is_alive()]
