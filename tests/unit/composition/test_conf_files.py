import pytest

from parl_cli.composition import conf_files
from parl_cli.errors import ConfigError


def test_comments_are_found_by_dotted_path(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "# a heading, not a comment of a key\n"
        "plain: 1 # first\n"
        "quoted: 'a # b'  # second\n"
        "colour: a#b # third\n"
        "outer:\n"
        "  inner: {a: 1} # fourth\n"
        "silent: 2\n"
    )
    assert conf_files.comments(file) == {
        "plain": "first",
        "quoted": "second",
        "colour": "third",
        "outer.inner": "fourth",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Balance a pole. More follows.\nname: x\n", "Balance a pole"),
        ("# @package _global_\n# Two\n# lines.\nname: x\n", "Two lines"),
        ("name: x\n# late\n", ""),
        ("# Version 1.5 of it: good. And more.\n", "Version 1.5 of it: good"),
    ],
)
def test_summary_is_the_first_sentence(tmp_path, text, words):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert conf_files.summary(file) == words


def test_groups_leave_out_hydras_own_and_empty_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "empty").mkdir(parents=True)
    assert {"env", "algo", "tuned"} <= set(conf_files.groups())
    assert not {"hydra", "empty"} & set(conf_files.groups())


def test_conf_in_the_working_directory_adds_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "mine.yaml").touch()
    assert "mine" in conf_files.options("env")
    assert "cartpole" in conf_files.options("env")


def test_a_config_dir_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        conf_files.added_confs(str(tmp_path / "nowhere"))
