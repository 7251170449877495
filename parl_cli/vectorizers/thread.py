"""A pool of threads, each with a slice of the envs: for envs that release the GIL (MuJoCo, ALE, network calls).

Threads do nothing but call their envs. What comes before and after (writing, checking, accounting) is done by the
caller for all envs at once, because only one thread at a time can do it anyway, and it costs a few envs nearly what it
costs all of them. The caller is woken once, by the thread that is done last.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gymnasium.vector import AutoresetMode

from parl_cli.config import option
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.calls import Reply, available_cores, split
from parl_cli.vectorizers.description import ObservationMode
from parl_cli.vectorizers.plans import ENV_FAULTS, CallError, Calls, EnvPlans, EpisodeSeed, Plan

_CLOSE_TIMEOUT_S = 3.0


class ThreadVectorizer(Vectorizer):
    """One worker is one thread. See `Vectorizer`.

    A thread cannot be killed: one that hangs past its deadline is reported and left behind; it does not keep the
    process from ending.
    """

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=thread`."""

        name: str = option("thread", "a pool of threads, each with a slice of the envs")
        num_workers: int | None = option(None, "threads; null: one per core, at most one per env", ge=1)
        start_timeout_s: float = option(120.0, "seconds a thread may take to make its envs", gt=0)
        step_timeout_s: float = option(60.0, "seconds a thread may take for one step of its envs", gt=0)

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
        num_workers: int | None = None,
        start_timeout_s: float = 120.0,
        step_timeout_s: float = 60.0,
        observation_mode: ObservationMode = "same",
        copy: bool = True,
    ) -> None:
        self._jobs: deque[_Job] = deque()
        self._busy: list[int] = []  # the threads that were at work when they were last waited for in vain
        self._num_threads = num_workers or available_cores()
        super().__init__(
            env_fns,
            num_workers=1,  # its threads share one section: what comes after their calls is done for all envs at once
            autoreset_mode=autoreset_mode,
            episode_seed=episode_seed,
            start_timeout_s=start_timeout_s,
            step_timeout_s=step_timeout_s,
            observation_mode=observation_mode,
            copy=copy,
        )

    def _launch(self) -> None:
        self._plans = EnvPlans(*self._group_arguments(range(self.num_envs)))
        self._pool = _Pool(split(self.num_envs, self._num_threads))
        # the threads hold no reference to the vectorizer, so one that is dropped unclosed ends them
        self._finalizer = weakref.finalize(self, _send_home, self._pool, self._plans)
        self._pool.open()
        self._submit(0, "make", ())

    def _submit(self, section: int, method: str, args: tuple) -> None:
        self._jobs.append(_Job(self._pool, getattr(self._plans, method)(*args)))

    def _replies(self, timeout_s: float) -> list[Reply]:
        job = self._jobs[0]
        self._busy = job.wait(timeout_s)
        if self._busy:
            return []
        job.go_on()
        if not job.finished:  # new calls, such as resets after a step, have time of their own
            self._deadlines[0] = time.monotonic() + self.step_timeout_s
            return []
        self._jobs.popleft()
        return [(0, job.result)]

    def _give_up(self, worker: int) -> None:
        super()._give_up(self._busy[0] if self._busy else worker)

    def _envs_of(self, worker: int) -> range:
        return self._pool.parts[worker]

    def _abandon(self, worker: int) -> str:
        return "a thread cannot be killed, so it was left behind"

    def _stop(self) -> list[str]:
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        self._jobs.clear()
        closing = self._finalizer()
        for thread in self._pool.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return list(filter(None, closing.results)) if closing else []


class _Pool:
    """Threads, each with a part of the envs: some (rendering) may only be used in the thread that made them."""

    def __init__(self, parts: list[range]) -> None:
        self.parts = parts
        self._inboxes: list[queue.SimpleQueue[Callable[[], None] | None]] = [queue.SimpleQueue() for _ in parts]
        self.threads: list[threading.Thread] = []

    def open(self) -> None:
        """Start the threads."""
        for worker, inbox in enumerate(self._inboxes):
            thread = threading.Thread(target=_work, args=(inbox,), name=f"parl-envs-{worker}", daemon=True)
            thread.start()
            self.threads.append(thread)

    def start(self, calls: Calls) -> _Round:
        """Hand calls to the threads whose envs they are of; returns at once."""
        rows = calls[0]
        pieces = []
        low = 0
        for worker, part in enumerate(self.parts):
            high = bisect_left(rows, part.stop, low)
            if low < high:
                pieces.append((worker, low, high))
            low = high
        started = _Round(calls, {worker for worker, _, _ in pieces})
        for worker, low, high in pieces:
            self._inboxes[worker].put(partial(started.work, worker, low, high))
        return started

    def send_home(self) -> None:
        """End the threads, when they have done what they were asked before."""
        for inbox in self._inboxes:
            inbox.put(None)


class _Round:
    """Some calls that the threads have to make. The last one to be done wakes who waits: one wake-up, not one each.

    Attributes:
        results: what the calls gave, by index.
        errors: what they raised, by index; a thread stops at its first.
    """

    def __init__(self, calls: Calls, workers: set[int]) -> None:
        self.results: list[Any] = [None] * len(calls[0])
        self.errors: dict[int, BaseException] = {}
        self._at_work = workers
        self._calls = calls
        self._all_done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work(self, worker: int, low: int, high: int) -> None:
        """Make the calls from index `low` to `high`; in `worker`'s thread."""
        _, functions, arguments = self._calls
        j = low
        try:
            for j in range(low, high):
                self.results[j] = functions[j](arguments[j])
        except BaseException as error:
            self.errors[j] = error
        self._at_work.discard(worker)
        if not self._at_work:
            self._all_done.put(None)

    def wait(self, timeout_s: float) -> list[int]:
        """The workers that are not done within `timeout_s`, in order."""
        if self._at_work:
            with contextlib.suppress(queue.Empty):
                self._all_done.get(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        return sorted(self._at_work)


class _Job:
    """A plan that is being carried out by the threads.

    Attributes:
        finished: whether it is.
        result: what the plan returned or raised, once it is finished.
    """

    def __init__(self, pool: _Pool, plan: Plan[Any]) -> None:
        self.result: Any = None
        self._pool = pool
        self._plan = plan
        self._round: _Round | None = None  # that is under way; None: the plan is finished
        self._resume(plan.send, None)  # which is how a generator begins

    @property
    def finished(self) -> bool:
        return self._round is None

    def wait(self, timeout_s: float) -> list[int]:
        """The workers that it still waits for after `timeout_s`; none: let it `go_on`."""
        return [] if self._round is None else self._round.wait(timeout_s)

    def go_on(self) -> None:
        """Give the plan what its calls gave, and start the next ones."""
        if self._round is None:
            return
        errors = self._round.errors
        if not errors:
            self._resume(self._plan.send, self._round.results)
            return
        index = min(errors)  # not the first to be raised, which is chance
        cause = errors[index]
        errors.clear()  # they know their frames, which know this round
        if isinstance(cause, ENV_FAULTS):
            self._resume(self._plan.throw, CallError(index, cause))
        else:
            self._round, self.result = None, cause

    def _resume(self, resume: Callable[[Any], Calls], value: Any) -> None:
        try:
            self._round = self._pool.start(resume(value))
        except StopIteration as end:
            self._round, self.result = None, end.value
        except BaseException as error:  # raised by whoever waits for the answer
            self._round, self.result = None, error


def _work(inbox: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """A thread's life."""
    while (piece := inbox.get()) is not None:
        piece()
        del piece  # it holds envs, and the next may never come


def _send_home(pool: _Pool, plans: EnvPlans) -> _Round:
    """Let the threads close their envs, each when it is done with what it does, and end."""
    closing = pool.start(next(plans.close()))
    pool.send_home()
    return closing
