import netrc
import sys

import pytest

from parl_cli.errors import ConfigError
from parl_cli.metrics.sinks import RunRecord
from parl_cli.metrics.wandb import WandbConfig, WandbSink
from tests.helpers.services import fake_wandb


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return fake_wandb(monkeypatch)


def make(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    return WandbSink.make(RunRecord(folder, {"name": "ppo_cartpole", "algo": {"gamma": 0.9}}), WandbConfig(**options))


def test_rows_are_logged_over_env_steps_with_the_config(wandb, tmp_path):
    sink = make(tmp_path / "sweep-1" / "3", project="mine", tags=["a"], mode="offline")
    sink.write({"env_steps": 10.0, "episode/return_mean": 1.0})
    sink.write({"env_steps": 10.0, "eval/return_mean": 2.0})
    sink.write({"env_steps": 20.0, "episode/return_mean": 3.0})
    sink.close()
    [begun] = wandb.begun
    assert begun["project"] == "mine"
    assert begun["name"] == "ppo_cartpole/sweep-1/3"
    assert begun["group"] == "sweep-1"
    assert begun["config"] == {"name": "ppo_cartpole", "algo": {"gamma": 0.9}}
    assert (begun["id"], begun["resume"], begun["mode"]) == (None, "allow", "offline")
    assert begun["settings"]["console"] == "off"
    rows = [(step, {k: v for k, v in values.items() if k != "_timestamp"}) for step, values in wandb.runs["run0"]]
    assert rows == [
        (10, {"episode/return_mean": 1.0}),
        (10, {"eval/return_mean": 2.0}),
        (20, {"episode/return_mean": 3.0}),
    ]
    assert wandb.ends == {"run0": 0}


def test_a_resumed_run_keeps_its_id(wandb, tmp_path):
    first = make(tmp_path / "run")
    first.write({"env_steps": 10.0})
    first.close()
    second = make(tmp_path / "run")
    second.resume([{"env_steps": 5.0}])
    second.write({"env_steps": 10.0})
    second.write({"env_steps": 20.0})
    second.close()
    assert [begun["id"] for begun in wandb.begun] == [None, "run0"]
    assert wandb.steps() == [10, 20]


def test_a_failed_run_ends_with_an_exit_code(wandb, tmp_path):
    sink = make(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "failed"}')
    sink.write({"env_steps": 1.0})
    sink.close()
    assert wandb.ends == {"run0": 1}


def test_without_the_package_the_extra_is_named(wandb, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r'pip install "parl-cli\[wandb\]"'):
        WandbSink.check(WandbConfig())


def test_online_without_a_key_is_refused_before_wandb_can_ask_for_it(wandb):
    with pytest.raises(ConfigError, match=r"no API key; run wandb login, .*mode=offline"):
        WandbSink.check(WandbConfig())


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ({"mode": "offline"}, {}),
        ({}, {"WANDB_MODE": "offline"}),
        ({}, {"WANDB_API_KEY": "x"}),
        ({"mode": "online"}, {"WANDB_IDENTITY_TOKEN_FILE": "x"}),
    ],
)
def test_offline_or_with_a_key_it_works(options, variables, wandb, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    WandbSink.check(WandbConfig(**options))


def test_the_key_of_wandb_login_is_that_of_its_server(wandb, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert netrc.netrc(tmp_path / "netrc").authenticators("api.wandb.ai")
    WandbSink.check(WandbConfig())
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mine.example:8080/path")
    with pytest.raises(ConfigError, match="no API key"):
        WandbSink.check(WandbConfig())
