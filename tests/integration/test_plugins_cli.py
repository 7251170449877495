"""A plug-in from outside the source tree, through the real command line: no fork, no import that nobody asked for."""

import os
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.helpers.cli import ROOT, environment, parl

PACKAGE = ROOT / "tests" / "plugin_package"
TYPED = "plugins=[parl_example_plugin]"
SINK = "logger.sinks.best_return.digits=2"
ALL_SIX = ("algo=dual_clip_ppo", "policy=linear", "vectorizer=eager", "env=chain", SINK)  # the wrapper is the env's own
TINY = ("total_steps=128", "num_envs=2", "algo.num_steps=32", "logger=none", "device=cpu", "hydra.run.dir=run")


def on_path(*folders):
    return {"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], *map(str, folders)])}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What pip would leave of the package: its folder on the path, and the metadata with its entry point."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"parl_example_plugin-{project['version']}.dist-info"
    info.mkdir()
    name, version = project["name"], project["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    [(group, entries)] = project["entry-points"].items()
    lines = [f"{entry} = {value}" for entry, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    return on_path(PACKAGE, site)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which all six parts of the plug-in were trained with at once."""
    cwd = tmp_path_factory.mktemp("typed")
    done = parl("train", TYPED, *ALL_SIX, *TINY, cwd=cwd, env=on_path(PACKAGE))
    assert done.returncode == 0, done.stderr
    assert f"parl eval checkpoint=run '{TYPED}'" in done.stdout
    return cwd


def test_all_six_are_trained_with_at_once_from_the_plugins_own_conf(trained):
    config = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    names = {kind: config[kind]["name"] for kind in ("algo", "policy", "vectorizer", "env")}
    assert names == {"algo": "dual_clip_ppo", "policy": "linear", "vectorizer": "eager", "env": "chain"}
    assert config["env"]["wrappers"] == ["sticky_action"]
    assert config["algo"]["gamma"] == 0.9  # from the plug-in's conf/tuned/dual_clip_ppo/chain.yaml
    assert config["plugins"] == ["parl_example_plugin"]
    assert "policy/dual_clip_fraction" in (trained / "run" / "metrics.jsonl").read_text()
    assert config["logger"]["sinks"] == {"best_return": {"digits": 2}}
    assert float((trained / "run" / "best.txt").read_text()) > 0


@pytest.mark.parametrize(
    "command",
    [["eval", "checkpoint=run", "episodes=3", "deterministic=false"], ["resume", "run=run", "total_steps=256"]],
    ids=lambda command: command[0],
)
def test_eval_and_resume_ask_for_the_plugin_with_a_command_that_works(command, trained):
    asked = parl(*command, cwd=trained, env=on_path(PACKAGE))
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1
    assert "which a file may not import by itself" in asked.stderr
    answer = shlex.split(asked.stderr.rpartition("it, run ")[2])
    assert answer == ["parl", *command, TYPED]
    done = parl(*answer[1:], cwd=trained, env=on_path(PACKAGE))
    assert done.returncode == 0, done.stderr


def test_list_shows_what_a_typed_plugin_brings(trained):
    shown = parl("list", TYPED, cwd=trained, env=on_path(PACKAGE)).stdout
    for name in ("dual_clip_ppo", "linear", "eager", "sticky_action", "chain", "best_return", "parl_example_plugin"):
        assert name in shown
    detail = parl("list", "algos", "wrappers", "plugins", "envs", TYPED, cwd=trained, env=on_path(PACKAGE)).stdout
    assert "parl_example_plugin.algos" in detail
    assert "probability=0.25: chance that the previous action is taken again" in detail
    assert "plug-in parl_example_plugin" in detail


def test_an_installed_plugin_needs_no_words_also_in_workers(installed, tmp_path):
    """And once it is gone, what is missing is named."""
    done = parl(
        "train", "algo=dual_clip_ppo", "env=chain", "vectorizer=subprocess", "vectorizer.num_workers=2", *TINY,
        cwd=tmp_path, env=installed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["plugins"] == []
    played = parl("eval", "checkpoint=run", "episodes=2", cwd=tmp_path, env=installed)
    assert played.returncode == 0, played.stderr
    for command in (["eval", "checkpoint=run"], ["resume", "run=run", "total_steps=256"]):
        gone = parl(*command, cwd=tmp_path)
        assert gone.returncode == 2
        assert gone.stderr.count("\n") == 1
        assert "wrapper=sticky_action: this run used it, and nothing here registers it; install" in gone.stderr


def test_list_names_the_package_of_an_installed_plugin(installed, tmp_path):
    shown = parl("list", "plugins", cwd=tmp_path, env=installed).stdout
    assert "parl-example-plugin 0.1.0" in shown
    assert "algo=dual_clip_ppo" in shown


def test_help_and_completion_know_what_plugins_bring(installed, tmp_path):
    page = parl("train", "algo=dual_clip_ppo", "--help", cwd=tmp_path, env=installed).stdout
    assert "dual_clip_ppo*" in page
    assert "algo.dual_clip=3.0" in page
    line = {"COMP_LINE": "parl train algo=dual", "COMP_POINT": "20"}
    assert parl("completion", "query", cwd=tmp_path, env=installed | line).stdout == "algo=dual_clip_ppo\n"


def test_a_worker_loads_plugins_without_torch(installed):
    code = (
        "import sys\n"
        "from parl_cli.config import EnvConfig\n"
        "from parl_cli.envs.factory import EnvFactory\n"
        "config = EnvConfig(id='parl_example/Chain-v0', wrappers=['sticky_action'])\n"
        "env = EnvFactory(config, plugins=('parl_example_plugin',))()\n"
        "env.reset(seed=0)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


LOCAL_ENV = (
    "import gymnasium\n"
    "gymnasium.register('Local-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=9)\n"
)


def test_an_env_module_of_the_working_directory_is_trained_with_and_asked_for(tmp_path):
    (tmp_path / "my_envs.py").write_text(LOCAL_ENV)
    done = parl(
        "train", "env=gym", "env.id=my_envs:Local-v0", "vectorizer=subprocess", "vectorizer.num_workers=1", *TINY,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["plugins"], config["env"]["id"]) == (["my_envs"], "Local-v0")
    asked = parl("eval", "checkpoint=run", "episodes=2", cwd=tmp_path)
    assert asked.returncode == 2
    played = parl(*shlex.split(asked.stderr.rpartition("it, run ")[2])[1:], cwd=tmp_path)
    assert played.returncode == 0, played.stderr


@pytest.fixture
def bad(tmp_path):
    """A working directory with plug-ins that must not work, and the conf/ of one."""
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "taken.py").write_text("from parl_cli import registry\nregistry.register('algo', 'ppo', 'taken:PPO')\n")
    (tmp_path / "good.py").write_text(
        "from parl_cli import registry\nregistry.add_config_dir('good_conf')\n"
        "registry.register('algo', 'hollow', 'good:Hollow')\n"
    )
    for name, text in {
        "good_conf/env/acrobot.yaml": "name: acrobot\nid: Pendulum-v1\n",
        "good_conf/env/both.yaml": "name: both\nid: CartPole-v1\n",
        "good_conf/algo/hollow.yaml": "name: hollow\n",
        "conf/env/both.yaml": "name: both\nid: Pendulum-v1\n",
        "conf/experiment/late.yaml": "# @package _global_\nplugins: [good]\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "plugins=[nope]"], "plugins=[nope]: cannot be imported, no such module"),
        (["list", "plugins=[nope]"], "plugins=[nope]: cannot be imported, no such module"),
        (["eval", "checkpoint=x", "plugins=[nope]"], "plugins=[nope]: cannot be imported, no such module"),
        (["train", "plugins=[broken]"], "plugins=[broken]: cannot be imported (ZeroDivisionError: division by zero)"),
        (["train", "plugins=[taken]"], "cannot register algo=ppo: the name is taken by parl_cli.algos.ppo:PPO"),
        (["train", "plugins=good"], "plugins=good: must be a list of modules"),
        (["train", "-m", "plugins=[good],[broken]"], "must be a list of modules"),
        (["train", "experiment=late"], "type plugins=[good] on the command line"),
        (
            ["train", "plugins=[good]", "algo=hollow"],
            "algo=hollow: cannot load good:Hollow, which a plug-in registered",
        ),
        (["train", "plugins=[good]", "env=acrobot"], "acrobot.yaml is hidden by parl's own option of that name"),
        (["train", "plugins=[good]", "env=both"], "conf/env/both.yaml is hidden by "),
        (["list", "env=cartpole"], "env=cartpole: parl list takes topics and plugins=[…]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_plugins_are_one_line_with_exit_code_2_and_write_nothing(args, words, bad):
    done = parl(*args, cwd=bad)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
    assert not (bad / "outputs").exists()
