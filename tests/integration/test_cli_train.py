"""`parl train` as a person uses it: folders, sweeps, failures, Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.helpers.cli import TINY, environment, parl

RUN_NAME = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{6}"

# An env that raises in step when told to; a plug-in registers it.
PLUGIN = """
import logging

import gymnasium as gym
import numpy as np

class Fragile(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if self.broken:
            raise RuntimeError("the pole snapped")
        logging.getLogger(__name__).warning("the pole wobbles")
        return np.zeros(1, np.float32), 1.0, True, False, {}

gym.register("Fragile-v0", Fragile)
"""


def folders(path):
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("trained")
    done = parl("train", *TINY, "algo.learning_rate=1e-3", cwd=cwd)
    assert done.returncode == 0, done.stderr
    [run] = folders(cwd / "outputs" / "ppo_cartpole")
    return cwd, cwd / "outputs" / "ppo_cartpole" / run


def test_a_run_has_a_folder_of_its_own_with_the_config_it_ran(trained):
    cwd, run = trained
    assert re.fullmatch(RUN_NAME, run.name)
    assert folders(cwd) == ["outputs"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["total_steps"] == 64
    assert config["algo"]["learning_rate"] == 1e-3
    assert config["name"] == "ppo_cartpole"
    assert "hydra" not in config
    assert not (run / ".hydra").exists()
    assert json.loads((run / "run.json").read_text())["argv"][:2] == ["parl", "train"]


def test_eval_plays_what_was_trained(trained, tmp_path):
    cwd, run = trained
    done = parl("eval", f"checkpoint={run.relative_to(cwd)}", "episodes=2", f"output={tmp_path}", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["episodes"] == 2


def test_resume_goes_on_to_a_larger_budget(trained):
    cwd, run = trained
    done = parl("resume", f"run={run}", "total_steps=128", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints" / "128").is_dir()


def test_the_run_folder_can_be_chosen_but_not_shared(tmp_path):
    first = parl("train", *TINY, "hydra.run.dir=mine", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert folders(tmp_path) == ["mine"]
    before = (tmp_path / "mine" / "metrics.jsonl").read_bytes()
    second = parl("train", *TINY, "hydra.run.dir=mine", cwd=tmp_path)
    assert second.returncode == 2
    assert "already in use" in second.stderr
    assert (tmp_path / "mine" / "metrics.jsonl").read_bytes() == before


def test_a_sweep_runs_every_job_in_a_numbered_folder(tmp_path):
    done = parl("train", "env=cartpole", "-m", "seed=1,2", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [sweep] = folders(tmp_path / "outputs" / "ppo_cartpole")
    assert re.fullmatch(f"sweep-{RUN_NAME}", sweep)
    jobs = tmp_path / "outputs" / "ppo_cartpole" / sweep
    assert folders(jobs) == ["0", "1"]
    assert [yaml.safe_load((jobs / job / "config.yaml").read_text())["seed"] for job in "01"] == [1, 2]


def test_a_sweep_over_envs_is_not_named_after_one_of_them(tmp_path):
    done = parl("train", "-m", "env=cartpole,pendulum", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert folders(tmp_path / "outputs") == ["sweep"]


def test_a_sweep_is_validated_whole_before_its_first_job(tmp_path):
    done = parl("train", "-m", "algo.num_minibatches=1,7", *TINY[:3], cwd=tmp_path)
    assert done.returncode == 2
    assert "job 1 (algo.num_minibatches=7" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def fragile(tmp_path):
    (tmp_path / "fragile_plugin.py").write_text(PLUGIN)
    overrides = ("env=gym", "env.id=Fragile-v0", "plugins=[fragile_plugin]", "name=fragile", *TINY)
    return tmp_path, overrides, {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{tmp_path}"}


def test_a_job_that_fails_does_not_stop_a_serial_sweep(fragile):
    cwd, overrides, env = fragile
    done = parl("train", "-m", *overrides, "env.kwargs.broken=true,false", "hydra/launcher=serial", cwd=cwd, env=env)
    assert done.returncode == 1
    assert "the pole snapped" in done.stderr
    assert "1 of 2 jobs failed: job 0 (" in done.stderr.splitlines()[-1]
    [sweep] = (cwd / "outputs" / "fragile").glob("sweep-*")
    assert (sweep / "1" / "checkpoints" / "64").is_dir()
    assert "WARNING fragile_plugin: the pole wobbles" in (sweep / "1" / "console.log").read_text()
    assert "warning: the pole wobbles" in done.stdout


def test_an_env_that_raises_is_an_error_without_parls_own_traceback(fragile):
    cwd, overrides, env = fragile
    done = parl("train", *overrides, "env.kwargs.broken=true", cwd=cwd, env=env)
    assert done.returncode == 1
    assert "parl: error: " in done.stderr
    assert "the pole snapped" in done.stderr
    assert "parl_cli/cli.py" not in done.stderr


def test_ctrl_c_leaves_a_checkpoint_and_exits_130(tmp_path):
    overrides = [*TINY, "total_steps=10000000", "hydra.run.dir=run"]
    child = subprocess.Popen(
        [sys.executable, "-m", "parl_cli", "train", *overrides],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        rows = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 90
        while not (rows.exists() and rows.stat().st_size):
            assert child.poll() is None, child.communicate()[0]
            assert time.monotonic() < deadline, "no update in 90 s"
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, output
    assert "parl resume run=run" in output
    assert "Traceback" not in output
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_cfg_shows_what_would_be_run_and_writes_nothing(tmp_path):
    done = parl("train", "--cfg", "job", "--resolve", "env=pendulum", "total_steps=1e6", cwd=tmp_path)
    shown = yaml.safe_load(done.stdout)
    assert (shown["name"], shown["total_steps"]) == ("ppo_pendulum", 1_000_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["defaults", "searchpath", "config"])
def test_info_says_where_the_config_comes_from(what, tmp_path):
    done = parl("train", "env=cartpole", "--info", what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cartpole" in done.stdout or "conf" in done.stdout
    assert not list(tmp_path.iterdir())
