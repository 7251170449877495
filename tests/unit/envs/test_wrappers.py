from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from parl_cli import registry
from parl_cli.config import EnvConfig, parse
from parl_cli.envs import toy, wrappers
from parl_cli.envs.gymnasium_adapter import make_env
from parl_cli.envs.raw_return import RawReturn, ReportRawReturn
from parl_cli.errors import ConfigError


class EchoEnv(gym.Env[Any, Any]):
    """Observes t (in a shape and dtype given), pays t * pay, remembers the last action; ends after `length`."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation_space, action_space=None, length=3, pay=1.0):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.pay = length, pay
        self.t, self.action = 0, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        self.action = action
        return self._obs(), self.t * self.pay, self.t >= self.length, False, {}

    def _obs(self):
        return np.full(self.observation_space.shape, self.t, self.observation_space.dtype)


def vector_env(**kwargs):
    return EchoEnv(spaces.Box(0, 9, (2,), np.float32), **kwargs)


def box2d_env(env_id="BipedalWalker-v3", **kwargs):
    pytest.importorskip("Box2D")
    env = make_env(EnvConfig(id=env_id, kwargs=kwargs)).unwrapped
    env.spec = None  # as if it were not made by gym.make, like the others here
    return env


def wrap(env, name, **options):
    cls = registry.load("wrapper", name)
    return cls(env, parse(cls.Config, options, name))


def rollout(env, actions):
    obs, _ = env.reset(seed=0)
    return obs, [env.step(action) for action in actions]


BOX_ACTIONS = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))

CONTRACT_CASES = {
    "frame_stack": (vector_env, {"num": 3}),
    "flatten_obs": (lambda: EchoEnv(spaces.Box(0, 9, (2, 3), np.float64)), {}),
    "select_obs": (vector_env, {"indices": [1]}),
    "obs_scale": (vector_env, {"subtract": [1, 2], "scale": -3.0}),
    "reward_clip": (vector_env, {}),
    "reward_scale": (vector_env, {"scale": 2.0, "shift": 1.0}),
    "action_rescale": (lambda: vector_env(action_space=BOX_ACTIONS), {}),
    "action_clip": (lambda: vector_env(action_space=BOX_ACTIONS), {}),
    "action_repeat": (vector_env, {"num": 2}),
    "fresh_world": (box2d_env, {}),
    "time_limit": (vector_env, {"max_episode_steps": 2}),
}


def test_every_registered_wrapper_of_the_house_is_tested():
    own = [n for n in registry.names("wrapper") if registry.load("wrapper", n).__module__ == wrappers.__name__]
    assert sorted(own) == sorted(CONTRACT_CASES)


# a wrapped env is what is checked here; it is not made by gym.make, so there are no render modes to compare;
# and an action space without bounds is the very point of action_clip
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.filterwarnings("ignore:.*A Box action space (maximum|minimum) value is (-)?infinity")
@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
@pytest.mark.parametrize("name", sorted(CONTRACT_CASES))
def test_wrapped_env_keeps_the_gymnasium_contract(name):
    make, options = CONTRACT_CASES[name]
    check_env(wrap(make(), name, **options))


@pytest.mark.parametrize("name", sorted(CONTRACT_CASES))
def test_every_wrapper_has_a_documented_config_and_is_named_as_registered(name):
    cls = registry.load("wrapper", name)
    assert cls.name == name
    assert cls.__doc__
    assert all(field.metadata["doc"] for field in cls.Config.__dataclass_fields__.values())


def test_frame_stack_repeats_the_first_obs_and_appends_the_newest_last():
    env = wrap(vector_env(), "frame_stack", num=3)
    first, steps = rollout(env, [0, 0])
    np.testing.assert_array_equal(first, [[0, 0]] * 3)
    np.testing.assert_array_equal(steps[0][0], [[0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(steps[1][0], [[0, 0], [1, 1], [2, 2]])
    assert env.observation_space == spaces.Box(0, 9, (3, 2), np.float32)


def test_frame_stack_forgets_the_last_episode_at_reset():
    env = wrap(vector_env(), "frame_stack", num=2)
    rollout(env, [0, 0, 0])
    np.testing.assert_array_equal(env.reset(seed=0)[0], [[0, 0], [0, 0]])


def test_frame_stack_along_the_last_axis_joins_channels():
    env = wrap(EchoEnv(spaces.Box(0, 255, (4, 5, 3), np.uint8)), "frame_stack", num=2, axis="last")
    _, steps = rollout(env, [0])
    assert env.observation_space == spaces.Box(0, 255, (4, 5, 6), np.uint8)
    np.testing.assert_array_equal(steps[0][0], np.repeat(np.array([0, 1], np.uint8), 3) * np.ones((4, 5, 1), np.uint8))


def test_frame_stack_hands_out_observations_that_later_steps_leave_alone():
    env = wrap(vector_env(), "frame_stack", num=2)
    first, steps = rollout(env, [0, 0, 0])
    np.testing.assert_array_equal(first, [[0, 0], [0, 0]])
    np.testing.assert_array_equal(steps[0][0], [[0, 0], [1, 1]])


def test_frame_stack_keeps_agents_in_front():
    env = wrap(toy.TwoAgentEnv(), "frame_stack", num=2)
    _, steps = rollout(env, [np.array([0, 0])])
    np.testing.assert_array_equal(steps[0][0], [[[0, 0], [0, 1]], [[1, 0], [1, 1]]])
    joined = wrap(toy.TwoAgentEnv(), "frame_stack", num=2, axis="last")
    np.testing.assert_array_equal(rollout(joined, [np.array([0, 0])])[1][0][0], [[0, 0, 0, 1], [1, 0, 1, 1]])


class DictEnv(EchoEnv):
    def __init__(self):
        super().__init__(spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float64)}))

    def _obs(self):
        return {"a": np.int64(2), "b": np.array([0.25, -0.5])}


def test_flatten_obs_makes_one_float32_vector_with_one_hot_classes():
    env = wrap(DictEnv(), "flatten_obs")
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, np.array([0, 0, 1, 0.25, -0.5], np.float32))
    assert obs.dtype == np.float32
    assert env.observation_space == spaces.Box(
        np.array([0, 0, 0, -1, -1], np.float32), np.array([1, 1, 1, 1, 1], np.float32)
    )


def test_flatten_obs_flattens_each_agent_by_itself():
    env = wrap(wrap(toy.TwoAgentEnv(), "frame_stack", num=2), "flatten_obs")
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, [[0, 0, 0, 0], [1, 0, 1, 0]])


def test_flatten_obs_refuses_observations_without_a_fixed_size():
    env = EchoEnv(spaces.Sequence(spaces.Discrete(3)))
    with pytest.raises(ConfigError, match="flatten_obs needs observations of a fixed size, not Sequence"):
        wrap(env, "flatten_obs")


class RangeEnv(EchoEnv):
    """Observes (t, t + 1, t + 2, t + 3), each number with bounds of its own."""

    def __init__(self):
        super().__init__(spaces.Box(np.arange(4.0) - 9, np.arange(4.0) + 9, dtype=np.float64))

    def _obs(self):
        return self.t + np.arange(4.0)


def test_select_obs_keeps_the_chosen_numbers_in_the_order_given_with_their_bounds_and_dtype():
    env = wrap(RangeEnv(), "select_obs", indices=[3, 1])
    first, steps = rollout(env, [0])
    np.testing.assert_array_equal(first, [3, 1])
    np.testing.assert_array_equal(steps[0][0], [4, 2])
    assert first.dtype == np.float64
    assert env.observation_space == spaces.Box(np.array([-6.0, -8.0]), np.array([12.0, 10.0]), dtype=np.float64)


def test_select_obs_selects_for_every_agent():
    env = wrap(toy.TwoAgentEnv(), "select_obs", indices=[1])
    first, steps = rollout(env, [np.array([0, 0])])
    np.testing.assert_array_equal(first, [[0], [0]])
    np.testing.assert_array_equal(steps[0][0], [[1], [1]])
    assert env.observation_space.shape == (1,)


def test_select_obs_hands_out_a_copy():
    class Reusing(RangeEnv):
        def _obs(self):
            self.kept = getattr(self, "kept", np.zeros(4))
            self.kept[:] = self.t
            return self.kept

    first, _ = rollout(wrap(Reusing(), "select_obs", indices=[0, 1]), [0, 0])
    np.testing.assert_array_equal(first, [0, 0])


def test_obs_scale_subtracts_then_scales_observations_and_bounds():
    env = wrap(vector_env(), "obs_scale", subtract=[1, 2], scale=-0.5)
    _, steps = rollout(env, [0, 0, 0])
    np.testing.assert_array_equal(steps[2][0], np.array([-1.0, -0.5], np.float32))
    assert env.observation_space == spaces.Box(np.array([-4, -3.5], np.float32), np.array([0.5, 1], np.float32))


def test_obs_scale_turns_bytes_into_float32_without_wrapping_around():
    env = wrap(EchoEnv(spaces.Box(0, 255, (2,), np.uint8)), "obs_scale", subtract=100.0, scale=0.5)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, np.array([-50, -50], np.float32))
    assert obs.dtype == env.observation_space.dtype == np.float32


def test_obs_scale_keeps_infinite_and_huge_bounds_infinite():
    huge = np.finfo(np.float32).max
    env = EchoEnv(spaces.Box(np.array([-np.inf, -huge], np.float32), np.array([np.inf, huge], np.float32)))
    space = wrap(env, "obs_scale", scale=2.0).observation_space
    np.testing.assert_array_equal(space.high, [np.inf, np.inf])
    np.testing.assert_array_equal(space.low, [-np.inf, -np.inf])


def test_reward_clip_clips_to_both_sides():
    env = wrap(vector_env(pay=2.0), "reward_clip", min=3.0, max=5.0)
    assert [step[1] for step in rollout(env, [0, 0, 0])[1]] == [3.0, 4.0, 5.0]


def test_reward_clip_by_sign_keeps_only_the_sign():
    for pay, sign in ((-0.1, -1.0), (0.0, 0.0), (7.0, 1.0)):
        assert rollout(wrap(vector_env(pay=pay), "reward_clip", sign=True), [0])[1][0][1] == sign


def test_reward_clip_lets_nan_through_for_the_finite_check():
    assert np.isnan(rollout(wrap(vector_env(pay=np.nan), "reward_clip"), [0])[1][0][1])


def test_reward_wrappers_treat_each_agent():
    both = np.array([0, 0])
    np.testing.assert_array_equal(rollout(wrap(toy.TwoAgentEnv(), "reward_clip", max=1.5), [both])[1][0][1], [1, 1.5])
    scaled = rollout(wrap(toy.TwoAgentEnv(), "reward_scale", scale=10.0, shift=1.0), [both])[1][0][1]
    np.testing.assert_array_equal(scaled, [11, 21])
    assert scaled.dtype == np.float32


def test_reward_scale_scales_then_shifts():
    env = wrap(vector_env(), "reward_scale", scale=0.5, shift=-1.0)
    assert [step[1] for step in rollout(env, [0, 0, 0])[1]] == [-0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("action", "expected"),
    [((-1, -1), (-2, 0)), ((1, 1), (2, 10)), ((0, 0), (0, 5)), ((0.5, -0.5), (1, 2.5)), ((3, -3), (2, 0))],
)
def test_action_rescale_maps_each_dimension_onto_its_own_bounds(action, expected):
    env = wrap(vector_env(action_space=BOX_ACTIONS), "action_rescale")
    rollout(env, [np.array(action, np.float32)])
    np.testing.assert_array_equal(env.unwrapped.action, np.array(expected, np.float32))
    assert BOX_ACTIONS.contains(env.unwrapped.action)
    assert env.action_space == spaces.Box(-1, 1, (2,), np.float32)


def test_action_rescale_takes_another_range_of_the_agent():
    env = wrap(vector_env(action_space=BOX_ACTIONS), "action_rescale", low=0.0, high=4.0)
    rollout(env, [np.array([1, 2], np.float32)])
    np.testing.assert_array_equal(env.unwrapped.action, [-1, 5])


def test_action_clip_takes_any_action_and_clips_it():
    env = wrap(vector_env(action_space=BOX_ACTIONS), "action_clip")
    rollout(env, [np.array([-7, 3], np.float32)])
    np.testing.assert_array_equal(env.unwrapped.action, [-2, 3])
    assert env.action_space.contains(np.array([-7, 99], np.float32))


@pytest.mark.parametrize(("action", "taken"), [(-1.0, 0), (-0.6, 0), (-0.4, 1), (0.4, 1), (0.6, 2), (1.0, 2)])
def test_action_rescale_gives_the_nearest_whole_number(action, taken):
    env = wrap(vector_env(action_space=spaces.Box(0, 2, (1,), np.int32)), "action_rescale")
    rollout(env, [np.array([action], np.float32)])
    assert env.unwrapped.action.dtype == np.int32
    assert env.unwrapped.action.tolist() == [taken]


@pytest.mark.parametrize(("action", "taken"), [(-7.0, 0), (0.7, 1), (1.2, 1), (9.0, 2)])
def test_action_clip_gives_the_nearest_whole_number(action, taken):
    env = wrap(vector_env(action_space=spaces.Box(0, 2, (1,), np.int32)), "action_clip")
    rollout(env, [np.array([action], np.float32)])
    assert env.unwrapped.action_space.contains(env.unwrapped.action)
    assert env.unwrapped.action.tolist() == [taken]


def test_action_repeat_sums_rewards_and_stops_at_the_end():
    _, steps = rollout(wrap(vector_env(length=3), "action_repeat", num=2), [0, 1])
    assert [step[1] for step in steps] == [1 + 2, 3]
    assert [step[2] for step in steps] == [False, True]
    np.testing.assert_array_equal(steps[1][0], [3, 3])


@pytest.mark.parametrize("name", ["BipedalWalker-v3", "BipedalWalkerHardcore-v3", "LunarLander-v3"])
def test_fresh_world_makes_an_episode_a_function_of_its_seed(name):
    old, new = wrap(box2d_env(name), "fresh_world"), wrap(box2d_env(name), "fresh_world")
    old.action_space.seed(0)
    actions = [old.action_space.sample() for _ in range(60)]
    for _ in range(3):
        played = rollout(old, actions)
    fresh = rollout(new, actions)
    np.testing.assert_array_equal(played[0], fresh[0])
    for before, after in zip(played[1], fresh[1], strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        assert before[1:4] == after[1:4]


def test_fresh_world_keeps_the_gravity_of_the_env():
    env = box2d_env("LunarLander-v3", gravity=-3.0)
    env.reset(seed=0)
    wrapped = wrap(env, "fresh_world")
    wrapped.reset(seed=0)
    assert env.world.gravity.y == -3.0


def test_time_limit_truncates_and_counts_anew_after_reset():
    env = wrap(vector_env(length=9), "time_limit", max_episode_steps=2)
    for _ in range(2):
        assert [(step[2], step[3]) for step in rollout(env, [0, 0])[1]] == [(False, False), (False, True)]


def test_time_limit_is_told_by_the_spec():
    made = gym.make("parl/OneStep-v0", disable_env_checker=True)
    assert wrap(made, "time_limit", max_episode_steps=7).spec.max_episode_steps == 7
    assert made.spec.max_episode_steps is None
    assert wrap(vector_env(), "time_limit", max_episode_steps=7).spec is None


def test_time_limit_does_not_truncate_what_terminates_on_the_same_step():
    _, steps = rollout(wrap(vector_env(length=2), "time_limit", max_episode_steps=2), [0, 0])
    assert steps[1][2:4] == (True, False)


def test_time_limit_truncates_only_the_agents_that_are_left():
    env = wrap(toy.TwoAgentEnv(length=9, death_at=1), "time_limit", max_episode_steps=2)
    _, steps = rollout(env, [np.array([0, 0])] * 2)
    np.testing.assert_array_equal(steps[1][2], [False, True])
    np.testing.assert_array_equal(steps[1][3], [True, False])


def report_raw(env, *layers):
    env = raw = RawReturn(env)
    for name, options in layers:
        env = wrap(env, name, **options)
    return ReportRawReturn(env, raw)


def test_raw_return_and_length_are_reported_on_the_last_step_only():
    env = report_raw(vector_env(), ("reward_clip", {}), ("action_repeat", {"num": 2}))
    for _ in range(2):
        infos = [step[4] for step in rollout(env, [0, 0])[1]]
        assert infos == [{}, {"episode": {"r": 1.0 + 2.0 + 3.0, "l": 3}}]


def test_raw_return_is_reported_when_a_wrapper_ends_the_episode_early():
    env = report_raw(vector_env(), ("reward_scale", {"scale": 9.0}), ("time_limit", {"max_episode_steps": 2}))
    assert rollout(env, [0, 0])[1][1][4]["episode"] == {"r": 1.0 + 2.0, "l": 2}


def test_raw_return_of_agents_leaves_their_filler_out():
    env = report_raw(toy.TwoAgentEnv(length=4, death_at=2, filler=np.nan), ("reward_scale", {"scale": 3.0}))
    infos = [step[4] for step in rollout(env, [np.array([0, 0])] * 4)[1]]
    assert infos[:3] == [{}, {}, {}]
    np.testing.assert_array_equal(infos[3]["episode"]["r"], [4, 4])
    assert infos[3]["episode"]["l"] == 4


DISCRETE_OBS = EchoEnv(spaces.Discrete(5))
UNBOUNDED = spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    ("name", "options", "env", "message"),
    [
        ("frame_stack", {}, DISCRETE_OBS, r"frame_stack needs a Box observation space, not Discrete\(5\); put flatten"),
        ("frame_stack", {"axis": "last"}, EchoEnv(spaces.Box(0, 1, ())), "needs an observation with axes; use axis: n"),
        ("frame_stack", {"axis": "first"}, vector_env(), "frame_stack.axis=first: choose from last, new"),
        ("frame_stack", {"num": 0}, vector_env(), "frame_stack.num=0: must be at least 1"),
        ("obs_scale", {}, DISCRETE_OBS, r"obs_scale needs a Box observation space, not Discrete\(5\); put flatten_obs"),
        ("obs_scale", {"scale": 0.0}, vector_env(), r"obs_scale.scale=0.0 must not be 0"),
        ("obs_scale", {"subtract": [1, 2, 3]}, vector_env(), r"has 3 numbers, .* shape \(2,\); give one number, or as"),
        (
            "select_obs",
            {"indices": [0]},
            DISCRETE_OBS,
            r"select_obs needs a Box observation space, not Discrete\(5\); put fla",
        ),
        (
            "select_obs",
            {"indices": [0]},
            EchoEnv(spaces.Box(0, 1, (2, 3))),
            r"one axis, not shape \(2, 3\); put flatten_o",
        ),
        (
            "select_obs",
            {"indices": []},
            vector_env(),
            r"select_obs.indices=\[\] leaves nothing to observe; name at lea",
        ),
        ("select_obs", {"indices": [1, 1]}, vector_env(), r"indices=\[1, 1\] names a place twice; name each once"),
        (
            "select_obs",
            {"indices": [0, 2]},
            vector_env(),
            r"indices=\[0, 2\]: the observation has 2 numbers; choose from 0 to 1",
        ),
        ("select_obs", {"indices": [-1]}, vector_env(), r"select_obs.indices=\[-1\]: must be at least 0"),
        ("select_obs", {"indices": [0.5]}, vector_env(), r"select_obs.indices\[0\]=0.5: must be a whole number"),
        ("select_obs", {"indices": 1}, vector_env(), "select_obs.indices=1: must be a list, like"),
        ("select_obs", {}, vector_env(), "missing key select_obs.indices: places of the numbers"),
        ("reward_clip", {"min": 2.0}, vector_env(), "reward_clip.min=2.0 must be less than max=1.0"),
        ("action_rescale", {}, vector_env(), r"action_rescale needs a Box action space, not Discrete\(2\); remove it"),
        ("action_rescale", {}, vector_env(action_space=UNBOUNDED), "needs finite action bounds, not Box.*; remove it"),
        ("action_rescale", {"low": 1.0}, vector_env(action_space=BOX_ACTIONS), "low=1.0 must be less than high=1.0"),
        ("action_clip", {}, vector_env(), r"action_clip needs a Box action space, not Discrete\(2\); remove it"),
        ("action_repeat", {}, toy.TwoAgentEnv(), "action_repeat cannot wrap an env with 2 agents; remove it"),
        ("fresh_world", {}, vector_env(), "fresh_world needs one of Gymnasium's Box2D envs, not EchoEnv; remove it"),
        ("time_limit", {}, vector_env(), "missing key time_limit.max_episode_steps: steps of an episode"),
    ],
)
def test_misfits_are_one_line_with_the_value_and_the_way_out(name, options, env, message):
    with pytest.raises(ConfigError, match=message) as caught:
        wrap(env, name, **options)
    assert "\n" not in str(caught.value)
