"""`vectorizer=auto`: decided once, before the run is written, and never again."""

import logging
import signal
import time

import pytest
import yaml

from parl_cli import build
from parl_cli.actors.thread import ThreadActors
from parl_cli.config import to_plain
from parl_cli.experiment import Experiment
from parl_cli.vectorizers import AutoVectorizer, auto
from parl_cli.vectorizers.auto import Choice
from parl_cli.vectorizers.calls import available_cores
from tests.helpers.cli import TINY, parl
from tests.helpers.runs import Parl, normalising_config, policy_hash, train
from tests.helpers.stubs import train_config

CONCRETE = {"serial", "thread", "subprocess", "hybrid"}


def recorded(run):
    return yaml.safe_load((run / "config.yaml").read_text())["vectorizer"]


@pytest.fixture
def chosen(monkeypatch):
    """Replaces the measuring; counts how often it was asked."""
    asked = []

    def choose(env_fns, episode_seed=None, cores=None):
        asked.append((len(env_fns), cores))
        return Choice("thread", "two are enough", {"num_workers": 2})

    monkeypatch.setattr(build, "choose", choose)
    return asked


def test_the_run_records_what_was_chosen_and_resume_keeps_it(tmp_path):
    done = parl("train", *TINY, "vectorizer=auto", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    choice = recorded(tmp_path / "run")
    assert choice["name"] in CONCRETE
    assert first.startswith(f"vectorizer=auto: {choice['name']}; ")
    assert first in (tmp_path / "run" / "console.log").read_text()
    again = parl("resume", "run=run", "total_steps=128", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "auto" not in again.stdout
    assert recorded(tmp_path / "run") == choice
    done = parl("eval", "checkpoint=run", "episodes=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_is_shown_as_auto_before_the_run_begins(tmp_path):
    done = parl("train", "vectorizer=auto", "--cfg", "job", "-p", "vectorizer", cwd=tmp_path)
    assert done.stdout == "name: auto\n"


def test_validating_measures_nothing(chosen):
    config = build.validate(to_plain(train_config(vectorizer=AutoVectorizer.Config())))
    assert config.vectorizer == AutoVectorizer.Config()
    assert not chosen


def test_an_experiment_says_why_and_is_asked_once(chosen, tmp_path, caplog):
    config = train_config(vectorizer=AutoVectorizer.Config(), total_steps=128)
    with caplog.at_level(logging.INFO), Experiment.start(config, tmp_path / "run") as experiment:
        assert experiment.config.vectorizer.name == "thread"
        experiment.train()
        experiment.save(tmp_path / "saved")
    assert [record.message for record in caplog.records] == ["vectorizer=auto: thread; two are enough"]
    assert recorded(tmp_path / "run")["num_workers"] == 2
    with Experiment.load(tmp_path / "saved") as again:
        assert again.config.vectorizer.name == "thread"
    assert chosen == [(config.num_envs, available_cores())]


def test_actors_share_the_envs_and_the_cores(chosen, monkeypatch):
    monkeypatch.setattr(build, "available_cores", lambda: 6)
    actors = ThreadActors.Config(num_actors=2)
    config, why = build.choose_vectorizer(train_config(vectorizer=AutoVectorizer.Config(), num_envs=8, actors=actors))
    assert chosen == [(4, 3)]
    assert (config.vectorizer.name, why) == ("thread", "vectorizer=auto: thread; two are enough")


def test_a_chosen_vectorizer_trains_what_the_same_one_trains_when_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "available_cores", lambda: 1)  # serial, once the step was measured
    with Experiment.start(normalising_config(vectorizer=AutoVectorizer.Config()), tmp_path / "auto") as experiment:
        experiment.train()
    train(normalising_config(), tmp_path / "serial")
    assert recorded(tmp_path / "auto") == {"name": "serial"}
    assert policy_hash(tmp_path / "auto") == policy_hash(tmp_path / "serial")


def test_every_job_of_a_sweep_decides_for_itself(tmp_path):
    done = parl("train", "-m", *TINY, "vectorizer=auto,thread", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [recorded(tmp_path / "sweep" / job)["name"] in CONCRETE for job in "01"] == [True, True]
    logs = [(tmp_path / "sweep" / job / "console.log").read_text() for job in "01"]
    assert ["vectorizer=auto: " in log for log in logs] == [True, False]


def test_ctrl_c_while_it_measures_leaves_nothing(tmp_path):
    (tmp_path / "slow_plugin.py").write_text(
        "import gymnasium, time\n"
        "from parl_cli.envs.toy import SleepEnv\n"
        "gymnasium.register('Slow-v0', lambda: SleepEnv(step_s=0.05, length=100), order_enforce=False)\n"
    )
    job = ("plugins=[slow_plugin]", "env=gym", "env.id=Slow-v0", "name=slow", *TINY, "num_envs=8", "vectorizer=auto")
    with Parl("train", *job, cwd=tmp_path) as child:
        child.wait_for((tmp_path / "outputs" / "slow").is_dir)
        time.sleep(0.5)
        child.process.send_signal(signal.SIGINT)
        code, _, err = child.end()
    assert code == 130, err
    assert "Traceback" not in err
    assert not list((tmp_path / "outputs").rglob("*"))
