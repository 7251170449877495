"""Few runs, honestly: point estimates with stratified bootstrap intervals.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv:2108.13264), with
the definitions of its library, rliable. Scores are kept by task (env): a list of arrays, one per task, [runs]. The
bootstrap is stratified: it draws runs with replacement within each task, so that no task is drawn more than another.

Differs from rliable: tasks may have different numbers of runs; and of a single task, the median is that of its runs
(rliable's median over tasks of their means would be the mean there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Strata = Sequence[np.ndarray]  # by task, [..., runs]
Statistic = Callable[[Strata], np.ndarray]  # → [...]

BLOCK = 2**22  # drawn numbers held at once: 32 MB


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        confidence: of the interval, in (0, 1).
        resamples: how often all runs are drawn anew.
        seed: of the draws; the same scores and seed give the same interval.
    """

    confidence: float = 0.95
    resamples: int = 5000
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A point estimate, and the ends of its interval; NaN where one run cannot tell."""

    value: float
    low: float
    high: float


def iqm(strata: Strata) -> np.ndarray:
    """Interquartile mean: of all runs of all tasks, the mean without the lowest and the highest quarter.

    Agarwal et al. 2021, section 4.3; of n runs, ⌊n/4⌋ are left out at either end.
    """
    scores = np.sort(np.concatenate(strata, axis=-1), axis=-1)
    cut = scores.shape[-1] // 4
    return scores[..., cut : scores.shape[-1] - cut].mean(axis=-1)


def mean(strata: Strata) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return _task_means(strata).mean(axis=-1)


def median(strata: Strata) -> np.ndarray:
    """Median over tasks of the mean over runs; of a single task, the median over runs."""
    return np.median(strata[0] if len(strata) == 1 else _task_means(strata), axis=-1)


STATISTICS: dict[str, Statistic] = {"iqm": iqm, "median": median, "mean": mean}


def estimate(strata: Strata, statistic: Statistic, bootstrap: Bootstrap) -> Estimate:
    """A statistic of scores (by task, [runs]) with its percentile interval from the stratified bootstrap."""
    low, high = interval(strata, statistic, bootstrap)
    return Estimate(float(statistic(strata)), float(low), float(high))


def interval(strata: Strata, statistic: Statistic, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the percentile interval of a statistic.

    Args:
        strata: by task, [..., runs]; each leading index is a question of its own, on the same draws.
        statistic: one of `STATISTICS`.
        bootstrap: how.

    Returns:
        Low and high, [...]; NaN where a task has a single run: one run says nothing of the spread.
    """
    lead = strata[0].shape[:-1]
    if 0 in lead or min(scores.shape[-1] for scores in strata) < 2:
        return np.full(lead, np.nan), np.full(lead, np.nan)
    rng = np.random.default_rng(bootstrap.seed)
    per_draw = sum(scores.size for scores in strata)
    values = []
    for block in _blocks(bootstrap.resamples, per_draw):
        drawn = [scores[..., rng.integers(scores.shape[-1], size=(block, scores.shape[-1]))] for scores in strata]
        values.append(statistic(drawn))
    return _percentiles(np.concatenate(values, axis=-1), bootstrap.confidence)


def improvement(ours: Strata, theirs: Strata, bootstrap: Bootstrap) -> Estimate:
    """Probability of improvement: that a run of ours scores higher than a run of theirs, mean over tasks.

    Agarwal et al. 2021, section 4.3: the Mann-Whitney U statistic over the number of pairs; a tie counts half. For the
    interval, the runs of both sides are drawn anew.

    Args:
        ours: by task, [runs].
        theirs: likewise, in the same order of tasks.
        bootstrap: how.
    """
    wins = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in zip(ours, theirs, strict=True)]
    value = float(np.mean([table.mean() for table in wins]))
    if min(min(table.shape) for table in wins) < 2:
        return Estimate(value, np.nan, np.nan)
    rng = np.random.default_rng(bootstrap.seed)
    draws = np.zeros(bootstrap.resamples)
    for table in wins:
        rows, columns = (_counts(rng, bootstrap.resamples, n) for n in table.shape)
        draws += np.einsum("rn,nm,rm->r", rows, table, columns, optimize=True) / table.size
    low, high = _percentiles(draws / len(wins), bootstrap.confidence)
    return Estimate(value, float(low), float(high))


def _task_means(strata: Strata) -> np.ndarray:
    return np.stack([scores.mean(axis=-1) for scores in strata], axis=-1)


def _percentiles(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    return low, high


def _counts(rng: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """How often each of n runs is drawn, in each of the resamples: [resamples, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _blocks(resamples: int, per_draw: int) -> list[int]:
    """The resamples in blocks that fit in memory."""
    size = max(1, BLOCK // per_draw)
    return [min(size, resamples - start) for start in range(0, resamples, size)]
