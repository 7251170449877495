"""Acting in processes of its own: each has a copy of the policy and a share of the envs, and computes on one thread.

Finished rollouts come through slots in shared memory, weights go through two copies there (`SharedWeights`); over
the pipes pass only tickets and short records. All tensors are the CPU's.

IMPALA (Espeholt et al. 2018, arXiv:1802.01561) calls such processes actors: each acts with its own copy of the policy,
and learning goes on while they do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection as mp_connection
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import cloudpickle
import numpy as np
from torch import Tensor

from parl_cli.actors import worker
from parl_cli.actors.asynchronous import AsyncActors, AsyncActorsConfig
from parl_cli.actors.slots import SlotPlan, Status, slot_layout
from parl_cli.actors.tickets import Running
from parl_cli.actors.weights import SharedWeights, WeightsWriter, weights_layout
from parl_cli.actors.worker import Failed, Filled
from parl_cli.buffers.rollouts import as_rollout, copied
from parl_cli.config import TrainConfig, option
from parl_cli.errors import ConfigError
from parl_cli.types import Rollout, Snapshot
from parl_cli.vectorizers import processes
from parl_cli.vectorizers.shared import SharedMemory

_CLOSE_TIMEOUT_S = 6.0  # longer than a vectorizer takes to give up on its workers
_KILL_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class ProcessActorsConfig(AsyncActorsConfig):
    """`actors=process`."""

    name: str = option("process", "registered name")
    device: str = option("cpu", "where they act: cpu only; actors=thread can act on another device")


@dataclass(eq=False)
class _Process(Running):
    process: BaseProcess = field(kw_only=True)
    connection: Connection = field(kw_only=True)
    memory: SharedMemory = field(kw_only=True)
    slots: list[dict[str, np.ndarray]] = field(kw_only=True)


class ProcessActors(AsyncActors):
    """One actor is one process. See `AsyncActors`.

    Args:
        recipe: makes policies and actors; picklable, by cloudpickle.
    """

    Config: ClassVar[type[ProcessActorsConfig]] = ProcessActorsConfig
    summary: ClassVar[str] = "in processes of its own, each with a copy of the policy, while the learner learns"

    def __init__(self, recipe: Any) -> None:
        config = recipe.config
        super().__init__(config.actors, recipe.env_ids)
        policy, share = recipe.policy(), config.num_envs // self.num_actors
        layout = slot_layout(recipe.spec, policy, config.algo.num_steps, share)
        self._plan = SlotPlan(share, self.tickets.num_slots, layout)
        self._weights_layout = weights_layout(policy.state_dict())
        self._recipe = cloudpickle.dumps(recipe)
        self._context = multiprocessing.get_context("spawn")
        self._weights = SharedMemory(SharedWeights.size(self._weights_layout), "weights", "use actors=thread")
        self._writer = WeightsWriter(SharedWeights(self._weights.buffer, self._weights_layout))
        # multiprocessing waits at exit, without a limit, for processes that still run; this comes first
        util.Finalize(self, _end, (self._actors,), exitpriority=10)

    @classmethod
    def make(cls, recipe: Any, policy: Any) -> ProcessActors:
        """The pool of a run; actors have copies of the learner's policy."""
        return cls(recipe)

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse what cannot work before anything is written.

        Raises:
            ConfigError: see `AsyncActors.check`; a device that processes cannot act on.
        """
        if config.actors.device != "cpu":
            raise ConfigError(
                f"actors.device={config.actors.device}: actor processes act on the cpu; to act on another device, "
                "use actors=thread"
            )
        super().check(config)

    def _start(self, index: int, incarnation: int, envs: range, begin: Callable[[Any], Status]) -> _Process:
        memory = SharedMemory(
            self._plan.size, "an actor's rollouts", "lower num_envs or algo.num_steps, use actors=thread"
        )
        status = begin(memory.buffer)
        share = worker.Share(self._recipe, envs, self._plan, self._weights_layout)
        process, connection = processes.start(self._context, worker.main, pickle.dumps(share), f"parl-actor-{index}")
        with contextlib.suppress(OSError):  # it is dead already, and will be heard of
            memory.send(connection)
            self._weights.send(connection)
        return _Process(
            index,
            incarnation,
            envs,
            status,
            list(range(self.tickets.num_slots)),
            process=process,
            connection=connection,
            memory=memory,
            slots=self._plan.slots(memory.buffer),
        )

    def _tell(self, actor: _Process, ticket: int) -> None:
        with contextlib.suppress(OSError):
            actor.connection.send(ticket)

    def _hear(self, timeout_s: float) -> list[tuple[_Process, Any]]:
        sources: dict[Any, _Process] = {}
        for actor in self._actors:
            sources[actor.connection] = sources[actor.process.sentinel] = actor
        ready = mp_connection.wait(list(sources), timeout_s)
        actors = {id(actor): actor for actor in (sources[source] for source in ready)}
        return [(actor, said) for actor in actors.values() for said in _said_by(actor)]

    def _abandon(self, actor: _Process) -> str:
        if actor.ready:
            return processes.kill_showing_stack(actor.process)
        actor.process.kill()
        return "it was killed"

    def _bury(self, actor: _Process) -> None:
        actor.process.kill()
        actor.process.join(_KILL_TIMEOUT_S)
        actor.connection.close()
        actor.memory.close_file()

    def _end(self) -> list[str]:
        return _end(self._actors)

    def _publish(self, snapshot: Snapshot) -> None:
        self._writer.publish(snapshot)

    def _newest(self) -> dict[str, Tensor]:
        return self._writer.newest()

    def _rollout(self, actor: _Process, filled: Filled) -> Rollout:
        return as_rollout(actor.slots[filled.slot], filled.num_finals, filled.episodes)

    def _own(self, rollout: Rollout) -> Rollout:
        return copied(rollout)

    def close(self) -> None:
        """See `AsyncActors.close`."""
        try:
            super().close()
        finally:
            self._weights.close_file()


def _said_by(actor: _Process) -> list[Any]:
    """All that an actor has said and nobody has read, and that it is dead, if it is."""
    said: list[Any] = []
    with contextlib.suppress(EOFError, OSError):
        while processes.has_more(actor.connection):
            said.append(actor.connection.recv())
        if actor.process.is_alive():
            return said
    actor.process.join(_KILL_TIMEOUT_S)
    return [*said, Failed("WorkerError", processes.cause_of_death(actor.process.exitcode, starting=not actor.ready))]


def _end(actors: list[_Process]) -> list[str]:
    """Ask every actor to close its envs, wait a little, kill who is left. Returns what went wrong in the envs."""
    for actor in actors:
        actor.status.stop[0] = True
        with contextlib.suppress(OSError):  # it is dead already
            actor.connection.send(None)
    deadline = time.monotonic() + _CLOSE_TIMEOUT_S
    faults = []
    for actor in actors:
        faults += _last_words(actor.connection, deadline)
        actor.process.join(max(0.0, deadline - time.monotonic()))
    for actor in actors:
        if actor.process.is_alive():
            actor.process.kill()
    for actor in actors:
        actor.process.join(_KILL_TIMEOUT_S)
        actor.connection.close()
        actor.memory.close_file()
    return faults


def _last_words(connection: Connection, deadline: float) -> list[str]:
    """Read a closing actor's pipe to its end, so that it never waits for us; what its envs complained of."""
    faults = []
    with contextlib.suppress(EOFError, OSError):
        while connection.poll(max(0.0, deadline - time.monotonic())):
            said = connection.recv()
            if isinstance(said, Failed) and "failed in close" in said.text.partition("\n")[0]:
                faults.append(said.text)
    return faults
