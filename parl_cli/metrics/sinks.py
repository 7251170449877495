"""Where metric rows go: the contract of a sink, and the group that keeps a failing one from stopping a run.

metrics.jsonl is the truth; every other sink is a copy of it. That settles both hard questions. A copy that fails is
reported once and switched off, because nothing is lost. And on resume the truth is cut back to its checkpoint, then
each copy makes itself agree with what the truth still holds.

A class becomes a sink that a user can choose by being registered as `sink`, with what `RegisteredSink` lists.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from parl_cli.metrics.jsonl import JsonlSink, read_jsonl
from parl_cli.types import Metrics

log = logging.getLogger(__name__)


@runtime_checkable
class Sink(Protocol):
    """A copy of the truth: something that takes metric rows, one after another."""

    def write(self, row: Metrics) -> None:
        """Take one row; `env_steps` is its place on the x axis."""
        ...

    def resume(self, history: Iterable[Metrics]) -> None:
        """Go on after `history`: all rows that the run keeps. Called at most once, before the first `write`.

        It may be read later and in another thread: it holds the same rows while the run goes on.
        """
        ...

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        ...

    def close(self) -> None:
        """Flush, and let go of every file. May be called twice."""
        ...


@dataclass(frozen=True)
class RunRecord:
    """The run that is logged: its folder, and the resolved config as plain values."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def sweep(self) -> str | None:
        """The name of the sweep's folder, if the run is of one."""
        parent = self.folder.absolute().parent
        return parent.name if (parent / "sweep.json").is_file() or parent.name.startswith("sweep-") else None

    @property
    def name(self) -> str:
        """How a service calls it: `ppo_cartpole/2026-01-02_03-04-05-abc`, `ppo_cartpole/sweep-…/3`."""
        folder = f"{self.sweep}/{self.folder.name}" if self.sweep else self.folder.name
        return f"{self.config['name']}/{folder}"


@dataclass(frozen=True)
class NoOptions:
    """The options of a sink that has none."""


class RegisteredSink(Protocol):
    """What the class of a registered sink has."""

    Config: type  # a frozen dataclass of its options, each made by `config.option`
    summary: str  # for `parl list sinks`

    @classmethod
    def check(cls, options: Any) -> None:
        """Raise a ConfigError where it cannot work here, e.g. without its package. Writes nothing, asks nobody."""
        ...

    @classmethod
    def make(cls, run: RunRecord, options: Any) -> Sink:
        """The sink of a run; it writes nothing before its first row."""
        ...


class NoFile:
    """In place of metrics.jsonl, where there is no run folder: keeps nothing."""

    path = Path(os.devnull)

    def write(self, row: Metrics) -> None:
        """Forget the row."""

    def flush(self) -> None:
        """There is nothing to flush."""

    def offset(self) -> int:
        """Always 0."""
        return 0

    def check(self, offset: object) -> None:
        """There is nothing to cut."""

    def truncate(self, offset: object) -> None:
        """There is nothing to cut."""

    def close(self) -> None:
        """There is nothing to close."""


class SinkGroup:
    """The run's sinks as one.

    Args:
        truth: metrics.jsonl, or `NoFile`. Its errors are the run's errors.
        copies: sinks that may fail: the first exception becomes one warning line and switches that sink off.
    """

    def __init__(self, truth: JsonlSink | NoFile, copies: Sequence[Sink] = ()) -> None:
        self.truth = truth
        self.copies = list(copies)

    def write(self, row: Metrics) -> None:
        """Give a row to every sink, the truth first."""
        self.truth.write(row)
        self._each("write", row)

    def flush(self) -> None:
        """Flush every sink."""
        self.truth.flush()
        self._each("flush")

    def close(self) -> None:
        """Close every sink, the copies too where the truth fails."""
        self._each("close")
        self.truth.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the metrics: how long the truth is. Syncs it to disk, and flushes the copies.

        A run that is killed goes on from here: what a copy still held in this process then would be missing in it.
        """
        self._each("flush")
        return {"offset": self.truth.offset()}

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse what `load_state_dict` would; nothing is cut yet.

        Raises:
            CheckpointError: metrics.jsonl does not reach as far as the checkpoint says.
        """
        self.truth.check(state.get("offset"))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the truth back to a checkpoint, and let the copies follow. Before the first `write`.

        Raises:
            CheckpointError: metrics.jsonl does not reach as far as the checkpoint says.
        """
        offset = state.get("offset")
        self.truth.truncate(offset)
        for sink in list(self.copies):
            self._try(sink, "resume", read_jsonl(self.truth.path, end=offset))

    def _each(self, method: str, *args: Any) -> None:
        for sink in list(self.copies):
            self._try(sink, method, *args)

    def _try(self, sink: Sink, method: str, *args: Any) -> None:
        try:
            getattr(sink, method)(*args)
        # Any exception at all: third-party writers raise what they like, and none is worth a run.
        except Exception as error:
            self.copies.remove(sink)
            log.warning(
                "%s failed in %s (%s: %s) and is switched off; the run goes on, %s has every row",
                type(sink).__name__, method, type(error).__name__, " ".join(str(error).split()), self.truth.path,
            )  # fmt: skip
            if method != "close":
                self._let_go(sink)

    def _let_go(self, sink: Sink) -> None:
        try:
            sink.close()
        except Exception as error:
            log.debug("%s could not be closed after it failed: %s", type(sink).__name__, error)
