"""PPO-RB: PPO with rollback.

Wang et al. 2019, "Truly Proximal Policy Optimization" (arXiv:1903.07940), UAI version section 5.1. Where PPO's clipped
objective is flat, the objective has the slope −alpha in the ratio, which keeps ratios nearer to the clip range than
clipping does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.config import option
from parl_cli.functional.trust_region import ppo_rb_loss, ratio_trigger


@dataclass(frozen=True)
class PPORBConfig(PPOConfig):
    """PPO's hyper-parameters, and the slope of the rollback."""

    name: str = option("ppo_rb", "registered name")
    objective: Literal["clip"] = option("clip", "fixed: the algorithm is the objective")
    slope_rollback: float = option(-0.3, "−alpha: slope in the ratio beyond the clip range; 0 is PPO", le=0)


class PPORB(PPO):
    """PPO that rolls ratios back to the clip range."""

    Config = PPORBConfig
    config: PPORBConfig
    summary: ClassVar[str] = "PPO with rollback on the ratio beyond the clip range"
    neighbour: ClassVar[str] = "ppo"

    def policy_loss(
        self,
        ratio: Tensor,
        advantage: Tensor,
        distribution: Any,
        batch: dict[str, Tensor],
        now: dict[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Maximise r A, or [s r + (1 − s)(1 ± eps)] A beyond the clip range; see `PPO.policy_loss`."""
        clip_range = now["clip_range"]
        fired = ratio_trigger(ratio, advantage, clip_range)
        loss = ppo_rb_loss(ratio, advantage, fired, clip_range=clip_range, slope_rollback=self.config.slope_rollback)
        with torch.no_grad():  # only reported: this objective does not look at it
            kl = self.policy.distribution(batch["dist_params"]).kl(distribution)
        return loss, {"policy/kl": kl, "policy/trigger_fraction": fired}
