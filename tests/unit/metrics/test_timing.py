import math

import pytest

from parl_cli.metrics import timing
from parl_cli.metrics.timing import Stopwatch


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    return now


def test_blocks_of_a_part_add_up(clock):
    watch = Stopwatch()
    for seconds in (1.0, 2.0):
        with watch("env"):
            clock[0] += seconds
        clock[0] += 10.0
    assert watch.seconds["env"] == 3.0


def test_a_block_that_raises_is_counted_and_its_error_passes(clock):
    watch = Stopwatch()

    def act():
        with watch("act"):
            clock[0] += 2.0
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        act()
    assert watch.seconds["act"] == 2.0


def test_shares_and_other_sum_to_one():
    watch = Stopwatch()
    watch.add("env", 2.0)
    watch.add("learn", 1.0)
    shares = watch.shares(4.0)
    assert shares == {
        "time/env_share": 0.5,
        "time/act_share": 0.0,
        "time/learn_share": 0.25,
        "time/wait_share": 0.0,
        "time/other_share": 0.25,
    }


@pytest.mark.parametrize(("seconds", "total"), [(3.0, 2.0), (0.0, 0.0), (0.1 + 0.2, 0.3)])
def test_shares_sum_to_one_whatever_the_clock_says(seconds, total):
    watch = Stopwatch()
    watch.add("env", seconds)
    shares = watch.shares(total)
    assert math.isclose(sum(shares.values()), 1.0)
    assert all(0.0 <= share <= 1.0 for share in shares.values())


def test_take_starts_again_and_blocks_still_count(clock):
    watch = Stopwatch()
    with watch("mine"):
        clock[0] += 1.0
    assert watch.take()["mine"] == 1.0
    with watch("mine"):
        clock[0] += 4.0
    assert watch.take()["mine"] == 4.0


def test_merge_adds_what_another_watch_took():
    watch, other = Stopwatch(), Stopwatch()
    watch.add("env", 1.0)
    other.add("env", 2.0)
    other.add("mcts", 3.0)
    watch.merge(other.take())
    assert watch.seconds["env"] == 3.0
    assert "time/mcts_share" in watch.shares(10.0)
