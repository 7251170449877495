import multiprocessing
import sys

import pytest

from parl_cli.reports.load import read
from parl_cli.reports.status import is_held, silence_s, started, status
from parl_cli.training.run_dir import RunDir
from tests.helpers.run_folders import backdate, write_run


@pytest.mark.parametrize("said", ["finished", "interrupted", "failed"])
def test_what_run_json_says_of_the_end_is_believed(said, tmp_path):
    run = write_run(tmp_path / "run", status=said)
    backdate(run, 1e6)
    assert status(read(run)) == said


@pytest.mark.parametrize("said", ["", "done\x1b[2J", 7, None])
def test_anything_else_is_unknown(said, tmp_path):
    assert status(read(write_run(tmp_path / "run", status=said))) == "unknown"


def test_a_run_is_silent_a_minute_after_its_last_sign_of_life(tmp_path):
    run = write_run(tmp_path / "run", status="running")
    assert status(read(run)) == "running"
    backdate(run, 50)
    assert status(read(run)) == "running"
    backdate(run, 70)
    assert silence_s(read(run)) == pytest.approx(70, abs=5)
    assert status(read(run)) == "silent"


def hold(folder, ready, done):
    with RunDir(folder).held():
        ready.set()
        done.wait(30)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lists its locks")
def test_a_run_that_a_process_holds_is_running_however_long_its_updates_take(tmp_path):
    run = write_run(tmp_path / "run", status="running")
    backdate(run, 3600)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(run, ready, done), daemon=True)
    holder.start()
    try:
        assert ready.wait(60)
        assert is_held(run)
        assert status(read(run)) == "running"
        with pytest.raises(Exception, match="another process is training it"), RunDir(run).held():
            pass
    finally:
        done.set()
        holder.join(30)
    assert not is_held(run)
    assert status(read(run)) == "silent"


def test_looking_does_not_take_the_lock(tmp_path):
    run = write_run(tmp_path / "run", status="running")
    with RunDir(run).held():
        assert status(read(run)) == "running"
    with RunDir(run).held():
        pass


def test_when_it_began_comes_from_run_json_else_from_the_folder(tmp_path):
    early = read(write_run(tmp_path / "a", started="2026-01-01T00:00:00+0000"))
    late = read(write_run(tmp_path / "b", started="2026-01-02T00:00:00+0000"))
    nothing = read(write_run(tmp_path / "c", started="?"))
    assert started(late) - started(early) == 86_400
    assert started(nothing) == (tmp_path / "c").stat().st_mtime
