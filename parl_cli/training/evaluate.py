"""Evaluation: play whole episodes with frozen weights, on seeds of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parl_cli.functional.noise import uniform
from parl_cli.metrics.per_policy import of_policy

log = logging.getLogger(__name__)

MAX_PARALLEL = 32
LONGEST_EPISODE = 200_000  # env steps, where an env has no time limit: its episodes may never end
BOOTSTRAP_BLOCK = 1_000_000  # draws at once


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of the episodes played, in the order of their numbers."""

    returns: np.ndarray  # [episodes] float64, raw
    lengths: np.ndarray  # [episodes] int64, env steps

    def summary(self) -> dict[str, Any]:
        """Mean, standard deviation (sample), bootstrapped 95 % interval of the mean, mean length."""
        low, high = bootstrap_interval(self.returns)
        return {
            "mean_return": float(self.returns.mean()),
            "std_return": float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0,
            "ci95": [low, high],
            "mean_length": float(self.lengths.mean()),
            "episodes": len(self.returns),
        }

    def metrics(self) -> dict[str, float]:
        """The summary as a metrics row; the interval as its half width."""
        summary = self.summary()
        low, high = summary["ci95"]
        return {
            "eval/return_mean": summary["mean_return"],
            "eval/return_std": summary["std_return"],
            "eval/return_ci95": (high - low) / 2,
            "eval/length_mean": summary["mean_length"],
            "eval/episodes": float(summary["episodes"]),
        }


@dataclass(frozen=True)
class EvaluationGroup(Evaluation):
    """The evaluations of several policies; as an evaluation it is that of all their episodes."""

    each: Sequence[Evaluation] = ()  # by policy id

    @classmethod
    def of(cls, each: Sequence[Evaluation]) -> EvaluationGroup:
        """All episodes, policy by policy."""
        returns, lengths = (np.concatenate([getattr(one, part) for one in each]) for part in ("returns", "lengths"))
        return cls(returns, lengths, each)

    def summary(self) -> dict[str, Any]:
        """Over all episodes, and each policy's."""
        return super().summary() | {"policies": {str(i): one.summary() for i, one in enumerate(self.each)}}

    def metrics(self) -> dict[str, float]:
        """The row's values over all episodes, and each policy's."""
        own = [of_policy(policy_id, one.metrics()) for policy_id, one in enumerate(self.each)]
        return super().metrics() | {name: value for metrics in own for name, value in metrics.items()}


class EpisodeSpread:
    """Episode seeds for evaluation: env i of n plays episodes i, i + n, i + 2n and so on.

    Args:
        seeds: `(index, episode) -> seed`.
        num_envs: n.
    """

    def __init__(self, seeds: Callable[[int, int], int], num_envs: int) -> None:
        self.seeds = seeds
        self.num_envs = num_envs

    def __call__(self, env_id: int, episode: int) -> int:
        """The seed of the env's so-many-th episode."""
        return self.seeds(0, env_id + episode * self.num_envs)


@torch.no_grad()
def evaluate(
    policy: Any,
    vectorizer: Any,
    episodes: int,
    *,
    noise_key: int = 0,
    deterministic: bool = True,
    on_step: Callable[[], None] | None = None,
) -> Evaluation:
    """Play episodes 0 … episodes−1 and collect their returns.

    Which env plays which episode is fixed beforehand, so short episodes are not over-represented; noise is drawn per
    (episode, step). So the result depends on the weights, the seeds and the number of episodes, not on how many envs
    play at once, but for the last bits of a matrix product, which may depend on the size of its batch.

    Args:
        policy: see `parl_cli.types.Policy`; not changed.
        vectorizer: lock-step, same-step mode, its `episode_seed` an `EpisodeSpread`.
        episodes: how many.
        noise_key: key of the sampling noise.
        deterministic: act by the mode.
        on_step: called after the first reset and after every step, to draw or record.
    """
    num_envs = vectorizer.num_envs
    agents = () if vectorizer.num_agents is None else (vectorizer.num_agents,)
    device = next(policy.parameters()).device
    state = None
    if policy.state_size:
        state = torch.zeros(num_envs, *agents, policy.state_size, device=device)
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    playing = np.arange(num_envs)  # the episode each env plays
    t = np.zeros(num_envs, np.uint64)
    shape = (num_envs, *agents, policy.noise_dim)
    period = np.uint64(policy.noise_period)
    noise = np.full(shape, 0.5, np.float32)
    is_first = np.ones((num_envs, *agents), bool)
    obs = vectorizer.begin(np.zeros(num_envs, np.int64))
    if on_step is not None:
        on_step()
    was_training = policy.training
    policy.eval()
    try:
        while not lengths.all():  # an episode that was played has a length
            if not deterministic:
                noise = uniform(noise_key, playing, t // period, int(np.prod(shape[1:]))).reshape(shape)
            output = policy.act(
                torch.from_numpy(np.ascontiguousarray(obs)).to(device),
                state,
                torch.from_numpy(is_first).to(device),
                torch.from_numpy(noise).to(device),
                greedy=deterministic,
            )
            state = output.state
            vectorizer.send(policy.env_action(output.action.cpu().numpy()))
            step = vectorizer.recv()
            if on_step is not None:
                on_step()
            t += np.uint64(1)
            for k, env in enumerate(np.flatnonzero(step.ended).tolist()):
                if playing[env] < episodes:
                    returns[playing[env]] = float(np.mean(step.episode_return[k]))
                    lengths[playing[env]] = step.episode_length[k]
                playing[env] += num_envs
                t[env] = 0
            obs = step.obs
            is_first = np.repeat(step.ended, int(np.prod(agents))).reshape(is_first.shape)
    finally:
        policy.train(was_training)
    if cut_off := int((lengths == LONGEST_EPISODE).sum()):
        log.warning(
            "evaluation: %d of %d episodes were cut off after %s steps; "
            "eval.max_episode_steps (of parl eval: max_episode_steps) sets another limit",
            *(cut_off, episodes, f"{LONGEST_EPISODE:,}"),
        )
    return Evaluation(returns, lengths)


def bootstrap_interval(values: Sequence[float] | np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean (Efron 1979), from a fixed generator: equal data, equal answer."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    means = np.empty(resamples)
    rows = max(1, BOOTSTRAP_BLOCK // len(values))
    for start in range(0, resamples, rows):  # in blocks: all draws at once would be gigabytes for many episodes
        block = means[start : start + rows]
        block[:] = values[rng.integers(len(values), size=(len(block), len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
