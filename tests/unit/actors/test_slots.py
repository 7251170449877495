import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from parl_cli.actors.slots import SlotPlan, Status, slot_layout
from parl_cli.envs.toy import CountingEnv, IdentityEnv, TwoAgentEnv
from parl_cli.types import EnvSpec
from tests.helpers.rollouts import ACTION_SPACES, OBSERVATION_SPACES
from tests.helpers.stubs import GRUPolicy, make_actor, make_policy, make_vectorizer

T, N = 6, 3


class SpacesEnv(gym.Env):
    """Whatever spaces; an episode has four steps, and what is seen in it depends on its seed alone."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = copy.deepcopy(observation_space), action_space
        self._length = 0

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        self._length = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self._length += 1
        return self.observation_space.sample(), 1.0, False, self._length == 4, {}


def check(make_env, cls=None, **policy):
    """The layout has exactly the arrays that an actor fills, and it fills them."""
    env = make_env()
    spec = EnvSpec("probe", env.observation_space, env.action_space, getattr(env, "num_agents", None))
    policy = make_policy(spec, cls, **policy) if cls else make_policy(spec, **policy)
    plain, shared = (make_actor(make_vectorizer([make_env] * N), policy, num_steps=T) for _ in range(2))
    plan = SlotPlan(N, 2, slot_layout(spec, policy, T, N))
    slot = plan.slots(bytearray(plan.size))[1]
    for _ in range(2):
        expected, rollout = plain.collect(), shared.collect(slot)
        for name, tensor in tensors(expected).items():
            assert torch.equal(tensors(rollout)[name], tensor)
            assert np.shares_memory(tensors(rollout)[name].numpy(), slot[name]) or not tensor.numel()
        assert tensors(rollout).keys() == tensors(expected).keys() == slot.keys()
        assert rollout.episodes == expected.episodes


def tensors(rollout):
    return {k: v for k, v in (vars(rollout) | rollout.extras).items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_a_slot_fits_every_observation(name):
    check(lambda: SpacesEnv(OBSERVATION_SPACES[name], spaces.Discrete(2)))


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_a_slot_fits_every_action(name):
    space, squash = ACTION_SPACES[name]
    check(lambda: SpacesEnv(OBSERVATION_SPACES["box"], space), squash=squash)


@pytest.mark.parametrize(("env", "policy"), [(CountingEnv, None), (CountingEnv, GRUPolicy), (TwoAgentEnv, None)])
def test_a_slot_fits_agents_and_a_memory(env, policy):
    check(env, policy)


def test_there_is_room_for_an_episode_at_every_step():
    check(IdentityEnv)


def test_slots_and_status_do_not_overlap():
    layout = slot_layout(
        EnvSpec("probe", spaces.Discrete(3), spaces.Discrete(2)),
        make_policy(EnvSpec("probe", spaces.Discrete(3), spaces.Discrete(2))),
        T,
        N,
    )
    plan = SlotPlan(N, 3, layout)
    buffer = np.zeros(plan.size, np.uint8)
    status = Status.begin(buffer, np.array([3, 4, 5]), np.array([6, 7, 8], np.uint64))
    for k, slot in enumerate(plan.slots(buffer)):
        for array in slot.values():
            array[...] = k + 1
    assert status.episode_numbers.tolist() == [3, 4, 5]
    assert status.acted.tolist() == [6, 7, 8]
    assert (status.steps[0], status.version[0], status.stop[0]) == (0, -1, False)
    for k, slot in enumerate(plan.slots(buffer)):
        assert all((array == (True if array.dtype == bool else k + 1)).all() for array in slot.values())
