"""Flags in shared memory by which a parent and its workers call each other without a system call.

A byte in a pipe costs a few microseconds on each side, and a sleeper tens until it runs. With bells a step is one store
here and one there, as long as whoever is called still looks; only one who sleeps is nudged, by a byte in a pipe that
carries nothing else (`Wire`).

Other cores see the stores in the order in which they were made only where the processor keeps that order: x86 does
(total store order); elsewhere it would take fences that Python does not have. There `AVAILABLE` is False, and the pipe
carries every call.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from parl_cli.vectorizers.waiting import Waiter

AVAILABLE = platform.machine().lower() in ("x86_64", "amd64") and hasattr(select, "poll")

QUIET, RUNG, FAILED = 0, 1, 2  # a section: has done its step; is to step; the pipe says what went wrong

_CELL = 64  # bytes: a cache line each, so that no two flags are bounced together
_WORDS = _CELL // 8
_LOOK_AGAIN_S = 0.1  # a sleeper is nudged; this is for the one who nudged and died
_fence = threading.Lock()
_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))  # to whoever wants this core


class Wire:
    """A pipe that wakes whoever sleeps at its reading end. Any process may hold either end.

    Attributes:
        reading: descriptor of the end that a `Waiter` watches.
        ringing: descriptor of the other one.
    """

    def __init__(self) -> None:
        self.reading, self.ringing = os.pipe()
        os.set_blocking(self.ringing, False)

    def close(self) -> None:
        """Close both ends; may be called once."""
        os.close(self.reading)
        os.close(self.ringing)


def nudge(ringing: int) -> None:
    """Wake who sleeps at the other end of a wire."""
    with contextlib.suppress(BlockingIOError):  # it is full, so there is a nudge in it
        os.write(ringing, b"!")


class Bells:
    """One flag per section (see the states above), and one per process that says whether it sleeps.

    A last cell holds how many sections may still be stepping when the parent is woken.

    Args:
        buffer: zeroed shared memory.
        offset: bytes to where the flags begin in it, a multiple of 8.
        num_sections: sections of all workers.
        num_workers: sleepers are the workers 0, 1, … and the parent, which is number `num_workers`.
    """

    @staticmethod
    def size(num_sections: int, num_workers: int) -> int:
        """Bytes that they need."""
        return _CELL * (num_sections + num_workers + 2)

    def __init__(self, buffer: Any, offset: int, num_sections: int, num_workers: int) -> None:
        flags = memoryview(buffer)[offset : offset + self.size(num_sections, num_workers)]
        self._flags = flags.cast("b").cast("q")
        self._sleepers = num_sections
        self.num_workers = num_workers

    def __getitem__(self, section: int) -> int:
        """The section's state."""
        return self._flags[section * _WORDS]

    def __setitem__(self, section: int, state: int) -> None:
        """Set the section's state."""
        self._flags[section * _WORDS] = state

    def set_asleep(self, sleeper: int, asleep: bool) -> None:
        """Say whether `sleeper` must be nudged. Who falls asleep looks once more after this."""
        self._flags[(self._sleepers + sleeper) * _WORDS] = asleep
        with _fence:  # taking a lock is a full fence: the flag is out before the last look
            pass

    def is_asleep(self, sleeper: int) -> bool:
        """Whether `sleeper` must be nudged to see a flag that was just set."""
        with _fence:  # the flag is out before this look and the next, or two could each leave it to the other
            return bool(self._flags[(self._sleepers + sleeper) * _WORDS])

    def set_bearable(self, num_rung: int) -> None:
        """The parent's word before it sleeps: it can go on as soon as no more sections than this are still to step."""
        self._flags[-_WORDS] = num_rung

    def are_enough(self) -> bool:
        """Whether so many sections have done their steps that the parent can go on. Ask `is_asleep` before."""
        rung = sum(self[section] == RUNG for section in range(self._sleepers))
        return rung <= self._flags[-_WORDS]

    def watch(self, hear: Callable[[], Any], sleeper: int, waiter: Waiter, spin_s: float, timeout_s: float) -> Any:
        """Look until `hear()` gives something or a pipe speaks: awake for `spin_s`, then asleep.

        Returns:
            What `hear` gave; something false where a pipe spoke or the time is up.
        """
        until = time.perf_counter() + min(spin_s, timeout_s)
        while True:
            if heard := hear():
                return heard
            if waiter.wait(0.0):
                return hear()  # what was rung before the pipe spoke comes first
            if time.perf_counter() >= until:
                break
            _give_way()
        self.set_asleep(sleeper, True)
        heard = hear()
        if not heard:
            waiter.wait(min(timeout_s, _LOOK_AGAIN_S))
            heard = hear()
        self.set_asleep(sleeper, False)
        return heard


class Listener:
    """A worker's side: which of its groups is to step.

    Args:
        connection: to the parent.
        wires: what this worker is nudged by (its reading end), and what nudges the parent (its ringing end).
        memory: where the bells are.
        num_groups: groups of this worker.
        worker: its number.
        spin_us: microseconds to look before falling asleep.
        *place: the other arguments of `Bells`.
    """

    def __init__(
        self,
        connection: Connection,
        wires: Sequence[int],
        memory: Any,
        num_groups: int,
        worker: int,
        spin_us: float,
        *place: int,
    ) -> None:
        self._bells = Bells(memory, *place)
        self._waiter = Waiter([connection], wires[0])
        self._parent_wire = wires[1]
        self._worker = worker
        self._spin_s = spin_us * 1e-6
        self._sections: Iterable[int] = range(worker * num_groups, (worker + 1) * num_groups)
        self._first = worker * num_groups

    def wait(self) -> int | None:
        """Index of a group that is to step; None where the pipe may have a message."""
        while True:
            rung = self._bells.watch(self._rung, self._worker, self._waiter, self._spin_s, _LOOK_AGAIN_S)
            if rung:
                return rung[0] - self._first
            if self._waiter.wait(0.0):
                return None

    def _rung(self) -> list[int]:
        bells = self._bells
        return [section for section in self._sections if bells[section] == RUNG]

    def answer(self, index: int, *, failed: bool = False) -> None:
        """Say that a group has stepped, or that the pipe will tell why not."""
        self._bells[self._first + index] = FAILED if failed else QUIET
        if not failed and self._bells.is_asleep(self._bells.num_workers) and self._bells.are_enough():
            nudge(self._parent_wire)
