"""Copies of the metrics that a service keeps: W&B, MLflow. What they have in common, and how they go on after a resume.

A service may be slow, or gone. So rows go to it in batches from a thread of its own, which the run never waits for,
except for a while at its end. Whatever fails is raised by the next `write`, and so switches the copy off.

A service cannot forget rows, and steps that go back confuse it. metrics.jsonl is cut back to the checkpoint on
resume, and the steps after it are trained again; the service keeps what it had of them. So a resumed run goes on
under the same id, tells first what the service missed, and then nothing up to the last row that was delivered. A
note in the run folder holds the id and the place of that row: its env steps, and its number among the rows of that
step (an update and its evaluation share one). It is written after each batch. After `kill -9` the note and the
service may differ by the batch that was under way: MLflow may get it twice, and W&B, whose own process ends with the
run's, may lack it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from parl_cli.errors import ParlError
from parl_cli.types import Metrics

log = logging.getLogger(__name__)

BATCH_EVERY_S = 5.0
PATIENCE_S = 60.0  # for the last rows, at the end of the run
MAX_WAITING = 20_000  # rows, about 50 MB
HISTORY_BATCH = 1000  # rows; a history may be longer than memory


@dataclass(frozen=True)
class Written:
    """A row, and when it was written (seconds since 1970)."""

    row: Metrics
    time: float


class Service(Protocol):
    """One run of a service. Its methods are called by one thread, in the order in which they stand here."""

    def begin(self, run_id: str | None) -> str:
        """Begin a run, or go on with the one of this id; returns the id."""
        ...

    def send(self, rows: list[Written]) -> None:
        """Take rows; their `env_steps` never go back."""
        ...

    def end(self, status: str) -> None:
        """Let go; `status` as in run.json."""
        ...


class RemoteSink:
    """Rows to a service.

    Args:
        service: of one run; nothing of it is called before the first row.
        folder: the run folder; the note is `<name>.json` in it.
        name: of the service, for messages.
    """

    def __init__(self, service: Service, folder: Path, name: str) -> None:
        self.service = service
        self.folder = folder
        self.name = name
        self._note = folder / f"{name}.json"
        # places in the run: env steps, and which row of that step; they compare as rows follow each other
        self._run_id, self._delivered = self._read_note()
        self._place = (-1.0, 0)
        self._history: Iterable[Metrics] = ()
        self._waiting: queue.SimpleQueue[Written] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def write(self, row: Metrics) -> None:
        """Take one row.

        Raises:
            Exception: what the service raised since the last call.
            ParlError: it takes rows more slowly than they come.
        """
        self._raise_failure()
        if self._waiting.qsize() >= MAX_WAITING:
            raise ParlError(f"{MAX_WAITING:,} rows wait for it")
        self._waiting.put(Written(dict(row), time.time()))
        self._start()

    def resume(self, history: Iterable[Metrics]) -> None:
        """Go on with the run's id; the rows of `history` that were never delivered come first.

        The thread reads them, a batch at a time, while the run goes on.
        """
        self._history = history
        self._start()

    def flush(self) -> None:
        """Send what waits, soon."""
        self._hurry.set()

    def close(self) -> None:
        """Send what waits, and let go of the service; for `PATIENCE_S` at most.

        Raises:
            Exception: what the service raised.
            ParlError: it did not take the last rows in time.
        """
        thread, self._thread = self._thread, None
        self._closing = True
        self._hurry.set()
        if thread is not None:
            thread.join(PATIENCE_S)
            if thread.is_alive():
                raise ParlError(f"it did not take the last rows within {PATIENCE_S:.0f} s at the end of the run")
        self._raise_failure()

    def _start(self) -> None:
        if self._thread is None:
            # a daemon: a service that hangs must not keep the process
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _work(self) -> None:
        begun = False
        try:
            for batch in self._batches():
                rows = [written for written in batch if self._is_new(written.row)]
                if not rows:
                    continue
                if not begun:
                    self._run_id = self.service.begin(self._run_id)
                    self._write_note()
                    begun = True
                self.service.send(rows)
                self._delivered = self._place
                self._write_note()
            if begun:
                self.service.end(self._status())
        # Any exception at all: other people's code, in a thread where nobody would see it.
        except Exception as error:
            self._failure = error

    def _batches(self) -> Iterator[list[Written]]:
        """Every row of the run in order: the history, then what is written, until the run ends."""
        history = (Written(row, time.time()) for row in self._history)
        self._history = ()
        while batch := list(islice(history, HISTORY_BATCH)):
            yield batch
        while not (self._closing and self._waiting.empty()):
            yield self._take()
            self._hurry.wait(BATCH_EVERY_S)
            self._hurry.clear()

    def _take(self) -> list[Written]:
        rows = []
        while not self._waiting.empty():
            rows.append(self._waiting.get())
        return rows

    def _is_new(self, row: Metrics) -> bool:
        """Whether the row, the next of the run, lies behind the last that was delivered."""
        before, number = self._place
        steps = row["env_steps"]
        self._place = steps, number + 1 if steps == before else 1
        return self._place > self._delivered

    def _read_note(self) -> tuple[str | None, tuple[float, int]]:
        try:
            note = json.loads(self._note.read_text())
            return str(note["id"]), (float(note["env_steps"]), int(note["rows"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None, (-1.0, 0)

    def _write_note(self) -> None:
        env_steps, rows = self._delivered
        temporary = self._note.with_name(f".{self._note.name}.tmp")
        temporary.write_text(json.dumps({"id": self._run_id, "env_steps": env_steps, "rows": rows}) + "\n")
        os.replace(temporary, self._note)

    def _status(self) -> str:
        """How the run ended, by run.json; `running` where it does not say yet."""
        try:
            return str(json.loads((self.folder / "run.json").read_text())["status"])
        except (OSError, ValueError, LookupError, TypeError):
            return "running"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
