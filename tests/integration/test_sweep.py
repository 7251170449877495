"""Sweeps of real trainings in real processes: crashed, killed, interrupted, and gone on with."""

import json
import os
import shlex
import signal
import time

import psutil
import pytest
import yaml

from tests.helpers.cli import TINY, parl
from tests.helpers.runs import Parl, policy_hash, tree

PLUGIN = """
import os, signal
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Fragile(CartPoleEnv):
    def __init__(self, mode="fine", **kwargs):
        super().__init__(**kwargs)
        self.mode, self.steps = mode, 0

    def step(self, action):
        self.steps += 1
        if self.steps > 20 and self.mode == "raise":
            raise RuntimeError("the pole snapped")
        if self.steps > 20 and self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

gymnasium.register("Fragile-v0", Fragile, max_episode_steps=500)
"""

JOB = ("env=cartpole", "name=s", *TINY, "total_steps=96")  # three updates
LONG = ("total_steps=1000000", "checkpoint.every_steps=320")


def sweep_json(folder):
    return json.loads((folder / "sweep.json").read_text())


def states(folder):
    if not (folder / "sweep.json").exists():
        return []
    return [job["state"] for job in sweep_json(folder)["jobs"]]


def children_of(sweep):
    """The processes of a sweep's jobs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "parl_cli.sweeps.child" in (words := process.info["cmdline"] or []) and str(sweep) in " ".join(words):
            found.append(process)
    return found


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_raises_and_one_that_is_killed_leave_the_others_alone(tmp_path):
    (tmp_path / "fragile.py").write_text(PLUGIN)
    job = ("env=gym", "env.id=Fragile-v0", "plugins=[fragile]", "name=s", *TINY)
    sweep = tmp_path / "sweep"
    args = ("env.kwargs.mode=raise,kill,fine", "sweep.retries=0", "sweep.num_jobs=2", "hydra.sweep.dir=sweep")
    done = parl("train", "-m", *job, *args, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert states(sweep) == ["failed", "failed", "done"]
    assert "job 0 (mode=raise) failed: env 0 " in done.stdout
    assert "the pole snapped" in done.stdout
    assert "job 1 (mode=kill) failed: was killed by SIGKILL" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert "2 of 3 jobs failed: job 0 (mode=raise), job 1 (mode=kill); go on with parl resume run=sweep " in last
    assert "fragile.py" in (sweep / "0" / "console.log").read_text()  # the env's own traceback
    assert json.loads((sweep / "2" / "result.json").read_text())["env_steps"] == 64

    before = tree(sweep / "2")
    assert "plugins=[fragile]" in parl("resume", "run=sweep", cwd=tmp_path).stderr  # asked for, not imported
    again = parl("resume", "run=sweep", "plugins=[fragile]", cwd=tmp_path)
    assert again.returncode == 1
    assert states(sweep) == ["failed", "failed", "done"]
    assert [job["attempts"] for job in sweep_json(sweep)["jobs"]] == [2, 2, 1]
    assert tree(sweep / "2") == before


def test_a_killed_sweep_goes_on_and_repeats_nothing(tmp_path):
    overrides = ("seed=1,2,3", "sweep.num_jobs=2", "hydra.sweep.dir=sweep", "checkpoint.every_steps=320")
    steps = "total_steps=2560"
    sweep = tmp_path / "sweep"
    with Parl("train", "-m", *JOB, steps, *overrides, cwd=tmp_path) as child:
        child.wait_for(lambda: "done" in states(sweep))
        child.wait_for_rows(sweep / "2", 20)
        child.process.kill()
        child.process.wait()
    wait_until(lambda: not children_of(sweep))  # no orphans; what ran has saved
    left = sweep_json(sweep)["jobs"]
    was_done = [job["number"] for job in left if job["state"] == "done"]
    assert 1 <= len(was_done) <= 2
    before = {number: tree(sweep / str(number)) for number in was_done}

    done = parl("resume", "run=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 - len(was_done)} of 3 jobs to run" in done.stdout
    assert states(sweep) == ["done"] * 3
    assert {number: tree(sweep / str(number)) for number in was_done} == before
    assert json.loads((sweep / "2" / "run.json").read_text())["resumed_at"][0] > 0  # not from its beginning

    # it is what one run without interruption trains, to the bit
    assert parl("train", *JOB, steps, "seed=3", "hydra.run.dir=alone", cwd=tmp_path).returncode == 0
    assert policy_hash(sweep / "2") == policy_hash(tmp_path / "alone")

    nothing = parl("resume", "run=sweep", cwd=tmp_path)
    assert nothing.returncode == 0
    assert "started" not in nothing.stdout


def test_an_interrupted_sweep_saves_what_runs(tmp_path):
    sweep = tmp_path / "sweep"
    options = ("sweep.num_jobs=1", "hydra.sweep.dir=sweep", "seed=1,2")
    with Parl("train", "-m", *JOB, *LONG, *options, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 3)
        os.killpg(child.process.pid, signal.SIGINT)  # as a terminal does
        returncode, out, err = child.end()
    assert returncode == 130, out + err
    assert "Traceback" not in out + err
    assert "go on with parl resume run=sweep" in out
    assert states(sweep) == ["interrupted", "waiting"]
    assert not children_of(sweep)
    assert json.loads((sweep / "0" / "run.json").read_text())["status"] == "interrupted"
    assert "interrupted" in (sweep / "0" / "console.log").read_text()


def test_a_killed_search_goes_on_and_its_best_is_an_experiment(tmp_path):
    sweep = tmp_path / "sweep"
    space = ("sweep=search", "algo.gamma=interval(0.5,1)", "algo.num_epochs=interval(1,3)")
    options = ("sweep.num_trials=3", "sweep.num_jobs=1", "hydra.sweep.dir=sweep", "total_steps=320")
    with Parl("train", "-m", "env=cartpole", *TINY[1:3], *TINY[4:], *space, *options, cwd=tmp_path) as child:
        child.wait_for(lambda: states(sweep)[:2] == ["done", "running"])
        child.process.kill()
        child.process.wait()
    wait_until(lambda: not children_of(sweep))
    first, second = sweep_json(sweep)["jobs"]

    done = parl("resume", "run=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = sweep_json(sweep)["jobs"]
    assert states(sweep) == ["done"] * 3
    assert jobs[0]["params"] == first["params"]
    assert jobs[1]["params"] == second["params"]
    assert jobs[0]["attempts"] == 1

    assert "parl train experiment=best --config-dir sweep" in done.stdout
    again = parl("train", "experiment=best", "--config-dir", "sweep", "--cfg", "job", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    best = max(jobs, key=lambda job: job["result"]["values"][0])
    assert yaml.safe_load(again.stdout)["algo"]["gamma"] == pytest.approx(best["params"]["algo.gamma"], abs=1e-6)


def test_the_best_of_a_search_is_trained_with_what_the_search_found_in_its_config_dir(tmp_path):
    mine = tmp_path / "of my own" / "env"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text("id: CartPole-v1\nmax_episode_steps: 50\n")
    space = ("sweep=search", "algo.gamma=interval(0.5,1)", "sweep.num_trials=1", "hydra.sweep.dir=sweep")
    config_dir = ("--config-dir", "of my own")
    done = parl("train", "-m", *config_dir, "env=mine", *TINY[1:3], *TINY[4:], *space, "total_steps=160", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = "".join(done.stdout.partition("train it")[2].split("\n"))
    words = shlex.split(command.partition("parl ")[2])
    assert words[:2] == ["train", "experiment=best"]
    again = parl(*words, "--cfg", "job", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load(again.stdout)["env"]["max_episode_steps"] == 50
