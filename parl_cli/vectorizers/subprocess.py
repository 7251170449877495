"""A few worker processes with many envs each, and shared memory for everything that a step gives.

Per step and worker there is one call and one answer, whatever the number of envs: a flag in shared memory while the
other side looks (see `bells`), a byte in a pipe where it sleeps. That is what makes a process pay even for envs of a
few microseconds. End-of-file on that pipe, or the process's sentinel, is the death notice.

Workers are spawned (or forked by a fork server), never forked from this process: a fork copies locks that another
thread holds, and CUDA cannot be used after it.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import cloudpickle
import numpy as np
from gymnasium.vector import AutoresetMode

from parl_cli import errors
from parl_cli.config import option
from parl_cli.errors import ConfigError, ParlError, suggest
from parl_cli.vectorizers import bells, processes
from parl_cli.vectorizers import worker as protocol
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.bells import Bells, Wire, nudge
from parl_cli.vectorizers.blocks import Blocks, Layout, buffer_size
from parl_cli.vectorizers.calls import Reply, available_cores, span
from parl_cli.vectorizers.description import EnvDescription
from parl_cli.vectorizers.plans import EpisodeSeed
from parl_cli.vectorizers.shared import SharedMemory
from parl_cli.vectorizers.waiting import Waiter, bound_writes

_CLOSE_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 2.0


class SubprocessVectorizer(Vectorizer):
    """One worker is one process. See `Vectorizer`; factories and `episode_seed` travel by cloudpickle.

    What `gymnasium.vector.AsyncVectorEnv` takes besides is taken too, where it can mean something here.
    """

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=subprocess`."""

        name: str = option("subprocess", "a few worker processes, each with a slice of the envs")
        num_workers: int | None = option(None, "processes; null: one per core, at most one per env", ge=1)
        start_timeout_s: float = option(120.0, "seconds a worker may take to start and make its envs", gt=0)
        step_timeout_s: float = option(
            60.0, "seconds a worker may take for one step of its envs; then it is killed", gt=0
        )
        max_restarts: int = option(0, "workers that may fail and be replaced; their envs begin new episodes", ge=0)
        spin_us: float = option(1000.0, "microseconds to look for a call or an answer before sleeping", ge=0, le=1e6)
        context: Literal["spawn", "forkserver"] = option("spawn", "how workers start; forkserver is not on Windows")

    # of the parent: who looks long looks busy, and the system may put both workers on one core
    _longest_look_s = 50e-6

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
        num_workers: int | None = None,
        start_timeout_s: float = 120.0,
        step_timeout_s: float = 60.0,
        max_restarts: int = 0,
        spin_us: float = 1000.0,
        context: str | None = "spawn",
        **options: Any,
    ) -> None:
        num_workers = num_workers or available_cores()
        if (max_concurrency := options.pop("max_concurrency", None)) is not None:
            _check_max_concurrency(max_concurrency)
            num_workers = min(num_workers, max_concurrency)  # a worker steps one env at a time
        context = context or "spawn"
        allowed = {"spawn", "forkserver"} & set(multiprocessing.get_all_start_methods())
        if context not in allowed:
            raise ConfigError(f"vectorizer.context={context}: {suggest(context, allowed)}")
        self._context: Any = multiprocessing.get_context(context)
        self._spin_us = spin_us
        self._look_s = min(spin_us * 1e-6, self._longest_look_s)
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._waiters: list[Waiter] = []  # one per worker
        self._memory: SharedMemory | None = None
        self._bells: Bells | None = None
        self._bells_place: tuple[int, int, int] = (0, 0, 0)
        self._wires: list[Wire] = []  # with bells: the one that wakes each worker, and last this process's
        self._rung: list[bool] = []  # by section: a step that a bell asked for, and will answer
        # multiprocessing waits at exit, without a limit, for processes that still run; this comes first
        self._finalizer = util.Finalize(self, _end, (self._processes, self._connections, self._wires), exitpriority=10)
        super().__init__(
            env_fns,
            num_workers=num_workers,
            autoreset_mode=autoreset_mode,
            episode_seed=episode_seed,
            start_timeout_s=start_timeout_s,
            step_timeout_s=step_timeout_s,
            max_restarts=max_restarts,
            **_own_options(options),
        )

    def _launch(self) -> None:
        payloads = [self._payload(worker) for worker in range(self._num_processes)]
        for worker, payload in enumerate(payloads):
            process, connection = self._start_process(worker, payload)
            self._processes.append(process)
            self._connections.append(connection)
            self._waiters.append(Waiter([connection, process.sentinel]))
        self._waiter_of_all = self._wait_for_all()
        self._lock_step = self.batch_size == self.num_envs
        self._rung = [False] * len(self.slices)
        self._largest = max(map(len, self.slices))

    @property
    def _num_processes(self) -> int:
        return len(self.slices) // self.num_groups

    def _start_process(self, worker: int, payload: bytes) -> tuple[BaseProcess, Connection]:
        try:
            process, connection = processes.start(self._context, protocol.main, payload, f"parl-envs-{worker}")
        except OSError as error:
            raise self._too_many(error, f"worker {worker}") from None
        bound_writes(connection, self.step_timeout_s)
        return process, connection

    def _too_many(self, error: OSError, which: str = "they") -> ConfigError:
        return ConfigError(
            f"vectorizer.num_workers={len(self.slices) // self.num_groups}: {which} cannot be started "
            f"({error.strerror or error}); use fewer workers, or raise the limit (ulimit -n, ulimit -u)"
        )

    def _wait_for_all(self) -> Waiter:
        wire = self._wires[-1].reading if self._wires else None
        return Waiter([*self._connections, *(process.sentinel for process in self._processes)], wire)

    def _payload(self, worker: int) -> bytes:
        makes = [self._group_arguments(self.slices[section]) for section in self._sections_of(worker)]
        try:
            return cloudpickle.dumps(makes)
        except Exception as error:
            raise ConfigError(
                f"{span(self._envs_of(worker))}: the factories or episode_seed cannot be sent to a process "
                f"({type(error).__name__}: {error}); use vectorizer=serial or vectorizer=thread"
            ) from None

    def _allocate(self, layout: Layout) -> Blocks:
        place = (buffer_size(layout), len(self.slices), len(self._processes))  # of the bells: behind the blocks
        self._memory = SharedMemory(place[0] + Bells.size(*place[1:]))
        if bells.AVAILABLE and self._spin_us:
            self._bells_place = place
            self._bells = Bells(self._memory.buffer, *place)
            try:
                for _ in range(len(self._processes) + 1):
                    self._wires.append(Wire())
            except OSError as error:
                raise self._too_many(error) from None
            self._waiter_of_all = self._wait_for_all()
        return Blocks.over(self._memory.buffer, layout)

    def _attach(self, section: int) -> None:
        assert self._memory is not None
        worker = section // self.num_groups
        listen, wires = None, []
        if self._bells is not None and section == self._sections_of(worker).start:  # it hears for all its sections
            listen = worker, self._spin_us, *self._bells_place
            wires = [self._wires[worker].reading, self._wires[-1].ringing]
        self._submit(section, "attach", (self._memory.size, self._layout, self.slices[section], listen))
        try:
            self._memory.send(self._connections[worker], *wires)
        except OSError:
            self._report_death(worker)

    def _adopt(self, descriptions: list[EnvDescription]) -> None:
        super()._adopt(descriptions)
        if self._memory is not None and not self.max_restarts:
            self._memory.close_file()  # all workers have it

    def _relaunch(self, worker: int) -> None:
        process, connection = self._processes[worker], self._connections[worker]
        process.kill()
        process.join(_KILL_TIMEOUT_S)
        connection.close()
        process, connection = self._start_process(worker, self._payload(worker))
        self._processes[worker], self._connections[worker] = process, connection
        self._waiters[worker] = Waiter([connection, process.sentinel])
        self._waiter_of_all = self._wait_for_all()
        for section in self._sections_of(worker):
            self._rung[section] = False
            if self._bells is not None:
                self._bells[section] = bells.QUIET

    def _submit(self, section: int, method: str, args: tuple) -> None:
        worker, index = divmod(section, self.num_groups)
        whole_step = method == "step" and args == (None, False)
        message = bytes((protocol.STEP, index))
        if whole_step and self._bells is not None:
            self._bells[section] = bells.RUNG
            self._rung[section] = True
            if self._bells.is_asleep(worker):
                nudge(self._wires[worker].ringing)
            return
        if not whole_step:
            message = bytes((protocol.CALL, index)) + self._pickled(section, method, args)
        try:
            self._connections[worker].send_bytes(message)
        except BlockingIOError:  # the pipe is full, and was for `step_timeout_s`
            self._give_up(worker)
        except OSError:
            self._report_death(worker)

    def _pickled(self, section: int, method: str, args: tuple) -> bytes:
        try:
            return cloudpickle.dumps((method, args))
        except Exception as error:
            self._owed[section] -= 1  # nobody was asked, so nobody will answer
            raise ParlError(
                f"what was given to {method} cannot be sent to a process ({type(error).__name__}: {error}); use "
                "vectorizer=serial or vectorizer=thread"
            ) from None

    def _replies(self, timeout_s: float) -> list[Reply]:
        # in lock-step all must answer, so one is waited for at a time: this process is woken less often
        late = {section // self.num_groups for section, owed in enumerate(self._owed) if owed}
        waiter = self._waiter_of_all
        if self._lock_step and self._bells is None:
            late = {self._first_due() // self.num_groups}
            waiter = self._waiters[min(late)]
        if self._bells is not None and any(self._rung):
            self._bells.set_bearable(self._bearable())
            parent = self._bells.num_workers
            if heard := self._bells.watch(self._heard, parent, self._waiter_of_all, self._look_s, timeout_s):
                return heard
            timeout_s = 0.0
        ready = waiter.wait(timeout_s)
        replies = []
        for worker in sorted(late):
            connection = self._connections[worker]
            if connection in ready:
                replies.append(self._read(worker))
            elif self._processes[worker].sentinel in ready:
                # it is dead, but its last words may have come since, and count
                if processes.has_more(connection):
                    replies.append(self._read(worker))
                else:
                    self._report_death(worker)
        return [reply for reply in replies if reply is not None]

    def _bearable(self) -> int:
        """How many of the sections that step may go on doing so when this process is woken."""
        if self._missing is None:
            return 0
        needed = math.ceil(self._missing / self._largest)
        return max(0, sum(self._rung) - needed)

    def _heard(self) -> list[Reply]:
        """What the bells answer; a failure's text is left to the pipe."""
        assert self._bells is not None
        quiet = [s for s, rung in enumerate(self._rung) if rung and self._bells[s] == bells.QUIET]
        for section in quiet:
            self._rung[section] = False
        return [(section, None) for section in quiet]

    def _read(self, worker: int) -> Reply | None:
        """A worker's message; None where the worker is dead and was replaced."""
        try:
            message = self._connections[worker].recv_bytes()
        except (EOFError, OSError):
            self._report_death(worker)
            return None
        kind, section = message[0], worker * self.num_groups + message[1]
        if kind == protocol.DONE:
            return section, None
        if kind == protocol.RESULT:
            return section, pickle.loads(message[2:])
        self._rung[section] = False
        name, _, text = message[2:].decode().partition("\n")
        if name == "WorkerError":
            text = f"worker {worker} ({span(self._envs_of(worker))}) {text}"
        return section, getattr(errors, name)(text)

    def _report_death(self, worker: int) -> None:
        process = self._processes[worker]
        process.join(_KILL_TIMEOUT_S)
        self._lose(worker, processes.cause_of_death(process.exitcode, starting=not self._started))

    def _abandon(self, worker: int) -> str:
        return processes.kill_showing_stack(self._processes[worker])

    def _stop(self) -> list[str]:
        if self._memory is not None:
            self._memory.close_file()
        return self._finalizer() or []


def _own_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that only `AsyncVectorEnv` has; ConfigError for one that cannot be had."""
    if (worker := options.get("worker")) is not None:
        raise ConfigError(
            f"worker={worker!r}: there is no such option here; what it changes, a wrapper of the env can do"
        )
    # workers may always have children and never outlive their parent; observations are always in shared memory
    return {name: value for name, value in options.items() if name not in {"daemon", "shared_memory", "worker"}}


def _check_max_concurrency(given: Any) -> None:
    """ValueError unless it is a number of envs, in Gymnasium's words."""
    if not isinstance(given, int | np.integer):
        raise ValueError(f"`max_concurrency` must be an integer or None, got {type(given)}.")
    if given < 1:
        raise ValueError(f"`max_concurrency` must be a positive or None, got {given}.")


def _end(workers: list[BaseProcess], connections: list[Connection], wires: list[Wire]) -> list[str]:
    """Ask every worker to close its envs, wait a little, kill who is left. Returns what went wrong in the envs."""
    faults = []
    try:
        for connection in connections:
            with contextlib.suppress(OSError):  # it is dead already, or reads nothing
                bound_writes(connection, _CLOSE_TIMEOUT_S / len(connections))
                connection.send_bytes(bytes((protocol.CALL, 0)) + pickle.dumps(("close", ())))
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for process, connection in zip(workers, connections, strict=False):
            faults += _last_words(connection, deadline)
            process.join(max(0.0, deadline - time.monotonic()))
    finally:  # also after one more Ctrl-C: nobody else ends them
        for process in workers:
            if process.is_alive():
                process.kill()
        for process in workers:
            process.join(_KILL_TIMEOUT_S)
            if not process.is_alive():
                process.close()
        for connection in connections:
            connection.close()
        for wire in wires:
            wire.close()
    return faults


def _last_words(connection: Connection, deadline: float) -> list[str]:
    """Read a closing worker's pipe to its end, so that it never waits for us; what its envs complained of."""
    faults = []
    with contextlib.suppress(EOFError, OSError):
        while connection.poll(max(0.0, deadline - time.monotonic())):
            message = connection.recv_bytes()
            if message[0] == protocol.ERROR and b"failed in close" in message.partition(b"\n\n")[0]:
                faults.append(message[2:].decode().partition("\n")[2])
    return faults
