"""Runs the real `parl` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.forks import ROOT, Fork


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child that finds this checkout, and no settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PARL_", "HYDRA_", "COMP_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    # A fixed width: what is folded must not depend on the terminal that pytest runs in.
    return {**kept, "PYTHONPATH": path, "COLUMNS": "160", **(extra or {})}


def parl(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """`parl *args` in the folder `cwd`; the result holds the exit code and both outputs.

    As the installed script does, and `python -m` does not, it leaves `cwd` out of the module search path (`-P`).
    """
    process = Fork(args, cwd, environment(env))
    try:
        out, err = process.communicate(timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.poll() or 0, out, err)


def fresh_parl(*args: str, cwd: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """As `parl`, in an interpreter that has imported nothing yet: where what is imported is what a test is about."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "parl_cli", *args],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


# The smallest training that does everything: two updates of PPO on two envs.
TINY = (
    "total_steps=64",
    "num_envs=2",
    "algo.num_steps=16",
    "algo.num_epochs=1",
    "algo.num_minibatches=1",
    "logger=none",
    "device=cpu",
    "num_threads=1",
)
