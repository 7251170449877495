"""Worker processes, and a share of the envs right here: this process steps while it would wait.

With a worker per core and this process there is one more than there are cores, and every step wakes this one where a
worker wants to go on. Here this process is one of the workers: no core is wanted twice, and a wake-up less is in the
way of each step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parl_cli.config import option
from parl_cli.errors import ConfigError, EnvError
from parl_cli.vectorizers.base import EnvFn
from parl_cli.vectorizers.calls import Reply
from parl_cli.vectorizers.carry_out import carry_out
from parl_cli.vectorizers.plans import EnvPlans
from parl_cli.vectorizers.subprocess import SubprocessVectorizer


class HybridVectorizer(SubprocessVectorizer):
    """`SubprocessVectorizer` whose last worker is the caller itself.

    It works when it is waited for, after the processes have been told to, and as in `SerialVectorizer` nothing can
    interrupt it: a step of its envs has no deadline, what they raise is an EnvError whatever `max_restarts` says, and
    an env that ends its process ends this one.
    """

    @dataclass(frozen=True)
    class Config(SubprocessVectorizer.Config):
        """`vectorizer=hybrid`."""

        name: str = option("hybrid", "worker processes, and a share of the envs in the actor's own process")
        num_workers: int | None = option(None, "shares, one of them here; null: one per core", ge=1)
        step_timeout_s: float = option(60.0, "seconds a process may take for one step of its envs", gt=0)
        max_restarts: int = option(0, "processes that may fail and be replaced; not the share here", ge=0)

    _longest_look_s = math.inf  # nobody else wants the core of this process

    def __init__(self, env_fns: Sequence[EnvFn], **options: Any) -> None:
        """Start the workers; takes all options of `SubprocessVectorizer`.

        Args:
            env_fns: one factory per env.
            **options: see `SubprocessVectorizer`; this process is one of the `num_workers`.

        Raises:
            ConfigError: `num_groups`, which only processes can have.
        """
        if options.get("num_groups", 1) != 1:
            raise ConfigError(f"num_groups={options['num_groups']}: a share here has no parts; use AsyncVectorizer")
        self._jobs: deque[tuple[str, tuple]] = deque()  # what was asked of the envs here
        super().__init__(env_fns, **options)

    @property
    def _num_processes(self) -> int:
        return self._here

    @property
    def _here(self) -> int:
        """The worker, and section, that is this process."""
        return len(self.slices) - 1

    def _launch(self) -> None:
        self._plans = EnvPlans(*self._group_arguments(self.slices[self._here]))
        super()._launch()
        self._submit(self._here, "make", ())

    def _attach(self, section: int) -> None:
        if section == self._here:
            self._submit(section, "attach", (self._blocks.rows(self.slices[section]),))
        else:
            super()._attach(section)

    def _submit(self, section: int, method: str, args: tuple) -> None:
        if section == self._here:
            self._jobs.append((method, args))
        else:
            super()._submit(section, method, args)

    def _replies(self, timeout_s: float) -> list[Reply]:
        if not self._jobs:
            return super()._replies(timeout_s)
        method, args = self._jobs.popleft()
        try:
            return [(self._here, carry_out(getattr(self._plans, method)(*args)))]
        except BaseException as error:
            if not self._started and not isinstance(error, Exception):
                raise  # Ctrl-C: nothing is there yet that could be used on
            # raised by whoever waits for the answer, once the others have given theirs
            return [(self._here, error)]

    def _replace(self, worker: int, error: Exception) -> bool:
        return worker != self._here and super()._replace(worker, error)

    def _stop(self) -> list[str]:
        self._jobs.clear()
        faults = super()._stop()
        try:
            carry_out(self._plans.close())
        except EnvError as error:
            faults.append(str(error))
        return faults
