"""Which vectorizers a test is about."""

from typing import Any

from parl_cli import registry
from parl_cli.vectorizers import AutoVectorizer, Vectorizer


def of_python_envs(*, lock_step: bool = False) -> list[str]:
    """Names of those that step any Python env; with `lock_step`, only those that answer for all envs at once."""

    def fits(cls: Any) -> bool:
        return (
            isinstance(cls, type)
            and issubclass(cls, Vectorizer)
            and cls is not AutoVectorizer  # it makes another one of them
            and (getattr(cls, "replayable", True) or not lock_step)
        )

    return [name for name in registry.names("vectorizer") if fits(registry.load("vectorizer", name))]
