"""Metrics of runs with several policies: each policy's under `policy_<id>/`, and without it what they come to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from parl_cli.types import Metrics

PREFIX = re.compile(r"policy_\d+/")

_OWN_ONLY = re.compile(r"rollout/policy_lag_\d+_share")  # not every policy has every lag
_SUMS = ("episode/count", "rollout/dropped_steps", "actors/restarts", "eval/episodes")


def of_policy(policy_id: int, metrics: Metrics) -> Metrics:
    """One policy's metrics as they are called in a run with several."""
    return {f"policy_{policy_id}/{name}": value for name, value in metrics.items()}


def aggregates(each: Sequence[Metrics]) -> Metrics:
    """Over the policies that have it: the sum of a count, the extreme of a `_min` or `_max`, the mean of all else."""
    values: dict[str, list[float]] = {}
    for metrics in each:
        for name, value in metrics.items():
            if not _OWN_ONLY.fullmatch(name):
                values.setdefault(name, []).append(value)
    return {name: _rule(name)(found) for name, found in values.items()}


def merged(each: Sequence[Metrics]) -> Metrics:
    """A row's part made of each policy's: the aggregates, then every policy's own."""
    own = [of_policy(policy_id, metrics) for policy_id, metrics in enumerate(each)]
    return {**aggregates(each), **{name: value for metrics in own for name, value in metrics.items()}}


def _rule(name: str) -> Callable[[list[float]], float]:
    if name in _SUMS:
        return sum
    if name.endswith("_min"):
        return min
    return max if name.endswith("_max") else _mean


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
