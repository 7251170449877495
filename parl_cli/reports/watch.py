"""Looking on at runs that somebody else trains, from their files alone: what `parl watch` shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from parl_cli.metrics import console as shared
from parl_cli.metrics import gauges
from parl_cli.metrics.tail import Tail
from parl_cli.metrics.tracker import Tracker
from parl_cli.reports import load
from parl_cli.reports.load import BrokenRunError, Run
from parl_cli.reports.status import is_held, status
from parl_cli.types import Metrics

SWEEP_FILE = "sweep.json"

_FRESH = 200  # rows at the end of the history that are taken one by one, for the speed and the time shares

STYLES = {"running": "cyan", "finished": "green", "failed": "bold red", "interrupted": "yellow", "silent": "yellow"}
_ORDER = ("running", "failed", "silent", "interrupted", "unknown", "finished")  # what a crowded table shows first
_BAR_CELLS = 10
_KEYS = re.compile(r"(?<!\S)(?:algo|env|policy|vectorizer|actors)=")  # of groups, whose options speak for themselves
_WIDE = 90


class Watched:
    """One run that is looked at.

    Args:
        folder: its folder.

    Attributes:
        run: as it was last read.
        tracker: what its rows tell.
        new: the rows that came with the last `poll`.
        is_anew: the last `poll` began with a new tracker, as after a resume, which cuts the file.
        has_failed: the sweep that it is a job of has given it up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = load.read(folder)
        self.tracker = Tracker(budget(self.run))
        self.new: list[Metrics] = []
        self.is_anew = True
        self.has_failed = False
        self._tail = Tail(self.run.metrics_file)
        self._stamp = self._changed_at()

    @property
    def status(self) -> str:
        """As `reports.status.status`; a job that was killed cannot say so, but its sweep's ledger does."""
        said = status(self.run)
        return "failed" if self.has_failed and said in ("running", "silent") else said

    def poll(self) -> None:
        """Read what is new.

        Raises:
            BrokenRunError: it cannot be read any more.
        """
        stamp = self._changed_at()
        if stamp != self._stamp:
            self.run, self._stamp = load.read(self.folder), stamp
        rows = self._tail.rows()
        self.is_anew = self._tail.was_cut or not self.tracker.row
        if self._tail.was_cut:
            self._tail = Tail(self.run.metrics_file)
            rows = self._tail.rows()
        if self.is_anew:
            self.tracker = Tracker(budget(self.run), rows[:-_FRESH])
        self.new = rows
        for row in rows[-_FRESH:] if self.is_anew else rows:
            self.tracker.update(row)

    def _changed_at(self) -> list[int]:
        files = (self.folder / "run.json", self.folder / "config.yaml")
        return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


def budget(run: Run) -> int:
    """Env steps of the whole run: its budget in whole updates, or what it was extended to."""
    total, rollout = (run.config.get(key) for key in ("total_steps", "algo.num_steps"))
    rollout = rollout * run.config.get("num_envs", 1) if isinstance(rollout, int) else 1
    policies = run.config.get("num_policies", 1)
    rollout //= policies if isinstance(policies, int) and policies > 0 else 1
    total = total if isinstance(total, int) else 1
    done = run.info.get("env_steps")
    return max(-(-total // max(1, rollout)) * rollout, done if isinstance(done, int) else 0, 1)


class Board:
    """Several runs as one table: those of a sweep, or of any folder.

    Args:
        folder: what holds them; runs that begin later are found.
        to: another console than the shared one.
    """

    def __init__(self, folder: Path, to: Console | None = None) -> None:
        self.folder = folder
        self.watched: dict[Path, Watched] = {}
        self.waiting: list[Path] = []  # jobs of the sweep that have no run yet
        self.failed: list[Path] = []  # jobs of the sweep that came to no run
        self.broken: list[str] = []
        self._jobs: dict[Path, list[str]] = {}  # of the sweep, with what was typed for each
        self._console = to or shared.console

    def poll(self) -> None:
        """Read what is new in every run, and find new ones."""
        self.broken = []
        folders = list(load.below(self.folder))
        for path in folders:
            try:
                if path not in self.watched:
                    self.watched[path] = Watched(path)
                self.watched[path].poll()
            except BrokenRunError as error:
                self.broken.append(str(error))
        jobs = _jobs(self.folder)
        self._jobs = {path: words for path, (words, _) in jobs.items()}
        for path, one in self.watched.items():
            one.has_failed = path in jobs and jobs[path][1] == "failed"
        without = {path: state for path, (_, state) in jobs.items() if path not in folders}
        self.failed = [path for path, state in without.items() if state == "failed"]
        self.waiting = [path for path in without if path not in self.failed]

    @property
    def is_going_on(self) -> bool:
        """Whether a run is running, or somebody holds the sweep to begin the next one."""
        return is_held(self.folder) or any(one.status == "running" for one in self.watched.values())

    def overview(self) -> str:
        """`2 running · 8 finished · 10 waiting · eta 2m 05s`."""
        found = [one.status for one in self.watched.values()] + ["failed"] * len(self.failed)
        parts = [f"{found.count(name)} {name}" for name in _ORDER if name in found]
        if self.broken:
            parts.append(f"{len(self.broken)} broken")
        if self.waiting:
            parts.append(f"{len(self.waiting)} waiting")
        eta = self._eta_s()
        if eta is not None and self.is_going_on:
            parts.append(f"eta {gauges.duration(eta)}")
        return " · ".join(parts)

    def render(self, hint: str | None = None) -> RenderableType:
        """The table as it stands, for the console's present size; `hint` says what Ctrl-C does."""
        width, height = min(self._console.width, shared.MAX_WIDTH), self._console.height
        order = sorted(self.watched.values(), key=lambda one: _ORDER.index(one.status))
        rows = max(3, height - 6)
        without = [(path, "failed") for path in self.failed] + [(path, "waiting") for path in self.waiting]
        table = self._table(order[:rows], without[: max(0, rows - len(order))], width - 4)
        hidden = len(order) + len(without) - rows
        more = [Text(f"… and {hidden} more", style="dim")] if hidden > 0 else []
        return Panel(
            Group(table, *more, Text(self.overview(), style="dim", no_wrap=True, overflow="ellipsis")),
            title=Text(load.shown(self.folder), style="bold", overflow="ellipsis"),
            title_align="left",
            subtitle=None if hint is None else Text(hint, style="dim"),
            subtitle_align="right",
            border_style="bright_black",
            box=box.ROUNDED,
            width=width,
            padding=(0, 1),
        )

    def line(self, path: Path) -> str:
        """A run in one line, for outputs that are no terminal."""
        one = self.watched[path]
        steps = f"{gauges.count(one.tracker.env_steps)}/{gauges.count(one.tracker.total_steps)}"
        return f"{self.labels()[path]}  {one.status}  steps {steps}  return {_return(one)}"

    def labels(self) -> dict[Path, str]:
        """Each run's own words, that not all have typed: `env=acrobot seed=3`; else its folder's name."""
        typed = {path: _typed(one.run) for path, one in self.watched.items()} | self._jobs
        common = set.intersection(*map(set, typed.values())) if len(typed) > 1 else set()
        return {
            path: " ".join(word for word in words if word not in common) or load.printable(path.name)
            for path, words in typed.items()
        }

    def _table(self, order: Sequence[Watched], without: Sequence[tuple[Path, str]], width: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, width=width, header_style="dim")
        table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("state", no_wrap=True)
        table.add_column("steps", no_wrap=True)
        for name in ("return", "best eval", "steps/s", "time", "eta"):
            if width > _WIDE or name not in ("best eval", "time"):
                table.add_column(name, justify="right", no_wrap=True)
        labels = self.labels()
        if width <= _WIDE:  # the end of a label tells runs apart, and it is what would be cut off
            labels = {path: _KEYS.sub("", label) for path, label in labels.items()}
        for one in order:
            tracker, running = one.tracker, one.status == "running"
            speed = tracker.steps_per_s
            cells: dict[str, str | Text] = {
                "run": Text(labels[one.folder]),
                "state": Text(one.status, style=STYLES.get(one.status, "")),
                "steps": _bar(tracker.done),
                "return": _return(one),
                "best eval": "-" if tracker.best_eval is None else gauges.figure(tracker.best_eval.mean),
                "steps/s": gauges.rate(speed).removesuffix(" steps/s") if math.isfinite(speed) else "-",
                "time": gauges.duration(tracker.elapsed_s if running else tracker.row.get("time_s", 0.0)),
                "eta": gauges.duration(tracker.eta_s) if running else "",
            }
            table.add_row(*(cells[str(column.header)] for column in table.columns))
        for path, state in without:
            table.add_row(Text(labels[path], style="dim"), Text(state, style=STYLES.get(state, "dim")))
        return table

    def _eta_s(self) -> float | None:
        """Seconds until all is done, at the present speed of all that run."""
        running = [one.tracker for one in self.watched.values() if one.status == "running"]
        speed = sum(tracker.steps_per_s for tracker in running if math.isfinite(tracker.steps_per_s))
        if speed <= 0:
            return None
        left = sum(tracker.total_steps - tracker.env_steps for tracker in running)
        return (left + len(self.waiting) * running[0].total_steps) / speed


def _jobs(folder: Path) -> dict[Path, tuple[list[str], str]]:
    """The jobs in the ledger of a sweep, by folder: what was typed for each, and its state; none without a ledger."""
    try:
        jobs = json.loads((folder / SWEEP_FILE).read_text())["jobs"]
        return {
            folder / job["folder"]: ([load.printable(word) for word in job["overrides"]], str(job.get("state")))
            for job in jobs
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _typed(run: Run) -> list[str]:
    argv = run.info.get("argv")
    words = [str(word) for word in argv] if isinstance(argv, list) else []
    return [load.printable(word) for word in words if "=" in word]


def _return(one: Watched) -> str:
    mean = one.tracker.row.get("episode/return_mean", math.nan)
    return gauges.figure(mean) if math.isfinite(mean) else "-"


def _bar(done: float) -> Text:
    full = round(done * _BAR_CELLS)
    return Text.assemble(("━" * full, "cyan"), ("━" * (_BAR_CELLS - full), "bright_black"), f" {done:4.0%}")
