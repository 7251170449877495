"""Calls to workers and their answers: who owes one, until when, and what happens when it does not come.

A *worker* is a place where an `EnvGroup` lives: this thread, another thread, another process. `WorkerCalls` keeps the
books; how a call gets there and an answer comes back is up to five hooks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from typing import Any, NoReturn

from parl_cli.errors import EnvError, WorkerError

Reply = tuple[int, Any]  # (worker index, result, or the exception that was raised there)


class WorkerCalls:
    """The part of a vectorizer that talks to its workers. Every wait in it has a deadline."""

    slices: list[range]  # the env ids of each worker
    start_timeout_s: float
    step_timeout_s: float

    def _init_calls(self, slices: list[range], start_timeout_s: float, step_timeout_s: float) -> None:
        self.slices = slices
        self.start_timeout_s = start_timeout_s
        self.step_timeout_s = step_timeout_s
        self._owed = [0] * len(slices)
        self._deadlines = [0.0] * len(slices)
        self._results: list[Any] = [None] * len(slices)
        self._errors: dict[int, BaseException] = {}  # by worker, the first of each
        self._started = False
        self._unready = "no episode has begun: call begin() or reset() first"  # why no env can step; empty: they can

    # ---- hooks of the subclasses ----

    def _launch(self) -> None:
        """Start the workers; the first answer of each is its `EnvDescription`."""
        raise NotImplementedError

    def _submit(self, worker: int, method: str, args: tuple) -> None:
        """Ask a worker to call a method of its `EnvGroup`; returns at once."""
        raise NotImplementedError

    def _replies(self, timeout_s: float) -> list[Reply]:
        """Some answers, waiting for the first of them; an empty list when the time is up."""
        raise NotImplementedError

    def _abandon(self, worker: int) -> str:
        """Give up on a worker that does not answer; returns what became of it."""
        raise NotImplementedError

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
        for worker in range(len(self.slices)):
            self._expect(worker, self.start_timeout_s)
        descriptions = self._collect()
        self._started = True
        return descriptions

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        for worker in range(len(self.slices)):
            self._call(worker, method, *args)
        return self._collect()

    def _call(self, worker: int, method: str, *args: Any) -> None:
        self._submit(worker, method, args)
        self._expect(worker, self.step_timeout_s)

    def _expect(self, worker: int, timeout_s: float) -> None:
        self._owed[worker] += 1
        self._deadlines[worker] = time.monotonic() + timeout_s

    def _collect(self, timeout: float | None = None) -> list[Any]:
        """Wait for every answer that is owed: the last result of each worker, or the first error."""
        limit = float("inf") if timeout is None else time.monotonic() + timeout
        while any(self._owed):
            until = min(itertools.compress(self._deadlines, self._owed))
            replies = self._replies(max(0.0, min(until, limit) - time.monotonic()))
            for worker, result in replies:
                self._owed[worker] -= 1
                self._results[worker] = result
                if isinstance(result, BaseException):
                    self._errors.setdefault(worker, result)
            if replies:
                continue
            if time.monotonic() >= until:
                self._give_up()
            if time.monotonic() >= limit:
                raise TimeoutError(f"no answer from {sum(map(bool, self._owed))} workers within {timeout} s")
        results, self._results = self._results, [None] * len(self.slices)
        if self._errors:
            self._raise_error()
        return results

    def _raise_error(self) -> NoReturn:
        error = self._errors[min(self._errors)]  # not the first to come in, which is chance
        self._errors.clear()
        self._answered()
        self._unready = "the last call failed, so not all envs took it: call begin() or reset() first"
        raise error

    def _give_up(self) -> NoReturn:
        now = time.monotonic()
        late = next(w for w, owed in enumerate(self._owed) if owed and self._deadlines[w] <= now)
        key = "step_timeout_s" if self._started else "start_timeout_s"
        fate = self._abandon(late)
        self._lose(late, f"did not answer within {key}={getattr(self, key):g}; {fate}")

    def _lose(self, worker: int, what: str) -> NoReturn:
        """A worker is gone, and so is the vectorizer."""
        error = WorkerError(f"worker {worker} ({span(self.slices[worker])}) {what}")
        with contextlib.suppress(EnvError):  # an env that complains while it is closed is not the news
            self.close()
        raise error


def split(num_envs: int, num_workers: int) -> list[range]:
    """Contiguous ranges of env ids, one per worker, sizes differing by at most one; never an empty one."""
    num_workers = min(num_workers, num_envs)
    bounds = [num_envs * worker // num_workers for worker in range(num_workers + 1)]
    return [range(low, high) for low, high in itertools.pairwise(bounds)]


def available_cores() -> int:
    """Cores this process may run on: its affinity where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def span(ids: range) -> str:
    """A worker's envs in words."""
    return f"env {ids.start}" if len(ids) == 1 else f"envs {ids.start} to {ids.stop - 1}"
