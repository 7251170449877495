import dataclasses
import logging

import pytest

from parl_cli import registry
from parl_cli.errors import CheckpointError, ParlError
from parl_cli.metrics.csv import CsvSink
from parl_cli.metrics.jsonl import JsonlSink, read_jsonl
from parl_cli.metrics.sinks import NoFile, RunRecord, Sink, SinkGroup


class Recorder:
    """A sink that remembers, and fails in the methods it is told to."""

    def __init__(self, failing=()):
        self.failing, self.calls, self.rows = failing, [], []

    def _called(self, name):
        self.calls.append(name)
        if name in self.failing:
            raise OSError(28, "No space left on device\n[see the manual]")

    def write(self, row):
        self._called("write")
        self.rows.append(row["env_steps"])

    def resume(self, history):
        self._called("resume")
        self.rows = [row["env_steps"] for row in history]

    def flush(self):
        self._called("flush")

    def close(self):
        self._called("close")


def row(steps):
    return {"env_steps": float(steps)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("name", registry.names("sink"))
def test_every_registered_sink_is_made_of_a_run_and_writes_nothing_before_its_first_row(name, tmp_path):
    cls = registry.load("sink", name)
    sink = cls.make(RunRecord(tmp_path, {"name": "x"}), cls.Config())
    assert isinstance(sink, Sink)
    sink.flush()
    sink.close()
    sink.close()
    assert list(tmp_path.iterdir()) == []
    assert cls.summary


@pytest.mark.parametrize("name", registry.names("sink"))
def test_every_option_of_a_sink_is_documented(name):
    fields = dataclasses.fields(registry.load("sink", name).Config)
    assert all(field.metadata["doc"] for field in fields)


@pytest.mark.parametrize(
    ("folder", "sweep", "name"),
    [
        ("outputs/ppo/2026-a", None, "ppo_cartpole/2026-a"),
        ("outputs/ppo/sweep-2026/3", "sweep-2026", "ppo_cartpole/sweep-2026/3"),
        ("mine/3", "mine", "ppo_cartpole/mine/3"),
    ],
)
def test_services_call_a_run_by_its_name_and_folder(folder, sweep, name, tmp_path):
    place = tmp_path / folder
    place.mkdir(parents=True)
    (tmp_path / "mine").mkdir(exist_ok=True)
    (tmp_path / "mine" / "sweep.json").touch()
    run = RunRecord(place, {"name": "ppo_cartpole"})
    assert (run.sweep, run.name) == (sweep, name)


def test_every_sink_gets_every_row(path):
    copies = [Recorder(), Recorder()]
    group = SinkGroup(JsonlSink(path), copies)
    group.write(row(1))
    group.write(row(2))
    group.flush()
    group.close()
    assert [copy.rows for copy in copies] == [[1, 2], [1, 2]]
    assert [r["env_steps"] for r in read_jsonl(path)] == [1, 2]
    assert copies[0].calls[-2:] == ["flush", "close"]


@pytest.mark.parametrize("method", ["write", "flush", "close"])
def test_failing_copy_is_reported_once_and_the_others_go_on(path, caplog, method):
    bad, good = Recorder(failing=(method,)), Recorder()
    group = SinkGroup(JsonlSink(path), [bad, good])
    with caplog.at_level(logging.WARNING):
        for steps in (1, 2, 3):
            group.write(row(steps))
            group.flush()
        group.close()
    assert len(caplog.messages) == 1
    assert "Recorder" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert "No space left on device" in caplog.messages[0]
    assert bad.calls.count(method) == 1
    assert good.rows == [1, 2, 3]


def test_a_checkpoint_flushes_the_copies(path):
    # a killed run goes on from its checkpoint: rows that only the process held would be missing in the copy
    copy = Recorder()
    group = SinkGroup(JsonlSink(path), [copy])
    group.write(row(1))
    group.state_dict()
    assert copy.calls == ["write", "flush"]
    group.close()


def test_copy_that_failed_is_closed_even_if_that_fails_too(path, caplog):
    bad = Recorder(failing=("write", "close"))
    group = SinkGroup(JsonlSink(path), [bad])
    with caplog.at_level(logging.WARNING):
        group.write(row(1))
        group.close()
    assert bad.calls == ["write", "close"]
    assert len(caplog.messages) == 1


def test_failure_of_the_truth_stops_the_run(path):
    truth = JsonlSink(path)
    group = SinkGroup(truth, [Recorder()])
    truth.close()
    with pytest.raises(ParlError, match=r"metrics\.jsonl"):
        group.write(row(1))


def test_resume_cuts_the_truth_and_the_copies_follow(path, tmp_path):
    def make():
        return SinkGroup(JsonlSink(path), [CsvSink(tmp_path / "metrics.csv"), Recorder()])

    first = make()
    first.write(row(1))
    state = first.state_dict()
    first.write({**row(2), "late": 1.0})
    first.close()
    second = make()
    second.load_state_dict(state)
    second.write(row(20))
    second.close()
    assert [r["env_steps"] for r in read_jsonl(path)] == [1, 20]
    assert (tmp_path / "metrics.csv").read_text().split() == ["env_steps", "1", "20"]
    assert second.copies[1].rows == [1, 20]


@pytest.mark.parametrize("state", [{}, {"offset": 999}, {"offset": "x"}])
def test_state_that_does_not_fit_the_file_is_refused(path, state):
    group = SinkGroup(JsonlSink(path))
    group.write(row(1))
    with pytest.raises(CheckpointError):
        group.load_state_dict(state)
    group.close()


def test_without_a_file_rows_are_forgotten_and_any_checkpoint_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = SinkGroup(NoFile())
    group.write({"env_steps": 1})
    group.flush()
    assert group.state_dict() == {"offset": 0}
    group.load_state_dict({"offset": 12_345})
    group.close()
    group.close()
    assert not list(tmp_path.iterdir())
