"""TR-PPO-RB: TR-PPO with rollback on the ratio.

Wang et al. 2019, "Truly Proximal Policy Optimization" (arXiv:1903.07940), UAI version section 5.3. Where TR-PPO is
flat, the objective has the slope −alpha in the ratio: samples that left the trust region are pulled back, though their
optimizer momentum and their neighbours push on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from parl_cli.algos.ppo import PPO
from parl_cli.algos.tr_ppo import TRPPO, TRPPOConfig
from parl_cli.config import option
from parl_cli.functional.trust_region import tr_ppo_rb_loss, trust_region_trigger


@dataclass(frozen=True)
class TRPPORBConfig(TRPPOConfig):
    """TR-PPO's hyper-parameters, and the slope of the rollback."""

    name: str = option("tr_ppo_rb", "registered name")
    delta: float = option(0.03, "delta: KL(pi_old || pi_new) in nats at which a sample's trigger fires", gt=0)
    slope_rollback: float = option(-0.05, "−alpha: slope in the ratio once the trigger fired; 0 is TR-PPO", le=0)


class TRPPORB(PPO):
    """PPO that rolls the ratio back where samples left the trust region."""

    Config = TRPPORBConfig
    config: TRPPORBConfig
    summary: ClassVar[str] = "PPO with a KL trust region and rollback on the ratio"
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
        """Maximise r A, or [s r + stopgrad((1 − s) r)] A where the trigger fired; see `PPO.policy_loss`."""
        kl = self.policy.distribution(batch["dist_params"]).kl(distribution)
        fired = trust_region_trigger(ratio, advantage, kl, now["delta"])
        loss = tr_ppo_rb_loss(ratio, advantage, fired, slope_rollback=self.config.slope_rollback)
        return loss, {"policy/kl": kl, "policy/trigger_fraction": fired}
