import re
from pathlib import Path

import pytest

import parl_cli
from parl_cli.metrics.catalog import CATALOG, lookup, markdown_table

LOGGED = re.compile(r'"((?:loss|policy|value|optim|algo|rollout|normalizer|episode|eval|memory)/[a-z0-9_]+)"')


def test_every_metric_name_in_the_source_is_in_the_catalogue():
    sources = [p for p in Path(parl_cli.__file__).parent.rglob("*.py") if p.name != "catalog.py"]
    names = {name for path in sources for name in LOGGED.findall(path.read_text(encoding="utf-8"))}
    assert "episode/return_mean" in names
    assert {name for name in names if lookup(name) is None} == set()


def test_names_are_unique_and_described_in_one_line():
    names = [metric.name for metric in CATALOG]
    assert len(names) == len(set(names))
    for metric in CATALOG:
        assert metric.unit
        assert metric.doc
        assert "\n" not in metric.doc
        assert "|" not in metric.doc


def test_pattern_covers_a_part_that_only_one_algorithm_measures():
    metric = lookup("time/mcts_share")
    assert metric is not None
    assert metric.unit == "share"


def test_exact_name_wins_over_the_pattern():
    assert lookup("time/env_share") == next(m for m in CATALOG if m.name == "time/env_share")


@pytest.mark.parametrize("name", ["loss/entropy", "time/env", "time/a/b_share", "env_steps2", ""])
def test_unknown_name_has_no_entry(name):
    assert lookup(name) is None


def test_table_has_a_row_with_unit_for_every_metric():
    lines = markdown_table().splitlines()
    assert lines[:2] == ["| metric | unit | what it says |", "| --- | --- | --- |"]
    assert len(lines) == len(CATALOG) + 2
    assert lines[2].startswith("| `env_steps` | env steps | ")
    assert all(line.count("|") == 4 for line in lines)
