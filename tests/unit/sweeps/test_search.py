"""Searches whose trials are not trained: their metrics are a function of what was proposed."""

import json
import sys

import pytest

from parl_cli.composition.compose import compose, plain, session
from parl_cli.config import to_plain
from parl_cli.errors import ConfigError, ParlError
from parl_cli.sweeps import run as run_module
from parl_cli.sweeps import search
from parl_cli.sweeps.best import difference, print_search, write_best
from parl_cli.sweeps.ledger import Ledger, State, read
from parl_cli.sweeps.options import Objective, SearchConfig
from parl_cli.sweeps.run import run_search
from parl_cli.sweeps.scheduler import Place
from parl_cli.sweeps.search import Search, check_options, check_space
from tests.helpers.runs import normalising_config
from tests.helpers.sweeps import FakeProcess, write_result

SPACE = {"algo.gamma": "interval(0.5, 1.0)", "algo.num_epochs": "interval(1, 8)"}
CONFIG = to_plain(normalising_config(updates=2))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(search, "validate", lambda values: None)


def new_search(path, **options):
    """A search without trials."""
    options = SearchConfig(**({"space": SPACE, "num_trials": 6, "num_jobs": 1} | options))
    base = {"config": CONFIG, "overrides": ["env=cartpole"], "choices": {"env": "cartpole"}, "changes": {"seed": 7}}
    ledger = Ledger(path, ["parl"], options, base=base)
    ledger.save()
    return ledger


def trial(ledger, job, total=CONFIG["total_steps"]):
    """What a trial's process does: its return is best at gamma 0.8, whatever the epochs."""
    values = json.loads((ledger.folder(job) / "job.json").read_text())["config"]["algo"]
    worth = 100 * (1 - abs(values["gamma"] - 0.8))
    rows = [{"env_steps": total * k // 20, "episode/return_mean": worth, "time_s": k} for k in range(1, 21)]
    file = ledger.folder(job) / "metrics.jsonl"
    with file.open("a") as out:
        while rows:
            stopped = yield
            if stopped:
                break
            out.write(json.dumps(rows.pop(0)) + "\n")
            out.flush()
    write_result(ledger.folder(job), "interrupted" if rows else "finished", env_steps=total, return_mean=worth)
    return 143 if rows else 0


class Trial(FakeProcess):
    """One that writes a row whenever it is polled."""

    def __init__(self, steps):
        super().__init__(lambda stopped: 0)
        self.steps = steps
        next(steps)

    def poll(self):
        if self.code is None:
            try:
                self.steps.send(self.stopped)
            except StopIteration as end:
                self.code = end.value
        return self.code


@pytest.fixture
def trials(monkeypatch):
    """Run such trials; the numbers of those that started."""
    started = []

    def local(ledger, num_jobs, cores):
        def start(job):
            started.append(job.number)
            return Trial(trial(ledger, job))

        return Place(start, num_jobs, poll_s=0.0)

    monkeypatch.setattr(run_module, "local", local)
    return started


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_a_search_finds_what_is_best(tmp_path, trials, sampler, capsys):
    run_search(new_search(tmp_path, sampler=sampler, pruner="none", num_trials=25))
    ledger = read(str(tmp_path))
    assert trials == list(range(25))
    best = max(ledger.jobs, key=lambda job: job.result["values"][0])
    assert best.params["algo.gamma"] == pytest.approx(0.8, abs=0.1)
    assert (
        f"Trial {best.number}, the best of 25: mean episode/return_mean"
        in (tmp_path / "experiment" / "best.yaml").read_text()
    )
    out = capsys.readouterr().out
    assert f"gamma={best.params['algo.gamma']:.4g}" in out
    assert "algo.gamma" in out.partition("importance")[2]  # the table of importances
    assert f"parl train experiment=best --config-dir {tmp_path}" in out


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_trials_that_fall_behind_are_stopped(tmp_path, trials, pruner):
    run_search(new_search(tmp_path, pruner=pruner, num_trials=14))
    ledger = read(str(tmp_path))
    pruned, done = ledger.of_state(State.PRUNED), ledger.of_state(State.DONE)
    assert pruned
    assert len(pruned) + len(done) == 14
    assert all(job.reason.startswith("behind the others after ") for job in pruned)
    worth = [job.result["return_mean"] for job in done]
    assert max(job.result["return_mean"] for job in pruned) < max(worth)
    assert all("values" not in job.result for job in pruned)


@pytest.mark.parametrize("options", [{}, {"sampler": "cmaes", "pruner": "none"}, {"pruner": "hyperband"}])
def test_a_killed_search_goes_on_where_it_was(tmp_path, trials, monkeypatch, options):
    class KilledError(Exception):
        pass

    ledger = new_search(tmp_path, num_trials=9, **options)
    monkeypatch.setattr(
        Search, "ended", lambda self, job: (_ for _ in ()).throw(KilledError) if job.number == 4 else None
    )
    with pytest.raises(KilledError):  # after trial 4 has ended, before the study was told
        run_search(ledger)
    monkeypatch.undo()
    monkeypatch.setattr(search, "validate", lambda values: None)
    monkeypatch.setattr(
        run_module,
        "local",
        lambda ledger, num_jobs, cores: Place(lambda job: Trial(trial(ledger, job)), num_jobs, poll_s=0.0),
    )
    before = [(job.params, job.attempts) for job in read(str(tmp_path)).jobs]
    assert len(before) == 5

    run_search(read(str(tmp_path)))
    after = read(str(tmp_path))
    assert [(job.params, job.attempts) for job in after.jobs[:5]] == before
    assert len(after.jobs) == 9
    assert len({job.params["algo.gamma"] for job in after.jobs}) == 9  # nothing proposed twice
    study = Search(after).study
    assert [t.state.name for t in study.trials] == [
        {"done": "COMPLETE", "pruned": "PRUNED"}[job.state] for job in after.jobs
    ]
    assert [t.params for t in study.trials] == [job.params for job in after.jobs]


def test_a_trial_that_was_running_is_gone_on_with_and_told_once(tmp_path, trials):
    ledger = new_search(tmp_path, num_trials=2)
    job = Search(ledger).more()
    job.state, job.attempts = State.RUNNING, 1
    ledger.save()
    run_search(read(str(tmp_path)))
    after = read(str(tmp_path))
    assert [job.attempts for job in after.jobs] == [2, 1]
    assert after.jobs[0].params == job.params
    assert [str(job.state) for job in after.jobs] == ["done", "done"]


def test_nothing_in_the_folder_is_unpickled(tmp_path, trials):
    # CMA-ES keeps a pickle in Optuna's study: one that a stranger wrote must not be loaded
    run_search(new_search(tmp_path, num_trials=12, sampler="cmaes", pruner="none"))
    journal = tmp_path / "study.journal"
    assert "cma:" in journal.read_text()
    journal.write_text("not even a journal")
    ledger = read(str(tmp_path))
    ledger.options = SearchConfig(space=SPACE, num_trials=14, sampler="cmaes", pruner="none", num_jobs=1)
    run_search(ledger)
    assert len(read(str(tmp_path)).jobs) == 14


def test_several_objectives_give_all_that_none_beats(tmp_path, trials):
    objectives = [Objective(), Objective("time_s", "last", "minimize")]
    ledger = new_search(tmp_path, objectives=objectives, pruner="none", num_trials=8)
    run_search(ledger)
    found = Search(read(str(tmp_path)))
    assert all(len(job.result["values"]) == 2 for job in found.ledger.jobs)
    best = max(job.result["values"][0] for job in found.ledger.jobs)
    assert best in [job.result["values"][0] for job in found.best()]


def test_a_proposal_that_does_not_fit_has_failed_and_the_search_goes_on(tmp_path, trials, monkeypatch):
    def validate(values):
        if values["algo"]["num_epochs"] % 2:
            raise ConfigError("odd")

    monkeypatch.setattr(search, "validate", validate)
    run_search(new_search(tmp_path, num_trials=8))
    ledger = read(str(tmp_path))
    failed = ledger.of_state(State.FAILED)
    assert {job.reason for job in failed} == {"odd"}
    assert len(trials) == 8 - len(failed) < 8
    run_search(ledger)  # a failed trial is not tried again
    assert len(trials) == 8 - len(failed)


def test_a_trial_without_the_metric_has_failed(tmp_path, trials):
    with pytest.raises(ParlError, match="none of 2 trials came to an end"):
        run_search(new_search(tmp_path, num_trials=2, pruner="none", objectives=[Objective("eval/return_mean")]))
    assert read(str(tmp_path)).jobs[0].reason == "its metrics have no eval/return_mean"


def test_the_best_is_an_experiment_that_composes_to_the_config_of_its_trial(tmp_path, trials, monkeypatch):
    with session() as hydra:
        chosen = plain(compose(hydra, "train", ["env=cartpole", "algo=truly_ppo"]))
        typed = plain(compose(hydra, "train", ["env=cartpole", "algo=truly_ppo", "num_envs=8", "algo.delta=0.07"]))
    ledger = new_search(tmp_path)
    ledger.base |= {"config": typed, "changes": difference(typed, chosen)}
    ledger.base["choices"] = {"env": "cartpole", "algo": "truly_ppo"}
    assert ledger.base["changes"] == {"num_envs": 8, "algo": {"delta": 0.07}}
    run_search(ledger)
    found = Search(ledger)
    [best] = found.best()
    write_best(found, best)
    with session(str(tmp_path)) as hydra:
        values = plain(compose(hydra, "train", ["experiment=best"]))
    assert values == json.loads((ledger.folder(best) / "job.json").read_text())["config"]


def test_a_search_without_tuned_values_stays_without(tmp_path, trials):
    with session() as hydra:
        config = plain(compose(hydra, "train", ["env=cartpole", "~tuned"]))
    ledger = new_search(tmp_path)
    ledger.base |= {"config": config, "changes": {}, "choices": {"env": "cartpole", "algo": "ppo", "tuned": None}}
    run_search(ledger)
    with session(str(tmp_path)) as hydra:
        values = plain(compose(hydra, "train", ["experiment=best"]))
    assert values["algo"]["num_steps"] == config["algo"]["num_steps"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objectives": []}, "nothing to optimise"),
        ({"objectives": [Objective(), Objective()]}, "stands there twice"),
        ({"objectives": [Objective(), Objective("time_s")]}, "add sweep.pruner=none"),
        (
            {"objectives": [Objective(), Objective("time_s")], "pruner": "none", "sampler": "cmaes"},
            "needs a single objective; choose sweep.sampler=tpe",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        check_options(SearchConfig(**options))


def test_a_space_whose_end_is_not_valid_is_refused(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError) as caught:
        check_space(SearchConfig(space={"algo.gamma": "interval(0.9, 1.5)"}), CONFIG)
    assert str(caught.value) == "sweep.space: algo.gamma=interval(0.9, 1.5): algo.gamma=1.5: must be at most 1"


def test_an_objective_that_no_evaluation_measures_is_refused():
    options = SearchConfig(space=SPACE, objectives=[Objective("eval/return_mean")])
    with pytest.raises(ConfigError, match=r"eval/return_mean is measured by evaluations.*add eval.every_steps"):
        check_space(options, CONFIG)
    check_space(options, CONFIG | {"eval": CONFIG["eval"] | {"every_steps": 64}})


def test_an_objective_that_nothing_logs_is_refused_unless_a_plugin_might(monkeypatch):
    options = SearchConfig(space=SPACE, objectives=[Objective("episode/retrun_mean")])
    with pytest.raises(ConfigError, match=r"no metric is called episode/retrun_mean; did you mean episode/return_mean"):
        check_space(options, CONFIG)
    check_space(options, CONFIG | {"plugins": ["mine"]})


def test_a_lock_that_a_kill_left_does_not_keep_a_search_from_going_on(tmp_path, trials):
    run_search(new_search(tmp_path, num_trials=2))
    (tmp_path / "study.journal.lock").write_bytes(b"")
    read(str(tmp_path))
    Search(read(str(tmp_path)))
    assert not (tmp_path / "study.journal.lock").exists()


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"a search needs optuna; pip install 'parl-cli\[search\]'"):
        Search(new_search(tmp_path))


def test_failed_trials_are_told(tmp_path, trials, capsys):
    ledger = new_search(tmp_path, num_trials=1)
    run_search(ledger)
    ledger.add([], CONFIG, "1", [], {"algo.gamma": 0.9, "algo.num_epochs": 2})
    ledger.jobs[1].state, ledger.jobs[1].reason = State.FAILED, "the pole snapped"
    print_search(Search(ledger))
    assert "trial 1 failed: the pole snapped" in capsys.readouterr().out
