"""Waiting for whichever of some pipes and processes speaks first."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import sys
from collections.abc import Sequence
from multiprocessing import connection as mp_connection
from multiprocessing.connection import Connection
from typing import Any

_LONGEST_S = 86400.0  # poll counts milliseconds in a C int; who waits for longer asks again
_MANY_BYTES = 4096  # more than anyone rings between two looks; what is left is read at the next


class Waiter:
    """Waits for a fixed set of connections and process sentinels.

    `multiprocessing.connection.wait` does the same, but registers all of them anew at each call, which costs more than
    a step of a cheap env. It is the way where the system has no poll (Windows).

    Args:
        sources: connections, or process sentinels.
        wire: descriptor of a pipe that only wakes: what it says is read and dropped. Needs poll.
    """

    def __init__(self, sources: Sequence[Any], wire: int | None = None) -> None:
        self._sources = list(sources)
        self._wire = wire
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._by_descriptor = {s if isinstance(s, int) else s.fileno(): s for s in self._sources}
            for descriptor in self._by_descriptor:
                self._poll.register(descriptor, select.POLLIN)
            if wire is not None:
                self._poll.register(wire, select.POLLIN)

    def wait(self, timeout_s: float = math.inf) -> list[Any]:
        """The sources that have something to say, or are at their end.

        Returns:
            An empty list where only the wire woke, or when the time, or a day, is up.
        """
        timeout_s = min(timeout_s, _LONGEST_S)
        if self._poll is None:
            return mp_connection.wait(self._sources, timeout_s)
        ready = [descriptor for descriptor, _ in self._poll.poll(math.ceil(timeout_s * 1000))]
        if self._wire is not None and self._wire in ready:
            ready.remove(self._wire)
            os.read(self._wire, _MANY_BYTES)
        return [self._by_descriptor[descriptor] for descriptor in ready]


def bound_writes(connection: Connection, timeout_s: float) -> None:
    """Let a write to a pipe that is full fail with BlockingIOError after `timeout_s`, not wait for ever.

    The pipe is one of both directions, a pair of sockets. Windows has no such limit for its pipes.
    """
    if sys.platform == "win32":
        return
    whole, part = divmod(round(min(max(timeout_s, 1e-3), _LONGEST_S) * 1e6), 10**6)
    with socket.socket(fileno=connection.fileno()) as pair:
        try:
            pair.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", whole, part))
        finally:
            pair.detach()  # the descriptor stays the connection's
