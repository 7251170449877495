"""How a process of ours starts and ends: one thread per maths library, no signals but the parent's, no orphans.

Imports nothing that loads numpy: a process sets its thread counts first.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_STACK_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)
_STACK_TIMEOUT_S = 0.2
_PR_SET_TIMERSLACK = 29  # of linux/prctl.h; its argument: nanoseconds
_STARTING = threading.Lock()  # the environment is the whole process's, and several threads may start processes

# read once, when a maths library is loaded; one thread per process, because the processes are the parallelism
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


# ---- in the parent ----


def start(context: Any, main: Callable[..., None], payload: bytes, name: str) -> tuple[BaseProcess, Connection]:
    """Start a process that runs `main(connection, payload)`.

    Args:
        context: of `multiprocessing`.
        main: a function of a module; it calls `settle` first.
        payload: what it needs, pickled.
        name: of the process.

    Returns:
        The process, and this end of a pipe to it.
    """
    process = ours = theirs = None
    try:
        with _STARTING, _one_thread_each(), _signals_held():
            ours, theirs = context.Pipe()
            # not daemonic: it may start processes of its own
            process = context.Process(target=main, args=(theirs, payload), name=name, daemon=False)
            process.start()
            theirs.close()  # or this process would hold the pipe open, and never read end-of-file
        return process, ours
    except BaseException:  # Ctrl-C, say: nobody would know of the process, and this one would wait for it at its end
        if process is not None and process.pid is not None:
            process.kill()
        for end in (ours, theirs):
            if end is not None:
                end.close()
        raise


def has_more(connection: Connection) -> bool:
    """Whether there is something to read, or an end of file."""
    try:
        return connection.poll()
    except OSError:
        return False


def kill_showing_stack(process: BaseProcess) -> str:
    """Kill a process that hangs, once it has written to its standard error where it is; what was done, in words."""
    fate = "it was killed"
    if _STACK_SIGNAL is not None and process.pid is not None:
        with contextlib.suppress(OSError):
            os.kill(process.pid, _STACK_SIGNAL)
            process.join(_STACK_TIMEOUT_S)
            fate += "; above is where it was"
    process.kill()
    return fate


def cause_of_death(exitcode: int | None, *, starting: bool = False) -> str:
    """What a process's exit code says, as the end of a sentence; `starting`: it was never ready."""
    when = " before it was ready" if starting else ""
    if exitcode is None:
        return f"closed its pipe{when} and does not answer"
    if exitcode >= 0:
        hint = "; its own output says more"
        if exitcode == 1 and starting:
            hint += '. A script that starts workers does so under `if __name__ == "__main__":`'
        return f"exited with code {exitcode}{when}{hint}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}{when}" + (", often a sign of too little memory" if name == "SIGKILL" else "")


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """The environment that processes inherit: one thread for each maths library."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
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
    """Hold back Ctrl-C while processes start: they inherit this until they ignore it, so none dies of it half-made."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first start would start it, and that lets these signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the process ----


def settle() -> None:
    """What a process does first: leave signals to its parent, compute on one thread, die when the parent does."""
    _leave_signals_to_the_parent()
    _wake_in_time()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # again, for what a fork server hands down
    with contextlib.suppress(RuntimeError, ValueError, OSError):  # where standard error is closed
        faulthandler.enable()  # a segfault in an env then says where
        if _STACK_SIGNAL is not None:
            faulthandler.register(_STACK_SIGNAL)  # and the parent asks where one hangs before it kills it
    parent = multiprocessing.parent_process()
    if parent is not None:
        _let_the_kernel_kill_with(parent)
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C, and a SIGTERM to the whole group, reach every process; only the first parent knows what to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def _wake_in_time() -> None:
    """Linux may end any sleep 50 µs late, to wake up for several at once; an env that sleeps is waited for."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # elsewhere there is no such call
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1))


def _let_the_kernel_kill_with(parent: Any) -> None:
    """Have this process killed when its parent ends, even while an env holds the interpreter's lock. Linux only.

    The sentinel is a pipe whose other end the parent has; its end-of-file becomes a SIGKILL. PR_SET_PDEATHSIG would be
    sent when the *thread* that started this process ends, or for a process of a fork server when that server does.
    """
    # where there is no such call, the watching thread is there as well
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if not parent.is_alive():  # since before
            os._exit(1)


def _die_with(parent: Any) -> None:
    """End this process when its parent ends, even while an env hangs; not while one holds the interpreter's lock."""
    parent.join()
    os._exit(1)
