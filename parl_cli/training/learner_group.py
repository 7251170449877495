"""Several policies' learners as one, with `Learner`'s interface: columns belong to policy `env_id % K`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from parl_cli.buffers.rollouts import split_by_policy
from parl_cli.metrics.per_policy import merged
from parl_cli.metrics.timing import Stopwatch
from parl_cli.training.learner import Learner, NonFiniteError
from parl_cli.types import Episode, Metrics, Rollout, Snapshot


class LearnerGroup:
    """Every update is one of each policy, of what it acted itself.

    Counts are those of one policy: `env_steps` those of the policy that has fewest, so that a budget is met by all.

    Args:
        learners: by policy id.

    Attributes:
        policy: the networks, by policy id; weights are called `<policy id>.<name>`.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = list(learners)
        self.policy = nn.ModuleList([learner.policy for learner in self.learners])
        self.total_steps = self.learners[0].total_steps
        self.device = self.learners[0].device
        self.last_steps = 0
        self.watch = Stopwatch()
        for learner in self.learners:
            learner.watch = self.watch

    @property
    def env_steps(self) -> int:
        """Env steps of the policy that has fewest."""
        return min(learner.env_steps for learner in self.learners)

    @property
    def updates(self) -> int:
        """Updates of each policy."""
        return self.learners[0].updates

    @property
    def episodes(self) -> list[Episode]:
        """Finished in the last update's rollouts."""
        return [episode for learner in self.learners for episode in learner.episodes]

    def step(self, rollouts: Sequence[Rollout]) -> Metrics:
        """Let each policy learn from its columns.

        Raises:
            NonFiniteError: see `Learner.step`; which policy it was.
            ValueError: a policy has no column.
        """
        before = self.env_steps
        split = [split_by_policy(rollout, len(self.learners)) for rollout in rollouts]
        each = []
        for policy_id, learner in enumerate(self.learners):
            own = [part for part in (parts[policy_id] for parts in split) if part is not None]
            if not own:
                raise ValueError(f"policy {policy_id}: no column of these rollouts is of its envs")
            try:
                metrics = learner.step(own)
            except NonFiniteError as error:
                raise NonFiniteError(f"policy {policy_id}: {error}", error.rollout) from None
            each.append(metrics)
        self.last_steps = self.env_steps - before
        counts = {f"policy_{i}/env_steps": float(learner.env_steps) for i, learner in enumerate(self.learners)}
        return {**counts, **merged(each)}

    def snapshot(self) -> Snapshot:
        """The weights of all as they are now, by reference."""
        return Snapshot(self.updates, self.env_steps, self.policy.state_dict(keep_vars=False))

    def state_dict(self) -> dict[str, Any]:
        """Each learner's, by policy id."""
        return {str(policy_id): learner.state_dict() for policy_id, learner in enumerate(self.learners)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: policies that have not learned side by side (it may come from a file).
        """
        for policy_id, learner in enumerate(self.learners):
            learner.load_state_dict(state[str(policy_id)])
        updates = [learner.updates for learner in self.learners]
        if len(set(updates)) > 1:
            raise ValueError(f"policies after {updates} updates")
