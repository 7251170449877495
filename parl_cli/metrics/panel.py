"""Progress as a live panel, for a terminal: one glance says whether it learns, how fast, and what takes the time.

Wide and tall terminals get the whole panel, small ones a few lines. The panel is drawn by rich's refresh thread,
four times a second, from the last row; the training loop only hands rows over and never waits for the terminal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parl_cli.metrics import console as shared
from parl_cli.metrics import gauges
from parl_cli.metrics.tracker import Tracker
from parl_cli.types import Metrics

REFRESH_PER_S = 4
CHART_LINES = 5
_FULL_HEIGHT, _FULL_WIDTH, _WIDE = 18, 72, 104

_ARROWS = {1: ("↑", "green"), 0: ("→", "dim"), -1: ("↓", "red")}
_PART_STYLES = {"env": "blue", "act": "cyan", "learn": "green", "wait": "yellow", "other": "bright_black"}

# Columns of figures, at most three each; a metric the run does not log is left out.
_LEARNING = {"loss/policy": "policy loss", "loss/value": "value loss", "policy/entropy": "entropy"}
_HEALTH = {
    "policy/approx_kl": "kl",
    "policy/clip_fraction": "clipped",
    "value/explained_variance": "expl. var",
    "policy/std_mean": "policy std",
}
_OPTIM = {"optim/grad_norm": "grad norm", "optim/learning_rate": "learn rate", "optim/epochs": "epochs"}


class LivePanel:
    """The live panel of one run.

    Args:
        total_steps: the budget in env steps.
        name: the run's name.
        history: rows from before a resume.
        hint: what Ctrl-C does.
        to: another console than the shared one.
        clock: seconds that never go back; for tests.
    """

    def __init__(
        self,
        total_steps: int,
        name: str = "",
        *,
        history: Iterable[Metrics] = (),
        hint: str = "Ctrl-C saves and stops",
        to: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tracker = Tracker(total_steps, history, clock)
        self.name = name
        self.hint = hint
        self._console = to or shared.console
        self._ended = False
        self._live = SteadyLive(
            get_renderable=self.render,
            console=self._console,
            refresh_per_second=REFRESH_PER_S,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._live.stop()  # draws once more

    def update(self, row: Metrics) -> None:
        """Take the row of one update; it shows at the next refresh."""
        self.tracker.update(row)

    def render(self) -> RenderableType:
        """The panel as it stands, for the console's present size."""
        width, height = min(self._console.width, shared.MAX_WIDTH), self._console.height
        inner = width - 4
        body: list[RenderableType]
        if width < _FULL_WIDTH or height < _FULL_HEIGHT:
            body = [self._bar(inner), self._headline(), self._time_bar(inner)]
        else:
            body = [
                self._bar(inner),
                Text(),
                self._learning(inner),
                Text(),
                self._figures(width),
                Text(),
                self._time_bar(inner),
                self._time_legend(),
            ]
            if self.tracker.actor_shares:
                body.append(self._actors())
        return Panel(
            Group(*body),
            title=Text(self.name, style="bold", overflow="ellipsis"),
            title_align="left",
            subtitle=None if self._ended else Text(self.hint, style="dim"),
            subtitle_align="right",
            border_style="bright_black",
            box=box.ROUNDED,
            width=width,
            padding=(0, 1),
        )

    def _bar(self, width: int) -> Text:
        tracker = self.tracker
        total = gauges.count(tracker.total_steps)
        steps = f"{gauges.count(tracker.env_steps):>{len(total)}}/{total}"
        # Fixed widths: the bar must not breathe while its numbers grow.
        tail = f" {tracker.done:4.0%}  {steps}  {gauges.duration(tracker.elapsed_s):>7}"
        if width < 56:
            tail = f" {tracker.done:4.0%}"
        if not self._ended:
            tail += f"  eta {gauges.duration(tracker.eta_s):<7}"
        cells = max(4, width - len(tail))
        full = round(tracker.done * cells)
        return Text.assemble(
            ("━" * full, "cyan"), ("━" * (cells - full), "bright_black"), tail, no_wrap=True, overflow="crop"
        )

    def _headline(self) -> Text:
        return_, arrow = self._return()
        speed = gauges.rate(self.tracker.steps_per_s) if self.tracker.row else "starting"
        best = f"  best eval {self.tracker.best_eval.mean:.1f}" if self.tracker.best_eval else ""
        text = Text.assemble(("return ", "dim"), (return_, "bold"), " ", arrow, f"  {speed}{best}", no_wrap=True)
        text.overflow = "ellipsis"
        return text

    def _return(self) -> tuple[str, tuple[str, str]]:
        mean = self.tracker.row.get("episode/return_mean", math.nan)
        if not math.isfinite(mean):
            return "-", ("", "")
        return gauges.figure(mean), _ARROWS[self.tracker.returns.trend()]

    def _learning(self, width: int) -> Table:
        """Episode statistics at the left, the chart of the mean return at the right."""
        row, (return_, arrow) = self.tracker.row, self._return()
        low, high = (gauges.bound(row.get(f"episode/return_{end}", math.nan)) for end in ("min", "max"))
        left = {
            "return": Text.assemble((return_, "bold"), " ", arrow),
            "range": Text(f"{low} to {high}" if "episode/return_min" in row else "-"),
            "length": Text(gauges.figure(row["episode/length_mean"]) if "episode/length_mean" in row else "-"),
            "episodes": Text(gauges.count(row.get("episode/count", 0))),
            "best eval": Text(str(self.tracker.best_eval or "-")),
        }
        values = self.tracker.returns.values
        top, bottom = (gauges.figure(max(values)), gauges.figure(min(values))) if values else ("", "")
        axis = max(len(top), len(bottom), 4)
        chart_width = width - 11 - 18 - axis - 2
        lines = gauges.chart(values, chart_width, CHART_LINES)
        grid = Table.grid(padding=0)
        grid.add_column(width=11, style="dim", no_wrap=True)
        grid.add_column(width=18, no_wrap=True)
        grid.add_column(width=axis, justify="right", style="dim", no_wrap=True)
        grid.add_column(width=2, style="bright_black", no_wrap=True)
        grid.add_column(width=chart_width, style="cyan", no_wrap=True)
        for i, ((label, value), line) in enumerate(zip(left.items(), lines, strict=True)):
            mark = top if i == 0 else bottom if i == CHART_LINES - 1 else ""
            grid.add_row(label, value, mark, " │", line)
        return grid

    def _figures(self, width: int) -> Table:
        row = self.tracker.row
        groups = [_LEARNING, _HEALTH, _OPTIM] if width >= _WIDE else [_LEARNING, _HEALTH]
        columns = [
            [(label, _value(name, row[name])) for name, label in _labels(group, row).items()][:3] for group in groups
        ]
        memory = f"{row['memory/rss_mb']:,.0f} MB" if "memory/rss_mb" in row else "-"
        speed = gauges.rate(self.tracker.steps_per_s) if row else "-"
        machine = [("speed", speed), ("memory", memory), ("update", gauges.count(row.get("update", 0)))]
        columns.append(machine)
        grid = Table.grid(padding=0, expand=True)
        for index in range(len(columns)):
            grid.add_column(width=12, style="dim", no_wrap=True)
            grid.add_column(width=9 if index < len(columns) - 1 else 13, justify="right", no_wrap=True)
            if index < len(columns) - 1:
                grid.add_column(ratio=1)
        for line in range(3):
            cells: list[str] = []
            for index, column in enumerate(columns):
                cells += column[line] if line < len(column) else ("", "")
                cells += [""] if index < len(columns) - 1 else []
            grid.add_row(*cells)
        return grid

    def _time_bar(self, width: int) -> Text:
        parts = self.tracker.parts()
        text = Text.assemble(("time ", "dim"), no_wrap=True)
        cells_each = gauges.apportion([share for _, share in parts], width - len(text))
        for (part, _), cells in zip(parts, cells_each, strict=True):
            text.append("█" * cells, style=_PART_STYLES.get(part, "magenta"))
        return text

    def _time_legend(self) -> Text:
        if not self.tracker.time_shares:
            return Text("     waiting for the first rollout", style="dim")
        text = Text("     ", no_wrap=True, overflow="ellipsis")
        return _with_shares(text, self.tracker.parts())

    def _actors(self) -> Text:
        """Where the time of actors goes that act while the learner learns, and how much of their work lies ready."""
        text = Text.assemble(("actors ", "dim"), no_wrap=True, overflow="ellipsis")
        _with_shares(text, self.tracker.actor_parts())
        return text.append("queue ", style="dim").append(f"{self.tracker.row.get('actors/queue_depth', 0.0):.1f}")


def _with_shares(text: Text, parts: list[tuple[str, float]]) -> Text:
    for part, share in parts:
        text.append("■ ", style=_PART_STYLES.get(part, "magenta"))
        text.append(f"{part} ", style="dim")
        text.append(f"{share:<7.0%}")
    return text


def _value(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "policy/clip_fraction" and math.isfinite(value) else gauges.figure(value)


def _labels(group: dict[str, str], row: Metrics) -> dict[str, str]:
    """The group's metrics that the row has; losses nobody named here (another algorithm's) come after the named."""
    labels = {name: label for name, label in group.items() if name in row}
    if group is _LEARNING:
        others = [name for name in row if name.startswith("loss/") and name not in labels]
        labels |= {name: f"{name[5:].replace('_', ' ')[:6]} loss" for name in others}
    return labels


class SteadyLive(Live):
    """A Live that survives a narrower window: the terminal has re-wrapped the old lines, so they cannot be erased."""

    _width = 0

    def refresh(self) -> None:
        """Draw; on a cleared screen, if the window became narrower."""
        width = min(self.console.width, shared.MAX_WIDTH)
        if width < self._width and self.console.is_terminal:
            self.console.control(Control.clear(), Control.home())
        self._width = width
        super().refresh()
