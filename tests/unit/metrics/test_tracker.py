import math

import pytest

from parl_cli.metrics.tracker import History, Tracker


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def row(steps, time_s, **more):
    return {"env_steps": float(steps), "time_s": float(time_s), **more}


def test_speed_and_time_left_follow_the_last_rows():
    clock = Clock()
    tracker = Tracker(1000, clock=clock)
    assert tracker.eta_s is None
    tracker.update(row(100, 1))
    tracker.update(row(300, 2))
    assert tracker.steps_per_s == 200.0
    assert tracker.eta_s == 3.5
    clock.now += 1.0
    assert tracker.eta_s == 2.5
    assert tracker.elapsed_s == 3.0


def test_speed_forgets_what_is_older_than_its_window():
    tracker = Tracker(10**6, clock=Clock())
    tracker.update(row(0, 0))
    for second in range(100, 120):
        tracker.update(row(1000 + (second - 100) * 50, second))
    assert tracker.steps_per_s == pytest.approx(50.0)


def test_first_row_uses_its_own_speed():
    tracker = Tracker(1000, clock=Clock())
    tracker.update(row(100, 1, steps_per_s=100.0))
    assert tracker.eta_s == 9.0


def test_a_stalled_run_has_no_time_left_to_tell():
    tracker = Tracker(1000, clock=Clock())
    tracker.update(row(100, 1))
    tracker.update(row(100, 2))
    assert tracker.eta_s is None


def test_done_never_exceeds_the_whole():
    tracker = Tracker(100, clock=Clock())
    tracker.update(row(130, 1))
    assert tracker.done == 1.0
    assert tracker.eta_s != 0 or tracker.steps_per_s > 0


def test_best_evaluation_is_kept_and_the_last_one_too():
    tracker = Tracker(100, clock=Clock())
    for steps, mean in ((10, 5.0), (20, 9.0), (30, 7.0), (40, math.nan)):
        tracker.update(row(steps, 1, **{"eval/return_mean": mean, "eval/return_ci95": 0.5}))
    assert str(tracker.best_eval) == "9.00 ± 0.5000"
    assert tracker.best_eval.env_steps == 20
    assert math.isnan(tracker.last_eval.mean)


def test_history_counts_for_chart_evaluation_and_clock_but_not_for_speed():
    clock = Clock()
    before = [row(50, 10, **{"episode/return_mean": 1.0, "eval/return_mean": 3.0}), row(100, 20)]
    tracker = Tracker(1000, before, clock=clock)
    assert tracker.returns.values == [1.0]
    assert tracker.best_eval.mean == 3.0
    assert tracker.elapsed_s == 20.0
    assert tracker.done == 0.1
    tracker.update(row(200, 21, steps_per_s=77.0))
    assert tracker.steps_per_s == 77.0


def test_time_shares_are_smoothed_and_ordered():
    tracker = Tracker(100, clock=Clock())
    for share in (1.0, 0.0):
        tracker.update(row(1, 1, **{"time/other_share": 0.1, "time/mine_share": 0.2, "time/env_share": share}))
    parts = tracker.parts()
    assert [part for part, _ in parts] == ["env", "mine", "other"]
    assert parts[0][1] == pytest.approx(0.8)


def test_history_in_bounded_memory_keeps_its_shape():
    history = History(limit=8)
    for value in range(1000):
        history.append(float(value))
    assert len(history.values) < 8
    assert history.values == sorted(history.values)
    assert history.values[0] < 128
    assert history.values[-1] > 700


@pytest.mark.parametrize(
    ("values", "trend"),
    [([], 0), ([1.0], 0), ([1.0, 2.0], 1), ([2.0, 1.0], -1), ([0.0, 100.0, 50.0, 50.5], 0), ([1.0, math.nan, 2.0], 1)],
)
def test_trend_compares_the_last_tenth_with_the_one_before(values, trend):
    history = History()
    for value in values:
        history.append(value)
    assert history.trend() == trend


def test_summary_tells_return_evaluation_and_speed():
    clock = Clock()
    tracker = Tracker(100, clock=clock)
    tracker.update(row(100, 10, **{"episode/return_mean": 87.3, "episode/return_std": 2.5, "episode/count": 40.0}))
    tracker.update({"env_steps": 100.0, "time_s": 10.0, "eval/return_mean": 90.0, "eval/return_ci95": 1.5})
    assert tracker.summary() == {
        "return": "87.3 ± 2.50 over the last 40 episodes",
        "evaluation": "best 90.0 ± 1.50 at 100 steps, last 90.0 ± 1.50",
        "trained": "100 env steps in 10s, 10 steps/s",
    }


def test_summary_of_a_run_without_an_episode_says_so():
    assert Tracker(100, clock=Clock()).summary()["return"] == "no episode has finished yet"
