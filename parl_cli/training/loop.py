"""The training loop, written once: no branch on the algorithm, the vectorizer or where acting runs."""

from __future__ import annotations

from collections.abc import Sequence
from signal import Signals
from typing import NamedTuple

from parl_cli.training.learner import Learner
from parl_cli.types import ActorPool, Hook, Metrics


class StopTraining(Exception):  # noqa: N818  # like StopIteration: not an error
    """Raised by a hook to end training after the update it looked at.

    Args:
        reason: says why.
        signal: the one that asked for it; None where no signal did.
    """

    def __init__(self, reason: str, signal: Signals | None = None) -> None:
        super().__init__(reason)
        self.signal = signal


class Ended(NamedTuple):
    """Why training ended: `budget`, or what the hook that stopped it said; and the signal, where one asked for it."""

    reason: str
    signal: Signals | None = None


def train(
    learner: Learner, pool: ActorPool, hooks: Sequence[Hook], total_steps: int, rollouts_per_update: int = 1
) -> Ended:
    """Act, learn, publish, until the budget is used; it is rounded up to whole updates.

    Args:
        learner: counts env steps and updates.
        pool: where acting runs.
        hooks: called in order after every update, all of them, also if one wants to stop.
        total_steps: the budget in env steps, counted from the run's beginning.
        rollouts_per_update: rollouts that one update learns from.

    Returns:
        Why it ended.
    """
    pool.publish(learner.snapshot())
    while learner.env_steps < total_steps:
        metrics = learner.step(pool.get(rollouts_per_update))
        pool.publish(learner.snapshot())
        if (ended := _look(hooks, learner, metrics)) is not None:
            return ended
    return Ended("budget")


def _look(hooks: Sequence[Hook], learner: Learner, metrics: Metrics) -> Ended | None:
    """Call every hook, also after one that wants to stop; what the first of those said, or rather a signal."""
    wishes = []
    for hook in hooks:
        try:
            hook.after_update(learner, metrics)
        except StopTraining as stop:
            wishes.append(Ended(str(stop), stop.signal))
    return next((wish for wish in wishes if wish.signal is not None), wishes[0] if wishes else None)
