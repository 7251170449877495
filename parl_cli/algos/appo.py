"""APPO: PPO on rollouts of actors that lag behind.

Petrenko et al. 2020, "Sample Factory" (arXiv:2006.11751), and Luo et al. 2020, "IMPACT" (arXiv:1912.00167), put PPO's
clipped surrogate (arXiv:1707.06347) on IMPALA's rollouts and value targets (arXiv:1802.01561). The ratio is to the
policy that acted, whose log-probabilities the rollout holds; advantages and value targets are V-trace's, with the
current critic and the current policy, once per rollout, before the epochs. The step's own ratio stands in the
surrogate already, so the advantage corrects only what came after it (`surrogate_advantage`).

Without lag, or with `vtrace=false`, it is PPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.algos.targets import Targets, critique, current_log_prob
from parl_cli.config import option
from parl_cli.functional.advantages import surrogate_advantage, vtrace
from parl_cli.functional.importance import ratio_metrics
from parl_cli.types import Rollout


@dataclass(frozen=True)
class APPOConfig(PPOConfig):
    """PPO's hyper-parameters, and the clips of V-trace."""

    name: str = option("appo", "registered name")
    vtrace: bool = option(True, "correct for the actors' lag; false: GAE, as in PPO")
    rho_bar: float = option(1.0, "clip of the ratio in V-trace's temporal difference", gt=0)
    c_bar: float = option(1.0, "clip of the ratio in V-trace's trace", gt=0)


class APPO(PPO):
    """PPO whose targets know of the actors' lag."""

    Config = APPOConfig
    config: APPOConfig
    summary: ClassVar[str] = "PPO for actors that lag behind: V-trace, ratios to the policy that acted"
    neighbour: ClassVar[str] = "ppo"
    supports: ClassVar[dict[str, tuple[str, ...]]] = PPO.supports | {"actors": ("inline", "thread", "process")}

    def targets(self, rollout: Rollout) -> Targets:
        """V-trace's value targets, and advantages that leave the step's own ratio to the surrogate."""
        config = self.config
        if not config.vtrace:
            return super().targets(rollout)
        seen = critique(self.policy, rollout)
        behaviour, current = rollout.extras["log_prob"], current_log_prob(self.policy, rollout)
        vs, _ = vtrace(
            behaviour,
            current,
            rollout.reward,
            *seen,
            gamma=config.gamma,
            lam=config.gae_lambda,
            rho_bar=config.rho_bar,
            c_bar=config.c_bar,
        )
        advantage = surrogate_advantage(vs, rollout.reward, *seen, gamma=config.gamma, lam=config.gae_lambda)
        return Targets(seen.value, advantage, vs, ratio_metrics(current - behaviour, config.rho_bar, rollout.mask))
