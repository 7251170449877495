"""The tables of learning: what is asked is reached by the rows, and rows are run, chosen and written as they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.learning import lag, run, thresholds

RUN = {task: run.newest_per_seed(row for row in run.read_rows(run.ROWS) if row["task"] == task) for task in run.TARGETS}
COMPLETE = [task for task, target in run.TARGETS.items() if target.asked is not None and len(RUN[task]) >= target.seeds]


# what is not reached is known by name, and said in the README; once it is reached, its name must go
SHORT = ["ppo/bipedal_walker"]


@pytest.mark.parametrize("task", COMPLETE)
def test_a_task_that_was_run_over_the_seeds_asked_reaches_what_is_asked_or_is_said_to_be_short(task: str):
    assert run.TARGETS[task].reached([float(row["return"]) for row in RUN[task]]) is (task not in SHORT)


@pytest.mark.parametrize("task", SHORT)
def test_what_is_short_of_its_target_is_said_in_the_readme(task: str):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"Short of what is asked: `{task}`" in readme


@pytest.mark.parametrize("env", ["pusher", "humanoid"])
def test_every_seed_of_ppo_is_above_random_actions(env: str):
    [random] = RUN[f"random/{env}"]
    worst = min(float(row["return"]) for row in RUN[f"ppo/{env}"])
    assert worst > float(random["return"]) + float(random["return_std"])


@pytest.mark.parametrize(("of", "reached"), [("mean", False), ("median", True), ("each", False)])
def test_what_is_asked_is_asked_of_the_mean_the_median_or_each_seed(of: str, reached: bool):
    assert run.Target(3, 10, "", of).reached([0.0, 10.0, 11.0]) is reached


def test_every_row_is_of_a_task_that_is_listed():
    assert {row["task"] for row in run.read_rows(run.ROWS)} <= set(run.TARGETS)


def test_a_task_without_rows_is_listed_with_no_seeds():
    for task, target in run.TARGETS.items():
        assert f"| `{task}` | – | {target} | 0 of {target.seeds} | – |" in run.table([])


def test_one_seed_is_printed_without_deviation_and_interval():
    assert run.over_seeds([-29.69], digits=1) == "-29.7 (1 seed)"
    assert run.over_seeds([1.0, 3.0]) == "2 ± 1 [1, 3]"


def test_the_newest_row_of_each_seed_counts():
    rows = [{"seed": seed, "commit": commit} for seed, commit in (("10", "a"), ("2", "a"), ("10", "b"))]
    assert run.newest_per_seed(rows) == [{"seed": "2", "commit": "a"}, {"seed": "10", "commit": "b"}]


THRESHOLD_ROW = {"env": "hopper", "algo": "ppo", "seed": "1", "commit": "a", "one": "", "ten": "", "training": ""}


def test_two_rows_of_a_seed_are_one_seed_in_the_table_of_thresholds():
    row = THRESHOLD_ROW | {"one": "never", "ten": "never"}
    written = thresholds.table([row, row | {"commit": "b", "one": "2000"}])
    assert "| hopper | 3000 | `ppo` | 2 | 1 of 1 | – | 0 of 1 |  | not measured | 273 | b |" in written
    assert "60 runs. Evaluated: 1, " in written
    assert "hopper (`ppo` 1), half_cheetah (none), swimmer (none)" in written


def test_a_seed_that_never_reached_counts_as_later_and_one_that_was_not_measured_not_at_all():
    rows = [THRESHOLD_ROW | {"seed": str(k), "one": steps} for k, steps in enumerate(["never", "2000", "3000"])]
    rows.append(THRESHOLD_ROW | {"seed": "1", "training": "9000"})
    assert "| `ppo` | 3 | 2 of 3 |  | not measured | 9 | 1 of 1 | 273 |" in thresholds.table(rows)
    assert "| `ppo` | – | 1 of 2 |" in thresholds.table(rows[:2])


def test_a_threshold_is_reached_by_the_mean_of_so_many_evaluations_in_a_row():
    curve = [(1, 0.0), (2, 10.0), (3, 4.0), (4, 9.0)]
    assert [thresholds.first(curve, 6.0, count) for count in (1, 2, 3, 4, 5)] == [2, 3, 4, "never", "never"]


def test_a_run_is_stopped_when_nothing_more_is_asked_of_it(tmp_path: Path):
    made = tmp_path / "run" / "metrics.jsonl"
    run.parl(
        *("train", "total_steps=1000000000", f"hydra.run.dir={tmp_path / 'run'}"),
        cwd=tmp_path,
        until=lambda: made.exists() and made.stat().st_size > 0,
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


def test_again_is_only_done_by_a_row_of_this_commit(monkeypatch):
    monkeypatch.setattr(run, "commit", lambda: "new")
    old = {"task": "ppo/acrobot", "seed": "1", "commit": "old"}
    setting = {"task": "ppo/acrobot", "seed": 1}
    assert run.is_there([old], False, **setting)
    assert not run.is_there([old], True, **setting)
    assert run.is_there([old, old | {"commit": "new"}], True, **setting)
    assert not run.is_there([old], False, **setting | {"seed": 2})


@pytest.mark.parametrize(
    ("module", "train"),
    [
        (run, lambda folder: run.train_and_evaluate("ppo/acrobot", 1, folder)),
        (thresholds, lambda folder: thresholds.run("hopper", "ppo", 1)),
        (lag, lambda folder: lag.run("impala", 8, True, 1)),
    ],
    ids=["run", "thresholds", "lag"],
)
def test_a_row_is_of_the_commit_that_training_began_at(module, train, tmp_path: Path, monkeypatch):
    head = ["before"]

    def parl(command: str, *arguments: str, cwd: Path, until: object = None) -> None:
        head.append("after")
        if command == "eval":
            (cwd / "eval").mkdir()
            (cwd / "eval" / "eval.json").write_text(json.dumps({"mean_return": 1.0, "std_return": 0.0}))
            return
        folder = cwd / "run"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"env_steps": 10, "wall_s": 1.0}))
        (folder / "metrics.jsonl").write_text(
            json.dumps({"env_steps": 10, "episode/return_mean": 1.0, "eval/return_mean": 1.0}) + "\n"
        )

    monkeypatch.setattr(module, "parl", parl)
    monkeypatch.setattr(module, "commit", lambda: head[-1])
    assert train(tmp_path)["commit"] == "before"
    assert head[-1] == "after"


@pytest.mark.parametrize("module", [run, thresholds, lag], ids=["run", "thresholds", "lag"])
@pytest.mark.parametrize(
    ("typed", "words"),
    [(["ppo/ant"], "ppo/ant is not listed; choose from "), (["--seeds", "0"], "0: a number of seeds is a whole")],
)
def test_what_is_not_listed_is_refused(module, typed, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", *typed])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
