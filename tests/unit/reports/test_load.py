import numpy as np
import pytest

from parl_cli.errors import ConfigError
from parl_cli.reports import load
from parl_cli.reports.load import BrokenRunError, find, matches, read, read_all, select
from tests.helpers.run_folders import config, rows, write_run


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "outputs/ppo_cartpole/b", config(seed=2))
    write_run(tmp_path / "outputs/ppo_cartpole/a", config(seed=1))
    (tmp_path / "outputs/ppo_cartpole/latest").symlink_to("b", target_is_directory=True)
    for job in range(2):
        write_run(tmp_path / f"outputs/ppo_acrobot/sweep-1/{job}", config(env="acrobot", seed=job))
    (tmp_path / "outputs/bench").mkdir()
    return tmp_path / "outputs"


def names(outputs, *words):
    return [path.relative_to(outputs).as_posix() for path in find(words)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["outputs/ppo_cartpole/a"], ["ppo_cartpole/a"]),
        (["outputs/ppo_cartpole"], ["ppo_cartpole/a", "ppo_cartpole/b"]),
        (["outputs/ppo_cartpole/latest"], ["ppo_cartpole/b"]),
        (["outputs/ppo_cartpole/latest", "outputs/ppo_cartpole/*"], ["ppo_cartpole/b", "ppo_cartpole/a"]),
        (["outputs/ppo_acrobot/sweep-1"], ["ppo_acrobot/sweep-1/0", "ppo_acrobot/sweep-1/1"]),
        (["outputs/*/sweep-*/1"], ["ppo_acrobot/sweep-1/1"]),
        (
            ["outputs"],
            ["ppo_acrobot/sweep-1/0", "ppo_acrobot/sweep-1/1", "ppo_cartpole/a", "ppo_cartpole/b"],
        ),
    ],
)
def test_words_lead_to_runs_sweeps_folders_and_globs(words, found, outputs):
    assert names(outputs, *words) == found


@pytest.mark.parametrize(
    ("word", "reason"),
    [("outputs/nope", "nothing is there"), ("outputs/*/nope-*", "nothing is there"), ("outputs/bench", "no run in it")],
)
def test_a_word_that_leads_nowhere_is_refused(word, reason, outputs):
    with pytest.raises(ConfigError, match=reason):
        find([word])


def test_a_folder_whose_name_is_a_pattern_is_taken_as_it_is(tmp_path):
    write_run(tmp_path / "a[1]")
    assert find([str(tmp_path / "a[1]")]) == [tmp_path / "a[1]"]


def test_config_is_flat_and_metrics_are_series(outputs):
    run = read(outputs / "ppo_cartpole/a")
    assert run.config["algo.name"] == "ppo"
    assert run.config["policy.hidden_sizes"] == [64, 64]
    assert run.config["env.kwargs"] == {}
    x, y = run.series("episode/return_mean", "env_steps")
    assert np.array_equal(x, np.arange(100, 1001, 100))
    assert np.array_equal(y, np.arange(1, 11))


def test_series_leave_out_what_is_not_finite_and_keep_the_last_of_equal_x(tmp_path):
    metrics = [
        {"env_steps": 1.0, "r": 1.0},
        {"env_steps": 1.0, "r": 2.0},
        {"env_steps": 2.0, "r": float("nan")},
        {"env_steps": 3.0, "r": 3.0},
        {"env_steps": 4.0},
    ]
    x, y = read(write_run(tmp_path / "run", metrics=metrics)).series("r", "env_steps")
    assert x.tolist() == [1.0, 3.0]
    assert y.tolist() == [2.0, 3.0]


def test_a_torn_last_line_is_what_a_killed_run_leaves(tmp_path):
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 11')
    assert len(read(run).rows) == 10
    assert read(run).last_row()["env_steps"] == 1000


BREAK = {
    "config.yaml is missing": lambda run: (run / "config.yaml").unlink(),
    "config.yaml is no config": lambda run: (run / "config.yaml").write_text("- a\n- b\n"),
    "config.yaml holds aliases": lambda run: (run / "config.yaml").write_text("a: &x [1]\nb: *x\n"),
    "config.yaml is not what parl writes": lambda run: (run / "config.yaml").write_text("a: " + "x" * 2_000_000),
    "cannot read metrics.jsonl": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl has no row yet": lambda run: (run / "metrics.jsonl").write_text(""),
    "line 2 is not a JSON object": lambda run: (run / "metrics.jsonl").write_text('{"env_steps":1}\n{"en\n{}\n'),
}


@pytest.mark.parametrize("reason", BREAK)
def test_what_is_broken_is_named_with_its_reason(reason, tmp_path):
    run = write_run(tmp_path / "broken")
    BREAK[reason](run)
    with pytest.raises(BrokenRunError, match=f"broken: .*{reason}"):
        _ = read(run).rows


def test_broken_ones_do_not_keep_others_from_being_read(tmp_path):
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    (bad / "config.yaml").unlink()
    runs, broken = read_all([bad, good])
    assert [run.path for run in runs] == [good]
    assert len(broken) == 1


@pytest.mark.parametrize("text", [None, "", "[]", "{", "[" * 100_000])
def test_run_json_is_not_needed(text, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "run.json").unlink() if text is None else (run / "run.json").write_text(text)
    assert read(run).info == {}


def test_what_a_config_says_cannot_move_the_cursor(tmp_path):
    run = read(write_run(tmp_path / "run", config(env__id="\x1b[2Jevil\n")))
    assert run.config["env.id"] == "�[2Jevil�"


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [
        ("cartpole", "cartpole", True),
        ("cartpole", "cart*", True),
        ("cartpole", ["acrobot", "cartpole"], True),
        ("cartpole", ["acrobot"], False),
        (0.001, "1e-3", True),
        (0.001, 0.01, False),
        (64, "64", True),
        (None, "null", True),
        (True, "true", True),
        (True, 1, False),
        ([64, 64], "[64,64]", True),
        ([64, 64], [64, 64], True),
    ],
)
def test_values_are_compared_as_they_are_typed(value, wanted, same):
    assert matches(value, wanted) == same


def test_selecting_by_config_values(outputs):
    runs, _ = read_all(find([str(outputs)]))
    assert len(select(runs, {"env.name": "acrobot"})) == 2
    assert len(select(runs, {"env.name": "acrobot", "seed": "1"})) == 1
    assert select(runs, {"env.name": "pendulum"}) == []
    with pytest.raises(ConfigError, match=r"no run has a key env.nam; did you mean env.name"):
        select(runs, {"env.nam": "acrobot"})


def test_last_row_of_a_long_file_is_read_from_its_end(tmp_path):
    run = read(write_run(tmp_path / "run", metrics=rows(range(2000))))
    assert run.metrics_file.stat().st_size > load._TAIL_BYTES
    assert run.last_row()["env_steps"] == 200_000
    assert "rows" not in vars(run)


def test_reading_runs_needs_no_torch(tmp_path):
    import subprocess
    import sys

    code = "import sys; import parl_cli.reports.analysis, parl_cli.reports.terminal; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
