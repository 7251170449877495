import json
import os

import pytest

from parl_cli.config import ResumeCommand
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.sweeps import ledger as ledger_module
from parl_cli.sweeps.ledger import State, is_below, is_sweep, read, write_json
from parl_cli.sweeps.options import Objective, SearchConfig, SweepConfig
from parl_cli.sweeps.run import resume_sweep
from tests.helpers.runs import edit_json
from tests.helpers.sweeps import CONFIG, new_ledger


def test_what_is_saved_is_what_is_read(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"], num_jobs=3)
    ledger.jobs[1].state, ledger.jobs[1].result = State.DONE, {"return_mean": 9.5}
    ledger.plugins = ["my.plugin"]
    ledger.save()
    assert is_sweep(tmp_path)
    assert read(str(tmp_path)) == ledger


def test_a_search_keeps_its_objectives(tmp_path):
    ledger = new_ledger(tmp_path, [])
    ledger.options = SearchConfig(objectives=[Objective(take="last")], space={"algo.gamma": "interval(0,1)"})
    ledger.save()
    assert read(str(tmp_path)).options == ledger.options


def test_a_job_knows_what_it_is(tmp_path):
    new_ledger(tmp_path, ["seed=1"])
    assert json.loads((tmp_path / "0" / "job.json").read_text()) == {
        "argv": ["parl", "train", "seed=1"],
        "config": CONFIG,
    }


def test_labels_leave_out_what_all_jobs_share(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"])
    for job in ledger.jobs:
        job.overrides.insert(0, "env=cartpole")
    assert ledger.labels() == ["seed=1", "seed=2"]
    del ledger.jobs[1]
    assert ledger.labels() == ["env=cartpole seed=1"]
    ledger.jobs.clear()
    assert ledger.labels() == []


def test_only_one_process_runs_a_sweep(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"])
    with ledger.held(), pytest.raises(ConfigError, match="another process runs this sweep"), ledger.held():
        pass
    with ledger.held():
        pass


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values.pop("jobs"), "KeyError"),
        (lambda values: values.update(format=99), "format 99"),
        (lambda values: values["jobs"][0].update(state="lost"), "lost"),
        (lambda values: values["jobs"][0].update(attempts="many"), "attempts of job 0"),
        (lambda values: values["jobs"][0].update(number=1), "job 1"),
        (lambda values: values["jobs"][0].update(extra=1), "extra"),
        (lambda values: values["jobs"][0].update(folder="../0"), "../0"),
        (lambda values: values["jobs"][0].update(folder="/tmp"), "/tmp"),
        (lambda values: values["jobs"][0].update(folder="."), "damaged"),
        (lambda values: values["jobs"][0].update(folder="out"), "out"),
        (lambda values: values["jobs"][0].update(overrides=["\x1b[2J"]), "damaged"),
        (lambda values: values["options"].update(num_jobs=-1), "num_jobs"),
        (lambda values: values.update(base={"config": {"a": "${oc.env:HOME}"}}), "interpolation"),
        (lambda values: values.update(base={"config": {"env": {"id": "evil:Env-v0"}}}), "would import a module"),
        (lambda values: values.update(base={"config": ["a"]}), "base.config is no object"),
    ],
)
def test_a_damaged_or_hostile_ledger_is_refused_in_one_line(tmp_path, change, words):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (tmp_path / "elsewhere").mkdir()
    new_ledger(sweep, ["seed=1"])
    os.symlink(tmp_path / "elsewhere", sweep / "out")
    edit_json(sweep / "sweep.json", change)
    with pytest.raises(CheckpointError) as caught:
        read(str(sweep))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_search_s_base_config_imports_nothing_that_the_user_did_not_name(tmp_path, monkeypatch):
    (tmp_path / "evilmod.py").write_text("open('imported', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sweep").mkdir()
    ledger = new_ledger(tmp_path / "sweep", [])
    ledger.options = SearchConfig(space={"algo.gamma": "interval(0,1)"})
    ledger.base = {"config": {**CONFIG, "plugins": ["evilmod"]}, "overrides": []}
    ledger.save()
    with pytest.raises(ConfigError, match=r"used plugins=\[evilmod\], which a file may not import"):
        resume_sweep(ResumeCommand(run=str(tmp_path / "sweep")))
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["0/console.log", "0/metrics.jsonl", "0/checkpoints", "study.journal", "experiment"])
def test_a_link_in_a_sweep_is_refused_unless_it_is_latest(tmp_path, name):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    new_ledger(sweep, ["seed=1"])
    (sweep / "latest").symlink_to("0")
    assert read(str(sweep)).jobs
    (sweep / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name.split('/')[-1]} is a link"):
        read(str(sweep))


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"sweep\.json is not a JSON object"):
        read(str(tmp_path))


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".x.json.tmp").symlink_to(precious)
    write_json(tmp_path / "x.json", {"a": 1})
    assert precious.read_text() == "mine"
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger_module.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("folder", "below"), [("0", True), ("a/b", True), ("", False), (".", False), ("a/../b", False), ("/a", False)]
)
def test_folders_below(folder, below):
    assert is_below(folder) is below


def test_default_options_are_those_of_a_grid():
    assert SweepConfig() == SweepConfig(num_jobs=None, retries=1, job_memory_mb=500)
