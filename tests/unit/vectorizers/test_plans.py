from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from parl_cli.envs.toy import CountingEnv, FaultyEnv, TwoAgentEnv, counting_length, counting_reward, counting_seed
from parl_cli.errors import ConfigError, EnvError
from parl_cli.vectorizers.blocks import Blocks, make_layout
from parl_cli.vectorizers.carry_out import carry_out
from parl_cli.vectorizers.plans import EnvPlans


class Group:
    """Envs whose plans are carried out as they are asked for."""

    def __init__(self, *args):
        self.plans = EnvPlans(*args)

    def __getattr__(self, name):
        return lambda *args, **kwargs: carry_out(getattr(self.plans, name)(*args, **kwargs))


def make_group(*env_fns, mode=AutoresetMode.SAME_STEP, first_id=0, episode_seed=counting_seed):
    group = Group(env_fns, first_id, mode, episode_seed)
    about = group.make()
    blocks = Blocks.plain(make_layout(about.observation_space, about.action_space, len(env_fns), about.num_agents))
    group.attach(blocks)
    blocks.episode_numbers[:] = 0
    group.begin()
    return group, blocks


class Scripted(gym.Env):
    """Steps return what the test wrote into `results`."""

    def __init__(self, *results, space=None, action_space=None, first=None):
        self.observation_space = space or spaces.Box(-9, 9, (3,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.results = list(results)
        self.first = np.zeros(self.observation_space.shape, self.observation_space.dtype) if first is None else first
        self.seen = []

    def reset(self, *, seed=None, options=None):
        return self.first, {}

    def step(self, action):
        self.seen.append(action)
        return self.results.pop(0)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_episodes_are_seeded_by_env_and_number_and_counted_up_at_the_autoreset():
    group, blocks = make_group(CountingEnv, CountingEnv, first_id=5)
    assert blocks.obs.tolist() == [[5, 0, 0], [6, 0, 0]]
    for _ in range(counting_length(5, 0)):
        group.step()
    assert blocks.episode_numbers[0] == 1
    assert blocks.obs[0].tolist() == [5, 1, 0]
    assert blocks.final_obs[0].tolist() == [5, 0, counting_length(5, 0)]
    assert blocks.ended[0]


def test_the_final_info_is_not_overwritten_by_an_env_that_uses_its_dict_again():
    class OneDict(CountingEnv):
        def __init__(self):
            super().__init__()
            self.info = {}

        def reset(self, **kwargs):
            obs, _ = super().reset(**kwargs)
            self.info.clear()
            return obs, self.info

        def step(self, action):
            *results, _ = super().step(action)
            self.info["steps"] = self.info.get("steps", 0) + 1
            return *results, self.info

    group, _ = make_group(OneDict)
    length = counting_length(0, 0)
    told = [group.step(want_infos=True) for _ in range(length)]
    assert told[-1] == [(0, {"steps": length}, {})]


def test_return_and_length_add_up_the_rewards_of_the_episode():
    group, blocks = make_group(CountingEnv)
    length = counting_length(0, 0)
    for t in range(length):
        blocks.action[:] = t % 4
        group.step()
    assert blocks.episode_length[0] == length
    assert blocks.episode_return[0] == sum(counting_reward(0, 0, t, t % 4) for t in range(length))


def test_return_accumulates_in_float64_although_rewards_are_float32():
    steps = [(zeros(3), np.float32(0.1), False, i == 999, {}) for i in range(1000)]
    group, blocks = make_group(lambda: Scripted(*steps))
    for _ in range(1000):
        group.step()
    assert blocks.episode_return[0] == pytest.approx(1000 * float(np.float32(0.1)), rel=1e-12)


def test_a_recorder_below_the_reward_wrappers_decides_return_and_length():
    info = {"episode": {"r": 123.0, "l": 40}}
    group, blocks = make_group(lambda: Scripted((zeros(3), 1.0, True, False, info)))
    group.step()
    assert (blocks.episode_return[0], blocks.episode_length[0]) == (123.0, 40)


def test_the_final_observation_survives_an_env_that_reuses_its_array():
    class Reusing(Scripted):
        def reset(self, *, seed=None, options=None):
            self.first[:] = 0
            return self.first, {}

        def step(self, action):
            self.first[:] = 4
            return self.first, 0.0, True, False, {}

    group, blocks = make_group(Reusing)
    group.step()
    assert blocks.final_obs[0].tolist() == [4, 4, 4]
    assert blocks.obs[0].tolist() == [0, 0, 0]


def test_discrete_actions_arrive_as_samples_of_the_space_do_and_arrays_as_copies():
    """So an env may ask for `action.item()`, as it can in Gymnasium's vector envs."""
    env = Scripted((zeros(3), 0.0, False, False, {}))
    group, blocks = make_group(lambda: env)
    group.step()
    assert type(env.seen[0]) is type(env.action_space.sample()) is np.int64
    env = Scripted((zeros(3), 0.0, False, False, {}), action_space=spaces.Box(-1, 1, (2,), np.float32))
    group, blocks = make_group(lambda: env)
    blocks.action[:] = 0.5
    group.step()
    blocks.action[:] = -1.0
    assert env.seen[0].tolist() == [0.5, 0.5]


def test_only_the_rows_asked_for_are_stepped():
    group, blocks = make_group(CountingEnv, CountingEnv, CountingEnv)
    group.step([0, 2])
    assert blocks.obs[:, 2].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (zeros(1), r"observation has shape \(1,\); the observation space says \(3,\)"),
        (zeros(1, 3), r"shape \(1, 3\)"),
        (0.0, r"shape \(\)"),
        (zeros(3, dtype=np.complex64), "dtype complex64; the observation space says float32"),
        (np.array(["a", "b", "c"]), "dtype <U1"),
    ],
)
def test_an_observation_that_numpy_would_bend_into_shape_is_refused(obs, words):
    group, _ = make_group(lambda: Scripted((obs, 0.0, False, False, {})))
    with pytest.raises(EnvError, match=words):
        group.step()


def test_a_wrong_first_observation_is_refused_too():
    with pytest.raises(
        EnvError, match=r"env 0 failed in reset \(seed 0, episode 0, step 1\): ValueError: .*shape \(2,\)"
    ):
        make_group(lambda: Scripted(first=zeros(2)))


def test_observations_of_the_same_kind_are_converted():
    group, blocks = make_group(lambda: Scripted(([1, 2, 3], 0.0, False, False, {}), first=zeros(3, dtype=np.float64)))
    group.step()
    assert blocks.obs.tolist() == [[1, 2, 3]]
    group, blocks = make_group(
        lambda: Scripted((4, 0.0, False, False, {}), space=spaces.Discrete(9), first=np.int64(2))
    )
    assert blocks.obs.tolist() == [2]
    group.step()
    assert blocks.obs.tolist() == [4]


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_reward_that_is_no_finite_float32_names_env_and_moment(reward):
    fine, bad = (zeros(3), 0.0, False, False, {}), (zeros(3), reward, False, False, {})
    group, blocks = make_group(lambda: Scripted(fine, fine), lambda: Scripted(fine, bad), first_id=7)
    group.step()
    blocks.action[:] = [0, 1]
    with pytest.raises(
        EnvError, match=r"env 8 broke its contract: reward .* \(seed 8000, episode 0, step 2, action 1\)"
    ):
        group.step()


class Named(Scripted):
    """Observations are in a dict."""

    def __init__(self, *results, **options):
        super().__init__(
            *results, space=spaces.Dict(x=spaces.Box(-np.inf, np.inf, (3,)), n=spaces.Discrete(9)), **options
        )


NAN = np.array([0, np.nan, 0], np.float32)


@pytest.mark.parametrize(
    ("make", "fine", "bad"),
    [
        (Scripted, zeros(3), NAN),
        (partial(Scripted, space=spaces.Box(-1, 1, (3,), np.float16), first=zeros(3)), zeros(3), NAN),
        (
            partial(Scripted, space=spaces.Box(-1, 1, (300,)), first=zeros(300)),
            zeros(300),
            np.full(300, np.nan, np.float32),
        ),
        (partial(Named, first={"x": zeros(3), "n": 1}), {"x": zeros(3), "n": 1}, {"x": NAN, "n": 1}),
    ],
    ids=["small", "half", "large", "dict"],
)
def test_nan_in_an_observation_names_env_and_moment(make, fine, bad):
    good, bad = (fine, 0.0, False, False, {}), (bad, 0.0, False, False, {})
    group, blocks = make_group(lambda: make(good, good), lambda: make(good, bad), first_id=7)
    group.step()
    blocks.action[:] = [0, 1]
    with pytest.raises(
        EnvError,
        match=r"env 8 broke its contract: observation holds NaN \(seed 8000, episode 0, step 2, action 1\)",
    ):
        group.step()


def test_nan_in_a_first_observation_is_told():
    with pytest.raises(EnvError, match=r"env 0 broke its contract in reset: observation holds NaN"):
        make_group(lambda: Scripted((zeros(3), 0.0, False, False, {}), first=NAN))


def test_nan_that_ends_an_episode_and_infinity_are_let_through():
    """A simulation that went wrong ends so; a space without bounds allows infinity."""
    inf = np.array([np.inf, -np.inf, 0], np.float32)
    group, blocks = make_group(lambda: Scripted((inf, 0.0, False, False, {}), (NAN, 0.0, True, False, {})))
    group.step()
    assert blocks.obs[0].tolist() == inf.tolist()
    group.step()
    assert blocks.ended.all()
    assert np.isnan(blocks.final_obs[0, 1])


def test_the_largest_float32_reward_is_let_through():
    group, blocks = make_group(lambda: Scripted((zeros(3), 3.4e38, False, False, {})))
    group.step()
    assert blocks.reward[0] == 3.4e38


def test_an_error_names_env_seed_episode_step_and_action_and_keeps_the_traceback():
    group, blocks = make_group(CountingEnv, lambda: FaultyEnv(raise_at=4), first_id=2)
    for _ in range(4):
        group.step()
    blocks.action[:] = 3
    with pytest.raises(EnvError) as caught:
        group.step()
    first_line, _, rest = str(caught.value).partition("\n")
    steps_done = 4 - counting_length(3, 0) if counting_length(3, 0) <= 4 else 4
    episode = int(counting_length(3, 0) <= 4)
    where = f"(seed {counting_seed(3, episode)}, episode {episode}, step {steps_done + 1}, action 3)"
    assert first_line.startswith(f"env 3 failed in step {where}: RuntimeError")
    assert "Traceback" in rest
    assert "toy.py" in rest


def test_an_env_that_calls_exit_is_an_error_of_that_env():
    class Leaving(Scripted):
        def step(self, action):
            raise SystemExit(3)

    group, _ = make_group(Leaving)
    with pytest.raises(EnvError, match=r"env 0 failed in step.*SystemExit: 3"):
        group.step()


def test_a_failed_constructor_closes_the_envs_made_before_it():
    closed = []

    class Closing(Scripted):
        def close(self):
            closed.append(True)

    with pytest.raises(EnvError, match="env 1 could not be made: RuntimeError"):
        make_group(Closing, lambda: FaultyEnv(raise_at=0, where="init"))
    assert closed == [True]


def test_a_factory_that_returns_no_env_is_named():
    with pytest.raises(EnvError, match="env 0 could not be made: TypeError: the factory returned dict"):
        make_group(dict)


def test_envs_with_other_spaces_are_refused():
    with pytest.raises(ConfigError, match=r"env 1: its observation_space .* differs from env 0's Box"):
        make_group(CountingEnv, Scripted)


def test_a_dead_agents_filler_is_of_the_space():
    class Counted(TwoAgentEnv):
        """Observations are numbers from 3 on."""

        def __init__(self):
            super().__init__(length=4, death_at=2)
            self.observation_space = spaces.Discrete(9, start=3)

        def reset(self, **options):
            obs, info = super().reset(**options)
            return obs[:, 1].astype(np.int64) + 3, info

        def step(self, action):
            obs, *rest = super().step(action)
            return obs[:, 1].astype(np.int64) + 3, *rest

    group, blocks = make_group(Counted)
    for _ in range(3):
        group.step()
    assert blocks.mask[0].tolist() == [True, False]
    assert blocks.obs[0].tolist() == [6, 3]


@pytest.mark.parametrize("filler", [0.0, float("nan")])
def test_a_dead_agents_rows_are_masked_until_the_reset(filler):
    group, blocks = make_group(lambda: TwoAgentEnv(length=4, death_at=2, filler=filler))
    masks, rewards, ends = [], [], []
    for _ in range(5):
        group.step()
        masks.append(blocks.mask[0].tolist())
        rewards.append(blocks.reward[0].tolist())
        ends.append((blocks.terminated[0].tolist(), bool(blocks.ended[0])))
    alive, dead = [True, True], [True, False]
    assert masks == [alive, alive, dead, dead, alive]
    assert rewards == [[1, 2], [1, 2], [1, 0], [1, 0], [1, 2]]
    assert ends == [
        ([False, False], False),
        ([False, True], False),
        ([False, False], False),
        ([True, False], True),
        ([False, False], False),
    ]
    assert blocks.episode_return[0].tolist() == [4, 4]
    assert blocks.episode_length[0] == 4


def test_a_multi_agent_reward_must_be_one_per_agent():
    class OneReward(TwoAgentEnv):
        def step(self, action):
            obs, _, terminated, truncated, info = super().step(action)
            return obs, 1.0, terminated, truncated, info

    group, _ = make_group(OneReward)
    with pytest.raises(EnvError, match=r"reward has shape \(\); one per agent is \(2,\)"):
        group.step()


def test_next_step_mode_resets_instead_of_stepping():
    ending = (zeros(3) + 1, 5.0, True, False, {})
    env = Scripted(ending, ending)
    group, blocks = make_group(lambda: env, mode=AutoresetMode.NEXT_STEP)
    group.step()
    assert (blocks.obs[0].tolist(), blocks.reward[0], bool(blocks.terminated[0])) == ([1, 1, 1], 5.0, True)
    group.step()
    assert (blocks.obs[0].tolist(), blocks.reward[0], bool(blocks.terminated[0])) == ([0, 0, 0], 0.0, False)
    assert len(env.seen) == 1
    group.step()
    assert len(env.seen) == 2


def test_close_closes_all_and_reports_the_first_fault():
    closed = []

    class Grumbling(Scripted):
        def close(self):
            closed.append(True)
            raise OSError("stuck")

    group, _ = make_group(Grumbling, Grumbling)
    with pytest.raises(EnvError, match="env 0 failed in close: OSError: stuck"):
        group.close()
    assert len(closed) == 2
    group.close()
