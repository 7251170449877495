"""Batches that libraries bring, of every way to reset, brought to the runner's contract."""

import functools
import logging

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from parl_cli.config import EnvConfig
from parl_cli.envs.factory import EnvFactory, EpisodeSeeds
from parl_cli.envs.toy import CountingEnv, counting_length, counting_reward, counting_truncates
from parl_cli.errors import ConfigError, EnvError, ParlError
from parl_cli.types import EnvSpec
from parl_cli.vectorizers import NativeVectorizer
from tests.helpers.stubs import make_actor, make_policy

N = 5
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
every_mode = pytest.mark.parametrize("mode", list(AutoresetMode))


class CountingBatch(VectorEnv):
    """`CountingEnv` as a library would batch it: one buffer that is written over, and its own way to reset."""

    def __init__(self, mode=NEXT_STEP, num_envs=N, tells_final=True):
        probe = CountingEnv()
        self.metadata = {"autoreset_mode": mode}
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = probe.observation_space, probe.action_space
        self.observation_space = batch_space(probe.observation_space, num_envs)
        self.action_space = batch_space(probe.action_space, num_envs)
        self.mode, self.tells_final = mode, tells_final
        self.obs = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        self.seeds = []
        self.fails_at = None

    def reset(self, *, seed=None, options=None):
        if self.fails_at == "reset":
            raise OSError("the simulator is gone")
        if options is None:
            self.seeds.append(seed)
            self.obs[:] = [[env, 0, 0] for env in range(self.num_envs)]
            self.over = np.zeros(self.num_envs, bool)
        else:
            self._begin_next(options["reset_mask"])
        return self.obs, {}

    def _begin_next(self, envs):
        self.obs[envs, 1] += 1
        self.obs[envs, 2] = 0
        self.over = self.over & ~envs

    def step(self, actions):
        if self.fails_at == "step":
            raise OSError("the simulator is gone")
        assert not (self.over.any() and self.mode is DISABLED)
        reset = self.over
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for env, (_, episode, t) in enumerate(self.obs.astype(int).tolist()):
            if not reset[env]:
                reward[env] = counting_reward(env, episode, t, int(actions[env]))
                self.obs[env, 2] = t + 1
                over = t + 1 >= counting_length(env, episode)
                truncated[env] = over and counting_truncates(env, episode)
                terminated[env] = over and not truncated[env]
        self._begin_next(reset)
        self.over = terminated | truncated
        infos = {}
        if self.mode is SAME_STEP and self.over.any():
            if self.tells_final:
                infos["final_obs"] = self.obs.copy()
            self._begin_next(self.over)
        return self.obs, reward, terminated, truncated, infos


def native(batch, **options):
    return NativeVectorizer(batch, episode_seed=EpisodeSeeds(1), **options)


def play(vectorizer, steps, seed=0):
    """Every step, copied, with the actions that led to it."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        actions = rng.integers(vectorizer.single_action_space.n, size=vectorizer.num_envs)
        vectorizer.send(actions)
        yield actions, vectorizer.recv()


@every_mode
@pytest.mark.parametrize("cls", [CountingBatch, "gymnasium"])
def test_every_way_to_reset_gives_the_same_episodes(mode, cls):
    """Each env's real rows are its life without a gap; delivered and filler rows are all there are."""
    if cls == "gymnasium":
        batch = SyncVectorEnv([functools.partial(CountingEnv, env_index=env) for env in range(N)], autoreset_mode=mode)
    else:
        batch = CountingBatch(mode)
    vectorizer = native(batch)
    at = vectorizer.begin().astype(int)
    returns, rows, filler = np.zeros(N), 0, 0
    for actions, step in play(vectorizer, 60):
        assert step.env_ids.tolist() == list(range(N))
        assert step.reward.dtype == np.float32
        assert (step.filler == (step.ended & ~step.mask)).all()
        ends = step.ended.nonzero()[0].tolist()
        assert len(step.final_obs) == len(step.episode_return) == len(step.episode_length) == len(ends)
        for env in range(N):
            _, episode, t = at[env].tolist()
            over = step.mask[env] and t + 1 >= counting_length(env, episode)
            if not step.mask[env]:
                assert mode is NEXT_STEP
                assert (step.reward[env], step.terminated[env], step.truncated[env]) == (0, False, False)
                assert step.obs[env].tolist() == [env, episode + 1, 0]
                filler += 1
            else:
                reward = counting_reward(env, episode, t, int(actions[env]))
                assert step.reward[env] == reward
                returns[env] += reward
                assert step.truncated[env] == (over and counting_truncates(env, episode))
                assert step.terminated[env] == (over and not counting_truncates(env, episode))
                rows += 1
            assert step.ended[env] == (over or not step.mask[env])
            if over:
                k = ends.index(env)
                assert step.final_obs[k].tolist() == [env, episode, t + 1]
                assert step.episode_length[k] == t + 1
                assert step.episode_return[k] == returns[env]
                returns[env] = 0.0
                if mode is not NEXT_STEP:
                    assert step.obs[env].tolist() == [env, episode + 1, 0]
            elif step.mask[env]:
                assert step.obs[env].tolist() == [env, episode, t + 1]
        at = step.obs.astype(int)
    assert rows + filler == 60 * N
    assert (filler > 0) == (mode is NEXT_STEP)


@every_mode
def test_an_actor_tells_the_same_episodes_whatever_the_batch(mode):
    spec = EnvSpec("probe", CountingEnv().observation_space, CountingEnv().action_space)
    actor = make_actor(native(CountingBatch(mode)), make_policy(spec), num_steps=40)
    rollout = actor.collect()
    assert rollout.dropped_steps == 0
    assert rollout.num_env_steps == int(rollout.mask.sum()) <= 40 * N
    for env in range(N):
        real = rollout.mask[:, env]
        life = rollout.obs[real, env].tolist()
        episodes = [e for e in rollout.episodes if e.env_id == env]
        assert [e.length for e in episodes] == [counting_length(env, k) for k in range(len(episodes))]
        expected = [[env, k, t] for k in range(len(episodes) + 1) for t in range(counting_length(env, k))]
        assert life == expected[: len(life)]
    for (t, env), final in zip(rollout.final_index.tolist(), rollout.final_obs.tolist(), strict=True):
        assert final == (rollout.obs[t, env] + rollout.obs.new_tensor([0, 0, 1])).tolist()
        assert bool(rollout.is_first[t + 1, env] if t < 39 else rollout.last_is_first[env])


def test_where_nothing_tells_the_final_observation_the_one_before_stands_in(caplog):
    vectorizer = native(CountingBatch(SAME_STEP, tells_final=False))
    at = vectorizer.begin().astype(int)
    truncations = 0
    with caplog.at_level(logging.WARNING):
        for _, step in play(vectorizer, 40):
            assert step.final_obs.tolist() == at[step.ended].tolist()
            at = step.obs.astype(int)
            truncations += int(step.truncated.sum())
            assert len(caplog.records) == (truncations > 0)
    assert truncations > 1
    assert "tells no final_obs; at a time limit the one before it stands in" in caplog.text


def test_a_cartpole_is_the_bare_one():
    seeds = EpisodeSeeds(7)
    vectorizer = NativeVectorizer([EnvFactory(EnvConfig(id="CartPole-v1"))] * 8, episode_seed=seeds)
    bare = gym.make_vec("CartPole-v1", 8, vectorization_mode="vector_entry_point")
    assert vectorizer.spec.id == "CartPole-v1"
    obs, _ = bare.reset(seed=seeds(0, 0) >> 1)
    np.testing.assert_array_equal(vectorizer.begin(), obs)
    over, returns, ends = np.zeros(8, bool), np.zeros(8), 0
    for actions, step in play(vectorizer, 300):
        obs, reward, terminated, truncated, _ = bare.step(actions)
        for mine, theirs in ((step.obs, obs), (step.reward, reward), (step.terminated, terminated)):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(step.truncated, truncated)
        np.testing.assert_array_equal(step.mask, ~over)
        returns[over] = 0
        returns += reward
        np.testing.assert_array_equal(step.ended, over | terminated | truncated)
        np.testing.assert_array_equal(step.final_obs, obs[step.ended])
        np.testing.assert_array_equal(step.episode_return, returns[step.ended])
        np.testing.assert_array_equal(step.episode_length, returns[step.ended])
        over = terminated | truncated
        ends += int(over.sum())
    assert ends > 50
    vectorizer.close()


def test_the_first_env_s_episode_decides_on_the_seed():
    batch = CountingBatch()
    vectorizer = native(batch)
    assert vectorizer.episode_numbers.tolist() == [-1] * N
    vectorizer.begin()
    vectorizer.begin(np.arange(N) + 3)
    assert vectorizer.episode_numbers.tolist() == [3, 4, 5, 6, 7]
    assert batch.seeds == [EpisodeSeeds(1)(0, 0) >> 1, EpisodeSeeds(1)(0, 3) >> 1]
    assert all(seed < 2**31 for seed in batch.seeds)
    NativeVectorizer(batch).begin()
    assert batch.seeds[2] is None


def test_begin_starts_from_nothing():
    vectorizer = native(CountingBatch())
    vectorizer.begin()
    list(play(vectorizer, 3))  # an env is about to rest, others are in the middle
    vectorizer.send(np.zeros(N, int))
    vectorizer.begin()
    first = {}
    for _, step in play(vectorizer, 12):
        assert step.mask.all() or first
        for env, length in zip(step.ended.nonzero()[0].tolist(), step.episode_length.tolist(), strict=True):
            first.setdefault(env, length)
    assert first == {env: counting_length(env, 0) for env in range(N)}


def test_gymnasium_s_face_is_the_batch_s_own():
    batch = CountingBatch()
    vectorizer = NativeVectorizer(batch)
    assert isinstance(vectorizer, VectorEnv)
    assert vectorizer.observation_space == batch.observation_space
    assert vectorizer.metadata == batch.metadata
    assert vectorizer.metadata is not batch.metadata
    assert vectorizer.reset(seed=4)[0].tolist() == batch.obs.tolist()
    assert batch.seeds == [4]
    obs, reward, *_ = vectorizer.step(np.ones(N, int))
    assert obs[:, 2].tolist() == [1] * N
    assert reward.dtype == np.float64
    vectorizer.set_attr("fails_at", "never")
    assert (vectorizer.get_attr("fails_at"), vectorizer.call("mode")) == ("never", NEXT_STEP)
    assert vectorizer.call("reset", seed=6)[1] == {}


def test_misuse_is_told_in_one_line():
    vectorizer = native(CountingBatch())
    with pytest.raises(ParlError, match=r"call begin\(\) first"):
        vectorizer.send(np.zeros(N, int))
    vectorizer.begin()
    with pytest.raises(ParlError, match="recv without send"):
        vectorizer.recv()
    with pytest.raises(ParlError, match="steps all envs at once"):
        vectorizer.send(np.zeros(1, int), np.array([1]))
    with pytest.raises(ValueError, match=r"actions have shape \(2,\): must be \(5,\)"):
        vectorizer.send(np.zeros(2, int))
    vectorizer.send(np.zeros(N, int))
    with pytest.raises(ParlError, match="not answered yet"):
        vectorizer.send(np.zeros(N, int))
    vectorizer.close()
    vectorizer.close()
    with pytest.raises(ParlError, match="closed"):
        vectorizer.send(np.zeros(N, int))


@pytest.mark.parametrize("method", ["step", "reset"])
def test_a_library_that_fails_is_told_with_its_traceback_and_can_begin_again(method):
    batch = CountingBatch(DISABLED)
    vectorizer = native(batch)
    vectorizer.begin()
    batch.fails_at = method
    with pytest.raises(EnvError, match=rf"failed in {method}: OSError: the simulator is gone\n\nTraceback"):
        list(play(vectorizer, 9))
    with pytest.raises(ParlError, match=r"the last call failed: call begin\(\) first"):
        vectorizer.send(np.zeros(N, int))
    batch.fails_at = None
    vectorizer.begin()
    vectorizer.send(np.zeros(N, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1] * N


def test_an_observation_that_is_not_as_declared_is_refused():
    batch = CountingBatch()
    batch.obs = batch.obs.astype(np.float64)
    words = (
        r"broke its contract in reset: observations are float64 \[5, 3\]; must be float32 \[5, 3\] \(seed \d+, step 0"
    )
    with pytest.raises(EnvError, match=words):
        native(batch).begin()


def put(index, env, value):
    """A fault that writes a value into an array of what a step gives."""

    def fault(answer):
        answer[index][env] = value
        return answer

    return fault


def replaced(index, change):
    """A fault that puts another array in the place of one."""
    return lambda answer: (*answer[:index], change(answer[index]), *answer[index + 1 :])


class FaultyBatch(CountingBatch):
    """Whose answers are spoilt by `fault` from step 3 on."""

    def __init__(self, mode, fault):
        super().__init__(mode)
        self.fault, self.steps = fault, 0

    def step(self, actions):
        answer = super().step(actions)
        self.steps += 1
        return self.fault(answer) if self.steps >= 3 else answer


FAULTS = {
    "shape": (replaced(0, lambda obs: obs[:2]), r"observations are float32 \[2, 3\]; must be float32 \[5, 3\]"),
    "dtype": (replaced(0, lambda obs: obs.astype(np.float64)), r"observations are float64 \[5, 3\]; must be float32"),
    "a list": (replaced(0, lambda obs: obs.tolist()), r"observations are float64 \[5, 3\]; must be float32"),
    "rewards": (replaced(1, lambda reward: reward[:, None]), r"rewards are float64 \[5, 1\]; must be a number per env"),
    "words": (replaced(1, lambda reward: reward.astype(str)), r"rewards are <U32 \[5\]; must be a number per env"),
    "flags": (
        replaced(2, lambda flags: flags.astype(int)),
        r"terminated is int64 \[5\], truncated bool \[5\]; must be bool \[5\]",
    ),
    "a flag": (replaced(3, lambda flags: True), r"terminated is bool \[5\], truncated bool \[\]; must be bool \[5\]"),
    "NaN": (put(0, 1, np.nan), r"observation of env 1 holds NaN"),
    "NaN reward": (put(1, 4, np.nan), r"reward nan of env 4 is not a finite float32"),
    "large reward": (put(1, 2, -1e39), r"reward -1e\+39 of env 2 is not a finite float32"),
}


@every_mode
@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_a_step_that_is_not_as_declared_is_told_with_what_and_when(fault, words, mode):
    vectorizer = native(FaultyBatch(mode, fault))
    vectorizer.begin()
    seed = EpisodeSeeds(1)(0, 0) >> 1
    steps = play(vectorizer, 9)
    next(steps), next(steps)
    with pytest.raises(EnvError, match=rf"broke its contract in step: {words}.* \(seed {seed}, step 3[,) ]"):
        next(steps)
    with pytest.raises(ParlError, match=r"the last call failed: call begin\(\) first"):
        vectorizer.send(np.zeros(N, int))
    vectorizer.env.fault = lambda answer: answer
    vectorizer.begin()
    assert len(list(play(vectorizer, 9))) == 9


def test_an_answer_that_lacks_a_part_is_a_failed_step():
    vectorizer = native(FaultyBatch(DISABLED, lambda answer: answer[:4]))
    vectorizer.begin()
    with pytest.raises(EnvError, match=r"failed in step: ValueError: not enough values to unpack.*\n\nTraceback"):
        list(play(vectorizer, 9))


def spoil_ended(flag, of_final):
    """Write NaN into what an episode's last step led to, where `flag` (2: terminated, 3: truncated) ended it."""

    def fault(answer):
        if answer[flag].any():
            (answer[4]["final_obs"] if of_final else answer[0])[answer[flag], 2] = np.nan
        return answer

    return fault


@every_mode
def test_nan_that_a_terminal_step_led_to_is_let_through_and_at_a_time_limit_it_is_not(mode):
    vectorizer = native(FaultyBatch(mode, spoil_ended(2, of_final=mode is SAME_STEP)))
    vectorizer.begin()
    seen = 0
    for _, step in play(vectorizer, 40):
        seen += np.isnan(step.final_obs).any(axis=1).sum()
        assert not np.isnan(step.obs).any()  # nothing acts on it
        np.nan_to_num(vectorizer.env.obs, copy=False)  # this batch counts in it
    assert seen > 0
    vectorizer = native(FaultyBatch(mode, spoil_ended(3, of_final=mode is SAME_STEP)))
    vectorizer.begin()
    with pytest.raises(
        EnvError, match=r"(observation|final_obs) of env \d holds NaN \(seed \d+, step \d+, action \d of"
    ):
        list(play(vectorizer, 40))


def test_nan_after_a_reset_is_told():
    batch = CountingBatch()
    vectorizer = native(batch)
    reset = batch.reset
    batch.reset = lambda **kwargs: (
        reset(**kwargs)[0] * np.where(np.arange(N) == 3, np.nan, 1)[:, None].astype("f4"),
        {},
    )
    with pytest.raises(EnvError, match="broke its contract in reset: observation of env 3 holds NaN"):
        vectorizer.begin()


def test_a_final_observation_of_another_shape_is_told():
    def fault(answer):
        if "final_obs" in answer[4]:
            answer[4]["final_obs"] = answer[4]["final_obs"][:, :2]
        return answer

    vectorizer = native(FaultyBatch(SAME_STEP, fault))
    vectorizer.begin()
    with pytest.raises(
        EnvError, match=r"final_obs of those that ended are float32 \[\d, 2\]; must be float32 \[\d, 3\]"
    ):
        list(play(vectorizer, 40))


def test_what_has_no_batch_is_a_config_error():
    with pytest.raises(ConfigError, match=r"has no make_vec\(num_envs, backend\); use vectorizer=serial"):
        NativeVectorizer([CountingEnv] * 2)
    with pytest.raises(ConfigError, match="num_envs=0: must be at least 1"):
        NativeVectorizer([])
    batch = CountingBatch()
    batch.metadata = {}
    with pytest.raises(ConfigError, match="does not say how it resets"):
        NativeVectorizer(batch)
    batch = CountingBatch()
    batch.single_observation_space = spaces.Dict(a=spaces.Discrete(2))
    with pytest.raises(ConfigError, match=r"observation space Dict.*: must be Box, Discrete"):
        NativeVectorizer(batch)
    assert batch.closed
