"""Run a sweep or a search that has a ledger: what is missing in it, and what it came to. Also `parl resume` of one."""

from __future__ import annotations

from collections.abc import Container
from typing import NoReturn

from parl_cli import plugins
from parl_cli.config import ResumeCheckpointConfig, ResumeCommand
from parl_cli.errors import CheckpointError, ConfigError, ParlError
from parl_cli.metrics import console
from parl_cli.metrics.memory import free_mb
from parl_cli.sweeps.display import make_display
from parl_cli.sweeps.ledger import MISSING, Job, Ledger, State, read
from parl_cli.sweeps.options import SearchConfig
from parl_cli.sweeps.process import JobProcess, child_command
from parl_cli.sweeps.scheduler import Place, Plan, Scheduler
from parl_cli.sweeps.slurm import Slurm
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
        place = find_place(ledger, len(ledger.jobs))
        missing = len(ledger.of_state(*MISSING))
        if missing:
            console.print_line(f"{missing} of {len(ledger.jobs)} jobs to run, in {shown(ledger)}{_running(place)}")
        number = run_jobs(ledger, len(ledger.jobs), place)
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
        number_of_trials = ledger.options.num_trials
        place = find_place(ledger, number_of_trials)
        search = Search(ledger)
        done = len(ledger.jobs) - len(ledger.of_state(State.WAITING, State.RUNNING))
        missing = f"{number_of_trials - done} of {number_of_trials} trials"
        console.print_line(f"{missing} to run, in {shown(ledger)}{_running(place)}")
        number = run_jobs(ledger, number_of_trials, place, search)
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

    # a search loads what its base config names, too
    named = [str(module) for module in ledger.base.get("config", {}).get("plugins") or []]
    plugins.require({"plugins": list(dict.fromkeys([*ledger.plugins, *named]))}, command.plugins, ask)
    ledger.plugins = list(dict.fromkeys([*ledger.plugins, *command.plugins]))
    if isinstance(ledger.options, SearchConfig):
        run_search(ledger)
    else:
        run_sweep(ledger)


def find_place(ledger: Ledger, num_jobs: int) -> Place:
    """Where the jobs run, once it is known what became of those that a killed scheduler left.

    Raises:
        ConfigError: the place is not here, or does not say what runs.
    """
    if ledger.options.cluster is None:
        recover(ledger)
        room = min(available_cores(), free_mb() / ledger.options.job_memory_mb)
        at_once = _at_once(ledger, num_jobs, room)
        return local(ledger, at_once, max(1, available_cores() // at_once))
    cluster = Slurm(ledger)
    adopted = cluster.adopt()
    recover(ledger, adopted)
    return Place(
        cluster.start,
        _at_once(ledger, num_jobs, num_jobs),
        {job.number: adopted[job.number] for job in ledger.of_state(State.RUNNING)},
        shares_memory=False,
        leaves=ledger.options.slurm.on_interrupt == "leave",
        poll_s=1.0,
    )


def recover(ledger: Ledger, running: Container[int] = ()) -> None:
    """Find out what became of the jobs that a killed scheduler left running.

    A failed job is tried anew: perhaps its cause was mended. A failed trial has told the search what it came to.

    Args:
        ledger: the sweep.
        running: numbers of jobs that go on somewhere.
    """
    over = (State.FAILED,) if isinstance(ledger.options, SearchConfig) else ()
    for job in ledger.of_state(*(state for state in MISSING if state not in over)):
        job.state = State.RUNNING if job.number in running else State.WAITING
        file = ledger.folder(job) / "result.json"
        try:
            result = parse_json(file, read_file(file, MAX_JSON_BYTES))
        except CheckpointError:
            continue
        if result.pop("status", None) == "finished":
            result.pop("exit_code", None)
            job.state, job.reason, job.result = State.DONE, "", result
    ledger.save()


def run_jobs(ledger: Ledger, num_jobs: int, place: Place, plan: Plan | None = None) -> int | None:
    """Run the ledger's jobs, `num_jobs` in the end; the number of the signal that came."""
    with make_display(ledger, num_jobs) as display:
        return Scheduler(ledger, place, display, plan).run()


def local(ledger: Ledger, num_jobs: int, cores: int) -> Place:
    """Processes of this machine: how many at once, on how many cores each."""

    def start(job: Job) -> JobProcess:
        folder = ledger.folder(job)
        return JobProcess(child_command(folder, ledger.plugins), folder / "console.log", cores)

    return Place(start, num_jobs)


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
    left = len(ledger.of_state(State.RUNNING))
    if left:
        console.print_line(f"{left} jobs go on in the cluster")
    console.print_line(f"interrupted; go on with {go_on(ledger)}")
    raise SystemExit(128 + number)


def _at_once(ledger: Ledger, num_jobs: int, room: float) -> int:
    """How many of `num_jobs` run at once where there is room for so many, unless the user said."""
    return max(1, int(min(ledger.options.num_jobs or room, num_jobs)))


def _running(place: Place) -> str:
    return f"; {len(place.adopted)} of them run in the cluster already" if place.adopted else ""


def go_on(ledger: Ledger) -> str:
    """The command that does what is missing."""
    return console.command_line(["parl", "resume", f"run={shown(ledger)}"], ledger.plugins)


def shown(ledger: Ledger) -> str:
    """The sweep's folder as the user would type it."""
    return console.short_path(ledger.path)
