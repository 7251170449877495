"""A pool of threads, each with a slice of the envs: for envs that release the GIL (MuJoCo, ALE, network calls)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import AutoresetMode

from parl_cli.config import option
from parl_cli.errors import EnvError
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.calls import Reply, available_cores
from parl_cli.vectorizers.group import EnvGroup, EpisodeSeed

_CLOSE_TIMEOUT_S = 3.0

Job = tuple[str, tuple]


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
        **options: Any,
    ) -> None:
        self._inboxes: list[queue.SimpleQueue[Job | None]] = []
        self._outbox: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._faults: list[str] = []
        super().__init__(
            env_fns,
            num_workers=num_workers or available_cores(),
            autoreset_mode=autoreset_mode,
            episode_seed=episode_seed,
            start_timeout_s=start_timeout_s,
            step_timeout_s=step_timeout_s,
            **options,
        )

    def _launch(self) -> None:
        for worker, ids in enumerate(self.slices):
            inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=_work,
                args=(worker, self._group_arguments(ids), inbox, self._outbox, self._faults),
                name=f"parl-envs-{worker}",
                daemon=True,
            )
            thread.start()
            self._inboxes.append(inbox)
            self._threads.append(thread)
        # the threads hold no reference to the vectorizer, so one that is dropped unclosed ends them
        weakref.finalize(self, _send_home, self._inboxes)

    def _submit(self, section: int, method: str, args: tuple) -> None:
        self._inboxes[section].put((method, args))

    def _replies(self, timeout_s: float) -> list[Reply]:
        replies: list[Reply] = []
        with contextlib.suppress(queue.Empty):
            replies.append(self._outbox.get(timeout=timeout_s))
            while True:  # and what else has come
                replies.append(self._outbox.get_nowait())
        return replies

    def _abandon(self, worker: int) -> str:
        return "a thread cannot be killed, so it was left behind"

    def _stop(self) -> list[str]:
        _send_home(self._inboxes)
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return self._faults


def _work(
    worker: int, make: tuple, inbox: queue.SimpleQueue, outbox: queue.SimpleQueue, close_faults: list[str]
) -> None:
    """A thread's life. The envs are made, stepped and closed in it: some (rendering) are bound to one thread."""
    try:
        group = EnvGroup(*make)
    except BaseException as error:
        outbox.put((worker, error))
        return
    outbox.put((worker, group.description))
    while (job := inbox.get()) is not None:
        method, args = job
        try:
            outbox.put((worker, getattr(group, method)(*args)))
        except BaseException as error:
            outbox.put((worker, error))
    try:
        group.close()
    except EnvError as error:
        close_faults.append(str(error))


def _send_home(inboxes: list[queue.SimpleQueue]) -> None:
    for inbox in inboxes:
        inbox.put(None)
