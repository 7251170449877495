"""What a user says about a sweep: the part `sweep` of conf/sweep.yaml, one dataclass for each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from parl_cli.config import option


@dataclass(frozen=True)
class SlurmConfig:
    """What a job asks of a Slurm cluster; null: whatever the cluster gives by itself."""

    partition: str | None = option(None, 'partition; several in quotes, "a,b"')
    account: str | None = option(None, "account that pays")
    qos: str | None = option(None, "quality of service")
    constraint: str | None = option(None, "features that the node must have")
    gres: str | None = option(None, "generic resources, such as gpu:1")
    time_min: int | None = option(None, "minutes; a job saves before they are over, and is submitted again", ge=5)
    cpus: int = option(1, "cores of a job", ge=1)
    memory_mb: int | None = option(None, "memory of a job", ge=1)
    on_interrupt: Literal["cancel", "leave"] = option(
        "cancel", "what Ctrl-C does to jobs in the cluster: cancel (they save) or leave (parl resume finds them)"
    )
    query_s: float = option(30.0, "seconds between two questions to squeue", gt=0)


@dataclass(frozen=True)
class SweepConfig:
    """How the jobs of `parl train -m` are run."""

    num_jobs: int | None = option(
        None, "jobs at once; null: one per core here, as memory allows; all of them in a cluster", ge=1
    )
    retries: int = option(1, "how often a job that crashed or was killed is begun again where it was saved", ge=0)
    job_memory_mb: int = option(
        500, "what a job needs, until its metrics tell; none starts here unless it is free", ge=1
    )
    cluster: Literal["slurm"] | None = option(
        None, "null: jobs are processes here; slurm: they are submitted (extra slurm)"
    )
    slurm: SlurmConfig = option(SlurmConfig(), "with cluster=slurm, what a job asks for")


@dataclass(frozen=True)
class Objective:
    """One thing that a search makes as large, or as small, as it can."""

    metric: str = option("episode/return_mean", "a metric of metrics.jsonl")
    take: Literal["mean", "last", "best"] = option(
        "mean", "of a trial: its mean over env steps (how fast it learns), its last value, or its best"
    )
    direction: Literal["maximize", "minimize"] = option("maximize", "maximize or minimize")

    def __str__(self) -> str:
        return f"{self.take} {self.metric}"


@dataclass(frozen=True)
class SearchConfig(SweepConfig):
    """How a search runs its trials, and where it looks."""

    num_trials: int = option(30, "trials in all, failed and pruned ones included", ge=1)
    sampler: Literal["tpe", "random", "cmaes"] = option("tpe", "what proposes values: tpe, random or cmaes")
    pruner: Literal["none", "median", "hyperband"] = option(
        "median", "what stops trials that fall behind: median, hyperband or none"
    )
    num_reports: int = option(20, "how often a trial is compared with the others, at equal env steps", ge=1)
    seed: int = option(1, "seed of the sampler", ge=0, lt=2**32)
    objectives: list[Objective] = option([Objective()], "what is optimised; several: none is better in all of them")
    space: dict[str, str | None] = option({}, "key: where to look, as one would type it; null: leave the key alone")
