"""All envs in one loop in this process: no start-up, no wake-ups. The fastest choice for cheap envs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from parl_cli.config import option
from parl_cli.errors import EnvError
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.carry_out import carry_out
from parl_cli.vectorizers.description import ObservationMode
from parl_cli.vectorizers.plans import EnvPlans, EpisodeSeed


class SerialVectorizer(Vectorizer):
    """One worker, which is the caller itself: it works when it is waited for. See `Vectorizer`."""

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=serial`."""

        name: str = option("serial", "all envs in one loop, in the actor's own process")

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
        observation_mode: ObservationMode = "same",
        copy: bool = True,
    ) -> None:
        self._jobs: deque[tuple[str, tuple]] = deque()
        # no deadlines: nothing can interrupt an env that runs in the thread that waits for it
        super().__init__(
            env_fns,
            num_workers=1,
            autoreset_mode=autoreset_mode,
            episode_seed=episode_seed,
            start_timeout_s=float("inf"),
            step_timeout_s=float("inf"),
            observation_mode=observation_mode,
            copy=copy,
        )

    @property
    def envs(self) -> list[gym.Env]:
        """The envs themselves."""
        return self._plans.envs

    def _launch(self) -> None:
        self._plans = EnvPlans(*self._group_arguments(self.slices[0]))
        self._submit(0, "make", ())

    def _submit(self, section: int, method: str, args: tuple) -> None:
        self._jobs.append((method, args))

    def _receive(self, limit: float) -> None:
        """Do what was asked for: nothing is waited for, and nothing is late."""
        method, args = self._jobs.popleft()
        self._owed[0] -= 1
        try:
            self._results[0] = carry_out(getattr(self._plans, method)(*args))
        except BaseException as error:  # raised by whoever waits for the answer, which is the next frame
            self._errors.setdefault(0, error)

    def _stop(self) -> list[str]:
        self._jobs.clear()
        try:
            carry_out(self._plans.close())
        except EnvError as error:
            return [str(error)]
        return []
