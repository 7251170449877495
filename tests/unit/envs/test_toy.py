import importlib

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from parl_cli.envs import toy

PROBES = [
    (toy.OneStepEnv, {}),
    (toy.RewardByObsEnv, {}),
    (toy.DelayedRewardEnv, {}),
    (toy.RewardByActionEnv, {}),
    (toy.RewardByObsAndActionEnv, {}),
    (toy.ConstantRewardEnv, {"truncate_at": 5}),
    (toy.CountingEnv, {}),
    (toy.CountingEnv, {"env_index": 3}),
    (toy.SleepEnv, {"step_s": 0.0}),
    (toy.FaultyEnv, {}),
    *((toy.IdentityEnv, {"space": name}) for name in ("discrete", "multi_discrete", "multi_binary", "box")),
]


def episode(env, seed, choose):
    """Play one episode; rows of (obs, action, reward, next obs, terminated, truncated)."""
    obs, _ = env.reset(seed=seed)
    rows, over = [], False
    while not over:
        action = choose(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs, over = next_obs, terminated or truncated
    return rows


# check_env cannot see a spec on an env that was not built by gym.make, and has no render modes to test here
@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
@pytest.mark.parametrize(("cls", "kwargs"), [p for p in PROBES if "env_index" not in p[1]])
def test_probe_keeps_the_gymnasium_contract(cls, kwargs):
    check_env(cls(**kwargs))


@pytest.mark.parametrize("env_id", sorted(toy.IDS))
def test_every_probe_is_registered_and_makes_its_class(env_id):
    env = gym.make(env_id, disable_env_checker=True)
    assert type(env.unwrapped) is toy.IDS[env_id]


def test_importing_the_probes_twice_registers_them_once():
    importlib.reload(toy)  # gymnasium warns when an id is overridden, and warnings are errors here


@pytest.mark.parametrize("env_number", [0, 1, 5])
@pytest.mark.parametrize("number", [0, 1, 2, 999])
def test_counting_episode_is_what_the_functions_say(env_number, number):
    env = toy.CountingEnv(length=3)
    rows = episode(env, toy.counting_seed(env_number, number), lambda obs: int(obs[2]) % 4)
    assert len(rows) == toy.counting_length(env_number, number, 3)
    for t, (obs, action, reward, next_obs, terminated, truncated) in enumerate(rows):
        np.testing.assert_array_equal(obs, [env_number, number, t])
        np.testing.assert_array_equal(next_obs, [env_number, number, t + 1])
        assert reward == np.float32(reward) == toy.counting_reward(env_number, number, t, action)
        last = t == len(rows) - 1
        assert truncated == (last and toy.counting_truncates(env_number, number))
        assert terminated == (last and not toy.counting_truncates(env_number, number))


def test_counting_reset_without_a_seed_begins_the_next_episode_of_the_env():
    env = toy.CountingEnv()
    env.reset(seed=toy.counting_seed(7, 4))
    np.testing.assert_array_equal(env.reset()[0], [7, 5, 0])


def test_counting_env_index_counts_resets_and_ignores_seeds():
    env = toy.CountingEnv(env_index=6)
    np.testing.assert_array_equal(env.reset(seed=12345)[0], [6, 0, 0])
    np.testing.assert_array_equal(env.reset(seed=99)[0], [6, 1, 0])


def test_counting_lengths_and_ends_differ_between_envs_and_episodes():
    assert len({toy.counting_length(env, 0) for env in range(5)}) > 1
    assert len({toy.counting_length(0, number) for number in range(5)}) > 1
    assert {toy.counting_truncates(0, number) for number in range(2)} == {True, False}
    assert {toy.counting_truncates(env, 0) for env in range(2)} == {True, False}


def test_counting_rewards_of_different_transitions_differ():
    grid = [(e, n, t, a) for e in range(4) for n in range(4) for t in range(4) for a in range(4)]
    assert len({np.float32(toy.counting_reward(*point)) for point in grid}) == len(grid)


def test_value_probes_pay_what_their_docstrings_say():
    assert [row[2] for row in episode(toy.OneStepEnv(), 0, lambda obs: 0)] == [1.0]
    assert [row[2] for row in episode(toy.DelayedRewardEnv(), 0, lambda obs: 0)] == [0.0, 1.0]
    for action, reward in ((0, -1.0), (1, 1.0)):
        assert [row[2] for row in episode(toy.RewardByActionEnv(), 0, lambda obs, a=action: a)] == [reward]


def test_reward_by_obs_shows_both_signs_and_pays_them():
    rows = [episode(toy.RewardByObsEnv(), seed, lambda obs: 0)[0] for seed in range(20)]
    seen = {(float(row[0][0]), row[2]) for row in rows}
    assert seen == {(-1.0, -1.0), (1.0, 1.0)}


def test_reward_by_obs_and_action_pays_only_the_matching_action():
    env = toy.RewardByObsAndActionEnv()
    for seed in range(20):
        assert episode(env, seed, lambda obs: int(obs[0] > 0))[0][2] == 1.0
        assert episode(env, seed, lambda obs: int(obs[0] < 0))[0][2] == -1.0


def test_constant_reward_only_ever_truncates():
    rows = episode(toy.ConstantRewardEnv(truncate_at=5), 0, lambda obs: 0)
    assert [row[2] for row in rows] == [1.0] * 5
    assert [row[5] for row in rows] == [False] * 4 + [True]
    assert not any(row[4] for row in rows)


def read_target(space, obs):
    """The action that the observation of an IdentityEnv shows."""
    if isinstance(space, spaces.Discrete):
        return space.start + int(obs.argmax())
    if isinstance(space, spaces.MultiDiscrete):
        return np.array([part.argmax() for part in np.split(obs, np.cumsum(space.nvec)[:-1])])
    return obs.astype(space.dtype)


@pytest.mark.parametrize(
    ("kwargs", "best"),
    [
        ({"space": "discrete", "sizes": [4], "start": 2}, 1.0),
        ({"space": "multi_discrete", "sizes": [3, 2]}, 1.0),
        ({"space": "multi_binary"}, 1.0),
        ({"space": "box", "sizes": [2]}, 0.0),
    ],
)
def test_identity_pays_best_for_the_shown_action_and_less_for_others(kwargs, best):
    env = toy.IdentityEnv(**kwargs)
    env.action_space.seed(0)
    others = []
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        target = read_target(env.action_space, obs)
        assert env.action_space.contains(target)
        assert env.step(target)[1] == best
        others.append(env.step(env.action_space.sample())[1])
    assert np.mean(others) < best - 0.1


def test_identity_refuses_an_unknown_space():
    with pytest.raises(TypeError, match=r"space='text': choose from discrete, multi_discrete, multi_binary, box"):
        toy.IdentityEnv(space="text")


def test_two_agent_env_lets_one_agent_die_and_the_other_go_on():
    env = toy.TwoAgentEnv(length=4, death_at=2, truncate=True, filler=-7.0)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, [[0, 0], [1, 0]])
    steps = [env.step(np.array([0, 0])) for _ in range(4)]
    np.testing.assert_array_equal([s[0] for s in steps][1], [[0, 2], [1, 2]])
    np.testing.assert_array_equal([s[0] for s in steps][2], [[0, 3], [-7, -7]])
    np.testing.assert_array_equal([s[1] for s in steps], [[1, 2], [1, 2], [1, -7], [1, -7]])
    np.testing.assert_array_equal([s[2] for s in steps], [[0, 0], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal([s[3] for s in steps], [[0, 0], [0, 0], [0, 0], [1, 0]])


def test_two_agent_env_refuses_actions_of_the_wrong_shape():
    env = toy.TwoAgentEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected \\(2,\\): one for each agent"):
        env.step(0)


def test_faulty_env_raises_at_the_given_step_counted_over_episodes():
    env = toy.FaultyEnv(raise_at=4, length=3)
    for _ in range(2):
        env.reset(seed=0)
        env.step(0)
        env.step(0)
    with pytest.raises(RuntimeError, match="raises in step, call 4"):
        env.step(0)


@pytest.mark.parametrize("where", ["init", "reset"])
def test_faulty_env_raises_where_it_is_told_to(where):
    with pytest.raises(toy.UnpicklableError, match=f"raises in {where}, call 0"):
        toy.FaultyEnv(raise_at=0, where=where, unpicklable=True).reset(seed=0)


def test_faulty_env_with_a_marker_fails_once(tmp_path):
    kwargs = {"raise_at": 0, "where": "reset", "marker": str(tmp_path / "failed")}
    with pytest.raises(RuntimeError, match="raises in reset"):
        toy.FaultyEnv(**kwargs).reset(seed=0)
    toy.FaultyEnv(**kwargs).reset(seed=0)


def test_faulty_env_shows_nan_once():
    env = toy.FaultyEnv(nan_at=1)
    env.reset(seed=0)
    assert [bool(np.isnan(env.step(0)[0]).all()) for _ in range(3)] == [False, True, False]


def test_irreproducible_env_begins_differently_for_the_same_seed():
    env = toy.IrreproducibleEnv()
    assert len({float(env.reset(seed=1)[0][2]) for _ in range(8)}) > 1
