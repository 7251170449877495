"""Advantage actor-critic, synchronous (Mnih et al. 2016, arXiv:1602.01783, without the asynchrony).

All envs act for a few steps, then one gradient step follows on

    −log pi(a_t|o_t) (G_t − V(o_t)) + c_v ½ (G_t − V(o_t))² − c_e H(pi(·|o_t)),

with the longest n-step return that the rollout holds as G_t (section 4.3; `gae_lambda` below 1 makes it the
lambda-return instead), and the factor of the policy term held constant. `a3c.py` and `impala.py` are this algorithm
for rollouts of actors that lag behind.

Different from the paper: losses are means over the rollout, not sums, so that the learning rate need not follow
`num_envs`. RMSProp is Adam without its first moment: its running mean of squares is corrected for having begun at 0,
as Adam's is, without which the first steps are ten times too long; epsilon is added to the root, not under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from parl_cli.algos.common import check_columns, check_minibatches
from parl_cli.algos.flat_adam import FlatAdam
from parl_cli.algos.targets import Targets, gae_targets
from parl_cli.buffers.minibatches import minibatches
from parl_cli.config import TrainConfig, option
from parl_cli.functional.importance import effective_share
from parl_cli.functional.losses import (
    approx_kl,
    backward_of_mean,
    explained_variance,
    masked_mean,
    normalize_advantage,
    value_loss,
)
from parl_cli.functional.schedules import schedule
from parl_cli.policies.fused import flatten
from parl_cli.types import EnvSpec, Metrics, Rollout

ScheduleKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class A2CConfig:
    """A2C's hyper-parameters."""

    name: str = option("a2c", "registered name")
    num_steps: int = option(5, "t_max: steps per env and rollout", ge=1)
    num_minibatches: int = option(1, "gradient steps per rollout; must divide num_steps × num_envs", ge=1)
    optimizer: Literal["rmsprop", "adam"] = option("rmsprop", "rmsprop (without momentum) or adam")
    learning_rate: float = option(7e-4, "the optimizer's step size", gt=0)
    learning_rate_schedule: ScheduleKind = option(
        "constant", "constant; linear or cosine, over total_steps down to learning_rate_end"
    )
    learning_rate_end: float = option(0.0, "share of learning_rate left at the end of its schedule", ge=0, le=1)
    rmsprop_decay: float = option(0.99, "RMSProp's decay of the mean square; of no effect with Adam", ge=0, lt=1)
    optimizer_eps: float = option(1e-5, "added to the root of the mean square", gt=0)
    gamma: float = option(0.99, "discount", ge=0, le=1)
    gae_lambda: float = option(1.0, "lambda of the returns; 1: the paper's n-step returns", ge=0, le=1)
    entropy_coef: float = option(0.01, "beta: weight of the entropy bonus", ge=0)
    entropy_coef_schedule: ScheduleKind = option("constant", "constant; linear or cosine, over total_steps down to 0")
    value_coef: float = option(0.5, "weight of the value loss", ge=0)
    max_grad_norm: float | None = option(0.5, "global gradient norm is clipped to this; null: no clipping", gt=0)
    normalize_advantage: bool = option(False, "mean 0 and std 1 within each minibatch")
    normalize_reward: bool = option(False, "divide rewards by the running std of the discounted return")
    reward_clip: float = option(10.0, "scaled rewards are clipped to ± this", gt=0)


class A2C:
    """Advantage actor-critic over any policy with `evaluate` and `values`.

    Args:
        policy: an actor-critic.
        config: hyper-parameters.
        seed: seeds the minibatch shuffles.
    """

    Config: ClassVar[type[A2CConfig]] = A2CConfig
    summary: ClassVar[str] = "synchronous actor-critic: n-step returns, one pass over short rollouts"
    neighbour: ClassVar[str] = "ppo"
    supports: ClassVar[dict[str, tuple[str, ...]]] = {
        "actions": ("Discrete", "MultiDiscrete", "MultiBinary", "Box"),
        "observations": ("Box", "Discrete", "MultiDiscrete", "MultiBinary"),
        "actors": ("inline",),
    }

    def __init__(self, policy: Any, config: A2CConfig, *, seed: int = 0) -> None:
        self.policy = policy
        self.config = config
        self.num_steps = config.num_steps
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = FlatAdam(
            flatten(policy),
            [list(policy.parameters())],
            learning_rate=config.learning_rate,
            eps=config.optimizer_eps,
            betas=(0.9, 0.999) if config.optimizer == "adam" else (0.0, config.rmsprop_decay),
        )

    @staticmethod
    def check(config: TrainConfig, spec: EnvSpec) -> None:
        """Refuse what cannot work before anything is written.

        Raises:
            ConfigError: minibatches that do not divide the rollout.
        """
        check_minibatches(config)

    @staticmethod
    def check_policy(config: TrainConfig, policy: Any) -> None:
        """Likewise, what cannot work with this policy."""
        check_columns(config, policy)

    def targets(self, rollout: Rollout) -> Targets:
        """Advantages and value targets, computed once per rollout; what IMPALA overrides."""
        return gae_targets(self.policy, rollout, gamma=self.config.gamma, lam=self.config.gae_lambda)

    def update(self, rollout: Rollout, progress: float = 0.0) -> Metrics:
        """One pass over the rollout.

        Args:
            rollout: with the extras `log_prob` and `dist_params` of the policy that acted.
            progress: share of the budget used, for the schedules.
        """
        config = self.config
        share = schedule(config.learning_rate_schedule, 1.0, config.learning_rate_end, progress)
        entropy_coef = schedule(config.entropy_coef_schedule, config.entropy_coef, 0.0, progress)
        self.optimizer.learning_rates = [config.learning_rate * share]

        targets = self.targets(rollout)
        batch: dict[str, Any] = {
            "obs": rollout.obs,
            "action": rollout.action,
            "behaviour_log_prob": rollout.extras["log_prob"],
            "advantage": targets.advantage,
            "returns": targets.returns,
        }
        masked = not bool(rollout.mask.all())
        if masked:
            batch["mask"] = rollout.mask
        recurrent = self.policy.state_size > 0
        if recurrent:
            batch |= {"is_first": rollout.is_first, "state": rollout.state}
        parts = minibatches(batch, config.num_minibatches, self.generator, whole_columns=recurrent)
        steps = [self._gradient_step(part, entropy_coef) for part in parts]

        metrics = self._means(steps)
        if self.policy.distribution.num_means:
            std = rollout.extras["dist_params"][..., self.policy.distribution.num_means :].exp().mean(dim=-1)
            metrics["policy/std_mean"] = float(masked_mean(std, rollout.mask if masked else None))
        return {
            **metrics,
            **targets.metrics,
            "value/explained_variance": float(explained_variance(targets.value, targets.returns, rollout.mask)),
            "optim/learning_rate": config.learning_rate * share,
            "algo/entropy_coef": entropy_coef,
        }

    def _gradient_step(self, batch: dict[str, Tensor], entropy_coef: float) -> dict[str, Tensor]:
        """What its metrics are made from, [*lead] each; `grad_norm` is a scalar."""
        config, mask = self.config, batch.get("mask")
        distribution, value = self.policy.evaluate(batch["obs"], batch.get("state"), batch.get("is_first"))
        log_prob = distribution.log_prob(batch["action"])
        log_ratio = log_prob.detach() - batch["behaviour_log_prob"]
        if mask is not None:  # whatever stands there would come back as NaN from the backward pass
            log_prob, log_ratio = log_prob.masked_fill(~mask, 0.0), log_ratio.masked_fill(~mask, 0.0)
        advantage = batch["advantage"]
        if config.normalize_advantage:
            advantage = normalize_advantage(advantage, mask)
        entropy = distribution.entropy()

        policy_losses = -log_prob * advantage
        value_losses = value_loss(value, value, batch["returns"])
        losses = policy_losses + config.value_coef * value_losses - entropy_coef * entropy
        self.optimizer.zero_grad()
        backward_of_mean(losses, mask)

        rows = {"loss/policy": policy_losses, "loss/value": value_losses, "policy/entropy": entropy}
        rows = {name: row.detach() for name, row in rows.items()} | {"log_ratio": log_ratio}
        if mask is not None:
            rows["mask"] = mask
        return rows | {"grad_norm": self.optimizer.step(config.max_grad_norm)}

    @torch.no_grad()
    def _means(self, steps: list[dict[str, Tensor]]) -> Metrics:
        """Means over the rows of all minibatches."""
        rows = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
        mask, log_ratio, grad_norm = rows.pop("mask", None), rows.pop("log_ratio"), rows.pop("grad_norm")
        rows["policy/approx_kl"] = approx_kl(log_ratio)
        means = {name: float(masked_mean(row, mask)) for name, row in rows.items()}
        ess = float(effective_share(log_ratio, mask))
        return means | {"optim/grad_norm": float(grad_norm.mean()), "policy/ess": ess}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and shuffling."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
