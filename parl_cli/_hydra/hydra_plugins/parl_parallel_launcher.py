"""`hydra/launcher=parallel`: the jobs of a sweep beside each other, each in a process of its own.

What a job prints, Hydra's job logging included, is in its console.log; Hydra's callbacks are asked about the whole
sweep, not about its jobs (`hydra/launcher=serial` does that).
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# A plain dict, not a dataclass: Hydra runs this file before it is in sys.modules, where dataclasses look up types.
_CONFIG = {"_target_": "hydra_plugins.parl_parallel_launcher.ParallelLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="parallel", node=_CONFIG, provider="parl")


class ParallelLauncher(Launcher):
    """Runs jobs through `parl_cli.sweeps`; see the module's docstring."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: called once before `launch`."""
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Validate all jobs, then run them.

        Raises:
            ConfigError: a job is not valid; none has started then.
            ParlError: jobs failed.
        """
        from parl_cli.commands._sweep import make_ledger, make_sweep_dir, prepare, sweep_options  # torch, from here on
        from parl_cli.sweeps.options import SweepConfig
        from parl_cli.sweeps.run import run_sweep

        assert self.config is not None
        assert self.hydra_context is not None
        options = sweep_options(self.config, SweepConfig)
        jobs = prepare(self.hydra_context, self.config, job_overrides)
        run_sweep(make_ledger(self.config, options, make_sweep_dir(self.config, jobs), jobs))
        return []
