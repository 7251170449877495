"""Millions of steps while workers die at random: nothing hangs, grows, is lost without a word, or stays behind.

    python tests/benchmarks/soak.py [--steps 10_000_000] [--faults 60] [--vectorizer subprocess]

Envs raise, raise what cannot be pickled, exit, are killed, crash and hang in the middle of a step; besides, workers are
killed from outside, at any moment. Each row that comes back is checked: it is the transition that follows the one
before (delivered), or filler, with which a new episode begins (masked). Prints a table; exit code 1 if a line of it is
not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from gymnasium.vector import AutoresetMode

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from parl_cli import registry  # noqa: E402
from tests.helpers.soak_env import FAULTS, LENGTH, SoakEnv, soak_seed  # noqa: E402

FROM_OUTSIDE = "killed from outside"
LONGEST_WAIT_S = 30.0  # a hang's deadline, and the start of a new worker on a busy machine
STEP_TIMEOUT_S = 3.0
MB_PER_MILLION = 0.2  # memory that grows slower is not growing
FIRST_STEPS_MB = 2.0  # nor is what a short run grows until every path of the code was taken
LONG_ENOUGH = 1_000_000  # rows; before, what grows of the workers' is that of new ones, which have just started


@dataclass
class Soak:
    """What came of a run; a row is an env's answer to one action."""

    sent: int = 0
    delivered: int = 0
    masked: int = 0
    wrong: list[str] = field(default_factory=list)  # rows that do not follow from the ones before
    injected: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    seconds: float = 0.0
    longest_wait_s: float = 0.0
    memory: list[tuple[int, float, float]] = field(default_factory=list)  # (rows, MB of this process, of its workers)
    files: tuple[int, int] = (0, 0)  # descriptors that are open, before and after
    left_behind: list[str] = field(default_factory=list)

    def slope(self, column: int) -> float:
        """MB per million rows over all but the first tenth: the median of all pairs' slopes.

        A new worker is small while it starts; the median does not see that, nor another outlier.
        """
        kept = np.array(self.memory[len(self.memory) // 10 :])
        first, second = np.triu_indices(len(kept), 1)
        rise = kept[second] - kept[first]
        return float(np.median(rise[:, column] / rise[:, 0])) * 1e6

    def _flat(self, slope: float) -> bool:
        return slope < MB_PER_MILLION or slope * self.sent / 1e6 < FIRST_STEPS_MB

    def table(self) -> list[tuple[str, str, bool]]:
        """(what, figure, whether it is as it should be)."""
        accounted = self.sent == self.delivered + self.masked and not self.wrong
        grown, workers = self.slope(1), self.slope(2)
        workers_flat, unjudged = self._flat(workers), ""
        if self.sent < LONG_ENOUGH:
            workers_flat, unjudged = True, " (too short a run to judge)"
        kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(self.injected.items()))
        first, last = self.memory[0][1], self.memory[-1][1]
        return [
            ("env steps asked for", f"{self.sent:,} at {self.sent / self.seconds:,.0f} per second", True),
            ("delivered + masked", f"{self.delivered:,} + {self.masked:,}", accounted),
            ("rows out of order", f"{len(self.wrong)} {self.wrong[:3] or ''}", not self.wrong),
            ("faults injected", f"{self.injected.total()} ({kinds})", True),
            ("workers replaced", f"{self.restarts}", self.restarts > 0 or not self.injected),
            ("longest wait for a step", f"{self.longest_wait_s:.2f} s", self.longest_wait_s < LONGEST_WAIT_S),
            ("memory of this process", f"{first:.1f} to {last:.1f} MB; {grown:+.2f} MB per million", self._flat(grown)),
            ("memory of the workers", f"{workers:+.2f} MB per million{unjudged}", workers_flat),
            ("open files", f"{self.files[0]} before, {self.files[1]} after", self.files[0] >= self.files[1]),
            ("processes and /dev/shm", ", ".join(self.left_behind) or "nothing left behind", not self.left_behind),
        ]


def soak(steps: int, faults: int, vectorizer: str = "subprocess", num_envs: int = 64, seed: int = 0) -> Soak:
    """Run it.

    Args:
        steps: rows in all.
        faults: how many are injected, spread evenly; of each kind about as many.
        vectorizer: `subprocess` or `async`.
        num_envs: in two workers.
        seed: of the faults.
    """
    this, shm, result = psutil.Process(), _shm(), Soak()
    known = {child.pid for child in this.children()}
    rng = np.random.default_rng(seed)
    cls = registry.load("vectorizer", vectorizer)
    cls([SoakEnv]).close()  # the first one opens what multiprocessing keeps open
    files = _open_files(this)
    envs = cls(
        [SoakEnv] * num_envs,
        num_workers=2,
        autoreset_mode=AutoresetMode.SAME_STEP,
        episode_seed=soak_seed,
        step_timeout_s=STEP_TIMEOUT_S,
        max_restarts=faults * 10,
    )
    try:
        _drive(envs, steps, faults, rng, result, this)
    finally:
        envs.close()
    children = [p for p in this.children() if p.pid not in known and "resource_tracker" not in " ".join(p.cmdline())]
    result.left_behind = [f"process {child.pid}" for child in children] + sorted(_shm() - shm)
    result.restarts = envs.restarts
    del envs  # its arrays hold the memory that was shared
    result.files = files, _open_files(this)
    return result


def _drive(envs: Any, steps: int, faults: int, rng: np.random.Generator, result: Soak, this: psutil.Process) -> None:
    num_envs = envs.num_envs
    at = envs.begin().copy()
    kinds = [*FAULTS, FROM_OUTSIDE]
    due = [(steps * (k + 1) // (faults + 1), kinds[k % len(kinds)]) for k in range(faults)]
    samples = [steps * k // 200 for k in range(1, 201)]
    everyone, nothing = np.arange(num_envs), np.zeros(num_envs, np.int64)
    ids, started = everyone, time.monotonic()
    while True:
        actions, outside = nothing[: len(ids)], False
        if due and result.sent >= due[0][0]:
            _, kind = due.pop(0)
            result.injected[kind] += 1
            outside = kind == FROM_OUTSIDE
            if not outside:
                actions = actions.copy()
                actions[rng.integers(len(ids))] = 1 + FAULTS.index(kind)
        envs.send(actions, None if len(ids) == num_envs else ids)
        result.sent += len(ids)
        if outside:
            time.sleep(rng.uniform(0, 3e-4))
            victim = envs._processes[rng.integers(len(envs._processes))]
            os.kill(victim.pid, rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]))
        asked = time.monotonic()
        step = envs.recv()
        result.longest_wait_s = max(result.longest_wait_s, time.monotonic() - asked)
        _check(step, at, result)
        if samples and result.sent >= samples[0]:
            samples.pop(0)
            result.memory.append((result.sent, _mb(this), sum(_mb(psutil.Process(p.pid)) for p in envs._processes)))
        ids = step.env_ids.copy()
        if result.sent >= steps:
            break
    while result.sent > result.delivered + result.masked and envs._num_pending:
        _check(envs.recv(), at, result)
    result.seconds = time.monotonic() - started


def _check(step: Any, at: np.ndarray, result: Soak) -> None:
    """Compare a step with what must follow from where each env was (`at`, brought up to date)."""
    ids = step.env_ids
    real, before, obs = step.mask, at[ids], step.obs
    result.delivered += int(real.sum())
    result.masked += int((~real).sum())
    after = before + np.array([0, 0, 1])
    over = after[:, 2] == LENGTH
    finals = np.zeros_like(after)
    finals[step.ended] = step.final_obs
    begun = np.stack([before[:, 0], before[:, 1] + 1, np.zeros(len(ids), np.int64)], axis=1)
    good = np.where(over[:, None], begun, after) == obs
    good = good.all(axis=1) & (step.ended == over) & (step.terminated == over) & (step.reward == after[:, 2])
    good &= (finals == np.where(over[:, None], after, 0)).all(axis=1)
    # filler: a later episode of the same env from its beginning; no episode is begun twice
    fresh = (obs[:, 0] == before[:, 0]) & (obs[:, 1] > before[:, 1]) & (obs[:, 2] == 0)
    fresh &= step.ended & step.truncated & ~step.terminated & (step.reward == 0)
    for row in (~np.where(real, good, fresh)).nonzero()[0].tolist():
        result.wrong.append(f"{before[row].tolist()} -> {obs[row].tolist()}")
    at[ids] = obs


def _mb(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_info().rss / 1e6
    return 0.0


def _open_files(process: psutil.Process) -> int:
    return process.num_fds() if hasattr(process, "num_fds") else 0


def _shm() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Stacks of crashed and hung workers, and a warning for each, go to a file, which is shown if the run fails."""
    with tempfile.TemporaryFile() as aside:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read()[-20_000:])
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000, help="env steps (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=60, help="to inject (default: %(default)s)")
    parser.add_argument("--vectorizer", choices=["subprocess", "async"], default="subprocess")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    options = parser.parse_args()
    with _stderr_aside():
        result = soak(options.steps, options.faults, options.vectorizer, seed=options.seed)
    print(f"{options.vectorizer}, {options.faults} faults\n\n| what | figure | |\n| --- | --- | --- |")
    rows = result.table()
    for what, figure, good in rows:
        print(f"| {what} | {figure} | {'ok' if good else 'NOT OK'} |")
    return 0 if all(good for *_, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
