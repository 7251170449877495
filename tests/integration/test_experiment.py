"""`parl_cli.Experiment`: the command line's experiment, from Python."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parl_cli import Experiment, build
from parl_cli.cli import main
from parl_cli.config import ResumeCommand
from parl_cli.errors import CheckpointError, ConfigError, EnvError, ParlError, WorkerError
from parl_cli.jobs import resume_run
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.training import checkpoint
from parl_cli.training.loop import StopTraining
from parl_cli.training.run_dir import RunDir
from tests.helpers.cli import environment
from tests.helpers.runs import CLI_TINY, ROLLOUT, edit_json, policy_hash, reseal, steady_rows, tree
from tests.helpers.stubs import weights_hash

TINY = ["env=cartpole", f"total_steps={8 * ROLLOUT}", *CLI_TINY]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working directory, in which every file that is written shows."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def compose(*overrides, **options):
    return Experiment.compose([*TINY, *overrides], **options)


def whole_state(experiment):
    """Everything that training depends on, to compare bit for bit."""

    def as_bytes(value):
        if isinstance(value, dict):
            return {name: as_bytes(inner) for name, inner in value.items()}
        return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value

    return as_bytes({"learner": experiment.learner.state_dict(), "pool": experiment.pool.state_dict()})


class Recorder:
    """A hook that remembers what it saw."""

    def __init__(self, stop_at=None, reason="enough"):
        self.seen = []
        self.stop_at = stop_at
        self.reason = reason

    def after_update(self, learner, metrics):
        self.seen.append((learner.env_steps, metrics["loss/value"]))
        if learner.updates == self.stop_at:
            raise StopTraining(self.reason)


class Broken:
    """A hook that raises."""

    def after_update(self, learner, metrics):
        raise RuntimeError("the hook broke")


# ---- training ----


def test_it_composes_as_the_command_line_does(workplace):
    with Experiment.compose(["env=pendulum", "algo.gamma=0.5", "num_envs=2"]) as experiment:
        assert experiment.config.env.id == "Pendulum-v1"
        assert experiment.config.algo.gamma == 0.5
        assert experiment.config.name == "ppo_pendulum"
        assert experiment.env_steps == 0


@pytest.mark.parametrize("parts", [[8 * ROLLOUT], [ROLLOUT] * 8, [100, 1, 250, 161], [0, 512]])
def test_several_calls_of_train_equal_a_long_one(parts):
    assert sum(parts) == 8 * ROLLOUT
    with compose() as whole:
        assert whole.train() == "budget"
        assert whole.env_steps == 8 * ROLLOUT
        wanted = whole_state(whole)
    with compose() as experiment:
        for part in parts:
            assert experiment.train(part) == "budget"
        assert whole_state(experiment) == wanted


def test_evaluating_and_copying_weights_in_between_changes_nothing():
    with compose() as whole:
        whole.train()
        wanted = whole_state(whole)
    with compose() as experiment:
        experiment.train(4 * ROLLOUT)
        experiment.evaluate(3)
        for value in experiment.get_parameters()["default"].values():
            value.zero_()
        experiment.train(4 * ROLLOUT)
        assert whole_state(experiment) == wanted


def test_training_without_a_number_ends_at_total_steps_and_may_go_beyond():
    with compose() as experiment:
        experiment.train(3 * ROLLOUT)
        experiment.train()
        assert experiment.env_steps == 8 * ROLLOUT
        experiment.train()
        assert experiment.env_steps == 8 * ROLLOUT
        experiment.train(2 * ROLLOUT)
        assert experiment.env_steps == 10 * ROLLOUT


def test_hooks_see_every_update_and_may_stop_one_call():
    hook = Recorder(stop_at=3)
    with compose(hooks=[hook]) as experiment:
        assert experiment.train() == "enough"
        assert [steps for steps, _ in hook.seen] == [ROLLOUT, 2 * ROLLOUT, 3 * ROLLOUT]
        assert experiment.train(2 * ROLLOUT) == "budget"  # what was left of the first call's budget is void
        assert experiment.env_steps == 5 * ROLLOUT


def test_a_hook_that_says_interrupted_is_no_signal(workplace):
    reason = "interrupted by the hook"
    with compose(run_dir="run", hooks=[Recorder(2, reason), Recorder(3, f"{reason}: SIGINT")]) as experiment:
        assert experiment.train() == reason
        assert RunDir(workplace / "run").info()["status"] == "finished"
        assert experiment.train() == f"{reason}: SIGINT"
        assert RunDir(workplace / "run").info()["reason"] == f"{reason}: SIGINT"
        assert experiment.stopped_by is None


def test_ctrl_c_ends_training_after_the_update_and_it_can_go_on():
    class CtrlC(Recorder):
        def after_update(self, learner, metrics):
            super().after_update(learner, metrics)
            if learner.updates == 2:
                signal.raise_signal(signal.SIGINT)

    with compose(hooks=[CtrlC()]) as experiment:
        with pytest.raises(KeyboardInterrupt):
            experiment.train()
        assert experiment.env_steps == 2 * ROLLOUT
        assert experiment.stopped_by is signal.SIGINT
        experiment.train()
        assert experiment.stopped_by is None
        with compose() as whole:
            whole.train()
            assert whole_state(experiment) == whole_state(whole)


def test_evaluation_has_the_summary_of_eval_json_and_is_repeatable():
    with compose() as experiment:
        first = experiment.evaluate(4)
        assert set(first) == {"mean_return", "std_return", "ci95", "mean_length", "episodes"}
        assert first["episodes"] == 4
        assert experiment.evaluate()["episodes"] == experiment.config.eval.episodes
        assert experiment.evaluate(4) == first


def test_an_env_that_fails_in_an_evaluation_is_told_as_of_one(workplace, monkeypatch):
    with compose() as experiment:
        experiment.evaluate(2)
        [vectorizer] = experiment._eval_vectorizers.values()
        monkeypatch.setattr(vectorizer.envs[1].unwrapped, "step", lambda action: 1 / 0)
        with pytest.raises(EnvError, match=r"^evaluation: env 1 failed in step"):
            experiment.evaluate(2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda experiment: experiment.train(-1), "env_steps=-1: must be at least 0"),
        (lambda experiment: experiment.evaluate(0), "episodes=0: must be at least 1"),
        (lambda experiment: experiment.set_parameters({"0": {}}), "no policy is called '0'; there is only 'default'"),
        (lambda experiment: experiment.set_parameters({"default": {}}), "set_parameters: default: made for another"),
        (lambda experiment: experiment.set_parameters({"default": "nowhere"}), "checkpoint=nowhere: no such folder"),
    ],
)
def test_bad_arguments_are_errors_of_one_line(call, words):
    with compose() as experiment, pytest.raises(ConfigError) as error:
        call(experiment)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algo=ppoo", "did you mean ppo"),
        ("num_envs=0", "num_envs=0: must be at least 1"),
        ("seed=1,2", "several values need -m"),
        ("hydra.run.dir=here", "hydra.run.dir=here: belongs to the command line; name a folder with run_dir="),
        ("plugins=[no_such_plugin]", "plugins=[no_such_plugin]: cannot be imported"),
    ],
)
def test_what_the_command_line_refuses_is_refused(override, words, workplace):
    with pytest.raises(ConfigError) as error:
        compose(override, run_dir="run")
    assert words in str(error.value)
    assert not list(workplace.iterdir())


# ---- weights ----


def test_parameters_go_round_by_state_dict_and_by_checkpoint():
    with compose() as source:
        source.train(2 * ROLLOUT)
        weights = source.get_parameters()
        folder = source.save("deep/weights")
        wanted = weights_hash(source.policy)
    for parameters in (weights, {"default": folder}, {"default": str(folder)}):
        with compose("seed=7") as experiment:
            assert weights_hash(experiment.policy) != wanted
            experiment.set_parameters(parameters)
            assert weights_hash(experiment.policy) == wanted
            assert experiment.env_steps == 0


def test_parameters_are_a_copy():
    with compose() as experiment:
        before = weights_hash(experiment.policy)
        for value in experiment.get_parameters()["default"].values():
            value.fill_(3)
        assert weights_hash(experiment.policy) == before


def test_parameters_that_do_not_fit_change_nothing():
    with compose() as experiment:
        before = weights_hash(experiment.policy)
        good = experiment.get_parameters()["default"]
        bad = dict(good, **{"value_head.bias": torch.full((1,), torch.nan)})
        with pytest.raises(ConfigError, match=r"value_head\.bias holds NaN"):
            experiment.set_parameters({"default": bad})
        with pytest.raises(ConfigError, match=r"value_head\.bias has shape \[2\]"):
            experiment.set_parameters({"default": dict(good, **{"value_head.bias": torch.zeros(2)})})
        assert weights_hash(experiment.policy) == before


# ---- checkpoints ----


@pytest.mark.parametrize("vectorizer", ["serial", "thread"])
def test_save_and_load_go_on_bit_for_bit(vectorizer):
    with compose(f"vectorizer={vectorizer}") as whole:
        whole.train(3 * ROLLOUT)
        whole.save("saved")
        whole.train(5 * ROLLOUT)
        wanted = whole_state(whole)
    before = tree(Path("saved"))
    with Experiment.load("saved") as experiment:
        assert experiment.env_steps == 3 * ROLLOUT
        assert experiment.train() == "budget"
        assert whole_state(experiment) == wanted
    assert tree(Path("saved")) == before


def test_an_untrained_experiment_can_be_saved_and_loaded():
    with compose() as experiment:
        experiment.save("start")
        experiment.train()
        wanted = whole_state(experiment)
    with Experiment.load("start") as heir:
        heir.train()
        assert whole_state(heir) == wanted


def test_save_replaces_a_checkpoint_and_nothing_else(workplace):
    (workplace / "thesis").mkdir()
    (workplace / "thesis" / "chapter1.tex").write_text("words")
    (workplace / "note").write_text("words")
    with compose() as experiment:
        for name in ("thesis", "note"):
            with pytest.raises(ConfigError, match="is there, and is no checkpoint"):
                experiment.save(name)
        assert (workplace / "thesis" / "chapter1.tex").read_text() == "words"
        experiment.save("saved")
        experiment.train(ROLLOUT)
        experiment.save("saved")
    assert checkpoint.load(workplace / "saved").env_steps == ROLLOUT


def test_a_saved_experiment_is_a_checkpoint_for_the_command_line(capsys):
    with compose() as experiment:
        experiment.train()
        experiment.save("saved")
        summary = experiment.evaluate(6)
    assert main(["eval", "checkpoint=saved", "episodes=6", "output=played", "device=cpu"]) == 0
    report = json.loads(Path("played/eval.json").read_text())
    assert {name: report[name] for name in summary} == summary


def test_loading_a_checkpoint_with_plugins_asks_for_them(workplace):
    with compose() as experiment:
        experiment.save("saved")
    (workplace / "a_plugin_of_a_test.py").write_text("import sys\nsys.a_plugin_of_a_test = True\n")
    edit_json(workplace / "saved" / "config.json", lambda config: config.update(plugins=["a_plugin_of_a_test"]))
    reseal(workplace / "saved")
    with pytest.raises(ConfigError, match=r"Experiment\.load\('saved', plugins=\['a_plugin_of_a_test'\]\)"):
        Experiment.load("saved")
    assert not hasattr(sys, "a_plugin_of_a_test")


def test_an_irreproducible_env_is_refused_without_a_trace_or_begins_anew(workplace):
    odd = ["env=gym", "env.id=parl/Irreproducible-v0", "env.kwargs.length=50", *CLI_TINY, f"total_steps={8 * ROLLOUT}"]
    with Experiment.compose(odd) as experiment:
        experiment.train(2 * ROLLOUT)
        experiment.save("saved")
    with pytest.raises(EnvError, match="cannot be resumed exactly"):
        Experiment.load("saved", run_dir="run")
    assert [path.name for path in workplace.iterdir()] == ["saved"]
    with Experiment.load("saved", replay=False) as heir:
        heir.train()
        assert heir.env_steps == 8 * ROLLOUT


def test_a_checkpoint_that_is_not_there_is_an_error():
    with pytest.raises(CheckpointError, match="checkpoint=nowhere"):
        Experiment.load("nowhere")


# ---- run folders ----


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


# ---- the end ----


def test_all_is_closed_whatever_fails_to_close():
    closed = []

    def failing(name, close):
        def close_and_fail():
            close()
            closed.append(name)
            raise RuntimeError(f"{name} does not close")

        return close_and_fail

    experiment = compose()
    experiment.evaluate(1)
    experiment.evaluate(2)
    parts = {"sinks": experiment.sinks, "pool": experiment.pool}
    parts |= {f"eval {n}": part for n, part in enumerate(experiment._eval_vectorizers.values())}
    for name, part in parts.items():
        part.close = failing(name, part.close)
    with pytest.raises(RuntimeError, match="does not close"):
        experiment.close()
    assert sorted(closed) == ["eval 0", "eval 1", "pool", "sinks"]


def test_an_error_of_closing_does_not_hide_the_first_one(caplog):
    def fail():
        raise RuntimeError("it does not close")

    experiment = compose()
    close, experiment.pool.close = experiment.pool.close, fail
    with pytest.raises(ZeroDivisionError), experiment:
        raise ZeroDivisionError
    assert "closing failed too (RuntimeError: it does not close)" in caplog.text
    with pytest.raises(RuntimeError, match="it does not close"), experiment:
        pass
    close()


def test_close_may_be_called_again_and_comes_with_an_exception():
    with pytest.raises(ZeroDivisionError), compose("vectorizer=thread") as experiment:
        raise ZeroDivisionError
    experiment.close()
    experiment.close()
    with pytest.raises(ParlError, match="closed"):
        experiment.train(ROLLOUT)


def test_workers_are_gone_after_an_exception():
    experiment = compose("vectorizer=subprocess", "vectorizer.num_workers=2", hooks=[Broken()])
    pids = [process.pid for process in experiment.pool.actor.vectorizer._processes]
    with pytest.raises(RuntimeError, match="the hook broke"), experiment:
        experiment.train(ROLLOUT)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_error_in_a_hook_reaches_the_caller_and_is_recorded(workplace):
    with pytest.raises(RuntimeError, match="the hook broke"), compose(run_dir="run", hooks=[Broken()]) as experiment:
        experiment.train()
    assert json.loads((workplace / "run" / "run.json").read_text())["status"] == "failed"


def test_a_budget_that_broke_off_is_void():
    with compose() as experiment:
        experiment.hooks.append(Broken())
        with pytest.raises(RuntimeError, match="the hook broke"):
            experiment.train(3 * ROLLOUT)
        experiment.hooks.clear()
        done = experiment.env_steps
        experiment.train(ROLLOUT)
        assert experiment.env_steps == done + ROLLOUT


def test_the_package_is_torch_free_until_experiment_is_asked_for():
    code = (
        "import sys, parl_cli\n"
        "assert 'torch' not in sys.modules\n"
        "parl_cli.Experiment\n"
        "assert 'torch' in sys.modules\n"
        "try:\n    parl_cli.Experimint\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Experimint" in done.stdout


def test_an_app_that_uses_hydra_itself_finds_its_own_config_again():
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    before, config = object(), HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = before
    try:
        with compose():
            assert GlobalHydra.instance().hydra is before
            assert HydraConfig.instance().cfg is config
    finally:
        GlobalHydra.instance().hydra = None
