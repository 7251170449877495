"""A vectorizer that steps while it is asked, not while it is waited for."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gymnasium.vector import AutoresetMode

from parl_cli.config import option
from parl_cli.errors import EnvError
from parl_cli.vectorizers.base import EnvFn, Vectorizer
from parl_cli.vectorizers.calls import Reply
from parl_cli.vectorizers.carry_out import carry_out
from parl_cli.vectorizers.plans import EnvPlans, EpisodeSeed


class EagerVectorizer(Vectorizer):
    """All envs in the caller, which works in `send`."""

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=eager`."""

        name: str = option("eager", "all envs in one loop, stepped as soon as they are sent an action")

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
    ) -> None:
        self._answers: deque[Reply] = deque()
        super().__init__(
            env_fns,
            num_workers=1,
            autoreset_mode=autoreset_mode,
            episode_seed=episode_seed,
            start_timeout_s=float("inf"),
            step_timeout_s=float("inf"),
        )

    def _launch(self) -> None:
        self._plans = EnvPlans(self.env_fns, 0, self.autoreset_mode, self.episode_seed)
        self._submit(0, "make", ())

    def _submit(self, worker: int, method: str, args: tuple) -> None:
        try:
            self._answers.append((0, carry_out(getattr(self._plans, method)(*args))))
        except Exception as error:  # raised where the answer is waited for
            self._answers.append((0, error))

    def _replies(self, timeout_s: float) -> list[Reply]:
        return [self._answers.popleft()]

    def _stop(self) -> list[str]:
        try:
            carry_out(self._plans.close())
        except EnvError as error:
            return [str(error)]
        return []
