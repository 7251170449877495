import sys
import types

import pytest

import parl_cli
from parl_cli import cli
from parl_cli.errors import ConfigError, EnvError


@pytest.fixture
def command(monkeypatch):
    """Replaces `parl list` by a function that raises or returns what the test says."""

    def use(act):
        module = types.ModuleType("parl_cli.commands.list")
        module.main = act
        monkeypatch.setitem(sys.modules, "parl_cli.commands.list", module)

    return use


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(args, capsys):
    assert cli.main(args) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"parl {parl_cli.__version__}\n"


def test_unknown_command_suggests_the_nearest_and_exits_2(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "parl: error: unknown command 'trian'; did you mean train?\n"


@pytest.mark.parametrize("command_name", cli.COMMANDS)
def test_every_command_has_its_own_help(command_name, capsys):
    assert cli.main([command_name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"parl {command_name}: ")
    assert "usage: " in shown


def test_help_shows_every_preset_of_several_with_its_comments(capsys):
    assert cli.main(["train", "logger=[tensorboard,wandb]", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  logger      default, mlflow, none, tensorboard*, wandb*" in lines
    assert "  logger.sinks.wandb.project=parl    W&B project" in lines


def test_arguments_reach_the_command(command):
    seen = []
    command(lambda args: seen.extend(args) or 0)
    assert cli.main(["list", "envs", "--json"]) == 0
    assert seen == ["envs", "--json"]


def fail(error):
    def act(args):
        raise error

    return act


def test_config_error_is_one_line_and_exits_2(command, capsys):
    command(fail(ConfigError("num_envs=0:\n  must be at least 1")))
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "parl: error: num_envs=0: must be at least 1\n"


def test_an_error_of_the_run_keeps_its_lines_and_exits_1(command, capsys):
    command(fail(EnvError("env 3 raised\nworker traceback")))
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == "parl: error: env 3 raised\nworker traceback\n"


def test_traceback_is_shown_on_demand(command, capsys, monkeypatch):
    monkeypatch.setenv("PARL_TRACEBACK", "1")
    command(fail(EnvError("env 3 raised")))
    assert cli.main(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_130(command, capsys):
    command(fail(KeyboardInterrupt()))
    assert cli.main(["list"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(command):
    command(fail(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_an_exit_code_passes_through(command):
    command(fail(SystemExit(7)))
    with pytest.raises(SystemExit) as caught:
        cli.main(["list"])
    assert caught.value.code == 7


def test_bench_help_begins_with_its_own_keys_and_has_the_job_s(capsys):
    assert cli.main(["bench", "--help", "env=acrobot"]) == 0
    shown = capsys.readouterr().out
    own, _, job = shown.partition("keys of the job")
    for key in ("seconds=0.5", "vectorizers=null", "tune=false", "output=null"):
        assert f"  {key} " in own
        assert f"  {key} " not in job
    assert "env.id=Acrobot-v1" in job
    assert "--multirun" not in shown
