import pickle
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from parl_cli.config import EnvConfig
from parl_cli.envs.factory import EVAL_ROLE, TRAIN_ROLE, EnvFactory, EpisodeSeeds, check_rendering, env_spec
from parl_cli.envs.wrappers import num_agents
from parl_cli.errors import ConfigError
from parl_cli.types import EnvSpec


def test_pickled_factory_makes_the_env_of_its_config():
    factory = EnvFactory(EnvConfig(id="parl/ConstantReward-v0", kwargs={"truncate_at": 3}), "rgb_array")
    copy = pickle.loads(pickle.dumps(factory))
    assert copy == factory
    assert EnvFactory(copy.config)().unwrapped.truncate_at == 3


def test_factory_imports_plugins_before_it_looks_names_up(tmp_path, monkeypatch):
    plugin = "from parl_cli import registry\nregistry.register('adapter', 'mine', 'parl_test_plugin:make')\n"
    plugin += "def make(config, render_mode):\n    return ('made', config.name, render_mode)\n"
    (tmp_path / "parl_test_plugin.py").write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("parl_cli.registry._TARGETS", {"adapter": {}})
    factory = EnvFactory(EnvConfig(name="x", adapter="mine"), "human", plugins=("parl_test_plugin",))
    assert factory() == ("made", "x", "human")
    monkeypatch.delitem(sys.modules, "parl_test_plugin")


def test_unknown_adapter_is_refused():
    with pytest.raises(ConfigError, match="adapter=gymnasum: no such adapter; did you mean gymnasium"):
        EnvFactory(EnvConfig(adapter="gymnasum"))()


def test_env_spec_reads_the_spaces_through_the_wrappers():
    config = EnvConfig(id="CartPole-v1", wrappers=[{"frame_stack": {"num": 2}}])
    spec = env_spec(config)
    assert isinstance(spec, EnvSpec)
    assert (spec.id, spec.num_agents, spec.agents) == ("CartPole-v1", None, ())
    assert spec.observation_space.shape == (2, 4)
    assert spec.action_space == spaces.Discrete(2)


def test_env_spec_counts_agents_through_the_wrappers():
    spec = env_spec(EnvConfig(id="parl/TwoAgent-v0", wrappers=["flatten_obs", "reward_clip"]))
    assert spec.agents == (2,)
    assert spec.observation_space.shape == (2,)


def test_env_spec_closes_the_env_it_built(monkeypatch):
    closed = []
    monkeypatch.setattr("parl_cli.envs.toy.CountingEnv.close", lambda self: closed.append(self))
    env_spec(EnvConfig(id="parl/Counting-v0"))
    assert len(closed) == 1


def test_num_agents_is_an_integer_or_the_env_has_one_agent():
    class Odd(gym.Env):
        num_agents = "two"

    assert num_agents(Odd()) is None


def test_episode_seeds_are_reproducible_32_bit_numbers():
    seeds = [EpisodeSeeds(7)(env, episode) for env in range(4) for episode in range(4)]
    again = pickle.loads(pickle.dumps(EpisodeSeeds(7)))
    assert seeds == [again(env, episode) for env in range(4) for episode in range(4)]
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)


def test_episode_seeds_differ_by_run_role_env_and_episode():
    seeds = [
        EpisodeSeeds(run, role)(env, episode)
        for run in (0, 1, 2**62)
        for role in (TRAIN_ROLE, EVAL_ROLE)
        for env in range(8)
        for episode in range(8)
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_missing_drawing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r'CartPole-v1 cannot be drawn .*pip install "parl-cli\[video\]"'):
        check_rendering(EnvConfig(id="CartPole-v1"))


def test_what_a_drawing_library_raises_is_told_in_one_line(monkeypatch):
    def render(self):
        raise RuntimeError("no OpenGL\nplatform")

    monkeypatch.setattr("gymnasium.envs.classic_control.cartpole.CartPoleEnv.render", render)
    words = r"^CartPole-v1 cannot be drawn \(RuntimeError: no OpenGL platform\); MuJoCo needs MUJOCO_GL=egl or osmesa"
    with pytest.raises(ConfigError, match=words):
        check_rendering(EnvConfig(id="CartPole-v1"))


@pytest.mark.parametrize("run_seed", [0, 1, 2**32 - 1, 2**32, 2**63, 2**128 - 1, 2**140])
def test_episode_seeds_are_those_of_numpys_seed_sequence(run_seed):
    rng = np.random.default_rng(0)
    for role, first, stride, env_id, episode in rng.integers(0, [3, 99, 9, 1000, 2**32], (50, 5)):
        key = (int(role), int(first + stride * env_id), int(episode))
        expected = np.random.SeedSequence(run_seed, spawn_key=key).generate_state(1, np.uint32)[0]
        seeds = EpisodeSeeds(run_seed, int(role), int(first), int(stride))
        assert seeds(env_id, episode) == seeds(int(env_id), int(episode)) == expected  # a numpy integer overflows
