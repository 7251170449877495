"""What a job's process does, called in this one; tests/integration/test_sweep.py has real ones."""

import json
import shutil

import pytest

from parl_cli.config import to_plain
from parl_cli.sweeps import child
from parl_cli.training.run_dir import RunDir
from tests.helpers.runs import ROLLOUT, edit_json, normalising_config, policy_hash, tree


@pytest.fixture
def job(tmp_path):
    config = to_plain(normalising_config(updates=2))
    (tmp_path / "job.json").write_text(json.dumps({"argv": ["parl", "train"], "config": config}))
    return tmp_path


def status(folder):
    return RunDir(folder).info()["status"]


def test_a_job_is_trained_from_its_description(job):
    assert child._attempt(job, []) == (0, {"status": "finished"})
    assert child._known(job)["env_steps"] == 2 * ROLLOUT
    assert RunDir(job).info()["argv"] == ["parl", "train"]


def test_a_job_that_is_done_is_left_alone(job):
    child._attempt(job, [])
    before = tree(job)
    assert child._attempt(job, []) == (0, {"status": "finished"})
    assert tree(job) == before


def test_a_job_killed_before_it_could_say_that_it_is_finished_says_so(job):
    child._attempt(job, [])
    before = policy_hash(job)
    edit_json(job / "run.json", lambda info: info.update(status="running"))
    assert child._attempt(job, []) == (0, {"status": "finished"})
    assert status(job) == "finished"
    assert policy_hash(job) == before


def test_a_job_killed_before_its_first_checkpoint_begins_again(job):
    child._attempt(job, [])
    before = policy_hash(job)
    edit_json(job / "run.json", lambda info: info.update(status="running"))
    shutil.rmtree(job / "checkpoints")
    (job / "metrics.jsonl").write_bytes(b"")
    assert child._attempt(job, []) == (0, {"status": "finished"})
    assert policy_hash(job) == before


def test_bad_input_and_bugs_are_told_in_one_line(job, capsys):
    edit_json(job / "job.json", lambda spec: spec["config"].update(seed=-1))
    code, ended = child._attempt(job, [])
    assert code == 2
    assert ended["error"].startswith("seed=-1: must be at least 0")
    (job / "job.json").write_text("{}")
    code, ended = child._attempt(job, [])
    assert (code, ended["error"]) == (1, "KeyError: 'config'")
    assert "Traceback" in capsys.readouterr().err


def test_a_description_from_elsewhere_can_name_no_module(job):
    for change, words in (
        (lambda spec: spec["config"].update(plugins=["os"]), "plugins=[os]"),
        (lambda spec: spec["config"]["env"].update(id="os:CartPole-v1"), "would import a module"),
        (lambda spec: spec["config"].update(name="${oc.env:HOME}"), "interpolation"),
    ):
        spec = (job / "job.json").read_text()
        edit_json(job / "job.json", change)
        code, ended = child._attempt(job, [])
        assert code == 2
        assert words in ended["error"]
        (job / "job.json").write_text(spec)
