"""The feed-forward actor-critic: a policy head and a value head on one or two perceptrons.

Which of the "37 implementation details of PPO" (Huang et al. 2022, ICLR blog track) live here: orthogonal weights
with gains sqrt(2) hidden, 0.01 policy head, 1 value head, zero biases (`hidden_gain policy_gain value_gain`);
separate networks for policy and value (`shared_trunk`); Gaussian policy with state-independent log-std and
independent dimensions (`state_dependent_std log_std_init`); observation normalisation and clipping
(`normalize_obs obs_clip`); actions clipped into the Box on the way to the env only (`env_action`).

`gsde` is Raffin et al. 2020 (arXiv:2005.05719): the exploration noise is a linear function of the policy's last
features, with a matrix W ~ N(0, sigma²) drawn anew every `gsde_period` steps, so the density is that of
N(mu, features² · sigma²). Features are detached in the variance, as the authors do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from parl_cli.config import option
from parl_cli.errors import ConfigError
from parl_cli.functional.distributions import make_distribution, squash, standard_normal
from parl_cli.policies.encoders import ACTIVATIONS, VectorEncoder, mlp, orthogonal
from parl_cli.policies.fused import FUSED_ACTIVATIONS, FlatParameters, FusedActorCritic
from parl_cli.policies.normalizer import RunningNormalizer
from parl_cli.types import ActOutput, EnvSpec, Rollout

GSDE_EPSILON = 1e-6  # added to the variance, as in the authors' code

Activation = Literal["tanh", "relu", "relu6", "elu", "silu", "gelu"]


@dataclass(frozen=True)
class ActorCriticConfig:
    """The network's shape and its first weights."""

    name: str = option("mlp", "registered name")
    hidden_sizes: list[int] = option([64, 64], "width of each hidden layer", ge=1)
    activation: Activation = option("tanh", "tanh, relu, relu6, elu, silu or gelu after each hidden layer")
    norm: Literal["none", "layer", "group"] = option(
        "none", "none, layer or group: normalisation before each non-linearity"
    )
    shared_trunk: bool = option(False, "one network with two heads, instead of two networks")
    hidden_gain: float = option(math.sqrt(2), "orthogonal gain of hidden layers", gt=0)
    policy_gain: float = option(0.01, "orthogonal gain of the policy head", gt=0)
    value_gain: float = option(1.0, "orthogonal gain of the value head", gt=0)
    log_std_init: float = option(0.0, "initial log standard deviation (Box actions)", ge=-20, le=2)
    state_dependent_std: bool = option(False, "the network also puts out the log-std (Box actions)")
    squash: bool = option(False, "tanh-squashed Gaussian within the action bounds (Box actions)")
    gsde: bool = option(False, "generalised state-dependent exploration (Box actions)")
    gsde_period: int = option(4, "steps that share one draw of gSDE's exploration matrix", ge=1)
    normalize_obs: bool = option(False, "whiten observations by their running mean and std")
    obs_clip: float = option(10.0, "normalised observations are clipped to ± this", gt=0)


class ActorCritic(nn.Module):
    """Policy and value function of a perceptron, for every action space there is a distribution for.

    Args:
        spec: the env's spaces.
        config: see `ActorCriticConfig`.

    Raises:
        ConfigError: an observation or action space that it cannot handle.
    """

    Config = ActorCriticConfig
    summary: ClassVar[str] = "perceptron, shared or separate policy and value networks"
    state_size = 0
    noise_period = 1

    def __init__(self, spec: EnvSpec, config: ActorCriticConfig) -> None:
        super().__init__()
        if not config.hidden_sizes and config.shared_trunk:
            raise ConfigError("policy.hidden_sizes=[]: a shared trunk needs a layer; try policy.shared_trunk=false")
        self.config = config
        self.action_space = spec.action_space
        self.encoder = VectorEncoder(spec.observation_space)
        self.normalizer = RunningNormalizer(self.encoder.size, config.obs_clip) if config.normalize_obs else None
        self.distribution = make_distribution(spec.action_space, squash=config.squash)
        self.noise_dim = self.distribution.noise_dim

        self.num_means = self.distribution.num_means
        free_std = self.num_means > 0 and not config.state_dependent_std
        num_outputs = self.distribution.num_params - (self.num_means if free_std else 0)
        width = config.hidden_sizes[-1] if config.hidden_sizes else self.encoder.size
        if config.state_dependent_std and not self.num_means:
            raise ConfigError(
                f"policy.state_dependent_std=true: needs Box actions, not {spec.action_space}; set it to false"
            )
        if config.gsde:
            _check_gsde(spec, config)
            self.noise_dim = width * self.num_means
            self.noise_period = config.gsde_period

        def trunk() -> nn.Sequential:
            return mlp(self.encoder.size, config.hidden_sizes, config.activation, config.norm, config.hidden_gain)

        self.policy_trunk = trunk()
        self.value_trunk = None if config.shared_trunk else trunk()
        self.policy_head = orthogonal(nn.Linear(width, num_outputs), config.policy_gain)
        self.value_head = orthogonal(nn.Linear(width, 1), config.value_gain)
        std_shape = (width, self.num_means) if config.gsde else (self.num_means,)
        self.log_std = nn.Parameter(torch.full(std_shape, config.log_std_init)) if free_std else None
        if config.state_dependent_std:
            nn.init.constant_(self.policy_head.bias[-self.num_means :], config.log_std_init)

    @cached_property
    def fused(self) -> FusedActorCritic | None:
        """The same network without the modules around it, where it is made of plain perceptrons; None elsewhere."""
        activation = type(ACTIVATIONS[self.config.activation]())
        trunks = [trunk for trunk in (self.policy_trunk, self.value_trunk) if trunk is not None]
        plain = all(type(layer) in (nn.Linear, activation) for trunk in trunks for layer in trunk)
        own_params = type(self).params is not ActorCritic.params
        if activation not in FUSED_ACTIVATIONS or not plain or self.config.gsde or own_params:
            return None
        return FusedActorCritic(
            [[(layer.weight, layer.bias) for layer in trunk if isinstance(layer, nn.Linear)] for trunk in trunks],
            (self.policy_head.weight, self.policy_head.bias),
            (self.value_head.weight, self.value_head.bias),
            activation,
            self.log_std,
        )

    def flatten(self) -> FlatParameters:
        """Lay all parameters end to end, and learn by one autograd node from here on, if this network can."""
        first = [] if self.fused is None else self.fused.parameters()
        known = set(first)
        flat = FlatParameters([*first, *(p for p in self.parameters() if p not in known)])
        if self.fused is not None:
            self.fused.attach(flat)
        return flat

    def features(self, obs: Tensor) -> Tensor:
        """`obs` [*lead, *space.shape] → normalised vectors [*lead, F]."""
        encoded = self.encoder(obs)
        return encoded if self.normalizer is None else self.normalizer(encoded)

    def params(self, hidden: Tensor) -> Tensor:
        """Distribution parameters [*lead, P] from the policy trunk's output."""
        out = self.policy_head(hidden)
        if self.log_std is None:
            return out
        if self.config.gsde:
            variance = hidden.detach().square() @ (2 * self.log_std).exp()
            return torch.cat([out, 0.5 * torch.log(variance + GSDE_EPSILON)], dim=-1)
        return torch.cat([out, self.log_std.expand(*out.shape[:-1], self.num_means)], dim=-1)

    def act(
        self, obs: Tensor, state: Tensor | None, is_first: Tensor, noise: Tensor, greedy: bool = False
    ) -> ActOutput:
        """Choose actions; see `parl_cli.types.Policy`. Extras: `log_prob` [B(, A)], `dist_params` [B(, A), P]."""
        features = self.features(obs)
        if self.fused is not None:
            return self._draw(self.fused.policy(features), noise, greedy)
        return self.choose(self.policy_trunk(features), noise, greedy)

    def choose(self, hidden: Tensor, noise: Tensor, greedy: bool) -> ActOutput:
        """Draw from the distribution that the policy head puts on `hidden` [B(, A), H]."""
        params = self.params(hidden)
        if self.config.gsde and not greedy:
            noise = self._gsde_noise(hidden, params, noise)
        return self._draw(params, noise, greedy)

    def _draw(self, params: Tensor, noise: Tensor, greedy: bool) -> ActOutput:
        distribution = self.distribution(params)
        action = distribution.mode() if greedy else distribution.sample(noise)
        return ActOutput(action, None, {"log_prob": distribution.log_prob(action), "dist_params": params})

    def _gsde_noise(self, hidden: Tensor, params: Tensor, noise: Tensor) -> Tensor:
        """Uniform noise whose normal quantile is gSDE's perturbation, features · W with W ~ N(0, sigma²), in stds."""
        draws = standard_normal(noise).unflatten(-1, (hidden.shape[-1], self.num_means))
        perturbation = torch.einsum("...f,...fd->...d", hidden, self.log_std.exp() * draws)  # type: ignore[union-attr]
        return torch.special.ndtr(perturbation / params[..., self.num_means :].exp())

    def evaluate(self, obs: Tensor, state: Tensor | None = None, is_first: Tensor | None = None) -> tuple[Any, Tensor]:
        """The action distribution and the value [*lead] of a batch, with gradients.

        A recurrent policy wants lead `(T, n)`, `state` [n, S] and `is_first` [T, n]; here they are not used.
        """
        return self.evaluate_features(self.features(obs))

    def evaluate_features(self, features: Tensor) -> tuple[Any, Tensor]:
        """`evaluate`, from what `features` made of the observations: during an update that is always the same."""
        if self.fused is not None and not torch.is_grad_enabled():
            return self.distribution(self.fused.policy(features)), self.fused.value(features)
        if self.fused is not None and self.fused.flat is not None:
            params, value = self.fused(features)
            return self.distribution(params), value
        hidden = self.policy_trunk(features)
        value_hidden = hidden if self.value_trunk is None else self.value_trunk(features)
        return self.distribution(self.params(hidden)), self.value_head(value_hidden).squeeze(-1)

    @torch.no_grad()
    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """V(o_t) and V(o_{t+1}) before any autoreset, both [T, N(, A)], by one forward of the critic.

        One batch of all observations, the N last ones and the K final ones of truncated steps; V(o_{t+1}) is V
        shifted by one step, with the K rows patched in.
        """
        steps, columns = rollout.obs.shape[:2]
        at, final_obs = rollout.truncated_finals()
        rows = torch.cat([rollout.obs.flatten(0, 1), rollout.last_obs, final_obs])
        features = self.features(rows)
        if self.fused is not None:
            value = self.fused.value(features)
        else:
            trunk = self.policy_trunk if self.value_trunk is None else self.value_trunk
            value = self.value_head(trunk(features)).squeeze(-1)
        now, last, final = value.split([steps * columns, columns, len(at)])
        now = now.unflatten(0, (steps, columns))
        following = torch.cat([now[1:], last.unsqueeze(0)])
        following[at[:, 0], at[:, 1]] = final
        return now, following

    def env_action(self, action: np.ndarray) -> np.ndarray:
        """The action as the env takes it: squashed or clipped into a Box, shifted by a Discrete's start."""
        space = self.action_space
        if isinstance(space, spaces.Box) and self.config.squash:
            return squash(action, space)
        if isinstance(space, spaces.Box):
            return np.clip(action, space.low, space.high).astype(space.dtype, copy=False)
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            return (action + space.start).astype(space.dtype, copy=False)
        return action.astype(space.dtype, copy=False)

    def update_normalizer(self, rollout: Rollout) -> None:
        """Fold the rollout's real observations into the running statistics."""
        if self.normalizer is not None:
            self.normalizer.update(self.encoder(rollout.obs[rollout.mask]))


def _check_gsde(spec: EnvSpec, config: ActorCriticConfig) -> None:
    if not isinstance(spec.action_space, spaces.Box):
        raise ConfigError(f"policy.gsde=true: needs Box actions, not {spec.action_space}; set policy.gsde=false")
    if config.state_dependent_std:
        raise ConfigError("policy.gsde=true: has a state-dependent std already; set policy.state_dependent_std=false")
