"""Sweeps in a cluster. There is no Slurm here: its commands are `tests/helpers/fake_slurm.py`, submitit is real."""

import json
import os
import signal

import psutil
import pytest

from tests.helpers import fake_slurm
from tests.helpers.cli import parl
from tests.helpers.runs import Parl, policy_hash, tree
from tests.integration.test_sweep import JOB, LONG, PLUGIN, states, sweep_json, wait_until

pytest.importorskip("submitit")

CLUSTER = ("sweep.cluster=slurm", "sweep.slurm.query_s=0.2", "hydra.sweep.dir=sweep")
NAP = ("checkpoint.every_steps=320",)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of a fake Slurm, whose commands are on the PATH; nothing of it is left running."""
    folder = tmp_path / "cluster"
    for name, value in fake_slurm.install(folder).items():
        monkeypatch.setenv(name, value)
    yield folder
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            process.kill()


def live(cluster):
    return [job for job in fake_slurm.jobs(cluster) if job["state"] not in fake_slurm.OVER]


def test_jobs_run_in_the_cluster_with_what_was_asked_for(tmp_path, cluster):
    asked = (
        'sweep.slurm.partition="gpu,cpu"',
        "sweep.slurm.time_min=30",
        "sweep.slurm.cpus=2",
        "sweep.slurm.memory_mb=900",
    )
    done = parl("train", "-m", *JOB, "seed=1,2", *CLUSTER, *asked, "sweep.slurm.gres=gpu:1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 jobs done: sweep" in done.stdout
    assert states(tmp_path / "sweep") == ["done"] * 2
    submitted = fake_slurm.jobs(cluster)
    assert [job["cluster_id"] for job in sweep_json(tmp_path / "sweep")["jobs"]] == ["1", "2"]
    options = submitted[0]["options"]
    assert {key: options[key] for key in ("partition", "time", "cpus-per-task", "mem", "gres", "signal")} == {
        "partition": "gpu,cpu",
        "time": "30",
        "cpus-per-task": "2",
        "mem": "900M",
        "gres": "gpu:1",
        "signal": "B:TERM@60",
    }
    assert "no-requeue" in options
    assert "96 steps" in (tmp_path / "sweep" / "0" / "console.log").read_text().replace("96/96", "96 steps")
    assert not list((tmp_path / "sweep").rglob("*.pkl"))
    assert parl("train", *JOB, "seed=2", "hydra.run.dir=alone", cwd=tmp_path).returncode == 0
    assert policy_hash(tmp_path / "sweep" / "1") == policy_hash(tmp_path / "alone")


def test_a_killed_parent_leaves_its_jobs_and_a_resume_adopts_them(tmp_path, cluster):
    fake_slurm.change(cluster, slots=1)
    sweep = tmp_path / "sweep"
    with Parl("train", "-m", *JOB, *LONG, "seed=1,2", *CLUSTER, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 3)
        child.wait_for(lambda: len(live(cluster)) == 2)
        child.process.kill()
        child.process.wait()
    assert [job["state"] for job in live(cluster)] == ["RUNNING", "PENDING"]
    # even where the ledger never learned the id
    ledger = sweep_json(sweep)
    ledger["jobs"][1].update(cluster_id="", state="waiting")
    (sweep / "sweep.json").write_text(json.dumps(ledger))

    with Parl("resume", "run=sweep", cwd=tmp_path) as child:
        child.wait_for(lambda: "job 1" in child.process.outputs[0])
        said = child.process.outputs[0].partition("job 1")[0]
        assert "2 of 2 jobs to run, in sweep; 2 of them run in the cluster already" in said
        child.process.send_signal(signal.SIGINT)
        returncode, out, err = child.end()
    assert returncode == 130, out + err
    assert len(fake_slurm.jobs(cluster)) == 2  # none was submitted twice
    assert [job["cluster_id"] for job in sweep_json(sweep)["jobs"]] == ["1", "2"]
    # Ctrl-C: what ran has saved, what waited was taken out of the queue
    assert states(sweep) == ["interrupted"] * 2
    wait_until(lambda: not live(cluster))
    assert json.loads((sweep / "0" / "run.json").read_text())["status"] == "interrupted"
    assert not (sweep / "1" / "run.json").exists()


def test_a_sweep_that_is_left_goes_on_without_a_parent(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    leave = ("sweep.slurm.on_interrupt=leave", "seed=1", "total_steps=6400", *NAP)
    with Parl("train", "-m", *JOB, *leave, *CLUSTER, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 2)
        os.killpg(child.process.pid, signal.SIGINT)
        returncode, out, err = child.end()
    assert returncode == 130, out + err
    assert "1 jobs go on in the cluster" in out
    assert states(sweep) == ["running"]
    wait_until(lambda: not live(cluster))
    before = tree(sweep / "0")
    done = parl("resume", "run=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(sweep) == ["done"]
    assert tree(sweep / "0") == before
    assert len(fake_slurm.jobs(cluster)) == 1


def test_a_job_that_comes_to_the_end_of_its_time_saves_and_is_submitted_again(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    args = ("seed=1", "sweep.slurm.time_min=5", "sweep.retries=0", "total_steps=6400", "checkpoint.every_steps=100000")
    with Parl("train", "-m", *JOB, *args, *CLUSTER, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 12)
        fake_slurm.end(cluster, fake_slurm.jobs(cluster)[0], "FAILED", signal.SIGTERM)  # what B:TERM@60 comes to
        returncode, out, err = child.end()
    assert returncode == 0, out + err
    assert "came to the end of its time in the cluster; it is begun again where it was saved" in out
    first, second = fake_slurm.jobs(cluster)
    assert first["name"] == second["name"]
    assert json.loads((sweep / "0" / "run.json").read_text())["resumed_at"][0] > 0
    assert states(sweep) == ["done"]


def test_what_the_cluster_kills_is_told_and_the_rest_finishes(tmp_path, cluster):
    (tmp_path / "fragile.py").write_text(PLUGIN)
    job = ("env=gym", "env.id=Fragile-v0", "plugins=[fragile]", *JOB[1:], "sweep.retries=0")
    done = parl("train", "-m", *job, "env.kwargs.mode=raise,kill,fine", *CLUSTER, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert states(tmp_path / "sweep") == ["failed", "failed", "done"]
    assert "job 0 (mode=raise) failed: env 0 " in done.stdout
    assert "job 1 (mode=kill) failed: ended in the cluster as 2: FAILED" in done.stdout


def test_a_job_ended_for_its_memory_says_so_and_a_preempted_one_goes_on(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    args = ("seed=1,2", "sweep.retries=0", "total_steps=6400", *NAP)
    with Parl("train", "-m", *JOB, *args, *CLUSTER, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 12)
        child.wait_for_rows(sweep / "1", 12)
        fake_slurm.end(cluster, fake_slurm.jobs(cluster)[0], "OUT_OF_MEMORY", signal.SIGKILL)
        fake_slurm.end(cluster, fake_slurm.jobs(cluster)[1], "PREEMPTED", signal.SIGTERM)
        returncode, out, err = child.end()
    assert returncode == 1, out + err
    assert states(sweep) == ["failed", "done"]
    assert "ended in the cluster as 1: OUT_OF_MEMORY; ask for more with sweep.slurm.memory_mb" in out
    assert "was preempted; it is begun again where it was saved" in out
    assert json.loads((sweep / "1" / "run.json").read_text())["resumed_at"][0] > 0


def test_a_job_that_a_person_cancels_stays_cancelled(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    with Parl("train", "-m", *JOB, *LONG, "seed=1", *CLUSTER, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 3)
        fake_slurm.scancel(cluster, {}, ["1"])
        returncode, out, err = child.end()
    assert returncode == 1, out + err
    assert states(sweep) == ["interrupted"]
    assert len(fake_slurm.jobs(cluster)) == 1


def test_a_search_runs_in_the_cluster(tmp_path, cluster):
    space = ("sweep=search", "algo.gamma=interval(0.5,1)", "sweep.num_trials=3", "sweep.num_jobs=2")
    done = parl("train", "-m", *JOB, *space, *CLUSTER, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(tmp_path / "sweep") == ["done"] * 3
    assert len(fake_slurm.jobs(cluster)) == 3


def test_while_the_cluster_does_not_answer_nothing_is_started_twice(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    with Parl("train", "-m", *JOB, "total_steps=6400", *NAP, "seed=1", *CLUSTER, cwd=tmp_path) as child:
        child.wait_for_rows(sweep / "0", 2)
        fake_slurm.change(cluster, down=True)
        child.wait_for_rows(sweep / "0", 4)
        child.process.kill()
        child.process.wait()
    refused = parl("resume", "run=sweep", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "nothing is submitted until it answers" in refused.stderr
    fake_slurm.change(cluster)
    done = parl("resume", "run=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(sweep) == ["done"]
    assert len(fake_slurm.jobs(cluster)) == 1
