"""A sweep while it runs: one live table on a terminal, else a line for what happens and one now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TypeAlias

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from parl_cli.metrics import console as shared
from parl_cli.metrics import gauges
from parl_cli.sweeps.ledger import Job, Ledger, State
from parl_cli.sweeps.scheduler import Running

REFRESH_S = 0.5
FIRST_INTERVAL_S = 10.0

_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "cyan",
    State.INTERRUPTED: "yellow",
    State.DONE: "green",
    State.PRUNED: "dim",
    State.FAILED: "bold red",
}
# What a crowded table shows first.
_ORDER = (State.RUNNING, State.FAILED, State.INTERRUPTED, State.DONE, State.PRUNED, State.WAITING)


class SweepLines:
    """Plain lines, for pipes and logs.

    Args:
        ledger: the sweep.
        num_jobs: how many there will be.
        to: another console than the shared one.
    """

    def __init__(self, ledger: Ledger, num_jobs: int, to: Console | None = None) -> None:
        self.ledger = ledger
        self.num_jobs = num_jobs
        self._console = to or shared.console
        self._began = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, job: Job) -> None:
        """A job runs."""
        again = f" again, attempt {job.attempts}" if job.attempts > 1 else ""
        there = f", in the cluster as {job.cluster_id}" if job.cluster_id else ""
        self._print(f"{self._name(job)} started{again}{there}")

    def ended(self, job: Job) -> None:
        """A job does not run any more."""
        done = len(self.ledger.of_state(State.DONE, State.PRUNED))
        if job.state == State.WAITING:
            self._print(f"{self._name(job)} {job.reason}; it is begun again where it was saved")
        elif job.state == State.DONE:
            self._print(f"{self._name(job)} done: {_result(job)}; {done} of {self.num_jobs}")
        else:
            self._print(f"{self._name(job)} {job.state}: {job.reason or 'saved'}")

    def refresh(self, running: Mapping[int, Running]) -> None:
        """Perhaps a line about the whole."""
        now = time.monotonic()
        if now - self._printed > max(FIRST_INTERVAL_S, (now - self._began) / 20):
            self._printed = now
            self._print(overview(self.ledger, self.num_jobs, running))

    def _name(self, job: Job) -> str:
        label = self.ledger.labels()[job.number]
        return f"job {job.number} ({label})" if label else f"job {job.number}"

    def _print(self, line: str) -> None:
        shared.print_line(line, self._console)


class SweepTable:
    """The live table. It is drawn from the scheduler's loop, so nothing changes while it is.

    Args:
        ledger: the sweep.
        num_jobs: how many jobs there will be.
        to: another console than the shared one.
    """

    def __init__(self, ledger: Ledger, num_jobs: int, to: Console | None = None) -> None:
        self.ledger = ledger
        self.num_jobs = num_jobs
        self._console = to or shared.console
        self._running: Mapping[int, Running] = {}
        self._drawn = 0.0
        self._live = Live(
            get_renderable=self.render, console=self._console, auto_refresh=False, vertical_overflow="crop"
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.transient = True  # the table of results stands in its place
        self._live.stop()

    def started(self, job: Job) -> None:
        """Shows at the next refresh."""

    def ended(self, job: Job) -> None:
        """Say what must not scroll out of a crowded table."""
        if job.state in (State.FAILED, State.WAITING):
            shared.print_line(Text(f"job {job.number}: {job.reason}", style="yellow"), self._console)

    def refresh(self, running: Mapping[int, Running]) -> None:
        """Draw, twice a second."""
        self._running = running
        if time.monotonic() - self._drawn > REFRESH_S:
            self._drawn = time.monotonic()
            self._live.refresh()

    def render(self) -> RenderableType:
        """The table as it stands."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, width=min(self._console.width, shared.MAX_WIDTH))
        table.add_column("job", justify="right", no_wrap=True)
        table.add_column("what", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("state", no_wrap=True)
        for name in ("steps", "return", "steps/s", "time", "eta"):
            table.add_column(name, justify="right", no_wrap=True)
        labels = self.ledger.labels()
        jobs = sorted(self.ledger.jobs, key=lambda job: (_ORDER.index(job.state), job.number))
        for job in jobs[: max(3, self._console.height - 6)]:
            table.add_row(str(job.number), Text(labels[job.number]), self._state(job), *self._figures(job))
        return Group(table, Text(overview(self.ledger, self.num_jobs, self._running), style="dim"))

    def _state(self, job: Job) -> Text:
        running = self._running.get(job.number)
        if running is not None and running.process.is_queued:
            return Text("queued", style="dim")
        again = f" ({job.attempts}.)" if job.attempts > 1 and job.state == State.RUNNING else ""
        return Text(f"{job.state}{again}", style=_STYLES[job.state])

    def _figures(self, job: Job) -> list[str]:
        running = self._running.get(job.number)
        if running is None:
            steps = job.result.get("env_steps")
            if steps is None:
                return [""] * 5
            share = f"{min(1.0, steps / job.total_steps):.0%}" if isinstance(steps, int) else ""
            wall_s = job.result.get("wall_s")
            return [share, _figure(job.result.get("return_mean")), "", gauges.duration(wall_s) if wall_s else "", ""]
        tracker = running.tracker
        speed = tracker.steps_per_s
        return [
            f"{tracker.done:.0%}",
            _figure(tracker.row.get("episode/return_mean")),
            gauges.count(speed) if math.isfinite(speed) else "",
            gauges.duration(time.monotonic() - running.began),
            gauges.duration(tracker.eta_s) if tracker.row else "",
        ]


SweepDisplay: TypeAlias = SweepLines | SweepTable


def make_display(ledger: Ledger, num_jobs: int) -> SweepDisplay:
    """The live table on a terminal that can draw it, else plain lines."""
    out = shared.console
    able = out.is_terminal and not out.is_dumb_terminal and shared.speaks_unicode(out)
    return (SweepTable if able else SweepLines)(ledger, num_jobs)


def overview(ledger: Ledger, num_jobs: int, running: Mapping[int, Running]) -> str:
    """`8 done · 2 running · 10 waiting · eta 2m 05s`."""
    parts = [f"{len(ledger.of_state(state))} {state}" for state in State if state != State.WAITING]
    parts = [part for part in parts if not part.startswith("0 ")]
    waiting = len(ledger.of_state(State.WAITING)) + num_jobs - len(ledger.jobs)
    if waiting:
        parts.append(f"{waiting} waiting")
    queued = sum(one.process.is_queued for one in running.values())
    if queued:
        parts.append(f"{queued} of those running are queued in the cluster")
    speeds = [r.tracker.steps_per_s for r in running.values() if math.isfinite(r.tracker.steps_per_s)]
    if sum(speeds) > 0:
        budget = ledger.jobs[0].total_steps
        left = sum(r.tracker.total_steps - r.tracker.env_steps for r in running.values()) + waiting * budget
        parts.append(f"eta {gauges.duration(left / sum(speeds))}")
    return " · ".join(parts)


def _result(job: Job) -> str:
    steps, seconds = job.result.get("env_steps", 0), job.result.get("wall_s", 0.0)
    return f"return {_figure(job.result.get('return_mean'))}, {steps:,} steps in {gauges.duration(seconds)}"


def _figure(value: float | None) -> str:
    return "-" if value is None else gauges.figure(value)
