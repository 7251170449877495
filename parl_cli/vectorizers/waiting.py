"""Waiting for whichever of some pipes and processes speaks first."""

from __future__ import annotations

import math
import select
from collections.abc import Sequence
from multiprocessing import connection as mp_connection
from typing import Any


class Waiter:
    """Waits for a fixed set of connections and process sentinels.

    `multiprocessing.connection.wait` does the same, but registers all of them anew at each call, which costs more than
    a step of a cheap env. It is the way where the system has no poll (Windows).

    Args:
        sources: connections, or process sentinels.
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = list(sources)
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._by_descriptor = {s if isinstance(s, int) else s.fileno(): s for s in self._sources}
            for descriptor in self._by_descriptor:
                self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float = math.inf) -> list[Any]:
        """The sources that have something to say (or are at their end); empty when the time is up."""
        if self._poll is None:
            return mp_connection.wait(self._sources, None if timeout_s == math.inf else timeout_s)
        milliseconds = None if timeout_s == math.inf else math.ceil(timeout_s * 1000)
        return [self._by_descriptor[descriptor] for descriptor, _ in self._poll.poll(milliseconds)]
