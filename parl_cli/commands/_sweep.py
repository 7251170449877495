"""The jobs of a sweep: composed and validated whole before the first one starts, whatever runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from parl_cli.commands._job import make_dir, validate
from parl_cli.composition.compose import check_preset, plain
from parl_cli.composition.compose import prepare as prepare_overrides
from parl_cli.composition.messages import translated
from parl_cli.config import TrainConfig, parse, to_plain
from parl_cli.errors import ConfigError
from parl_cli.sweeps import slurm
from parl_cli.sweeps.ledger import Ledger, is_below
from parl_cli.sweeps.options import SweepConfig

Options = TypeVar("Options", bound=SweepConfig)


@dataclass
class PreparedJob:
    """A valid job that has not been run."""

    number: int
    overrides: list[str]  # as Hydra takes them
    job: DictConfig  # composed, with Hydra's part
    config: TrainConfig
    folder: str  # below the sweep's

    def __str__(self) -> str:
        return describe(self.number, self.overrides)

    @property
    def values(self) -> dict[str, Any]:
        """The whole config as plain values that need nothing of this process: what job.json holds."""
        # an env id that names a module has been written as a plug-in by validation
        return {**plain(self.job), "env": to_plain(self.config.env), "plugins": list(self.config.plugins)}

    @property
    def argv(self) -> list[str]:
        """The command line that would train it alone."""
        return ["parl", "train", *self.overrides]


def sweep_options(sweep: DictConfig, cls: type[Options]) -> Options:
    """What the user says about the sweep itself.

    Raises:
        ConfigError: it does not fit, or the cluster is not there or refuses such jobs.
    """
    with translated():
        values = OmegaConf.to_container(sweep.sweep, resolve=True)
        HydraConfig.instance().set_config(sweep)
        folder = str(OmegaConf.select(sweep, "hydra.sweep.dir"))
    options = parse(cls, values, "sweep")
    slurm.check(options, Path(os.path.abspath(os.path.expanduser(folder))))
    return options


def prepare(context: HydraContext, sweep: DictConfig, overrides: Sequence[Sequence[str]]) -> list[PreparedJob]:
    """Compose and validate every job. Writes nothing.

    Raises:
        ConfigError: a job is not valid, or two have the same folder.
    """
    jobs = [_prepare(context, sweep, number, list(texts)) for number, texts in enumerate(overrides)]
    taken: dict[str, PreparedJob] = {}
    for job in jobs:
        if not is_below(job.folder):
            raise ConfigError(f"hydra.sweep.subdir={job.folder}: must be a folder below the sweep's own")
        first = taken.setdefault(os.path.normpath(job.folder), job)
        if first is not job:
            raise ConfigError(
                f"{first} and {job} have the same folder, hydra.sweep.subdir={job.folder}; leave it at "
                "${hydra.job.num}, or name what differs"
            )
    return jobs


def make_sweep_dir(sweep: DictConfig, jobs: Sequence[PreparedJob]) -> Path:
    """Make the sweep's folder, named after its jobs.

    Raises:
        ConfigError: it holds something already, or cannot be made.
    """
    names = {job.config.name for job in jobs}
    # The sweep's own config has the defaults of what is swept: its name may be none of the jobs'.
    with read_write(sweep), open_dict(sweep):
        sweep.name = names.pop() if len(names) == 1 else "sweep"
    return make_dir(sweep, "sweep")


def make_ledger(sweep: DictConfig, options: SweepConfig, folder: Path, jobs: Sequence[PreparedJob]) -> Ledger:
    """A new sweep in an empty folder, its jobs waiting."""
    argv = ["parl", "train", "-m", *sweep.hydra.overrides.hydra, *sweep.hydra.overrides.task]
    plugins = dict.fromkeys(name for job in jobs for name in job.config.plugins)
    ledger = Ledger(folder, argv, options, list(plugins))
    for job in jobs:
        ledger.add(shown(job.overrides), job.values, job.folder, job.argv)
    ledger.save()
    return ledger


def describe(number: int, overrides: Sequence[str]) -> str:
    """How a message names a job of a sweep."""
    return f"job {number} ({' '.join(shown(overrides)) or 'no overrides'})"


def shown(overrides: Sequence[str]) -> list[str]:
    """What a person wants to read of them: not Hydra's own, and without the + that `env.kwargs` needs."""
    return [text.lstrip("+") for text in filter_overrides(overrides)]


def _prepare(context: HydraContext, sweep: DictConfig, number: int, overrides: list[str]) -> PreparedJob:
    try:
        overrides = prepare_overrides(overrides)  # a value of several may be null
        with translated():
            job = context.config_loader.load_sweep_config(sweep, overrides)
            with open_dict(job):
                job.hydra.job.id = job.hydra.job.num = number
            HydraConfig.instance().set_config(job)
            folder = str(job.hydra.sweep.subdir)
        check_preset(job)
        return PreparedJob(number, overrides, job, validate(job), folder)
    except ConfigError as error:
        raise ConfigError(f"{describe(number, overrides)}: {error}") from error
