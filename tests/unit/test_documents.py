"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parl_cli import registry
from parl_cli.metrics.catalog import markdown_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_metrics_table_is_the_catalogue():
    assert markdown_table().strip() in (ROOT / "parl_cli" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["algo", "vectorizer", "wrapper"])
def test_readme_names_everything_that_is_registered(kind):
    words = set(re.findall(r"[a-z0-9_]+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert set(registry.names(kind)) <= words


def test_readme_names_every_env_config():
    words = set(re.findall(r"[a-z0-9_]+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {path.stem for path in (ROOT / "conf" / "env").glob("*.yaml")} <= words


def test_layout_of_the_floor_plan_is_the_layout_of_the_package():
    plan = (ROOT / "parl_cli" / "README.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "parl_cli").iterdir() if (path / "__init__.py").exists()}
    for room in rooms - {"_hydra"}:
        assert f"`{room}/`" in plan


def test_every_result_in_the_readme_was_written_by_the_results_command():
    rows = [
        line
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| `[a-z_]+/[a-z0-9_]+` \|", line)
    ]
    assert rows
    table = (ROOT / "tests" / "learning" / "RESULTS.md").read_text(encoding="utf-8")
    for row in rows:
        assert row in table
