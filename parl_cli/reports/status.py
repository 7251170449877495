"""Whether a run is done, going on, or silent: from its files and the system's list of locks, touching neither."""

from __future__ import annotations

import os
import time
from pathlib import Path

from parl_cli.reports.load import Run

SAID = ("running", "finished", "interrupted", "failed")  # by run.json
SILENT_AFTER_S = 60.0

_LOCKS = Path("/proc/locks")  # Linux; to try a lock instead would be in the way of the run that wants it


def status(run: Run) -> str:
    """`finished`, `interrupted` or `failed`, as run.json says; `running`, or `silent`; `unknown` where it says nothing.

    A run that was killed cannot say so: its run.json goes on saying `running`. It is silent once no process of this
    machine holds its folder and nothing has been written for a minute. A run on another machine whose updates take
    longer than that is silent, too.
    """
    said = str(run.info.get("status"))
    if said not in SAID:
        return "unknown"
    if said == "running" and not is_held(run.path) and silence_s(run) > SILENT_AFTER_S:
        return "silent"
    return said


def silence_s(run: Run) -> float:
    """Seconds since something was written."""
    files = (run.metrics_file, run.path / "run.json")
    return max(0.0, time.time() - max((file.stat().st_mtime for file in files if file.exists()), default=0.0))


def is_held(folder: Path) -> bool:
    """Whether a process of this machine holds the folder's lock, as `parl train` does. False where nobody can tell."""
    try:
        inode = str(folder.stat().st_ino)
        locks = _LOCKS.read_text().splitlines()
    except OSError:
        return False
    # `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; the device is left out, which overlays report differently
    return any(
        len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode
        for words in map(str.split, locks)
    )


def started(run: Run) -> float:
    """When it began, in seconds since 1970; by the folder's age where run.json does not say."""
    text = run.info.get("started")
    try:
        return time.mktime(time.strptime(str(text)[:19], "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return os.stat(run.path).st_mtime
