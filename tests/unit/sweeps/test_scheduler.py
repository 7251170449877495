import json
import os
import signal
import sys

import pytest

from parl_cli.sweeps import process, scheduler
from parl_cli.sweeps.ledger import State, read
from parl_cli.sweeps.process import JobProcess
from parl_cli.sweeps.scheduler import Place, Plan, Scheduler
from tests.helpers.sweeps import CONFIG, FakeProcess, Told, new_ledger, write_result


def run(ledger, start, num_jobs=2, plan=None, **place):
    """Run it; (the signal's number, what the display was told)."""
    told = Told()
    place = Place(start, num_jobs, **({"poll_s": 0.0} | place))
    return Scheduler(ledger, place, told, plan).run(), told


def finishing(ledger, polls=1):
    """Jobs that end well."""

    def start(job):
        def on_end(stopped):
            write_result(ledger.folder(job), "interrupted" if stopped else "finished", env_steps=job.number)
            return 143 if stopped else 0

        return FakeProcess(on_end, polls)

    return start


def states(ledger):
    return [str(job.state) for job in ledger.jobs]


def test_every_job_runs_once_and_its_result_is_in_the_ledger(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2", "seed=3"])
    number, told = run(ledger, finishing(ledger, polls=3))
    assert number is None
    assert told.most == 2
    saved = read(str(tmp_path))
    assert states(saved) == ["done"] * 3
    assert [(job.attempts, job.result["env_steps"]) for job in saved.jobs] == [(1, 0), (1, 1), (1, 2)]


def test_the_ledger_says_running_before_the_process_starts(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"])
    seen = []

    def start(job):
        seen.append(states(read(str(tmp_path))))
        return finishing(ledger)(job)

    run(ledger, start)
    assert seen == [["running"]]


def test_a_job_that_crashes_is_begun_again_then_given_up_and_harms_no_other(tmp_path):
    ledger = new_ledger(tmp_path, ["x=bad", "x=killed", "x=good"], retries=2)
    starts = []

    def start(job):
        starts.append(job.number)
        if job.number == 2:
            return finishing(ledger)(job)

        def on_end(stopped):
            if job.number == 0:
                write_result(ledger.folder(job), "failed", error="the pole snapped")
                return 1
            return -9

        return FakeProcess(on_end)

    _, told = run(ledger, start)
    assert [starts.count(number) for number in range(3)] == [3, 3, 1]
    assert states(ledger) == ["failed", "failed", "done"]
    assert ledger.jobs[0].reason == "the pole snapped"
    assert ledger.jobs[1].reason == "was killed by SIGKILL, often a sign of too little memory"
    assert told.events.count(("ended", 0, "waiting")) == 2


def test_a_result_of_an_earlier_attempt_does_not_speak_for_a_later_one(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"], retries=0)
    write_result(ledger.folder(ledger.jobs[0]))
    run(ledger, lambda job: FakeProcess(lambda stopped: -11))
    assert states(ledger) == ["failed"]
    assert "SIGSEGV" in ledger.jobs[0].reason


def test_bad_input_is_not_tried_again(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"], retries=5)

    def on_end(stopped):
        write_result(ledger.folder(ledger.jobs[0]), "failed", error="no such device")
        return 2

    run(ledger, lambda job: FakeProcess(on_end))
    assert ledger.jobs[0].attempts == 1
    assert ledger.jobs[0].reason == "no such device"


def test_a_process_that_ends_well_without_a_result_has_failed(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"], retries=0)
    run(ledger, lambda job: FakeProcess(lambda stopped: 0))
    assert states(ledger) == ["failed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_what_runs_save_and_starts_nothing_more(tmp_path, number):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2", "seed=3"])

    def start(job):
        if job.number == 1:
            signal.raise_signal(number)
        return finishing(ledger, polls=None)(job)

    before = signal.getsignal(number)
    assert run(ledger, start)[0] == number
    assert states(ledger) == ["interrupted", "interrupted", "waiting"]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    ledger = new_ledger(tmp_path, ["seed=1"])
    deaf = FakeProcess(lambda stopped: 0, polls=None)
    deaf.stop = lambda: signal.raise_signal(signal.SIGINT)

    def start(job):
        signal.raise_signal(signal.SIGINT)
        return deaf

    assert run(ledger, start)[0] == signal.SIGINT
    assert deaf.killed
    assert states(ledger) == ["interrupted"]


class Broken(Plan):
    """Breaks when the first job has ended."""

    def ended(self, job):
        raise ZeroDivisionError


def test_a_scheduler_that_breaks_stops_what_runs(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"])
    started = []

    def start(job):
        started.append(finishing(ledger, polls=1 if job.number == 0 else None)(job))
        return started[-1]

    with pytest.raises(ZeroDivisionError):
        run(ledger, start, plan=Broken())
    assert started[1].stopped
    assert not started[1].killed  # what it has learned is saved first


def test_jobs_wait_for_memory_but_one_always_runs(tmp_path, monkeypatch):
    free = [100.0]
    monkeypatch.setattr(scheduler, "free_mb", lambda: free[0])
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"], job_memory_mb=500)
    _, told = run(ledger, finishing(ledger, polls=3))
    assert told.most == 1
    assert states(ledger) == ["done", "done"]


def test_memory_promised_to_a_job_that_has_not_taken_it_yet_is_not_promised_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "free_mb", lambda: 1400.0)
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2", "seed=3"], job_memory_mb=500)
    _, told = run(ledger, finishing(ledger, polls=3), num_jobs=3)
    assert told.most == 2


def test_a_job_says_by_its_metrics_how_much_memory_the_next_one_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "free_mb", lambda: 1400.0)
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2", "seed=3"], job_memory_mb=1500)
    for job in ledger.jobs:
        (ledger.folder(job) / "metrics.jsonl").write_text('{"env_steps": 5, "memory/rss_mb": 300}\n')
    _, told = run(ledger, finishing(ledger, polls=8), num_jobs=3)
    assert told.most == 3


def test_jobs_elsewhere_need_no_memory_here(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "free_mb", lambda: 1.0)
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"])
    assert run(ledger, finishing(ledger, polls=3), shares_memory=False)[1].most == 2


def test_a_job_that_runs_already_is_looked_after_and_not_started(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"])
    running = finishing(ledger, polls=3)(ledger.jobs[0])
    ledger.jobs[0].state = State.RUNNING
    starts = []

    def start(job):
        starts.append(job.number)
        return finishing(ledger)(job)

    run(ledger, start, num_jobs=1, adopted={0: running})
    assert starts == [1]
    assert states(ledger) == ["done", "done"]


def test_where_jobs_may_be_left_a_signal_leaves_them(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"])
    process = finishing(ledger, polls=None)(ledger.jobs[0])
    process.abandon = lambda: None

    def start(job):
        signal.raise_signal(signal.SIGINT)
        return process

    assert run(ledger, start, leaves=True)[0] == signal.SIGINT
    assert not process.stopped
    assert not process.killed
    assert states(read(str(tmp_path))) == ["running"]


@pytest.mark.parametrize(("steps", "attempts", "ends"), [((10, 20, 30), 3, "done"), ((10, 10), 2, "failed")])
def test_a_job_that_was_cut_off_goes_on_as_long_as_it_gets_further(tmp_path, steps, attempts, ends):
    ledger = new_ledger(tmp_path, ["seed=1"], retries=0)
    left = list(steps)

    def start(job):
        def on_end(stopped):
            finished = len(left) == 1 and ends == "done"
            write_result(ledger.folder(job), "finished" if finished else "interrupted", env_steps=left.pop(0))
            return 0 if finished else 143

        return FakeProcess(on_end, cut_off="came to the end of its time")

    _, told = run(ledger, start)
    assert states(ledger) == [ends]
    assert ledger.jobs[0].attempts == attempts
    assert told.events.count(("ended", 0, "waiting")) == attempts - 1


class Growing(Plan):
    """Adds two jobs, and stops the second one."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.ends = []

    def more(self):
        if len(self.ledger.jobs) == 2:
            return None
        number = len(self.ledger.jobs)
        return self.ledger.add([f"x={number}"], CONFIG, str(number), [])

    def behind(self, job, env_steps):
        assert env_steps == 5
        return "behind the others" if job.number == 1 else ""

    def ended(self, job):
        self.ends.append((job.number, str(job.state)))


def test_a_plan_adds_jobs_and_stops_those_that_fall_behind(tmp_path):
    ledger = new_ledger(tmp_path, [])
    plan = Growing(ledger)

    def start(job):
        (ledger.folder(job) / "metrics.jsonl").write_text('{"env_steps": 5}\n')
        return finishing(ledger, polls=2 if job.number == 0 else None)(job)

    run(ledger, start, plan=plan)
    assert plan.ends == [(0, "done"), (1, "pruned")]
    assert read(str(tmp_path)).jobs[1].reason == "behind the others"


@pytest.mark.parametrize("status", ["", "failed"])
def test_a_job_that_was_to_be_pruned_is_never_begun_again(tmp_path, status):
    ledger = new_ledger(tmp_path, [], retries=3)
    plan = Growing(ledger)
    starts = []

    def start(job):
        starts.append(job.number)
        (ledger.folder(job) / "metrics.jsonl").write_text('{"env_steps": 5}\n')

        def on_end(stopped):  # too slow to save, or broken while it saved
            if stopped and status:
                write_result(ledger.folder(job), status, error="the disk is full")
            if not stopped:
                write_result(ledger.folder(job))
            return int(stopped)

        return FakeProcess(on_end, polls=2 if job.number == 0 else None)

    run(ledger, start, plan=plan)
    assert starts == [0, 1]
    assert plan.ends == [(0, "done"), (1, "pruned")]


CHILDREN = {
    "good": "import json; json.dump({'status': 'finished'}, open('result.json', 'w'))",
    "crash": "import os; os.abort()",
    "loud": "print('out'); import sys; print('err', file=sys.stderr); sys.exit(3)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "threads": (
        "import json, os; json.dump({'status': 'finished', "
        "'set': {name: os.environ.get(name) for name in ('OMP_NUM_THREADS', 'PARL_CORES')}}, open('result.json', 'w'))"
    ),
    "patient": "import sys, json; sys.stdin.read(); json.dump({'status': 'interrupted'}, open('result.json', 'w'))",
}


def child(ledger, job, cores=3):
    folder = ledger.folder(job)
    source = f"import os; os.chdir({str(folder)!r}); " + CHILDREN[job.overrides[0]]
    return JobProcess([sys.executable, "-S", "-c", source], folder / "console.log", cores)


def test_real_processes_end_as_they_may_and_the_ledger_tells_how(tmp_path):
    ledger = new_ledger(tmp_path, ["good", "crash", "loud", "killed", "threads"], retries=0)
    run(ledger, lambda job: child(ledger, job), poll_s=0.01)
    assert states(ledger) == ["done", "failed", "failed", "failed", "done"]
    assert ["SIGABRT" in ledger.jobs[1].reason, ledger.jobs[2].reason] == [True, "exited with code 3"]
    assert (tmp_path / "2" / "console.log").read_text() == "out\nerr\n"
    assert ledger.jobs[4].result["set"] == {"OMP_NUM_THREADS": "3", "PARL_CORES": "3"}


def test_a_process_that_cannot_be_started_has_failed_and_harms_no_other(tmp_path):
    ledger = new_ledger(tmp_path, ["good", "good"], retries=1)
    (ledger.folder(ledger.jobs[0]) / "console.log").mkdir()  # nothing can be written there
    run(ledger, lambda job: child(ledger, job), poll_s=0.01)
    assert states(ledger) == ["failed", "done"]
    assert ledger.jobs[0].reason == "could not be started: Is a directory"
    assert ledger.jobs[0].attempts == 2


def test_a_real_process_saves_when_its_scheduler_breaks(tmp_path):
    ledger = new_ledger(tmp_path, ["patient", "good"])
    running = []

    def start(job):
        running.append(child(ledger, job))
        return running[-1]

    with pytest.raises(ZeroDivisionError):
        run(ledger, start, plan=Broken(), poll_s=0.01)
    assert running[0]._process.wait(20) == 0
    assert json.loads((tmp_path / "0" / "result.json").read_text()) == {"status": "interrupted"}


def test_a_real_process_hears_its_parent_hang_up(tmp_path):
    ledger = new_ledger(tmp_path, ["patient"])

    def start(job):
        signal.raise_signal(signal.SIGINT)
        return child(ledger, job)

    run(ledger, start, poll_s=0.01)
    assert states(ledger) == ["interrupted"]


def test_a_process_is_in_a_session_of_its_own(tmp_path):
    log = tmp_path / "log"
    running = JobProcess([sys.executable, "-S", "-c", "import os; print(os.getsid(0))"], log, 1)
    running._process.wait(20)
    running.stop()
    assert int(log.read_text()) != os.getsid(0)


@pytest.mark.parametrize(("code", "words"), [(1, "exited with code 1"), (-15, "SIGTERM"), (-99, "signal 99")])
def test_an_exit_code_in_words(code, words):
    assert words in process.cause_of_death(code)


def test_a_ledger_can_be_read_while_it_is_written(tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"])
    ledger.save()
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "sweep.json").read_text())["kind"] == "grid"
