"""parl's vectorizers in place of Gymnasium's: the same arguments, halves of calls, wrappers on top, spaces that differ.

What each step and reset gives is compared with SyncVectorEnv in `test_vectorizers.py`.
"""

import multiprocessing
import threading
from copy import deepcopy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv, TwoAgentEnv, counting_seed
from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.vectorizers import (
    AsyncVectorizer,
    HybridVectorizer,
    SerialVectorizer,
    SubprocessVectorizer,
    ThreadVectorizer,
)

CLASSES = [
    SerialVectorizer,
    ThreadVectorizer,
    partial(SubprocessVectorizer, num_workers=2),
    AsyncVectorizer,
    partial(HybridVectorizer, num_workers=2),
]
every_class = pytest.mark.parametrize("make", CLASSES, ids=["serial", "thread", "subprocess", "async", "hybrid"])
here_and_elsewhere = pytest.mark.parametrize("make", [CLASSES[0], CLASSES[2]], ids=["serial", "subprocess"])


def cartpoles(count=3):
    return [partial(gym.make, "CartPole-v1", max_episode_steps=limit) for limit in range(9, 9 + count)]


def assert_alike(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert data_equivalence(a, b), (a, b)


class Bounded(gym.Env):
    """Observations up to a bound of its own."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = deepcopy(space)  # each env draws from its own

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


# ---- one env, an end ----


@every_class
def test_one_env_is_a_batch_of_one(make):
    """As SyncVectorEnv's: no axis is lost."""
    mine, theirs = make(cartpoles(1)), SyncVectorEnv(cartpoles(1))
    assert (mine.num_envs, mine.observation_space, mine.action_space) == (
        1,
        theirs.observation_space,
        theirs.action_space,
    )
    assert_alike(mine.reset(seed=3), theirs.reset(seed=3))
    for action in [0, 1, 1, 0] * 6:
        assert_alike(mine.step(np.array([action])), theirs.step(np.array([action])))
    mine.close()
    theirs.close()


@every_class
def test_close_may_come_twice_and_nothing_after_it(make):
    envs = make(cartpoles())
    envs.reset(seed=1)
    envs.close()
    envs.close()
    assert envs.closed
    for use in (envs.reset, lambda: envs.step(np.zeros(3, np.int64)), lambda: envs.call("spec"), envs.render):
        with pytest.raises(ParlError, match="this vectorizer is closed: make a new one") as raised:
            use()
        assert isinstance(raised.value, ClosedEnvironmentError)


@every_class
def test_spaces_are_drawn_from_and_copied_without_harm(make):
    """Wrappers and buffers copy a vector env's spaces, and seed them."""
    envs = make(cartpoles())
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        space = getattr(envs, name)
        space.seed(4)
        copied = deepcopy(space)
        assert copied == space
        drawn = space.sample()
        assert data_equivalence(drawn, copied.sample())
        assert drawn in space
    envs.close()


# ---- arguments ----


@every_class
def test_arguments_of_gymnasiums_vector_envs_mean_the_same(make):
    envs = make(env_fns=cartpoles(), copy=False, observation_mode="same", autoreset_mode=AutoresetMode.SAME_STEP)
    kept, _ = envs.reset(seed=1)
    before = kept.copy()
    obs = envs.step(np.array([0, 1, 0]))[0]
    assert np.shares_memory(kept, obs)
    assert not np.array_equal(kept, before)
    assert (envs.copy, envs.observation_mode, envs.autoreset_mode) == (False, "same", AutoresetMode.SAME_STEP)
    assert repr(envs) == f"{type(envs).__name__}(CartPole-v1, num_envs=3)"
    envs.close(timeout=3, terminate=True)


@here_and_elsewhere
def test_copies_are_given_by_default(make):
    envs = make(cartpoles())
    kept, _ = envs.reset(seed=1)
    before = kept.copy()
    envs.step(np.array([0, 1, 0]))
    np.testing.assert_array_equal(kept, before)
    envs.close()


def test_arguments_of_async_vector_env_are_taken_where_they_can_mean_something():
    envs = SubprocessVectorizer(
        cartpoles(),
        shared_memory=False,
        copy=True,
        context=None,
        daemon=True,
        worker=None,
        observation_mode="same",
        autoreset_mode="NextStep",
        max_concurrency=None,
    )
    assert envs.reset(seed=1)[0].shape == (3, 4)
    envs.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"worker": print}, r"worker=<built-in function print>: there is no such option here"),
        ({"context": "fork"}, r"context=fork: .*spawn"),
        ({"observation_mode": "varied"}, r"Invalid `observation_mode`, expected: 'same' or 'different' .* got varied;"),
        ({"observation_mode": (spaces.Discrete(2), 3)}, r"Invalid `observation_mode`, .* got \(Discrete\(2\), 3\)"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_had_are_refused_before_any_process_starts(options, words, monkeypatch):
    monkeypatch.setattr(SubprocessVectorizer, "_launch", None)
    with pytest.raises(ConfigError, match=words):
        SubprocessVectorizer(cartpoles(), **options)


@every_class
def test_an_unknown_argument_is_a_type_error(make):
    with pytest.raises(TypeError, match="nonsense"):
        make(cartpoles(), nonsense=1)


def test_max_concurrency_is_a_bound_on_the_workers():
    envs = SubprocessVectorizer(cartpoles(4), num_workers=3, max_concurrency=np.int64(2))
    assert len(envs.slices) == 2
    envs.close()
    for given, words in ((2.0, "must be an integer or None, got <class 'float'>"), (0, "must be a positive or None")):
        with pytest.raises(ValueError, match=f"`max_concurrency` {words}"):
            SubprocessVectorizer(cartpoles(), max_concurrency=given)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ([True, False, True], TypeError, "must be a numpy array, got <class 'list'>"),
        (np.array([True]), ValueError, r"must have shape `\(3,\)`, got \(1,\)"),
        (np.array([[1, 1, 0]]), ValueError, r"must have shape `\(3,\)`, got \(1, 3\)"),
        (np.array([1, 1, 0]), TypeError, r"must have `dtype=np.bool_`, got int64"),
        (np.zeros(3, bool), ValueError, "must contain a boolean array with at least one True value"),
    ],
    ids=str,
)
def test_a_wrong_reset_mask_is_gymnasiums_error(mask, error, words):
    mine = SerialVectorizer(cartpoles(), autoreset_mode="Disabled")
    theirs = SyncVectorEnv(cartpoles(), autoreset_mode="Disabled")
    for envs in (mine, theirs):
        envs.reset()
        with pytest.raises(error, match=rf"`options\['reset_mask'\]` {words}"):
            envs.reset(options={"reset_mask": mask})
        envs.close()


# ---- what is not reset, what is told ----


def cartpole_that_was_reset(seed):
    env = gym.make("CartPole-v1", max_episode_steps=9)
    env.reset(seed=seed)
    return env


@every_class
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_an_env_that_its_factory_reset_is_stepped_at_once(make, mode):
    env_fns = [partial(cartpole_that_was_reset, seed) for seed in range(3)]
    mine, theirs = make(env_fns, autoreset_mode=mode), SyncVectorEnv(env_fns, autoreset_mode=mode)
    for _ in range(9):  # to the end; the reset after it is unseeded, but goes on with each env's generator
        assert_alike(mine.step([0, 1, 0]), theirs.step([0, 1, 0]))
    assert_alike(mine.step([0, 1, 0]), theirs.step([0, 1, 0]))
    mine.close()
    theirs.close()


@here_and_elsewhere
def test_an_env_that_needs_a_reset_says_so(make):
    envs = make(cartpoles())
    with pytest.raises(EnvError, match=r"env 0 failed in step .*ResetNeeded"):
        envs.step([0, 1, 0])
    envs.close()
    envs = make([CountingEnv] * 3, autoreset_mode="SameStep", episode_seed=counting_seed)
    with pytest.raises(ParlError, match="no episode has begun"):  # the runner's face is strict
        envs.send(np.zeros(3, int))
    envs.close()


def test_agents_that_nobody_reset_are_alive():
    envs = SerialVectorizer([TwoAgentEnv], autoreset_mode="SameStep")
    envs.call("reset")
    reward = envs.step(np.zeros((1, 2), int))[1]
    again = SerialVectorizer([TwoAgentEnv], autoreset_mode="SameStep")
    again.reset()
    np.testing.assert_array_equal(reward, again.step(np.zeros((1, 2), int))[1])
    assert reward.any()
    envs.close()
    again.close()


@here_and_elsewhere
@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Blackjack-v1"])
def test_what_ended_a_discrete_episode_is_of_the_type_that_gymnasium_gives(make, env_id):
    mine, theirs = (
        vectorize([partial(gym.make, env_id)] * 2, autoreset_mode="SameStep") for vectorize in (make, SyncVectorEnv)
    )
    mine.reset(seed=3)
    theirs.reset(seed=3)
    ended = 0
    for _ in range(12):
        got, expected = mine.step([1, 0]), theirs.step([1, 0])
        assert got[4].keys() == expected[4].keys()
        if "final_obs" in got[4]:
            ended += 1
            assert_alike(got[4]["final_obs"].tolist(), expected[4]["final_obs"].tolist())
    assert ended
    mine.close()
    theirs.close()


class Teller(Bounded):
    """Tells what it is told in its options."""

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        return obs, dict(options["infos"][seed])


@here_and_elsewhere
@pytest.mark.parametrize(
    "infos",
    [
        [
            {"i": 1, "f": 1.0, "none": None, "array": np.zeros(2), "space": spaces.Discrete(1), "text": "x"},
            {},
            {"i": 3},
        ],
        [
            {},
            {"flag": True, "nested": {"x": np.array([1, 2]), "deeper": {"y": 3.5}}},
            {"nested": {"x": np.ones(2, int)}},
        ],
        [{"list": [1, 2]}, {"late": "none before"}, {"late": "again"}],
    ],
    ids=["kinds", "nested", "late"],
)
def test_infos_are_merged_as_gymnasium_merges_them(make, infos):
    env_fns = [partial(Teller, spaces.Discrete(4))] * 3
    mine, theirs = make(env_fns), SyncVectorEnv(env_fns)
    told = [envs.reset(seed=[0, 1, 2], options={"infos": infos}) for envs in (mine, theirs)]
    assert_alike(*told)
    mine.close()
    theirs.close()


# ---- observation_mode ----


def nested(bound):
    return spaces.Dict(at=spaces.Box(0, bound, (2,), np.float32), pair=spaces.Tuple([spaces.Discrete(bound)] * 2))


@every_class
@pytest.mark.parametrize(
    "each",
    [
        [spaces.Box(0, bound, (5,), np.float32) for bound in (1, 2, 3)],
        [nested(bound) for bound in (2, 3, 4)],
    ],
    ids=["box", "dict"],
)
def test_spaces_that_differ_in_their_bounds_are_batched_as_gymnasium_batches_them(make, each):
    env_fns = [partial(Bounded, space) for space in each]
    theirs, mine = SyncVectorEnv(env_fns, observation_mode="different"), make(env_fns, observation_mode="different")
    assert mine.observation_space == theirs.observation_space
    assert mine.single_observation_space == theirs.single_observation_space == each[0]
    for _ in range(3):
        assert_alike(mine.reset(seed=4), theirs.reset(seed=4))
        assert_alike(mine.step([0, 0, 1]), theirs.step([0, 0, 1]))
        assert theirs.reset()[0] in mine.observation_space
    mine.close()
    theirs.close()


@here_and_elsewhere
def test_given_spaces_are_taken(make):
    env_fns = [partial(Bounded, spaces.Box(0, bound, (5,), np.float32)) for bound in (1, 2, 3)]
    given = spaces.Box(0, 3, (3, 5), np.float32), spaces.Box(0, 3, (5,), np.float32)
    envs = make(env_fns, observation_mode=given)
    assert (envs.observation_space, envs.single_observation_space) == given
    assert envs.reset(seed=1)[0] in given[0]
    envs.close()


def test_agents_spaces_may_differ_between_envs():
    class Wide(TwoAgentEnv):
        def __init__(self, bound):
            super().__init__()
            self.observation_space = spaces.Box(0, bound, (2,), np.float32)

    envs = SerialVectorizer([partial(Wide, bound) for bound in (3, 4, 5)], observation_mode="different")
    assert envs.observation_space.high[:, 1, 0].tolist() == [3, 4, 5]
    assert envs.reset()[0].shape == envs.observation_space.shape == (3, 2, 2)
    envs.close()


@pytest.mark.parametrize(
    ("odd", "mode", "words"),
    [
        (
            spaces.Box(0, 2, (5,), np.float32),
            "same",
            r"env 2: .*differs from env [01]'s .*not equivalent. If this is intentional, use `observation_mode='diff",
        ),
        (spaces.Box(0, 1, (4,), np.float32), "different", r"env 2: .*\(4,\).* differs from .*in more than bounds"),
        (spaces.Box(0, 1, (5,), np.float64), "different", r"env 2: .*float64\) differs from"),
        (spaces.Discrete(5), "different", r"env 2: its observation_space Discrete\(5\) differs from"),
        (spaces.Box(0, 1, (5,), np.float32), (spaces.Box(0, 1, (3, 4)), spaces.Box(0, 1, (4,))), r"env 0: .*\(5,\)"),
        (spaces.Text(3), "different", r"env 2: .*Text.* differs from"),
    ],
    ids=str,
)
def test_spaces_that_cannot_share_a_block_are_refused(odd, mode, words):
    env_fns = [partial(Bounded, spaces.Box(0, 1, (5,), np.float32))] * 2 + [partial(Bounded, odd)]
    for make in (SerialVectorizer, partial(ThreadVectorizer, num_workers=2)):
        with pytest.raises(ConfigError, match=words) as raised:
            make(env_fns, observation_mode=mode)
        assert isinstance(raised.value, RuntimeError)
        assert raised.value.exit_code == 2


@here_and_elsewhere
def test_a_space_without_an_array_is_refused_as_gymnasium_refuses_it_for_shared_memory(make):
    for gymnasiums in (TypeError, ValueError):  # of a dynamic shape; a class that it does not know
        with pytest.raises(gymnasiums, match=r"space Text\(1, 3.*: must be Box, .*has a dynamic shape") as raised:
            make([partial(Bounded, spaces.Text(3))] * 2)
        assert isinstance(raised.value, ConfigError)


# ---- halves ----


@every_class
def test_halves_give_what_the_whole_gives(make):
    halves, whole = make(cartpoles()), SerialVectorizer(cartpoles())
    halves.reset_async(seed=3)
    assert_alike(halves.reset_wait(timeout=60), whole.reset(seed=3))
    for _ in range(12):
        halves.step_async(np.array([0, 1, 0]))
        assert_alike(halves.step_wait(), whole.step(np.array([0, 1, 0])))
    halves.call_async("get_wrapper_attr", "gravity")
    assert halves.call_wait(timeout=60) == (9.8,) * 3
    halves.close()
    whole.close()


@here_and_elsewhere
def test_halves_that_do_not_match_are_refused_and_nothing_is_lost(make):
    envs = make([CountingEnv] * 3, autoreset_mode="SameStep", episode_seed=counting_seed)
    for kind in ("reset", "step", "call"):
        with pytest.raises(ParlError, match=f"`{kind}_wait` without any prior call to `{kind}_async`") as raised:
            getattr(envs, f"{kind}_wait")()
        assert isinstance(raised.value, NoAsyncCallError)
        assert raised.value.name == kind
    actions = np.zeros(3, int)
    begin = {
        "reset": envs.reset_async,
        "step": partial(envs.step_async, actions),
        "call": partial(envs.call_async, "length"),
    }
    for kind, ask in begin.items():
        ask()
        others = {
            "reset_async": envs.reset,
            "step_async": partial(envs.step, actions),
            "call_async": partial(envs.call, "length"),
            "send": partial(envs.send, actions),
            "begin": envs.begin,
            "set_attr": partial(envs.set_attr, "length", 3),
        }
        for method, other in others.items():
            words = rf"`{method}` while waiting for a pending call to `{kind}` to complete: call {kind}_wait\(\) first"
            with pytest.raises(ParlError, match=words) as raised:
                other()
            assert isinstance(raised.value, AlreadyPendingCallError)
            assert raised.value.name == kind
        with pytest.raises(ParlError, match="recv without send"):
            envs.recv()
        for wrong in begin.keys() - {kind}:
            with pytest.raises(ParlError, match=f"`{wrong}_wait` without"):
                getattr(envs, f"{wrong}_wait")()
        answer = getattr(envs, f"{kind}_wait")()
        if kind == "step":
            assert answer[0][:, 2].tolist() == [1, 1, 1]
    envs.send(actions)
    with pytest.raises(ParlError, match="`step_wait` without any prior call"):
        envs.step_wait()
    assert envs.recv().obs[:, 2].tolist() == [2, 2, 2]
    envs.step_async(actions)
    with pytest.warns(UserWarning, match="Calling `close` while waiting for a pending call to `step` to complete"):
        envs.close()
    with pytest.raises(ClosedEnvironmentError):
        envs.step_wait()


def test_a_wait_that_times_out_may_be_called_again():
    envs = ThreadVectorizer([partial(SleepEnv, step_s=0.1, reset_s=0.1)] * 2)
    envs.reset_async(seed=0)
    with pytest.raises(TimeoutError, match="groups of envs did not answer in time") as raised:
        envs.reset_wait(timeout=0.01)
    assert isinstance(raised.value, multiprocessing.TimeoutError)
    envs.reset_wait()
    envs.step_async(np.zeros(2, int))
    with pytest.raises(TimeoutError):
        envs.step_wait(timeout=0.01)
    assert envs.step_wait()[0][:, 2].tolist() == [1, 1]
    envs.close()


# ---- calls that fail ----


@here_and_elsewhere
def test_after_a_call_that_failed_envs_step_on(make):
    envs = make([CountingEnv] * 3)
    envs.reset(seed=0)
    with pytest.raises(EnvError, match=r"env 0 failed in no_such_thing .*: AttributeError"):
        envs.get_attr("no_such_thing")
    assert envs.step(np.zeros(3, int))[0][:, 2].tolist() == [1, 1, 1]
    envs.close()


def test_what_cannot_be_sent_is_refused_and_nobody_waits_for_an_answer():
    envs = SubprocessVectorizer([CountingEnv] * 4, num_workers=2, step_timeout_s=5)
    envs.reset(seed=0)
    unsendable = threading.Lock()
    for ask in (
        lambda: envs.call("get_wrapper_attr", unsendable),
        lambda: envs.set_attr("length", [3, 3, 3, unsendable]),
        lambda: envs.reset(options={"lock": unsendable}),
    ):
        with pytest.raises(ParlError, match=r"what was given to \w+ cannot be sent to a process \(TypeError"):
            ask()
    assert envs.step(np.zeros(4, int))[0][:, 2].tolist() == [1, 1, 1, 1]
    envs.close()


class Fragile(CountingEnv):
    """Env 3 ends its process when asked to, once."""

    def die(self, marker):
        if self.env_number == 3:
            FaultyEnv(exit_at=0, where="init", marker=marker)
        return self.env_number


def test_a_worker_lost_in_a_call_is_replaced_and_the_call_is_an_error(tmp_path):
    envs = SubprocessVectorizer(
        [Fragile] * 4, num_workers=2, max_restarts=2, autoreset_mode="SameStep", episode_seed=counting_seed
    )
    envs.reset()
    actions = np.zeros(4, int)
    with pytest.raises(EnvError, match="no_such_thing"):
        envs.call("no_such_thing")
    assert envs.restarts == 0  # what the caller did wrong is no failure of a worker
    with pytest.raises(WorkerError, match=r"worker 1 .*exited with code 3.*; it was replaced: call again"):
        envs.call("die", str(tmp_path / "marker"))
    assert envs.restarts == 1
    assert envs.call("die", str(tmp_path / "marker")) == (0, 1, 2, 3)
    obs, _, _, truncated, infos = envs.step(actions)
    assert truncated.tolist() == infos["lost"].tolist() == [False, False, True, True]
    assert obs[:, 2].tolist() == [1, 1, 0, 0]
    obs, _, _, _, infos = envs.step(actions)
    assert "lost" not in infos
    assert obs[:, 2].tolist() == [2, 2, 1, 1]
    envs.close()


# ---- wrappers ----


@here_and_elsewhere
def test_gymnasiums_vector_wrappers_do_on_top_what_they_do_on_its_own(make):
    def wrapped(envs):
        envs = wrappers.RecordEpisodeStatistics(envs)
        envs = wrappers.TransformReward(envs, lambda reward: 2 * reward)
        envs = wrappers.NormalizeReward(wrappers.NormalizeObservation(envs))
        return wrappers.DtypeObservation(wrappers.ClipReward(envs, -1, 1), np.float64)

    mine, theirs = (wrapped(vectorize(cartpoles())) for vectorize in (make, SyncVectorEnv))
    assert mine.observation_space == theirs.observation_space
    assert_alike(mine.reset(seed=5), theirs.reset(seed=5))
    ended = 0
    for t in range(40):
        actions = np.array([t % 2, 1, 0])
        (*got, infos), (*expected, their_infos) = mine.step(actions), theirs.step(actions)
        assert_alike(got, expected)
        assert infos.keys() == their_infos.keys()
        if "episode" in infos:
            np.testing.assert_array_equal(infos["_episode"], their_infos["_episode"])
            for key in ("r", "l"):
                np.testing.assert_array_equal(infos["episode"][key], their_infos["episode"][key])
            ended += int(infos["_episode"].sum())
    assert ended > 6
    mine.close()
    theirs.close()


def test_infos_can_be_made_a_list():
    envs = wrappers.DictInfoToList(SerialVectorizer(cartpoles(), autoreset_mode="SameStep"))
    envs.reset(seed=0)
    final = [info for _ in range(12) for info in envs.step(np.zeros(3, int))[4] if "final_obs" in info]
    assert final
    assert all(info["final_obs"].shape == (4,) for info in final)
    envs.close()
