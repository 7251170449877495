import io

import pytest
from rich.console import Console

from parl_cli.metrics.plain import PlainLines


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def out():
    return Console(file=io.StringIO(), width=60, force_terminal=False)


def lines(out):
    return out.file.getvalue().splitlines()


def row(steps, time_s, **more):
    return {"env_steps": float(steps), "time_s": float(time_s), "steps_per_s": 20_000.0, **more}


def test_line_tells_progress_return_speed_kl_and_time_left(out, clock):
    progress = PlainLines(100_000, to=out, clock=clock)
    more = {"episode/return_mean": 87.3, "episode/length_mean": 87.0, "policy/approx_kl": 0.009}
    progress.update(row(40_960, 2, **more))
    assert lines(out) == ["steps  40,960/100,000  41%  return    87.3 →  len   87.0  20.0k steps/s  kl  0.0090  eta 3s"]


def test_lines_stay_aligned_while_figures_grow(out, clock):
    progress = PlainLines(100_000, to=out, clock=clock)
    for i in range(1, 11):
        progress.update(row(i * 10_000, i, **{"episode/return_mean": 3.0**i, "episode/length_mean": 2.0**i}))
    starts = {
        (line.index("return"), line.index("len"), line.index("steps/s"), line.index("eta")) for line in lines(out)
    }
    assert len(lines(out)) == 10
    assert len(starts) == 1


def test_one_line_per_tenth_of_the_budget_however_many_updates(out, clock):
    with PlainLines(1000, to=out, clock=clock) as progress:
        for steps in range(1, 1001):
            progress.update(row(steps, 0))
    assert len(lines(out)) == 10


def test_slow_run_gets_a_line_every_five_seconds_at_first_and_fewer_later(out, clock):
    progress = PlainLines(10**9, to=out, clock=clock)
    counts = []
    for second in range(1, 3601):
        clock.now = float(second)
        progress.update(row(second, second))
        counts.append(len(lines(out)))
    assert counts[59] == 12
    assert counts[-1] - counts[-601] <= 5
    assert counts[-1] < 100


def test_evaluation_row_is_always_a_line(out, clock):
    progress = PlainLines(10**6, to=out, clock=clock)
    progress.update(row(10, 1))
    progress.update(row(20, 1, **{"eval/return_mean": 500.0, "eval/return_ci95": 0.0}))
    progress.update(row(30, 1))
    assert len(lines(out)) == 1
    assert lines(out)[0].endswith("eval 500.0 ± 0.0")


def test_last_row_is_shown_when_the_run_ends_early(out, clock):
    def train():
        with PlainLines(10**6, to=out, clock=clock) as progress:
            progress.update(row(10, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert len(lines(out)) == 1


def test_last_row_is_not_shown_twice(out, clock):
    with PlainLines(10, to=out, clock=clock) as progress:
        progress.update(row(10, 1))
    assert len(lines(out)) == 1


def test_run_without_a_row_prints_nothing(out, clock):
    with PlainLines(10, to=out, clock=clock):
        pass
    assert lines(out) == []


def test_resumed_run_does_not_repeat_the_tenths_before(out, clock):
    progress = PlainLines(100, history=[row(55, 9)], to=out, clock=clock)
    progress.update(row(56, 9))
    assert lines(out) == []
    progress.update(row(60, 9))
    assert len(lines(out)) == 1
