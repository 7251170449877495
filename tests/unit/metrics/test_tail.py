from parl_cli.metrics.tail import Tail


def test_rows_come_once_whole_and_in_order(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    assert tail.rows() == []
    with file.open("a") as out:
        out.write('{"a": 1}\n{"a": 2}\n{"a"')
        out.flush()
        assert tail.rows() == [{"a": 1}, {"a": 2}]
        assert tail.rows() == []
        out.write(": 3}\nnonsense\n")
        out.flush()
        assert tail.rows() == [{"a": 3}]


def test_a_file_that_was_cut_goes_on_at_its_new_end(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    tail = Tail(file)
    tail.rows()
    assert not tail.was_cut
    file.write_text('{"a": 1}\n')
    assert tail.rows() == []
    assert tail.was_cut
    with file.open("a") as out:
        out.write('{"a": 5}\n')
    assert tail.rows() == [{"a": 5}]
    assert not tail.was_cut
