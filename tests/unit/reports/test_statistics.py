"""The statistics, against rliable's own figures, against every possible draw, and against plain loops."""

import itertools
import statistics as plain

import numpy as np
import pytest

from parl_cli.reports.statistics import STATISTICS, Bootstrap, Estimate, estimate, improvement, interval

# 6 and 5 runs of 3 tasks, and what rliable 1.2.0 (with arch 6.2.0, 50,000 resamples) says of them.
OURS = np.array([[3.1, 10, 0.2], [2.7, 14, 0.9], [4.4, 12.5, 0.4], [3.9, 9, 0.6], [1.2, 16, 0.5], [2.2, 11, 0.8]]).T
THEIRS = np.array([[2.9, 8, 0.3], [1.7, 10, 0.1], [3.4, 12.5, 0.7], [2.9, 7, 0.2], [0.2, 11, 0.35]]).T
RLIABLE = {
    ("ours", "iqm"): (3.82, 3.3, 4.52),
    ("ours", "median"): (2.91666667, 2.06666667, 3.73333333),
    ("ours", "mean"): (5.18888889, 4.51111111, 5.9),
    ("theirs", "iqm"): (3.02777778, 2.42777778, 3.86111111),
    ("theirs", "median"): (2.22, 1.1, 3.1),
    ("theirs", "mean"): (4.08333333, 3.40666667, 4.75),
    ("ours, one task", "iqm"): (2.975, 1.925, 3.95),
    ("ours, one task", "mean"): (2.91666667, 2.06666667, 3.73333333),
}
SCORES = {"ours": list(OURS), "theirs": list(THEIRS), "ours, one task": [OURS[0]]}
HOW = Bootstrap(confidence=0.95, resamples=20_000, seed=0)


@pytest.mark.parametrize(("scores", "name"), RLIABLE)
def test_estimates_are_those_of_rliable(scores, name):
    found = estimate(SCORES[scores], STATISTICS[name], HOW)
    value, low, high = RLIABLE[scores, name]
    assert found.value == pytest.approx(value, abs=1e-6)
    # both ends come from random draws: 2 % of the interval's width is what differs between two seeds of either
    assert found.low == pytest.approx(low, abs=0.03 * (high - low))
    assert found.high == pytest.approx(high, abs=0.03 * (high - low))


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        (list(OURS), list(THEIRS), (0.72222222, 0.53333333, 0.88333333)),
        ([OURS[0]], [THEIRS[0]], (0.6333333, 4 / 15, 14 / 15)),
    ],
)
def test_probability_of_improvement_is_that_of_rliable(ours, theirs, wanted):
    found = improvement(ours, theirs, HOW)
    assert (found.value, found.low, found.high) == pytest.approx(wanted, abs=0.012)
    assert found.value == pytest.approx(wanted[0], abs=1e-6)


@pytest.mark.parametrize("name", STATISTICS)
def test_interval_is_that_of_every_possible_draw(name):
    scores = np.array([1.0, 2.0, 4.0, 8.0])
    by_hand = {"iqm": lambda s: plain.fmean(sorted(s)[1:3]), "mean": plain.fmean, "median": plain.median}[name]
    every = [by_hand(draw) for draw in itertools.product(scores, repeat=4)]  # 256, all equally likely
    low, high = interval([scores], STATISTICS[name], Bootstrap(0.8, 40_000, 1))
    assert low == pytest.approx(np.quantile(every, 0.1), abs=0.02)
    assert high == pytest.approx(np.quantile(every, 0.9), abs=0.02)


def test_resampling_is_stratified_by_task():
    # Within a task all runs are equal: whatever is drawn there, the mean stays. Pooled draws would spread it.
    found = estimate([np.full(5, 1.0), np.full(5, 100.0)], STATISTICS["mean"], HOW)
    assert found == Estimate(50.5, 50.5, 50.5)


def test_tasks_weigh_the_same_whatever_their_number_of_runs():
    assert STATISTICS["mean"]([np.zeros(10), np.ones(2)]) == 0.5


@pytest.mark.parametrize(("n", "left_out"), [(1, 0), (3, 0), (4, 1), (7, 1), (8, 2), (100, 25)])
def test_iqm_leaves_out_a_quarter_at_either_end(n, left_out):
    scores = np.arange(n, dtype=float) ** 3
    assert STATISTICS["iqm"]([scores]) == pytest.approx(np.mean(scores[left_out : n - left_out]))


def test_one_run_has_no_interval():
    found = estimate([np.array([3.0])], STATISTICS["iqm"], HOW)
    assert found.value == 3.0
    assert np.isnan([found.low, found.high]).all()
    found = improvement([np.array([3.0])], [np.array([1.0, 2.0])], HOW)
    assert found.value == 1.0
    assert np.isnan([found.low, found.high]).all()


def test_a_tie_is_half_an_improvement():
    same = [np.array([1.0, 1.0, 1.0])]
    assert improvement(same, same, HOW) == Estimate(0.5, 0.5, 0.5)


def test_the_same_scores_give_the_same_interval_and_another_seed_another():
    scores = [np.random.default_rng(0).normal(size=9)]
    first = estimate(scores, STATISTICS["iqm"], Bootstrap(0.95, 100, seed=0))
    assert estimate(scores, STATISTICS["iqm"], Bootstrap(0.95, 100, seed=0)) == first
    assert estimate(scores, STATISTICS["iqm"], Bootstrap(0.95, 100, seed=1)) != first


def test_blocks_of_draws_change_nothing_but_memory(monkeypatch):
    scores = [np.random.default_rng(0).normal(size=(3, 9))]
    whole = interval(scores, STATISTICS["mean"], HOW)
    monkeypatch.setattr("parl_cli.reports.statistics.BLOCK", 1000)
    parts = interval(scores, STATISTICS["mean"], HOW)
    assert np.allclose(whole, parts)


def test_leading_axes_are_questions_of_their_own():
    curves = np.random.default_rng(0).normal(size=(4, 9))
    together = interval([curves], STATISTICS["iqm"], HOW)
    assert together[0].shape == (4,)
    for i in range(4):
        assert np.allclose(interval([curves[i]], STATISTICS["iqm"], HOW), [end[i] for end in together])
