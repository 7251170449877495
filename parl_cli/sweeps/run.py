"""Run a sweep or a search that has a ledger: what is missing in it, and what it came to. Also `parl resume` of one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from parl_cli import plugins
from parl_cli.config import ResumeCheckpointConfig, ResumeCommand
from parl_cli.errors import CheckpointError, ConfigError, ParlError
from parl_cli.metrics import console
from parl_cli.sweeps.display import make_display
from parl_cli.sweeps.ledger import MISSING, Job, Ledger, State, read
from parl_cli.sweeps.options import SearchConfig
from parl_cli.sweeps.process import JobProcess
from parl_cli.sweeps.scheduler import Plan, Scheduler
from parl_cli.sweeps.summary import print_summary
from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, read_file
from parl_cli.vectorizers.calls import available_cores


def run_sweep(ledger: Ledger) -> None:
    """Run the jobs that are missing, then print what the sweep came to.

    Raises:
        ConfigError: another process runs it.
        ParlError: jobs failed; the others have run.
        SystemExit: Ctrl-C or SIGTERM; what ran has saved, and `parl resume` goes on.
    """
    with ledger.held():
        recover(ledger)
        missing = len(ledger.of_state(*MISSING))
        if missing:
            console.print_line(f"{missing} of {len(ledger.jobs)} jobs to run, in {shown(ledger)}")
        number = run_jobs(ledger, len(ledger.jobs))
        print_summary(ledger)
    finish(ledger, number)


def run_search(ledger: Ledger) -> None:
    """Run trials until there are enough, then print the best, and write it as an experiment.

    Raises:
        ConfigError: Optuna is missing, or another process runs it.
        ParlError: no trial came to an end.
        SystemExit: as `run_sweep`.
    """
    from parl_cli.sweeps.best import print_search
    from parl_cli.sweeps.search import Search

    assert isinstance(ledger.options, SearchConfig)
    with ledger.held():
        recover(ledger)
        search = Search(ledger)
        number_of_trials = ledger.options.num_trials
        done = len(ledger.jobs) - len(ledger.of_state(State.WAITING))
        console.print_line(f"{number_of_trials - done} of {number_of_trials} trials to run, in {shown(ledger)}")
        number = run_jobs(ledger, number_of_trials, search)
        if number is None:
            print_search(search)
    if number is not None:
        interrupted(ledger, number)


def resume_sweep(command: ResumeCommand) -> None:
    """Do what is missing in a sweep, `parl resume`'s job on a sweep folder; what is done is not done again.

    Raises:
        ConfigError: it is no sweep, or it needs plug-ins that were not named.
    """
    for name, value in (("step", command.step), ("total_steps", command.total_steps), ("device", command.device)):
        if value is not None:
            raise ConfigError(f"{name}={value}: belongs to a single run; name one of the sweep's, run={command.run}/0")
    if command.checkpoint != ResumeCheckpointConfig():
        raise ConfigError(f"checkpoint.env: belongs to a single run; name one of the sweep's, run={command.run}/0")
    ledger = read(command.run)

    def ask(names: str) -> str:
        return f"parl resume run={command.run} 'plugins=[{names}]'"

    plugins.require({"plugins": ledger.plugins}, command.plugins, ask)
    ledger.plugins = list(dict.fromkeys([*ledger.plugins, *command.plugins]))
    if isinstance(ledger.options, SearchConfig):
        run_search(ledger)
    else:
        run_sweep(ledger)


def recover(ledger: Ledger) -> None:
    """Find out what became of the jobs that a killed scheduler left running.

    A failed job is tried anew: perhaps its cause was mended. A failed trial has told the search what it came to.
    """
    over = (State.FAILED,) if isinstance(ledger.options, SearchConfig) else ()
    for job in ledger.of_state(*(state for state in MISSING if state not in over)):
        job.state = State.WAITING
        file = ledger.folder(job) / "result.json"
        try:
            result = parse_json(file, read_file(file, MAX_JSON_BYTES))
        except CheckpointError:
            continue
        if result.pop("status", None) == "finished":
            job.state, job.reason, job.result = State.DONE, "", result
    ledger.save()


def run_jobs(ledger: Ledger, num_jobs: int, plan: Plan | None = None) -> int | None:
    """Run the ledger's jobs, `num_jobs` in the end, here; the number of the signal that came."""
    cores = available_cores()
    at_once = min(ledger.options.num_jobs or cores, max(1, num_jobs))
    with make_display(ledger, num_jobs) as display:
        return Scheduler(ledger, local(ledger, max(1, cores // at_once)), at_once, display, plan).run()


def local(ledger: Ledger, cores: int) -> Callable[[Job], JobProcess]:
    """What starts a job in a process of this machine, on so many cores."""

    def start(job: Job) -> JobProcess:
        folder = ledger.folder(job)
        return JobProcess(child_command(folder, ledger), folder / "console.log", cores)

    return start


def child_command(folder: Path, ledger: Ledger) -> list[str]:
    """The command line of a job's process."""
    # -P: a file in the working directory must not take the place of a module
    return [sys.executable, "-P", "-m", "parl_cli.sweeps.child", str(folder), *ledger.plugins]


def finish(ledger: Ledger, number: int | None) -> None:
    """End as the sweep did.

    Raises:
        SystemExit: it was interrupted.
        ParlError: jobs failed.
    """
    if number is not None:
        interrupted(ledger, number)
    failed = ledger.of_state(*MISSING)
    if failed:
        labels = ledger.labels()
        names = ", ".join(f"job {job.number} ({labels[job.number]})" for job in failed)
        raise ParlError(f"{len(failed)} of {len(ledger.jobs)} jobs failed: {names}; go on with {go_on(ledger)}")
    console.print_line(f"{len(ledger.jobs)} jobs done: {shown(ledger)}")


def interrupted(ledger: Ledger, number: int) -> NoReturn:
    """End as a single run does that a signal ended."""
    console.print_line(f"interrupted; go on with {go_on(ledger)}")
    raise SystemExit(128 + number)


def go_on(ledger: Ledger) -> str:
    """The command that does what is missing."""
    with_plugins = f" 'plugins=[{','.join(ledger.plugins)}]'" if ledger.plugins else ""
    return f"parl resume run={shown(ledger)}{with_plugins}"


def shown(ledger: Ledger) -> str:
    """The sweep's folder as the user would type it."""
    return console.short_path(ledger.path)
