"""Progress as plain lines, for pipes, logs and continuous integration: aligned, few, and never redrawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console

from parl_cli.metrics import console as shared
from parl_cli.metrics import gauges
from parl_cli.metrics.tracker import Tracker
from parl_cli.types import Metrics

FIRST_INTERVAL_S = 5.0
MILESTONES = 10  # a line at every tenth of the budget, however fast


_ARROWS = {1: "↑", 0: "→", -1: "↓"}


class PlainLines:
    """One line about every five seconds (rarer as the run grows old) and at each tenth of the budget.

    `steps  40,960/100,000  41%  return   87.3 ↑  len   87.3  26.1k steps/s  kl 0.0090  eta 2s`

    Args:
        total_steps: the budget in env steps.
        name: the run's name, for the first line; empty for none.
        history: rows from before a resume.
        to: another console than the shared one.
        clock: seconds that never go back; for tests.
    """

    def __init__(
        self,
        total_steps: int,
        name: str = "",
        *,
        history: Iterable[Metrics] = (),
        to: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tracker = Tracker(total_steps, history, clock)
        self.name = name
        self._console = to or shared.console
        self._clock = clock
        self._started = self._printed_at = clock()
        self._milestone = self._milestones()
        self._shown_steps = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tracker.row and self._shown_steps != self.tracker.env_steps:
            self._print(self.tracker.row)

    def update(self, row: Metrics) -> None:
        """Take the row of one update; print a line if one is due."""
        self.tracker.update(row)
        self.tell(row)

    def tell(self, row: Metrics) -> None:
        """Print a line if one is due; the tracker knows the row already."""
        now = self._clock()
        # An interval that grows with the age of the run: a day's log stays a page, a minute's is not empty.
        interval = max(FIRST_INTERVAL_S, (now - self._started) / 20)
        milestone = self._milestones()
        if now - self._printed_at >= interval or milestone > self._milestone or "eval/return_mean" in row:
            self._printed_at, self._milestone = now, milestone
            self._print(row)

    def _milestones(self) -> int:
        return self.tracker.env_steps * MILESTONES // self.tracker.total_steps

    def _print(self, row: Metrics) -> None:
        self._shown_steps = self.tracker.env_steps
        shared.print_line(self._line(row), self._console)

    def _line(self, row: Metrics) -> str:
        tracker = self.tracker
        total = gauges.count(tracker.total_steps)
        fields = [f"steps {gauges.count(tracker.env_steps):>{len(total)}}/{total} {tracker.done:4.0%}"]
        if "episode/return_mean" in tracker.row:
            arrow = _ARROWS[tracker.returns.trend()]
            fields.append(f"return {gauges.figure(tracker.row['episode/return_mean']):>7} {arrow}")
            fields.append(f"len {gauges.figure(tracker.row.get('episode/length_mean', 0.0)):>6}")
        fields.append(f"{gauges.rate(tracker.steps_per_s):>13}")
        if "policy/approx_kl" in tracker.row:
            fields.append(f"kl {gauges.figure(tracker.row['policy/approx_kl']):>7}")
        fields.append(f"eta {gauges.duration(tracker.eta_s):<6}")
        if "eval/return_mean" in row and tracker.last_eval is not None:
            fields.append(f"eval {tracker.last_eval}")
        return "  ".join(fields).rstrip()
