"""The pools of several policies as one: each policy's actors, and the envs they step, are its own.

So a policy's experience is what it would be in a run of its own with these envs, whatever steps them and wherever its
actors run: no policy waits for another's slow envs, or has fewer columns because of them, and networks may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from parl_cli.metrics.per_policy import merged
from parl_cli.metrics.timing import Stopwatch
from parl_cli.types import ActorPool, Metrics, Rollout, Snapshot


class PoolGroup:
    """An actor pool of one pool for each policy, which the learner's thread asks in turn.

    Args:
        make: makes each policy's pool, in order.
    """

    def __init__(self, make: Sequence[Callable[[], ActorPool]]) -> None:
        self.watch = Stopwatch()
        self.pools: list[ActorPool] = []
        with ExitStack() as stack:  # if one cannot be made, those before it are closed
            for make_one in make:
                self.pools.append(make_one())
                stack.callback(self.pools[-1].close)
            stack.pop_all()

    @property
    def replayable(self) -> bool:
        """Whether unfinished episodes can be re-stepped."""
        return all(getattr(pool, "replayable", True) for pool in self.pools)

    def publish(self, snapshot: Snapshot) -> None:
        """Hand out new weights, which are called `<policy id>.<name>`."""
        for policy_id, pool in enumerate(self.pools):
            prefix = f"{policy_id}."
            own = {name.removeprefix(prefix): w for name, w in snapshot.weights.items() if name.startswith(prefix)}
            pool.publish(Snapshot(snapshot.version, snapshot.env_steps, own, snapshot.scalars))

    def get(self, n: int) -> list[Rollout]:
        """The next n rollouts of each policy."""
        rollouts = [rollout for pool in self.pools for rollout in pool.get(n)]
        for pool in self.pools:
            self.watch.merge(pool.watch.take())
        return rollouts

    def metrics(self) -> Metrics:
        """What each policy's actors did since the last call."""
        return merged([pool.metrics() for pool in self.pools])

    def state_dict(self) -> dict[str, Any]:
        """Each pool's, by policy id."""
        return {str(policy_id): pool.state_dict() for policy_id, pool in enumerate(self.pools)}

    def load_state_dict(self, state: dict[str, Any], **options: Any) -> None:
        """The inverse of `state_dict`; see the pools'."""
        for policy_id, pool in enumerate(self.pools):
            pool.load_state_dict(state[str(policy_id)], **options)

    def close(self) -> None:
        """Close every pool, also where one raises."""
        with ExitStack() as stack:
            for pool in reversed(self.pools):
                stack.callback(pool.close)
