"""One whole update against PPO written a second time, in plain torch: other code, same numbers."""

import pytest
import torch
from torch import nn

from parl_cli.algos.ppo import PPO, PPOConfig
from tests.helpers.rollouts import ACTION_SPACES, VECTOR, random_rollout, spec_of
from tests.helpers.stubs import make_policy

HIDDEN = 8


class PlainActorCritic(nn.Module):
    """The same network from torch's own parts, with a copy of the weights."""

    def __init__(self, policy):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(3, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, policy.policy_head.out_features))
        self.critic = nn.Sequential(nn.Linear(3, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
        self.log_std = None if policy.log_std is None else nn.Parameter(policy.log_std.detach().clone())
        self.actor[0].load_state_dict(policy.policy_trunk[0].state_dict())
        self.actor[2].load_state_dict(policy.policy_head.state_dict())
        self.critic[0].load_state_dict(policy.value_trunk[0].state_dict())
        self.critic[2].load_state_dict(policy.value_head.state_dict())

    def distribution(self, obs):
        out = self.actor(obs)
        if self.log_std is None:
            return torch.distributions.Categorical(logits=out)
        normal = torch.distributions.Normal(out, self.log_std.exp().expand_as(out))
        return torch.distributions.Independent(normal, 1)

    def value(self, obs):
        return self.critic(obs)[..., 0]

    def in_order_of(self, policy):
        """Its parameters as the policy's are named."""
        mine = {"policy_trunk.0": self.actor[0], "policy_head": self.actor[2]}
        mine |= {"value_trunk.0": self.critic[0], "value_head": self.critic[2]}
        found = {f"{name}.{part}": getattr(layer, part) for name, layer in mine.items() for part in ("weight", "bias")}
        return found | ({} if self.log_std is None else {"log_std": self.log_std})


def plain_advantages(net, rollout, gamma, lam):
    """GAE by its definition, row by row."""
    steps, columns = rollout.reward.shape
    finals = {tuple(at): k for k, at in enumerate(rollout.final_index.tolist())}
    value = net.value(rollout.obs).detach()
    last = net.value(rollout.last_obs).detach()
    final = net.value(rollout.final_obs).detach()
    advantage = torch.zeros(steps, columns)
    for n in range(columns):
        after = 0.0
        for t in reversed(range(steps)):
            if rollout.terminated[t, n]:
                successor = 0.0
            elif rollout.truncated[t, n]:
                successor = final[finals[t, n]]
            else:
                successor = value[t + 1, n] if t + 1 < steps else last[n]
            delta = rollout.reward[t, n] + gamma * successor - value[t, n]
            over = rollout.terminated[t, n] or rollout.truncated[t, n]
            after = delta + (0.0 if over else gamma * lam * after)
            advantage[t, n] = after
    return advantage, value


def plain_update(net, rollout, config, seed):
    """Schulman et al. 2017 with the details that the config asks for."""
    advantage, old_value = plain_advantages(net, rollout, config.gamma, config.gae_lambda)
    returns = advantage + old_value
    with torch.no_grad():
        old = net.distribution(rollout.obs)
        old_log_prob = old.log_prob(rollout.action).flatten()
        old_logits = [old.logits.flatten(0, 1)] if net.log_std is None else [old.mean.flatten(0, 1), old.stddev[0, 0]]
    obs, action = rollout.obs.flatten(0, 1), rollout.action.flatten(0, 1)
    flat = {"advantage": advantage.flatten(), "returns": returns.flatten(), "old_value": old_value.flatten()}
    actor = [*net.actor.parameters(), *([] if net.log_std is None else [net.log_std])]
    optimizer = torch.optim.Adam(
        [
            {"params": actor, "lr": config.learning_rate},
            {"params": net.critic.parameters(), "lr": config.critic_learning_rate or config.learning_rate},
        ],
        eps=config.adam_eps,
    )
    generator = torch.Generator().manual_seed(seed)
    rows = len(obs)
    for _ in range(config.num_epochs):
        order = torch.randperm(rows, generator=generator)
        for part in order.chunk(config.num_minibatches):
            new = net.distribution(obs[part])
            ratio = (new.log_prob(action[part]) - old_log_prob[part]).exp()
            adv = flat["advantage"][part]
            if config.normalize_advantage:
                adv = (adv - adv.mean()) / (adv.std(correction=0) + 1e-8)
            if config.objective == "clip":
                clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
                policy_loss = -torch.min(ratio * adv, clipped * adv).mean()
            else:
                if net.log_std is None:
                    before = torch.distributions.Categorical(logits=old_logits[0][part])
                else:
                    std = old_logits[1].expand(len(part), -1)
                    before = torch.distributions.Independent(torch.distributions.Normal(old_logits[0][part], std), 1)
                kl = torch.distributions.kl_divergence(before, new)
                policy_loss = (config.kl_penalty_coef * kl - ratio * adv).mean()
            value, target, old_v = net.value(obs[part]), flat["returns"][part], flat["old_value"][part]
            error = (value - target) ** 2
            if config.value_clip_range is not None:
                near = torch.min(torch.max(value, old_v - config.value_clip_range), old_v + config.value_clip_range)
                error = torch.max(error, (near - target) ** 2)
            loss = policy_loss + config.value_coef * 0.5 * error.mean() - config.entropy_coef * new.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), config.max_grad_norm)
            optimizer.step()


@pytest.mark.parametrize("action", ["discrete", "box_unbounded", "box"])
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"entropy_coef": 0.05, "value_clip_range": 0.1, "critic_learning_rate": 3e-3},
        {"normalize_advantage": False, "max_grad_norm": None, "gamma": 0.9, "gae_lambda": 0.8},
        {"objective": "kl_penalty", "kl_penalty_coef": 2.0},
    ],
    ids=["default", "bonus_value_clip_critic_rate", "raw_advantage_no_clip", "kl_penalty"],
)
def test_an_update_is_that_of_a_second_implementation(action, recipe):
    spec = spec_of(VECTOR, ACTION_SPACES[action][0])
    policy = make_policy(spec, hidden_sizes=[HIDDEN], policy_gain=1.0)
    config = PPOConfig(num_epochs=3, num_minibatches=4, learning_rate=1e-3, **recipe)
    rollout = random_rollout(policy, spec, num_steps=16, num_columns=4, end_share=0.15)
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    plain = PlainActorCritic(policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    PPO(policy, config, seed=11).update(rollout)
    plain_update(plain, rollout, config, seed=11)
    expected = plain.in_order_of(policy)
    assert set(expected) == set(before)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-5, rtol=0)
        assert (parameter - before[name]).abs().max() > 1e-4, name
