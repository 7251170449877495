"""The run folder: made whole or not at all, and nothing in it is trusted when it is opened again."""

from __future__ import annotations

import json
import os

import pytest

from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.training import run_dir
from parl_cli.training.run_dir import RunDir
from tests.helpers.runs import tree

CONFIG = {"name": "test", "seed": 7, "env": {"id": "CartPole-v1"}}


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "outputs/test/one", CONFIG, ["parl", "train"])


def test_a_new_run_says_who_made_it_and_how(run):
    info = run.info()
    assert (info["status"], info["argv"], info["seed"]) == ("running", ["parl", "train"], 7)
    assert info["versions"]["torch"]
    assert run.config() == CONFIG
    assert run.checkpoints.is_dir()


def test_a_folder_that_holds_a_run_is_not_taken(run):
    with pytest.raises(ConfigError, match="holds a run already"):
        RunDir.create(run.path, CONFIG, [])


def test_status_is_rewritten_and_the_rest_kept(run):
    run.set_status("finished", env_steps=64)
    info = run.info()
    assert (info["status"], info["env_steps"], info["seed"]) == ("finished", 64, 7)
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize("status", ["running", "failed"])
def test_what_the_earlier_end_said_is_dropped_as_a_run_goes_on(run, status):
    begun = run.info()
    figures = {"reason": "budget", "env_steps": 64, "wall_s": 1.0, "return_mean": 2.0, "best_eval": 3.0}
    run.set_status("finished", error="an old one", **figures)
    run.set_status(status, resumed_at=[64])
    assert run.info() == begun | {"status": status, "resumed_at": [64]}


def test_why_it_failed_is_told_where_that_can_be_written(run, monkeypatch):
    run.set_failed(ValueError("no such thing"))
    assert (run.info()["status"], run.info()["error"]) == ("failed", "ValueError: no such thing")
    run.set_failed(ValueError(), "in other words")
    assert run.info()["error"] == "in other words"
    monkeypatch.setattr(run_dir.Path, "write_text", full_disk)
    run.set_failed(ValueError("unheard of"))
    assert run.info()["error"] == "in other words"


def test_the_config_can_be_written_anew(run):
    run.set_config(CONFIG | {"seed": 8})
    assert run.config() == CONFIG | {"seed": 8}
    assert not list(run.path.glob(".*"))


def test_latest_points_to_the_newest_run_and_a_users_own_is_kept(run):
    run.link_latest()
    second = RunDir.create(run.path.parent / "two", CONFIG, [])
    second.link_latest()
    link = run.path.parent / "latest"
    assert os.readlink(link) == "two"
    link.unlink()
    link.mkdir()
    run.link_latest()
    assert not link.is_symlink()


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("mine")
    for place in ("taken", "taken/run"):
        with pytest.raises(ConfigError, match=r"cannot write to .*hydra\.run\.dir"):
            RunDir.create(tmp_path / place, CONFIG, [])
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_run_that_cannot_start_leaves_only_what_was_there_before(tmp_path, monkeypatch):
    for name in ("notes.txt", "metrics.csv", "tensorboard/events"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    monkeypatch.setattr(RunDir, "set_status", full_disk)
    with pytest.raises(ConfigError, match="No space left"):
        RunDir.create(tmp_path, CONFIG, [])
    assert tree(tmp_path) == before
    with pytest.raises(ConfigError, match="No space left"):
        RunDir.create(tmp_path / "deep/run", CONFIG, [])
    assert tree(tmp_path) == before


def test_only_who_made_a_run_can_discard_it(run):
    before = tree(run.path)
    RunDir.open(str(run.path)).discard()
    assert tree(run.path) == before
    run.discard()
    assert not run.path.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/64/policy.safetensors"])
def test_what_is_left_of_a_run_is_not_taken_for_an_empty_folder(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("worth something")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        RunDir.create(tmp_path, CONFIG, [])
    assert tree(tmp_path) == before


def test_a_folder_in_which_a_job_was_killed_as_it_began_is_taken_again(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("job.json", "console.log", "config.yaml"):
        (tmp_path / name).write_text("{}")
    assert RunDir.create(tmp_path, CONFIG, []).info()["status"] == "running"


def full_disk(*args, **kwargs):
    raise OSError(28, os.strerror(28))


def test_a_folder_that_is_no_longer_writable_is_found_before_anything_is_done(run, monkeypatch):
    run.check_writable()
    assert run.info()["seed"] == 7
    monkeypatch.setattr(run_dir.Path, "write_text", full_disk)
    with pytest.raises(ConfigError, match=r"cannot write to it \(No space left"):
        run.check_writable()
    assert run.info()["seed"] == 7


def test_a_run_is_opened_by_its_folder_or_a_link_to_it(run, monkeypatch):
    run.link_latest()
    for text in (str(run.path), str(run.path.parent / "latest")):
        assert RunDir.open(text).path == run.path


@pytest.mark.parametrize("text", ["nowhere", "x" * 5000, "outputs", "outputs/test/one/run.json"])
def test_what_is_no_run_is_one_line(run, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunDir.open(text)


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval", ".run.json.tmp", "checkpoints/64", "checkpoints/.64-x.old"])
def test_a_link_that_leads_out_of_a_run_is_refused(run, tmp_path, name):
    (run.path / name).symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="is a link"):
        RunDir.open(str(run.path))


def test_a_left_over_temporary_link_is_not_written_through(run, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run.path / ".run.json.tmp").symlink_to(victim)
    run.set_status("finished")
    assert victim.read_text() == "mine"
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"a":' + b"9" * 10_000 + b"}"])
def test_a_run_json_that_cannot_be_read_says_nothing(run, data):
    (run.path / "run.json").write_bytes(data)
    assert run.info() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "not a YAML mapping"),
        ("a: [", "not a YAML mapping"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: &x [*x]", "aliases"),
        ("a: " + "[" * 60_000, "nested too deeply"),
        ("- " * 60_000, "nested too deeply"),
        ("a: " + "[1]" * 60_000, "instead of at most"),
        ("a: !!python/name:os.system", "not a YAML mapping"),
        ("a: ${oc.env:HOME}", "interpolation"),
        ("env: {id: 'os:Env-v0'}", "would import a module"),
        ("env: {kwargs: {_target_: x}}", "env.kwargs._target_"),
        ('a: "\\e[31m"', "control character"),
    ],
)
def test_a_config_that_is_more_than_values_is_refused(run, text, message):
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        run.config()


def test_a_run_is_held_by_one_process_at_a_time(tmp_path):
    run, other = RunDir(tmp_path), RunDir(tmp_path)
    with run.held():
        with run.held():
            pass  # the same one may nest
        with pytest.raises(ConfigError, match="another process is training it"), other.held():
            pass
    with run.held():
        pass  # free again
