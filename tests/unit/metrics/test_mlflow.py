import sys

import pytest

from parl_cli.errors import ConfigError
from parl_cli.metrics.mlflow import MlflowConfig, MlflowSink
from parl_cli.metrics.sinks import RunRecord
from tests.helpers.services import fake_mlflow


@pytest.fixture
def mlflow(monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return fake_mlflow(monkeypatch)


def make(folder, config=None, **options):
    folder.mkdir(parents=True, exist_ok=True)
    return MlflowSink.make(RunRecord(folder, {"name": "ppo_cartpole"} | (config or {})), MlflowConfig(**options))


def test_rows_are_metrics_over_env_steps_and_the_config_is_parameters(mlflow, tmp_path):
    config = {"algo": {"gamma": 0.9, "schedule": None}, "sizes": [64, 64], "long": "x" * 9000}
    sink = make(tmp_path / "sweep-1" / "3", config, tracking_uri="sqlite:///x.db", tags={"who": "me"})
    sink.write({"env_steps": 10.0, "a": 1.0, "b": 2.0})
    sink.write({"env_steps": 20.0, "a": 3.0})
    sink.close()
    [begun] = mlflow.begun
    assert begun["uri"] == "sqlite:///x.db"
    assert begun["experiment_id"] == "experiment parl"
    assert begun["run_name"] == "ppo_cartpole/sweep-1/3"
    assert begun["tags"] == {"parl.folder": str(tmp_path / "sweep-1" / "3"), "parl.sweep": "sweep-1", "who": "me"}
    long = begun["params"].pop("long")
    assert len(long) == 6000
    assert begun["params"] == {
        "name": "ppo_cartpole", "algo.gamma": "0.9", "algo.schedule": "None", "sizes": "[64, 64]"
    }  # fmt: skip
    assert mlflow.runs["run0"] == [(10, {"a": 1.0}), (10, {"b": 2.0}), (20, {"a": 3.0})]


def test_many_rows_and_parameters_are_sent_in_the_sizes_that_it_takes(mlflow, tmp_path):
    sink = make(tmp_path, {f"k{i}": i for i in range(250)})
    for step in range(1, 200):
        sink.write({"env_steps": float(step)} | {f"m{i}": 0.0 for i in range(30)})
    sink.close()
    assert len(mlflow.begun[0]["params"]) == 251
    assert mlflow.steps() == list(range(1, 200))


def test_a_resumed_run_is_the_same_run(mlflow, tmp_path):
    first = make(tmp_path / "run")
    first.write({"env_steps": 10.0, "a": 1.0})
    first.close()
    second = make(tmp_path / "run")
    second.resume([{"env_steps": 5.0, "a": 0.0}])
    second.write({"env_steps": 10.0, "a": 1.0})
    second.write({"env_steps": 20.0, "a": 2.0})
    second.close()
    assert mlflow.begun[1] == {"id": "run0", "status": "RUNNING"}
    assert mlflow.runs == {"run0": [(10, {"a": 1.0}), (20, {"a": 2.0})]}


@pytest.mark.parametrize(
    ("said", "status"),
    [("finished", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED"), ("running", "KILLED")],
)
def test_how_the_run_ended_is_told(said, status, mlflow, tmp_path):
    (tmp_path / "run.json").write_text(f'{{"status": "{said}"}}')
    sink = make(tmp_path)
    sink.write({"env_steps": 1.0, "a": 1.0})
    sink.close()
    assert mlflow.ends == {"run0": status}


def test_the_experiment_is_the_one_that_is_named(mlflow, tmp_path, monkeypatch):
    for name, options, variable in (
        ("a", {"experiment": "mine"}, None),
        ("b", {}, "theirs"),
        ("c", {"experiment": "mine"}, "theirs"),
    ):
        if variable is not None:
            monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", variable)
        sink = make(tmp_path / name, **options)
        sink.write({"env_steps": 1.0, "a": 1.0})
        sink.close()
    assert [begun["experiment_id"] for begun in mlflow.begun] == [
        "experiment mine",
        "experiment theirs",
        "experiment mine",
    ]


def test_jobs_that_make_the_experiment_at_once_share_it(mlflow, tmp_path, monkeypatch):
    client = sys.modules["mlflow"].MlflowClient
    create = client.create_experiment

    def too_late(self, name):
        create(self, name)  # another job, after this one asked
        return create(self, name)

    monkeypatch.setattr(client, "create_experiment", too_late)
    sink = make(tmp_path)
    sink.write({"env_steps": 1.0, "a": 1.0})
    sink.close()
    assert [begun["experiment_id"] for begun in mlflow.begun] == ["experiment parl"]
    assert mlflow.steps() == [1]


def test_an_experiment_that_cannot_be_made_says_why(mlflow, tmp_path, monkeypatch):
    def refuse(self, name):
        raise PermissionError("read only")

    monkeypatch.setattr(sys.modules["mlflow"].MlflowClient, "create_experiment", refuse)
    sink = make(tmp_path)
    sink.write({"env_steps": 1.0, "a": 1.0})
    with pytest.raises(PermissionError, match="read only"):
        sink.close()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r'pip install "parl-cli\[mlflow\]"'):
        MlflowSink.check(MlflowConfig())
