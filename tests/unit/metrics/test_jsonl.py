import errno
import json
import math
from pathlib import Path

import pytest

from parl_cli.errors import CheckpointError, ParlError, WriteError
from parl_cli.metrics.jsonl import JsonlSink, encode_row, read_jsonl


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_rows(path, numbers):
    sink = JsonlSink(path)
    for number in numbers:
        sink.write({"env_steps": float(number), "loss/policy": number / 3})
    return sink


def steps(path):
    return [row["env_steps"] for row in read_jsonl(path)]


def test_a_row_is_in_the_file_as_soon_as_it_is_written(path):
    sink = write_rows(path, [1])
    assert path.read_bytes() == b'{"env_steps":1,"loss/policy":0.3333333}\n'
    sink.close()


def test_whole_numbers_stay_exact_and_others_keep_seven_digits():
    row = json.loads(encode_row({"a": 2.0**52 + 1, "b": 2.5e-4, "c": 123456.789, "d": -3.0}))
    assert row == {"a": 2**52 + 1, "b": 0.00025, "c": 123456.8, "d": -3}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_lacks_is_null_and_reads_as_nan(path, value):
    sink = JsonlSink(path)
    sink.write({"env_steps": 1, "x": value})
    sink.close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"env_steps": 1, "x": None}
    assert math.isnan(next(read_jsonl(path))["x"])


@pytest.mark.parametrize("torn", [b'{"env_steps":4', b'{"env_steps":4}', b"\x00\x00\x00\n", b"[4]\n", b'{"a":"b"}\n'])
def test_torn_last_line_is_left_out(path, torn):
    write_rows(path, [1, 2]).close()
    with path.open("ab") as file:
        file.write(torn)
    assert steps(path) == [1, 2]


def test_damage_inside_the_file_is_an_error_naming_the_line(path):
    path.write_bytes(b'{"env_steps":1}\nnonsense\n{"env_steps":3}\n')
    with pytest.raises(ParlError, match="line 2"):
        list(read_jsonl(path))


def test_reading_ends_where_it_is_told_also_if_the_file_grows_meanwhile(path):
    sink = JsonlSink(path)
    for step in (1, 2, 3):
        sink.write({"env_steps": step})
        end = sink.offset()
    rows = read_jsonl(path, end=end)
    seen = [next(rows)["env_steps"]]
    sink.write({"env_steps": 4})
    seen += [row["env_steps"] for row in rows]
    assert seen == [1, 2, 3]
    assert list(read_jsonl(path, end=0)) == []
    sink.close()


def test_truncate_removes_later_rows_and_a_torn_line_and_goes_on(path):
    sink = write_rows(path, [1, 2])
    offset = sink.offset()
    sink.write({"env_steps": 3.0})
    sink.close()
    with path.open("ab") as file:
        file.write(b'{"env_st')
    resumed = JsonlSink(path)
    resumed.truncate(offset)
    resumed.write({"env_steps": 30.0})
    resumed.close()
    assert steps(path) == [1, 2, 30]


def test_offset_counts_what_an_earlier_process_wrote(path):
    write_rows(path, [1, 2]).close()
    sink = JsonlSink(path)
    assert sink.offset() == path.stat().st_size > 0
    sink.close()
    assert sink.offset() == path.stat().st_size


def test_truncate_to_the_beginning_empties_the_file(path):
    sink = write_rows(path, [1])
    sink.truncate(0)
    sink.close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("offset", "why"), [(10_000, "has 26 bytes"), (5, "no line end"), (-1, "at least 0")])
def test_offset_that_does_not_fit_the_file_is_refused(path, offset, why):
    path.write_bytes(b'{"a":1}\n{"a":2}\n{"a":333}\n')
    sink = JsonlSink(path)
    with pytest.raises(CheckpointError, match=why):
        sink.truncate(offset)
    sink.close()
    assert path.stat().st_size == 26


@pytest.mark.parametrize("offset", [None, "8", True, 8.0])
def test_offset_of_another_type_is_refused(path, offset):
    path.write_bytes(b'{"a":1}\n')
    sink = JsonlSink(path)
    with pytest.raises(CheckpointError, match="whole number"):
        sink.truncate(offset)
    sink.close()


def test_unwritable_place_is_one_line_with_the_path(tmp_path):
    with pytest.raises(ParlError, match=r"metrics\.jsonl: cannot be written \(No such file"):
        JsonlSink(tmp_path / "missing" / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_full_disk_is_one_line_and_the_file_can_still_be_closed():
    sink = JsonlSink("/dev/full")
    with pytest.raises(ParlError, match=r"^/dev/full: cannot be written \(No space left on device\)$"):
        sink.write({"env_steps": 1.0})
    sink.close()


def test_a_row_that_a_full_disk_tore_leaves_nothing(path):
    class AlmostFull:
        def __init__(self, file):
            self.file, self.room = file, 5
            self.tell, self.truncate, self.close = file.tell, file.truncate, file.close

        def write(self, line):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room = 0
            return self.file.write(line[:5])

    sink = write_rows(path, [1])
    whole = path.read_bytes()
    real = sink._file
    sink._file = AlmostFull(real)
    with pytest.raises(WriteError):
        sink.write({"env_steps": 2.0})
    assert path.read_bytes() == whole
    sink._file = real
    sink.write({"env_steps": 3.0})
    sink.close()
    assert [row["env_steps"] for row in read_jsonl(path)] == [1, 3]


def test_writing_after_close_is_an_error(path):
    sink = write_rows(path, [1])
    sink.close()
    sink.close()
    with pytest.raises(ParlError, match="closed"):
        sink.write({"env_steps": 2.0})
