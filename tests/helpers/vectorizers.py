"""Which vectorizers a test is about."""

import inspect
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


def constructor_keywords(cls: type) -> dict[str, Any]:
    """Keyword -> default of everything that a vectorizer's constructor takes, also what it hands on to its base."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        found = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
