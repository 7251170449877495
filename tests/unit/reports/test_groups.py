import pytest

from parl_cli.errors import ConfigError
from parl_cli.reports.groups import group
from parl_cli.reports.load import find, read_all
from tests.helpers.run_folders import config, write_run

BY = ["algo.name", "env.name"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Writes a run per config and returns them all, read."""
    monkeypatch.chdir(tmp_path)

    def write(*configs, **info):
        for i, values in enumerate(configs):
            write_run(tmp_path / f"{i:02}", values, **info)
        return read_all(find(["."]))[0]

    return write


def shape(tasks):
    return {task.name: {c.name: [run.config["seed"] for run in c.runs] for c in task.contenders} for task in tasks}


def test_envs_are_tasks_and_algorithms_are_contenders(make):
    runs = make(*(config(algo, env, seed) for algo in ("a2c", "ppo") for env in ("x", "y") for seed in (1, 2)))
    tasks, notes = group(runs, BY)
    assert shape(tasks) == {env: {"a2c": [1, 2], "ppo": [1, 2]} for env in ("x", "y")}
    assert notes == []


def test_any_config_key_can_tell_groups_apart_and_numbers_are_in_order(make):
    runs = make(*(config(algo__learning_rate=rate) for rate in (0.01, 1e-4, 0.003)))
    tasks, _ = group(runs, ["algo.learning_rate"])
    assert shape(tasks) == {
        "cartpole": {"learning_rate=0.0001": [1], "learning_rate=0.003": [1], "learning_rate=0.01": [1]}
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "acrobot"}, r"runs on several envs are not comparable: env.name=cartpole \(00\) and env.name=acrobot"),
        ({"total_steps": 2000}, r"not comparable: total_steps=1000 \(00\) and total_steps=2000 \(01\)"),
        ({"env__max_episode_steps": 100}, "not comparable: env.max_episode_steps=null .*allow=.env.max_episode_steps"),
        ({"env__kwargs": {"gravity": 1}}, "not comparable: env.kwargs"),
    ],
)
def test_another_env_or_budget_is_not_comparable(changes, words, make):
    runs = make(config("ppo"), config("a2c", **changes))
    with pytest.raises(ConfigError, match=words):
        group(runs, ["algo.name"])


@pytest.mark.parametrize(
    ("changes", "allow"),
    [
        ({"env": "acrobot"}, ["env"]),
        ({"env": "acrobot"}, ["env.name", "env.id"]),
        ({"total_steps": 2000}, ["total_steps"]),
    ],
)
def test_what_is_allowed_is_compared(changes, allow, make):
    runs = make(config("ppo"), config("a2c", **changes))
    tasks, _ = group(runs, ["algo.name"], allow)
    assert [c.name for c in tasks[0].contenders] == ["a2c", "ppo"]


def test_budgets_may_differ_where_runs_are_compared_at_the_same_steps(make):
    runs = make(config("ppo"), config("a2c", total_steps=2000))
    assert group(runs, BY, same_steps=True)[0]


def test_runs_of_one_group_may_differ_in_the_seed_and_in_what_changes_no_learning(make):
    runs = make(config(seed=1), config(seed=2, num_threads=2, logger__live=False, vectorizer={"name": "subprocess"}))
    assert shape(group(runs, BY)[0]) == {"cartpole": {"ppo": [1, 2]}}


def test_other_settings_in_one_group_are_refused_with_all_ways_out(make):
    runs = make(config(seed=1), config(seed=2, algo__learning_rate=0.1, num_envs=8))
    with pytest.raises(ConfigError) as caught:
        group(runs, BY)
    text = str(caught.value)
    assert text.startswith("ppo on cartpole mixes runs of different settings: num_envs=4 (00) and num_envs=8 (01)")
    assert "(and in algo.learning_rate)" in text
    assert "by=[algo.name,env.name,num_envs]" in text
    assert group(runs, BY, ["num_envs", "algo"])[0]
    assert len(group(runs, [*BY, "num_envs"])[0][0].contenders) == 2


def test_a_key_that_another_version_did_not_have_is_no_difference(make):
    new = config(seed=2)
    new["algo"]["fresh"] = 1
    assert shape(group(make(config(seed=1), new), BY)[0]) == {"cartpole": {"ppo": [1, 2]}}


def test_settings_that_only_one_policy_of_a_run_has_are_a_difference(make):
    new = config(seed=2)
    new["policies"] = {"1": {"algo": {"learning_rate": 0.5}}}
    old = config(seed=1) | {"policies": {}}
    with pytest.raises(ConfigError, match=r"policies\.1\.algo\.learning_rate"):
        group(make(old, new), BY)


def test_of_runs_with_the_same_seed_the_newest_counts(tmp_path, make):
    write_run(tmp_path / "old", config(seed=1), started="2026-01-01T00:00:00+0000")
    runs = make(config(seed=1), config(seed=2))
    tasks, notes = group(runs, BY)
    assert [run.path.name for run in tasks[0].contenders[0].runs] == ["00", "01"]
    assert notes == ["left out, a newer run has the same settings and seed=1: old"]
    assert len(group(runs, BY, ["seed"])[0][0].contenders[0].runs) == 3


def test_runs_that_are_allowed_to_differ_all_count(make):
    runs = make(
        *(config(seed=seed, num_envs=number) for seed in (1, 2) for number in (4, 8)), config(seed=2, num_envs=8)
    )
    tasks, notes = group(runs, BY, ["num_envs"])
    assert [(run.config["seed"], run.config["num_envs"]) for run in tasks[0].contenders[0].runs] == [
        (1, 4),
        (1, 8),
        (2, 4),
        (2, 8),
    ]
    assert len(notes) == 1


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_unfinished_runs_are_left_out_unless_allowed(status, tmp_path, make):
    write_run(tmp_path / "open", config(seed=3), status=status)
    runs = make(config(seed=1))
    tasks, notes = group(runs, BY)
    assert shape(tasks) == {"cartpole": {"ppo": [1]}}
    assert notes == [f"left out, not finished ({status}): open"]
    assert shape(group(runs, BY, ["unfinished"])[0]) == {"cartpole": {"ppo": [1, 3]}}


def test_a_run_without_run_json_is_finished_when_its_steps_are_done(tmp_path, make):
    runs = make(config(seed=1), config(seed=2, total_steps=1000))
    (tmp_path / "00" / "run.json").unlink()
    runs = read_all([run.path for run in runs])[0]
    assert shape(group(runs, BY)[0]) == {"cartpole": {"ppo": [1, 2]}}


def test_nothing_finished_is_an_error(make):
    with pytest.raises(ConfigError, match=r"none of 2 runs is finished .*allow=\[unfinished\]"):
        group(make(config(seed=1), config(seed=2), status="failed"), BY)


@pytest.mark.parametrize(("by", "allow"), [(["algo.nam"], []), (BY, ["algo.nam"]), (BY, ["everything"])])
def test_unknown_keys_are_refused(by, allow, make):
    with pytest.raises(ConfigError, match="no run has such a key"):
        group(make(config()), by, allow)
