"""`parl_cli.Experiment`: the command line's experiment, from Python."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parl_cli import Experiment
from parl_cli.cli import main
from parl_cli.errors import CheckpointError, ConfigError, EnvError, ParlError
from parl_cli.training import checkpoint
from parl_cli.training.run_dir import RunDir
from tests.helpers.cli import environment
from tests.helpers.experiments import Broken, Recorder, compose, whole_state
from tests.helpers.runs import CLI_TINY, ROLLOUT, edit_json, reseal, tree
from tests.helpers.stubs import weights_hash

pytestmark = pytest.mark.usefixtures("workplace")


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
