"""`parl_cli.Experiment` and its run folder: what is written, when, and that nothing else is touched."""

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from parl_cli import Experiment, build
from parl_cli.cli import main
from parl_cli.config import ResumeCommand
from parl_cli.errors import ConfigError, ParlError, WorkerError
from parl_cli.jobs import resume_run
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.training import checkpoint
from parl_cli.training.run_dir import RunDir
from tests.helpers.experiments import TINY, Broken, compose
from tests.helpers.runs import ROLLOUT, edit_json, policy_hash, reseal, steady_rows, tree
from tests.helpers.stubs import weights_hash

pytestmark = pytest.mark.usefixtures("workplace")


def test_nothing_is_written_without_a_run_folder(workplace):
    with compose("logger=default", "eval.every_steps=64", "eval.episodes=2", "checkpoint.every_steps=64") as experiment:
        experiment.train()
        experiment.evaluate(2)
    assert not list(workplace.iterdir())


def test_with_a_run_folder_it_is_what_the_command_line_leaves(workplace):
    words = ["logger.plot=true", "logger.sinks.csv={}", "eval.every_steps=128", "eval.episodes=2"]
    with compose(*words, run_dir="mine/run") as experiment:
        experiment.train(3 * ROLLOUT)
        experiment.train()
    assert main(["train", *TINY, *words, "hydra.run.dir=theirs/run"]) == 0
    mine, theirs = workplace / "mine" / "run", workplace / "theirs" / "run"
    assert policy_hash(mine) == policy_hash(theirs)
    assert steady_rows(mine) == steady_rows(theirs)
    names = {path.name for path in theirs.iterdir()} - {"console.log"}
    assert {path.name for path in mine.iterdir()} == names
    assert (mine.parent / "latest").resolve() == mine
    info = json.loads((mine / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["env_steps"] == 8 * ROLLOUT
    assert main(["resume", "run=mine/run", f"total_steps={9 * ROLLOUT}"]) == 0


def test_the_clock_stands_still_between_calls_of_train(workplace):
    with compose(run_dir="run") as experiment:
        experiment.train(2 * ROLLOUT)
        trained = experiment.metrics.time_s
        experiment.evaluate(20)
        assert experiment.metrics.time_s == trained
        experiment.train(2 * ROLLOUT)
    times = [row["time_s"] for row in read_jsonl(workplace / "run" / "metrics.jsonl")]
    assert times == sorted(times)
    assert len(times) == 4


def test_ctrl_c_while_the_last_checkpoint_is_written_is_told(workplace, monkeypatch):
    with compose(run_dir="run") as experiment:
        save = experiment.keeper.checkpoints.save

        def interrupted(path):
            if experiment.env_steps:
                signal.raise_signal(signal.SIGINT)
            save(path)

        monkeypatch.setattr(experiment.keeper.checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(2 * ROLLOUT)
    assert RunDir(workplace / "run").info()["status"] == "finished"


def test_the_clock_stands_still_after_a_hook_that_raised(workplace):
    with Experiment.compose(TINY, run_dir="run", hooks=[Broken()]) as experiment:
        with pytest.raises(RuntimeError, match="the hook broke"):
            experiment.train(ROLLOUT)
        stopped = experiment.metrics.time_s
        assert experiment.metrics.time_s == stopped


def test_a_run_is_nobody_elses_while_its_experiment_is_open(workplace):
    with compose(run_dir="run") as experiment:
        experiment.train(ROLLOUT)
        with pytest.raises(ConfigError, match="another process is training it"):
            resume_run(ResumeCommand(run="run"))
    resume_run(ResumeCommand(run="run"))
    assert RunDir(workplace / "run").info()["status"] == "finished"


def test_a_run_folder_stays_where_it_is_when_the_working_directory_changes(workplace, monkeypatch):
    (workplace / "elsewhere").mkdir()
    with compose(run_dir="run") as experiment:
        experiment.train(ROLLOUT)
        monkeypatch.chdir("elsewhere")
        experiment.train(ROLLOUT)
    assert checkpoint.last(workplace / "run").name == str(2 * ROLLOUT)
    assert not any((workplace / "elsewhere").iterdir())


def test_beyond_the_budget_rows_and_evaluations_keep_their_interval(workplace):
    words = [f"total_steps={2 * ROLLOUT}", f"eval.every_steps={4 * ROLLOUT}", "eval.episodes=1"]
    with compose(*words, run_dir="run") as experiment:
        experiment.train(7 * ROLLOUT)
    rows = list(read_jsonl(workplace / "run" / "metrics.jsonl"))
    evaluated = [row["env_steps"] for row in rows if "eval/return_mean" in row]
    assert evaluated == [2 * ROLLOUT, 4 * ROLLOUT]


def test_a_loaded_experiment_writes_a_run_of_its_own(workplace):
    with compose(run_dir="first") as experiment:
        experiment.train(3 * ROLLOUT)
    before = tree(workplace / "first")
    with Experiment.load("first", run_dir="second") as heir:
        heir.train()
    assert tree(workplace / "first") == before
    assert [row["env_steps"] for row in steady_rows(workplace / "second")] == [ROLLOUT * n for n in range(4, 9)]
    assert main(["resume", "run=second", f"total_steps={9 * ROLLOUT}"]) == 0


def test_a_taken_run_folder_is_refused_and_left_alone(workplace):
    with compose(run_dir="run") as experiment:
        experiment.train(ROLLOUT)
    before = tree(workplace / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        compose(run_dir="run")
    with pytest.raises(ConfigError, match="holds a run already"):
        Experiment.load("run", run_dir="run")
    assert tree(workplace / "run") == before


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoints/10/policy.safetensors", "config.yaml"])
def test_a_folder_with_anything_in_it_is_refused_and_left_alone(workplace, name):
    with compose() as experiment:
        experiment.save("saved")
    (workplace / "mine" / name).parent.mkdir(parents=True)
    (workplace / "mine" / name).write_text("words")
    before = tree(workplace)
    for begin in (compose, lambda run_dir: Experiment.load("saved", run_dir=run_dir)):
        with pytest.raises(ConfigError, match=r"run_dir=mine: is not empty; name a folder that is new or empty$"):
            begin(run_dir="mine")
    assert tree(workplace) == before


def test_an_empty_folder_is_taken(workplace):
    (workplace / "run").mkdir()
    with compose(run_dir="run") as experiment:
        experiment.train(ROLLOUT)
    assert RunDir(workplace / "run").info()["status"] == "finished"


def test_a_run_that_is_refused_as_it_starts_leaves_nothing(workplace, monkeypatch):
    with pytest.raises(ConfigError, match="nowhere"):
        compose("init_from=nowhere", run_dir="deep/run")
    monkeypatch.setattr(build, "make_pool", refuse)
    with pytest.raises(ConfigError, match="refused"):
        compose(run_dir="deep/run")
    assert not list(workplace.iterdir())


def refuse(*args):
    raise ConfigError("refused")


def too_many_files(*args):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def dead_worker(*args):
    raise WorkerError("worker 0 died")


@pytest.mark.parametrize(
    ("breaks", "kind", "words"),
    [
        (too_many_files, OSError, "OSError: [Errno 24] Too many open files"),  # the folder can be written all right
        (dead_worker, WorkerError, "WorkerError: worker 0 died"),
    ],
)
def test_a_run_that_breaks_as_it_starts_says_so(workplace, monkeypatch, breaks, kind, words):
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_pool", breaks)
        with pytest.raises(kind):
            compose(run_dir="run")
    info = RunDir(workplace / "run").info()
    assert (info["status"], info["error"]) == ("failed", words)
    assert main(["resume", "run=run"]) == 0
    info = RunDir(workplace / "run").info()
    assert (info["status"], "error" in info) == ("finished", False)


def test_loading_that_breaks_leaves_nothing(workplace, monkeypatch):
    with compose() as experiment:
        experiment.save("saved")
    before = tree(workplace)
    monkeypatch.setattr(build, "make_pool", too_many_files)
    with pytest.raises(OSError, match="Too many open files"):
        Experiment.load("saved", run_dir="deep/run")
    assert tree(workplace) == before


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_only_what_cannot_be_written_into_the_run_folder_is_called_so(workplace, monkeypatch):
    def open_something(learner, metrics):
        Path("no/such/file").read_text()

    with compose(run_dir="one", hooks=[SimpleNamespace(after_update=open_something)]) as experiment:
        with pytest.raises(FileNotFoundError):
            experiment.train()
        assert RunDir(workplace / "one").info()["error"].startswith("FileNotFoundError: ")
    with compose(run_dir="two") as experiment:
        monkeypatch.setattr(checkpoint, "_write_synced", full_disk)
        with pytest.raises(ParlError, match=r"512: cannot be written \(No space left .* then parl resume run=\S+/two$"):
            experiment.train()
        assert "No space left" in RunDir(workplace / "two").info()["error"]
    with pytest.raises(ConfigError, match=r"cannot write to .*No space left.* run_dir="):
        compose(run_dir="three")
    assert not (workplace / "three").exists()


def test_weights_that_were_set_are_in_the_checkpoint_that_a_run_goes_on_from(workplace):
    with compose("seed=7") as source:
        weights, wanted = source.get_parameters(), weights_hash(source.policy)

    def weights_in_the_run():
        with Experiment.load("run") as experiment:
            assert experiment.env_steps == 2 * ROLLOUT
            return weights_hash(experiment.policy)

    with compose(run_dir="run") as experiment:
        experiment.train(2 * ROLLOUT)
        trained = weights_in_the_run()
        experiment.set_parameters(weights)
        experiment.train(0)
        assert weights_in_the_run() == wanted != trained
        experiment.set_parameters({"default": "run/checkpoints/0"})
        begun = weights_hash(experiment.policy)
        experiment.hooks.append(Broken())
        with pytest.raises(RuntimeError, match="the hook broke"):
            experiment.train(ROLLOUT)
        assert weights_in_the_run() == begun != wanted


def test_while_it_trains_on_nothing_is_left_of_the_earlier_end(workplace):
    seen = []
    looks = SimpleNamespace(after_update=lambda learner, metrics: seen.append(RunDir(workplace / "run").info()))
    with compose(run_dir="run", hooks=[looks]) as experiment:
        experiment.train(ROLLOUT)
        assert RunDir(workplace / "run").info()["reason"] == "budget"
        experiment.train(ROLLOUT)
    assert [info["status"] for info in seen] == ["running", "running"]
    assert not {"reason", "env_steps", "wall_s", "return_mean", "best_eval"} & set(seen[1])


def test_a_loaded_run_has_a_best_checkpoint_and_the_link_of_its_own(workplace):
    words = [f"eval.every_steps={ROLLOUT}", "eval.episodes=1"]
    with compose(*words, run_dir="first") as experiment:
        experiment.train(2 * ROLLOUT)
        experiment.save("saved")
    edit_json(workplace / "saved/training.json", lambda state: state["eval"].update(best=1e6, last=1e6))
    reseal(workplace / "saved")
    with Experiment.load("saved", run_dir="second") as heir:
        assert (workplace / "latest").resolve() == workplace / "second"
        heir.train(ROLLOUT)
        assert RunDir(workplace / "second").info()["best_eval"] == heir.eval.last
    assert checkpoint.load(workplace / "second/checkpoints/best").env_steps == 3 * ROLLOUT
    with Experiment.load("saved") as heir:  # there is no folder that could lack it
        assert heir.eval.best == 1e6
