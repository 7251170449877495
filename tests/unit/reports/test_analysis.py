import json

import numpy as np
import pytest

from parl_cli.config import ReportCommand
from parl_cli.errors import ConfigError
from parl_cli.reports.analysis import analyse
from tests.helpers.run_folders import config, rows, write_run, write_seeds


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(**changes):
    return analyse(ReportCommand(**({"runs": ".", "resamples": 500} | changes)))


def by_name(task):
    return {result.name: result for result in task.results}


def test_scores_and_their_estimates(folder):
    write_seeds(folder, [4, 8, 6, 2], "ppo")
    write_seeds(folder, [1, 2, 3], "a2c")
    [task] = report().tasks
    assert task.name == "cartpole"
    ppo, a2c = by_name(task)["ppo"], by_name(task)["a2c"]
    assert ppo.scores.tolist() == [4, 8, 6, 2]
    assert (ppo.estimates["mean"].value, ppo.estimates["iqm"].value, a2c.estimates["median"].value) == (5, 5, 2)
    # pairs of (ppo, a2c): 4, 8 and 6 beat all three; 2 beats 1 and ties with 2
    assert task.improvements["ppo", "a2c"].value == pytest.approx((9 + 1.5) / 12)
    assert task.improvements["a2c", "ppo"].value == pytest.approx(1 - (9 + 1.5) / 12)


@pytest.mark.parametrize(
    ("changes", "score"),
    [({}, 3.0), ({"score": "best"}, 9.0), ({"score": "mean"}, 6.0), ({"steps": 250}, 8.0), ({"score": "eval"}, 42.0)],
)
def test_what_a_score_can_be(changes, score, folder):
    run = write_run(folder / "run", metrics=rows([5, 7, 9, 3]))
    for time, value in (("a", 41.0), ("b", 42.0)):
        (run / "eval" / time).mkdir(parents=True)
        (run / "eval" / time / "eval.json").write_text(json.dumps({"mean_return": value}))
    assert report(**changes).tasks[0].results[0].scores.tolist() == [pytest.approx(score, abs=0.7)]


def test_an_evaluation_metric_can_be_compared(folder):
    metrics = [row | {"eval/return_mean": 7.0 + row["update"]} for row in rows([1, 2, 3])]
    write_run(folder / "run", metrics=metrics)
    assert report(metric="eval/return_mean").tasks[0].results[0].scores.tolist() == [10.0]


def test_thresholds_count_runs_and_take_medians_in_which_failures_are_late(folder):
    write_seeds(folder, [10, 10, 3], "ppo")
    result = report(thresholds=[5, 3, 20]).tasks[0].results[0]
    assert [(p.threshold, p.reached, p.env_steps) for p in result.passings] == [
        (3, 3, 300.0),
        (5, 2, 500.0),
        (20, 0, np.inf),
    ]
    assert result.passings[0].time_s == pytest.approx(0.3)


def test_thresholds_of_a_task(folder):
    write_seeds(folder, [10, 12], env="x")
    write_seeds(folder, [10, 12], env="y")
    tasks = {task.name: task for task in report(thresholds={"x": [7.0]}).tasks}
    assert tasks["x"].thresholds == [7.0]
    assert tasks["y"].thresholds != [7.0]
    with pytest.raises(ConfigError, match=r"thresholds.z: no such task; x, y are"):
        report(thresholds={"z": [7.0]})


def test_speed_is_taken_from_the_rows(folder):
    for seed, speed in enumerate((1000.0, 2000.0, 4000.0)):
        write_run(folder / str(seed), config(seed=seed), rows([1, 2, 3, 4], steps_per_s=speed))
    speed = report().tasks[0].results[0].speed
    assert (speed.steps_per_s, speed.slowest, speed.fastest) == pytest.approx((2000, 1000, 4000))
    assert speed.shares == {"env": 0.25, "learn": 0.5}
    assert speed.memory_mb == 300


def test_all_tasks_together_are_scaled_by_their_ends(folder):
    write_seeds(folder, [100, 200], "ppo", env="x")
    write_seeds(folder, [0, 50], "a2c", env="x")
    write_seeds(folder, [2, 4], "ppo", env="y")
    write_seeds(folder, [1, 3], "a2c", env="y")
    overall = report(normalize={"y": [0.0, 10.0]}).overall
    assert overall.ends == {"x": (0, 200), "y": (0, 10)}
    assert overall.estimates["ppo"]["mean"].value == pytest.approx((0.75 + 0.3) / 2)
    assert overall.estimates["a2c"]["iqm"].value == pytest.approx(np.mean([0.1, 0.25]))  # of 0, 0.1, 0.25, 0.3
    assert overall.improvements["ppo", "a2c"].value == pytest.approx((1 + 3 / 4) / 2)
    for bad in ([1.0], [1.0, 1.0]):
        with pytest.raises(ConfigError, match=r"normalize.y=.*two different numbers"):
            report(normalize={"y": bad})


def test_without_two_groups_everywhere_there_is_no_table_over_all_tasks(folder):
    write_seeds(folder, [1, 2], "ppo", env="x")
    write_seeds(folder, [1, 2], "a2c", env="y")
    found = report()
    assert found.overall is None
    assert "no table over all tasks" in found.notes[-1]


def test_broken_runs_are_named_and_the_rest_is_shown(folder):
    _, bad, torn = write_seeds(folder, [1, 2, 3])
    (bad / "config.yaml").unlink()
    (torn / "metrics.jsonl").write_text('{"env_steps":1}\n{"en\n{"env_steps":2}\n')
    found = report()
    assert found.tasks[0].results[0].scores.tolist() == [1]
    assert [line.split(": ")[0] for line in found.broken] == ["ppo_cartpole/2", "ppo_cartpole/3"]


def test_runs_without_what_is_compared_are_left_out(folder):
    write_run(folder / "a", config(seed=1))
    write_run(folder / "b", config(seed=2), [{"env_steps": 1.0, "time_s": 1.0}])
    write_run(folder / "c", config(seed=3), rows([1, 2, 3]))
    assert report().notes == ["left out, no row has episode/return_mean: b"]
    found = report(steps=500)
    assert [run.path.name for run in found.tasks[0].results[0].runs] == ["a"]
    assert "left out, no episode/return_mean at steps=500, its rows go from 100 to 300: c" in found.notes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": "nope"}, "runs=nope: nothing is there"),
        ({"where": {"env": {"name": "acrobot"}}}, "where.env.name=acrobot: none of 1 runs"),
        ({"where": {"env": {"nam": "acrobot"}}}, "no run has a key env.nam"),
        ({"metric": "nope"}, "runs: none has what is compared: left out, no row has nope"),
        ({"score": "eval"}, "no eval.json; parl eval checkpoint=run makes one"),
        ({"by": ["nope"]}, r"by=\[nope\]: no run has such a key"),
    ],
)
def test_nothing_to_show_is_one_line(changes, words, folder):
    write_run(folder / "run")
    with pytest.raises(ConfigError, match=words) as caught:
        report(**changes)
    assert "\n" not in str(caught.value)


def test_only_broken_runs_are_an_error(folder):
    (write_run(folder / "run") / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"none of 1 can be read: run: config\.yaml is missing"):
        report()
