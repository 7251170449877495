import pytest

from parl_cli.errors import ParlError
from parl_cli.sweeps import run as run_module
from parl_cli.sweeps.ledger import State, read
from parl_cli.sweeps.process import child_command
from parl_cli.sweeps.run import recover, run_sweep
from parl_cli.sweeps.scheduler import Place
from tests.helpers.sweeps import FakeProcess, new_ledger, write_result


def test_after_a_kill_what_ended_meanwhile_counts_and_the_rest_is_missing(tmp_path):
    ledger = new_ledger(tmp_path, [f"seed={seed}" for seed in range(6)])
    before = (State.DONE, State.RUNNING, State.RUNNING, State.FAILED, State.PRUNED, State.INTERRUPTED)
    for job, state in zip(ledger.jobs, before, strict=True):
        job.state = state
    write_result(tmp_path / "1", "finished", return_mean=7.0)
    write_result(tmp_path / "2", "interrupted")
    recover(ledger)
    assert [str(job.state) for job in read(str(tmp_path)).jobs] == [
        "done",
        "done",
        "waiting",
        "waiting",
        "pruned",
        "waiting",
    ]
    assert ledger.jobs[1].result == {"return_mean": 7.0}


@pytest.fixture
def started(monkeypatch):
    """What was started, as (number, cores); jobs called x=bad fail."""
    found = []

    def local(ledger, num_jobs, cores):
        def start(job):
            found.append((job.number, cores))
            bad = job.overrides == ["x=bad"]

            def on_end(stopped):
                write_result(ledger.folder(job), "failed" if bad else "finished", error="snap" if bad else "")
                return 1 if bad else 0

            return FakeProcess(on_end)

        return Place(start, num_jobs)

    monkeypatch.setattr(run_module, "local", local)
    monkeypatch.setattr(run_module, "available_cores", lambda: 8)
    return found


def test_the_cores_are_shared_by_the_jobs_that_run_at_once(tmp_path, started):
    run_sweep(new_ledger(tmp_path, ["seed=1", "seed=2"]))
    assert started == [(0, 4), (1, 4)]


def test_no_more_jobs_run_at_once_than_memory_holds_and_they_share_all_cores(tmp_path, started, monkeypatch):
    monkeypatch.setattr(run_module, "free_mb", lambda: 1100.0)
    run_sweep(new_ledger(tmp_path, [f"seed={seed}" for seed in range(9)], job_memory_mb=500))
    assert {cores for _, cores in started} == {4}


def test_more_jobs_at_once_than_cores_have_one_each(tmp_path, started):
    run_sweep(new_ledger(tmp_path, [f"seed={seed}" for seed in range(9)], num_jobs=9))
    assert {cores for _, cores in started} == {1}


def test_a_failed_job_fails_the_sweep_and_is_named(tmp_path, started):
    with pytest.raises(ParlError, match=r"1 of 2 jobs failed: job 0 \(x=bad\); go on with parl resume run="):
        run_sweep(new_ledger(tmp_path, ["x=bad", "x=good"], retries=0))


def test_a_sweep_that_is_done_runs_nothing(tmp_path, started, capsys):
    ledger = new_ledger(tmp_path, ["seed=1"])
    run_sweep(ledger)
    run_sweep(read(str(tmp_path)))
    assert started == [(0, 8)]
    assert capsys.readouterr().out.count("1 jobs done") == 2


def test_plugins_reach_a_job_by_its_command_line(tmp_path):
    assert child_command(tmp_path, ["a.b", "c"])[-3:] == [str(tmp_path), "a.b", "c"]


def test_what_runs_elsewhere_is_not_missing_unless_it_has_just_ended(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2", "seed=3"])
    for job in ledger.jobs:
        job.state = State.RUNNING
    write_result(tmp_path / "1", "finished", exit_code=0)
    recover(ledger, {0, 1})
    assert [str(job.state) for job in ledger.jobs] == ["running", "done", "waiting"]
