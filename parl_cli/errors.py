"""The errors a user meets, and the exit code each one ends with.

A `ConfigError` is the user's to mend: one line with the value, the rule and the way out, exit code 2, no
traceback. A `ParlError` is something that broke while running (an environment raised, a worker died): its text
names the role, the index and the cause; exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ParlError(Exception):
    """Something broke during a run; the message names who, which one and why."""

    exit_code = 1


class ConfigError(ParlError):
    """Bad input: the message is one line with the value, the rule and the way out."""

    exit_code = 2


class UnknownKeyError(ConfigError):
    """A key that there is not.

    Args:
        key: dotted.
        hint: the way out.
    """

    def __init__(self, key: str, hint: str) -> None:
        super().__init__(f"unknown key {key}; {hint}")
        self.key = key
        self.hint = hint


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, made for something else, or not to be trusted."""


class SpaceError(ConfigError, RuntimeError, ValueError, TypeError):
    """Spaces that cannot be stepped together, or have no array layout.

    Gymnasium's vector envs raise one or the other of these classes for them, so what catches theirs catches ours.
    """


class EnvError(ParlError):
    """An environment raised, or broke its contract; names env index, seed, step and action."""


class WorkerError(ParlError):
    """A worker process died, hung or could not start; names its index and the cause."""


class WriteError(ParlError):
    """A file or folder that cannot be written: the disk is full, read-only, or gone.

    Args:
        path: what was to be written.
        cause: what the system says.
    """

    def __init__(self, path: Path, cause: OSError) -> None:
        self.path = path
        self.why = cause.strerror or str(cause)
        super().__init__(f"{path}: cannot be written ({self.why})")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What writes `path` and nothing else: an OSError of the block becomes a `WriteError`."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error


def suggest(name: str, known: Iterable[str]) -> str:
    """A `did you mean …?` sentence for a mistyped name, or the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(known)}" if known else "there is nothing to choose from"
