"""From run folders to the numbers of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from parl_cli.config import ReportCommand
from parl_cli.errors import ConfigError
from parl_cli.reports import curves, load
from parl_cli.reports.curves import Curve
from parl_cli.reports.groups import Contender, Task, group
from parl_cli.reports.load import BrokenRunError, Run, shown
from parl_cli.reports.statistics import STATISTICS, Bootstrap, Estimate, estimate, improvement

AXES = ("env_steps", "time_s")
PARTS = ("env", "act", "learn")  # of the time, in the table of speeds

Pairs = dict[tuple[str, str], Estimate]  # (who, than whom) → probability of improvement


@dataclass(frozen=True)
class Passing:
    """How soon a contender's runs pass a threshold: medians over all runs, infinite where most never do."""

    threshold: float
    reached: int
    env_steps: float
    time_s: float


@dataclass(frozen=True)
class Speed:
    """How fast a contender's runs were: medians over runs, and the slowest and fastest."""

    steps_per_s: float
    slowest: float
    fastest: float
    time_s: float
    memory_mb: float
    shares: dict[str, float]  # of the learner's time, by part; what the rows have of `PARTS`


@dataclass(frozen=True)
class Result:
    """What is known of one contender on one task.

    Attributes:
        name: the contender's.
        runs: those that count.
        scores: one per run, [runs].
        estimates: by statistic.
        curves: of the metric, by axis.
        passings: one per threshold of the task.
        speed: of its runs.
    """

    name: str
    runs: tuple[Run, ...]
    scores: np.ndarray
    estimates: dict[str, Estimate]
    curves: dict[str, Curve]
    passings: list[Passing]
    speed: Speed


@dataclass(frozen=True)
class TaskResult:
    """Everything about one task."""

    name: str
    results: list[Result]
    thresholds: list[float]
    improvements: Pairs


@dataclass(frozen=True)
class Overall:
    """All tasks as one: scores scaled by `ends`, the score that is 0 and the one that is 1 in each task."""

    estimates: dict[str, dict[str, Estimate]]  # by contender and statistic
    improvements: Pairs
    ends: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        command: what was asked.
        tasks: at least one.
        overall: None for a single task or a single contender.
        broken: a line per run folder that could not be read.
        notes: a line per run that was left out, and other things to know.
    """

    command: ReportCommand
    tasks: list[TaskResult]
    overall: Overall | None
    broken: list[str]
    notes: list[str]


def analyse(command: ReportCommand) -> Report:
    """Read the runs that the command names, and compare them.

    Raises:
        ConfigError: no run can be shown, or runs cannot be compared.
    """
    if command.steps is not None and command.score == "eval":
        raise ConfigError(
            f"steps={command.steps}: score=eval is what parl eval found, at whatever step; choose score=final"
        )
    words = [command.runs] if isinstance(command.runs, str) else command.runs
    runs, broken = load.read_all(load.find(words))
    if not runs:
        raise ConfigError(f"runs: none of {len(broken)} can be read: {broken[0]}{' …' if len(broken) > 1 else ''}")
    where = flat(command.where or {})
    chosen = load.select(runs, where)
    if not chosen:
        wanted = " ".join(f"where.{key}={load.plain_text(value)}" for key, value in where.items())
        raise ConfigError(f"{wanted}: none of {len(runs)} runs has these values; parl list runs shows what there is")
    notes: list[str] = []
    readable = [run for run in chosen if _can_be_read(run, broken) and _has_score(run, command, notes)]
    if not readable:
        raise ConfigError(f"runs: none has what is compared: {[*broken, *notes][0]}")
    tasks, left_out = group(readable, command.by, command.allow, same_steps=command.steps is not None)
    results = [_task(task, command) for task in tasks]
    _check_names("thresholds", command.thresholds, results)
    _check_names("normalize", command.normalize, results)
    return Report(command, results, _overall(results, command, notes), broken, [*notes, *left_out])


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key, as they were typed."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value  # an empty one is a value, as in a run's config
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _can_be_read(run: Run, broken: list[str]) -> bool:
    try:
        return bool(run.rows)
    except BrokenRunError as error:
        broken.append(str(error))
        return False


def _has_score(run: Run, command: ReportCommand, notes: list[str]) -> bool:
    reason = None
    steps, _ = run.series(command.metric, "env_steps")
    if not steps.size or not run.series(command.metric, "time_s")[0].size:
        reason = f"no row has {command.metric}"
    elif command.steps is not None and not steps[0] <= command.steps <= steps[-1]:
        reason = f"no {command.metric} at steps={command.steps}, its rows go from {steps[0]:,.0f} to {steps[-1]:,.0f}"
    elif command.score == "eval" and _eval_return(run) is None:
        reason = f"no eval.json; parl eval checkpoint={shown(run.path)} makes one"
    if reason is not None:
        notes.append(f"left out, {reason}: {shown(run.path)}")
    return reason is None


def _score(run: Run, command: ReportCommand) -> float:
    if command.score == "eval":
        found = _eval_return(run)
        assert found is not None
        return found
    series = run.series(command.metric, "env_steps")
    if command.steps is not None:
        series = curves.until(series, command.steps)
    if command.score == "mean":
        return curves.area(series)
    return float(series[1].max() if command.score == "best" else series[1][-1])


def _eval_return(run: Run) -> float | None:
    """The mean return in the newest eval.json of the run; folders are named by their time, which copies keep."""
    files = sorted(run.path.glob("eval/*/eval.json"))
    for file in reversed(files):
        try:
            value = json.loads(file.read_text())["mean_return"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    return None


def _task(task: Task, command: ReportCommand) -> TaskResult:
    joined = [{axis: _curve(contender.runs, axis, command) for axis in AXES} for contender in task.contenders]
    given = command.thresholds
    given = given.get(task.name) if isinstance(given, dict) else given
    thresholds = sorted(given) if given else curves.default_thresholds([by_axis["env_steps"] for by_axis in joined])
    results = [
        _result(contender, by_axis, thresholds, command)
        for contender, by_axis in zip(task.contenders, joined, strict=True)
    ]
    scores = {result.name: [result.scores] for result in results}
    return TaskResult(task.name, results, thresholds, _improvements(scores, command))


def _curve(runs: Sequence[Run], axis: str, command: ReportCommand) -> Curve:
    series = [run.series(command.metric, axis) for run in runs]
    return curves.join(series, STATISTICS[command.statistic], command.points, _bootstrap(command))


def _result(
    contender: Contender, by_axis: dict[str, Curve], thresholds: Sequence[float], command: ReportCommand
) -> Result:
    scores = np.array([_score(run, command) for run in contender.runs])
    return Result(
        contender.name,
        contender.runs,
        scores,
        _estimates([scores], command),
        by_axis,
        [_passing(contender.runs, threshold, command.metric) for threshold in thresholds],
        _speed(contender.runs),
    )


def _bootstrap(command: ReportCommand) -> Bootstrap:
    return Bootstrap(command.confidence, command.resamples, command.seed)


def _estimates(strata: Sequence[np.ndarray], command: ReportCommand) -> dict[str, Estimate]:
    return {name: estimate(strata, statistic, _bootstrap(command)) for name, statistic in STATISTICS.items()}


def _improvements(scores: dict[str, list[np.ndarray]], command: ReportCommand) -> Pairs:
    found: Pairs = {}
    for one, other in combinations(scores, 2):
        found[one, other] = pair = improvement(scores[one], scores[other], _bootstrap(command))
        found[other, one] = Estimate(1 - pair.value, 1 - pair.high, 1 - pair.low)
    return found


def _passing(runs: Sequence[Run], threshold: float, metric: str) -> Passing:
    def first(run: Run, axis: str) -> float:
        return curves.first_passing(run.series(metric, axis), threshold)

    steps, seconds = (np.array([first(run, axis) for run in runs]) for axis in AXES)
    return Passing(threshold, int(np.isfinite(steps).sum()), float(np.median(steps)), float(np.median(seconds)))


def _speed(runs: Sequence[Run]) -> Speed:
    steps, seconds, memory = (
        np.array([_last(run, name) for run in runs]) for name in ("env_steps", "time_s", "memory/rss_mb")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        speeds = steps / seconds
    shares = {}
    for part in PARTS:
        of_runs = [values.mean() for run in runs if (values := _values(run, f"time/{part}_share")).size]
        if of_runs:
            shares[part] = float(np.mean(of_runs))
    return Speed(
        float(np.median(speeds)), float(speeds.min()), float(speeds.max()), float(np.median(seconds)),
        float(np.median(memory)), shares,
    )  # fmt: skip


def _last(run: Run, name: str) -> float:
    values = _values(run, name)
    return float(values[-1]) if values.size else math.nan


def _values(run: Run, name: str) -> np.ndarray:
    values = np.array([row.get(name, math.nan) for row in run.rows])
    return values[np.isfinite(values)]


def _overall(tasks: Sequence[TaskResult], command: ReportCommand, notes: list[str]) -> Overall | None:
    """All tasks as one, over the contenders that are in every task."""
    if len(tasks) < 2:
        return None
    everywhere = [
        result.name
        for result in tasks[0].results
        if all(result.name in [other.name for other in task.results] for task in tasks)
    ]
    if len(everywhere) < 2:
        notes.append("no table over all tasks: fewer than two groups have runs on each")
        return None
    ends = {task.name: _ends(task, command) for task in tasks}
    scaled: dict[str, list[np.ndarray]] = {name: [] for name in everywhere}
    for task in tasks:
        low, high = ends[task.name]
        for result in task.results:
            if result.name in scaled:
                scaled[result.name].append((result.scores - low) / (high - low if high != low else 1.0))
    estimates = {name: _estimates(strata, command) for name, strata in scaled.items()}
    return Overall(estimates, _improvements(scaled, command), ends)


def _ends(task: TaskResult, command: ReportCommand) -> tuple[float, float]:
    given = (command.normalize or {}).get(task.name)
    if given is None:
        scores = np.concatenate([result.scores for result in task.results])
        return float(scores.min()), float(scores.max())
    if len(given) != 2 or given[0] == given[1]:
        raise ConfigError(f"normalize.{task.name}={given}: must be two different numbers, what is 0 and what is 1")
    return given[0], given[1]


def _check_names(key: str, values: dict[str, Any] | list[float] | None, tasks: Sequence[TaskResult]) -> None:
    names = [task.name for task in tasks]
    for name in values if isinstance(values, dict) else ():
        if name not in names:
            raise ConfigError(f"{key}.{name}: no such task; {', '.join(names)} {'is' if len(names) == 1 else 'are'}")
