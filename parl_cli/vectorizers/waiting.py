"""Waiting for whichever of some pipes and processes speaks first."""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection as mp_connection
from typing import Any

_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))  # to whoever wants this core


class Waiter:
    """Waits for a fixed set of connections and process sentinels.

    `multiprocessing.connection.wait` does the same, but registers all of them anew at each call, which costs more than
    a step of a cheap env. It is the way where the system has no poll (Windows).

    Args:
        sources: connections, or process sentinels.
        spin_us: microseconds to look again and again before falling asleep: whoever is awake need not be woken, but
            keeps a core busy.
    """

    def __init__(self, sources: Sequence[Any], spin_us: float = 0.0) -> None:
        self._sources = list(sources)
        self._spin_s = spin_us * 1e-6
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._by_descriptor = {s if isinstance(s, int) else s.fileno(): s for s in self._sources}
            for descriptor in self._by_descriptor:
                self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float = math.inf) -> list[Any]:
        """The sources that have something to say (or are at their end); empty when the time is up."""
        if self._spin_s:
            until = time.perf_counter() + min(self._spin_s, timeout_s)
            while time.perf_counter() < until:
                if ready := self._look(0.0):
                    return ready
                _give_way()
        return self._look(timeout_s)

    def _look(self, timeout_s: float) -> list[Any]:
        if self._poll is None:
            return mp_connection.wait(self._sources, None if timeout_s == math.inf else timeout_s)
        milliseconds = None if timeout_s == math.inf else math.ceil(timeout_s * 1000)
        return [self._by_descriptor[descriptor] for descriptor, _ in self._poll.poll(milliseconds)]
