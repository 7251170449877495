"""TensorBoard event files, written by tensorboardX (the extra `tensorboard`), one event per row.

The record writer is used directly instead of `tensorboardX.SummaryWriter`: that one hands events to a thread through
a bounded queue, and when the disk is full the thread dies and the queue blocks the run for ever. Here a failed write
is an exception like any other. Each scalar carries its unit and its line from the catalogue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parl_cli.errors import ConfigError
from parl_cli.metrics.catalog import lookup
from parl_cli.metrics.sinks import NoOptions, RunRecord
from parl_cli.types import Metrics

FLUSH_EVERY_S = 10.0


class TensorBoardSink:
    """Write rows as scalars over env steps.

    Args:
        folder: where the event files lie; point `tensorboard --logdir` at it, or at a folder above.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    Config = NoOptions
    summary = "TensorBoard event files"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError as error:
            raise ConfigError(
                'logger.sinks.tensorboard: tensorboardX is not installed; pip install "parl-cli[tensorboard]"'
            ) from error
        self.folder = Path(folder)
        self._make_writer = event_file_writer.EventsWriter
        self._event, self._summary = event_pb2, summary_pb2
        self._writer: Any = None
        self._described: set[str] = set()
        self._flushed_at = time.monotonic()

    @classmethod
    def check(cls, options: NoOptions) -> None:
        """Whether its package is there.

        Raises:
            ConfigError: it is not.
        """
        cls("")  # writes nothing before its first row

    @classmethod
    def make(cls, run: RunRecord, options: NoOptions) -> TensorBoardSink:
        """The sink of a run."""
        return cls(run.folder / "tensorboard")

    def write(self, row: Metrics) -> None:
        """Write one event with a scalar per metric, except the x axis itself."""
        values = [self._value(name, value) for name, value in row.items() if name != "env_steps"]
        self._write(step=int(row["env_steps"]), summary=self._summary.Summary(value=values))
        if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
            self.flush()

    def resume(self, history: Iterable[Metrics]) -> None:
        """Tell TensorBoard to forget what earlier event files hold beyond the last row of `history`."""
        last = -1
        for row in history:
            last = int(row["env_steps"])
        # TensorBoard drops every event at or after the step of a session start.
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=last + 1, session_log=start)

    def flush(self) -> None:
        """Write out what is buffered."""
        self._flushed_at = time.monotonic()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _write(self, step: int, **content: Any) -> None:
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The library's name has whole seconds: a run resumed within one would overwrite its own file.
            self._writer = self._make_writer(str(self.folder / "events"), f".{time.time_ns()}")
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, **content))

    def _value(self, name: str, value: float) -> Any:
        scalar = self._summary.Summary.Value(tag=name, simple_value=float(value))
        if name not in self._described:  # TensorBoard reads a tag's description from its first event
            self._described.add(name)
            metric = lookup(name)
            if metric is not None:
                scalar.metadata.summary_description = f"{metric.doc} [{metric.unit}]"
        return scalar
