"""Resident memory in MB (10⁶ bytes), without a dependency: /proc on Linux, the system's own call elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_MB = 1e6


def rss_mb(children: bool = True) -> float:
    """Resident memory of this process, in MB.

    Linux: what is resident now. With `children`, what every process below holds for itself is added; pages shared
    with others (libraries, the vectorizer's shared memory) count once, in this process. Windows: what is resident
    now, of this process alone. macOS and others: the peak so far, of this process alone: the standard library has
    no call for the present value there.
    """
    if sys.platform == "linux":
        own = _statm(os.getpid())[0]
        below = sum(resident - shared for resident, shared in map(_statm, _descendants())) if children else 0
        return (own + below) * os.sysconf("SC_PAGE_SIZE") / _MB
    if sys.platform == "win32":
        return _windows_working_set() / _MB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / _MB  # macOS counts bytes, the others KiB


def _statm(pid: int) -> tuple[int, int]:
    """Resident and shared pages of a process; zeros if it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0, 0
    return int(fields[1]), int(fields[2])


def _descendants() -> list[int]:
    """The pids below this process, by /proc's children lists; empty where the kernel was built without them."""
    found: list[int] = []
    ahead = [os.getpid()]
    while ahead:
        below = [int(pid) for path in Path(f"/proc/{ahead.pop()}/task").glob("*/children") for pid in _words(path)]
        found += below
        ahead += below
    return found


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _windows_working_set() -> int:
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            *((name, ctypes.c_size_t) for name in ("PeakWorkingSetSize", "WorkingSetSize", "QuotaPeakPagedPoolUsage")),
            *((name, ctypes.c_size_t) for name in ("QuotaPagedPoolUsage", "QuotaPeakNonPagedPoolUsage")),
            *((name, ctypes.c_size_t) for name in ("QuotaNonPagedPoolUsage", "PagefileUsage", "PeakPagefileUsage")),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    query = kernel.K32GetProcessMemoryInfo
    query.argtypes = (wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD)
    query(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return int(counters.WorkingSetSize)
