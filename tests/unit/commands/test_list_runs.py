import json

import pytest

from parl_cli import cli
from parl_cli.commands.completion import complete
from tests.helpers.run_folders import backdate, config, rows, write_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    write_run(outputs / "ppo_cartpole" / "a", config(seed=1), started="2026-01-01T00:00:00+0000", return_mean=10.0)
    write_run(outputs / "ppo_cartpole" / "b", config(seed=2), status="running", started="2026-01-03T00:00:00+0000")
    write_run(
        outputs / "a2c_acrobot" / "sweep-x" / "0",
        config("a2c", "acrobot", algo__learning_rate=0.01),
        started="2026-01-02T00:00:00+0000",
    )
    return tmp_path


def listed(capsys, *words):
    assert cli.main(["list", "runs", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def folders(capsys, *words):
    return [row["folder"].removeprefix("outputs/") for row in listed(capsys, *words)]


def test_newest_first_with_what_one_wants_to_know(folder, capsys):
    newest, middle, oldest = listed(capsys)
    assert oldest == {
        "status": "finished", "algo": "ppo", "env": "cartpole", "seed": 1, "env_steps": 1000, "total_steps": 1000,
        "return_mean": 10.0, "time_s": 1.0, "started": "2026-01-01T00:00:00", "folder": "outputs/ppo_cartpole/a",
    }  # fmt: skip
    assert (newest["status"], middle["algo"]) == ("running", "a2c")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["algo.name=ppo"], ["ppo_cartpole/b", "ppo_cartpole/a"]),
        (["algo.name=ppo", "seed=1"], ["ppo_cartpole/a"]),
        (["env.name=acro*"], ["a2c_acrobot/sweep-x/0"]),
        (["seed=1,2", "env.name=cartpole,acrobot"], ["ppo_cartpole/b", "a2c_acrobot/sweep-x/0", "ppo_cartpole/a"]),
        (["algo.learning_rate=1e-2"], ["a2c_acrobot/sweep-x/0"]),
        (["policy.hidden_sizes=[64,64]", "status=running"], ["ppo_cartpole/b"]),
        (["status=failed"], []),
        (["outputs/a2c_acrobot"], ["a2c_acrobot/sweep-x/0"]),
        (["outputs/ppo_*", "seed=2"], ["ppo_cartpole/b"]),
    ],
)
def test_runs_are_chosen_by_place_and_by_values(words, found, folder, capsys):
    assert folders(capsys, *words) == found


def test_a_run_that_is_silent_says_so(folder, capsys):
    backdate(folder / "outputs/ppo_cartpole/b", 3600)
    assert folders(capsys, "status=silent") == ["ppo_cartpole/b"]
    assert folders(capsys, "status=running") == []


def test_a_running_one_is_told_from_the_end_of_its_metrics(folder, capsys):
    write_run(folder / "outputs" / "long", config(seed=7, total_steps=100_000), rows(range(500)), status="running")
    [row] = listed(capsys, "seed=7")
    assert (row["env_steps"], row["return_mean"]) == (50_000, 499)


@pytest.mark.parametrize("width", [60, 120])
def test_the_folder_can_be_copied_whole_at_any_width(width, folder, capsys, monkeypatch):
    from parl_cli.metrics.console import console

    monkeypatch.setattr(console, "_width", width)
    monkeypatch.setattr(type(console), "is_terminal", property(lambda self: True))
    assert cli.main(["list", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("outputs/a2c_acrobot/sweep-x/0") for line in lines)
    assert len(lines) == (4 if width == 120 else 8)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["algo.nam=ppo"], "no run has a key algo.nam; did you mean algo.name"),
        (["nowhere"], "list runs=nowhere: nothing is there"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, reason, folder, capsys):
    assert cli.main(["list", "runs", *words]) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1


def test_values_belong_to_runs_only(folder, capsys):
    assert cli.main(["list", "envs", "env.name=cartpole"]) == 2
    assert "values after runs only" in capsys.readouterr().err


def test_where_nothing_was_trained_there_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list", "runs"]) == 0
    assert capsys.readouterr().out == "runs: none\n"
    (tmp_path / "outputs").mkdir()
    assert listed(capsys) == []


def test_a_broken_run_is_named_and_the_others_are_listed(folder, capsys):
    (folder / "outputs/ppo_cartpole/a/config.yaml").unlink()
    assert cli.main(["list", "runs"]) == 0
    out, err = capsys.readouterr()
    assert "outputs/ppo_cartpole/b" in out
    assert err == "parl: broken: outputs/ppo_cartpole/a: config.yaml is missing\n"


def test_keys_of_the_runs_are_completed(folder):
    assert complete("parl list runs algo.le") == ["algo.learning_rate="]
