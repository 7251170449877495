"""Calls to workers and their answers: who owes one, until when, and what happens when it does not come.

A *section* is some consecutive envs that are stepped as one job: an `EnvPlans`. A *worker* is a place where sections
live, `num_groups` in each: this thread, or another process. (Other threads are workers too, but share one section.)
`WorkerCalls` keeps the books; how a call gets to a section and an answer comes back is up to a few hooks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from parl_cli.errors import ConfigError, EnvError, WorkerError
from parl_cli.metrics.control_groups import control_groups

CORES_VARIABLE = "PARL_CORES"  # the share of a job that runs beside others; `parl train -m` sets it

NO_EPISODE = "no episode has begun: call begin() or reset() first"

_AWAY_S = 0.25  # past a deadline when it is looked at: more than a wait is late on a busy machine

Reply = tuple[int, Any]  # (section, result, or the exception that was raised there)


class AnswerTimeoutError(TimeoutError, multiprocessing.TimeoutError):
    """An answer did not come in the caller's time; of both classes, as Gymnasium raises the latter."""


class WorkerCalls:
    """The part of a vectorizer that talks to its workers. Every wait in it has a deadline."""

    slices: list[range]  # the env ids of each section
    num_groups: int  # sections of each worker
    start_timeout_s: float
    step_timeout_s: float

    def _init_calls(self, slices: list[range], num_groups: int, start_timeout_s: float, step_timeout_s: float) -> None:
        self.slices = slices
        self.num_groups = num_groups
        self.start_timeout_s = start_timeout_s
        self.step_timeout_s = step_timeout_s
        self._owed = [0] * len(slices)
        self._deadlines = [0.0] * len(slices)
        self._renewed = [0.0] * len(slices)  # the deadlines that were set a second time, as nobody had looked
        self._results: list[Any] = [None] * len(slices)
        self._missing: int | None = None  # how many envs are waited for, of those that owe an answer; None: all
        self._errors: dict[int, BaseException] = {}  # by section, the first of each
        self._started = False
        self._unready = NO_EPISODE  # why no env can step; empty: they can

    # ---- hooks of the subclasses ----

    def _launch(self) -> None:
        """Start the workers; the first answer of each section is its `EnvDescription`."""
        raise NotImplementedError

    def _submit(self, section: int, method: str, args: tuple) -> None:
        """Ask a section to carry out a plan of its `EnvPlans`, by name; returns at once."""
        raise NotImplementedError

    def _replies(self, timeout_s: float) -> list[Reply]:
        """Some answers, waiting for the first of them; an empty list when the time is up, or they need more of it."""
        raise NotImplementedError

    def _abandon(self, worker: int) -> str:
        """Give up on a worker that does not answer; returns what became of it."""
        raise NotImplementedError

    def _replace(self, worker: int, error: Exception) -> bool:
        """Put a new worker in a failed one's place, if this vectorizer can and may; `error` is what happened."""
        return False

    def _stop(self) -> list[str]:
        """End the workers and release what they hold, in bounded time; returns the faults of envs in `close`."""
        raise NotImplementedError

    def _answered(self) -> None:
        """Nothing is under way any more."""
        raise NotImplementedError

    def close(self) -> None:
        """End all workers."""
        raise NotImplementedError

    # ---- the books ----

    def _start(self) -> list[Any]:
        """Start the workers; the descriptions they give."""
        self._launch()
        for section in range(len(self.slices)):
            self._expect(section, self.start_timeout_s)
        descriptions = self._collect()
        self._started = True
        return descriptions

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        for section in range(len(self.slices)):
            self._call(section, method, *args)
        return self._collect()

    def _call(self, section: int, method: str, *args: Any) -> None:
        self._expect(section, self.step_timeout_s)  # first: a worker found dead on the way is off the books
        self._submit(section, method, args)

    def _expect(self, section: int, timeout_s: float) -> None:
        self._owed[section] += 1
        self._deadlines[section] = time.monotonic() + timeout_s

    def _collect(self, timeout: float | None = None) -> list[Any]:
        """Wait for every answer that is owed: the last result of each section, or the first error."""
        limit = math.inf if timeout is None else time.monotonic() + timeout
        self._missing = None
        while any(self._owed):
            self._receive(limit)
        if self._errors:
            self._raise_error()
        results, self._results = self._results, [None] * len(self.slices)
        return results

    def _receive(self, limit: float) -> None:
        """Take some answers in; TimeoutError when the clock passes `limit` first."""
        until = min(itertools.compress(self._deadlines, self._owed))
        replies = self._replies(max(0.0, min(until, limit) - time.monotonic()))
        self._book(replies)
        now = time.monotonic()
        if now >= until:
            self._look_for_hangs()
        elif now >= limit and not replies:
            raise AnswerTimeoutError(
                f"{sum(map(bool, self._owed))} of {len(self.slices)} groups of envs did not answer in time"
            )

    def _book(self, replies: list[Reply]) -> None:
        replaced = set()
        for section, result in replies:
            worker = section // self.num_groups
            if worker in replaced:
                continue  # what else came from it is void
            if isinstance(result, Exception) and self._replace(worker, result):
                replaced.add(worker)
                continue
            self._owed[section] -= 1
            self._results[section] = result
            if isinstance(result, BaseException):
                self._errors.setdefault(section, result)
            if self.num_groups > 1:
                self._grant_time(section)

    def _grant_time(self, section: int) -> None:
        """A worker's sections wait for each other: the time of the next ones begins when one has answered."""
        first = section // self.num_groups * self.num_groups
        for other in range(first, first + self.num_groups):
            if self._owed[other]:
                self._deadlines[other] = max(self._deadlines[other], time.monotonic() + self.step_timeout_s)

    def _raise_error(self) -> None:
        # not the first to come in, which is chance; but Ctrl-C before all
        error = min(self._errors.items(), key=lambda item: (isinstance(item[1], Exception), item[0]))[1]
        self._errors.clear()
        self._results = [None] * len(self.slices)
        self._answered()
        self._unready = "the last call failed, so not all envs took it: call begin() or reset() first"
        raise error

    def _look_for_hangs(self) -> None:
        """Give up on the worker that is latest, if it is past its deadline and has not answered meanwhile."""
        while any(self._owed) and (replies := self._replies(0.0)):
            self._book(replies)
        now = time.monotonic()
        for section in self._late(now):
            if now - self._deadlines[section] > _AWAY_S and self._deadlines[section] != self._renewed[section]:
                # nobody looked for a while: suspended perhaps, and the workers too, so their time begins anew, once
                timeout_s = self.step_timeout_s if self._started else self.start_timeout_s
                self._deadlines[section] = self._renewed[section] = now + timeout_s
        if self._late(now):
            self._give_up(self._first_due() // self.num_groups)

    def _first_due(self) -> int:
        """The section whose answer must come first."""
        return min((s for s, owed in enumerate(self._owed) if owed), key=self._deadlines.__getitem__)

    def _late(self, now: float) -> list[int]:
        return [section for section, owed in enumerate(self._owed) if owed and self._deadlines[section] <= now]

    def _give_up(self, worker: int) -> None:
        key = "step_timeout_s" if self._started else "start_timeout_s"
        fate = self._abandon(worker)
        self._lose(worker, f"did not answer within {key}={getattr(self, key):g}; {fate}")

    def _lose(self, worker: int, what: str) -> None:
        """A worker is gone; where it cannot be replaced, so is the vectorizer: raises WorkerError, or the cause."""
        error = WorkerError(f"worker {worker} ({span(self._envs_of(worker))}) {what}")
        if self._replace(worker, error):
            return
        said = [error for error in self._errors.values() if not isinstance(error, Exception)]  # Ctrl-C
        said += [self._errors[section] for section in self._sections_of(worker) if section in self._errors]
        with contextlib.suppress(EnvError):  # an env that complains while it is closed is not the news
            self.close()
        if said:  # it could not make its envs, say, and ended
            raise said[0] from error
        raise error

    def _sections_of(self, worker: int) -> range:
        return range(worker * self.num_groups, (worker + 1) * self.num_groups)

    def _envs_of(self, worker: int) -> range:
        sections = self._sections_of(worker)
        return range(self.slices[sections.start].start, self.slices[sections.stop - 1].stop)


def split(num_envs: int, num_parts: int) -> list[range]:
    """Contiguous ranges of env ids, sizes differing by at most one; never an empty one."""
    num_parts = min(num_parts, num_envs)
    bounds = [num_envs * part // num_parts for part in range(num_parts + 1)]
    return [range(low, high) for low, high in itertools.pairwise(bounds)]


def available_cores() -> int:
    """Cores this process may use: its affinity where the system has one, else all; fewer where a container says so.

    A job of a sweep is told its share.

    Raises:
        ConfigError: the share is not a number of cores.
    """
    if (share := os.environ.get(CORES_VARIABLE)) is not None:
        if not share.isdecimal() or int(share) < 1:
            raise ConfigError(f"{CORES_VARIABLE}={share}: must be a whole number of cores, at least 1; or unset it")
        return int(share)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([cores, *(_quota(*group) for group in control_groups("cpu"))])))


def _quota(folder: Path, version: int) -> float:
    """Cores that a control group may keep busy; infinite where it sets no limit."""
    names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return math.inf
    return quota / period if quota > 0 else math.inf  # -1, in version 1: no limit


def span(ids: range) -> str:
    """A worker's envs in words."""
    if len(ids) == 1:
        return f"env {ids.start}"
    if ids.step == 1:
        return f"envs {ids.start} to {ids[-1]}"
    return f"envs {ids.start}, {ids[1]}" + (f" … {ids[-1]}" if len(ids) > 2 else "")
