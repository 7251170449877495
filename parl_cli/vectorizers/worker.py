"""What runs in a worker process of the subprocess vectorizer: one `EnvGroup`, and a loop that obeys the parent.

Over the pipe, parent to worker: `STEP` alone (step all envs), or `CALL` and a pickled (method, args).
Worker to parent: `DONE` alone, `RESULT` and a pickle, or `ERROR` and text: the name of the error class, a newline, the
message. Observations, rewards and flags never pass through the pipe; they are in shared memory.

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
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parl_cli.vectorizers.blocks import Blocks, Layout

STEP, CALL, DONE, RESULT, ERROR = b"s", b"c", b"d", b"r", b"e"

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
        payload: the arguments of `EnvGroup`, by cloudpickle.
    """
    _leave_signals_to_the_parent()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # again, for what a fork server hands down
    faulthandler.enable()  # a segfault in an env then says where
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _serve(connection, payload)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is gone; do not let an env's clean-up hold this process


def _serve(connection: Connection, payload: bytes) -> None:
    from parl_cli.vectorizers.group import EnvGroup

    try:
        group = EnvGroup(*pickle.loads(payload))
    except BaseException as error:
        connection.send_bytes(_error_message(error))
        return
    connection.send_bytes(_result_message("__init__", group.description))
    step: Callable[[], Any] = group.step
    while True:
        message = connection.recv_bytes()
        method = "step"
        try:
            if message == STEP:
                result = step()
            else:
                method, args = pickle.loads(message[1:])
                if method == "attach":  # the blocks come as shared memory, right behind the call
                    args = (_receive_blocks(connection, *args),)
                result = getattr(group, method)(*args)
            answer = DONE if result is None else _result_message(method, result)
        except BaseException as error:
            answer = _error_message(error)
        connection.send_bytes(answer)
        if method == "close":
            return


def _receive_blocks(connection: Connection, size: int, layout: Layout, ids: range) -> Blocks:
    from parl_cli.vectorizers.blocks import Blocks
    from parl_cli.vectorizers.shared import receive

    return Blocks.over(receive(connection, size), layout).rows(ids)


def _result_message(method: str, result: Any) -> bytes:
    import cloudpickle

    from parl_cli.errors import EnvError

    try:
        return RESULT + pickle.dumps(result)
    except Exception:  # slower, but knows lambdas and classes of the user's main script
        try:
            return RESULT + cloudpickle.dumps(result)
        except Exception as error:
            raise EnvError(
                f"what the envs gave for {method} (infos, attributes) cannot be sent to another process: "
                f"{type(error).__name__}: {error}; use vectorizer=serial or vectorizer=thread"
            ) from None


def _error_message(error: BaseException) -> bytes:
    """The error as text. Ours have their message; anything else was not foreseen and keeps its traceback."""
    from parl_cli.errors import ParlError

    if isinstance(error, ParlError):
        return ERROR + f"{type(error).__name__}\n{error}".encode()
    text = "".join(traceback.format_exception(error)).rstrip()
    return ERROR + f"WorkerError\nfailed outside its envs: {type(error).__name__}\n\n{text}".encode()


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
