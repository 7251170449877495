"""What a trial is worth, from the rows of its metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.sweeps.options import Objective
from parl_cli.types import Metrics


def score(rows: Iterable[Metrics], objective: Objective, until: float = math.inf) -> float | None:
    """The objective's value; None if its metric has none.

    Args:
        rows: in the order they were written.
        objective: the metric, and what is taken of it. The mean is over env steps, each row standing for those since
            the row before: the area under the learning curve.
        until: env steps beyond which rows do not count.
    """
    total, weight, before = 0.0, 0.0, 0.0
    values: list[float] = []
    for row in rows:
        value, env_steps = row.get(objective.metric, math.nan), row.get("env_steps", math.nan)
        if math.isfinite(value) and env_steps <= until:
            values.append(value)
            total += value * (env_steps - before)
            weight += env_steps - before
            before = env_steps
    if not values:
        return None
    if objective.take == "mean":
        return total / weight if weight > 0 else values[-1]
    if objective.take == "last":
        return values[-1]
    return max(values) if objective.direction == "maximize" else min(values)


def reports(file: Path, objective: Objective, total_steps: int, num_reports: int) -> dict[int, float]:
    """What a trial was worth at equal parts of its budget, as far as it has come: by number of the part, from 1."""
    rows = rows_of(file)
    if not rows:
        return {}
    reached = int(rows[-1].get("env_steps", 0) * num_reports // total_steps)
    found = {}
    for number in range(1, min(reached, num_reports) + 1):
        value = score(rows, objective, until=number * total_steps / num_reports)
        if value is not None:
            found[number] = value
    return found


def values_of(file: Path, objectives: Sequence[Objective]) -> list[float | None]:
    """What a whole trial is worth, by objective."""
    rows = rows_of(file)
    return [score(rows, objective) for objective in objectives]


def rows_of(file: Path) -> list[Metrics]:
    """A trial's rows; none if it has not begun."""
    return list(read_jsonl(file)) if file.is_file() else []
