"""Every registered vectorizer against Gymnasium's, and against each other."""

import dataclasses
import itertools
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from parl_cli.envs.toy import (
    CountingEnv,
    TwoAgentEnv,
    counting_length,
    counting_reward,
    counting_seed,
    counting_truncates,
)
from parl_cli.errors import ConfigError, EnvError, ParlError
from tests.helpers.processes import nothing_left_behind
from tests.helpers.vectorizers import every_vectorizer, make, of_python_envs

NAMES = of_python_envs()
SAME_STEP = AutoresetMode.SAME_STEP
pytestmark = pytest.mark.usefixtures(nothing_left_behind.__name__)


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
