"""CPU seconds of this process and of the processes below it, while they run, and what others leave of the CPU."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path


class CpuMeter:
    """Adds up what this process, and those that are below it now, have computed so far.

    Linux has a clock for every process. Elsewhere the standard library knows what a child has computed only once it
    has ended: this process alone is counted there, and `counts_children` says so.
    """

    def __init__(self) -> None:
        clocks = [_clock_of(pid) for pid in processes_below()]
        self._clocks = [clock for clock in clocks if clock is not None]
        self.counts_children = _clock_of(os.getpid()) is not None

    def seconds(self) -> float:
        """CPU seconds since these processes began; a process that has ended counts nothing from then on."""
        return time.process_time() + sum(map(_read, self._clocks))


def core_share(seconds: float = 0.05) -> float:
    """The share of a core that this process gets when it wants one: less than 1 where others are at work."""
    cpu, started = time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        pass
    return (time.process_time() - cpu) / elapsed


def processes_below() -> list[int]:
    """The pids of this process's children, their children, and so on. Linux; elsewhere none."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            # `12 (name) S 1 …`, where the name may hold anything
            parents[int(path.parent.name)] = int(path.read_bytes().rpartition(b")")[2].split()[1])
    found: list[int] = []
    ahead = [os.getpid()]
    while ahead:
        above = ahead.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found += below
        ahead += below
    return found


def _read(clock: int) -> float:
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


def _clock_of(pid: int) -> int | None:
    """The id of a process's CPU-time clock (POSIX); None where there is no such call, or no such process."""
    try:
        find = ctypes.CDLL(None).clock_getcpuclockid
    except (AttributeError, TypeError):  # macOS; Windows
        return None
    clock = ctypes.c_int()
    return clock.value if find(pid, ctypes.byref(clock)) == 0 else None
