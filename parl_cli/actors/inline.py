"""Acting in the learner's own process, in turns with learning. Resumes exactly, also with a lag made on purpose."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from parl_cli.actors.base import Actor
from parl_cli.actors.worker import envs_as_in_run
from parl_cli.config import TrainConfig, option
from parl_cli.metrics.timing import Stopwatch
from parl_cli.types import Metrics, Rollout, Snapshot


@dataclass(frozen=True)
class InlineActorsConfig:
    """There is nothing to choose."""

    name: str = option("inline", "registered name")


class InlineActors:
    """An actor pool of one actor that acts when asked, with the learner's own network.

    Args:
        actor: policy, vectorizer and columns.
    """

    Config = InlineActorsConfig
    summary: ClassVar[str] = "in the learner's process, in turns with learning; exact resume"

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """There is nothing that could not work."""

    @classmethod
    def make(cls, recipe: Any, policy: Any) -> InlineActors:
        """One actor for all envs, with the learner's policy, or with a copy that lags behind it."""
        envs, lag = recipe.env_ids, recipe.config.debug.policy_lag
        if lag:
            policy = recipe.policy().to(next(policy.parameters()).device)
        with envs_as_in_run(envs):
            actor = recipe.actor(policy, envs)
        return LaggedActors(actor, lag) if lag else cls(actor)

    @property
    def watch(self) -> Stopwatch:
        """Where the actor's time goes, which is the learner's too."""
        return self.actor.watch

    def publish(self, snapshot: Snapshot) -> None:
        """By reference: the actor's policy is the learner's, so only the version is news."""
        self.actor.version = snapshot.version

    def get(self, n: int) -> list[Rollout]:
        """The next n rollouts, acted out now."""
        with envs_as_in_run(self.actor.env_ids):
            return [self.actor.collect() for _ in range(n)]

    def metrics(self) -> Metrics:
        """Nothing that the watch does not say."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Where every env stands."""
        return {"actor": self.actor.state_dict()}

    def load_state_dict(self, state: dict[str, Any], *, replay: bool = True) -> None:
        """The inverse of `state_dict`; see `Actor.load_state_dict`."""
        with envs_as_in_run(self.actor.env_ids):
            self.actor.load_state_dict(state["actor"], replay=replay)

    def close(self) -> None:
        """End the vectorizer's threads and processes."""
        with envs_as_in_run(self.actor.env_ids):
            self.actor.vectorizer.close()


class LaggedActors(InlineActors):
    """Acts with the weights of `lag` updates ago: what asynchronous actors do by chance, always the same.

    Args:
        actor: with a policy of its own.
        lag: updates; the first ones act with the weights that the run began with.
    """

    def __init__(self, actor: Actor, lag: int) -> None:
        super().__init__(actor)
        self.lag = lag
        self._published: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=lag + 1)  # versions and their weights

    def publish(self, snapshot: Snapshot) -> None:
        """Keep a copy of the new weights, and act with the oldest that are kept."""
        if self._published and self._published[-1][0] == snapshot.version:
            self._published.pop()  # every call of `train` begins by publishing what the one before ended with
        weights = {name: weight.detach().clone() for name, weight in snapshot.weights.items()}
        self._published.append((snapshot.version, weights))
        self._act_with_the_oldest()

    def _act_with_the_oldest(self) -> None:
        self.actor.version, weights = self._published[0]
        self.actor.policy.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Where every env stands, and the weights that are still to act."""
        versions = torch.tensor([version for version, _ in self._published], dtype=torch.int64)
        weights = {str(version): weights for version, weights in self._published}
        return super().state_dict() | {"versions": versions, "weights": weights}

    def load_state_dict(self, state: dict[str, Any], *, replay: bool = True) -> None:
        """The inverse of `state_dict`; see `Actor.load_state_dict`.

        Raises:
            ValueError: the versions are not those of such a pool (it may come from a file).
        """
        versions = state["versions"].tolist()
        first = min(versions, default=0)
        if len(versions) > self.lag + 1 or versions != list(range(first, first + len(versions))):
            raise ValueError(f"weights of versions {versions}: must be at most {self.lag + 1} in a row")
        self._published.clear()
        for version in versions:
            self.actor.policy.load_state_dict(state["weights"][str(version)])  # refuses those of another network
            self._published.append((version, state["weights"][str(version)]))
        if self._published:
            self._act_with_the_oldest()
        super().load_state_dict(state, replay=replay)
