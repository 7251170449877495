"""Dual-clip PPO (Ye et al. 2020, arXiv:1912.09729): PPO whose loss for bad actions is bounded, too."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.config import option


@dataclass(frozen=True)
class DualClipPPOConfig(PPOConfig):
    """PPO's hyper-parameters and the second bound."""

    name: str = option("dual_clip_ppo", "registered name")
    dual_clip: float = option(3.0, "c: with A < 0 the objective is at least c A", gt=1)


class DualClipPPO(PPO):
    """PPO with eq. 5 of the paper."""

    Config = DualClipPPOConfig
    config: DualClipPPOConfig
    summary: ClassVar[str] = "PPO with a second clip, for actions that turned out bad"

    def policy_loss(
        self, ratio: Tensor, advantage: Tensor, distribution: Any, batch: dict[str, Tensor], now: dict[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(ratio, advantage, distribution, batch, now)
        bounded = torch.minimum(loss, -self.config.dual_clip * advantage)
        return torch.where(advantage < 0, bounded, loss), metrics | {"policy/dual_clip_fraction": bounded < loss}
