import json

import pytest

from parl_cli import registry
from parl_cli.commands.list import TOPICS, main
from parl_cli.composition import conf_files
from parl_cli.errors import ConfigError


def rows(capsys, *args):
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_can_be_listed(topic, capsys):
    assert main([topic]) == 0
    assert topic in capsys.readouterr().out


def test_overview_names_every_topic_and_every_env(capsys):
    shown = {row["topic"]: row["names"] for row in rows(capsys)}
    assert set(shown) == set(TOPICS)
    assert set(conf_files.options("env")) == set(shown["envs"].split(", "))


def test_algorithms_say_what_they_support(capsys):
    shown = {row["algo"]: row for row in rows(capsys, "algos")}
    assert set(shown) == set(registry.names("algo"))
    for row in shown.values():
        assert row["what"]
        assert row["actions"]
        assert row["observations"]
    assert "Discrete" in shown["ppo"]["actions"]


def test_algorithms_say_what_sets_them_apart_from_their_neighbour(capsys):
    shown = {row["algo"]: row["is"].split("\n") for row in rows(capsys, "algos")}
    assert shown["ppo"] == [""]
    assert shown["appo"] == ["ppo", "plus vtrace=true, rho_bar=1.0, c_bar=1.0"]
    assert shown["a3c"] == ["a2c", "but learning_rate_schedule=linear (constant)"]
    a2c, but, plus, less = shown["a2c"]
    assert a2c == "ppo"
    assert but.startswith("but num_steps=5 (128), ")
    assert "optimizer=rmsprop" in plus
    assert "clip_range" in less


def test_every_neighbour_is_an_algorithm():
    for name in registry.names("algo"):
        neighbour = getattr(registry.load("algo", name), "neighbour", None)
        assert neighbour is None or (neighbour in registry.names("algo") and neighbour != name)


def test_envs_show_spaces_and_time_limit(capsys):
    cartpole = next(row for row in rows(capsys, "envs") if row["env"] == "cartpole")
    assert cartpole["id"] == "CartPole-v1"
    assert cartpole["obs"] == "Box(4) float32"
    assert cartpole["actions"] == "Discrete(2)"
    assert cartpole["limit"] == "500"
    assert cartpole["installed"] == "yes"


def test_an_env_that_cannot_be_built_says_why(tmp_path, capsys):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "ghost.yaml").write_text("# Not there.\nname: ghost\nid: Ghost-v0\n")
    ghost = next(row for row in rows(capsys, "envs", "--config-dir", str(tmp_path)) if row["env"] == "ghost")
    assert ghost["installed"].startswith("no: env.id=Ghost-v0")


def test_what_is_wrong_with_one_env_hides_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "envs_of_a_test.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Broken(CartPoleEnv):\n    def __init__(self, **kwargs): raise RuntimeError('no licence')\n"
        "gymnasium.register('Local-v0', CartPoleEnv)\ngymnasium.register('Broken-v0', Broken)\n"
    )
    for name, text in {
        "bad_yaml": "a: [",
        "heavy": "defaults: [cartpole]\nname: heavy\nkwargs: {sutton_barto_reward: true}",
        "local": "name: local\nid: envs_of_a_test:Local-v0",
        "raising": "name: raising\nid: envs_of_a_test:Broken-v0",
    }.items():
        (tmp_path / "conf" / "env" / f"{name}.yaml").write_text(f"# Of a test.\n{text}\n")
    shown = {row["env"]: row for row in rows(capsys, "envs")}
    assert shown["cartpole"]["installed"] == shown["local"]["installed"] == shown["heavy"]["installed"] == "yes"
    assert shown["heavy"]["id"] == "CartPole-v1"
    assert shown["bad_yaml"]["installed"].startswith("no: ")
    assert shown["raising"]["installed"] == "no: RuntimeError: no licence"


def test_listing_envs_leaves_nothing_in_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows(capsys, "envs")
    assert not list(tmp_path.iterdir())


def test_wrappers_show_their_options(capsys):
    stack = next(row for row in rows(capsys, "wrappers") if row["wrapper"] == "frame_stack")
    assert "num=4" in stack["options"]


def test_several_topics_are_keyed_by_name(capsys):
    assert set(rows(capsys, "actors", "vectorizers")) == {"actors", "vectorizers"}


def test_a_group_name_is_as_good_as_its_topic(capsys):
    assert rows(capsys, "env") == rows(capsys, "envs")


def test_an_unknown_topic_is_an_error():
    with pytest.raises(ConfigError, match="did you mean envs"):
        main(["envz"])
