import json
import os
import signal
import threading
import time

import pytest

from parl_cli import cli
from parl_cli.commands import watch
from parl_cli.errors import ConfigError
from parl_cli.metrics.jsonl import encode_row
from tests.helpers.run_folders import backdate, config, rows, write_run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    return tmp_path


def parl(capsys, *args):
    code = cli.main(["watch", *args])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("word", ["outputs/a", "run=outputs/a", "outputs/latest"])
def test_a_finished_run_is_told_and_left(word, folder, capsys):
    write_run(folder / "outputs/a")
    (folder / "outputs/latest").symlink_to("a")
    code, out, _ = parl(capsys, word)
    assert code == 0
    assert out.startswith("steps 1,000/1,000 100%")
    assert "finished" in out
    assert "run folder  outputs/a" in out


def test_a_run_is_followed_to_its_end(folder, capsys):
    run = write_run(folder / "run", config(total_steps=600), rows([1, 2]), status="running")

    def train():
        for row in rows([1, 2, 3, 4, 5, 6])[2:]:
            time.sleep(0.05)
            with (run / "metrics.jsonl").open("ab") as file:
                file.write(encode_row(row | {"eval/return_mean": 1.0}))
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))

    trainer = threading.Thread(target=train)
    trainer.start()
    code, out, _ = parl(capsys, "run")
    trainer.join()
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("steps")] == [
        f"{n}/600" for n in (300, 400, 500, 600)
    ]
    assert out.rstrip().endswith("parl resume run=run")
    assert "interrupted" in out


def test_ctrl_c_leaves_and_the_run_goes_on(folder, capsys):
    run = write_run(folder / "run", status="running")
    before = (run / "run.json").read_bytes()
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    code, out, err = parl(capsys, "run")
    assert (code, err) == (130, "")
    assert out.endswith("left; what was looked at goes on\n")
    assert (run / "run.json").read_bytes() == before


def test_a_killed_run_says_how_to_go_on(folder, capsys):
    backdate(write_run(folder / "run", status="running"), 7200)
    code, out, _ = parl(capsys, "run")
    assert code == 0
    assert "silent" in out
    assert "nothing was written for 2h 00m" in out
    assert "parl resume run=run" in out


def test_a_failed_run_tells_its_error(folder, capsys):
    write_run(folder / "run", status="failed", error="NaN in loss\x1b[2J")
    out = parl(capsys, "run")[1]
    assert "NaN in loss�[2J" in out


def test_once_does_not_wait(folder, capsys):
    write_run(folder / "run", status="running")
    code, out, _ = parl(capsys, "run", "--once")
    assert (code, "running" in out) == (0, True)


def test_a_folder_of_runs_is_a_board(folder, capsys):
    write_run(folder / "runs/a", config(seed=1), argv=["parl", "train", "seed=1"])
    write_run(folder / "runs/b", config(seed=2), argv=["parl", "train", "seed=2"])
    (write_run(folder / "runs/c") / "config.yaml").unlink()
    code, out, _ = parl(capsys, "runs")
    assert code == 0
    assert out.splitlines() == [
        "seed=1  finished  steps 1,000/1,000  return 10.0",
        "seed=2  finished  steps 1,000/1,000  return 10.0",
        "2 finished · 1 broken",
        "broken: runs/c: config.yaml is missing",
    ]


def test_the_default_is_what_was_begun_last(folder):
    write_run(folder / "outputs/x/a", started="2026-01-02T00:00:00+0000")
    write_run(folder / "outputs/x/b", started="2026-01-01T00:00:00+0000")
    assert watch.latest() == folder / "outputs/x/a"
    sweep = folder / "outputs/x/sweep-1"
    write_run(sweep / "0", started="2026-01-03T00:00:00+0000")
    assert watch.latest() == sweep / "0"
    (sweep / "sweep.json").write_text("{}")
    assert watch.latest() == sweep
    write_run(folder / "outputs/x/c", started="2036-01-01T00:00:00+0000")
    assert watch.latest() == folder / "outputs/x/c"


def test_a_sweep_whose_first_job_has_not_begun_is_followed(folder):
    sweep = folder / "outputs/x/sweep-1"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    assert watch.latest() == sweep


def test_a_sweep_of_one_job_is_a_sweep(folder):
    write_run(folder / "sweep-1/0")
    (folder / "sweep-1/sweep.json").write_text("{}")
    assert watch.chosen("sweep-1") == folder / "sweep-1"
    (folder / "sweep-1/sweep.json").unlink()
    assert watch.chosen("sweep-1") == folder / "sweep-1/0"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nope"], "watch=nope: no such folder"),
        (["empty"], "watch=empty: no run in it"),
        (["broken"], "broken: config.yaml is missing"),
        ([], "there is no outputs/ here"),
        (["a", "b"], "unrecognized arguments: b"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, reason, folder, capsys):
    (folder / "empty").mkdir()
    (write_run(folder / "broken") / "config.yaml").unlink()
    code, out, err = parl(capsys, *words)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_only_broken_runs_are_an_error(folder):
    (write_run(folder / "outputs/a") / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no run can be read: outputs/a: config\.yaml is missing"):
        watch.latest()
