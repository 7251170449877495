"""Every registered vectorizer against Gymnasium's, against each other, and against envs that fail."""

import contextlib
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from parl_cli import registry
from parl_cli.envs.toy import (
    CountingEnv,
    FaultyEnv,
    SleepEnv,
    TwoAgentEnv,
    counting_length,
    counting_reward,
    counting_seed,
    counting_truncates,
)
from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.vectorizers import SubprocessVectorizer
from tests.helpers.vectorizers import of_python_envs

NAMES = of_python_envs()
SAME_STEP = AutoresetMode.SAME_STEP
every_vectorizer = pytest.mark.parametrize("name", NAMES)


def make(name, env_fns, **options):
    options.setdefault("autoreset_mode", SAME_STEP)
    options.setdefault("episode_seed", counting_seed)
    options.setdefault("batch_size", len(env_fns))  # all envs: lock-step, also where the first to answer could do
    cls = registry.load("vectorizer", name)
    known = {field.name for field in dataclasses.fields(cls.Config)} | {"autoreset_mode", "episode_seed"}
    return cls(env_fns, **{key: value for key, value in options.items() if key in known})


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No process, and nothing in /dev/shm, outlives a test."""
    shm = _shm()
    yield
    multiprocessing_children = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    assert not multiprocessing_children
    assert _shm() <= shm


def _shm():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


# ---- Gymnasium's face ----


def _cartpole(max_episode_steps=None):
    return gym.make("CartPole-v1", max_episode_steps=max_episode_steps)


def _equal(mine, theirs):
    assert type(mine) is type(theirs) or isinstance(mine, np.ndarray | np.number)
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            _equal(mine[key], theirs[key])
    elif isinstance(theirs, tuple):
        for a, b in zip(mine, theirs, strict=True):
            _equal(a, b)
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            if isinstance(b, dict | tuple):
                _equal(a, b)
            else:
                np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_array_equal(mine, theirs)
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype


@every_vectorizer
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_gymnasium_face_equals_sync_vector_env(name, mode, env_id):
    env_fns = [partial(gym.make, env_id, max_episode_steps=limit) for limit in (9, 10, 11)]
    env_fns = [lambda make=make: gym.wrappers.RecordEpisodeStatistics(make()) for make in env_fns]
    theirs = SyncVectorEnv(env_fns, autoreset_mode=mode)
    mine = make(name, env_fns, autoreset_mode=mode, episode_seed=None, num_workers=2)
    assert mine.metadata == theirs.metadata
    assert (mine.observation_space, mine.action_space) == (theirs.observation_space, theirs.action_space)
    assert mine.single_observation_space == theirs.single_observation_space
    assert mine.single_action_space == theirs.single_action_space
    assert mine.spec.id == env_id
    for a, b in zip(mine.reset(seed=3), theirs.reset(seed=3), strict=True):
        _equal(a, b)
    theirs.action_space.seed(4)
    ends = 0
    for _ in range(40):
        actions = theirs.action_space.sample()
        expected, got = theirs.step(actions), mine.step(actions)
        for infos in (expected[4], got[4]):  # the one thing that is a stop-watch
            for episode in (infos.get("episode"), infos.get("final_info", {}).get("episode")):
                if episode:
                    assert episode.pop("t") is not None
        for a, b in zip(got, expected, strict=True):
            _equal(a, b)
        ends += int(expected[2].sum() + expected[3].sum())
        if mode is AutoresetMode.SAME_STEP and (expected[2] | expected[3]).any():
            assert "final_obs" in got[4]
    assert ends > 6
    mine.close()
    theirs.close()


class StructuredEnv(gym.Env):
    """Observations and actions in dicts and tuples; each observation tells the action that led to it."""

    observation_space = spaces.Dict(
        seen=spaces.Tuple([spaces.Box(0, 255, (2, 2), np.uint8), spaces.Discrete(9)]),
        clock=spaces.Box(0, 99, (), np.float32),
    )
    action_space = spaces.Dict(go=spaces.Discrete(9), by=spaces.Box(-1, 1, (2,), np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self._obs(self.np_random.integers(9)), {}

    def step(self, action):
        self.clock += 1
        return self._obs(action["go"]), float(action["by"].sum()), self.clock == 4, False, {}

    def _obs(self, number):
        # an int, as most envs give a Discrete part; what ended an episode is given as one
        return {"seen": (np.full((2, 2), number, np.uint8), int(number)), "clock": np.float32(self.clock)}


@every_vectorizer
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_dicts_and_tuples_pass_both_ways_as_through_sync_vector_env(name, mode):
    theirs = SyncVectorEnv([StructuredEnv] * 3, autoreset_mode=mode)
    mine = make(name, [StructuredEnv] * 3, autoreset_mode=mode, episode_seed=None, num_workers=2)
    assert (mine.observation_space, mine.action_space) == (theirs.observation_space, theirs.action_space)
    for a, b in zip(mine.reset(seed=1), theirs.reset(seed=1), strict=True):
        _equal(a, b)
    theirs.action_space.seed(2)
    for _ in range(11):
        actions = theirs.action_space.sample()
        for a, b in zip(mine.step(actions), theirs.step(actions), strict=True):
            _equal(a, b)
    mine.close()
    theirs.close()


@every_vectorizer
def test_disabled_autoreset_equals_sync_vector_env_and_insists_on_the_reset(name):
    env_fns = [partial(_cartpole, limit) for limit in (3, 5, 5)]
    theirs = SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.DISABLED)
    mine = make(name, env_fns, autoreset_mode="Disabled", episode_seed=None, num_workers=2)
    actions = np.array([0, 1, 0])
    _equal(mine.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for _ in range(3):
        for a, b in zip(mine.step(actions), theirs.step(actions), strict=True):
            _equal(a, b)
    reset = {"seed": [8, None, None], "options": {"reset_mask": np.array([True, False, False])}}
    with pytest.raises(ParlError, match=r"env 0: its episode is over and autoreset_mode is disabled; reset it"):
        mine.step(actions)
    mine.reset(seed=1)
    for _ in range(3):
        mine.step(actions)
    _equal(mine.reset(**reset)[0], theirs.reset(seed=reset["seed"], options=dict(reset["options"]))[0])
    for _ in range(2):
        for a, b in zip(mine.step(actions), theirs.step(actions), strict=True):
            _equal(a, b)
    mine.close()
    theirs.close()


@every_vectorizer
def test_call_and_attributes_reach_every_env(name):
    vectorizer = make(name, [CountingEnv] * 5, num_workers=2)
    vectorizer.reset(seed=[counting_seed(i, 2 * i) for i in range(5)])
    assert vectorizer.get_attr("episode") == (0, 2, 4, 6, 8)
    vectorizer.set_attr("length", [1, 2, 3, 4, 5])
    assert vectorizer.get_attr("length") == (1, 2, 3, 4, 5)
    vectorizer.set_attr("length", 7)
    assert vectorizer.call("get_wrapper_attr", "length") == (7,) * 5
    with pytest.raises(ValueError, match="2 values for num_envs=5"):
        vectorizer.set_attr("length", [1, 2])
    with pytest.raises(EnvError, match="env 0 failed in no_such_thing"):
        vectorizer.call("no_such_thing")
    assert len(vectorizer.np_random_seed) == 5
    vectorizer.close()


def _with_render(size):
    env = CountingEnv(render_mode="rgb_array")
    env.render = lambda: np.full((size, size, 3), 9, np.uint8)
    return env


@every_vectorizer
def test_render_gives_a_frame_per_env(name):
    vectorizer = make(name, [partial(_with_render, 2 + i) for i in range(3)], num_workers=2)
    assert vectorizer.render_mode == "rgb_array"
    assert [frame.shape for frame in vectorizer.render()] == [(2, 2, 3), (3, 3, 3), (4, 4, 3)]
    vectorizer.close()


# ---- the runner's face ----


def _trace(name, env_fns, steps, sample, **options):
    vectorizer = make(name, env_fns, **options)
    rng = np.random.default_rng(5)
    records = [vectorizer.begin().copy()]
    for _ in range(steps):
        vectorizer.send(sample(rng))
        step = vectorizer.recv()
        records += [np.copy(getattr(step, field.name)) for field in dataclasses.fields(step)]
        records.append(vectorizer.episode_numbers.copy())
    vectorizer.close()
    return [(record.dtype, record.shape, record.tobytes()) for record in records]


@pytest.mark.parametrize(
    ("env_id", "sample"),
    [
        ("CartPole-v1", lambda rng: rng.integers(0, 2, 7)),
        ("Pendulum-v1", lambda rng: rng.uniform(-2, 2, (7, 1)).astype(np.float32)),
    ],
)
def test_every_vectorizer_and_worker_count_gives_the_same_trace_bit_for_bit(env_id, sample):
    env_fns = [partial(gym.make, env_id, max_episode_steps=30)] * 7
    expected = _trace("serial", env_fns, 150, sample)
    for name, num_workers in itertools.product([name for name in NAMES if name != "serial"], (1, 2, 3)):
        assert _trace(name, env_fns, 150, sample, num_workers=num_workers) == expected, (name, num_workers)


@every_vectorizer
def test_obs_action_reward_end_and_final_obs_belong_together(name):
    num_envs = 5
    vectorizer = make(name, [CountingEnv] * num_envs, num_workers=2)
    obs = vectorizer.begin(np.arange(num_envs)).copy()
    rng = np.random.default_rng(0)
    episodes, t = np.arange(num_envs), np.zeros(num_envs, int)
    total = np.zeros(num_envs)
    ids = np.arange(num_envs)
    for _ in range(60):
        np.testing.assert_array_equal(obs, np.stack([ids, episodes, t], axis=1))
        actions = rng.integers(0, 4, num_envs)
        vectorizer.send(actions)
        step = vectorizer.recv()
        where = list(zip(ids, episodes, t, actions, strict=True))
        rewards = np.array([counting_reward(*map(int, each)) for each in where])
        t, total = t + 1, total + rewards
        ended = np.array([t[i] == counting_length(i, episodes[i]) for i in ids])
        truncated = np.array([counting_truncates(i, episodes[i]) for i in ids]) & ended
        np.testing.assert_array_equal(step.reward, rewards)
        np.testing.assert_array_equal(step.ended, ended)
        np.testing.assert_array_equal(step.truncated, truncated)
        np.testing.assert_array_equal(step.terminated, ended & ~truncated)
        np.testing.assert_array_equal(step.final_obs, np.stack([ids, episodes, t], axis=1)[ended])
        np.testing.assert_array_equal(step.episode_return, total[ended])
        np.testing.assert_array_equal(step.episode_length, t[ended])
        assert step.mask.all()
        episodes, t, total = episodes + ended, np.where(ended, 0, t), np.where(ended, 0.0, total)
        np.testing.assert_array_equal(vectorizer.episode_numbers, episodes)
        obs = step.obs.copy()
    vectorizer.close()


@every_vectorizer
def test_subsets_step_only_the_envs_they_name(name):
    vectorizer = make(name, [CountingEnv] * 6, num_workers=3)
    vectorizer.begin()
    vectorizer.send(np.array([3, 1]), np.array([5, 1]))
    vectorizer.send(np.array([2]), np.array([4]))
    step = vectorizer.recv()
    assert step.env_ids.tolist() == [1, 4, 5]
    assert step.obs.tolist() == [[1, 0, 1], [4, 0, 1], [5, 0, 1]]
    assert step.reward.tolist() == [counting_reward(env, 0, 0, action) for env, action in ((1, 1), (4, 2), (5, 3))]
    vectorizer.send(np.zeros(6, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 2, 1, 1, 2, 2]
    vectorizer.close()


@every_vectorizer
def test_a_dying_agent_is_masked_until_the_next_episode(name):
    env_fns = [partial(TwoAgentEnv, length=3 + i, death_at=1, filler=float("nan")) for i in range(3)]
    vectorizer = make(name, env_fns, num_workers=2)
    assert vectorizer.num_agents == 2
    assert vectorizer.begin().shape == (3, 2, 2)
    assert vectorizer.action_space.shape == (3, 2)
    for step_number in range(1, 4):
        vectorizer.send(np.zeros((3, 2), int))
        step = vectorizer.recv()
        assert step.mask.tolist() == [[True, step_number == 1]] * 3
        assert step.reward.tolist() == [[1.0, 2.0 if step_number == 1 else 0.0]] * 3
    assert step.ended.tolist() == [True, False, False]
    assert step.final_obs.shape == (1, 2, 2)
    assert step.episode_return.tolist() == [[3.0, 2.0]]
    vectorizer.send(np.zeros((3, 2), int))
    assert vectorizer.recv().mask.tolist() == [[True, True], [True, False], [True, False]]
    vectorizer.close()


class Spaces(gym.Env):
    """Gives back, as the observation, the action it was given."""

    def __init__(self, space):
        self.observation_space = self.action_space = space

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return action, 0.0, False, False, {}


@every_vectorizer
@pytest.mark.parametrize(
    "space",
    [
        *(spaces.Box(0, 100, (2, 3), dtype) for dtype in (np.uint8, np.int16, np.int64, np.float16, np.float32)),
        spaces.Box(-1.0, 1.0, (), np.float64),
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([3, 4, 5]),
        spaces.MultiBinary(6),
    ],
    ids=str,
)
def test_every_array_space_passes_both_ways_unchanged(name, space):
    vectorizer = make(name, [partial(Spaces, space)] * 3, num_workers=2)
    obs = vectorizer.begin()
    assert obs.dtype == space.dtype
    assert obs.shape == (3, *space.shape)
    vectorizer.action_space.seed(1)
    actions = vectorizer.action_space.sample()
    vectorizer.send(actions)
    np.testing.assert_array_equal(vectorizer.recv().obs, actions)
    vectorizer.close()


@every_vectorizer
def test_workers_whose_envs_differ_are_refused(name):
    env_fns = [partial(Spaces, spaces.Discrete(2)), partial(Spaces, spaces.Discrete(3))]
    with pytest.raises(ConfigError, match=r"env 1: its observation_space Discrete\(3\) differs"):
        make(name, env_fns, num_workers=2)


# ---- failures, each within seconds ----


@pytest.fixture
def within():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20


@every_vectorizer
@pytest.mark.parametrize("unpicklable", [False, True])
def test_an_exception_in_step_names_env_seed_step_and_action(name, unpicklable, within):
    faulty = partial(FaultyEnv, raise_at=1, unpicklable=unpicklable, length=9)
    vectorizer = make(name, [CountingEnv, CountingEnv, faulty, CountingEnv], num_workers=2)
    vectorizer.begin()
    vectorizer.send(np.array([0, 1, 2, 3]))
    vectorizer.recv()
    vectorizer.send(np.array([0, 1, 2, 3]))
    cause = "UnpicklableError" if unpicklable else "RuntimeError"
    words = rf"^env 2 failed in step \(seed 2000, episode 0, step 2, action 2\): \S*{cause}.*\n\nTraceback"
    with pytest.raises(EnvError, match=words):
        vectorizer.recv()
    assert vectorizer.begin().tolist() == [[i, 0, 0] for i in range(4)]
    vectorizer.close()


@every_vectorizer
def test_an_exception_in_reset_names_env_seed_and_episode(name, within):
    vectorizer = make(name, [CountingEnv, partial(FaultyEnv, raise_at=1, where="reset")], num_workers=2)
    vectorizer.begin()
    with pytest.raises(EnvError, match=r"^env 1 failed in reset \(seed 1003, episode 3, step 1\): RuntimeError"):
        vectorizer.begin(np.array([3, 3]))
    vectorizer.close()


@every_vectorizer
def test_an_exception_in_a_constructor_names_the_env(name, within):
    with pytest.raises(EnvError, match=r"^env 2 could not be made: RuntimeError.*\n\nTraceback"):
        make(name, [CountingEnv, CountingEnv, partial(FaultyEnv, raise_at=0, where="init")], num_workers=2)


class WrongShape(CountingEnv):
    def step(self, action):
        obs, *rest = super().step(action)
        return (obs[:1], *rest)


class WrongDtype(CountingEnv):
    def step(self, action):
        obs, *rest = super().step(action)
        return (obs.astype(np.complex64), *rest)


@every_vectorizer
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (WrongShape, r"^env 1 failed in step .*observation has shape \(1,\).*says \(3,\)"),
        (WrongDtype, r"^env 1 failed in step .*observation has dtype complex64.*says float32"),
        (partial(FaultyEnv, nan_at=0), r"^env 1 broke its contract: observation holds NaN \(seed .*step 1, action 0\)"),
    ],
    ids=["shape", "dtype", "nan"],
)
def test_an_observation_that_its_space_does_not_allow_is_an_error_not_a_cast(name, broken, words, within):
    vectorizer = make(name, [CountingEnv, broken], num_workers=2)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    with pytest.raises(EnvError, match=words):
        vectorizer.recv()
    vectorizer.close()


class Crashing(CountingEnv):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGSEGV)


def _subprocess(env_fns, **options):
    return make("subprocess", env_fns, **{"num_workers": 2, **options})


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("dying", "words"),
    [
        (partial(FaultyEnv, kill_at=0), r"worker 1 \(envs 2 to 3\) was killed by SIGKILL"),
        (partial(FaultyEnv, exit_at=0), r"worker 1 \(envs 2 to 3\) exited with code 3"),
        (Crashing, r"worker 1 \(envs 2 to 3\) was killed by SIGSEGV"),
    ],
    ids=["SIGKILL", "exit", "SIGSEGV"],
)
def test_a_worker_that_dies_is_named_with_its_envs_and_the_cause(dying, words, within):
    vectorizer = _subprocess([CountingEnv, CountingEnv, CountingEnv, dying])
    vectorizer.begin()
    vectorizer.send(np.zeros(4, int))
    with pytest.raises(WorkerError, match=words):
        vectorizer.recv()
    assert vectorizer.closed
    with pytest.raises(ParlError, match="closed"):
        vectorizer.begin()
    vectorizer.close()


def test_a_worker_that_dies_in_a_constructor_says_so(within):
    with pytest.raises(WorkerError, match=r"worker 0 \(env 0\) exited with code 3.* before it was ready"):
        _subprocess([partial(FaultyEnv, exit_at=0, where="init")])


def test_a_worker_killed_between_steps_is_noticed(within):
    vectorizer = _subprocess([CountingEnv] * 4)
    vectorizer.begin()
    vectorizer._processes[0].kill()
    vectorizer._processes[0].join(5)
    with pytest.raises(WorkerError, match=r"worker 0 \(envs 0 to 1\) was killed by SIGKILL"):  # noqa: PT012
        vectorizer.send(np.zeros(4, int))
        vectorizer.recv()
    vectorizer.close()


@pytest.mark.parametrize("where", ["step", "reset"])
def test_a_worker_that_hangs_is_killed_at_its_deadline(where, within):
    vectorizer = _subprocess([CountingEnv, partial(FaultyEnv, hang_at=1, where=where)], step_timeout_s=1.5)
    vectorizer.begin()
    with pytest.raises(
        WorkerError, match=r"worker 1 \(env 1\) did not answer within step_timeout_s=1\.5; it was killed"
    ):
        _run(vectorizer, 9)  # the fault comes in one of these
    vectorizer.close()


def _run(vectorizer, steps):
    for _ in range(steps):
        vectorizer.send(np.zeros(vectorizer.num_envs, int))
        vectorizer.recv()


def test_a_constructor_that_hangs_is_killed_at_its_deadline(within):
    with pytest.raises(WorkerError, match=r"worker 1 \(env 1\) did not answer within start_timeout_s=4; it was killed"):
        _subprocess([CountingEnv, partial(FaultyEnv, hang_at=0, where="init")], start_timeout_s=4)


def test_close_in_the_middle_of_a_long_step_is_bounded(within):
    vectorizer = _subprocess([partial(SleepEnv, step_s=600)] * 2)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    vectorizer.close()


def test_factories_that_cannot_be_sent_are_refused_before_any_process_starts():
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"envs 0 to 1: the factories .* cannot be sent .* use vectorizer=serial"):
        _subprocess([lambda: lock] * 4)


def _bad_seed(env_id, episode):
    raise LookupError("no seed")


def test_a_fault_outside_the_envs_names_the_worker_and_keeps_its_traceback(within):
    vectorizer = _subprocess([CountingEnv] * 4, episode_seed=_bad_seed)
    words = r"worker 0 \(envs 0 to 1\) failed outside its envs: LookupError\n\nTraceback[\s\S]*LookupError: no seed"
    with pytest.raises(WorkerError, match=words):
        vectorizer.begin()
    vectorizer.close()


class Secretive(CountingEnv):
    def step(self, action):
        *rest, _ = super().step(action)
        return (*rest, {"lock": threading.Lock()})


def test_infos_that_cannot_be_sent_are_an_error_but_only_where_they_are_asked_for(within):
    vectorizer = _subprocess([Secretive] * 2)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 1]
    with pytest.raises(EnvError, match=r"what the envs gave for step .* cannot be sent to another process: TypeError"):
        vectorizer.step(np.zeros(2, int))
    vectorizer.close()


# ---- processes ----


class Introspective(CountingEnv):
    def modules(self):
        return sorted(sys.modules)

    def environment(self):
        return os.environ.get("OMP_NUM_THREADS"), os.getpid()


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_run_without_torch_on_one_thread_each(context):
    if context == "forkserver" and sys.platform == "win32":
        pytest.skip("no fork server on Windows")
    before = dict(os.environ)
    vectorizer = _subprocess([Introspective] * 4, context=context)
    assert dict(os.environ) == before
    for modules in vectorizer.call("modules"):
        assert "numpy" in modules
        assert not [module for module in modules if module.split(".")[0] in ("torch", "hydra", "matplotlib", "rich")]
    threads, pids = zip(*vectorizer.call("environment"), strict=True)
    assert set(threads) == {"1"}
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert os.getpid() not in pids
    vectorizer.begin()
    vectorizer.send(np.zeros(4, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 1, 1, 1]
    vectorizer.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_default_is_one_worker_per_core_of_the_affinity():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        vectorizer = SubprocessVectorizer([CountingEnv] * 4)
    finally:
        os.sched_setaffinity(0, cores)
    assert vectorizer.slices == [range(0, 4)]
    vectorizer.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_more_workers_than_the_system_starts_are_a_config_error():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(9)]
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        with pytest.raises(
            ConfigError, match=r"^vectorizer\.num_workers=20: worker \d+ cannot be started \(Too many open"
        ):
            _subprocess([CountingEnv] * 20, num_workers=20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Locked(CountingEnv):
    def __init__(self):
        super().__init__()
        self.metadata = {"lock": threading.Lock()}


def test_an_env_whose_description_cannot_be_sent_is_an_error_that_says_so(within):
    with pytest.raises(
        EnvError, match=r"^what the envs gave for __init__ .* cannot be sent to another process: TypeErr"
    ):
        _subprocess([Locked] * 2)


class Deaf(CountingEnv):
    def load(self, data):
        time.sleep(600)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_an_argument_too_large_for_the_pipe_of_a_hanging_worker_does_not_block_for_ever(within):
    vectorizer = make("async", [Deaf] * 2, num_workers=1, num_groups=2, step_timeout_s=1.5)
    with pytest.raises(
        WorkerError, match=r"^worker 0 \(envs 0 to 1\) did not answer within step_timeout_s=1\.5; it was k"
    ):
        vectorizer.call("load", b"x" * 10**6)
    assert vectorizer.closed


_SCRIPT = """
    import ctypes, signal, sys
    from functools import partial
    from threading import Thread
    import numpy as np
    from gymnasium.vector import AutoresetMode
    from parl_cli.envs.toy import CountingEnv, SleepEnv, counting_seed
    from parl_cli.vectorizers import SubprocessVectorizer

    class LockHolder(SleepEnv):
        def step(self, action):
            ctypes.PyDLL(None).sleep(int(self.step_s))

    if __name__ == "__main__":
        env = partial(LockHolder if sys.argv[2] == "hold the lock" else SleepEnv, step_s=float(sys.argv[1]))
        made = []

        def start():
            made.append(SubprocessVectorizer(
                [env] * 4,
                num_workers=2,
                autoreset_mode=AutoresetMode.SAME_STEP,
                episode_seed=counting_seed,
                context=sys.argv[3],
            ))

        if sys.argv[4] == "main":
            start()
        else:
            thread = Thread(target=start)
            thread.start()
            thread.join()
        vectorizer = made.pop()
        vectorizer.begin()
        print(*(process.pid for process in vectorizer._processes), flush=True)
        if sys.argv[2] == "leave":
            sys.exit(0)
        asked = []
        if sys.argv[2] == "finish":
            signal.signal(signal.SIGINT, lambda *_: asked.append("int"))
            signal.signal(signal.SIGTERM, lambda *_: asked.append("term"))
        print("stepping", flush=True)
        steps_left = 100
        while steps_left:
            steps_left -= len(asked) == 2
            vectorizer.send(np.zeros(4, int))
            try:
                vectorizer.recv()
            finally:
                if sys.argv[2] == "close":
                    vectorizer.close()
"""


def _start_script(tmp_path, *args, context="spawn", thread="main"):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, script, *args, context, thread],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.stdout.readline()  # "stepping"
    return process, pids


def _gone(pids, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("step_s", ["0.0001", "600"], ids=["stepping", "hanging"])
def test_a_killed_parent_leaves_no_process_and_no_shared_memory(tmp_path, step_s, context):
    before = _shm()
    process, pids = _start_script(tmp_path, step_s, "stay", context=context)
    assert len(pids) == 2
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=10)
    assert _gone(pids)
    assert _shm() <= before


@pytest.mark.skipif(sys.platform != "linux", reason="needs F_SETSIG")
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_killed_parent_leaves_no_process_that_holds_the_interpreters_lock(tmp_path, context, thread):
    process, pids = _start_script(tmp_path, "60", "hold the lock", context=context, thread=thread)
    assert len(pids) == 2
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=10)
    assert _gone(pids)


def test_the_end_of_the_thread_that_started_workers_ends_no_worker():
    made = []
    thread = threading.Thread(target=lambda: made.append(_subprocess([CountingEnv] * 2)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with contextlib.closing(made[0]) as vectorizer:
        vectorizer.begin()
        assert all(process.is_alive() for process in vectorizer._processes)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_second_ctrl_c_while_workers_are_asked_to_close_ends_everything(tmp_path):
    process, pids = _start_script(tmp_path, "60", "close")
    for wait_s in (0.3, 1.0):
        time.sleep(wait_s)
        os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=15)
    assert _gone(pids)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_workers_survive_ctrl_c_and_sigterm_so_that_the_parent_can_finish(tmp_path):
    process, pids = _start_script(tmp_path, "0.0001", "finish")
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a scheduler does: to all of them
        os.killpg(process.pid, signal_number)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, "")
    assert _gone(pids)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize("step_s", ["0.0001", "600"], ids=["stepping", "hanging"])
def test_an_unhandled_ctrl_c_ends_everything_with_one_traceback(tmp_path, step_s):
    process, pids = _start_script(tmp_path, step_s, "stay")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert _gone(pids)
    assert errors.count("KeyboardInterrupt") == 1
    assert "resource_tracker" not in errors


def test_a_script_that_ends_without_close_ends_at_once_and_quietly(tmp_path):
    process, pids = _start_script(tmp_path, "0.0001", "leave")
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert errors == ""
    assert _gone(pids)


def test_a_vectorizer_that_is_dropped_ends_its_workers():
    vectorizer = _subprocess([CountingEnv] * 2)
    pids = [process.pid for process in vectorizer._processes]
    del vectorizer
    assert _gone(pids)
