"""What runs in a worker process of the subprocess vectorizer: its `EnvPlans`, and a loop that obeys the parent.

Every message begins with its kind and the index of a group in this worker, one byte each. Parent to worker: `STEP`
(step all envs of the group), or `CALL` and a pickled (method, args). Worker to parent: `DONE`, `RESULT` and a pickle,
or `ERROR` and text: the name of the error class, a newline, the message.
Observations, rewards and flags never pass through the pipe; they are in shared memory. So are the bells (`Bells`),
where the vectorizer has some: a step is then asked for and answered by a flag alone, unless it fails.

Imports that load numpy come after the signals and thread counts are set, hence inside the functions.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from parl_cli.vectorizers.processes import settle

if TYPE_CHECKING:
    from parl_cli.vectorizers.bells import Listener
    from parl_cli.vectorizers.blocks import Blocks, Layout
    from parl_cli.vectorizers.plans import EnvPlans

STEP, CALL, DONE, RESULT, ERROR = b"scdre"


def main(connection: Connection, payload: bytes) -> None:
    """Make the envs, then serve until the parent says `close` or is gone.

    Args:
        connection: this end of the pipe.
        payload: the arguments of each `EnvPlans`, by cloudpickle.
    """
    settle()
    try:
        _Service(connection).run(payload)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is gone; do not let an env's clean-up hold this process


class _Service:
    """The groups of this worker, and where their calls come from."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._groups: list[EnvPlans] = []
        self._listener: Listener | None = None

    def run(self, payload: bytes) -> None:
        """Make the groups and obey until told to close."""
        self._make(pickle.loads(payload))
        while self._groups:
            if self._listener is not None and (rung := self._listener.wait()) is not None:
                self._step(rung)
                continue
            message = self._connection.recv_bytes()
            kind, index = message[0], message[1]
            method, args = ("step", ()) if kind == STEP else pickle.loads(message[2:])
            if method == "close":
                self._close()
                break
            try:
                if method == "attach":
                    args = (self._receive_blocks(index, *args),)
                result = self._carry_out(getattr(self._groups[index], method)(*args))
                answer = bytes((DONE, index)) if result is None else _result_message(index, method, result)
            except BaseException as error:
                answer = _error_message(index, error)
            self._connection.send_bytes(answer)

    def _make(self, makes: list[tuple]) -> None:
        from parl_cli.errors import EnvError
        from parl_cli.vectorizers.carry_out import carry_out
        from parl_cli.vectorizers.plans import EnvPlans

        self._carry_out = carry_out
        groups = [EnvPlans(*make) for make in makes]
        try:
            descriptions = [carry_out(group.make()) for group in groups]
            messages = [_result_message(i, "__init__", description) for i, description in enumerate(descriptions)]
        except BaseException as error:
            for group in groups:
                with contextlib.suppress(EnvError):  # what it says while it is closed is not the news
                    carry_out(group.close())
            messages, groups = [_error_message(index, error) for index in range(len(makes))], []
        for message in messages:
            self._connection.send_bytes(message)
        self._groups = groups

    def _step(self, index: int) -> None:
        assert self._listener is not None
        try:
            self._carry_out(self._groups[index].step())
        except BaseException as error:
            self._listener.answer(index, failed=True)
            self._connection.send_bytes(_error_message(index, error))
        else:
            self._listener.answer(index)

    def _receive_blocks(self, index: int, size: int, layout: Layout, ids: range, bells: tuple | None) -> Blocks:
        """The blocks come as shared memory, right behind the call."""
        from parl_cli.vectorizers.bells import Listener
        from parl_cli.vectorizers.blocks import Blocks
        from parl_cli.vectorizers.shared import receive_with

        memory, wires = receive_with(self._connection, size, 0 if bells is None else 2)
        if bells is not None:
            self._listener = Listener(self._connection, wires, memory, len(self._groups), *bells)
        return Blocks.over(memory, layout).rows(ids)

    def _close(self) -> None:
        for index, group in enumerate(self._groups):
            try:
                self._carry_out(group.close())
            except BaseException as error:
                self._connection.send_bytes(_error_message(index, error))


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
