"""A report's numbers as tables of text, for the terminal, Markdown and HTML; and as rows of raw values, for CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from parl_cli.metrics import gauges
from parl_cli.reports.analysis import AXES, PARTS, Overall, Pairs, Report, Result, TaskResult
from parl_cli.reports.load import plain_text, printable, shown
from parl_cli.reports.statistics import STATISTICS, Estimate

_LABELS = {"iqm": "IQM", "median": "median", "mean": "mean"}
_NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def task_tables(task: TaskResult, report: Report) -> list[Table]:
    """Everything about one task that is told in numbers."""
    return [table for table in (_scores(task, report), _improvement(task), _efficiency(task), _speed(task)) if table]


def overall_table(overall: Overall) -> Table:
    """All tasks as one."""
    rows = [[name, *(_share(found[key]) for key in STATISTICS)] for name, found in overall.estimates.items()]
    ends = ", ".join(
        f"{task} {gauges.figure(low)} … {gauges.figure(high)}" for task, (low, high) in overall.ends.items()
    )
    return Table("scaled score over all tasks", ["", *_LABELS.values()], rows, [f"0 … 1 is: {ends}"])


def overall_improvement(overall: Overall) -> Table:
    """Probability of improvement over all tasks."""
    return _pairs("probability of improvement over all tasks", list(overall.estimates), overall.improvements)


def run_table(report: Report) -> Table:
    """Every run that counts."""
    rows = [
        [task.name, result.name, plain_text(run.config.get("seed")), gauges.figure(score), shown(run.path)]
        for task in report.tasks
        for result in task.results
        for run, score in zip(result.runs, result.scores, strict=True)
    ]
    return Table("runs", ["task", "group", "seed", "score", "folder"], rows)


def title_words(report: Report) -> str:
    """`ppo and a2c on cartpole: 10 runs`."""
    names = list(dict.fromkeys(result.name for task in report.tasks for result in task.results))
    count = sum(len(result.runs) for task in report.tasks for result in task.results)
    return (
        f"{_several(names)} on {_several([task.name for task in report.tasks])}: {count} run{'' if count == 1 else 's'}"
    )


def score_words(report: Report) -> str:
    """What a score is, in words."""
    command = report.command
    at = "" if command.steps is None else f" up to {command.steps:,} env steps"
    return {
        "final": f"last {command.metric} of a run{at}",
        "best": f"best {command.metric} of a run{at}",
        "mean": f"mean of {command.metric} over a run's env steps{at}",
        "eval": "mean return that parl eval found last",
    }[command.score]


def method_words(report: Report) -> str:
    """How the numbers were made, in words."""
    command = report.command
    return (
        f"Score: {score_words(report)}. Brackets: {100 * command.confidence:g}% percentile intervals of the stratified "
        f"bootstrap over runs ({command.resamples:,} resamples). IQM: the interquartile mean, without the lowest and "
        "the highest quarter of the runs. Probability of improvement: that a run of the row scores higher than a run "
        f"of the column. Curves: {_LABELS[command.statistic]} over runs with pointwise intervals, interpolated "
        "between rows, where every run has data. After Agarwal et al. 2021 (arXiv:2108.13264)."
    )


def csv_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Raw values by the name of the file: a list of rows each."""
    return {
        "scores": list(_score_rows(report)),
        "summary": list(_summary_rows(report)),
        "improvement": list(_improvement_rows(report)),
        "curves": list(_curve_rows(report)),
        "efficiency": list(_efficiency_rows(report)),
        "speed": list(_speed_rows(report)),
    }


def _scores(task: TaskResult, report: Report) -> Table:
    rows = [
        [
            result.name,
            str(len(result.runs)),
            *(_interval(result.estimates[key]) for key in STATISTICS),
            f"{gauges.bound(result.scores.min())} … {gauges.bound(result.scores.max())}",
        ]
        for result in task.results
    ]
    single = [result.name for result in task.results if len(result.runs) == 1]
    notes = [f"no interval for {', '.join(single)}: one run says nothing of the spread"] if single else []
    title = f"{task.name}: {score_words(report)}"
    return Table(title, ["", "runs", *_LABELS.values(), "range"], rows, notes)


def _improvement(task: TaskResult) -> Table | None:
    names = [result.name for result in task.results]
    if len(names) < 2:
        return None
    return _pairs(f"{task.name}: probability that a run of the row beats one of the column", names, task.improvements)


def _pairs(title: str, names: Sequence[str], pairs: Pairs) -> Table:
    few = len(names) <= 6  # a wider matrix has no room for intervals; improvement.csv has them

    def cell(one: str, other: str) -> str:
        if one == other:
            return _NONE
        return _share(pairs[one, other]) if few else f"{pairs[one, other].value:.2f}"

    return Table(title, ["", *names], [[one, *(cell(one, other) for other in names)] for one in names])


def _efficiency(task: TaskResult) -> Table | None:
    if not task.thresholds:
        return None
    rows = []
    for result in task.results:
        cells = []
        for passing in result.passings:
            when = (
                f"{gauges.count(passing.env_steps)} steps, {gauges.duration(passing.time_s)}"
                if math.isfinite(passing.env_steps)
                else _NONE
            )
            cells.append(f"{when} ({passing.reached}/{len(result.runs)})")
        rows.append([result.name, *cells])
    columns = ["", *(f"≥ {gauges.bound(threshold)}" for threshold in task.thresholds)]
    return Table(f"{task.name}: median env steps and wall time to a return (runs that reached it)", columns, rows)


def _speed(task: TaskResult) -> Table:
    rows = []
    for result in task.results:
        speed = result.speed
        shares = " ".join(f"{part} {share:.0%}" for part, share in speed.shares.items())
        rows.append(
            [
                result.name,
                _bare_rate(speed.steps_per_s),
                f"{_bare_rate(speed.slowest)} … {_bare_rate(speed.fastest)}",
                gauges.duration(speed.time_s),
                f"{speed.memory_mb:,.0f} MB" if math.isfinite(speed.memory_mb) else _NONE,
                shares or _NONE,
                _machinery(result),
            ]
        )
    columns = ["", "steps/s", "range", "wall time", "memory", "time", "envs"]
    return Table(f"{task.name}: speed, medians over runs", columns, rows)


def _several(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{len(names)} groups"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _bare_rate(per_s: float) -> str:
    return gauges.rate(per_s).removesuffix(" steps/s")


def _machinery(result: Result) -> str:
    """`32 serial`, `32 serial, thread`: how many envs, stepped how, in which actors; all values that occur."""

    def values(key: str) -> str:
        return "/".join(dict.fromkeys(plain_text(run.config.get(key)) for run in result.runs))

    actors = values("actors.name")
    return f"{values('num_envs')} {values('vectorizer.name')}" + ("" if actors == "inline" else f", {actors}")


def _interval(found: Estimate) -> str:
    if not math.isfinite(found.low):
        return gauges.figure(found.value)
    return f"{gauges.figure(found.value)} [{gauges.figure(found.low)}, {gauges.figure(found.high)}]"


def _share(found: Estimate) -> str:
    if not math.isfinite(found.low):
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _score_rows(report: Report) -> Iterable[dict[str, Any]]:
    for task in report.tasks:
        for result in task.results:
            for run, score in zip(result.runs, result.scores, strict=True):
                yield {
                    "task": task.name, "group": result.name, "seed": run.config.get("seed"), "score": float(score),
                    "env_steps": run.rows[-1].get("env_steps"), "time_s": run.rows[-1].get("time_s"),
                    "run": printable(str(run.path)),
                }  # fmt: skip


def _summary_rows(report: Report) -> Iterable[dict[str, Any]]:
    for task in report.tasks:
        for result in task.results:
            yield {"task": task.name, "group": result.name, "runs": len(result.runs)} | _ends(result.estimates)
    if report.overall is not None:
        for name, estimates in report.overall.estimates.items():
            yield {"task": "all", "group": name, "runs": None} | _ends(estimates)


def _ends(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {
        f"{name}{suffix}": value
        for name, found in estimates.items()
        for suffix, value in (("", found.value), ("_low", found.low), ("_high", found.high))
    }


def _improvement_rows(report: Report) -> Iterable[dict[str, Any]]:
    tables = [(task.name, task.improvements) for task in report.tasks]
    if report.overall is not None:
        tables.append(("all", report.overall.improvements))
    for task, pairs in tables:
        for (one, other), found in pairs.items():
            yield {
                "task": task, "group": one, "over": other, "probability": found.value, "low": found.low,
                "high": found.high,
            }  # fmt: skip


def _curve_rows(report: Report) -> Iterable[dict[str, Any]]:
    for task in report.tasks:
        for result in task.results:
            for axis in AXES:
                curve = result.curves[axis]
                for x, value, low, high in zip(curve.x, curve.value, curve.low, curve.high, strict=True):
                    yield {
                        "task": task.name, "group": result.name, "axis": axis, "x": float(x), "value": float(value),
                        "low": float(low), "high": float(high),
                    }  # fmt: skip


def _efficiency_rows(report: Report) -> Iterable[dict[str, Any]]:
    for task in report.tasks:
        for result in task.results:
            for passing in result.passings:
                yield {
                    "task": task.name, "group": result.name, "threshold": passing.threshold,
                    "runs": len(result.runs), "reached": passing.reached, "median_env_steps": passing.env_steps,
                    "median_time_s": passing.time_s,
                }  # fmt: skip


def _speed_rows(report: Report) -> Iterable[dict[str, Any]]:
    for task in report.tasks:
        for result in task.results:
            speed = result.speed
            yield {
                "task": task.name, "group": result.name, "steps_per_s": speed.steps_per_s, "slowest": speed.slowest,
                "fastest": speed.fastest, "time_s": speed.time_s, "memory_mb": speed.memory_mb,
            } | {f"{part}_share": speed.shares.get(part) for part in PARTS}  # fmt: skip
