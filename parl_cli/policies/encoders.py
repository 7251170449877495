"""From raw observations to the vectors that networks read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from parl_cli.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class VectorEncoder(nn.Module):
    """Flattens one observation into a float vector: a Box as it is, a Discrete as one-hot.

    Args:
        space: Box (up to two dimensions), Discrete, MultiDiscrete or MultiBinary.

    Raises:
        ConfigError: any other space; images need a convolutional encoder, dictionaries a wrapper.
    """

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.event_dims = len(space.shape or ())
        if isinstance(space, spaces.Box | spaces.MultiBinary) and self.event_dims <= 2:
            self.size, self.classes = math.prod(space.shape), None
        elif isinstance(space, spaces.Discrete):
            self.size, self.classes = int(space.n), [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            self.classes = [int(n) for n in space.nvec]
            self.size = sum(self.classes)
        else:
            way_out = "add env.wrappers=[flatten_obs]" if space.is_np_flattenable else "wrap the env to give vectors"
            raise ConfigError(
                f"policy=mlp cannot read observations of {' '.join(str(space).split())}: it reads vectors (Box up to "
                f"2-D, Discrete, MultiDiscrete, MultiBinary); {way_out}"
            )
        start = getattr(space, "start", 0)
        self.start = torch.as_tensor(start) if self.classes else None

    def forward(self, obs: Tensor) -> Tensor:
        """`obs` [*lead, *space.shape] → [*lead, size] float32."""
        if self.classes is None:
            flat = obs.flatten(obs.dim() - self.event_dims) if self.event_dims else obs.unsqueeze(-1)
            return flat.float()
        index = obs.long() - self.start.to(obs.device)  # type: ignore[union-attr]
        if self.event_dims == 0:
            return F.one_hot(index, self.classes[0]).float()
        columns = [F.one_hot(index[..., i], n) for i, n in enumerate(self.classes)]
        return torch.cat(columns, dim=-1).float()


class _GroupNorm(nn.GroupNorm):
    """Group normalisation over the last dimension, for any lead."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _norm(kind: str, size: int) -> list[nn.Module]:
    if kind == "layer":
        return [nn.LayerNorm(size)]
    if kind == "group":
        return [_GroupNorm(math.gcd(size, 8), size)]
    return []


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Initialise a linear layer with an orthogonal matrix times `gain`, and a zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(size: int, hidden_sizes: Sequence[int], activation: str, norm: str, gain: float) -> nn.Sequential:
    """Hidden layers of a perceptron: linear → norm → activation, orthogonal weights with `gain`."""
    layers: list[nn.Module] = []
    for hidden in hidden_sizes:
        layers += [orthogonal(nn.Linear(size, hidden), gain), *_norm(norm, hidden), ACTIVATIONS[activation]()]
        size = hidden
    return nn.Sequential(*layers)
