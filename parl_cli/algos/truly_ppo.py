"""Truly PPO: PPO with a KL trust region and rollback on the KL.

Wang et al. 2019, "Truly Proximal Policy Optimization" (arXiv:1903.07940). Once a sample's policy has left the trust
region (KL >= delta) and its own objective has grown (r A > A), its objective becomes r A − alpha KL: a penalty that
exists only where it is needed. The KL is exact, joint over action dimensions, between the distribution rebuilt from
the rollout's `dist_params` and the current one.

Different from the authors' code: whatever is different in this package's PPO (see `ppo.py`); the objective is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from parl_cli.algos.ppo import PPO
from parl_cli.algos.tr_ppo import TRPPO, TRPPOConfig
from parl_cli.config import option
from parl_cli.functional.trust_region import truly_ppo_loss, trust_region_trigger


@dataclass(frozen=True)
class TrulyPPOConfig(TRPPOConfig):
    """TR-PPO's hyper-parameters, and the force of the rollback."""

    name: str = option("truly_ppo", "registered name")
    delta: float = option(0.03, "delta: KL(pi_old || pi_new) in nats at which a sample's trigger fires", gt=0)
    alpha: float = option(5.0, "alpha: weight of the KL once the trigger fired", ge=0)
    slope_likelihood: float = option(1.0, "share of r A that stays once the trigger fired; 0: the KL alone", ge=0)


class TrulyPPO(PPO):
    """PPO that rolls the KL back where samples left the trust region."""

    Config = TrulyPPOConfig
    config: TrulyPPOConfig
    summary: ClassVar[str] = "PPO with a KL trust region and rollback on the KL"
    neighbour: ClassVar[str] = "tr_ppo"
    scheduled: ClassVar[tuple[str, ...]] = TRPPO.scheduled

    def policy_loss(
        self,
        ratio: Tensor,
        advantage: Tensor,
        distribution: Any,
        batch: dict[str, Tensor],
        now: dict[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximise r A, or slope_likelihood · r A − alpha KL where the trigger fired; see `PPO.policy_loss`."""
        config = self.config
        kl = self.policy.distribution(batch["dist_params"]).kl(distribution)
        fired = trust_region_trigger(ratio, advantage, kl, now["delta"])
        loss = truly_ppo_loss(ratio, advantage, kl, fired, alpha=config.alpha, slope_likelihood=config.slope_likelihood)
        return loss, {"policy/kl": kl, "policy/trigger_fraction": fired}
