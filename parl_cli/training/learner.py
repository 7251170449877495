"""The learner: brings rollouts to the device, scales rewards, lets the algorithm update, keeps the counters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parl_cli.buffers.rollouts import concatenate, to_device
from parl_cli.errors import ParlError
from parl_cli.metrics.timing import Stopwatch
from parl_cli.training.reward_scaler import RewardScaler
from parl_cli.types import Algorithm, Episode, Metrics, Rollout, Snapshot


class NonFiniteError(ParlError):
    """NaN or infinity in an observation, a reward, a loss or a gradient; carries the rollout that led to it."""

    def __init__(self, message: str, rollout: Rollout) -> None:
        super().__init__(message)
        self.rollout = rollout


class Learner:
    """One policy's learning: the only writer of its weights and of its observation statistics.

    Args:
        algo: what `update(rollout)` does.
        total_steps: the budget that schedules run over.
        device: where the algorithm computes.
        reward_scaler: divides rewards by the running std of the return; None leaves them as they are.
    """

    def __init__(
        self, algo: Algorithm, *, total_steps: int, device: torch.device, reward_scaler: RewardScaler | None = None
    ) -> None:
        self.algo = algo
        self.total_steps = total_steps
        self.device = device
        self.reward_scaler = reward_scaler
        self.env_steps = 0
        self.updates = 0
        self.dropped_steps = 0  # of env_steps, those that were thrown away
        self.last_steps = 0  # env steps of the last update
        self.episodes: list[Episode] = []  # finished in the last update's rollouts
        self.watch = Stopwatch()

    @property
    def policy(self) -> Any:
        """The network."""
        return self.algo.policy

    def step(self, rollouts: Sequence[Rollout]) -> Metrics:
        """Learn from rollouts.

        Raises:
            NonFiniteError: NaN or infinity came in, or came out of the update.
        """
        with self.watch("learn"):
            rollout = concatenate(rollouts)
            self._check_input(rollout)
            self.episodes = rollout.episodes
            real = rollout.real
            self.dropped_steps += rollout.dropped_steps
            metrics = {
                **_lag_metrics(self.updates - rollout.policy_version[real]),
                "rollout/masked_share": 1.0 - float(rollout.mask.float().mean()),
                "rollout/dropped_steps": float(self.dropped_steps),
            }
            self.last_steps = rollout.num_env_steps + rollout.dropped_steps
            self.env_steps += self.last_steps
            rollout = to_device(rollout, self.device)
            if self.reward_scaler is not None:
                rollout = dataclasses.replace(rollout, reward=self.reward_scaler(rollout))
                metrics["normalizer/reward_std"] = self.reward_scaler.std
            # the progress before this rollout, so that the first update uses the schedules' first values
            progress = (self.env_steps - self.last_steps) / self.total_steps
            metrics |= self.algo.update(rollout, min(progress, 1.0))
            self.policy.update_normalizer(rollout)
            self.updates += 1
            watched = {k: v for k, v in metrics.items() if k.startswith("loss/") or k == "optim/grad_norm"}
            bad = [name for name, value in watched.items() if not math.isfinite(value)]
            if bad:
                raise NonFiniteError(
                    f"update {self.updates}: {', '.join(bad)} became NaN or infinite; lower algo.learning_rate, or "
                    "normalise observations and rewards",
                    rollout,
                )
            return metrics

    def snapshot(self) -> Snapshot:
        """The weights as they are now, by reference."""
        return Snapshot(self.updates, self.env_steps, self.policy.state_dict(keep_vars=False))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on besides the rollout."""
        return {
            "algo": self.algo.state_dict(),
            "reward_scaler": None if self.reward_scaler is None else self.reward_scaler.state_dict(),
            "env_steps": self.env_steps,
            "updates": self.updates,
            "dropped_steps": self.dropped_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.algo.load_state_dict(state["algo"])
        if self.reward_scaler is not None:
            self.reward_scaler.load_state_dict(state["reward_scaler"])
        self.env_steps = int(state["env_steps"])
        self.updates = int(state["updates"])
        self.dropped_steps = int(state["dropped_steps"])

    def _check_input(self, rollout: Rollout) -> None:
        # masked rows too: what the network reads there comes back from the backward pass as 0 · NaN
        cut, cut_obs = rollout.truncated_finals()  # what a terminal step led to is never read
        for name in ("obs", "reward", "final_obs", "last_obs"):
            values = cut_obs if name == "final_obs" else getattr(rollout, name)
            if not values.is_floating_point() or torch.isfinite(values).all():
                continue
            row, *column = (~torch.isfinite(values)).nonzero()[0].tolist()
            if name == "final_obs":
                step, n = cut[row].tolist()
            else:
                step, n = (len(rollout.obs), row) if name == "last_obs" else (row, column[0])
            raise NonFiniteError(
                f"env {int(rollout.env_id[n])}: its {name} is NaN or infinite at step {step} of update "
                f"{self.updates + 1}",
                rollout,
            )


def _lag_metrics(lag: Tensor) -> Metrics:
    """Mean and maximum of the real steps' lag [R] in updates, and the share of every lag where there is any."""
    if not lag.any():
        return {"rollout/policy_lag_mean": 0.0, "rollout/policy_lag_max": 0.0}
    shares = (torch.bincount(lag) / len(lag)).tolist()
    return {
        "rollout/policy_lag_mean": float(lag.float().mean()),
        "rollout/policy_lag_max": float(lag.max()),
        **{f"rollout/policy_lag_{n}_share": share for n, share in enumerate(shares) if share},
    }
