"""Acting in threads of the learner's process, on any device: central batched inference.

With `vectorizer=async` or `subprocess` the envs step in processes of their own, an actor chooses actions for all that
answered at once, and the learner learns meanwhile: what Sample Factory calls a policy worker (Petrenko et al. 2020,
arXiv:2006.11751, section 3). Threads share one interpreter, so it pays where acting and learning wait for an
accelerator or for workers, not for small networks on the CPU.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from parl_cli.actors import worker
from parl_cli.actors.asynchronous import AsyncActors, AsyncActorsConfig
from parl_cli.actors.slots import Status
from parl_cli.actors.tickets import Running
from parl_cli.actors.worker import Failed, Filled
from parl_cli.config import option
from parl_cli.types import Rollout, Snapshot
from parl_cli.vectorizers.blocks import buffer_size

_CLOSE_TIMEOUT_S = 6.0  # longer than a vectorizer takes to give up on its workers


@dataclass(frozen=True)
class ThreadActorsConfig(AsyncActorsConfig):
    """`actors=thread`."""

    name: str = option("thread", "registered name")
    device: str | None = option(None, "where they act: auto, cpu, cuda, cuda:1 or mps; null: the learner's device")


@dataclass(eq=False)
class _Thread(Running):
    thread: threading.Thread = field(kw_only=True)
    inbox: queue.SimpleQueue[int | None] = field(kw_only=True)


class ThreadActors(AsyncActors):
    """One actor is one thread. See `AsyncActors`.

    A thread cannot be killed: one that hangs is reported, replaced and left behind; it does not keep the process from
    ending.

    Args:
        recipe: makes policies and actors.
        device: where they act.
    """

    Config: ClassVar[type[ThreadActorsConfig]] = ThreadActorsConfig
    summary: ClassVar[str] = "in threads beside the learner, on any device: one batch for the envs of many workers"

    def __init__(self, recipe: Any, device: torch.device) -> None:
        super().__init__(recipe.config.actors, recipe.env_ids)
        self._recipe = recipe
        self._device = device
        self._weights = _Weights(device)
        self._said: queue.SimpleQueue[tuple[Status, Any]] = queue.SimpleQueue()
        # the threads hold no reference to the pool, so one that is dropped unclosed ends them
        weakref.finalize(self, _send_home, self._actors)

    @classmethod
    def make(cls, recipe: Any, policy: Any) -> ThreadActors:
        """The pool of a run; without a device of their own, actors act on the learner's."""
        return cls(recipe, recipe.device or next(policy.parameters()).device)

    def _start(self, index: int, incarnation: int, envs: range, begin: Callable[[Any], Status]) -> _Thread:
        status = begin(np.zeros(buffer_size(Status.layout(len(envs))), np.uint8))
        inbox: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        recipe, device, said = self._recipe, self._device, self._said
        thread = threading.Thread(
            target=worker.live,
            args=(
                lambda: recipe.actor(recipe.policy().to(device), envs),
                status,
                inbox.get,
                lambda what: said.put((status, what)),
                _Reader(self._weights).load_into,
                [None] * self.tickets.num_slots,
                envs,
            ),
            name=f"parl-actor-{index}",
            daemon=True,
        )
        thread.start()
        slots = list(range(self.tickets.num_slots))
        return _Thread(index, incarnation, envs, status, slots, thread=thread, inbox=inbox)

    def _tell(self, actor: _Thread, ticket: int) -> None:
        actor.inbox.put(ticket)

    def _hear(self, timeout_s: float) -> list[tuple[_Thread, Any]]:
        said = []
        try:
            said.append(self._said.get(timeout=timeout_s) if timeout_s else self._said.get_nowait())
            while True:
                said.append(self._said.get_nowait())
        except queue.Empty:
            pass
        return [(actor, what) for status, what in said for actor in self._actors if actor.status is status]

    def _abandon(self, actor: _Thread) -> str:
        return "a thread cannot be killed, so it was left behind"

    def _bury(self, actor: _Thread) -> None:
        _send_home([actor])

    def _end(self) -> list[str]:
        _send_home(self._actors)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for actor in self._actors:
            actor.thread.join(max(0.0, deadline - time.monotonic()))
        faults = []
        while not self._said.empty():
            _, what = self._said.get()
            if isinstance(what, Failed) and "failed in close" in what.text.partition("\n")[0]:
                faults.append(what.text)
        return faults

    def _publish(self, snapshot: Snapshot) -> None:
        self._weights.publish(snapshot)

    def _newest(self) -> dict[str, Tensor]:
        return self._weights.newest[1]

    def _rollout(self, actor: _Thread, filled: Filled) -> Rollout:
        assert filled.rollout is not None
        return filled.rollout

    def _own(self, rollout: Rollout) -> Rollout:
        return rollout


class _Weights:
    """The newest weights on the actors' device: a copy, because the learner goes on writing into its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.newest: tuple[int, dict[str, Tensor]] = (-1, {})  # replaced as a whole, so nobody sees half of two

    def publish(self, snapshot: Snapshot) -> None:
        weights = {name: w.detach().to(self._device, copy=True) for name, w in snapshot.weights.items()}
        self.newest = (snapshot.version, weights)


class _Reader:
    """One actor's end."""

    def __init__(self, weights: _Weights) -> None:
        self._weights = weights
        self._loaded: dict[str, Tensor] | None = None

    def load_into(self, policy: Any) -> int:
        """Give a policy the newest weights; returns their version."""
        version, weights = self._weights.newest
        if weights is not self._loaded:
            policy.load_state_dict(weights)
            self._loaded = weights
        return version


def _send_home(actors: list[_Thread]) -> None:
    for actor in actors:
        actor.status.stop[0] = True
        actor.inbox.put(None)
