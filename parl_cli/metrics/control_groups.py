"""The control groups (Linux) that this process is in: where a container or a batch system writes its limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def control_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the groups of one controller, from the innermost outwards, and which version they are of.

    Args:
        controller: `memory` or `cpu`, say. In version 2 all of them share their folders.

    Yields:
        (folder, 1 or 2); nothing where the system has no control groups. A folder need not exist.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, version = (_CONTROL_GROUPS / controller, 1) if controllers else (_CONTROL_GROUPS, 2)
        # a container often sees the path that its group has outside; then only the root is there
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield folder, version
            if folder == root:
                break
