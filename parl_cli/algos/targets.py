"""What an on-policy update aims at: advantages and value targets of a rollout, computed once, before the first step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from parl_cli.functional.advantages import gae
from parl_cli.types import Metrics, Rollout


class Targets(NamedTuple):
    """All [T, N(, A)]."""

    value: Tensor  # V(o_t) by the critic that made the targets
    advantage: Tensor
    returns: Tensor  # what the critic is to predict
    metrics: Metrics


class Critique(NamedTuple):
    """What the current critic makes of a rollout; all [T, N(, A)]."""

    value: Tensor  # V(o_t)
    next_value: Tensor  # V(o_{t+1}) before any autoreset
    terminated: Tensor
    truncated: Tensor


def critique(policy: Any, rollout: Rollout) -> Critique:
    """Values of all steps. A step without a real successor (a worker was replaced) is cut like a time limit."""
    value, next_value = policy.values(rollout)
    truncated = rollout.truncated.clone()
    truncated[:-1] |= ~rollout.mask[1:]
    return Critique(value, next_value, rollout.terminated, truncated)


def gae_targets(policy: Any, rollout: Rollout, *, gamma: float, lam: float) -> Targets:
    """GAE's advantages and lambda-returns; see `gae`. With lam=1 they are those of the longest n-step returns."""
    seen = critique(policy, rollout)
    advantage = gae(rollout.reward, *seen, gamma=gamma, lam=lam)
    return Targets(seen.value, advantage, advantage + seen.value, {})


@torch.no_grad()
def current_log_prob(policy: Any, rollout: Rollout) -> Tensor:
    """The log-probability of each action under the policy as it is now, [T, N(, A)].

    At masked rows it is that of the policy that acted, so that no ratio there is out of the ordinary.
    """
    distribution, _ = policy.evaluate(rollout.obs, rollout.state, rollout.is_first)
    return torch.where(rollout.mask, distribution.log_prob(rollout.action), rollout.extras["log_prob"])
