"""What looks at every update: metrics, evaluation, checkpoints, the wish to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from parl_cli.errors import CheckpointError
from parl_cli.metrics.episodes import EpisodeWindow, WindowGroup
from parl_cli.metrics.memory import rss_mb
from parl_cli.metrics.sinks import SinkGroup
from parl_cli.metrics.timing import Stopwatch
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import Evaluation
from parl_cli.training.learner import Learner
from parl_cli.training.loop import StopTraining
from parl_cli.types import Metrics


class MetricsHook:
    """Completes every update's metrics into a row and hands it to the sinks.

    Args:
        sinks: metrics.jsonl and its copies.
        display: shows a row to a person.
        watches: stopwatches of the roles, whose parts become time shares.
        every_steps: env steps between rows; None: a row per update.
        more: what else goes into a row, of the time since the row before.
        num_policies: whose episodes they are: env i is policy i % num_policies'.
    """

    def __init__(
        self,
        sinks: SinkGroup,
        display: Callable[[Metrics], None],
        watches: Iterable[Stopwatch],
        every_steps: int | None = None,
        more: Callable[[], Metrics] = dict,
        num_policies: int = 1,
    ) -> None:
        self.sinks = sinks
        self.display = display
        self.watches = list(watches)
        self._watch = Stopwatch()
        self.every_steps = every_steps
        self.more = more
        self.window = EpisodeWindow() if num_policies == 1 else WindowGroup(num_policies)
        self._earlier_s = 0.0  # training time before the clock was started
        self._started: float | None = None
        self._last_row = (time.perf_counter(), 0)
        self._rows_done = 0

    @property
    def time_s(self) -> float:
        """Wall time of the training, over all calls and resumes."""
        return self._earlier_s + (0.0 if self._started is None else time.perf_counter() - self._started)

    def begin(self, env_steps: int) -> None:
        """Start the clock; `env_steps` are done already."""
        self.end()
        self._started = time.perf_counter()
        self._last_row = (self._started, env_steps)
        self._rows_done = env_steps // self.every_steps if self.every_steps else 0

    def end(self) -> None:
        """Stop the clock, until the next `begin`."""
        self._earlier_s, self._started = self.time_s, None

    def after_update(self, learner: Learner, metrics: Metrics) -> None:
        """Write a row, if one is due."""
        self.window.add(learner.episodes)
        if self.every_steps is not None:
            due = learner.env_steps // self.every_steps
            if due == self._rows_done and not _ends_budget(learner):
                return
            self._rows_done = due
        for watch in self.watches:
            self._watch.merge(watch.take())
        now = time.perf_counter()
        then, steps_then = self._last_row
        self._last_row = (now, learner.env_steps)
        row: dict[str, float] = {
            "env_steps": learner.env_steps,
            "update": learner.updates,
            "time_s": self.time_s,
            "steps_per_s": (learner.env_steps - steps_then) / max(now - then, 1e-9),
            **self.window.metrics(),
            **metrics,
            **self.more(),
            "memory/rss_mb": rss_mb(),
            **self._watch.shares(now - then),
        }
        self._watch.take()
        self.write(row)

    def write(self, row: Metrics) -> None:
        """Hand a row to the sinks and to the display."""
        self.sinks.write(row)
        self.display(row)

    def state_dict(self) -> dict[str, Any]:
        """The episode window, the clock and the length of metrics.jsonl."""
        return {"window": self.window.state_dict(), "time_s": self.time_s, "sinks": self.sinks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, but for the sinks: their rows are cut apart from this, and in this run only."""
        self.window.load_state_dict(state["window"])
        self._earlier_s = float(state["time_s"])


class EvalHook:
    """Evaluates every so many env steps, remembers the best, stops at a target.

    Args:
        every_steps: env steps between evaluations.
        play: plays the episodes.
        metrics: writes the row.
        target_return: stop once the mean return reaches it.
        on_best: called when an evaluation is the best so far.
    """

    def __init__(
        self,
        every_steps: int,
        play: Callable[[], Evaluation],
        metrics: MetricsHook,
        target_return: float | None,
        on_best: Callable[[Learner], None],
    ) -> None:
        self.every_steps = every_steps
        self.play = play
        self.metrics = metrics
        self.target_return = target_return
        self.on_best = on_best
        self.best: float | None = None
        self.last: float | None = None
        self._done = 0

    def begin(self, env_steps: int) -> None:
        """`env_steps` are done already, with their evaluations."""
        self._done = env_steps // self.every_steps

    def after_update(self, learner: Learner, metrics: Metrics) -> None:
        """Evaluate, if it is due."""
        due = learner.env_steps // self.every_steps
        if due == self._done and not _ends_budget(learner):
            return
        self._done = due
        result = self.play()
        row = {
            "env_steps": learner.env_steps,
            "update": learner.updates,
            "time_s": self.metrics.time_s,
            **result.metrics(),
        }
        self.metrics.write(row)
        self.last = row["eval/return_mean"]
        if self.best is None or self.last > self.best:
            self.best = self.last
            self.on_best(learner)
        if self.target_return is not None and self.last >= self.target_return:
            raise StopTraining(f"target: evaluation reached {self.last:.1f} ≥ eval.target_return={self.target_return}")

    def state_dict(self) -> dict[str, Any]:
        """The best and the last mean return."""
        return {"best": self.best, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.best, self.last = (None if state[k] is None else float(state[k]) for k in ("best", "last"))


class CheckpointHook:
    """Writes a checkpoint every so many env steps; keeps the latest few and the best.

    Args:
        folder: the run's checkpoints.
        save: writes one into the given folder.
        every_steps: env steps between checkpoints; None: only when asked.
        keep: how many of the latest stay.

    Attributes:
        is_outdated: weights were set since the last save: a checkpoint of this very step holds others.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None], every_steps: int | None, keep: int) -> None:
        self.folder = folder
        self.save = save
        self.every_steps = every_steps
        self.keep = keep
        self.is_outdated = False
        self._done = 0

    def begin(self, env_steps: int) -> None:
        """`env_steps` are done already, with their checkpoints."""
        self._done = env_steps // self.every_steps if self.every_steps else 0

    def after_update(self, learner: Learner, metrics: Metrics) -> None:
        """Write a checkpoint, if one is due."""
        if self.every_steps is None:
            return
        due = learner.env_steps // self.every_steps
        if due != self._done:
            self._done = due
            self.write(learner)

    def write(self, learner: Learner) -> Path:
        """Write a checkpoint now, unless this step has one that holds, and drop what is more than `keep`."""
        path = self.folder / str(learner.env_steps)
        if self.is_outdated or not path.exists():
            self.save(path)
            self.is_outdated = False
        for old in checkpoint.numbered(self.folder)[: -self.keep]:
            checkpoint.remove(old)
        return path

    def rewind(self, env_steps: int) -> bool:
        """Drop what killed saves left, and the checkpoints after `env_steps`: training comes by there again.

        Also the best one, if it is of then: no row of metrics.jsonl tells of it any more.

        Returns:
            Whether there is a best one.
        """
        checkpoint.tidy(self.folder)
        for path in checkpoint.numbered(self.folder):
            if int(path.name) > env_steps:
                checkpoint.remove(path)
        best = self.folder / "best"
        with suppress(CheckpointError):  # none, or one that is damaged: that is its reader's to hear
            if checkpoint.load(best).env_steps > env_steps:
                checkpoint.remove(best)
        return best.exists()

    def write_best(self, learner: Learner) -> None:
        """Write the checkpoint called best."""
        self.save(self.folder / "best")


def _ends_budget(learner: Learner) -> bool:
    """Whether the update that was just done is the one that used up `total_steps`; those who go on are past it."""
    return learner.env_steps - learner.last_steps < learner.total_steps <= learner.env_steps


class StopSignal:
    """Ctrl-C and SIGTERM finish the current update; a second Ctrl-C does not wait.

    A context manager; outside the main thread, where Python has no signal handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def after_update(self, learner: Learner, metrics: Metrics) -> None:
        """Stop, if a signal came."""
        if self.received is not None:
            raise StopTraining(f"interrupted: {self.received.name}", self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
