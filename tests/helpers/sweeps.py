"""Sweeps of jobs that train nothing: what the scheduler is told, without the seconds that a training takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parl_cli.sweeps.ledger import Job, Ledger
from parl_cli.sweeps.options import SweepConfig
from parl_cli.sweeps.process import cause_of_death
from parl_cli.sweeps.scheduler import Running

CONFIG = {"total_steps": 100}


def new_ledger(path: Path, overrides: Sequence[str], **options: Any) -> Ledger:
    """A sweep with a job for each override, all waiting."""
    ledger = Ledger(path, ["parl", "train", "-m"], SweepConfig(**options))
    for number, text in enumerate(overrides):
        ledger.add([text], CONFIG, str(number), ["parl", "train", text])
    ledger.save()
    return ledger


def write_result(folder: Path, status: str = "finished", **values: Any) -> None:
    """What a job leaves when it ends."""
    (folder / "result.json").write_text(json.dumps({"status": status, **values}))


class FakeProcess:
    """A process that ends when it is polled for the n-th time, or some polls after it was asked to.

    Args:
        on_end: leaves what the job would leave, and returns the exit code; it is told whether it was asked to stop.
        polls: after how many polls it ends by itself; None: never.
        cut_off: why it had to end, if it did.
    """

    is_queued = False

    def __init__(self, on_end: Callable[[bool], int], polls: int | None = 1, cut_off: str = "") -> None:
        self.on_end = on_end
        self.polls = polls
        self.cut_off = cut_off
        self.stopped = self.killed = False
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.polls = None if self.polls is None else self.polls - 1
            if self.killed:
                self.code = -9
            elif self.stopped or (self.polls is not None and self.polls <= 0):
                self.code = self.on_end(self.stopped)
        return self.code

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.killed = True

    def abandon(self) -> None:
        self.stop()

    def cause(self, code: int) -> str:
        return cause_of_death(code)


class Told:
    """A display that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, str]] = []
        self.most = 0  # jobs at once

    def started(self, job: Job) -> None:
        self.events.append(("started", job.number, ""))

    def ended(self, job: Job) -> None:
        self.events.append(("ended", job.number, str(job.state)))

    def refresh(self, running: Mapping[int, Running]) -> None:
        self.most = max(self.most, len(running))
