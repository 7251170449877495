"""`hydra/launcher=serial`: the jobs of a sweep one after another, in this process.

Every job is composed and validated before the first one starts. A job that fails does not stop the others; Ctrl-C
does.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from parl_cli.commands._flags import warn
from parl_cli.commands._job import describe, execute, make_dir, set_dir, validate
from parl_cli.composition.messages import translated
from parl_cli.errors import ConfigError, ParlError

if TYPE_CHECKING:
    from parl_cli.config import TrainConfig


# A plain dict, not a dataclass: Hydra runs this file before it is in sys.modules, where dataclasses look up types.
_CONFIG = {"_target_": "hydra_plugins.parl_serial_launcher.SerialLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="serial", node=_CONFIG, provider="parl")


class SerialLauncher(Launcher):
    """Runs jobs in order; see the module's docstring."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.sweep_dir: Path | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: called once before `launch`."""
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Validate all jobs, then run them; results in the order of the jobs.

        Raises:
            ConfigError: a job is not valid; none has started then.
            ParlError: jobs failed.
        """
        assert self.hydra_context is not None
        jobs = [self._prepare(initial_job_idx + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        sweep_dir = self._make_sweep_dir([config.name for _, config in jobs])
        results, failed = [], []
        for number, (overrides, (job, config)) in enumerate(zip(job_overrides, jobs, strict=True), initial_job_idx):
            name = describe(number, overrides)
            print(f"parl: {name}, {number - initial_job_idx + 1} of {len(jobs)}", flush=True)
            set_dir(job, "sweep", sweep_dir)
            result = execute(job, config, self.hydra_context, subdir_key="hydra.sweep.subdir")
            results.append(result)
            if result.status is JobStatus.FAILED:
                failed.append(name)
                self._report(name, result._return_value)
        if failed:
            raise ParlError(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}; see {sweep_dir}")
        print(f"parl: {len(jobs)} jobs done: {sweep_dir}", flush=True)
        return results

    def _prepare(self, number: int, overrides: list[str]) -> tuple[DictConfig, TrainConfig]:
        assert self.config is not None
        assert self.hydra_context is not None
        try:
            with translated():
                job = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
                with open_dict(job):
                    job.hydra.job.id = job.hydra.job.num = number
            return job, validate(job)
        except ConfigError as error:
            raise ConfigError(f"{describe(number, overrides)}: {error}") from error

    def _make_sweep_dir(self, names: list[str]) -> Path:
        if self.sweep_dir is None:
            assert self.config is not None
            # The sweep's own config has the defaults of what is swept: its name may be none of the jobs'.
            with read_write(self.config), open_dict(self.config):
                self.config.name = names[0] if len(set(names)) == 1 else "sweep"
            self.sweep_dir = make_dir(self.config, "sweep")
        return self.sweep_dir

    @staticmethod
    def _report(name: str, error: BaseException) -> None:
        text = str(error) if isinstance(error, ParlError) else "".join(traceback.format_exception(error))
        warn(f"{name} failed: {text}")
