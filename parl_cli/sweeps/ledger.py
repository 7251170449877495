"""sweep.json: the jobs of a sweep and how far each is. What `parl resume` goes by, so it is true at any moment.

```
outputs/<name>/sweep-<time>-<suffix>/
    sweep.json          the ledger, replaced atomically whenever a job starts or ends
    <job>/job.json      what the job is: its config, and the command line that would train it alone
    <job>/result.json   how its last attempt ended, written by the job itself
    <job>/console.log   everything that it printed, all attempts
    <job>/…             its run folder, as that of any run
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from parl_cli.config import parse, to_plain
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.sweeps.options import SearchConfig, SweepConfig
from parl_cli.training.run_dir import RunDir, refuse_links
from parl_cli.training.untrusted import MAX_JSON_BYTES, parse_json, read_file, refuse_live_text

FILE = "sweep.json"
FORMAT = 1


class State(StrEnum):
    """Where a job is; those of `MISSING` are what a resume does."""

    WAITING = "waiting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    DONE = "done"
    PRUNED = "pruned"
    FAILED = "failed"


MISSING = (State.WAITING, State.RUNNING, State.INTERRUPTED, State.FAILED)


@dataclass
class Job:
    """One job of a sweep."""

    number: int
    folder: str  # below the sweep's, with forward slashes
    overrides: list[str]  # as typed, without what says how the sweep is run
    total_steps: int
    state: State = State.WAITING
    attempts: int = 0  # how often it was started
    reason: str = ""  # why it failed, was pruned or is tried again
    result: dict[str, Any] = field(default_factory=dict)  # of result.json; of a trial its `values` too
    params: dict[str, Any] = field(default_factory=dict)  # of a trial: what the search proposed, by key
    cluster_id: str = ""  # of its last attempt: the number that the cluster gave it

    def __str__(self) -> str:
        return f"job {self.number} ({' '.join(self.overrides) or 'no overrides'})"


@dataclass
class Ledger:
    """The sweep in a folder.

    Args:
        path: the sweep's folder.
        argv: what the user typed.
        options: a `SweepConfig`, or for a search a `SearchConfig`.
        plugins: modules that the user named.
        base: of a search, what its trials have in common: see `search.new_search`.
        jobs: by number.
    """

    path: Path
    argv: list[str]
    options: SweepConfig
    plugins: list[str] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    def add(
        self,
        overrides: Sequence[str],
        config: Mapping[str, Any],
        folder: str,
        argv: Sequence[str],
        params: Mapping[str, Any] | None = None,
    ) -> Job:
        """A new job: its folder with job.json in it; `save` makes it part of the sweep.

        Args:
            overrides: what makes this job.
            config: its whole config, plain values that `build.validate` has accepted.
            folder: below the sweep's.
            argv: the command line that would train it alone.
            params: see `Job`.
        """
        job = Job(len(self.jobs), folder, list(overrides), int(config["total_steps"]), params=dict(params or {}))
        place = self.folder(job)
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "job.json", {"argv": list(argv), "config": dict(config)})
        self.jobs.append(job)
        return job

    def folder(self, job: Job) -> Path:
        """The job's run folder."""
        return self.path / job.folder

    def own(self) -> list[list[str]]:
        """For each job the overrides that not all have (a single job keeps its own); of a trial what was proposed."""
        first = self.jobs[0].overrides if len(self.jobs) > 1 else []
        shared = set(first).intersection(*(job.overrides for job in self.jobs))
        return [
            [
                text
                for text in job.overrides
                if (text.partition("=")[0] in job.params if job.params else text not in shared)
            ]
            for job in self.jobs
        ]

    def labels(self) -> list[str]:
        """The same in short: `env=acrobot seed=3`, `learning_rate=0.00234`."""
        return [" ".join(map(_short, overrides)) for overrides in self.own()]

    def of_state(self, *states: State) -> list[Job]:
        """The jobs that are in one of these states."""
        return [job for job in self.jobs if job.state in states]

    def save(self) -> None:
        """Write sweep.json, atomically."""
        about = {name: to_plain(getattr(self, name)) for name in ("argv", "options", "plugins", "base")}
        kind = "search" if isinstance(self.options, SearchConfig) else "grid"
        jobs = [dataclasses.asdict(job) for job in self.jobs]
        write_json(self.path / FILE, {"format": FORMAT, "kind": kind, **about, "jobs": jobs})

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running this sweep, until the block or this process ends.

        Raises:
            ConfigError: another process runs it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(RunDir(self.path).held())
            except ConfigError:
                raise ConfigError(
                    f"run={self.path}: another process runs this sweep; wait for it, or stop it with Ctrl-C"
                ) from None
            yield


def is_sweep(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a sweep."""
    return os.path.isfile(os.path.join(folder, FILE))


def read(text: str) -> Ledger:
    """The sweep in a folder; nobody vouches for what is in it.

    Raises:
        CheckpointError: it is no sweep folder, or its sweep.json is damaged or not to be trusted.
    """
    path = Path(os.path.realpath(text))
    try:
        values = parse_json(path / FILE, read_file(path / FILE, MAX_JSON_BYTES))
    except CheckpointError:
        raise CheckpointError(
            f"run={text}: sweep.json is not a JSON object that can be read; its jobs can be resumed one by one, "
            f"run={text}/0"
        ) from None
    if values.get("format") != FORMAT:
        raise CheckpointError(f"run={text}: sweep.json has format {values.get('format')}, this parl reads {FORMAT}")
    try:
        ledger = Ledger(
            path,
            [str(word) for word in values["argv"]],
            parse(SearchConfig if values["kind"] == "search" else SweepConfig, values["options"], "options"),
            [str(module) for module in values["plugins"]],
            dict(values["base"]),
            [_job(entry) for entry in values["jobs"]],
        )
    except (LookupError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"run={text}: sweep.json is damaged ({type(error).__name__}: {error})") from None
    refuse_live_text(ledger.base, path)
    inner = ledger.base.get("config", {})
    if not isinstance(inner, dict):
        raise CheckpointError(f"run={text}: sweep.json is damaged: base.config is no object")
    refuse_live_text(inner, path)
    for number, job in enumerate(ledger.jobs):
        inside = is_below(job.folder) and path in ledger.folder(job).resolve().parents
        if job.number != number or not inside or not f"{job}{job.reason}{job.cluster_id}".isprintable():
            raise CheckpointError(f"run={text}: sweep.json is damaged: {f'{job} in folder {job.folder}'!r}")
        refuse_links(ledger.folder(job), f"{text}/{job.folder}")
    refuse_links(path, text, but="latest")  # which is made anew, never written through
    return ledger


def is_below(folder: str) -> bool:
    """Whether a path, with forward slashes, leads to somewhere below where it starts."""
    path = PurePosixPath(folder)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all, also after a power cut.

    Raises:
        ConfigError: the place is read-only or full.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # never written through a link
        with temporary.open("w", encoding="utf-8") as out:
            out.write(json.dumps(values, indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot write {file} ({error.strerror}); make room, then parl resume") from None


def _short(override: str) -> str:
    """An override without the group of its key, its number with a few digits."""
    key, _, value = override.partition("=")
    with contextlib.suppress(ValueError):
        value = f"{float(value):.4g}" if "." in value else value
    return f"{key.rpartition('.')[2]}={value}"


def _job(values: Mapping[str, Any]) -> Job:
    job = Job(**values)
    wanted = (int, str, list, int, str, int, str, dict, dict, str)
    for field_, kind in zip(dataclasses.fields(Job), wanted, strict=True):
        if not isinstance(getattr(job, field_.name), kind):
            raise TypeError(f"{field_.name} of job {job.number}")
    job.state = State(job.state)
    return job
