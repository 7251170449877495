"""Generalised state-dependent exploration: the density it claims is the one it draws from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from parl_cli.envs.toy import OneStepEnv
from parl_cli.errors import ConfigError
from parl_cli.policies.actor_critic import ActorCritic
from parl_cli.types import EnvSpec
from tests.helpers.stubs import make_actor, make_policy, make_vectorizer

BOX = EnvSpec("box", spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-2, 2, (2,), np.float32))


@pytest.fixture
def policy() -> ActorCritic:
    return make_policy(BOX, gsde=True, log_std_init=-0.5, policy_gain=1.0)


def act(policy: ActorCritic, obs: torch.Tensor, noise: torch.Tensor, greedy: bool = False):
    return policy.act(obs, None, torch.zeros(len(obs), dtype=torch.bool), noise, greedy)


def test_drawn_actions_have_the_density_that_log_prob_claims(policy):
    rows = 50_000
    obs = torch.tensor([0.3, -0.8, 0.5]).expand(rows, 3)
    noise = torch.rand(rows, policy.noise_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = act(policy, obs, noise)
        mean, std = output.extras["dist_params"][0].chunk(2)
        std = std.exp()
    drawn = (output.action - mean) / std
    torch.testing.assert_close(drawn.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.ones(2), atol=0.02, rtol=0)
    # normal, not merely of that variance: the share within one and two standard deviations
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545)):
        assert float((drawn.abs() < bound).float().mean()) == pytest.approx(share, abs=0.006)
    distribution, _ = policy.evaluate(obs)
    torch.testing.assert_close(distribution.log_prob(output.action), output.extras["log_prob"])


def test_std_grows_with_the_features_as_the_paper_says(policy):
    obs = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = policy.policy_trunk(policy.features(obs))
        std = policy.params(hidden)[:, 2:].exp()
        expected = (hidden.square() @ policy.log_std.exp().square()).sqrt()
    torch.testing.assert_close(std, expected, atol=1e-3, rtol=1e-3)


def test_features_get_no_gradient_from_the_variance(policy):
    hidden = torch.ones(4, 8, requires_grad=True)
    policy.params(hidden)[:, 2:].sum().backward()
    assert hidden.grad is None or not hidden.grad.any()
    assert policy.log_std.grad.abs().sum() > 0


def test_one_exploration_matrix_serves_a_whole_period():
    env = OneStepEnv()  # always the same observation: only the exploration matrix can change the action
    env_fn = lambda: BoxActions()  # noqa: E731
    vectorizer = make_vectorizer([env_fn] * 3)
    spec = EnvSpec("one", env.observation_space, spaces.Box(-2, 2, (2,), np.float32))
    policy = make_policy(spec, gsde=True, gsde_period=4)
    torch.nn.init.ones_(policy.policy_trunk[0].bias)  # obs 0 would give features 0, and no noise at all
    actions = make_actor(vectorizer, policy, num_steps=12).collect().action
    by_six = make_actor(make_vectorizer([env_fn] * 3), policy, num_steps=6)  # a period goes over to the next rollout
    assert torch.equal(torch.cat([by_six.collect().action.clone() for _ in range(2)]), actions)
    periods = actions.unflatten(0, (3, 4))
    torch.testing.assert_close(periods, periods[:, :1].expand_as(periods))
    assert not torch.allclose(periods[0, 0], periods[1, 0])
    assert not torch.allclose(actions[0, 0], actions[0, 1])  # and every env has its own


class BoxActions(OneStepEnv):
    """`OneStepEnv` with actions that do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-2, 2, (2,), np.float32)


def test_greedy_ignores_the_noise(policy):
    obs = torch.zeros(2, 3)
    low, high = (act(policy, obs, torch.full((2, policy.noise_dim), u), greedy=True).action for u in (0.1, 0.9))
    assert torch.equal(low, high)


def test_gsde_refuses_what_it_cannot_be_combined_with():
    discrete = EnvSpec("d", BOX.observation_space, spaces.Discrete(2))
    with pytest.raises(ConfigError, match=r"policy\.gsde=true: needs Box actions"):
        make_policy(discrete, gsde=True)
    with pytest.raises(ConfigError, match="state_dependent_std=false"):
        make_policy(BOX, gsde=True, state_dependent_std=True)
