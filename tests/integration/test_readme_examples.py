"""The README's examples, as they stand there: extracted, and run. One number is made smaller, the budget."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.helpers.cli import ROOT, environment, parl

TINY_STEPS = 4096
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    """The text of a section of the README."""
    [text] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return text


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def smaller(text, budget):
    """The text with its budget made tiny; it must be there, or the test would run for minutes."""
    assert text.count(budget) == 1, f"{budget} is not in {text}"
    return text.replace(budget, re.sub(r"[\d_]+$", str(TINY_STEPS), budget))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A working directory with the files of the plug-in example."""
    cwd = tmp_path_factory.mktemp("readme")
    text = section("Extending parl without a fork")
    for block in blocks(text, "python") + blocks(text, "yaml"):
        name = re.match(r"# ([\w/]+\.\w+)\n", block)[1]
        (cwd / name).parent.mkdir(parents=True, exist_ok=True)
        (cwd / name).write_text(block)
    return cwd


def test_the_plugin_example_trains_evaluates_and_is_listed(extended):
    [script] = blocks(section("Extending parl without a fork"), "bash")
    train, evaluate, listing = smaller(script, "total_steps=100000").splitlines()
    done = parl(*shlex.split(train)[1:], cwd=extended)
    assert done.returncode == 0, done.stderr
    assert "spo on cartpole" in done.stdout
    done = parl(*shlex.split(evaluate)[1:], cwd=extended)
    assert done.returncode == 0, done.stderr
    done = parl(*shlex.split(listing)[1:], cwd=extended)
    assert "simple policy optimisation" in done.stdout
    assert "my_algos" in done.stdout


def run_python(code, cwd):
    (cwd / "example.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_experiment_example_trains_saves_and_goes_on(tmp_path):
    api, acting, _ = blocks(section("From Python"), "python")
    done = run_python(smaller(api, "steps = 50_000"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert 8 < float(done.stdout) <= 500
    assert {path.name for path in tmp_path.iterdir()} == {"example.py", "halfway"}
    done = run_python(acting, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 8 <= float(done.stdout) <= 500


def test_the_loop_of_pieces_trains(tmp_path):
    *_, loop = blocks(section("From Python"), "python")
    done = run_python(smaller(loop, "total_steps = 100_000"), tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert steps == [1024, 2048, 3072, 4096]
    assert [path.name for path in tmp_path.iterdir()] == ["example.py"]


def test_the_vectorizer_example_steps(tmp_path):
    [example] = blocks(section("Vectorizers alone"), "python")
    assert run_python(example, tmp_path).stdout == "(32, 4) CartPole-v1\n"


def test_the_loop_of_pieces_is_short():
    *_, loop = blocks(section("From Python"), "python")
    assert len([line for line in loop.splitlines() if line]) <= 28
