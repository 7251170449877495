"""Proximal policy optimisation with a clipped surrogate (Schulman et al. 2017, arXiv:1707.06347).

Beside the paper: which of the "37 implementation details" (Huang et al. 2022, ICLR blog track) apply, and where.
In this file: Adam epsilon 1e-5 (`adam_eps`), learning-rate annealing (`learning_rate_schedule`), GAE, shuffled
minibatches in every epoch, advantage normalisation per minibatch (`normalize_advantage`), the clipped surrogate,
value clipping (`value_clip_range`, off: it was found not to help, Andrychowicz et al. 2021), the joint loss with an
entropy bonus, global gradient clipping (`max_grad_norm`), the diagnostics (`policy/approx_kl`, `policy/clip_fraction`),
early stop at a KL (`target_kl`). In the network (`policies/actor_critic.py`): orthogonal weights and their gains,
separate networks, state-independent log-std, observation normalisation and clipping. In the learner: reward scaling
and clipping (`normalize_reward reward_clip`). In the actor: actions clipped into the Box.

Different from most implementations: values are not stored while acting; one forward of the critic after the rollout
gives them all, also of the true final observation of each truncated step, from which GAE bootstraps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from parl_cli.algos.common import check_columns, check_minibatches
from parl_cli.algos.flat_adam import FlatAdam
from parl_cli.algos.targets import Targets, gae_targets
from parl_cli.buffers.minibatches import shuffle, unstack
from parl_cli.config import TrainConfig, option
from parl_cli.errors import ConfigError
from parl_cli.functional.losses import (
    approx_kl,
    backward_of_mean,
    explained_variance,
    kl_adaptive_lr,
    kl_penalty_coef,
    masked_mean,
    normalize_advantage,
    ppo_clip_loss,
    value_loss,
)
from parl_cli.functional.schedules import schedule
from parl_cli.policies.actor_critic import ActorCritic
from parl_cli.policies.fused import flatten
from parl_cli.types import EnvSpec, Metrics, Rollout

MIN_ADAPTIVE_LR, MAX_ADAPTIVE_LR = 1e-5, 1e-2  # the bounds that RSL-RL (Rudin et al. 2022) uses

MAX_LOG_RATIO = 40.0  # far beyond any clip range; the square of its exponential, in a norm, is finite in float32

CRITIC = "value_"  # how the names of a policy's parameters begin that are the critic's alone

ScheduleKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class PPOConfig:
    """PPO's hyper-parameters."""

    name: str = option("ppo", "registered name")
    num_steps: int = option(128, "T: steps per env and rollout", ge=1)
    num_epochs: int = option(4, "K: passes over each rollout", ge=1)
    num_minibatches: int = option(4, "minibatches per pass; must divide num_steps × num_envs", ge=1)
    learning_rate: float = option(3e-4, "Adam's step size", gt=0)
    critic_learning_rate: float | None = option(None, "the critic's own; null: learning_rate", gt=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine", "kl_adaptive"] = option(
        "constant",
        "constant; linear or cosine, over total_steps down to learning_rate_end; kl_adaptive, after target_kl",
    )
    learning_rate_end: float = option(0.0, "share of learning_rate left at the end of its schedule", ge=0, le=1)
    gamma: float = option(0.99, "discount", ge=0, le=1)
    gae_lambda: float = option(0.95, "GAE's lambda", ge=0, le=1)
    objective: Literal["clip", "kl_penalty"] = option(
        "clip", "clip: clipped surrogate (eq. 7); kl_penalty: KL penalty (eq. 8)"
    )
    clip_range: float = option(0.2, "epsilon: the ratio is clipped to 1 ± epsilon", gt=0)
    clip_range_schedule: ScheduleKind = option("constant", "constant; linear or cosine, over total_steps down to 0")
    kl_penalty_coef: float = option(1.0, "beta of eq. 8 at the start; adapted to kl_penalty_target", gt=0)
    kl_penalty_target: float = option(0.01, "d_targ of eq. 8", gt=0)
    value_clip_range: float | None = option(None, "clip the value's change to ± this; null: no clipping", gt=0)
    entropy_coef: float = option(0.0, "c2: weight of the entropy bonus", ge=0)
    entropy_coef_schedule: ScheduleKind = option("constant", "constant; linear or cosine, over total_steps down to 0")
    value_coef: float = option(0.5, "c1: weight of the value loss", ge=0)
    max_grad_norm: float | None = option(0.5, "global gradient norm is clipped to this; null: no clipping", gt=0)
    normalize_advantage: bool = option(True, "mean 0 and std 1 within each minibatch")
    normalize_reward: bool = option(False, "divide rewards by the running std of the discounted return")
    reward_clip: float = option(10.0, "scaled rewards are clipped to ± this", gt=0)
    target_kl: float | None = option(
        None, "approx. KL that stops a rollout's epochs; with kl_adaptive, the one it aims at", gt=0
    )
    adam_eps: float = option(1e-5, "Adam's epsilon", gt=0)


class PPO:
    """Clipped-surrogate PPO over any policy with `evaluate` and `values`.

    Args:
        policy: an actor-critic.
        config: hyper-parameters.
        seed: seeds the minibatch shuffles.
    """

    Config: ClassVar[type[PPOConfig]] = PPOConfig
    summary: ClassVar[str] = "on-policy, clipped surrogate or KL penalty, synchronous"
    supports: ClassVar[dict[str, tuple[str, ...]]] = {
        "actions": ("Discrete", "MultiDiscrete", "MultiBinary", "Box"),
        "observations": ("Box", "Discrete", "MultiDiscrete", "MultiBinary"),
        "actors": ("inline",),
    }
    scheduled: ClassVar[tuple[str, ...]] = ("clip_range", "entropy_coef")  # each with a `<name>_schedule`, down to 0

    def __init__(self, policy: Any, config: PPOConfig, *, seed: int = 0) -> None:
        self.policy = policy
        self.config = config
        self.num_steps = config.num_steps
        self.generator = torch.Generator().manual_seed(seed)
        critic = [p for n, p in policy.named_parameters() if n.startswith(CRITIC)]
        actor = [p for n, p in policy.named_parameters() if not n.startswith(CRITIC)]
        self.optimizer = FlatAdam(
            flatten(policy), [actor, critic], learning_rate=config.learning_rate, eps=config.adam_eps
        )
        # what a plain actor-critic makes of observations is the same throughout an update; one-hot rows would be large
        methods = ("evaluate", "features", "evaluate_features")
        plain = all(getattr(type(policy), name, None) is getattr(ActorCritic, name) for name in methods)
        self._encodes_once = plain and policy.encoder.classes is None
        self.learning_rate = config.learning_rate
        self.kl_penalty_coef = config.kl_penalty_coef

    @staticmethod
    def check(config: TrainConfig, spec: EnvSpec) -> None:
        """Refuse what cannot work before anything is written.

        Raises:
            ConfigError: minibatches that do not divide the rollout, an adaptive rate without a target.
        """
        check_minibatches(config)
        algo = config.algo
        if algo.learning_rate_schedule == "kl_adaptive" and algo.target_kl is None:
            raise ConfigError(
                "algo.learning_rate_schedule=kl_adaptive: needs the KL to aim at; add algo.target_kl=0.01"
            )
        in_bounds = MIN_ADAPTIVE_LR <= algo.learning_rate <= MAX_ADAPTIVE_LR
        if algo.learning_rate_schedule == "kl_adaptive" and not in_bounds:
            raise ConfigError(
                f"algo.learning_rate={algo.learning_rate}: kl_adaptive keeps it between {MIN_ADAPTIVE_LR} and "
                f"{MAX_ADAPTIVE_LR}; start in there"
            )

    @staticmethod
    def check_policy(config: TrainConfig, policy: Any) -> None:
        """Likewise, what cannot work with this policy.

        Raises:
            ConfigError: minibatches that do not divide a recurrent one's columns, a rate for a critic that is not seen.
        """
        check_columns(config, policy)
        rate = config.algo.critic_learning_rate
        if rate is not None and not any(name.startswith(CRITIC) for name, _ in policy.named_parameters()):
            raise ConfigError(
                f"algo.critic_learning_rate={rate}: policy={config.policy.name} has no parameters called {CRITIC}…, "
                "which are the critic's; leave it out, or rename them"
            )

    def update(self, rollout: Rollout, progress: float = 0.0) -> Metrics:
        """Several epochs of minibatch steps on one rollout.

        Args:
            rollout: with extras `log_prob` and `dist_params` of the policy that acted.
            progress: share of the budget used, for the schedules.
        """
        config = self.config
        now = {
            name: schedule(getattr(config, f"{name}_schedule"), getattr(config, name), 0.0, progress)
            for name in self.scheduled
        }
        self._set_learning_rate(progress)

        targets = self.targets(rollout)
        value, returns = targets.value, targets.returns
        batch: dict[str, Any] = {
            "obs": self.policy.features(rollout.obs) if self._encodes_once else rollout.obs,
            "action": rollout.action,
            "log_prob": rollout.extras["log_prob"],
            "dist_params": rollout.extras["dist_params"],
            "advantage": targets.advantage,
            "returns": returns,
            "value": value,
        }
        if not rollout.mask.all():
            batch["mask"] = rollout.mask
            # whatever stands there may send the KL to infinity, and its gradient to NaN, though it is masked out later
            batch["dist_params"] = batch["dist_params"].masked_fill(~rollout.mask.unsqueeze(-1), 0.0)
        recurrent = self.policy.state_size > 0
        if recurrent:
            batch |= {"is_first": rollout.is_first, "state": rollout.state}

        history: list[dict[str, Tensor]] = []  # one row per epoch
        for _ in range(config.num_epochs):
            epoch = shuffle(batch, config.num_minibatches, self.generator, whole_columns=recurrent)
            if config.normalize_advantage:
                epoch["advantage"] = normalize_advantage(epoch["advantage"], epoch.get("mask"), batch_dims=1)
            history.append(self._epoch_metrics([self._minibatch_step(part, now) for part in unstack(epoch)], now))
            if config.target_kl is None:
                continue
            kl = float(history[-1]["policy/approx_kl"])
            if config.learning_rate_schedule == "kl_adaptive":
                self.learning_rate = kl_adaptive_lr(
                    self.learning_rate, kl, config.target_kl, min_lr=MIN_ADAPTIVE_LR, max_lr=MAX_ADAPTIVE_LR
                )
                self._set_learning_rate(progress)
            elif kl > config.target_kl:
                break

        means = torch.stack([torch.stack(list(row.values())) for row in history]).mean(dim=0).tolist()
        metrics = dict(zip(history[0], means, strict=True))
        mask = batch.get("mask")
        with torch.no_grad():
            entropy = self.policy.distribution(batch["dist_params"]).entropy()
            metrics["policy/entropy"] = float(masked_mean(entropy, mask))
        if config.objective == "kl_penalty":
            metrics["algo/kl_penalty_coef"] = self.kl_penalty_coef
            # of the last epoch: in the first minibatches the policy has hardly moved
            kl = float(history[-1]["policy/approx_kl"])
            self.kl_penalty_coef = kl_penalty_coef(self.kl_penalty_coef, kl, config.kl_penalty_target)
        num_means = self.policy.distribution.num_means
        if num_means:
            std = rollout.extras["dist_params"][..., num_means:].exp().mean(dim=-1)
            metrics["policy/std_mean"] = float(masked_mean(std, mask))
        actor_rate, critic_rate = self.optimizer.learning_rates
        return metrics | {
            **targets.metrics,
            "value/explained_variance": float(explained_variance(value, returns, rollout.mask)),
            "optim/learning_rate": actor_rate,
            "optim/critic_learning_rate": critic_rate,
            "optim/epochs": float(len(history)),
            **{f"algo/{name}": value for name, value in now.items()},
        }

    def targets(self, rollout: Rollout) -> Targets:
        """Advantages and value targets, computed once per rollout, before the epochs; what APPO overrides."""
        return gae_targets(self.policy, rollout, gamma=self.config.gamma, lam=self.config.gae_lambda)

    def _minibatch_step(self, batch: dict[str, Tensor], now: dict[str, float]) -> dict[str, Tensor]:
        """One gradient step. What its metrics are made from, [*lead] each; `grad_norm` is a scalar."""
        config, mask = self.config, batch.get("mask")
        if self._encodes_once:
            distribution, value = self.policy.evaluate_features(batch["obs"])
        else:
            distribution, value = self.policy.evaluate(batch["obs"], batch.get("state"), batch.get("is_first"))
        log_ratio = distribution.log_prob(batch["action"]) - batch["log_prob"]
        if mask is not None:  # a ratio that overflows would come back as NaN from the backward pass
            log_ratio = log_ratio.masked_fill(~mask, 0.0)

        # where the objective is flat its gradient is 0, but 0 · infinity is NaN
        ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
        policy_losses, extra = self.policy_loss(ratio, batch["advantage"], distribution, batch, now)
        value_losses = value_loss(value, batch["value"], batch["returns"], clip_range=config.value_clip_range)
        losses = torch.add(policy_losses, value_losses, alpha=config.value_coef)
        if now["entropy_coef"]:
            losses = torch.sub(losses, distribution.entropy(), alpha=now["entropy_coef"])

        self.optimizer.zero_grad()
        backward_of_mean(losses, mask)
        rows = {"loss/policy": policy_losses, "loss/value": value_losses, "log_ratio": log_ratio, **extra}
        rows = {name: row.detach() for name, row in rows.items()}
        if mask is not None:
            rows["mask"] = mask
        return rows | {"grad_norm": self.optimizer.step(config.max_grad_norm)}

    @torch.no_grad()
    def _epoch_metrics(self, steps: list[dict[str, Tensor]], now: dict[str, float]) -> dict[str, Tensor]:
        """Scalars: means over the rows of an epoch's minibatches."""
        rows = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
        mask, log_ratio, grad_norm = rows.pop("mask", None), rows.pop("log_ratio"), rows.pop("grad_norm")
        rows["policy/approx_kl"] = approx_kl(log_ratio)
        rows["policy/clip_fraction"] = (log_ratio.exp() - 1).abs() > now["clip_range"]
        means = {name: masked_mean(row.float(), mask) for name, row in rows.items()}
        return means | {"optim/grad_norm": grad_norm.mean()}

    def policy_loss(
        self,
        ratio: Tensor,
        advantage: Tensor,
        distribution: Any,
        batch: dict[str, Tensor],
        now: dict[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each step, to be minimised; what the rest of PPO's family overrides.

        Args:
            ratio: r = pi_new(a|s) / pi_old(a|s), [*lead].
            advantage: [*lead].
            distribution: pi_new.
            batch: the minibatch; `dist_params` rebuild pi_old.
            now: each of `scheduled` at this point of its schedule.

        Returns:
            The loss, [*lead], and further metrics by name, [*lead] each, of which the mean is logged.
        """
        if self.config.objective == "kl_penalty":
            old = self.policy.distribution(batch["dist_params"])
            return self.kl_penalty_coef * old.kl(distribution) - ratio * advantage, {}
        return ppo_clip_loss(ratio, advantage, now["clip_range"]), {}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, shuffling and adaptive coefficients."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "learning_rate": self.learning_rate,
            "kl_penalty_coef": self.kl_penalty_coef,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.learning_rate = float(state["learning_rate"])
        self.kl_penalty_coef = float(state["kl_penalty_coef"])

    def _set_learning_rate(self, progress: float) -> None:
        config = self.config
        if config.learning_rate_schedule == "kl_adaptive":
            share = self.learning_rate / config.learning_rate
        else:
            share = schedule(config.learning_rate_schedule, 1.0, config.learning_rate_end, progress)
        critic = config.critic_learning_rate or config.learning_rate
        self.optimizer.learning_rates = [config.learning_rate * share, critic * share]
