"""What a sweep came to: the result of every job, mean ± standard deviation over seeds, and why jobs failed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parl_cli.metrics import console as shared
from parl_cli.metrics import gauges
from parl_cli.sweeps.ledger import Job, Ledger, State

Rows = list[list[str]]

_JOB_COLUMNS = ("job", "what", "state", "return", "best eval", "steps", "time")
_GROUP_COLUMNS = ("over seeds", "jobs", "return", "best eval")


def print_summary(ledger: Ledger, to: Console | None = None) -> None:
    """Print the tables."""
    print_table(_JOB_COLUMNS, job_rows(ledger), to=to)
    groups = group_rows(ledger)
    if groups:
        print_table(_GROUP_COLUMNS, groups, to=to)
    for job, label in zip(ledger.jobs, ledger.labels(), strict=True):
        if job.state == State.FAILED:
            where = shared.short_path(ledger.folder(job) / "console.log")
            shared.print_line(f"job {job.number} ({label}) {job.state}: {job.reason}; see {where}", to)


def job_rows(ledger: Ledger) -> Rows:
    """A row for each job."""
    rows = []
    for job, label in zip(ledger.jobs, ledger.labels(), strict=True):
        result = job.result
        steps, wall_s = result.get("env_steps"), result.get("wall_s")
        rows.append(
            [
                str(job.number),
                label,
                f"{job.state}" + (f", {job.attempts} attempts" if job.attempts > 1 else ""),
                _figure(result.get("return_mean")),
                _figure(result.get("best_eval")),
                "-" if steps is None else gauges.count(steps),
                "-" if wall_s is None else gauges.duration(wall_s),
            ]
        )
    return rows


def group_rows(ledger: Ledger) -> Rows:
    """A row for each set of jobs that differ in their seed only, those that are done; none where no seeds are."""
    groups: dict[str, list[Job]] = {}
    for job, overrides in zip(ledger.jobs, ledger.own(), strict=True):
        words = [text for text in overrides if not text.startswith("seed=")]
        groups.setdefault(" ".join(words), []).append(job)
    rows = []
    for label, jobs in groups.items():
        done = [job for job in jobs if job.state == State.DONE]
        if len(jobs) > 1:
            counted = str(len(done)) if len(done) == len(jobs) else f"{len(done)} of {len(jobs)}"
            rows.append([label or "all", counted, *(_spread(done, name) for name in ("return_mean", "best_eval"))])
    return rows


def print_table(columns: Sequence[str], rows: Rows, title: str = "", to: Console | None = None) -> None:
    """Print a table; columns without a value are left out, and text stands left."""
    out = to or shared.console
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    shown = [i for i in range(len(columns)) if any(row[i] not in ("", "-") for row in rows)]
    for i in shown:
        left = columns[i] in ("what", "state", "over seeds", "key")
        table.add_column(columns[i], justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in shown))
    if not out.is_terminal:  # into a pipe or a log: long lines rather than folded ones
        out = Console(file=out.file, width=200, highlight=False)
    if not shared.speaks_unicode(out):
        table.box = box.ASCII
    out.print(table)


def _spread(jobs: Sequence[Job], name: str) -> str:
    values = [job.result[name] for job in jobs if isinstance(job.result.get(name), int | float)]
    if not values:
        return "-"
    spread = f" ± {gauges.figure(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{gauges.figure(statistics.fmean(values))}{spread}"


def _figure(value: float | None) -> str:
    return "-" if value is None else gauges.figure(value)
