import io

import pytest
from rich.console import Console

from parl_cli.metrics import console as shared
from parl_cli.metrics.tail import Tail
from parl_cli.metrics.tracker import Tracker
from parl_cli.sweeps.display import SweepLines, SweepTable, make_display, overview
from parl_cli.sweeps.ledger import State
from parl_cli.sweeps.scheduler import Running
from parl_cli.sweeps.summary import group_rows, job_rows, print_summary
from tests.helpers.sweeps import FakeProcess, new_ledger


@pytest.fixture
def ledger(tmp_path):
    ledger = new_ledger(tmp_path, [f"env={env}" for env in ("a", "a", "b", "b", "b")])
    for job, seed in zip(ledger.jobs, (1, 2, 1, 2, 3), strict=True):
        job.overrides.append(f"seed={seed}")
        job.state, job.attempts = State.DONE, 1
        job.result = {"env_steps": 100, "wall_s": 61.0, "return_mean": 10.0 * seed, "best_eval": None}
    last = ledger.jobs[4]
    last.state, last.attempts, last.reason, last.result = State.FAILED, 2, "was killed by SIGKILL", {}
    return ledger


def console(**options):
    return Console(file=io.StringIO(), width=100, **options)


def running(job):
    tracker = Tracker(job.total_steps, clock=lambda: 0.0)
    for time_s, steps in ((1.0, 20), (2.0, 40)):
        tracker.update({"env_steps": steps, "time_s": time_s, "episode/return_mean": 7.5})
    return Running(job, FakeProcess(lambda stopped: 0), Tail("none"), tracker)


def test_results_are_a_row_for_each_job(ledger):
    rows = job_rows(ledger)
    assert rows[0] == ["0", "env=a seed=1", "done", "10.0", "-", "100", "1m 01s"]
    assert rows[4] == ["4", "env=b seed=3", "failed, 2 attempts", "-", "-", "-", "-"]


def test_seeds_of_the_same_job_are_averaged_over_those_that_are_done(ledger):
    assert group_rows(ledger) == [
        ["env=a", "2", "15.0 ± 7.07", "-"],
        ["env=b", "2 of 3", "15.0 ± 7.07", "-"],
    ]


def test_jobs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    assert group_rows(new_ledger(tmp_path, ["algo.gamma=0.9", "algo.gamma=0.99"])) == []


def test_the_summary_says_why_a_job_failed_and_where_its_log_is(ledger):
    out = console()
    print_summary(ledger, out)
    text = out.file.getvalue()
    assert f"job 4 (env=b seed=3) failed: was killed by SIGKILL; see {ledger.path / '4' / 'console.log'}" in text
    assert "best eval" not in text  # a column without a value


def test_plain_lines_tell_what_happens(ledger):
    out = console()
    lines = SweepLines(ledger, 5, out)
    lines.started(ledger.jobs[4])
    lines.ended(ledger.jobs[0])
    ledger.jobs[4].state = State.WAITING
    lines.ended(ledger.jobs[4])
    lines.refresh({})
    assert out.file.getvalue().splitlines() == [
        "job 4 (env=b seed=3) started again, attempt 2",
        "job 0 (env=a seed=1) done: return 10.0, 100 steps in 1m 01s; 4 of 5",
        "job 4 (env=b seed=3) was killed by SIGKILL; it is begun again where it was saved",
    ]


def test_the_overview_counts_and_says_what_is_left(ledger):
    job = ledger.jobs[4]
    job.state = State.RUNNING
    assert overview(ledger, 6, {4: running(job)}) == "1 running · 4 done · 1 waiting · eta 8s"


def test_the_live_table_shows_running_jobs_first_and_fits_the_terminal(ledger):
    out = console(force_terminal=True, height=9)
    table = SweepTable(ledger, 5, out)
    ledger.jobs[3].state = State.RUNNING
    table.refresh({3: running(ledger.jobs[3])})
    out.print(table.render())
    text = out.file.getvalue()
    first = next(line for line in text.splitlines() if "env=" in line)
    assert all(word in first for word in ("env=b seed=2", "running", "40%", "7.50", "20"))
    assert text.count("env=") == 3


def test_a_pipe_gets_plain_lines(ledger, monkeypatch):
    monkeypatch.setattr(shared, "console", console())
    assert isinstance(make_display(ledger, 5), SweepLines)
