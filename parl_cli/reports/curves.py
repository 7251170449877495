"""Learning curves of several runs as one, on a common grid; and when they pass a threshold.

A curve is interpolated between rows and never extrapolated: it covers the range in which every run has data, so that
no step of it comes from a run that joins or leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parl_cli.reports.statistics import Bootstrap, Statistic, interval

Series = tuple[np.ndarray, np.ndarray]  # x that rises, and y

RESAMPLES = 1_000  # at most, for each point's interval: it is drawn, not printed


@dataclass(frozen=True)
class Curve:
    """A statistic over runs at each x, with the ends of its interval; empty where the runs have no common range."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def join(runs: Sequence[Series], statistic: Statistic, points: int, bootstrap: Bootstrap) -> Curve:
    """The runs' curves as one.

    Args:
        runs: each with at least one point.
        statistic: over the runs, at each x.
        points: of the grid.
        bootstrap: for the pointwise interval.
    """
    start, end = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    grid = np.linspace(start, end, points) if start < end else np.array([start][: int(start == end)])
    values = np.stack([np.interp(grid, x, y) for x, y in runs], axis=-1)
    fewer = dataclasses.replace(bootstrap, resamples=min(RESAMPLES, bootstrap.resamples))
    low, high = interval([values], statistic, fewer)
    return Curve(grid, statistic([values]), low, high)


def first_passing(run: Series, threshold: float) -> float:
    """The first x at which a row is at or above the threshold; infinity where none is."""
    x, y = run
    passed = np.flatnonzero(y >= threshold)
    return float(x[passed[0]]) if passed.size else np.inf


def area(run: Series) -> float:
    """The mean height of a run's curve over its x (trapezoid rule)."""
    x, y = run
    if len(x) == 1:
        return float(y[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def until(run: Series, end: float) -> Series:
    """The part up to `end`, which the run reaches, with an interpolated last point."""
    x, y = run
    inside = x < end
    return np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))


def default_thresholds(curves: Sequence[Curve]) -> list[float]:
    """A half, three quarters and nine tenths of the way from the lowest start to the highest end, rounded."""
    starts = [curve.value[0] for curve in curves if curve.x.size]
    ends = [curve.value[-1] for curve in curves if curve.x.size]
    if not starts or max(ends) <= min(starts):
        return []
    low, high = min(starts), max(ends)
    rounded = [float(f"{low + share * (high - low):.3g}") for share in (0.5, 0.75, 0.9)]
    return sorted({value for value in rounded if value <= high})
