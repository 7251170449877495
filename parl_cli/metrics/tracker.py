"""What the screen needs to know of a run, derived from its rows: history, trend, speed, time left, best evaluation."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parl_cli.metrics import gauges
from parl_cli.metrics.timing import PARTS
from parl_cli.types import Metrics

SPEED_WINDOW_S = 10.0
SMOOTHING = 0.2  # weight of the newest row in the time shares: single rows flicker


@dataclass(frozen=True)
class Evaluation:
    """One evaluation's mean return, the half width of its 95 % interval, and when it was."""

    mean: float
    ci95: float
    env_steps: int

    def __str__(self) -> str:
        spread = f" ± {gauges.figure(self.ci95)}" if math.isfinite(self.ci95) else ""
        return f"{gauges.figure(self.mean)}{spread}"


class History:
    """A series in bounded memory: when it is full, neighbours are averaged and its resolution halves."""

    def __init__(self, limit: int = 512) -> None:
        self.limit = limit
        self.values: list[float] = []
        self._pending: list[float] = []
        self._stride = 1

    def append(self, value: float) -> None:
        """Add a value; what is not finite is left out."""
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending = []
        if len(self.values) >= self.limit:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(a + b) / 2 for a, b in pairs]
            self._stride *= 2

    def trend(self) -> int:
        """1, 0 or −1: where the last tenth stands against the tenth before, by 2 % of the range seen."""
        span = max(1, len(self.values) // 10)
        if len(self.values) < 2:
            return 0
        late, early = self.values[-span:], self.values[-2 * span : -span]
        change = sum(late) / len(late) - sum(early) / len(early)
        if abs(change) <= 0.02 * (max(self.values) - min(self.values)):
            return 0
        return 1 if change > 0 else -1


class Tracker:
    """Follow a run by its rows.

    Args:
        total_steps: the budget in env steps, as rounded up.
        history: rows of the run before it was resumed; they count for the chart and the best evaluation.
        clock: seconds that never go back; for tests.
    """

    def __init__(
        self, total_steps: int, history: Iterable[Metrics] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total_steps = max(1, int(total_steps))
        self.row: Metrics = {}  # the last known value of every metric
        self.returns = History()
        self.best_eval: Evaluation | None = None
        self.last_eval: Evaluation | None = None
        self.time_shares: dict[str, float] = {}
        self.actor_shares: dict[str, float] = {}  # of actors that act on their own
        self._clock = clock
        self._speed_points: deque[tuple[float, float]] = deque()
        for row in history:
            self._take(row)
        self._updated_at = clock()
        self._time_s = self.row.get("time_s", 0.0)

    def update(self, row: Metrics) -> None:
        """Take the row of one update."""
        now = self._clock()
        self._time_s = row.get("time_s", self.elapsed_s)
        self._updated_at = now
        self._take(row)
        self._speed_points.append((self._time_s, self.env_steps))
        while len(self._speed_points) > 2 and self._speed_points[1][0] < self._time_s - SPEED_WINDOW_S:
            self._speed_points.popleft()
        for name, share in row.items():
            role, _, part = name.removesuffix("_share").partition("/")
            shares = {"time": self.time_shares, "actors": self.actor_shares}.get(role)
            if shares is not None and name.endswith("_share") and math.isfinite(share):
                before = shares.get(part, share)
                shares[part] = before + SMOOTHING * (share - before)

    @property
    def env_steps(self) -> int:
        """Env steps done."""
        return int(self.row.get("env_steps", 0))

    @property
    def done(self) -> float:
        """Share of the budget that is used, in [0, 1]."""
        return min(1.0, self.env_steps / self.total_steps)

    @property
    def elapsed_s(self) -> float:
        """Wall time of the run, going on between rows."""
        return self._time_s + self._clock() - self._updated_at

    @property
    def steps_per_s(self) -> float:
        """Speed over the last ten seconds."""
        if len(self._speed_points) > 1:
            (t0, s0), (t1, s1) = self._speed_points[0], self._speed_points[-1]
            if t1 > t0:
                return (s1 - s0) / (t1 - t0)
        return self.row.get("steps_per_s", math.nan)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of the budget at the present speed; None while there is no speed."""
        speed = self.steps_per_s
        if not math.isfinite(speed) or speed <= 0:
            return None
        left = (self.total_steps - self.env_steps) / speed
        return max(0.0, left - (self._clock() - self._updated_at))

    def parts(self) -> list[tuple[str, float]]:
        """The smoothed time shares of the learner's thread, the known parts first and `other` last."""
        return _in_order(self.time_shares)

    def actor_parts(self) -> list[tuple[str, float]]:
        """The same of actors that act on their own; empty if there are none."""
        return _in_order(self.actor_shares)

    def summary(self) -> dict[str, str]:
        """The result in words, for `print_result`."""
        row = self.row
        lines: dict[str, str] = {}
        if "episode/return_mean" in row:
            episodes = min(100, int(row.get("episode/count", 100)))
            spread = f" ± {gauges.figure(row['episode/return_std'])}" if "episode/return_std" in row else ""
            over = "" if "policy_0/env_steps" in row else f" over the last {_plural(episodes, 'episode')}"
            lines["return"] = f"{gauges.figure(row['episode/return_mean'])}{spread}{over}"
        else:
            lines["return"] = "no episode has finished yet"
        own = {name: value for name, value in row.items() if name.endswith("/episode/return_mean")}
        if own:
            returns = ", ".join(f"{gauges.figure(v)} ({n.partition('/')[0].replace('_', ' ')})" for n, v in own.items())
            lines["return"] += f", mean of {returns}"
        if self.last_eval is not None and self.best_eval is not None:
            best = f"best {self.best_eval} at {gauges.count(self.best_eval.env_steps)} steps"
            lines["evaluation"] = f"{best}, last {self.last_eval}"
        seconds = self.elapsed_s
        speed = f", {gauges.rate(self.env_steps / seconds)}" if seconds > 0 else ""
        lines["trained"] = f"{gauges.count(self.env_steps)} env steps in {gauges.duration(seconds)}{speed}"
        return lines

    def _take(self, row: Metrics) -> None:
        self.row.update(row)
        if "episode/return_mean" in row:
            self.returns.append(row["episode/return_mean"])
        if "eval/return_mean" in row:
            mean = row["eval/return_mean"]
            self.last_eval = Evaluation(mean, row.get("eval/return_ci95", math.nan), self.env_steps)
            if math.isfinite(mean) and (self.best_eval is None or mean > self.best_eval.mean):
                self.best_eval = self.last_eval


def _in_order(shares: dict[str, float]) -> list[tuple[str, float]]:
    order = [*PARTS, *(part for part in shares if part not in (*PARTS, "other")), "other"]
    return [(part, shares[part]) for part in order if part in shares]


def _plural(number: int, noun: str) -> str:
    return f"{gauges.count(number)} {noun}" if number == 1 else f"{gauges.count(number)} {noun}s"
