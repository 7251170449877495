"""Training jobs: one, or the jobs of a sweep. Everything is validated before anything is written.

Hydra would make the folder first and swallow what a callback raises, so validation stands before Hydra's `run_job`.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, read_write

from parl_cli.composition.compose import compose, parse_overrides, plain, preset_of, presets_named
from parl_cli.composition.messages import translated
from parl_cli.errors import ConfigError

if TYPE_CHECKING:
    from parl_cli.config import TrainConfig


def run_one(hydra: Hydra, overrides: Sequence[str]) -> float | None:
    """Compose, validate and train one job; returns its final mean return.

    Raises:
        ConfigError: bad input; nothing has been written then.
        ParlError: the run broke.
    """
    for text in overrides:
        if _is_about_the_sweep(text) or text.startswith("hydra.sweep."):
            raise ConfigError(f"{text}: says how several jobs are run; add -m, or leave it out")
    job = compose(hydra, "train", overrides)
    config = validate(job)
    callbacks = Callbacks(job)
    callbacks.on_run_start(config=job, config_name="train")
    set_dir(job, "run", make_dir(job, "run"))
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    done = execute(job, config, context)
    callbacks.on_run_end(config=job, config_name="train", job_return=done)
    if done.status is JobStatus.FAILED:
        raise done._return_value
    return done._return_value


def run_sweep(hydra: Hydra, overrides: Sequence[str]) -> Any:
    """Run one job for each combination of the values; the sweeper chooses them, the launcher runs them.

    Raises:
        ConfigError: bad input in any of the jobs; nothing has been written then.
        ParlError: jobs failed; the others have run.
    """
    from hydra.core.plugins import Plugins

    for text in overrides:
        if text.startswith("hydra.run."):
            raise ConfigError(f"{text}: of a single job; a sweep's folder is hydra.sweep.dir=…")
    _check_single(hydra, overrides)
    job = compose(hydra, "sweep", overrides, multirun=True)
    _check_launcher(job, overrides)
    with read_write(job.hydra):
        job.hydra.job.config_name = "train"  # what each job is composed from
    HydraConfig.instance().set_config(job)
    callbacks = Callbacks(job)
    callbacks.on_multirun_start(config=job, config_name="train")
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    with translated():
        # The launcher brings its own way to run a job, so the function is never called.
        sweeper = Plugins.instance().instantiate_sweeper(config=job, hydra_context=context, task_function=_not_called)
    result = sweeper.sweep(arguments=[text for text in job.hydra.overrides.task if not _is_about_the_sweep(text)])
    callbacks.on_multirun_end(config=job, config_name="train")
    return result


def validate(job: DictConfig) -> TrainConfig:
    """The job's typed config, checked against its env, device and algorithm. Writes nothing.

    Raises:
        ConfigError: what does not fit.
    """
    values = plain(job)
    from parl_cli.build import validate as validate_values  # torch, from here on

    with presets_named(job):
        return validate_values(values)


def execute(job: DictConfig, config: TrainConfig, context: HydraContext, subdir_key: str | None = None) -> JobReturn:
    """Train in the folder that `job.hydra` names, with Hydra's job logging and callbacks around it.

    An error of the run is in the result; see `JobReturn.status`.
    """
    argv = ["parl", "train", *job.hydra.overrides.task]
    try:
        result = run_job(
            hydra_context=context,
            task_function=functools.partial(_train, config=config, argv=argv, preset=preset_of(job)),
            config=job,
            job_dir_key="hydra.run.dir" if subdir_key is None else "hydra.sweep.dir",
            job_subdir_key=subdir_key,
        )
    except KeyboardInterrupt:  # perhaps before anything was written
        remove_if_empty(Path(job.hydra.runtime.output_dir))
        raise
    finally:
        _close_log(Path(job.hydra.runtime.output_dir))
    if result.status is JobStatus.FAILED:
        remove_if_empty(Path(job.hydra.runtime.output_dir))
    return result


def _close_log(folder: Path) -> None:
    """End the job's log file: what is logged later in this process is not of this job, whose folder may be gone."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) and folder in Path(handler.baseFilename).parents:
            root.removeHandler(handler)
            handler.close()


def make_dir(job: DictConfig, kind: str) -> Path:
    """Make the folder that `hydra.run.dir` (`kind` "run") or `hydra.sweep.dir` ("sweep") names, for this job alone.

    A name with a random suffix that is taken is drawn again; a folder the user chose must be new or empty.

    Raises:
        ConfigError: it holds something already, or cannot be made.
    """
    HydraConfig.instance().set_config(job)
    seen = set()
    while True:
        with translated():
            name = str(OmegaConf.select(job, f"hydra.{kind}.dir"))
        folder = Path(os.path.abspath(os.path.expanduser(name)))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if folder.is_dir() and not any(folder.iterdir()):
                return folder
            if folder in seen:
                raise ConfigError(
                    f"hydra.{kind}.dir={folder}: already in use; choose another folder, or go on with parl resume run=…"
                ) from None
        except OSError as error:
            raise ConfigError(
                f"hydra.{kind}.dir={folder}: cannot be made ({error.strerror}); name a writable place"
            ) from None
        seen.add(folder)
        OmegaConf.clear_cache(job)


def set_dir(job: DictConfig, kind: str, folder: Path) -> None:
    """Write the made folder into the config, so that nothing resolves its name again."""
    with read_write(job.hydra):
        job.hydra[kind].dir = str(folder)


def remove_if_empty(folder: Path) -> None:
    """Take away a run folder in which nothing was written, and its parent if that leaves it empty."""
    for empty in (folder, folder.parent):
        if any(empty.iterdir()):
            return
        empty.rmdir()


def _train(_job: DictConfig, config: TrainConfig, argv: list[str], preset: str) -> float | None:
    from parl_cli.jobs import train_run

    return train_run(config, Path(HydraConfig.get().runtime.output_dir), argv, preset)


def _is_about_the_sweep(text: str) -> bool:
    key = text.lstrip("+~").partition("=")[0]
    return key == "sweep" or key.startswith("sweep.")


def _check_single(hydra: Hydra, overrides: Sequence[str]) -> None:
    for override in parse_overrides(hydra, overrides):
        if override.is_sweep_override() and _is_about_the_sweep(str(override.input_line)):
            raise ConfigError(f"{override.input_line}: must be one value; it says how the jobs are run")


def _check_launcher(job: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse what would run the jobs without parl's validation, and what the chosen launcher does not look at.

    Raises:
        ConfigError: naming what to choose.
    """
    for role, own in (("launcher", "parallel or serial"), ("sweeper", "grid, or sweep=<algo> for a search")):
        chosen = job.hydra[role]._target_
        if not str(chosen).startswith("hydra_plugins.parl_"):
            choice = job.hydra.runtime.choices[f"hydra/{role}"]
            raise ConfigError(f"hydra/{role}={choice}: cannot run parl's jobs; choose {own}, or leave it out")
    if job.hydra.runtime.choices["hydra/launcher"] == "serial":
        for text in overrides:
            if text.startswith("sweep."):
                raise ConfigError(f"{text}: not looked at by hydra/launcher=serial; leave one of them out")


def _not_called(_job: DictConfig) -> Any:
    raise AssertionError("parl's launchers run jobs their own way")
