"""The benchmark of the vectorizers runs, and its tables say what was measured. How fast anything is, no test says."""

import re
import subprocess
import sys
import time

import pytest

from tests.benchmarks import asynchronous, settings
from tests.benchmarks.vectorizers import PER_CORE, SUITES, Asked, Row, Suite, table
from tests.helpers.cli import ROOT, environment
from tests.helpers.slow_envs import BusyEnv, RandomSleepEnv


def cells(text, name):
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_ratios_are_medians_over_rounds_and_stand_beside_what_is_asked():
    asked = (Asked("fast", 1.1), Asked("fast", 8, "peer"), Asked("fast", 2, "gone"), Asked("best", 3))
    suite = Suite("a suite", dict, asked, best_of=("fast", "peer"))
    rows = {
        "raw": Row([100, 100, 10], [1.0] * 3),
        "fast": Row([200, 400, 40], [5.0, 7.0, 6.0]),
        "peer": Row([10, 50, 5], [1500.0] * 3),
    }
    text = table(suite, rows, {"gone": "ImportError: no module"})
    assert text.startswith("### a suite\n\n| what | steps/s | × raw | CPU µs per step | asked |\n| --- ")
    assert cells(text, "raw") == ["raw", "100", "1.00", "1.0", ""]
    assert cells(text, "fast") == [
        *("fast", "200", "4.00", "6.0"),
        "≥ 1.1, 8.00 × peer (≥ 8), ≥ 2 × gone, which is missing, ≥ 3",
    ]
    assert cells(text, "peer") == ["peer", "10", "0.50", "1,500", ""]
    assert "not measured: gone (ImportError: no module)" in text
    assert "busy machine" not in text
    assert "busy machine: a process that wanted a core got 40% of one" in table(suite, rows, {}, 0.4)


@pytest.mark.parametrize("name", SUITES)
def test_everything_that_is_asked_is_measured(name):
    if name == "pong":
        pytest.importorskip("ale_py")
    suite = SUITES[name]
    peers = {"best"} & {asked.who for asked in suite.asked} if suite.best_of else set()
    peers |= set(suite.peers())
    assert {who for asked in suite.asked for who in (asked.who, asked.than)} | set(suite.best_of) <= peers | {"raw"}


def test_it_runs_and_prints_markdown(tmp_path):
    script = ROOT / "tests" / "benchmarks" / "vectorizers.py"
    command = [sys.executable, str(script), "--suite", "cartpole32", "memory", "--rounds", "1", "--seconds", "0.01"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {"### CartPole × 32", "### Memory, CartPole × 32"} <= set(done.stdout.splitlines())
    for name in ("raw", PER_CORE, "serial", "subprocess", "hybrid", "SyncVectorEnv", "CartPoleVectorEnv"):
        assert re.fullmatch(r"[\d,]+", cells(done.stdout, name)[1]), name
    assert not list(tmp_path.iterdir())


def test_a_suite_whose_envs_are_not_installed_is_skipped_with_a_line(tmp_path):
    script = ROOT / "tests" / "benchmarks" / "vectorizers.py"
    code = (
        "import runpy, sys; sys.modules['ale_py'] = None; sys.argv = ['vectorizers.py', '--suite', 'pong']; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not measured: import of ale_py halted" in done.stdout


def test_a_busy_env_computes_for_as_long_as_it_says():
    env = BusyEnv(step_s=0.002)
    env.reset(seed=0)
    started = time.thread_time()
    for _ in range(5):
        env.step(0)
    assert time.thread_time() - started >= 0.01


def test_sleeps_are_drawn_from_the_env_s_own_generator(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for _ in range(2):
        env = RandomSleepEnv(mean_s=0.5)
        env.reset(seed=3)
        for _ in range(2000):
            env.step(0)
    assert slept[:2000] == slept[2000:]
    assert 0.45 < sum(slept) / 4000 < 0.55


def test_the_speed_of_a_training_is_that_after_its_first_quarter():
    rows = [(10.0, 100, 1.0), (12.0, 200, 2.0), (13.0, 300, 3.0), (15.0, 800, 4.0)]
    assert asynchronous.steady(rows, 16.0) == asynchronous.Run(steps_per_s=200.0, wall_s=16.0, mean_return=4.0)


def test_two_trainings_are_compared_round_by_round():
    run = asynchronous.Run
    runs = {"parl": [run(300, 5, 400), run(100, 7, 500)], "peer": [run(100, 9, 450), run(10, 9, 460)]}
    text = asynchronous.table(runs)
    assert cells(text, "parl") == ["parl", "200", "6.0 s", "400, 500"]
    assert text.endswith("ratio: 6.50; asked: at least 4")


def test_settings_stand_beside_the_bound_of_their_parts():
    alone = [{"env": 10.0, "act": 2.0, "learn": 8.0}, {"env": 99.0, "act": 2.0, "learn": 8.0}] * 2
    alone.append({"env": 10.0, "act": 2.0, "learn": 8.0})
    text = settings.table("an env", alone, {"inline": [40_000, 60_000, 50_000]}, cores=2)
    assert "alone: env 10.0 µs, act 2.0 µs, learn 8.0 µs; 2 cores: at most 100,000 steps/s" in text
    assert cells(text, "`inline`") == ["`inline`", "40,000, 60,000, 50,000", "50,000", "0.50"]
