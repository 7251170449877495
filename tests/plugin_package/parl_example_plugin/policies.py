"""An actor-critic without a hidden layer."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from parl_cli.config import option
from parl_cli.functional.distributions import make_distribution
from parl_cli.policies.encoders import VectorEncoder
from parl_cli.types import ActOutput, EnvSpec, Rollout


@dataclass(frozen=True)
class LinearConfig:
    """There is little to choose."""

    name: str = option("linear", "registered name")
    scale: float = option(0.01, "standard deviation of the first weights", gt=0)


class LinearActorCritic(nn.Module):
    """Policy and value as linear functions of the observation, for discrete actions."""

    Config = LinearConfig
    summary: ClassVar[str] = "linear policy and value"
    state_size = 0
    noise_period = 1

    def __init__(self, spec: EnvSpec, config: LinearConfig) -> None:
        super().__init__()
        self.encoder = VectorEncoder(spec.observation_space)
        self.distribution = make_distribution(spec.action_space)
        self.noise_dim = self.distribution.noise_dim
        self.policy_head = nn.Linear(self.encoder.size, self.distribution.num_params)
        self.value_head = nn.Linear(self.encoder.size, 1)
        for head in (self.policy_head, self.value_head):
            nn.init.normal_(head.weight, std=config.scale)
            nn.init.zeros_(head.bias)

    def act(
        self, obs: Tensor, state: Tensor | None, is_first: Tensor, noise: Tensor, greedy: bool = False
    ) -> ActOutput:
        params = self.policy_head(self.encoder(obs))
        distribution = self.distribution(params)
        action = distribution.mode() if greedy else distribution.sample(noise)
        return ActOutput(action, None, {"log_prob": distribution.log_prob(action), "dist_params": params})

    def evaluate(self, obs: Tensor, state: Tensor | None = None, is_first: Tensor | None = None) -> tuple[Any, Tensor]:
        return self.distribution(self.policy_head(self.encoder(obs))), self._value(obs)

    @torch.no_grad()
    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        value = self._value(rollout.obs)
        following = torch.cat([value[1:], self._value(rollout.last_obs).unsqueeze(0)])
        at, final_obs = rollout.truncated_finals()
        following[at[:, 0], at[:, 1]] = self._value(final_obs)
        return value, following

    def env_action(self, action: np.ndarray) -> np.ndarray:
        return action

    def update_normalizer(self, rollout: Rollout) -> None:
        """Observations are read as they are."""

    def _value(self, obs: Tensor) -> Tensor:
        return self.value_head(self.encoder(obs)).squeeze(-1)
