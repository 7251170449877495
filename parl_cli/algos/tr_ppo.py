"""TR-PPO: PPO whose clipping looks at the trust region instead of the ratio.

Wang et al. 2019, "Truly Proximal Policy Optimization" (arXiv:1903.07940), UAI version section 5.2. A sample loses its
gradient once the KL divergence from the acting policy, at its observation, has reached `delta` and its own objective
has grown. The KL is exact, joint over action dimensions, between the distribution rebuilt from the rollout's
`dist_params` and the current one.

Everything else is PPO; `tr_ppo_rb.py` and `truly_ppo.py` change what happens once the trigger fires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from parl_cli.algos.ppo import PPO, PPOConfig, ScheduleKind
from parl_cli.config import option
from parl_cli.functional.trust_region import tr_ppo_loss, trust_region_trigger


@dataclass(frozen=True)
class TRPPOConfig(PPOConfig):
    """PPO's hyper-parameters, and the trust region in place of the clip range."""

    name: str = option("tr_ppo", "registered name")
    objective: Literal["clip"] = option("clip", "fixed: the algorithm is the objective")
    clip_range: float = option(0.2, "of no effect on learning: the range policy/clip_fraction counts by", gt=0)
    delta: float = option(0.035, "delta: KL(pi_old || pi_new) in nats at which a sample's trigger fires", gt=0)
    delta_schedule: ScheduleKind = option("constant", "constant; linear or cosine, over total_steps down to 0")


class TRPPO(PPO):
    """PPO without a gradient from samples that left the trust region."""

    Config = TRPPOConfig
    config: TRPPOConfig
    summary: ClassVar[str] = "PPO clipped by a KL trust region instead of the ratio"
    neighbour: ClassVar[str] = "ppo"
    scheduled: ClassVar[tuple[str, ...]] = ("delta", *PPO.scheduled)

    def policy_loss(
        self,
        ratio: Tensor,
        advantage: Tensor,
        distribution: Any,
        batch: dict[str, Tensor],
        now: dict[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximise r A, or stopgrad(r A) where the trigger fired; see `PPO.policy_loss`."""
        kl = self.policy.distribution(batch["dist_params"]).kl(distribution)
        fired = trust_region_trigger(ratio, advantage, kl, now["delta"])
        loss = tr_ppo_loss(ratio, advantage, fired)
        return loss, {"policy/kl": kl, "policy/trigger_fraction": fired}
