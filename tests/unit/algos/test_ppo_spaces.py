"""PPO over every pair of spaces, and envs that show the right action."""

import functools
import math

import pytest
import torch

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.envs.toy import IdentityEnv
from parl_cli.types import EnvSpec
from tests.helpers.rollouts import ACTION_SPACES, OBSERVATION_SPACES, random_rollout, spec_of
from tests.helpers.stubs import inline, make_learner, make_policy, make_vectorizer


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_three_updates_move_the_weights_and_stay_finite(observation, action):
    action_space, squash = ACTION_SPACES[action]
    spec = spec_of(OBSERVATION_SPACES[observation], action_space)
    policy = make_policy(spec, squash=squash, hidden_sizes=[4], normalize_obs=True)
    algo = PPO(policy, PPOConfig(num_epochs=1, num_minibatches=2, learning_rate=1e-2))
    before = {name: p.clone() for name, p in policy.named_parameters()}
    for seed in range(3):
        rollout = random_rollout(policy, spec, seed=seed)
        metrics = algo.update(rollout)
        policy.update_normalizer(rollout)
        assert all(math.isfinite(value) for value in metrics.values())
    for name, parameter in policy.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("options", "policy_options", "goal"),
    [
        ({"space": "discrete"}, {}, 0.95),
        ({"space": "discrete", "sizes": (4,), "start": -2}, {}, 0.95),
        ({"space": "multi_discrete", "sizes": (3, 2)}, {}, 0.95),
        ({"space": "multi_binary", "sizes": (3,)}, {}, 0.95),
        ({"space": "box", "sizes": (1,)}, {"log_std_init": -1.0}, -0.05),
        ({"space": "box", "sizes": (1,)}, {"log_std_init": -1.0, "squash": True}, -0.05),
    ],
    ids=["discrete", "discrete_start", "multi_discrete", "multi_binary", "box", "box_squashed"],
)
def test_identity_env_is_learned(options, policy_options, goal):
    env = functools.partial(IdentityEnv, **options)
    probe = env()
    spec = EnvSpec("identity", probe.observation_space, probe.action_space)
    policy = make_policy(spec, hidden_sizes=[32], **policy_options)
    algo = PPO(policy, PPOConfig(num_steps=16, num_epochs=4, num_minibatches=4, learning_rate=0.01, gamma=0.0))
    learner, pool = make_learner(policy, algo), inline(make_vectorizer([env] * 16), policy, num_steps=16)
    assert greedy_return(policy, env) < goal - 0.1
    for _ in range(30):
        learner.step(pool.get(1))
    assert greedy_return(policy, env) >= goal


def greedy_return(policy, env, episodes=50):
    env, total = env(), 0.0
    for seed in range(episodes):
        obs = torch.from_numpy(env.reset(seed=seed)[0])[None]
        output = policy.act(obs, None, None, torch.full((1, policy.noise_dim), 0.5), greedy=True)
        [action] = policy.env_action(output.action.detach().numpy())
        total += env.step(action)[1]
    return total / episodes
