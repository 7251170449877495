import pytest

from parl_cli import cli
from parl_cli.commands.completion import complete, main
from parl_cli.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("parl tr", ["train"]),
        ("parl train al", ["algo.", "algo="]),
        ("parl train algo=pp", ["algo=ppo", "algo=ppo_rb"]),
        ("parl train env=acrob", ["env=acrobot"]),
        ("parl train -m env=acrobot,lunar_lander_c", ["env=acrobot,lunar_lander_continuous"]),
        ("parl train algo.gam", ["algo.gamma="]),
        ("parl train env=pendulum checkpoint.k", ["checkpoint.keep="]),
        ("parl train --mult", ["--multirun"]),
        ("parl train --cfg j", ["job"]),
        ("parl eval epi", ["episodes="]),
        ("parl report outputs thre", ["thresholds="]),
        ("parl report stat", ["statistic="]),
        ("parl resume checkpoint.", ["checkpoint.env="]),
        ("parl bench env=acrob", ["env=acrobot"]),
        ("parl bench tun", ["tune=", "tuned="]),
        ("parl list env", ["envs"]),
        ("parl list --j", ["--json"]),
        ("parl list runs stat", ["status="]),
        ("parl watch --o", ["--once"]),
        ("parl completion b", ["bash"]),
        ("parl train nonsense.x", []),
        ("parl train env=nonsense al", []),
        ("parl nonsense x", []),
    ],
)
def test_the_last_word_is_completed(line, words):
    assert complete(line) == words


def test_a_new_word_completes_to_every_command():
    assert {"train", "eval", "resume", "bench", "list"} <= set(complete("parl "))


def test_checkpoints_complete_to_folders(elsewhere):
    (elsewhere / "outputs" / "a").mkdir(parents=True)
    (elsewhere / "outputs" / "b.txt").touch()
    assert complete("parl eval checkpoint=out") == ["checkpoint=outputs/"]
    assert complete("parl eval checkpoint=outputs/") == ["checkpoint=outputs/a/"]


def test_only_the_line_before_the_cursor_counts(monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "parl trXXX")
    monkeypatch.setenv("COMP_POINT", "7")
    assert main(["query"]) == 0
    assert capsys.readouterr().out == "train\n"


def test_hydras_own_parser_is_never_made(monkeypatch):
    # Its help breaks argparse under Python 3.14.
    def broken():
        raise AssertionError("argparse as Hydra uses it")

    monkeypatch.setattr("hydra._internal.utils.get_args_parser", broken)
    assert complete("parl train algo=pp") == ["algo=ppo", "algo=ppo_rb"]
    assert cli.main(["train", "--help"]) == 0
    assert cli.main(["train", "--cfg", "job"]) == 0


def test_an_unknown_shell_is_an_error():
    with pytest.raises(ConfigError, match="tcsh"):
        main(["tcsh"])
