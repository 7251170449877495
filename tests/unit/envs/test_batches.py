"""Which batches are made, and which are refused in one line."""

import sys
import types
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from parl_cli.config import EnvConfig
from parl_cli.envs.batches import EnvPoolBatch, make_batch
from parl_cli.envs.factory import EnvFactory
from parl_cli.envs.toy import CountingEnv
from parl_cli.errors import ConfigError


def refused(backend="gymnasium", **config):
    with pytest.raises(ConfigError) as error:
        make_batch(EnvConfig(**config), 3, backend)
    message = str(error.value)
    assert "\n" not in message
    return message


class Choosy(SyncVectorEnv):
    """A library whose way to reset can be chosen, and which knows no time limit."""

    def __init__(self, num_envs, autoreset_mode=AutoresetMode.NEXT_STEP, bounds=2**24):
        super().__init__([partial(CountingEnv, env_index=i) for i in range(num_envs)], autoreset_mode=autoreset_mode)
        self.single_observation_space = spaces.Box(0, bounds, (3,), np.float32)


@pytest.fixture
def registered():
    before = set(gym.registry)
    yield gym.register
    for env_id in set(gym.registry) - before:
        del gym.registry[env_id]


def test_the_factory_makes_the_batch_that_the_id_registers():
    batch = EnvFactory(EnvConfig(id="CartPole-v1", kwargs={"sutton_barto_reward": True})).make_vec(3)
    assert type(batch.unwrapped).__name__ == "CartPoleVectorEnv"
    assert (batch.num_envs, batch.max_episode_steps) == (3, 500)
    batch.reset(seed=1)
    assert not batch.step(np.zeros(3, int))[1].any()


def test_the_time_limit_is_honoured():
    batch = make_batch(EnvConfig(id="CartPole-v1", max_episode_steps=4), 3)
    batch.reset(seed=1)
    truncated = [batch.step(np.arange(3) % 2)[3].tolist() for _ in range(4)]
    assert truncated == [[False] * 3] * 3 + [[True] * 3]


def test_a_library_that_can_is_asked_to_reset_in_the_same_step(registered):
    registered("Choosy-v0", entry_point=CountingEnv, vector_entry_point=Choosy)
    assert make_batch(EnvConfig(id="Choosy-v0"), 3).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    refusal = refused(id="Choosy-v0", max_episode_steps=9)
    assert refusal.startswith("env.max_episode_steps=9: the batch of Choosy-v0 takes no time limit (its arguments are")
    registered("Limited-v0", entry_point=CountingEnv, vector_entry_point=Choosy, max_episode_steps=5)
    assert "env.max_episode_steps=5" in refused(id="Limited-v0")


@pytest.mark.parametrize(("env", "verb"), [("CartPoleEnv", "observes"), ("PendulumEnv", "takes")])
def test_a_batch_that_observes_or_takes_something_else_than_the_env_alone_is_refused(registered, env, verb):
    registered("Other-v0", entry_point=f"gymnasium.envs.classic_control:{env}", vector_entry_point=Choosy)
    assert f"the batch of Other-v0 {verb} " in refused(id="Other-v0")


def test_other_bounds_of_observations_are_nothing_to_a_policy(registered):
    registered("Choosy-v0", entry_point=CountingEnv, vector_entry_point=partial(Choosy, bounds=1))
    make_batch(EnvConfig(id="Choosy-v0"), 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id": "Pendulum-v1"}, "vectorizer=native: Pendulum-v1 has no batch of its own; use vectorizer=serial"),
        ({"id": "CartPole-v1", "wrappers": ["obs_scale"]}, "env.wrappers=['obs_scale']: they go around single envs"),
        ({"id": "CartPole-v1", "adapter": "pettingzoo"}, "env=gym is no Gymnasium env, so it has no batch"),
        ({"id": "CartPole-v1", "kwargs": {"sutton": 1}}, "env.kwargs.sutton=1: CartPole-v1 has no such argument"),
        ({"id": "CartPoll-v1"}, "no such id; did you mean CartPole-v1"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(config, message):
    assert message in refused(**config)


class Pool:
    """What EnvPool's Gymnasium face looks like from outside: unbatched spaces, a seed for life."""

    def __init__(self, name, num_envs, seed, **arguments):
        if "g" in arguments:
            raise TypeError("Config.__new__() got an unexpected keyword argument 'g'")
        self.num_envs, self.seed, self.arguments = num_envs, seed, arguments
        self.observation_space = spaces.Box(-9, 9, (3,), np.float32)
        self.action_space = spaces.Box(-2, 2, (1,), np.float64)
        self.closed = False

    def reset(self):
        return np.full((self.num_envs, 3), self.seed, np.float32), {}

    def step(self, actions):
        self.actions = actions
        return np.zeros((self.num_envs, 3), np.float32), *(np.zeros(self.num_envs) for _ in range(3)), {}

    def close(self):
        self.closed = True


@pytest.fixture
def envpool(monkeypatch):
    module = types.ModuleType("envpool")
    module.make_gymnasium = Pool
    module.list_all_envs = lambda: ["Pendulum-v1"]
    monkeypatch.setitem(sys.modules, "envpool", module)


@pytest.mark.usefixtures("envpool")
def test_envpool_s_envs_become_a_batch_of_gymnasium_s():
    batch = make_batch(EnvConfig(id="Pendulum-v1"), 3, "envpool")
    assert isinstance(batch, EnvPoolBatch)
    assert batch.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert (batch.observation_space.shape, batch.action_space.shape) == ((3, 3), (3, 1))
    assert batch.single_action_space == gym.make("Pendulum-v1").action_space  # float32, where the pool takes float64
    pool = batch._pool
    assert pool.arguments == {"max_episode_steps": 200}
    assert batch.reset(seed=7)[0].tolist() == [[7.0] * 3] * 3
    assert pool.closed
    assert batch.reset()[0][0, 0] == 7.0
    batch.step(np.ones((3, 1), np.float32))
    assert batch._pool.actions.dtype == np.float64
    batch.close()
    assert batch._pool.closed
    assert make_batch(EnvConfig(id="Pendulum-v1", max_episode_steps=9), 3, "envpool")._pool.arguments == {
        "max_episode_steps": 9
    }


@pytest.mark.usefixtures("envpool")
def test_what_envpool_has_not_is_refused():
    assert "EnvPool has no CartPole-v1; use vectorizer=serial" in refused("envpool", id="CartPole-v1")
    message = refused("envpool", id="Pendulum-v1", kwargs={"g": 9.0})
    assert message.startswith("env.kwargs={'g': 9.0}: EnvPool's Pendulum-v1 refuses them: TypeError: Config")


def test_without_envpool_the_way_out_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    message = refused("envpool", id="CartPole-v1")
    assert message == "vectorizer.backend=envpool: EnvPool is not installed; pip install envpool"
