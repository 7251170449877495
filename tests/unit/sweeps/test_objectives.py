import json

import pytest

from parl_cli.sweeps.objectives import reports, score
from parl_cli.sweeps.options import Objective

ROWS = [
    {"env_steps": 100.0},  # no episode yet
    {"env_steps": 200.0, "r": 1.0},
    {"env_steps": 300.0, "r": 5.0},
    {"env_steps": 400.0, "r": float("nan")},
    {"env_steps": 500.0, "r": 2.0},
]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"take": "mean"}, (1 * 200 + 5 * 100 + 2 * 200) / 500),
        ({"take": "last"}, 2.0),
        ({"take": "best"}, 5.0),
        ({"take": "best", "direction": "minimize"}, 1.0),
        ({"metric": "env_steps", "take": "last"}, 500.0),
    ],
)
def test_what_a_trial_is_worth(options, value):
    assert score(ROWS, Objective(**{"metric": "r", **options})) == pytest.approx(value)


def test_a_metric_that_never_came_is_worth_nothing():
    assert score(ROWS, Objective("x")) is None
    assert score([], Objective("r")) is None


def test_reports_are_at_equal_parts_of_the_budget_whatever_the_rows(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert reports(file, Objective("r"), 1000, 5) == {}
    file.write_text("".join(json.dumps({k: v for k, v in row.items() if v == v}) + "\n" for row in ROWS))
    last = Objective("r", take="last")
    assert reports(file, last, 1000, 5) == {1: 1.0, 2: 5.0}
    assert reports(file, last, 500, 5) == {2: 1.0, 3: 5.0, 4: 5.0, 5: 2.0}
    assert reports(file, last, 100, 2) == {}  # beyond its budget: nothing was known within it
