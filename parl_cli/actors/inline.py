"""Acting in the learner's own process, in turns with learning. Resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from parl_cli.actors.base import Actor
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
        """One actor for all envs, with the learner's policy."""
        return cls(recipe.actor(policy, range(recipe.config.num_envs)))

    @property
    def watch(self) -> Stopwatch:
        """Where the actor's time goes, which is the learner's too."""
        return self.actor.watch

    def publish(self, snapshot: Snapshot) -> None:
        """By reference: the actor's policy is the learner's, so only the version is news."""
        self.actor.version = snapshot.version

    def get(self, n: int) -> list[Rollout]:
        """The next n rollouts, acted out now."""
        return [self.actor.collect() for _ in range(n)]

    def metrics(self) -> Metrics:
        """Nothing that the watch does not say."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Where every env stands."""
        return {"actor": self.actor.state_dict()}

    def load_state_dict(self, state: dict[str, Any], *, replay: bool = True) -> None:
        """The inverse of `state_dict`; see `Actor.load_state_dict`."""
        self.actor.load_state_dict(state["actor"], replay=replay)

    def close(self) -> None:
        """End the vectorizer's threads and processes."""
        self.actor.vectorizer.close()
