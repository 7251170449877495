from typing import get_args

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim

from parl_cli.policies.actor_critic import Activation
from parl_cli.policies.encoders import ACTIVATIONS, VectorEncoder, mlp, orthogonal
from tests.helpers.rollouts import OBSERVATION_SPACES, observe


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
@pytest.mark.parametrize("lead", [(5,), (3, 2), (0,)])
def test_vectors_have_the_space_s_flat_size_for_any_lead(name, lead):
    space = OBSERVATION_SPACES[name]
    encoder = VectorEncoder(space)
    encoded = encoder(observe(space, *lead))
    assert encoded.shape == (*lead, flatdim(space))
    assert encoded.dtype == torch.float32


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_encoding_is_gymnasium_s_flattening(name):
    space = OBSERVATION_SPACES[name]
    obs = observe(space, 7)
    expected = np.array([spaces.flatten(space, row) for row in obs.numpy()])
    np.testing.assert_allclose(VectorEncoder(space)(obs).numpy(), expected.reshape(7, -1).astype(np.float32))


def test_discrete_observations_become_one_hot_counted_from_start():
    encoder = VectorEncoder(spaces.Discrete(3, start=-2))
    assert encoder(torch.tensor([-2, 0])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_multi_discrete_observations_become_one_hots_side_by_side():
    encoder = VectorEncoder(spaces.MultiDiscrete([2, 3], start=[1, 5]))
    assert encoder(torch.tensor([[2, 5]])).tolist() == [[0, 1, 1, 0, 0]]


def test_mlp_is_linear_norm_activation_per_layer():
    layers = mlp(3, [4, 8], "relu", "layer", 1.0)
    names = [type(layer).__name__ for layer in layers]
    assert names == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU"]


def test_group_norm_uses_groups_that_divide_the_width():
    for width in (1, 6, 12, 64):
        norm = mlp(3, [width], "tanh", "group", 1.0)[1]
        assert width % norm.num_groups == 0
        assert norm(torch.randn(2, 5, width)).shape == (2, 5, width)


def test_orthogonal_scales_by_gain():
    layer = orthogonal(torch.nn.Linear(6, 3), 2.0)
    torch.testing.assert_close(layer.weight @ layer.weight.T, 4.0 * torch.eye(3))


def test_activation_names_are_the_config_s():
    assert set(get_args(Activation)) == set(ACTIVATIONS)
