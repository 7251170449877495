import json
import threading

import pytest

from parl_cli.errors import ParlError
from parl_cli.metrics import remote
from parl_cli.metrics.jsonl import JsonlSink, read_jsonl
from parl_cli.metrics.remote import RemoteSink, flat
from parl_cli.metrics.sinks import SinkGroup


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "BATCH_EVERY_S", 0.01)


class Service:
    """Remembers; raises in the method that it is told to; `gate` holds `send` back."""

    def __init__(self, failing=None, gate=None):
        self.failing, self.gate = failing, gate
        self.ids, self.steps, self.ends, self.threads = [], [], [], set()

    def _called(self, name):
        self.threads.add(threading.current_thread().name)
        if name == self.failing:
            raise ConnectionError(f"{name} refused")

    def begin(self, run_id):
        self._called("begin")
        self.ids.append(run_id)
        return run_id or "new"

    def send(self, rows):
        if self.gate is not None:
            self.gate.wait(30)
        self._called("send")
        self.steps += [written.row["env_steps"] for written in rows]

    def end(self, status):
        self._called("end")
        self.ends.append(status)


def row(steps):
    return {"env_steps": float(steps), "x": 1.0}


def note(folder):
    return json.loads((folder / "test.json").read_text())


def test_rows_reach_the_service_in_order_from_a_thread_of_their_own(tmp_path):
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    for steps in range(1, 100):
        sink.write(row(steps))
    sink.close()
    assert service.steps == list(range(1, 100))
    assert service.threads == {"test"}
    assert note(tmp_path) == {"id": "new", "env_steps": 99, "rows": 1}


def test_nothing_is_begun_without_a_row(tmp_path):
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    sink.flush()
    sink.close()
    assert (service.ids, list(tmp_path.iterdir())) == ([], [])


def test_a_row_is_taken_as_it_was_when_it_was_written(tmp_path):
    gate = threading.Event()
    service = Service(gate=gate)
    seen = []
    service.send = lambda rows: gate.wait(30) and seen.extend(written.row["x"] for written in rows)
    sink = RemoteSink(service, tmp_path, "test")
    values = row(1)
    sink.write(values)
    values["x"] = 2.0
    gate.set()
    sink.close()
    assert seen == [1.0]


@pytest.mark.parametrize(
    ("run_json", "status"),
    [('{"status": "finished"}', "finished"), ('{"status": "failed"}', "failed"), ("{", "running"), (None, "running")],
)
def test_the_service_is_told_how_the_run_ended(run_json, status, tmp_path):
    if run_json is not None:
        (tmp_path / "run.json").write_text(run_json)
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    sink.write(row(1))
    sink.close()
    assert service.ends == [status]


def test_a_resumed_run_goes_on_under_its_id_and_tells_no_step_twice_nor_backwards(tmp_path):
    first = RemoteSink(Service(), tmp_path, "test")
    for steps in (1, 2, 3, 4):
        first.write(row(steps))
    first.close()
    service = Service()
    second = RemoteSink(service, tmp_path, "test")
    second.resume([row(1), row(2)])  # the checkpoint was at 2
    for steps in (3, 4, 5, 6):
        second.write(row(steps))
    second.close()
    assert service.ids == ["new"]
    assert service.steps == [5, 6]


def test_what_the_service_missed_is_told_on_resume(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps({"id": "old", "env_steps": 2, "rows": 1}))
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    sink.resume(row(steps) for steps in (1, 2, 3, 4))
    sink.write(row(5))
    sink.close()
    assert service.ids == ["old"]
    assert service.steps == [3, 4, 5]


def test_a_service_that_is_new_to_a_resumed_run_gets_all_of_it(tmp_path):
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    sink.resume([row(1), row(2)])
    sink.close()
    assert service.steps == [1, 2]


def test_a_history_longer_than_what_may_wait_is_told_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_WAITING", 10)
    monkeypatch.setattr(remote, "HISTORY_BATCH", 7)
    read, held = [], []

    def history():
        for steps in range(1, 101):
            read.append(steps)
            yield row(steps)

    class Counting(Service):
        def send(self, rows):
            held.append(len(read) - len(self.steps))
            super().send(rows)

    service = Counting()
    sink = RemoteSink(service, tmp_path, "test")
    sink.resume(history())
    sink.write(row(101))
    sink.close()
    assert service.steps == list(range(1, 102))
    assert max(held) <= 8, "rows in memory"
    assert note(tmp_path)["env_steps"] == 101


def test_a_history_is_read_while_the_run_goes_on(tmp_path, monkeypatch):
    """What the run appends meanwhile is told once, and is no part of the history."""
    truth = JsonlSink(tmp_path / "metrics.jsonl")
    for steps in range(1, 6):
        truth.write(row(steps))
    offset = truth.offset()
    truth.write(row(6))  # after the checkpoint
    gate = threading.Event()
    service = Service()
    service.begin = lambda run_id: gate.wait(30) and "new"
    monkeypatch.setattr(remote, "HISTORY_BATCH", 2)
    group = SinkGroup(truth, [RemoteSink(service, tmp_path, "test")])
    group.load_state_dict({"offset": offset})
    for steps in (6, 7, 8):
        group.write(row(steps))
    gate.set()
    group.close()
    assert service.steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_history_that_cannot_be_read_is_raised_by_the_next_write(tmp_path):
    def damaged():
        yield row(1)
        raise ParlError("line 2 is not a JSON object")

    sink = RemoteSink(Service(), tmp_path, "test")
    sink.resume(damaged())
    with pytest.raises(ParlError, match="line 2"):
        sink.close()


@pytest.mark.parametrize("delivered", range(5))
def test_the_rows_of_one_step_are_told_once_each(delivered, tmp_path):
    """An update and its evaluation share a step; the service may have had the first of them only."""

    def told(step, name):
        return {"env_steps": float(step), name: 1.0}

    rows = [told(1, "update"), told(1, "eval"), told(2, "update"), told(2, "eval"), told(3, "update")]
    first = RemoteSink(Service(), tmp_path, "test")
    for each in rows[:delivered]:
        first.write(each)
    first.close()
    names = []
    service = Service()
    service.send = lambda rows: names.extend((w.row["env_steps"], *set(w.row) - {"env_steps"}) for w in rows)
    second = RemoteSink(service, tmp_path, "test")
    second.resume(rows[:2])  # the checkpoint was at 1
    for each in rows[2:]:
        second.write(each)
    second.close()
    assert names == [(1, "update"), (1, "eval"), (2, "update"), (2, "eval"), (3, "update")][delivered:]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"id": "x"}', '{"id": "x", "env_steps": 9}', '{"id": "x", "env_steps": "y", "rows": 1}']
)
def test_a_note_that_cannot_be_read_begins_a_new_run(text, tmp_path):
    (tmp_path / "test.json").write_text(text)
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    sink.write(row(1))
    sink.close()
    assert service.ids == [None]


@pytest.mark.parametrize("method", ["begin", "send", "end"])
def test_what_a_service_raises_is_one_warning_and_the_truth_is_complete(method, tmp_path, caplog):
    sink = RemoteSink(Service(failing=method), tmp_path, "test")
    group = SinkGroup(JsonlSink(tmp_path / "metrics.jsonl"), [sink])
    for steps in range(1, 50):
        group.write(row(steps))
        threading.Event().wait(0.002)
    group.close()
    assert [r["env_steps"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 50))
    [message] = caplog.messages
    assert f"{method} refused" in message
    assert "switched off" in message


def test_rows_that_were_refused_are_told_by_the_resumed_run(tmp_path):
    class Flaky(Service):
        def send(self, rows):
            if rows[-1].row["env_steps"] > 3:
                raise ConnectionError("gone")
            super().send(rows)

    first = RemoteSink(Flaky(), tmp_path, "test")
    first.write(row(3))
    while not (tmp_path / "test.json").exists() or note(tmp_path)["env_steps"] < 3:
        threading.Event().wait(0.005)
    first.write(row(4))
    with pytest.raises(ConnectionError):
        first.close()
    service = Service()
    second = RemoteSink(service, tmp_path, "test")
    second.resume([row(3), row(4)])
    second.close()
    assert service.steps == [4]


def test_a_service_that_hangs_holds_neither_the_run_nor_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.05)
    gate = threading.Event()
    sink = RemoteSink(Service(gate=gate), tmp_path, "test")
    for steps in range(1, 1000):
        sink.write(row(steps))
    with pytest.raises(ParlError, match="did not take the last rows within 0 s"):
        sink.close()
    sink.close()
    gate.set()


def test_a_service_that_is_too_slow_is_given_up_before_memory_is(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_WAITING", 10)
    gate = threading.Event()
    sink = RemoteSink(Service(gate=gate), tmp_path, "test")
    for steps in range(1, 11):
        sink.write(row(steps))
    while sink._waiting.qsize() < 10:  # its thread may have taken the first already
        sink.write(row(11))
    with pytest.raises(ParlError, match="10 rows wait for it"):
        sink.write(row(12))
    gate.set()
    sink.close()


def test_flush_does_not_wait_for_the_next_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BATCH_EVERY_S", 1000.0)
    service = Service()
    sink = RemoteSink(service, tmp_path, "test")
    sink.write(row(1))
    sink.flush()
    for _ in range(1000):
        if service.steps:
            break
        threading.Event().wait(0.005)
    assert service.steps == [1]
    sink.close()


def test_a_config_is_flat_with_dots():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
