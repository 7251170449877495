"""Stopping and going on changes nothing: the weights and the metrics are those of a run that was never stopped."""

from __future__ import annotations

import os
import random
import re
import signal
import time

import pytest

from parl_cli import registry
from parl_cli.cli import main
from parl_cli.config import CheckpointConfig, DebugConfig, EnvConfig, ResumeCommand
from parl_cli.errors import CheckpointError, ConfigError, EnvError
from parl_cli.jobs import resume_run, train_run
from parl_cli.reports import load
from parl_cli.training import checkpoint
from parl_cli.training.run_dir import RunDir
from tests.helpers.cli import parl
from tests.helpers.runs import (
    CLI_TINY,
    ROLLOUT,
    Parl,
    go_on,
    normalising_config,
    policy_hash,
    steady_rows,
    train,
    tree,
)
from tests.helpers.vectorizers import of_python_envs

CARTPOLE, PENDULUM = "CartPole-v1", "Pendulum-v1"
UPDATES = 16
CLI_UPDATES = 110
CLI_STEPS = CLI_UPDATES * ROLLOUT
TRAIN = ("train", "algo=ppo", "env=cartpole", f"total_steps={CLI_STEPS}", "hydra.run.dir=run", *CLI_TINY)


def vectorizer(name):
    options = {} if name == "serial" else {"num_workers": 2}
    return registry.load("vectorizer", name).Config(**options)


def assert_same_run(mine, other):
    assert policy_hash(mine) == policy_hash(other)
    assert steady_rows(mine) == steady_rows(other)
    last = [checkpoint.last(run) / "training.safetensors" for run in (mine, other)]
    assert last[0].read_bytes() == last[1].read_bytes()


# ---- in this process ----


@pytest.mark.parametrize(
    ("env_id", "name", "stop_at"),
    [
        (CARTPOLE, "serial", 8),
        (CARTPOLE, "thread", 5),
        (CARTPOLE, "subprocess", 8),
        (CARTPOLE, "hybrid", 5),
        (PENDULUM, "serial", 8),
        (PENDULUM, "thread", 8),
        (PENDULUM, "subprocess", 3),
    ],
)
def test_half_then_restore_then_half_equals_the_whole_run(tmp_path, env_id, name, stop_at):
    config = normalising_config(env_id, UPDATES, vectorizer=vectorizer(name))
    assert train(config, tmp_path / "whole") == "budget"
    assert train(config, tmp_path / "halves", stop_at=stop_at) == "interrupted: SIGINT"
    assert len(steady_rows(tmp_path / "halves")) == stop_at
    assert go_on(config, tmp_path / "halves") == "budget"
    assert_same_run(tmp_path / "halves", tmp_path / "whole")


def test_stopping_after_every_single_update_changes_nothing(tmp_path):
    config = normalising_config(PENDULUM, 6)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "bits", stop_at=1)
    for update in range(2, 6):
        go_on(config, tmp_path / "bits", stop_at=update)
    go_on(config, tmp_path / "bits")
    assert_same_run(tmp_path / "bits", tmp_path / "whole")


@pytest.mark.parametrize("stop_at", [2, 9])  # before and after the lag is full
def test_a_lag_made_on_purpose_is_resumed_exactly(tmp_path, stop_at):
    config = normalising_config(CARTPOLE, UPDATES, debug=DebugConfig(policy_lag=4))
    train(config, tmp_path / "whole")
    train(config, tmp_path / "halves", stop_at=stop_at)
    go_on(config, tmp_path / "halves")
    assert_same_run(tmp_path / "halves", tmp_path / "whole")
    lags = [row["rollout/policy_lag_max"] for row in steady_rows(tmp_path / "whole")]
    assert lags == [min(update, 4) for update in range(UPDATES)]


def test_the_seed_alone_decides_the_weights_whatever_the_vectorizer(tmp_path):
    def trained(name, seed):
        folder = tmp_path / f"{name}{seed}"
        train(normalising_config(CARTPOLE, 6, vectorizer=vectorizer(name), seed=seed), folder)
        return policy_hash(folder)

    hashes = {name: trained(name, 1) for name in of_python_envs(lock_step=True)}
    assert len(hashes) >= 3
    assert len(set(hashes.values())) == 1
    assert trained("serial", 2) != hashes["serial"]


def test_an_irreproducible_env_is_named_and_begins_anew_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = normalising_config(
        env=EnvConfig(name="toy", id="parl/Irreproducible-v0", kwargs={"length": 50}), updates=UPDATES
    )
    train(config, tmp_path / "run", stop_at=3)
    rows = steady_rows(tmp_path / "run")
    with pytest.raises(EnvError, match=r"env \d cannot be resumed exactly.*checkpoint\.env=reset"):
        resume_run(ResumeCommand(run="run"))
    assert steady_rows(tmp_path / "run") == rows  # a resume that fails leaves the run as it was
    assert main(["resume", "run=run", "checkpoint.env=reset"]) == 0
    after = steady_rows(tmp_path / "run")
    assert after[:3] == rows
    assert len(after) == UPDATES


def test_a_finished_run_is_resumed_only_with_more_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_run(normalising_config(PENDULUM, 4), tmp_path / "run", [])
    capsys.readouterr()
    assert main(["resume", "run=run"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"parl: error: run=run: finished, 256 of 256 .* total_steps=\d+ .*\n", error)
    assert main(["resume", "run=run", f"total_steps={8 * ROLLOUT}"]) == 0
    train(normalising_config(PENDULUM, 8), tmp_path / "straight")
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_the_latest_run_is_resumed_by_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run=latest"]) == 2
    assert capsys.readouterr().err.startswith("parl: error: run=latest: there is no run with a checkpoint")
    train_run(normalising_config(PENDULUM, 2), tmp_path / "outputs" / "name" / "run", [])
    assert main(["resume", "run=latest", f"total_steps={3 * ROLLOUT}"]) == 0
    assert RunDir.open("outputs/name/run").info()["env_steps"] == 3 * ROLLOUT


def killed_in_its_next_update(monkeypatch, job):
    """Run a job, and break it off before it can save anything more."""
    from parl_cli.training.learner import Learner

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", give_up)
        with pytest.raises(KeyboardInterrupt):
            job()


def give_up(learner, rollouts):
    raise KeyboardInterrupt  # as a second Ctrl-C does


def budget(run):
    return load.read(run).config["total_steps"]


@pytest.mark.parametrize("updates", [8, 6])  # more and fewer than the 7 of before
def test_a_new_budget_is_the_runs_own_from_the_first_moment(tmp_path, monkeypatch, updates):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(PENDULUM, 7), tmp_path / "run", stop_at=4)
    new = ResumeCommand(run="run", total_steps=updates * ROLLOUT)
    killed_in_its_next_update(monkeypatch, lambda: resume_run(new))
    assert int(checkpoint.last(tmp_path / "run").name) == 4 * ROLLOUT
    assert checkpoint.load(checkpoint.last(tmp_path / "run")).config["total_steps"] == 7 * ROLLOUT
    assert budget(tmp_path / "run") == updates * ROLLOUT
    killed_in_its_next_update(monkeypatch, lambda: resume_run(ResumeCommand(run="run")))
    resume_run(ResumeCommand(run="run"))
    assert steady_rows(tmp_path / "run")[-1]["env_steps"] == updates * ROLLOUT == budget(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"finished, {updates * ROLLOUT} of {updates * ROLLOUT} steps"):
        resume_run(ResumeCommand(run="run"))


def test_a_finished_run_that_was_killed_as_it_went_on_equals_a_straight_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_run(normalising_config(PENDULUM, 4), tmp_path / "run", [])
    train(normalising_config(PENDULUM, 8), tmp_path / "straight")
    more = ResumeCommand(run="run", total_steps=8 * ROLLOUT)
    killed_in_its_next_update(monkeypatch, lambda: resume_run(more))
    resume_run(ResumeCommand(run="run"))
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    config = [(tmp_path / run / "config.yaml").read_text() for run in ("run", "straight")]
    assert config[0] == config[1]


def test_a_new_budget_counts_before_there_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(PENDULUM, 2), tmp_path / "run")
    checkpoint.remove(checkpoint.last(tmp_path / "run"))
    (tmp_path / "run/metrics.jsonl").write_bytes(b"")
    resume_run(ResumeCommand(run="run", total_steps=3 * ROLLOUT))
    assert steady_rows(tmp_path / "run")[-1]["env_steps"] == 3 * ROLLOUT == budget(tmp_path / "run")


def test_a_resume_that_is_refused_leaves_the_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(PENDULUM, 4), tmp_path / "run")
    before = tree(tmp_path)
    for less in (1, 4 * ROLLOUT):
        with pytest.raises(ConfigError, match="finished"):
            resume_run(ResumeCommand(run="run", total_steps=less))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_config_is_said_and_mended_from_the_checkpoint(tmp_path, monkeypatch, caplog, damage):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(PENDULUM, 4), tmp_path / "run", stop_at=2)
    damage(tmp_path / "run" / "config.yaml")
    resume_run(ResumeCommand(run="run"))
    assert f"total_steps is the checkpoint's, {4 * ROLLOUT}" in caplog.text
    assert budget(tmp_path / "run") == 4 * ROLLOUT


def test_a_checkpoint_that_a_killed_save_had_put_aside_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(PENDULUM, 4), tmp_path / "whole")
    train(normalising_config(PENDULUM, 4), tmp_path / "run", stop_at=2)
    last = checkpoint.last(tmp_path / "run")
    last.rename(last.with_name(f".{last.name}-0badcafe.old"))
    resume_run(ResumeCommand(run="run"))
    assert RunDir.open("run").info()["resumed_at"] == [2 * ROLLOUT]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_was_stopped_in_its_last_update_is_finished_by_resume(tmp_path, monkeypatch, capsys):
    """The signal came when the budget was used up; nothing is left to do but to say so."""
    monkeypatch.chdir(tmp_path)
    train(normalising_config(PENDULUM, 4), tmp_path / "run", stop_at=4)
    run = RunDir.open("run")
    assert run.info()["status"] == "interrupted"
    before = policy_hash(tmp_path / "run")
    capsys.readouterr()
    assert main(["resume", "run=run", f"total_steps={3 * ROLLOUT}"]) == 2  # less than it has done
    assert "finished, 256 of 192 steps are done; add total_steps=512" in capsys.readouterr().err
    assert main(["resume", "run=run"]) == 0
    assert run.info()["status"] == "finished"
    assert policy_hash(tmp_path / "run") == before
    assert len(steady_rows(tmp_path / "run")) == 4


def test_a_warm_started_run_resumes_without_what_it_was_warmed_up_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(CARTPOLE, 2), tmp_path / "source")
    config = normalising_config(CARTPOLE, 4, init_from="source")
    train_run(config, tmp_path / "whole", [])
    with pytest.raises(SystemExit) as stop:
        stop_early(monkeypatch, 2, lambda: train_run(config, tmp_path / "halves", []))
    assert stop.value.code == 130
    (tmp_path / "source").rename(tmp_path / "gone")
    resume_run(ResumeCommand(run="halves"))
    assert_same_run(tmp_path / "halves", tmp_path / "whole")
    cold = normalising_config(CARTPOLE, 4)
    train(cold, tmp_path / "cold")
    assert policy_hash(tmp_path / "cold") != policy_hash(tmp_path / "whole")


def stop_early(monkeypatch, update, job):
    """Run a job of the command line, and press Ctrl-C during an update."""
    from parl_cli.training.learner import Learner

    step = Learner.step

    def step_and_stop(self, rollouts):
        metrics = step(self, rollouts)
        if self.updates == update:
            signal.raise_signal(signal.SIGINT)
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", step_and_stop)
        job()


def test_going_back_to_an_earlier_step_drops_the_checkpoints_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = normalising_config(CARTPOLE, 6, checkpoint=CheckpointConfig(every_steps=ROLLOUT, keep=5))
    train_run(config, tmp_path / "run", [])
    before = policy_hash(tmp_path / "run")
    with pytest.raises(SystemExit):
        stop_early(monkeypatch, 3, lambda: resume_run(ResumeCommand(run="run", step=2 * ROLLOUT)))
    steps = [int(path.name) // ROLLOUT for path in checkpoint.numbered(tmp_path / "run/checkpoints")]
    assert steps == [2, 3]
    assert len(steady_rows(tmp_path / "run")) == 3
    resume_run(ResumeCommand(run="run"))
    assert policy_hash(tmp_path / "run") == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = normalising_config(CARTPOLE, 4)
    train_run(config, tmp_path / "whole", [])
    train(config, tmp_path / "run", stop_at=2)
    checkpoint.remove(checkpoint.last(tmp_path / "run"))
    (tmp_path / "run/metrics.jsonl").write_bytes(b"")
    resume_run(ResumeCommand(run="run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_lost_its_checkpoints_keeps_its_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(normalising_config(CARTPOLE, 4), tmp_path / "run", stop_at=2)
    checkpoint.last(tmp_path / "run").rename(tmp_path / "run/checkpoints/best")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"run=run: has rows of metrics, but no checkpoint to go on from; bring"):
        resume_run(ResumeCommand(run="run", total_steps=100_000))
    assert tree(tmp_path) == before


# ---- the real command line ----


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = parl(*TRAIN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "rows", "extra", "code"),
    [
        (signal.SIGINT, 1, (), 130),
        (signal.SIGINT, 13, (), 130),
        (signal.SIGINT, 30, ("vectorizer=subprocess", "vectorizer.num_workers=2"), 130),
        (signal.SIGTERM, 7, (), 143),
    ],
)
def test_a_signal_finishes_the_update_saves_and_says_how_to_go_on(
    tmp_path, monkeypatch, uninterrupted, number, rows, extra, code
):
    with Parl(*TRAIN, *extra, cwd=tmp_path) as process:
        process.wait_for_rows(tmp_path / "run", rows)
        os.killpg(process.process.pid, number)  # as a terminal does: to the workers too
        found, out, err = process.end()
    assert found == code
    assert "parl resume run=run" in out
    assert "Traceback" not in err
    assert rows <= len(steady_rows(tmp_path / "run")) < CLI_UPDATES
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run=run"]) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("extra", [(), ("vectorizer=subprocess", "vectorizer.num_workers=2")])
def test_killed_at_random_moments_again_and_again_it_ends_the_same(tmp_path, monkeypatch, uninterrupted, extra):
    rng = random.Random(len(extra))
    run = tmp_path / "run"
    command = [*TRAIN, *extra, f"checkpoint.every_steps={10 * ROLLOUT}"]
    for kills in range(3):
        with Parl(*command, cwd=tmp_path) as process:
            if kills == 0:  # before the first checkpoint after step 0
                process.wait_for_rows(run, 4)
            else:
                done = len(checkpoint_rows(run))
                process.wait_for_rows(run, min(done + rng.randrange(5, 30), CLI_UPDATES - 30))
                time.sleep(rng.uniform(0, 0.03))
            process.process.kill()
            assert process.end()[0] == -signal.SIGKILL
        command = ["resume", "run=run"]
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run=run"]) == 0
    assert_same_run(run, uninterrupted)
    assert not list((run / "checkpoints").glob(".*"))


def checkpoint_rows(run):
    """The rows that a resume keeps: those before the last checkpoint."""
    steps = int(checkpoint.last(run).name)
    return [row for row in steady_rows(run) if row["env_steps"] <= steps]


def test_killed_while_it_starts_it_can_be_resumed(tmp_path, uninterrupted):
    with Parl(*TRAIN, cwd=tmp_path) as process:
        process.wait_for((tmp_path / "run/run.json").exists)
        process.process.kill()
        process.end()
    done = parl("resume", "run=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "run", uninterrupted)
