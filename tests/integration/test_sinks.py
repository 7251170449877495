"""Runs with every sink at once: whatever the copies do, the run ends well and metrics.jsonl is complete."""

import random

import pytest

from parl_cli.config import CheckpointConfig, LoggerConfig, parse_sinks
from parl_cli.metrics import remote
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.metrics.tensorboard import TensorBoardSink
from parl_cli.training import checkpoint
from tests.helpers.runs import ROLLOUT, go_on, normalising_config, train
from tests.helpers.services import fake_mlflow, fake_wandb

UPDATES = 12


@pytest.fixture
def services(monkeypatch):
    monkeypatch.setattr(remote, "BATCH_EVERY_S", 0.001)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return fake_wandb(monkeypatch), fake_mlflow(monkeypatch)


def config(**changes):
    sinks = parse_sinks(["csv", "tensorboard", "wandb", "mlflow"])
    return normalising_config(updates=UPDATES, logger=LoggerConfig(sinks=sinks, live=False, plot=False), **changes)


def steps(run):
    return [row["env_steps"] for row in read_jsonl(run / "metrics.jsonl")]


ALL = [ROLLOUT * n for n in range(1, UPDATES + 1)]


def test_every_sink_gets_the_whole_run(services, tmp_path):
    run = tmp_path / "run"
    assert train(config(), run) == "budget"
    assert steps(run) == ALL
    assert [service.steps() for service in services] == [ALL, ALL]
    assert [list(service.ends.values()) for service in services] == [[0], ["FINISHED"]]
    assert len((run / "metrics.csv").read_text().splitlines()) == UPDATES + 1
    assert list((run / "tensorboard").iterdir())


@pytest.mark.parametrize("seed", range(4))
def test_sinks_that_raise_at_random_steps_stop_nothing(seed, services, tmp_path, monkeypatch, caplog):
    draw = random.Random(seed)

    def hiccup(chance):
        if draw.random() < chance:
            raise ConnectionError("hiccup")

    def torn(self, row):
        hiccup(0.3)
        written(self, row)

    written = TensorBoardSink.write
    monkeypatch.setattr(TensorBoardSink, "write", torn)
    for service in services:
        service.failing = lambda: hiccup(0.02)
    run = tmp_path / "run"
    assert train(config(), run) == "budget"
    assert steps(run) == ALL
    failed = [message.split()[0] for message in caplog.messages if "switched off" in message]
    assert len(failed) == len(set(failed)), "each is reported once"
    assert failed, "some did fail"
    for service in services:
        if service.runs:
            assert service.steps() == sorted(service.steps())


def test_a_resumed_run_goes_on_where_each_service_stands(services, tmp_path):
    run = tmp_path / "run"
    train(config(), run, stop_at=7)
    assert checkpoint.last(run).name == str(7 * ROLLOUT)
    assert go_on(config(), run) == "budget"
    assert steps(run) == ALL
    wandb, mlflow = services
    assert [begun["id"] for begun in wandb.begun] == [None, "run0"]
    assert mlflow.begun[-1] == {"id": "run0", "status": "RUNNING"}
    for service in services:
        assert service.steps() == ALL
        assert len(service.runs) == 1


def test_rows_after_the_checkpoint_are_not_told_again(services, tmp_path):
    """As after a kill: metrics.jsonl and the services are ahead of the newest checkpoint."""
    run = tmp_path / "run"
    every = CheckpointConfig(every_steps=4 * ROLLOUT, keep=10)
    train(config(checkpoint=every), run, stop_at=10)
    checkpoint.remove(run / "checkpoints" / str(10 * ROLLOUT))
    go_on(config(checkpoint=every), run)
    assert steps(run) == ALL
    for service in services:
        order = [step for step, _ in service.runs["run0"]]
        assert order == sorted(order), "no step goes back"
        assert service.steps() == ALL
