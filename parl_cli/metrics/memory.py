"""Memory in MB (10⁶ bytes), without a dependency: /proc on Linux, the system's own call elsewhere."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from parl_cli.metrics.control_groups import control_groups

_MB = 1e6
# what each version of control groups calls: the limit, what is used, how much of that is cached files
_NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


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


def free_mb() -> float:
    """Memory that new processes can take before something is killed or swapped, in MB; infinite where nobody knows."""
    return min(_free_in_system(), _free_in_container()) / _MB


def _free_in_system() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), math.inf)


def _free_in_container() -> float:
    """What the tightest of this process's control groups leaves."""
    groups = control_groups("memory")
    return min((_free_in_group(folder, *_NAMES[version]) for folder, version in groups), default=math.inf)


def _free_in_group(folder: Path, limit_name: str, used_name: str, cache_name: str) -> float:
    try:
        limit = float((folder / limit_name).read_text())  # or the word max
        used = float((folder / used_name).read_text())
        files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return math.inf
    return limit - used + float(files.get(cache_name, 0))  # the cache of files gives way


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
