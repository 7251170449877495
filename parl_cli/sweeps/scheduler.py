"""The loop that runs the jobs of a sweep: a few at a time, whatever happens to each of them.

A job that crashes or is killed harms no other; it is begun again, from its last checkpoint, a few times. The ledger is
written before a job starts and after it ended, so a killed scheduler knows what is done.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from parl_cli.errors import CheckpointError
from parl_cli.metrics.memory import free_mb
from parl_cli.metrics.tail import Tail
from parl_cli.metrics.tracker import Tracker
from parl_cli.sweeps.ledger import Job, Ledger, State
from parl_cli.sweeps.process import STOP_WITHIN_S
from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, read_file


class Process(Protocol):
    """A job that was started somewhere: `process.JobProcess`, `slurm.SlurmJob`.

    Attributes:
        is_queued: it waits for a machine.
        cut_off: why it had to end before it was done, though nobody wanted it to; empty: it had not.
    """

    is_queued: bool
    cut_off: str

    def poll(self) -> int | None:
        """The exit code, −n for signal n; None while it runs."""

    def cause(self, code: int) -> str:
        """What such an end means in words, where the job itself could not say."""

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""

    def abandon(self) -> None:
        """The scheduler ends before the job did: leave nothing behind that nobody looks after."""


@dataclass(frozen=True)
class Place:
    """Where jobs run.

    Args:
        start: starts a job.
        num_jobs: how many run at once.
        adopted: jobs that run there already, by number.
        shares_memory: with this process; none starts unless there is enough.
        leaves: on Ctrl-C what runs goes on.
        poll_s: seconds between two looks at what runs.
    """

    start: Callable[[Job], Process]
    num_jobs: int
    adopted: Mapping[int, Process] = field(default_factory=dict)
    shares_memory: bool = True
    leaves: bool = False
    poll_s: float = 0.1


class Plan:
    """What a sweep does besides running the jobs it has. A grid does nothing: its jobs are all there."""

    def more(self) -> Job | None:
        """Another job, added to the ledger; None if there is none, for now."""
        return None

    def behind(self, job: Job, env_steps: int) -> str:
        """Why a running job, which has come so far, is to be stopped; empty: it is not."""
        return ""

    def ended(self, job: Job) -> None:
        """The job is done, pruned or failed for good."""


class Display(Protocol):
    """Shows a sweep to a person; see `display`."""

    def started(self, job: Job) -> None:
        """The job runs."""

    def ended(self, job: Job) -> None:
        """It does not any more; `job.state` says why."""

    def refresh(self, running: Mapping[int, Running]) -> None:
        """Time has passed."""


@dataclass
class Running:
    """A job's process, and what is known of how far it is."""

    job: Job
    process: Process
    tail: Tail
    tracker: Tracker
    began: float = field(default_factory=time.monotonic)
    memory_mb: float = 0.0  # of its metrics; 0: it has not told yet
    behind: str = ""  # why it was asked to stop for good


class Scheduler:
    """Runs a ledger's jobs.

    Args:
        ledger: the sweep; held by the caller.
        place: where its jobs run.
        display: is told what happens.
        plan: adds jobs and stops them; see `Plan`.
    """

    def __init__(
        self,
        ledger: Ledger,
        place: Place,
        display: Display,
        plan: Plan | None = None,
    ) -> None:
        self.ledger = ledger
        self.options = ledger.options
        self.place = place
        self.display = display
        self.plan = plan or Plan()
        self.running: dict[int, Running] = {}
        self._failures: dict[int, int] = {}  # since this scheduler began
        self._waiting = ledger.of_state(State.WAITING)
        self._reached: dict[int, float] = {}  # env steps at which a job was cut off
        self._memory_mb = 0.0  # of the largest job so far

    def run(self) -> int | None:
        """Run until nothing is left to do, or Ctrl-C or SIGTERM; the signal's number then.

        All jobs have saved by then, unless the place leaves them running.
        """
        with _Signals() as signals:
            try:
                for number, process in self.place.adopted.items():
                    self._watch(self.ledger.jobs[number], process)
                while signals.number is None and (self._fill() or self.running):
                    time.sleep(self.place.poll_s)
                    self._look()
                if not self.place.leaves:
                    self._stop_all(signals)
            finally:
                for running in self.running.values():
                    running.process.abandon()
        return signals.number

    def _fill(self) -> bool:
        """Start jobs while there is room; whether one was started."""
        started = False
        while len(self.running) < self.place.num_jobs and self._memory_allows():
            job = self._waiting.pop(0) if self._waiting else self.plan.more()
            if job is None:
                break
            self._start(job)
            started = True
        return started

    def _memory_allows(self) -> bool:
        """Whether there is memory for one more, and for those that have started but taken none yet."""
        if not self.place.shares_memory:
            return True
        expected = self._memory_mb or self.options.job_memory_mb
        silent = sum(not running.memory_mb for running in self.running.values())
        return not self.running or free_mb() > expected * (silent + 1)

    def _start(self, job: Job) -> None:
        folder = self.ledger.folder(job)
        (folder / "result.json").unlink(missing_ok=True)
        job.state, job.reason, job.attempts, job.result = State.RUNNING, "", job.attempts + 1, {}
        self.ledger.save()
        self._watch(job, self.place.start(job))

    def _watch(self, job: Job, process: Process) -> None:
        tail, tracker = Tail(self.ledger.folder(job) / "metrics.jsonl"), Tracker(job.total_steps)
        self.running[job.number] = Running(job, process, tail, tracker)
        self.display.started(job)

    def _look(self) -> None:
        """See how far everything is."""
        for running in list(self.running.values()):
            # asked first: what a job wrote before it ended is read then
            code = running.process.poll()
            self._read(running)
            if code is not None:
                del self.running[running.job.number]
                running.process.stop()
                self._ended(running, code)
            elif running.process.is_queued:
                running.began = time.monotonic()
        self.display.refresh(self.running)

    def _read(self, running: Running) -> None:
        rows = running.tail.rows()
        for row in rows:
            running.tracker.update(row)
        running.memory_mb = max(running.memory_mb, running.tracker.row.get("memory/rss_mb", 0.0))
        self._memory_mb = max(self._memory_mb, running.memory_mb)
        if rows and not running.behind:
            running.behind = self.plan.behind(running.job, running.tracker.env_steps)
            if running.behind:
                running.process.stop()

    def _ended(self, running: Running, code: int, stopping: bool = False) -> None:
        job, result = running.job, self._result(running.job)
        job.result = result
        status = str(result.pop("status", ""))
        result.pop("exit_code", None)
        error, cut_off = " ".join(str(result.pop("error", "")).split()), running.process.cut_off
        job.reason = error or running.process.cause(code)
        if code == 0 and status == "finished":
            job.state, job.reason = State.DONE, ""
        elif running.behind:  # however it ended: nobody wants it to go on
            job.state, job.reason = State.PRUNED, running.behind
        elif stopping or (status == "interrupted" and not cut_off):
            has_saved = status in ("interrupted", "finished")
            job.reason = "" if has_saved else f"{job.reason}; it goes on from its last checkpoint"
            job.state = State.INTERRUPTED
        elif status == "interrupted" and self._has_come_further(job):
            job.state, job.reason = State.WAITING, cut_off
            self._waiting.append(job)
        elif code != 2 and self._failures.get(job.number, 0) < self.options.retries:
            self._failures[job.number] = self._failures.get(job.number, 0) + 1
            job.state = State.WAITING
            self._waiting.append(job)
        else:
            job.state = State.FAILED
        self.ledger.save()
        self.display.ended(job)
        if job.state in (State.DONE, State.PRUNED, State.FAILED):
            self.plan.ended(job)

    def _has_come_further(self, job: Job) -> bool:
        """Whether a job that was cut off did anything since it was the last time."""
        before = self._reached.get(job.number, 0)
        self._reached[job.number] = steps = float(job.result.get("env_steps", 0))
        return steps > before

    def _result(self, job: Job) -> dict[str, Any]:
        """What result.json says; nothing if the job could not write it."""
        file = self.ledger.folder(job) / "result.json"
        try:
            return parse_json(file, read_file(file, MAX_JSON_BYTES))
        except CheckpointError:
            return {}

    def _stop_all(self, signals: _Signals) -> None:
        """Ask what runs to save, and wait for it; a second Ctrl-C does not wait."""
        for running in self.running.values():
            running.process.stop()
        deadline = time.monotonic() + STOP_WITHIN_S + 5.0
        while self.running:
            if signals.impatient or time.monotonic() > deadline:
                for running in self.running.values():
                    running.process.kill()
            time.sleep(self.place.poll_s)
            for running in list(self.running.values()):
                code = running.process.poll()
                if code is not None:
                    del self.running[running.job.number]
                    self._ended(running, code, stopping=True)
            self.display.refresh(self.running)


class _Signals:
    """Ctrl-C and SIGTERM as a flag, for the length of the block; not outside the main thread."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.impatient = False  # a second Ctrl-C
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.impatient = self.number is not None and number == signal.SIGINT
        self.number = self.number or number
