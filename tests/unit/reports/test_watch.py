import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from parl_cli.metrics.jsonl import encode_row
from parl_cli.reports.load import read
from parl_cli.reports.watch import Board, Watched, budget
from tests.helpers.run_folders import backdate, config, rows, write_run


def append(run, *more):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"".join(map(encode_row, more)))


def console(width=80, height=24):
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )


def draw(board, width=80, height=24):
    board._console = out = console(width, height)
    out.print(board.render("Ctrl-C leaves"))
    return out.file.getvalue().splitlines()


def typed(*words):
    return ["parl", "train", *words]


def test_a_growing_run_is_followed(tmp_path):
    run = write_run(tmp_path / "run", config(total_steps=2000), rows([1, 2, 3]), status="running")
    watched = Watched(run)
    watched.poll()
    assert (watched.tracker.env_steps, watched.tracker.total_steps, watched.status) == (300, 2000, "running")
    append(run, rows([1, 2, 3, 4])[-1])
    watched.poll()
    assert (watched.tracker.env_steps, len(watched.new), watched.is_anew) == (400, 1, False)
    assert watched.tracker.returns.values == [1, 2, 3, 4]


def test_a_run_that_a_resume_cut_back_begins_anew(tmp_path):
    run = write_run(tmp_path / "run", metrics=rows([1, 2, 3, 4]), status="running")
    watched = Watched(run)
    watched.poll()
    (run / "metrics.jsonl").write_bytes(b"".join(map(encode_row, rows([1, 2]))))
    watched.poll()
    assert watched.is_anew
    assert (watched.tracker.env_steps, watched.tracker.returns.values) == (200, [1, 2])


def test_a_run_without_rows_yet_is_no_error(tmp_path):
    watched = Watched(write_run(tmp_path / "run", metrics=[], status="running"))
    watched.poll()
    assert watched.tracker.env_steps == 0
    append(watched.folder, rows([1])[0])
    watched.poll()
    assert watched.tracker.env_steps == 100


def test_how_it_ended_is_read_when_it_is_written(tmp_path):
    run = write_run(tmp_path / "run", status="running")
    watched = Watched(run)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": "failed", "error": "boom"}))
    watched.poll()
    assert (watched.status, watched.run.info["error"]) == ("failed", "boom")


@pytest.mark.parametrize(
    ("changes", "info", "steps"),
    [
        ({}, {}, 1000),
        ({"total_steps": 1001}, {}, 1100),  # whole updates of 4 × 25
        ({"total_steps": 1001}, {"env_steps": 5000}, 5000),  # extended by a resume
        ({"total_steps": 1001, "num_policies": 2}, {}, 1050),  # of each policy: 2 × 25
        ({"total_steps": 1001, "num_policies": 0}, {}, 1100),
        ({"total_steps": "x"}, {"env_steps": "y"}, 100),
    ],
)
def test_the_budget_is_whole_updates_or_what_was_done(changes, info, steps, tmp_path):
    assert budget(read(write_run(tmp_path / "run", config(**changes), **info))) == steps


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Four jobs: one done, one that runs, one that failed, one that waits."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep-1"
    jobs = []
    for number, status in enumerate(("finished", "running", "failed", None)):
        overrides = ["env=cartpole", f"seed={number}"]
        jobs.append({"folder": str(number), "overrides": overrides})
        if status is not None:
            values = config(seed=number, total_steps=2000)
            write_run(folder / str(number), values, rows([1, 2, 3]), status=status, argv=typed(*overrides))
    (folder / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    return folder


def test_a_sweep_is_a_table_of_its_jobs(sweep):
    board = Board(sweep)
    board.poll()
    lines = draw(board)
    body = [line.strip("│ ") for line in lines]
    states = {line.split()[0]: line.split()[1] for line in body if line.startswith("seed=")}
    assert states == {"seed=0": "finished", "seed=1": "running", "seed=2": "failed", "seed=3": "waiting"}
    assert [line.split()[0] for line in body if line.startswith("seed=")] == ["seed=1", "seed=2", "seed=0", "seed=3"]
    assert any(line.startswith("1 running · 1 failed · 1 finished · 1 waiting · eta ") for line in body)
    assert "Ctrl-C leaves" in lines[-1]
    assert board.is_going_on


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_every_line_fits_and_the_frame_is_straight(width, sweep):
    board = Board(sweep)
    board.poll()
    lines = draw(board, width)
    assert {cell_len(line) for line in lines} == {min(width, 124)}
    assert all(line[0] in "╭│╰" and line[-1] in "╮│╯" for line in lines)


def test_where_there_is_little_room_groups_go_without_their_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, words in enumerate((("algo=ppo", "env=acrobot"), ("algo=truly_ppo", "env=cartpole"))):
        write_run(tmp_path / "s" / str(number), config(), rows([1]), argv=typed(*words, f"seed={number}"))
    board = Board(tmp_path / "s")
    board.poll()
    assert any("truly_ppo cartpole seed=1  " in line for line in draw(board, 80))
    assert any("algo=truly_ppo env=cartpole seed=1  " in line for line in draw(board, 140))


def test_a_crowded_table_is_no_taller_than_the_terminal(tmp_path):
    for i in range(40):
        write_run(tmp_path / str(i), config(seed=i), rows([1]), argv=typed(f"seed={i}"))
    board = Board(tmp_path)
    board.poll()
    lines = draw(board, height=20)
    assert len(lines) <= 19
    assert any("… and 26 more" in line for line in lines)


def test_jobs_that_begin_later_are_found_and_one_that_breaks_is_named(sweep):
    board = Board(sweep)
    board.poll()
    write_run(sweep / "3", config(seed=3), status="running", argv=typed("env=cartpole", "seed=3"))
    (sweep / "0" / "config.yaml").write_text("nonsense")
    board.poll()
    assert board.waiting == []
    assert board.watched[sweep / "3"].status == "running"
    assert board.broken == ["sweep-1/0: config.yaml is no config"]


def test_it_is_over_when_nothing_runs_and_nobody_holds_the_sweep(sweep):
    backdate(sweep / "1", 3600)
    board = Board(sweep)
    board.poll()
    assert not board.is_going_on
    assert "eta" not in board.overview()
    assert board.overview() == "1 failed · 1 silent · 1 finished · 1 waiting"


def test_a_sweep_that_has_no_run_yet_is_a_table_of_waiting_jobs(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [{"folder": "0", "overrides": ["seed=1"]}]}))
    board = Board(tmp_path)
    board.poll()
    assert board.overview() == "1 waiting"
    assert any("waiting" in line for line in draw(board))


def test_a_job_that_was_killed_has_failed_once_its_sweep_says_so(tmp_path):
    write_run(tmp_path / "0", config(seed=1), status="running")
    board = Board(tmp_path)
    for state, shown in (("running", "1 running"), ("failed", "1 failed"), ("done", "1 running")):
        jobs = [{"folder": "0", "overrides": ["seed=1"], "state": state}]
        (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
        board.poll()
        assert board.overview().startswith(shown)


def test_a_job_that_failed_before_it_had_a_run_does_not_wait(tmp_path):
    jobs = [
        {"folder": f"{i}", "overrides": [f"seed={i}"], "state": state} for i, state in enumerate(["failed", "done"])
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    write_run(tmp_path / "1", config(seed=1))
    (tmp_path / "1" / "config.yaml").write_text("nonsense")  # broken from the beginning: it does not wait either
    board = Board(tmp_path)
    board.poll()
    assert board.overview() == "1 failed · 1 broken"
    assert any("seed=0" in line and "failed" in line for line in draw(board))


@pytest.mark.parametrize("text", ["", "[]", '{"jobs": 3}', '{"jobs": [1]}', '{"jobs": [{}]}'])
def test_a_ledger_that_cannot_be_read_is_none(text, sweep):
    (sweep / "sweep.json").write_text(text)
    board = Board(sweep)
    board.poll()
    assert board.waiting == []
    assert len(board.watched) == 3


def test_runs_are_called_by_what_was_typed_for_each(tmp_path):
    for name, words in {"a": ["algo=ppo", "seed=1"], "b": ["algo=a2c", "seed=1"], "c": ["seed=1"]}.items():
        write_run(tmp_path / name, argv=typed(*words))
    board = Board(tmp_path)
    board.poll()
    assert list(board.labels().values()) == ["algo=ppo", "algo=a2c", "c"]
