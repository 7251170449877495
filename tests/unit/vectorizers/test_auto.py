import dataclasses
from functools import partial

import pytest
from gymnasium.vector import AutoresetMode

from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv, counting_seed
from parl_cli.errors import EnvError
from parl_cli.vectorizers import AutoVectorizer, SerialVectorizer, auto
from parl_cli.vectorizers.speed import Speed, StepCost

CHEAP = StepCost(make_s=1e-4, step_s=6e-6, cpu_share=1.0)
HEAVY = dataclasses.replace(CHEAP, step_s=350e-6)
WAITING = dataclasses.replace(CHEAP, step_s=1e-3, cpu_share=0.05)
WAKE_S = 20e-6


def speed(*steps_per_s):
    return Speed(list(steps_per_s), [1e-6] * len(steps_per_s))


# ---- what is plain ----


@pytest.mark.parametrize(
    ("step", "num_envs", "cores", "words"),
    [
        (HEAVY, 1, 8, "there is one env"),
        (HEAVY, 32, 1, "there is one core"),
        (CHEAP, 4, 2, "a step costs 6.0 µs, a wake-up 20 µs, so 2 workers gain nothing with 4 envs"),
        (CHEAP, 2, 64, "so 2 workers gain nothing with 2 envs"),
    ],
)
def test_where_perfect_workers_would_gain_nothing_it_is_serial(step, num_envs, cores, words):
    assert words in auto.plain_answer(step, WAKE_S, num_envs, cores)


@pytest.mark.parametrize(
    ("step", "num_envs", "cores"),
    [(CHEAP, 256, 2), (HEAVY, 2, 2), (HEAVY, 3, 64), (WAITING, 2, 1), (WAITING, 32, 2)],
)
def test_where_workers_could_gain_nothing_is_plain(step, num_envs, cores):
    assert auto.plain_answer(step, WAKE_S, num_envs, cores) is None


def test_an_env_that_waits_gains_from_threads_on_one_core_too():
    assert auto.candidates(WAITING, 100, 1) == {"serial": 1, "thread": 32, "subprocess": 1}
    assert auto.candidates(WAITING, 8, 2) == {"serial": 1, "thread": 8, "subprocess": 2}
    assert auto.candidates(HEAVY, 100, 64)["thread"] == 64


def test_an_env_that_computes_gets_one_worker_per_core():
    assert auto.candidates(HEAVY, 32, 4) == {"serial": 1, "thread": 4, "subprocess": 4, "hybrid": 4}
    assert auto.candidates(HEAVY, 3, 4) == {"serial": 1, "thread": 3, "subprocess": 3, "hybrid": 3}


def test_envs_that_are_slow_to_make_or_to_step_are_sampled():
    assert auto.sample_size(CHEAP, 256) == 256
    assert auto.sample_size(dataclasses.replace(CHEAP, make_s=0.05), 256) == 10
    assert auto.sample_size(dataclasses.replace(CHEAP, make_s=5.0), 256) == 4
    assert auto.sample_size(dataclasses.replace(CHEAP, step_s=1.0), 256) == 4
    assert auto.sample_size(dataclasses.replace(CHEAP, make_s=5.0), 2) == 2


# ---- what the measurements decide ----

WORKERS = {"serial": 1, "thread": 2, "subprocess": 2}


def decide(serial, thread, subprocess):
    return auto.decide({"serial": serial, "thread": thread, "subprocess": subprocess}, {}, WORKERS, "costs")


def test_the_fastest_wins_with_its_number_of_workers():
    choice = decide(speed(100, 100, 100), speed(90, 90, 90), speed(160, 150, 140))
    assert (choice.name, choice.options) == ("subprocess", {"num_workers": 2})
    assert choice.reason == "2 workers have 1.50 × the speed of serial (costs)"


def test_a_small_gain_is_no_reason_to_leave_serial():
    choice = decide(speed(100, 100, 100), speed(90, 90, 90), speed(109, 109, 109))
    assert (choice.name, choice.options) == ("serial", {})
    assert choice.reason == "subprocess with 2 workers has 1.09 × its speed (costs)"


def test_ratios_are_those_of_the_same_round():
    # the machine slows down to a tenth; the medians would say 1.2
    choice = decide(speed(100, 100, 10), speed(1, 1, 1), speed(120, 50, 5))
    assert choice.name == "serial"


def test_what_could_not_be_measured_is_left_out_and_named():
    speeds = {"serial": speed(100), "thread": speed(90)}
    choice = auto.decide(speeds, {"subprocess": "cannot be pickled"}, WORKERS, "costs")
    assert choice.name == "serial"
    assert choice.reason.endswith("; subprocess cannot: cannot be pickled")


def test_with_nothing_to_compare_it_is_serial():
    refused = {"thread": "no", "subprocess": "no"}
    assert auto.decide({"serial": speed(1)}, refused, WORKERS, "").name == "serial"


# ---- the whole choice ----


@pytest.fixture
def measured(monkeypatch):
    """Replaces every measurement by what a test says, and tells what was asked for."""
    asked = {}

    def use(step, speeds=None):
        def race(vectorizers, seconds, rounds):
            asked["race"] = list(vectorizers)
            return {name: speed(speeds[name]) for name in vectorizers}, {}

        monkeypatch.setattr(auto, "step_cost", lambda env_fn, seconds: step)
        monkeypatch.setattr(auto, "wake_up_s", lambda: WAKE_S)
        monkeypatch.setattr(auto, "race", race)
        monkeypatch.setattr(auto, "available_cores", lambda: 2)
        return asked

    return use


def test_a_plain_answer_is_given_without_a_race(measured):
    asked = measured(CHEAP)
    assert auto.choose([CountingEnv] * 4).name == "serial"
    assert not asked


def test_else_a_race_decides(measured):
    asked = measured(HEAVY, {"serial": 1.0, "thread": 1.2, "subprocess": 1.7, "hybrid": 1.9})
    choice = auto.choose([CountingEnv] * 16)
    assert asked["race"] == ["serial", "thread", "subprocess", "hybrid"]
    assert (choice.name, choice.options) == ("hybrid", {"num_workers": 2})
    assert choice.reason == "2 workers have 1.90 × the speed of serial (a step costs 350 µs, a wake-up 20 µs)"


def test_the_reason_says_where_only_some_envs_were_measured(measured):
    measured(dataclasses.replace(HEAVY, make_s=0.1), dict.fromkeys(("serial", "thread", "subprocess", "hybrid"), 1.0))
    assert ", 5 of 16 envs measured)" in auto.choose([CountingEnv] * 16).reason


def test_an_env_that_raises_is_left_to_the_run(monkeypatch):
    def broken(env_fn, seconds):
        raise EnvError("an env raised")

    monkeypatch.setattr(auto, "step_cost", broken)
    choice = auto.choose([partial(FaultyEnv, raise_at=3)] * 4)
    assert (choice.name, choice.reason) == ("serial", "not measured: an env raised")


def test_as_a_vectorizer_it_is_the_one_that_it_chooses(monkeypatch):
    monkeypatch.setattr(auto, "available_cores", lambda: 1)
    vectorizer = AutoVectorizer([CountingEnv] * 3, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=counting_seed)
    assert type(vectorizer) is SerialVectorizer
    assert vectorizer.begin().tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    vectorizer.close()


def test_threads_win_for_an_env_that_sleeps(monkeypatch):
    # really measured, but by a margin that no busy machine takes away: 8 sleeps at once, or one after the other
    monkeypatch.setattr(auto, "available_cores", lambda: 1)
    monkeypatch.setattr(auto, "candidates", lambda *sizes: {"serial": 1, "thread": 8})
    choice = auto.choose([partial(SleepEnv, step_s=0.01, length=1000)] * 8)
    assert (choice.name, choice.options) == ("thread", {"num_workers": 8})


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.14e-6, "6.1 µs"), (2e-5, "20 µs"), (3.5e-4, "350 µs"), (1.2e-3, "1.2 ms"), (2.5, "2.5 s")]
)
def test_durations_are_shown_with_their_unit(seconds, text):
    assert auto.duration(seconds) == text
