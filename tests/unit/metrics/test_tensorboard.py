import struct
import sys

import pytest

from parl_cli.errors import ConfigError
from parl_cli.metrics.tensorboard import TensorBoardSink


def events(folder):
    """Every event in the folder's files, in order, by the record format: length, crc, data, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return [(e.step, v.tag, v.simple_value) for e in events(folder) for v in e.summary.value]


def test_row_becomes_scalars_over_env_steps(tmp_path):
    sink = TensorBoardSink(tmp_path / "tb")
    sink.write({"env_steps": 128.0, "loss/policy": 0.5, "update": 1.0})
    sink.close()
    assert scalars(tmp_path / "tb") == [(128, "loss/policy", 0.5), (128, "update", 1.0)]


def test_first_scalar_of_a_tag_carries_unit_and_meaning(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"env_steps": 1.0, "policy/entropy": 0.5, "my/own": 1.0})
    sink.write({"env_steps": 2.0, "policy/entropy": 0.4})
    sink.close()
    texts = [value.metadata.summary_description for event in events(tmp_path) for value in event.summary.value]
    assert "[nats]" in texts[0]
    assert texts[1:] == ["", ""]


def test_resume_purges_everything_after_the_last_kept_row(tmp_path):
    first = TensorBoardSink(tmp_path)
    for step in (10.0, 20.0, 30.0):
        first.write({"env_steps": step, "x": step})
    first.close()
    second = TensorBoardSink(tmp_path)
    second.resume(iter([{"env_steps": 10.0}, {"env_steps": 20.0}]))
    second.write({"env_steps": 30.0, "x": 3.0})
    second.close()
    found = events(tmp_path)
    starts = [event for event in found if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(21, starts[0].session_log.START)]
    assert found.index(starts[0]) > 3, "the purge must come after the first run's events"
    assert len(list(tmp_path.iterdir())) == 2, "a resume in the same second must not overwrite the first file"


def test_flush_makes_rows_visible_before_the_end(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"env_steps": 1.0, "x": 1.0})
    sink.flush()
    assert scalars(tmp_path) == [(1, "x", 1.0)]
    sink.close()
    sink.close()


def test_missing_library_names_the_pip_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r'pip install "parl-cli\[tensorboard\]"'):
        TensorBoardSink(tmp_path)
