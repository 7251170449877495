"""Which vectorizers a test is about, and how one is made."""

import dataclasses
import inspect
from typing import Any

import pytest
from gymnasium.vector import AutoresetMode

from parl_cli import registry
from parl_cli.envs.toy import counting_seed
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


every_vectorizer = pytest.mark.parametrize("name", of_python_envs())


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


def make(name: str, env_fns: list[Any], **options: Any) -> Any:
    """A vectorizer as the runner uses it, in lock-step; options that this one does not have are left out."""
    options.setdefault("autoreset_mode", AutoresetMode.SAME_STEP)
    options.setdefault("episode_seed", counting_seed)
    options.setdefault("batch_size", len(env_fns))  # all envs: lock-step, also where the first to answer could do
    cls = registry.load("vectorizer", name)
    known = {field.name for field in dataclasses.fields(cls.Config)} | {"autoreset_mode", "episode_seed"}
    return cls(env_fns, **{key: value for key, value in options.items() if key in known})
