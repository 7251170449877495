import csv
import math

import pytest

from parl_cli.metrics.csv import CsvSink


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_rows_are_written_under_one_header(path):
    sink = CsvSink(path)
    sink.write({"env_steps": 1.0, "x": 0.5})
    sink.write({"env_steps": 2.0, "x": 1 / 3})
    assert table(path) == [["env_steps", "x"], ["1", "0.5"], ["2", "0.3333333"]]
    sink.close()


def test_late_column_widens_the_table_and_leaves_earlier_cells_empty(path):
    sink = CsvSink(path)
    sink.write({"env_steps": 1.0})
    sink.write({"env_steps": 2.0, "eval/return_mean": 9.5})
    sink.write({"env_steps": 3.0})
    sink.close()
    assert table(path) == [["env_steps", "eval/return_mean"], ["1", ""], ["2", "9.5"], ["3", ""]]


def test_cells_follow_their_columns_whatever_the_order_of_keys(path):
    sink = CsvSink(path)
    sink.write({"a": 1.0, "b": 2.0})
    sink.write({"b": 4.0, "a": 3.0})
    sink.close()
    assert table(path)[1:] == [["1", "2"], ["3", "4"]]


def test_nan_and_infinity_are_written_as_words(path):
    sink = CsvSink(path)
    sink.write({"a": math.nan, "b": -math.inf})
    sink.close()
    assert table(path)[1] == ["nan", "-inf"]


def test_resume_leaves_exactly_the_rows_of_the_history(path):
    path.write_text("env_steps,x\n1,1\n2,2\n3,torn")
    sink = CsvSink(path)
    sink.resume(iter([{"env_steps": 1.0, "x": 1.0}, {"env_steps": 2.0, "y": 5.0}]))
    sink.write({"env_steps": 3.0, "x": 7.0})
    sink.close()
    assert table(path) == [["env_steps", "x", "y"], ["1", "1", ""], ["2", "", "5"], ["3", "7", ""]]


def test_resume_before_the_first_row_starts_an_empty_table(path):
    path.write_text("env_steps\n1\n")
    sink = CsvSink(path)
    sink.resume([])
    sink.write({"update": 1.0})
    sink.close()
    assert table(path) == [["update"], ["1"]]


def test_sink_without_resume_continues_the_table_that_is_there(path):
    first = CsvSink(path)
    first.write({"a": 1.0})
    first.close()
    second = CsvSink(path)
    second.write({"b": 2.0})
    second.close()
    assert table(path) == [["a", "b"], ["1", ""], ["", "2"]]


def test_failed_rewrite_keeps_the_old_table_and_no_temporary_file(path, monkeypatch):
    sink = CsvSink(path)
    sink.write({"a": 1.0})

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("parl_cli.metrics.csv.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        sink.write({"a": 2.0, "b": 1.0})
    assert table(path) == [["a"], ["1"]]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.csv"]
