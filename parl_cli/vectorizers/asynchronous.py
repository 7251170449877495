"""Worker processes that never wait for the slowest env: answers are taken as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parl_cli.config import option
from parl_cli.errors import ConfigError
from parl_cli.vectorizers.base import EnvFn
from parl_cli.vectorizers.subprocess import SubprocessVectorizer


class AsyncVectorizer(SubprocessVectorizer):
    """`SubprocessVectorizer` whose `recv` returns with the first `batch_size` envs that answered.

    Each worker's envs form `num_groups` groups that are stepped one after the other. With two of them, a worker steps
    one group while the actions of the other are chosen (double buffering, as in Sample Factory: Petrenko et al. 2020,
    "Sample Factory: Egocentric 3D Control from Pixels at 100000 FPS", section 3.2). Which envs come together depends
    on their speed, so a run is not reproducible; each env's own trace, given its actions, is.
    """

    replayable = False  # an env may be in the middle of a step when the run is saved

    @dataclass(frozen=True)
    class Config(SubprocessVectorizer.Config):
        """`vectorizer=async`."""

        name: str = option("async", "worker processes; the first envs to answer are acted on, no one waits for all")
        num_groups: int = option(
            2, "groups of each worker's envs: 2 steps one while the other is acted on", ge=1, le=64
        )
        batch_size: int | None = option(None, "envs to wait for; null: num_envs / num_groups", ge=1)

    def __init__(
        self, env_fns: Sequence[EnvFn], *, num_groups: int = 2, batch_size: int | None = None, **options: Any
    ) -> None:
        """Start the workers; takes all options of `SubprocessVectorizer` besides its own.

        Args:
            env_fns: one factory per env.
            num_groups: groups of each worker's envs, at most as many as it has envs.
            batch_size: envs that `recv` waits for; it returns whole groups, so perhaps a few more.
            **options: see `SubprocessVectorizer`.
        """
        _check_batch_size(batch_size, len(env_fns))
        batch_size = batch_size or max(1, len(env_fns) // max(1, num_groups))
        super().__init__(env_fns, num_groups=num_groups, batch_size=batch_size, **options)

    @classmethod
    def check(cls, options: Config, env_fns: Sequence[EnvFn]) -> None:
        """Refuse options that do not fit the envs of an actor, before anything is written.

        Raises:
            ConfigError: more envs to wait for than there are.
        """
        _check_batch_size(options.batch_size, len(env_fns))


def _check_batch_size(batch_size: int | None, num_envs: int) -> None:
    if batch_size is not None and batch_size > num_envs:
        raise ConfigError(f"vectorizer.batch_size={batch_size}: at most num_envs={num_envs}")
