import itertools

import pytest

from parl_cli.errors import ConfigError
from parl_cli.functional.schedules import KINDS, schedule


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
def test_schedule_meets_both_ends_exactly_and_is_monotone_between(kind):
    values = [schedule(kind, 2.5e-4, 1e-5, i / 100) for i in range(101)]
    assert values[0] == 2.5e-4
    assert values[-1] == 1e-5
    assert all(a > b for a, b in itertools.pairwise(values))


def test_constant_schedule_never_moves():
    assert {schedule("constant", 0.2, 0.0, p) for p in (0.0, 0.3, 1.0)} == {0.2}


def test_linear_schedule_is_a_straight_line():
    assert schedule("linear", 1.0, 0.0, 0.25) == 0.75


def test_cosine_schedule_has_known_values():
    assert schedule("cosine", 1.0, 0.0, 1 / 3) == pytest.approx(0.75)
    assert schedule("cosine", 0.0, 4.0, 0.5) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_progress_is_clamped_to_the_budget(kind):
    assert schedule(kind, 1.0, 0.5, -0.1) == schedule(kind, 1.0, 0.5, 0.0)
    assert schedule(kind, 1.0, 0.5, 1.2) == schedule(kind, 1.0, 0.5, 1.0)


def test_unknown_schedule_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"schedule=liner: .*linear"):
        schedule("liner", 1.0, 0.0, 0.5)
