import dataclasses
import inspect
import itertools
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from gymnasium.vector import AutoresetMode, VectorWrapper

from parl_cli import registry
from parl_cli.config import parse_component, to_plain
from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv, counting_length, counting_seed
from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.vectorizers import AsyncVectorizer, SerialVectorizer, ThreadVectorizer, Vectorizer

CONF = Path(__file__).parents[3] / "conf" / "vectorizer"
IN_PROCESS = pytest.mark.parametrize("cls", [SerialVectorizer, ThreadVectorizer])


def make(cls, env_fns, **options):
    return cls(env_fns, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=counting_seed, **options)


@pytest.mark.parametrize("name", registry.names("vectorizer"))
def test_yaml_config_and_constructor_name_the_same_options(name):
    cls = registry.load("vectorizer", name)
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    config = parse_component("vectorizer", values)
    assert to_plain(config) == to_plain(cls.Config()) == values
    options = {f.name: f.default for f in dataclasses.fields(cls.Config) if f.name != "name"}
    named = {}
    for base in itertools.takewhile(lambda base: base not in (Vectorizer, VectorWrapper), cls.__mro__):
        # a subclass hands on what it does not name
        named |= inspect.signature(base.__init__).parameters if "__init__" in vars(base) else {}
    shared = {"self", "env_fns", "autoreset_mode", "episode_seed", "observation_mode", "copy"}
    named = {key: p.default for key, p in named.items() if p.kind is not p.VAR_KEYWORD}
    assert {key: default for key, default in named.items() if key not in shared} == options


@IN_PROCESS
def test_misuse_is_told_in_one_line(cls):
    vectorizer = make(cls, [CountingEnv] * 3)
    with pytest.raises(ParlError, match=r"call begin\(\) or reset\(\) first"):
        vectorizer.send(np.zeros(3, int))
    vectorizer.begin()
    with pytest.raises(ParlError, match="recv without send"):
        vectorizer.recv()
    with pytest.raises(ValueError, match=r"actions have shape \(2,\): must be \(3,\)"):
        vectorizer.send(np.zeros(2, int))
    with pytest.raises(TypeError, match=r"dtype float64: action space Discrete\(4\) takes int64"):
        vectorizer.send(np.zeros(3))
    for bad in ([0, 0], [3], [-1], []):
        with pytest.raises(ValueError, match="must be different whole numbers from 0 to 2"):
            vectorizer.send(np.zeros(len(bad), int), np.array(bad, int))
    vectorizer.send(np.zeros(1, int), np.array([1]))
    with pytest.raises(ParlError, match="has not answered yet"):
        vectorizer.send(np.zeros(3, int))
    with pytest.raises(ParlError, match="still stepping"):
        vectorizer.begin()
    vectorizer.recv()
    vectorizer.close()
    vectorizer.close()
    with pytest.raises(ParlError, match="closed"):
        vectorizer.send(np.zeros(3, int))
    with pytest.raises(ParlError, match="closed"):
        vectorizer.reset()


@IN_PROCESS
def test_the_runners_face_is_same_step_only(cls):
    vectorizer = cls([CountingEnv], episode_seed=counting_seed)
    with pytest.raises(ParlError, match="SAME_STEP only"):
        vectorizer.begin()
    vectorizer.close()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SerialVectorizer, {"num_groups": 2}),
        (SerialVectorizer, {"max_restarts": 1}),
        (ThreadVectorizer, {"batch_size": 1}),
        (ThreadVectorizer, {"max_restarts": 1}),
    ],
)
def test_an_option_of_another_vectorizer_is_none_of_these(cls, options):
    with pytest.raises(TypeError, match="unexpected keyword"):
        make(cls, [CountingEnv], **options)


@pytest.mark.parametrize("options", [{"num_workers": -1}, {"num_groups": 0}, {"batch_size": -1}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(ConfigError, match="must be at least 1"):
        make(AsyncVectorizer, [CountingEnv], **options)


def test_no_envs_is_a_config_error():
    with pytest.raises(ConfigError, match="num_envs=0: must be at least 1"):
        SerialVectorizer([])


@IN_PROCESS
def test_begin_goes_to_the_episodes_asked_for(cls):
    vectorizer = make(cls, [CountingEnv] * 3)
    assert vectorizer.episode_numbers.tolist() == [-1, -1, -1]
    assert vectorizer.begin(np.array([4, 0, 9])).tolist() == [[0, 4, 0], [1, 0, 0], [2, 9, 0]]
    assert vectorizer.episode_numbers.tolist() == [4, 0, 9]
    assert vectorizer.begin()[:, 1].tolist() == [0, 0, 0]
    vectorizer.close()


@IN_PROCESS
def test_a_seeded_reset_counts_episodes_anew_and_a_seedless_one_goes_on(cls):
    vectorizer = make(cls, [CountingEnv] * 2)
    vectorizer.begin(np.array([4, 5]))
    assert vectorizer.reset()[0][:, 1].tolist() == [5, 6]
    assert vectorizer.reset(seed=[7000, 8000])[0].tolist() == [[7, 0, 0], [8, 0, 0]]
    assert vectorizer.episode_numbers.tolist() == [0, 0]
    vectorizer.close()


@IN_PROCESS
def test_two_subset_sends_are_answered_together_in_env_order(cls):
    vectorizer = make(cls, [CountingEnv] * 4)
    vectorizer.begin()
    vectorizer.send(np.array([3, 1]), np.array([3, 1]))
    vectorizer.send(np.array([0]), np.array([0]))
    step = vectorizer.recv()
    assert step.env_ids.tolist() == [0, 1, 3]
    assert step.obs.tolist() == [[0, 0, 1], [1, 0, 1], [3, 0, 1]]
    assert step.reward.tolist() == [0.0, 64.0 + 1 / 256, 192.0 + 3 / 256]
    assert step.reward.dtype == np.float32
    vectorizer.close()


@IN_PROCESS
def test_after_an_env_failed_only_a_reset_may_follow(cls):
    vectorizer = make(cls, [CountingEnv, lambda: FaultyEnv(raise_at=0)])
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    with pytest.raises(EnvError, match="env 1 failed in step"):
        vectorizer.recv()
    with pytest.raises(ParlError, match="the last call failed"):
        vectorizer.send(np.zeros(2, int))
    assert vectorizer.begin()[:, 2].tolist() == [0, 0]
    vectorizer.send(np.zeros(2, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 1]
    vectorizer.close()


@IN_PROCESS
def test_an_env_that_fails_in_close_is_reported_after_all_are_closed(cls):
    class Grumbling(CountingEnv):
        def close(self):
            raise OSError("stuck")

    vectorizer = make(cls, [CountingEnv, Grumbling])
    with pytest.raises(EnvError, match="env 1 failed in close: OSError: stuck"):
        vectorizer.close()
    vectorizer.close()


def test_threads_step_side_by_side():
    vectorizer = make(ThreadVectorizer, [lambda: SleepEnv(step_s=0.05)] * 8, num_workers=8)
    vectorizer.begin()
    start = time.perf_counter()
    vectorizer.send(np.zeros(8, int))
    vectorizer.recv()
    assert time.perf_counter() - start < 8 * 0.05 / 2
    vectorizer.close()


def test_recv_times_out_and_can_be_called_again():
    vectorizer = make(ThreadVectorizer, [lambda: SleepEnv(step_s=0.1)])
    vectorizer.begin()
    vectorizer.send(np.zeros(1, int))
    with pytest.raises(TimeoutError, match="1 of 1 groups of envs did not answer in time"):
        vectorizer.recv(timeout=0.01)
    assert vectorizer.recv().obs.tolist() == [[0, 0, 1]]
    vectorizer.close()


def test_a_thread_that_hangs_is_named_and_left_behind():
    env_fns = [CountingEnv, lambda: FaultyEnv(hang_at=0, hang_s=0.4)]
    vectorizer = make(ThreadVectorizer, env_fns, num_workers=2, step_timeout_s=0.1)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    with pytest.raises(WorkerError, match=r"worker 1 \(env 1\) did not answer within step_timeout_s=0\.1; a thread"):
        vectorizer.recv()
    assert vectorizer.closed


def test_a_constructor_that_hangs_in_a_thread_is_named():
    env_fns = [CountingEnv, CountingEnv, partial(FaultyEnv, hang_at=0, hang_s=0.4, where="init")]
    words = r"worker 1 \(envs 1 to 2\) did not answer within start_timeout_s=0\.1; a thread"
    with pytest.raises(WorkerError, match=words):
        make(ThreadVectorizer, env_fns, num_workers=2, start_timeout_s=0.1)


def test_threads_step_from_send_on():
    stepped = threading.Event()

    class Telling(CountingEnv):
        def step(self, action):
            stepped.set()
            return super().step(action)

    vectorizer = make(ThreadVectorizer, [Telling])
    vectorizer.begin()
    vectorizer.send(np.zeros(1, int))
    assert stepped.wait(5)
    vectorizer.close()


def test_recv_may_time_out_in_an_autoreset_and_go_on():
    vectorizer = make(ThreadVectorizer, [CountingEnv, partial(SleepEnv, step_s=0.0, reset_s=0.2)], num_workers=2)
    vectorizer.begin()
    step_until_the_end_of_episode_0_of_env_1(vectorizer)
    with pytest.raises(TimeoutError):
        vectorizer.recv(timeout=0.05)
    step = vectorizer.recv()
    assert step.ended[1]
    assert step.obs[1].tolist() == [1, 1, 0]
    assert vectorizer.episode_numbers[1] == 1
    vectorizer.close()


def step_until_the_end_of_episode_0_of_env_1(vectorizer):
    """The last step is sent, not received."""
    for _ in range(counting_length(1, 0) - 1):
        vectorizer.send(np.zeros(2, int))
        vectorizer.recv()
    vectorizer.send(np.zeros(2, int))


def test_an_autoreset_that_hangs_in_a_thread_is_named():
    env_fns = [CountingEnv, partial(FaultyEnv, hang_at=1, hang_s=0.4, where="reset")]
    vectorizer = make(ThreadVectorizer, env_fns, num_workers=2, step_timeout_s=0.1)
    vectorizer.begin()
    step_until_the_end_of_episode_0_of_env_1(vectorizer)
    with pytest.raises(WorkerError, match=r"worker 1 \(env 1\) did not answer within step_timeout_s=0\.1"):
        vectorizer.recv()


def test_of_several_envs_that_fail_in_threads_the_first_is_named():
    env_fns = [CountingEnv, lambda: FaultyEnv(raise_at=0), CountingEnv, lambda: FaultyEnv(raise_at=0)]
    vectorizer = make(ThreadVectorizer, env_fns, num_workers=4)
    vectorizer.begin()
    vectorizer.send(np.zeros(4, int))
    with pytest.raises(EnvError, match="env 1 failed in step"):
        vectorizer.recv()
    vectorizer.close()


@pytest.mark.parametrize("dropped", [False, True])
def test_an_env_is_only_ever_touched_by_its_own_thread(dropped):
    seen = {env_id: [] for env_id in range(5)}

    class Bound(CountingEnv):
        def __init__(self, env_id):
            super().__init__()
            self.env_id = env_id
            self.note()

        def note(self):
            seen[self.env_id].append(threading.current_thread())

        def reset(self, **options):
            self.note()
            return super().reset(**options)

        def step(self, action):
            self.note()
            return super().step(action)

        def set_wrapper_attr(self, *args):
            self.note()
            return super().set_wrapper_attr(*args)

        def close(self):
            self.note()

    vectorizer = make(ThreadVectorizer, [partial(Bound, env_id) for env_id in seen], num_workers=2)
    threads = vectorizer._pool.threads
    vectorizer.begin()
    for _ in range(counting_length(0, 0)):
        vectorizer.send(np.zeros(5, int))
        vectorizer.recv()
    vectorizer.call("note")
    vectorizer.set_attr("length", 3)
    if dropped:
        del vectorizer
    else:
        vectorizer.close()
    for thread in threads:
        thread.join(2.0)
    for env_id, touched in seen.items():
        assert set(touched) == {threads[env_id >= 2]}
        assert len(touched) >= 2 + counting_length(0, 0) + 3


def test_a_vectorizer_that_is_dropped_ends_its_threads():
    vectorizer = make(ThreadVectorizer, [CountingEnv] * 2, num_workers=2)
    threads = vectorizer._pool.threads
    del vectorizer
    for thread in threads:
        thread.join(2.0)
        assert not thread.is_alive()
