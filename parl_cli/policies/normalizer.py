"""Running normalisation of observations, kept as buffers of the network that reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNormalizer(nn.Module):
    """Whitens observations by their running mean and variance, then clips.

    Batches are merged by Chan et al.'s parallel form of Welford's update, so the statistics of one large rollout
    and of the same rows in pieces agree. The statistics are buffers: a checkpoint, an actor's copy or an export
    cannot lose them. Only the learner writes them, once per rollout, after the update.

    Args:
        size: length of the observation vector.
        clip: normalised values are clipped to ±clip.
        epsilon: added to the variance.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.clip = clip
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # float32 stops counting at 2^24

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [*lead, size]."""
        return ((x - self.mean) * torch.rsqrt(self.var + self.epsilon)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Fold the rows of `x` [B, size] into the statistics."""
        if x.shape[0] == 0:
            return
        rows = x.shape[0]
        # relative to the first row: a constant then has a mean without rounding error, which 1/epsilon would blow up
        shifted = x - x[0]
        mean = x[0] + shifted.mean(dim=0)
        var = shifted.var(dim=0, unbiased=False)
        total = self.count + rows
        delta = mean - self.mean
        # before the first batch the variance of 1 is a placeholder: count is 0, so it carries no weight
        spread = self.var * self.count + var * rows + delta.square() * (self.count * rows / total)
        self.mean += delta * (rows / total)
        self.var.copy_(spread / total)
        self.count.copy_(total)
