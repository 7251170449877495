"""Reward scaling by the running standard deviation of the discounted return."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from parl_cli.types import Rollout


class RewardScaler:
    """Divides rewards by the std of a running discounted return, then clips ("37 details", continuous 6 and 7).

    The return accumulators are keyed by env id, so it does not matter in which column an env's steps arrive. Unlike
    Gymnasium's wrapper it sees a whole rollout before it scales it: one std per rollout.

    Args:
        num_envs: env ids are below this.
        agents: `()` or `(A,)`.
        gamma: discount of the accumulated return.
        clip: scaled rewards are clipped to ±clip.
    """

    def __init__(self, num_envs: int, agents: tuple[int, ...], *, gamma: float, clip: float = 10.0) -> None:
        self.gamma = gamma
        self.clip = clip
        self._accumulated = torch.zeros(num_envs, *agents, dtype=torch.float64)
        self._count = 0.0
        self._mean = 0.0
        self._spread = 0.0  # sum of squared deviations

    @property
    def std(self) -> float:
        """Standard deviation of the returns seen; 1 before there are any."""
        return math.sqrt(self._spread / self._count) if self._count > 0 else 1.0

    def __call__(self, rollout: Rollout) -> Tensor:
        """Fold the rollout's returns into the statistics and give its scaled rewards, [T, N(, A)]."""
        reward = rollout.reward.to("cpu", torch.float64)
        mask = rollout.mask.cpu()
        stop = (rollout.terminated | rollout.truncated).cpu() | ~mask
        envs, begun = rollout.env_id.cpu(), rollout.is_first[0].cpu()
        returns = torch.empty_like(reward)
        for columns in _turns(envs):
            # an env may have left its episode without an end: after a resume that could not re-step it, say
            running = self._accumulated[envs[columns]].masked_fill(begun[columns], 0.0)
            for t in range(len(reward)):
                running = running * self.gamma + reward[t, columns]
                returns[t, columns] = running
                running = running.masked_fill(stop[t, columns], 0.0)
            self._accumulated[envs[columns]] = running
        self._merge(returns[mask])
        return (rollout.reward / math.sqrt(self.std**2 + 1e-8)).clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Any]:
        """Statistics and accumulators."""
        return {
            "accumulated": self._accumulated,
            "count": self._count,
            "mean": self._mean,
            "spread": self._spread,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; ValueError if it is of other envs."""
        accumulated, own = state["accumulated"], self._accumulated
        if accumulated.shape != own.shape or accumulated.dtype != own.dtype:
            raise ValueError(f"returns of shape {list(accumulated.shape)}; this run has {list(own.shape)}")
        count, mean, spread = (float(state[k]) for k in ("count", "mean", "spread"))
        if not (math.isfinite(count + mean + spread) and count >= 0 and spread >= 0):
            raise ValueError(f"statistics of returns that cannot be: count {count}, mean {mean}, spread {spread}")
        self._accumulated = accumulated.clone()
        self._count, self._mean, self._spread = count, mean, spread

    def _merge(self, returns: Tensor) -> None:
        rows = float(returns.numel())
        if rows == 0:
            return
        mean = float(returns.mean())
        delta = mean - self._mean
        total = self._count + rows
        self._spread += float((returns - mean).square().sum()) + delta**2 * self._count * rows / total
        self._mean += delta * rows / total
        self._count = total


def _turns(envs: Tensor) -> list[Tensor]:
    """Columns grouped so that an env with several of them takes them one after another, in order."""
    ids = envs.tolist()
    if len(set(ids)) == len(ids):
        return [torch.arange(len(ids))]
    turn = [ids[:n].count(env) for n, env in enumerate(ids)]
    return [torch.tensor([n for n, k in enumerate(turn) if k == wanted]) for wanted in range(max(turn) + 1)]
