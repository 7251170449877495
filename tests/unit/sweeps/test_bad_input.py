"""Bad input around sweeps: one line, exit code 2, nothing written. In this process: no job starts."""

import pytest

from parl_cli.cli import main
from tests.helpers.runs import tree
from tests.helpers.sweeps import new_ledger


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("[]")
    (tmp_path / "sweep").mkdir()
    ledger = new_ledger(tmp_path / "sweep", ["seed=1"])
    ledger.plugins = ["some.plugin"]
    ledger.save()
    return tmp_path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "-m", "seed=1,2", "hydra.sweep.subdir=same"], "have the same folder, hydra.sweep.subdir=same"),
        (["train", "-m", "seed=1,2", "hydra.sweep.subdir=../x"], "must be a folder below"),
        (["train", "-m", "seed=1,2", "hydra.sweep.subdir=a/${seed}/.."], "must be a folder below"),
        (["train", "-m", "algo.num_minibatches=1,7"], "job 1 (algo.num_minibatches=7)"),
        (["train", "-m", "seed=1,2", "hydra.sweep.dir=empty/../broken"], "already in use"),
        (["train", "-m", "seed=1,2", "sweep.num_jobs=0"], "sweep.num_jobs=0: must be at least 1"),
        (["train", "-m", "seed=1,2", "sweep.n_jobs=2"], "did you mean num_jobs?"),
        (["train", "-m", "sweep.num_jobs=1,2"], "sweep.num_jobs=1,2: must be one value"),
        (["train", "-m", "sweep=nonsense"], "sweep=nonsense: no such option"),
        (["train", "sweep.num_jobs=2"], "sweep.num_jobs=2: says how several jobs are run; add -m"),
        (["train", "-m", "seed=range(0,0)"], "no values to sweep over"),
        (["train", "-m", "seed="], "seed"),
        (["train", "-m", "algo.gamma=interval(0,1)"], "or search for it with sweep=search"),
        (["train", "-m", "sweep=search"], "sweep.space: nothing to search"),
        (["train", "-m", "sweep=ppo", "algo=truly_ppo", "sweep.sampler=grid"], "sweep.sampler=grid: choose from"),
        (["train", "-m", "sweep=ppo", "algo.gamma=interval(1,0.9)"], "algo.gamma=interval(1,0.9): an empty range"),
        (["train", "-m", "sweep=ppo", "algo.gamma=choice()"], "algo.gamma=choice(): choice() holds no value"),
        (["train", "-m", "sweep=search", "algo.gamm=interval(0,1)"], "unknown key algo.gamm"),
        (["train", "-m", "sweep=search", "algo.gamma=interval(0.9,2)"], "algo.gamma=2.0: must be at most 1"),
        (["train", "-m", "sweep=ppo", "env=cartpole,acrobot"], "env is a group of keys"),
        (["train", "-m", "sweep=truly_ppo"], "unknown key algo.delta"),
        (["train", "-m", "sweep=ppo", "hydra/launcher=serial"], "hydra/launcher=serial: a search needs parallel"),
        (["train", "-m", "sweep=ppo", "sweep.objectives=[{metric: x, take: median}]"], "sweep.objectives[0].take"),
        (["train", "-m", "sweep=ppo", "sweep.num_trials=0"], "sweep.num_trials=0: must be at least 1"),
        (["train", "-m", "sweep=ppo", "algo.num_minibatches=0"], "algo.num_minibatches=0"),
        (["train", "-m", "seed=1,2", "hydra/launcher=basic"], "hydra/launcher=basic: cannot run parl's jobs; choose"),
        (
            ["train", "-m", "seed=1,2", "hydra/sweeper=basic"],
            "hydra/sweeper=basic: cannot run parl's jobs",
        ),
        (["train", "-m", "hydra/launcher=serial", "sweep.num_jobs=2"], "sweep.num_jobs=2: not looked at by"),
        (["train", "-m", "seed=1,2", "hydra.run.dir=x"], "hydra.run.dir=x: of a single job"),
        (["train", "-m", "seed=1,2", "sweep=null"], "sweep=null: one is needed; choose from"),
        (["train", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: says how several jobs are run; add -m"),
        (["train", "hydra.run.dir=${oc.env:PARL_NO_SUCH}"], "Environment variable 'PARL_NO_SUCH' not found"),
        (["train", "sweep=ppo"], "sweep=ppo: says how several jobs are run; add -m"),
        (["resume", "run=empty"], "not a run folder (no run.json), nor a sweep's (no sweep.json)"),
        (["resume", "run=broken"], "run=broken: sweep.json is not a JSON object"),
        (["resume", "run=sweep"], "'plugins=[some.plugin]'"),
        (["resume", "run=sweep", "step=32"], "step=32: belongs to a single run; name one of the sweep's, run=sweep/0"),
        (["resume", "run=sweep", "total_steps=500"], "belongs to a single run"),
        (["resume", "run=sweep", "device=cpu"], "belongs to a single run"),
        (["resume", "run=sweep", "checkpoint.env=reset"], "belongs to a single run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(here, capsys, args, words):
    before = tree(here)
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert words in err
    assert out == ""
    assert tree(here) == before
