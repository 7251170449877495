"""What runs in a worker process of the subprocess vectorizer: its `EnvGroup`s, and a loop that obeys the parent.

Every message begins with its kind and the index of a group in this worker, one byte each. Parent to worker: `STEP`
(step all envs of the group), or `CALL` and a pickled (method, args). Worker to parent: `DONE`, `RESULT` and a pickle,
or `ERROR` and text: the name of the error class, a newline, the message. Answers come in the order of the calls.
Observations, rewards and flags never pass through the pipe; they are in shared memory.

Imports that load numpy come after the signals and thread counts are set, hence inside the functions.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parl_cli.vectorizers.blocks import Blocks, Layout

STEP, CALL, DONE, RESULT, ERROR = b"scdre"
STACK_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)

# read once, when a maths library is loaded; one thread per worker, because the workers are the parallelism
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def main(connection: Connection, payload: bytes) -> None:
    """Make the envs, then serve until the parent says `close` or is gone.

    Args:
        connection: this end of the pipe.
        payload: (the arguments of each `EnvGroup`, microseconds to wait awake for the next message), by cloudpickle.
    """
    _leave_signals_to_the_parent()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # again, for what a fork server hands down
    faulthandler.enable()  # a segfault in an env then says where
    if STACK_SIGNAL is not None:
        faulthandler.register(STACK_SIGNAL)  # and the parent asks where one hangs before it kills it
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _serve(connection, payload)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is gone; do not let an env's clean-up hold this process


def _serve(connection: Connection, payload: bytes) -> None:
    from parl_cli.vectorizers.group import EnvGroup
    from parl_cli.vectorizers.waiting import Waiter

    makes, spin_us = pickle.loads(payload)
    groups: list[EnvGroup] = []
    try:
        for make in makes:
            groups.append(EnvGroup(*make))
    except BaseException as error:
        for index in range(len(makes)):
            connection.send_bytes(_error_message(index, error))
        return
    for index, group in enumerate(groups):
        connection.send_bytes(_result_message(index, "__init__", group.description))
    steps = [group.step for group in groups]
    waiter = Waiter([connection], spin_us)
    while True:
        if spin_us:
            waiter.wait()
        message = connection.recv_bytes()
        kind, index = message[0], message[1]
        method = "step"
        try:
            if kind == STEP:
                result: Any = steps[index]()
            else:
                method, args = pickle.loads(message[2:])
                if method == "close":
                    break
                if method == "attach":  # the blocks come as shared memory, right behind the call
                    args = (_receive_blocks(connection, *args),)
                result = getattr(groups[index], method)(*args)
            answer = bytes((DONE, index)) if result is None else _result_message(index, method, result)
        except BaseException as error:
            answer = _error_message(index, error)
        connection.send_bytes(answer)
    for index, group in enumerate(groups):
        try:
            group.close()
        except BaseException as error:
            connection.send_bytes(_error_message(index, error))


def _receive_blocks(connection: Connection, size: int, layout: Layout, ids: range) -> Blocks:
    from parl_cli.vectorizers.blocks import Blocks
    from parl_cli.vectorizers.shared import receive

    return Blocks.over(receive(connection, size), layout).rows(ids)


def _result_message(index: int, method: str, result: Any) -> bytes:
    import cloudpickle

    from parl_cli.errors import EnvError

    try:
        return bytes((RESULT, index)) + pickle.dumps(result)
    except Exception:  # slower, but knows lambdas and classes of the user's main script
        try:
            return bytes((RESULT, index)) + cloudpickle.dumps(result)
        except Exception as error:
            raise EnvError(
                f"what the envs gave for {method} (infos, attributes) cannot be sent to another process: "
                f"{type(error).__name__}: {error}; use vectorizer=serial or vectorizer=thread"
            ) from None


def _error_message(index: int, error: BaseException) -> bytes:
    """The error as text. Ours have their message; anything else was not foreseen and keeps its traceback."""
    from parl_cli.errors import ParlError

    if isinstance(error, ParlError):
        return bytes((ERROR, index)) + f"{type(error).__name__}\n{error}".encode()
    text = "".join(traceback.format_exception(error)).rstrip()
    return bytes((ERROR, index)) + f"WorkerError\nfailed outside its envs: {type(error).__name__}\n\n{text}".encode()


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C, and a SIGTERM to the whole group, reach every process; only the parent knows what to save first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def _die_with_parent() -> None:
    """End this process when its parent ends, even while an env hangs.

    Not PR_SET_PDEATHSIG: that is sent when the *thread* that started this process ends, and knows only Linux.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
