"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parl_cli import registry
from parl_cli.metrics.catalog import markdown_table
from tests.learning import lag, run, thresholds

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


def test_the_results_in_the_readme_are_those_the_results_command_wrote():
    readme, results = (
        re.findall(r"^\| `[a-z0-9_]+/[a-z0-9_]+` \|.*", file.read_text(encoding="utf-8"), re.MULTILINE)
        for file in (ROOT / "README.md", ROOT / "tests" / "learning" / "RESULTS.md")
    )
    assert results
    assert readme == results


@pytest.mark.parametrize("module", [run, thresholds, lag], ids=lambda module: module.TABLE.name)
def test_a_table_of_learning_is_what_its_command_writes_from_its_rows(module):
    assert module.TABLE.read_text(encoding="utf-8") == module.table(run.read_rows(module.ROWS))
