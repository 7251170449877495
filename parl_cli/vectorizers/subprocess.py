"""A few worker processes with many envs each, and shared memory for everything that a step gives.

Per step and worker there is one byte each way over a pipe, whatever the number of envs; that is what makes a process
pay even for envs of a few microseconds. End-of-file on that pipe, or the process's sentinel, is the death notice.

Workers are spawned (or forked by a fork server), never forked from this process: a fork copies locks that another
thread holds, and CUDA cannot be used after it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection as mp_connection
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal, NoReturn

import cloudpickle
from gymnasium.vector import AutoresetMode

from parl_cli import errors
from parl_cli.config import option
from parl_cli.errors import ConfigError, suggest
from parl_cli.vectorizers import worker as protocol
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.blocks import Blocks, Layout, buffer_size
from parl_cli.vectorizers.calls import Reply, available_cores, span
from parl_cli.vectorizers.group import EpisodeSeed
from parl_cli.vectorizers.shared import SharedMemory

_CLOSE_TIMEOUT_S = 3.0
_KILL_TIMEOUT_S = 2.0


class SubprocessVectorizer(Vectorizer):
    """One worker is one process. See `Vectorizer`; factories and `episode_seed` travel by cloudpickle."""

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=subprocess`."""

        name: str = option("subprocess", "a few worker processes, each with a slice of the envs")
        num_workers: int | None = option(None, "processes; null: one per core, at most one per env", ge=1)
        start_timeout_s: float = option(120.0, "seconds a worker may take to start and make its envs", gt=0)
        step_timeout_s: float = option(
            60.0, "seconds a worker may take for one step of its envs; then it is killed", gt=0
        )
        context: Literal["spawn", "forkserver"] = option("spawn", "how workers start; forkserver is not on Windows")

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
        num_workers: int | None = None,
        start_timeout_s: float = 120.0,
        step_timeout_s: float = 60.0,
        context: str = "spawn",
    ) -> None:
        allowed = {"spawn", "forkserver"} & set(multiprocessing.get_all_start_methods())
        if context not in allowed:
            raise ConfigError(f"vectorizer.context={context}: {suggest(context, allowed)}")
        self._context: Any = multiprocessing.get_context(context)
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._memory: SharedMemory | None = None
        # multiprocessing waits at exit, without a limit, for processes that still run; this comes first
        self._finalizer = util.Finalize(self, _end, (self._processes, self._connections), exitpriority=10)
        super().__init__(
            env_fns,
            num_workers=num_workers or available_cores(),
            autoreset_mode=autoreset_mode,
            episode_seed=episode_seed,
            start_timeout_s=start_timeout_s,
            step_timeout_s=step_timeout_s,
        )

    def _launch(self) -> None:
        payloads = [self._payload(ids) for ids in self.slices]
        with _one_thread_each(), _signals_held():
            for index, payload in enumerate(payloads):
                ours, theirs = self._context.Pipe()
                # not daemonic: an env may start processes of its own
                process = self._context.Process(
                    target=protocol.main, args=(theirs, payload), name=f"parl-envs-{index}", daemon=False
                )
                process.start()
                theirs.close()  # or this process would hold the pipe open, and never read end-of-file
                self._processes.append(process)
                self._connections.append(ours)

    def _payload(self, ids: range) -> bytes:
        make = (self.env_fns[ids.start : ids.stop], ids.start, self.autoreset_mode, self.episode_seed)
        try:
            return cloudpickle.dumps(make)
        except Exception as error:
            raise ConfigError(
                f"{span(ids)}: the factories or episode_seed cannot be sent to a process "
                f"({type(error).__name__}: {error}); use vectorizer=serial or vectorizer=thread"
            ) from None

    def _allocate(self, layout: Layout) -> Blocks:
        self._memory = SharedMemory(buffer_size(layout))
        return Blocks.over(self._memory.buffer, layout)

    def _attach(self, worker: int, layout: Layout) -> None:
        assert self._memory is not None
        self._submit(worker, "attach", (self._memory.size, layout, self.slices[worker]))
        try:
            self._memory.send(self._connections[worker], self._processes[worker].pid)
        except OSError:
            self._report_death(worker)
        if worker == len(self.slices) - 1:
            self._memory.close_file()

    def _submit(self, worker: int, method: str, args: tuple) -> None:
        if method == "step" and args == (None, False):
            message = protocol.STEP
        else:
            message = protocol.CALL + cloudpickle.dumps((method, args))
        try:
            self._connections[worker].send_bytes(message)
        except OSError:
            self._report_death(worker)

    def _replies(self, timeout_s: float) -> list[Reply]:
        waiting: dict[Any, int] = {}
        for worker, owed in enumerate(self._owed):
            if owed:
                waiting[self._connections[worker]] = worker
                waiting[self._processes[worker].sentinel] = worker
        ready = set(mp_connection.wait(list(waiting), timeout_s))
        replies = []
        for worker in sorted({waiting[source] for source in ready}):
            connection = self._connections[worker]
            # only its sentinel spoke: it is dead, but its last words may have come since and count
            if connection not in ready and not _has_more(connection):
                self._report_death(worker)
            replies.append(self._read(worker))
        return replies

    def _read(self, worker: int) -> Reply:
        try:
            message = self._connections[worker].recv_bytes()
        except (EOFError, OSError):
            self._report_death(worker)
        kind, body = message[:1], message[1:]
        if kind == protocol.DONE:
            return worker, None
        if kind == protocol.RESULT:
            return worker, pickle.loads(body)
        name, _, text = body.decode().partition("\n")
        if name == "WorkerError":
            text = f"worker {worker} ({span(self.slices[worker])}) {text}"
        return worker, getattr(errors, name)(text)

    def _report_death(self, worker: int) -> NoReturn:
        process = self._processes[worker]
        process.join(_KILL_TIMEOUT_S)
        when = "" if self._started else " before it was ready"
        self._lose(worker, _cause_of_death(process.exitcode) + when)

    def _abandon(self, worker: int) -> str:
        self._processes[worker].kill()
        return "it was killed"

    def _stop(self) -> list[str]:
        if self._memory is not None:
            self._memory.close_file()
        return self._finalizer() or []


def _end(processes: list[BaseProcess], connections: list[Connection]) -> list[str]:
    """Ask every worker to close its envs, wait a little, kill who is left. Returns what went wrong in the envs."""
    faults = []
    for connection in connections:
        with contextlib.suppress(OSError):  # it is dead already
            connection.send_bytes(protocol.CALL + pickle.dumps(("close", ())))
    deadline = time.monotonic() + _CLOSE_TIMEOUT_S
    for process, connection in zip(processes, connections, strict=False):
        faults += _last_words(connection, deadline)
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join(_KILL_TIMEOUT_S)
        if not process.is_alive():
            process.close()
    for connection in connections:
        connection.close()
    return faults


def _has_more(connection: Connection) -> bool:
    try:
        return connection.poll()
    except OSError:
        return False


def _last_words(connection: Connection, deadline: float) -> list[str]:
    """Read a closing worker's pipe to its end, so that it never waits for us; what its envs complained of."""
    faults = []
    with contextlib.suppress(EOFError, OSError):
        while connection.poll(max(0.0, deadline - time.monotonic())):
            message = connection.recv_bytes()
            if message[:1] == protocol.ERROR and b"failed in close" in message.partition(b"\n\n")[0]:
                faults.append(message[1:].decode().partition("\n")[2])
    return faults


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None:
        return "closed its pipe and does not answer"
    if exitcode >= 0:
        hint = "; its own output says more"
        if exitcode == 1:
            hint += '. A script that starts workers does so under `if __name__ == "__main__":`'
        return f"exited with code {exitcode}{hint}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}" + (", often a sign of too little memory," if name == "SIGKILL" else "")


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """The environment that workers inherit: one thread for each maths library."""
    before = {name: os.environ.get(name) for name in protocol.THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back Ctrl-C while workers start: they inherit this until they ignore it, so none dies of it half-made."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first start would start it, and that lets these signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
