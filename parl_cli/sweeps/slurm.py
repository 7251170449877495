"""Jobs of a sweep in a Slurm cluster: submitted through submitit, found again by name, looked after by `squeue`.

A job is the same command line as here (`child.py`), in a batch script that becomes that process: it gets Slurm's
SIGTERM itself, and saves. So submitit is used for what it knows of `sbatch`, through the hook that takes a command;
its usual way, a pickled function, keeps SIGTERM from the job, holds back what it prints until it ends, and would
have a node unpickle a file of the sweep's folder.

A job's name in the cluster is made from the sweep's folder and the job's number. Whatever became of the parent, a
job that waits or runs there is found by that name and adopted, never submitted twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl_cli.errors import CheckpointError, ConfigError, ParlError
from parl_cli.metrics import console
from parl_cli.sweeps.ledger import Job, Ledger
from parl_cli.sweeps.options import SlurmConfig, SweepConfig
from parl_cli.sweeps.process import child_command, job_variables
from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, read_file

_ASK_WITHIN_S = 60.0  # a Slurm command that takes longer has failed
_LOOK_S = 2.0  # between two questions to squeue once a job was asked to end, and between two looks at result.json
_GRACE_S = 5.0  # in which a shared disk may show what a job that ended has written
_SAVE_BEFORE_END_S = 60  # SIGTERM comes so long before the time limit; Slurm may be a minute early

_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
_GONE = "GONE"  # the cluster does not know it any more

# They stand in the head of a shell script, and may come from a sweep.json for which nobody vouches.
_WORD = re.compile(r"[\w.,:@+=*&|()\[\]/-]+", re.ASCII)
_TEXTS = ("partition", "account", "qos", "constraint", "gres")


@dataclass(frozen=True)
class Entry:
    """What squeue says about a job."""

    cluster_id: str
    name: str
    state: str


class SlurmError(ParlError):
    """A Slurm command failed; the message is what it said."""


class Slurm:
    """The cluster, as one sweep sees it.

    Args:
        ledger: the sweep.

    Raises:
        ConfigError: there is no Slurm here, or the options do not fit.
    """

    def __init__(self, ledger: Ledger) -> None:
        check_options(ledger.options.slurm, ledger.path)
        self.ledger = ledger
        self.options = ledger.options.slurm
        self._entries: dict[str, Entry] = {}  # by the cluster's id
        self._asked = -1.0  # when, on the monotonic clock
        self._due = 0.0  # when to ask again
        self._query_s = self.options.query_s
        self._told = ""

    def start(self, job: Job) -> SlurmJob:
        """Submit a job, and put its id into the ledger; one that is refused has ended already.

        Raises:
            SlurmError: nobody can say whether it was submitted.
        """
        began, error = time.monotonic(), ""
        try:
            job.cluster_id = self._submit(job)
        except SlurmError as failure:
            found = self._find(job)  # perhaps sbatch was only too slow to say that it took the job
            job.cluster_id, error = (found.cluster_id, "") if found else ("", str(failure))
        self.ledger.save()
        return SlurmJob(self, job, began, error)

    def adopt(self) -> dict[int, SlurmJob]:
        """The jobs that wait or run in the cluster, by number, whoever submitted them; their ids go into the ledger.

        Raises:
            ConfigError: the cluster does not say; what might run must not be started again.
        """
        try:
            alive = self.alive()
        except SlurmError as error:
            raise ConfigError(
                f"sweep.cluster=slurm: cannot see what runs there ({error}); nothing is submitted until it answers"
            ) from None
        found = {}
        for job in self.ledger.jobs:
            entry = alive.get(self.name(job))
            if entry is not None:
                job.cluster_id = entry.cluster_id
                found[job.number] = SlurmJob(self, job, self._asked)
        return found

    def alive(self) -> dict[str, Entry]:
        """What waits or runs, by name, as of now."""
        self._ask()
        return {entry.name: entry for entry in self._entries.values() if entry.state not in _OVER}

    def name(self, job: Job) -> str:
        """A job's name in the cluster."""
        return f"parl-{hashlib.sha256(os.fsencode(self.ledger.path)).hexdigest()[:12]}-{job.number}"

    def state(self, job: Job, since: float) -> str:
        """The cluster's word for how a job is; empty if it has not been asked since then."""
        if time.monotonic() >= self._due:
            try:
                self._ask()
            except SlurmError as error:  # what runs goes on running, and its files still tell how far it is
                self._tell(str(error))
        if self._asked < since:
            return ""
        entry = self._entries.get(job.cluster_id)
        if entry is not None and entry.name == self.name(job):
            return entry.state
        return _GONE

    def hurry(self) -> None:
        """Ask at once, and oftener from now on: somebody waits for the end of a job."""
        self._query_s, self._due = min(_LOOK_S, self.options.query_s), 0.0

    def end_of(self, job: Job) -> str:
        """The state in which a job ended that squeue has forgotten; empty where there is no accounting."""
        with contextlib.suppress(SlurmError):
            said = ask(["sacct", "-X", "--noheader", "--parsable2", "--format=State", f"--jobs={job.cluster_id}"])
            return said.split()[0] if said.split() else ""  # CANCELLED by 1000
        return ""

    def cancel(self, job: Job, *how: str) -> None:
        """Take it out of the queue, or ask it to save and end; with `how` as scancel takes it."""
        try:
            # by its name too: the id may stand in a file for which nobody vouches
            ask(["scancel", *how, f"--name={self.name(job)}", job.cluster_id])
        except SlurmError as error:
            self._tell(str(error))

    def _find(self, job: Job) -> Entry | None:
        try:
            return self.alive().get(self.name(job))
        except SlurmError as error:
            raise SlurmError(
                f"{error}; what was submitted goes on, and parl resume run={console.short_path(self.ledger.path)} will "
                "look after it"
            ) from None

    def _ask(self) -> None:
        began = time.monotonic()
        self._due = began + self._query_s
        said = ask(["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%j|%T"])
        found = [Entry(*parts) for line in said.splitlines() if len(parts := line.strip().split("|")) == 3]
        self._entries = {entry.cluster_id: entry for entry in found}
        self._asked = began

    def _submit(self, job: Job) -> str:
        folder = self.ledger.folder(job)
        command = child_command(folder, self.ledger.plugins, is_alone=True)
        variables = [f"{name}={value}" for name, value in job_variables(self.options.cpus).items()]
        place = self.ledger.path / ".slurm"  # submitit leaves the scripts there, and links to them
        try:
            place.mkdir(exist_ok=True)
            executor = make_executor(self.options, place, self.name(job), folder / "console.log")
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints there what its error says
                return str(executor._submit_command("exec " + shlex.join(["env", *variables, *command])).job_id)
        except (OSError, RuntimeError) as error:  # submitit's errors are RuntimeErrors with what sbatch said
            raise SlurmError(_one_line(str(error)) or type(error).__name__) from None

    def _tell(self, text: str) -> None:
        if text != self._told:  # once, not every few seconds
            self._told = text
            console.print_line(f"Slurm: {text}")


class SlurmJob:
    """A job that was submitted.

    Args:
        slurm: the cluster.
        job: with the id that it has there.
        began: when it was submitted, on the monotonic clock, or a time before.
        error: why it was not.
    """

    def __init__(self, slurm: Slurm, job: Job, began: float, error: str = "") -> None:
        self.slurm = slurm
        self.job = job
        self.is_queued = not error
        self.cut_off = ""
        self._began = began
        self._error = error
        self._state = ""
        self._over_since: float | None = None
        self._stopped = False
        self._code: int | None = 1 if error else None
        self._looked = 0.0
        self._result: dict[str, Any] = {}

    def poll(self) -> int | None:
        """The exit code; None while it waits or runs, and until the shared disk may be believed."""
        if self._code is None:
            self._code = self._look()
        return self._code

    def cause(self, code: int) -> str:
        """How the cluster saw it end."""
        if self._error:
            return f"was not submitted: {self._error}"
        state = "it left no result" if self._state in ("", _GONE) else self._state
        more = {
            "OUT_OF_MEMORY": "; ask for more with sweep.slurm.memory_mb",
            "TIMEOUT": "; ask for more with sweep.slurm.time_min",
        }
        return f"ended in the cluster as {self.job.cluster_id}: {state}{more.get(self._state, '')}"

    def stop(self) -> None:
        """Ask it to save and end, or not to begin."""
        if self._code is None and not self._stopped:
            self._stopped = True
            self.slurm.cancel(self.job)
            self.slurm.hurry()

    def kill(self) -> None:
        """End it at once."""
        if self._code is None:
            self.slurm.cancel(self.job, "--signal=KILL", "--full")
            self._code = -9

    def abandon(self) -> None:
        """It goes on; `parl resume` adopts it."""

    def _look(self) -> int | None:
        now = time.monotonic()
        status = self._status(now)
        if status in ("finished", "failed") or (status == "interrupted" and self._stopped):
            return self._exit_code(status)
        state = self.slurm.state(self.job, self._began)
        self.is_queued = state in _QUEUED or (not state and self.is_queued)
        if state not in (*_OVER, _GONE):
            self._over_since = None
            return None
        self._over_since = self._over_since or now
        if not status and not self._stopped and now - self._over_since < _GRACE_S:
            return None
        self._state = self.slurm.end_of(self.job) or state if state == _GONE else state
        if status == "interrupted" and self._state != "CANCELLED":
            self.cut_off = (
                "was preempted" if self._state == "PREEMPTED" else "came to the end of its time in the cluster"
            )
        return self._exit_code(status)

    def _status(self, now: float) -> str:
        """What its result.json says; empty before there is one."""
        if not self._result and now - self._looked > min(_LOOK_S, self.slurm.options.query_s):
            self._looked = now
            file = self.slurm.ledger.folder(self.job) / "result.json"
            with contextlib.suppress(CheckpointError):
                self._result = parse_json(file, read_file(file, MAX_JSON_BYTES))
        return str(self._result.get("status", ""))

    def _exit_code(self, status: str) -> int:
        code = self._result.get("exit_code")
        return code if isinstance(code, int) else int(status != "finished")


def check(options: SweepConfig, folder: Path) -> None:
    """Whether a new sweep can be run as its options say, before anything is written.

    Args:
        options: of the sweep.
        folder: where it will lie.

    Raises:
        ConfigError: what does not fit.
    """
    if options.cluster is None:
        if options.slurm != SlurmConfig():
            raise ConfigError("sweep.slurm: is of no effect without sweep.cluster=slurm; add it")
        return
    check_options(options.slurm, folder)
    script = make_executor(options.slurm, folder, "parl", folder / "console.log")._make_submission_file_text("true", "")
    try:
        ask(["sbatch", "--test-only"], script)
    except SlurmError as error:
        raise ConfigError(f"sweep.slurm: the cluster would not take such a job: {error}") from None


def check_options(options: SlurmConfig, folder: Path) -> None:
    """Refuse options that cannot stand in a script, and a machine without Slurm.

    Raises:
        ConfigError: naming the value.
    """
    for name in _TEXTS:
        text = getattr(options, name)
        if text is not None and not _WORD.fullmatch(text):
            raise ConfigError(f"sweep.slurm.{name}={text!r}: must be as sbatch takes it, without spaces or quotes")
    if "%" in str(folder) or not str(folder).isprintable():
        raise ConfigError(f"hydra.sweep.dir={str(folder)!r}: Slurm would change a % in it; choose another folder")
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'sweep.cluster=slurm: needs {error.name}; pip install "parl-cli[slurm]"') from None
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"sweep.cluster=slurm: no {missing[0]} on the PATH; run it where jobs are submitted, or leave it out"
        )


def make_executor(options: SlurmConfig, folder: Path, name: str, log: Path) -> Any:
    """What writes batch scripts and submits them.

    Args:
        options: what a job asks for.
        folder: takes the scripts.
        name: of the job.
        log: takes what it prints, after what is there.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):
        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["timeout", str(_ASK_WITHIN_S), *super()._make_submission_command(submission_file_path)]

    executor = Executor(folder)
    more = {
        "output": str(log).replace("%", "%%"),  # sbatch's way to write one
        "signal": f"B:TERM@{_SAVE_BEFORE_END_S}",  # B: to the script, which is the job
        "no-requeue": True,  # whether it is begun again is decided here
    }
    if options.memory_mb is not None:
        more["mem"] = f"{options.memory_mb}M"
    executor.update_parameters(
        job_name=name,
        time=options.time_min,
        cpus_per_task=options.cpus,
        ntasks_per_node=1,
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
        additional_parameters=more,
        **{name: getattr(options, name) for name in _TEXTS},
    )
    return executor


def ask(words: Sequence[str], text: str = "") -> str:
    """What a Slurm command says.

    Raises:
        SlurmError: it is missing, fails, or takes too long.
    """
    try:
        done = subprocess.run(
            list(words),
            input=text,
            capture_output=True,
            text=True,
            timeout=_ASK_WITHIN_S,
            check=False,
            start_new_session=True,  # not for the Ctrl-C of a terminal
        )
    except FileNotFoundError:
        raise SlurmError(f"no {words[0]} on the PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} does not answer within {_ASK_WITHIN_S:.0f} s") from None
    if done.returncode:
        raise SlurmError(_one_line(done.stderr or done.stdout) or f"{words[0]} exited with code {done.returncode}")
    return done.stdout


def _one_line(text: str) -> str:
    return " ".join(text.split())
