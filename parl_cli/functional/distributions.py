"""Action distributions: one flat parameter tensor in, plain tensors out.

A distribution is built from `params` [*lead, P] alone, so a rollout stores the behaviour policy as one tensor and the
learner rebuilds it. Nothing here draws random numbers: `sample` maps uniform noise [*lead, noise_dim] in (0, 1), the
only randomness, to an action by the inverse of the cumulative distribution. Not `torch.distributions`, whose argument
checks and lazy attributes cost more than the arithmetic at the sizes of acting.

`make_distribution` reads an action space and says what a policy head and a rollout need to know.

Trap: the behaviour log-probability must come from `log_prob(action)` of the *stored* action, as the learner's will.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from parl_cli.errors import ConfigError

_NOISE_MIN = 2.0**-24  # 1 − 2⁻²⁴ is the largest float32 below 1
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_QUADRATURE_NODES = 32


def standard_normal(noise: Tensor) -> Tensor:
    """Φ⁻¹ of uniform `noise`: standard normal numbers, at most 5.3 from 0."""
    return torch.erfinv(2.0 * noise.clamp(_NOISE_MIN, 1.0 - _NOISE_MIN) - 1.0) * math.sqrt(2.0)


class Distribution(ABC):
    """A distribution over actions, one for every row of the lead. Build one by `ActionDistribution(params)`."""

    @abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """The action that `noise` [*lead, noise_dim] in (0, 1) selects, [*lead, *event]."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The action to take without exploring, [*lead, *event]."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (or density) of `action` [*lead, *event], joint over its dimensions, [*lead]."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy in nats, joint over action dimensions, differentiable, [*lead]."""

    @abstractmethod
    def kl(self, other: Self) -> Tensor:
        """KL(self || other) in nats, joint over action dimensions, differentiable in both, [*lead]."""


class Categorical(Distribution):
    """One of n choices; `params` are logits [*lead, n], of which some may be −inf (forbidden). Noise: 1 number.

    Actions are int64 [*lead], counted from 0. A forbidden class is never drawn; its log-probability is −inf.
    """

    def __init__(self, params: Tensor) -> None:
        self.log_probs = F.log_softmax(params, dim=-1)

    def sample(self, noise: Tensor) -> Tensor:
        """The first class whose cumulative probability exceeds `noise` [*lead, 1]."""
        if self.log_probs.device.type == "cpu":
            return torch.as_tensor(_choose(self.log_probs.detach().numpy(), noise.numpy()))  # a scalar for lead ()
        return _choose_in_parallel(self.log_probs.exp(), noise)

    def mode(self) -> Tensor:
        """The most likely class."""
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of `action` [*lead]."""
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """−Σ p log p; forbidden classes add nothing."""
        return -(self.log_probs.exp() * self._finite_log_probs()).sum(-1)

    def kl(self, other: Self) -> Tensor:
        """Σ p (log p − log q); of the order of 1e38, for infinity, where `other` forbids what this one does not."""
        return (self.log_probs.exp() * (self._finite_log_probs() - other._finite_log_probs())).sum(-1)

    def _finite_log_probs(self) -> Tensor:
        # 0 · −inf is NaN, and masking it afterwards leaves the NaN in the gradient
        return self.log_probs.clamp(min=torch.finfo(self.log_probs.dtype).min)


def _choose(log_probs: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """For a CPU: numpy's calls cost a fraction of torch's, which on the rows of acting is more than the arithmetic."""
    # one addition after the other: the sum does not rise over a class of probability 0, but may end short of 1
    cumulative = np.exp(log_probs).cumsum(-1)
    threshold = np.minimum(noise, noise.dtype.type(1.0 - _NOISE_MIN)) * cumulative[..., -1:]
    return (cumulative > threshold).argmax(-1)  # the first of equals


def _choose_in_parallel(probs: Tensor, noise: Tensor) -> Tensor:
    # A parallel cumsum (CUDA) rounds by position: it may rise by an ulp over a class of probability 0, or end
    # short of 1. Hence forbidden classes are struck out, and noise is scaled to what the sum really reached.
    cumulative = probs.cumsum(-1).masked_fill(probs == 0.0, 0.0)
    threshold = noise.clamp(max=1.0 - _NOISE_MIN) * cumulative.amax(-1, keepdim=True)
    return (cumulative > threshold).to(torch.uint8).argmax(-1)  # argmax: the first of equals


class MultiCategorical(Distribution):
    """Several independent choices of different sizes; `params` are their logits side by side [*lead, sum(nvec)].

    Noise: one number per choice. Actions are int64 [*lead, len(nvec)], each counted from 0.
    """

    def __init__(self, params: Tensor, nvec: tuple[int, ...]) -> None:
        if len(set(nvec)) == 1:
            logits = params.unflatten(-1, (len(nvec), nvec[0]))
        else:
            # one rectangle, short rows filled up with a forbidden class: a handful of ops, whatever len(nvec) is
            padded = F.pad(params, (0, 1), value=-torch.inf)
            logits = padded.index_select(-1, _rectangle(nvec, params.device)).unflatten(-1, (len(nvec), max(nvec)))
        self._choices = Categorical(logits)

    def sample(self, noise: Tensor) -> Tensor:
        """One class per choice, by `noise` [*lead, len(nvec)]."""
        return self._choices.sample(noise.unsqueeze(-1))

    def mode(self) -> Tensor:
        """The most likely class of each choice."""
        return self._choices.mode()

    def log_prob(self, action: Tensor) -> Tensor:
        """Joint log-probability of `action` [*lead, len(nvec)]."""
        return self._choices.log_prob(action).sum(-1)

    def entropy(self) -> Tensor:
        """The sum of the choices' entropies."""
        return self._choices.entropy().sum(-1)

    def kl(self, other: Self) -> Tensor:
        """The sum of the choices' divergences."""
        return self._choices.kl(other._choices).sum(-1)


class Bernoulli(Distribution):
    """n independent bits; `params` are the logits of a 1 [*lead, n]. Noise: n numbers. Actions are int8 [*lead, n]."""

    def __init__(self, params: Tensor) -> None:
        self.logits = params

    def sample(self, noise: Tensor) -> Tensor:
        """1 where `noise` [*lead, n] is below the bit's probability."""
        return (noise < self.logits.sigmoid()).to(torch.int8)

    def mode(self) -> Tensor:
        """The more likely value of each bit; 0 on a tie."""
        return (self.logits > 0.0).to(torch.int8)

    def log_prob(self, action: Tensor) -> Tensor:
        """Joint log-probability of `action` [*lead, n]."""
        return F.logsigmoid(torch.where(action.bool(), self.logits, -self.logits)).sum(-1)

    def entropy(self) -> Tensor:
        """Σ H(p), in the form that keeps its digits when p is near 1."""
        return (F.softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)

    def kl(self, other: Self) -> Tensor:
        """Σ p log(p/q) + (1−p) log((1−p)/(1−q)), in logits."""
        linear = self.logits.sigmoid() * (self.logits - other.logits)
        return (linear + F.softplus(other.logits) - F.softplus(self.logits)).sum(-1)


class Gaussian(Distribution):
    """Independent normals; `params` are D means, then D log standard deviations, [*lead, 2 D]. Noise: D numbers.

    Actions are [*lead, *event_shape] with D entries; `event_shape` is (D,) unless given. Nothing is clipped here: an
    env with bounds gets `Policy.env_action`, while the learner sees what was drawn.
    """

    def __init__(self, params: Tensor, event_shape: tuple[int, ...] | None = None) -> None:
        self.mean, self.log_std = params.chunk(2, dim=-1)
        self.std = self.log_std.exp()
        self.event_shape = tuple(self.mean.shape[-1:]) if event_shape is None else event_shape

    def sample(self, noise: Tensor) -> Tensor:
        """Mean + std · Φ⁻¹(noise), differentiable in the parameters; at most 5.3 standard deviations out."""
        return self._shaped(self.mean + self.std * standard_normal(noise))

    def mode(self) -> Tensor:
        """The mean."""
        return self._shaped(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Joint log-density of `action` [*lead, *event_shape]."""
        distance = (action.reshape(self.mean.shape) - self.mean) / self.std
        return (-0.5 * distance.square() - self.log_std - _LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """Σ log std + D (½ + ½ log 2π)."""
        return (self.log_std + (0.5 + _LOG_SQRT_2PI)).sum(-1)

    def kl(self, other: Self) -> Tensor:
        """Σ log(std_q / std_p) + (std_p² + (mean_p − mean_q)²) / (2 std_q²) − ½."""
        log_ratio = self.log_std - other.log_std
        distance = (self.mean - other.mean) / other.std
        return (0.5 * (torch.expm1(2.0 * log_ratio) + distance.square()) - log_ratio).sum(-1)

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.reshape(flat.shape[:-1] + self.event_shape)


class SquashedGaussian(Gaussian):
    """A `Gaussian` u whose tanh, stretched to the bounds, is the env's action: a = middle + half · tanh(u) (`squash`).

    Haarnoja et al. 2018 (arXiv:1801.01290), appendix C, whose density is that of tanh(u); here it is that of a, so log
    half is in it and entropies are in the env's units. Parameters and noise as in `Gaussian`.

    What is sampled, kept and asked about is u: near the bounds a rounds to them, and u cannot be had back from it. A
    policy that has come there would see ratios of any size.

    Args:
        params: of u, [*lead, 2 D].
        low, high: the bounds of each of the D entries, flat.
        event_shape: as in `Gaussian`.
    """

    def __init__(
        self,
        params: Tensor,
        low: tuple[float, ...],
        high: tuple[float, ...],
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(params, event_shape)
        self.bounds = low, high
        self._log_volume = _log_volume(low, high)

    def log_prob(self, action: Tensor) -> Tensor:
        """Joint log-density of the env's action that u [*lead, *event_shape] leads to."""
        u = action.reshape(self.mean.shape)
        return super().log_prob(action) - _log_tanh_slope(u).sum(-1) - self._log_volume

    def entropy(self) -> Tensor:
        """H(u) + E[log |da/du|], the expectation by Gauss–Hermite quadrature.

        Not −log_prob of one sample: that is noise, and its gradient says nothing without the sample's own. The error
        per dimension is below 1e-6 nats up to a standard deviation (of u) of 1, 1e-3 up to 2 and 0.1 up to 7, where
        tanh is a step function to the quadrature.
        """
        nodes, weights = _quadrature(self.mean.dtype, self.mean.device)
        u = self.mean.unsqueeze(-1) + self.std.unsqueeze(-1) * nodes
        return super().entropy() + (_log_tanh_slope(u) @ weights).sum(-1) + self._log_volume

    def kl(self, other: Self) -> Tensor:
        """KL of the base Gaussians: a one-to-one map that both share changes nothing."""
        if self.bounds != other.bounds:
            raise ValueError(f"bounds {self.bounds} and {other.bounds}: KL needs the same on both sides")
        return super().kl(other)


def squash(u: np.ndarray, space: spaces.Box) -> np.ndarray:
    """The env's action [*lead, *space.shape] that a `SquashedGaussian`'s u leads to: always within the bounds."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    action = 0.5 * low + 0.5 * high + (0.5 * high - 0.5 * low) * np.tanh(u, dtype=np.float64)
    return np.clip(action, low, high).astype(space.dtype)


@dataclass(frozen=True, eq=False)
class ActionDistribution:
    """What an action space asks of a policy; calling it with `params` [*lead, num_params] builds the distribution.

    `num_means` is 0 for discrete kinds. For Gaussian kinds it is D: the first D params are means, the D after them log
    standard deviations, from the head or from a state-independent parameter.
    """

    kind: str  # the distribution's class in snake case
    num_params: int  # P
    noise_dim: int  # uniform numbers one action takes
    event_shape: tuple[int, ...]  # of one action
    dtype: torch.dtype  # of stored actions
    num_means: int
    build: Callable[[Tensor], Distribution] = field(repr=False)

    def __call__(self, params: Tensor) -> Distribution:
        """The distribution with these parameters.

        Raises:
            ValueError: the last dimension is not `num_params`.
        """
        if params.shape[-1:] != (self.num_params,):
            raise ValueError(
                f"params {tuple(params.shape)}: the last dimension must be {self.num_params} ({self.kind})"
            )
        return self.build(params)


def make_distribution(action_space: spaces.Space, *, squash: bool = False) -> ActionDistribution:
    """The distribution for an action space.

    Discrete and MultiDiscrete actions are stored counted from 0, whatever the space's `start`. Box actions keep the
    space's shape.

    Args:
        action_space: Discrete, MultiDiscrete or MultiBinary (both of one dimension), or Box of floats.
        squash: for a Box: tanh-squash into its bounds, instead of an unbounded Gaussian.

    Raises:
        ConfigError: any other space; squash without a Box, or with bounds that are infinite or leave no room.
    """
    if squash and not isinstance(action_space, spaces.Box):
        raise ConfigError(
            f"policy.squash=true with action space {_show(action_space)}: needs a Box; set policy.squash=false"
        )
    if isinstance(action_space, spaces.Discrete):
        n = int(action_space.n)
        return ActionDistribution("categorical", n, 1, (), torch.int64, 0, Categorical)
    if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim == 1:
        nvec = tuple(int(n) for n in action_space.nvec)
        build = partial(MultiCategorical, nvec=nvec)
        return ActionDistribution("multi_categorical", sum(nvec), len(nvec), (len(nvec),), torch.int64, 0, build)
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) == 1:
        n = action_space.shape[0]
        return ActionDistribution("bernoulli", n, n, (n,), torch.int8, 0, Bernoulli)
    if isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        return _box_distribution(action_space, squash)
    raise ConfigError(
        f"action space {_show(action_space)}: must be Discrete, MultiDiscrete or MultiBinary of one dimension, or Box "
        f"of floats; wrap the env so that its actions are one of these"
    )


def _box_distribution(space: spaces.Box, squash: bool) -> ActionDistribution:
    shape, size = space.shape, math.prod(space.shape)
    if size == 0:
        raise ConfigError(f"action space {_show(space)}: must have at least one entry; drop the empty dimension")
    if not squash:
        return ActionDistribution(
            "gaussian", 2 * size, size, shape, torch.float32, size, partial(Gaussian, event_shape=shape)
        )
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ConfigError(
            f"policy.squash=true with action space {_show(space)}: bounds must be finite; set policy.squash=false "
            "or give the Box finite bounds with a wrapper"
        )
    if not (low < high).all():
        raise ConfigError(
            f"policy.squash=true with action space {_show(space)}: low must be below high; set policy.squash=false"
        )
    build = partial(SquashedGaussian, low=tuple(low.tolist()), high=tuple(high.tolist()), event_shape=shape)
    return ActionDistribution("squashed_gaussian", 2 * size, size, shape, torch.float32, size, build)


def _show(space: spaces.Space) -> str:
    text = " ".join(str(space).split())  # a Box prints its bounds over many lines
    return text if len(text) <= 100 else text[:97] + "…"


def _log_tanh_slope(u: Tensor) -> Tensor:
    """Log of the derivative of tanh: log(1 − tanh²u), without the cancellation that form suffers from |u| > 4 on."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


@lru_cache(maxsize=64)
def _log_volume(low: tuple[float, ...], high: tuple[float, ...]) -> float:
    """Σ log half."""
    return sum(math.log(0.5 * b - 0.5 * a) for a, b in zip(low, high, strict=True))


# Constants, made once per device. Outside inference mode: an actor that comes first would otherwise leave tensors in
# the cache that autograd refuses to save for the learner's backward pass.


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _rectangle(nvec: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each entry of a [len(nvec) · max(nvec)] rectangle stands in params; the fill points one past their end."""
    starts = np.cumsum((0, *nvec[:-1]))
    column = np.arange(max(nvec))
    index = np.where(column < np.array(nvec)[:, None], starts[:, None] + column, sum(nvec))
    return torch.from_numpy(index.ravel()).to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _quadrature(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights with which Σ w f(node) is E[f(x)] for a standard normal x."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
    weights /= math.sqrt(2.0 * math.pi)
    return torch.from_numpy(nodes).to(device, dtype), torch.from_numpy(weights).to(device, dtype)
