"""`hydra/launcher=serial`: the jobs of a sweep one after another, in this process, with Hydra's callbacks and logging.

Every job is composed and validated before the first one starts. A job that fails does not stop the others; Ctrl-C
does. There is no ledger: `parl resume` goes on with single runs, not with the sweep.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from parl_cli.commands._flags import warn
from parl_cli.commands._job import execute, set_dir
from parl_cli.errors import ParlError

# A plain dict, not a dataclass: Hydra runs this file before it is in sys.modules, where dataclasses look up types.
_CONFIG = {"_target_": "hydra_plugins.parl_serial_launcher.SerialLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="serial", node=_CONFIG, provider="parl")


class SerialLauncher(Launcher):
    """Runs jobs in order; see the module's docstring."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: called once before `launch`."""
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Validate all jobs, then run them; results in the order of the jobs.

        Raises:
            ConfigError: a job is not valid; none has started then.
            ParlError: jobs failed.
        """
        from parl_cli.commands._sweep import make_sweep_dir, prepare  # torch, from here on

        assert self.config is not None
        assert self.hydra_context is not None
        jobs = prepare(self.hydra_context, self.config, job_overrides)
        sweep_dir = make_sweep_dir(self.config, jobs)
        results, failed = [], []
        for job in jobs:
            print(f"parl: {job}, {job.number + 1} of {len(jobs)}", flush=True)
            set_dir(job.job, "sweep", sweep_dir)
            result = execute(job.job, job.config, self.hydra_context, subdir_key="hydra.sweep.subdir")
            results.append(result)
            if result.status is JobStatus.FAILED:
                failed.append(str(job))
                self._report(str(job), result._return_value)
        if failed:
            raise ParlError(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}; see {sweep_dir}")
        print(f"parl: {len(jobs)} jobs done: {sweep_dir}", flush=True)
        return results

    @staticmethod
    def _report(name: str, error: BaseException) -> None:
        text = str(error) if isinstance(error, ParlError) else "".join(traceback.format_exception(error))
        warn(f"{name} failed: {text}")
