import time
from functools import partial

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv, TwoAgentEnv, counting_seed
from parl_cli.errors import ConfigError, EnvError
from parl_cli.vectorizers import SerialVectorizer, ThreadVectorizer
from parl_cli.vectorizers.speed import Speed, Stepper, race, step_cost, wake_up_s
from tests.helpers.stubs import ShuffledVectorizer


def make(cls=SerialVectorizer, env=CountingEnv, num_envs=4, **options):
    return cls([env] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=counting_seed, **options)


def counted(vectorizer):
    """The vectorizer, and a list that grows by the rows of each `recv`."""
    rows, recv = [], vectorizer.recv

    def counting(timeout=None):
        step = recv(timeout)
        rows.append(len(step.env_ids))
        return step

    vectorizer.recv = counting
    return vectorizer, rows


@pytest.mark.parametrize("cls", [SerialVectorizer, ThreadVectorizer, ShuffledVectorizer])
def test_a_window_counts_the_steps_that_came_and_leaves_nothing_under_way(cls):
    vectorizer, rows = counted(make(cls))
    stepper = Stepper(vectorizer)
    for _ in range(3):
        del rows[:]
        window = stepper.run(0.01)
        assert window.all_steps == sum(rows)
        assert 0 < window.steps <= window.all_steps - vectorizer.num_envs
        assert window.seconds >= 0.01
        vectorizer.begin()  # refused while anything is under way
    vectorizer.close()


def test_an_env_that_complains_when_it_is_closed_spoils_no_measurement():
    class Grumbling(CountingEnv):
        def close(self):
            raise RuntimeError("already closed")

    speeds, refused = race({"serial": partial(make, env=Grumbling)}, 0.01, 1)
    assert list(speeds) == ["serial"]
    assert not refused


def test_a_window_takes_one_step_of_slow_envs():
    vectorizer = make(env=partial(SleepEnv, step_s=0.02), num_envs=2)
    window = Stepper(vectorizer).run(0.0)
    assert (window.steps, window.all_steps) == (2, 6)
    assert window.seconds >= 0.04
    vectorizer.close()


def test_rows_without_a_transition_are_no_steps():
    vectorizer = make()
    recv = vectorizer.recv

    def half_masked(timeout=None):
        step = recv(timeout)
        step.mask = np.arange(len(step.env_ids)) % 2 == 0
        return step

    vectorizer.recv = half_masked
    window = Stepper(vectorizer).run(0.0)
    assert window.steps == 2
    vectorizer.close()


def test_a_step_s_cost_is_told_from_waiting():
    waiting = step_cost(partial(SleepEnv, step_s=0.005, length=1000), 0.02)
    assert waiting.step_s >= 0.005
    assert waiting.cpu_share < 0.5
    computing = step_cost(CountingEnv, 0.1)
    assert computing.step_s < waiting.step_s
    assert computing.cpu_share > 0.5


def test_agents_are_stepped_until_all_have_ended():
    assert step_cost(TwoAgentEnv, 0.01).step_s > 0


@pytest.mark.parametrize("where", ["init", "reset", "step"])
def test_an_env_that_raises_is_an_env_error(where):
    with pytest.raises(EnvError, match=f"an env raised RuntimeError when it was measured: FaultyEnv raises in {where}"):
        step_cost(partial(FaultyEnv, raise_at=0, where=where), 0.01)


def test_a_wake_up_takes_time_and_its_process_ends():
    started = time.perf_counter()
    assert 0 < wake_up_s(times=3) < time.perf_counter() - started


def test_a_race_measures_in_turns():
    order = []

    def noted(name, env):
        vectorizer = make(env=env)
        close, send = vectorizer.close, vectorizer.send
        vectorizer.send = lambda actions, env_ids=None: (order.append(name), send(actions, env_ids))[1]
        vectorizer.close = lambda: (order.append(f"close {name}"), close())[1]
        return vectorizer

    ticks = []
    speeds, refused = race(
        {name: partial(noted, name, CountingEnv) for name in "ab"}, 0.001, 2, lambda: ticks.append(None)
    )
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["a", "b", "a", "b", "close b", "close a"]
    assert {name: len(speed.steps_per_s) for name, speed in speeds.items()} == {"a": 2, "b": 2}
    assert not refused
    assert len(ticks) == 4


def test_what_cannot_be_made_or_breaks_is_refused_and_the_others_go_on():
    def unfit():
        raise ConfigError("not for these envs")

    makers = {
        "unfit": unfit,
        "breaks": partial(make, env=partial(FaultyEnv, raise_at=5)),  # each window is three steps at least
        "good": make,
    }
    speeds, refused = race(makers, 0.002, 3)
    assert list(speeds) == ["good"]
    assert len(speeds["good"].steps_per_s) == 3
    assert refused["unfit"] == "not for these envs"
    assert "FaultyEnv raises in step" in refused["breaks"]
    assert "\n" not in refused["breaks"]


def test_a_ratio_is_the_median_over_rounds():
    assert Speed([10, 100, 8]).ratio(Speed([5, 100, 2])) == 2
    assert Speed([4.0, 2.0], [1e-6, 3e-6]).summary() == {
        "us_per_step": 1e6 / 3,
        "steps_per_s": 3.0,
        "cpu_us_per_step": 2.0,
        "rounds_steps_per_s": [4.0, 2.0],
    }
