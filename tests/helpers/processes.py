"""What a test must not leave behind: processes, and files in shared memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

import psutil
import pytest


def below(pid: int) -> list[int]:
    """All processes below one."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def workers_of_this_process() -> list[int]:
    """Processes that multiprocessing started for this one: its own children, and those of its fork server."""
    found = []
    for child in psutil.Process().children():
        words = " ".join(child.cmdline())
        if "spawn_main" in words:
            found.append(child.pid)
        elif "multiprocessing.forkserver" in words:
            found += [process.pid for process in child.children()]
    return found


def gone(pids: Iterable[int], timeout_s: float = 10.0) -> bool:
    """Whether these processes end in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.02)
    return False


def shared_files() -> set[str]:
    """What lies in /dev/shm."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """No worker process, and nothing in /dev/shm, outlives a test."""
    files = shared_files()
    yield
    assert not workers_of_this_process()
    assert shared_files() <= files
